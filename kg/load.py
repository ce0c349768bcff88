"""Read graphs as people have them into one `Graph`.

    graph, complaints = load([Path("kg/planets.ttl"), Path("more.tsv")], labels=Path("labels.tsv"))

.tsv .csv        triples, with or without a header that names the columns
.jsonl .json     {"head": …, "relation": …, "tail": …}, a list of three, or an entity record as HuaTuo has them:
                 {"中心词": "偏头痛", "相关症状": ["头痛", "恶心"]}; .json holds a list of these, or JSON-LD
.ttl .n3 .nt .nq .jsonld .rdf .xml .owl    by rdflib, with labels, language tags, datatypes and blank nodes (rdf.py)
.graphml         an edge's relation is its attribute "relation", "label" or "type" (graphml.py)

Tables, JSON lines, N-Triples and N-Quads are read line by line; a line that cannot be read becomes a complaint that
names it, and the others count. In the other formats facts pass into the graph as they are read, and none is held twice.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kg import graphml, rdf
from kg.complaints import Complaint, Complaints
from kg.graph import PHRASE_FIELDS, Graph, GraphBuilder, GraphError
from kg.names import language_of_name, split_name

HEAD = ("head", "subject", "s", "source", "from", "h", "头实体", "主语", "主体")
RELATION = ("relation", "predicate", "p", "property", "r", "label", "type", "关系", "谓语", "属性")
TAIL = ("tail", "object", "o", "target", "to", "t", "尾实体", "宾语", "客体")
CENTRE = ("中心词", "entity", "name", "实体", "名称")  # the entity that a record is about
NO_VALUES = frozenset({"", "无", "暂无", "none", "null", "n/a", "-"})
LONGEST_LINE = 2**20
SAID_SHAPE = '"KEY": "name" or "KEY": {"en": {"label": "…", "statement": "{s} … {o}"}}'  # in a .json of labels

RDF_FORMATS = {
    ".ttl": "turtle", ".n3": "turtle", ".jsonld": "json-ld", ".rdf": "xml", ".xml": "xml", ".owl": "xml",
}  # fmt: skip
SUFFIXES = (".tsv", ".csv", ".txt", ".jsonl", ".ndjson", ".json", ".nt", ".nq", *RDF_FORMATS, ".graphml")


def load(paths: Sequence[Path], labels: Path | None = None) -> tuple[Graph, list[Complaint]]:
    """One graph out of all files. Raises GraphError where a file cannot be read at all, or nothing is in them."""
    builder, complaints = GraphBuilder(), Complaints()
    for path in paths:
        complaints.start(path)
        _read(path, builder, complaints)
    if labels is not None:
        complaints.start(labels)
        _read_labels(labels, builder, complaints)
    graph = builder.build()
    if not len(graph):
        why = (
            f"; the first complaint: {complaints.found[0].where}: {complaints.found[0].why}" if complaints.found else ""
        )
        raise GraphError(f"{', '.join(map(str, paths))}: no facts{why}.")
    return graph, complaints.found


def _read(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    suffix = path.suffix.lower()
    if path.is_dir():
        inside = sorted((file for file in path.iterdir() if file.suffix.lower() in SUFFIXES), key=_likely)
        hint = f", such as {inside[0]}" if inside else "; there are none in it"
        raise GraphError(f"{path}: a folder; name the graph's files{hint}.")
    try:
        if suffix in (".tsv", ".csv", ".txt"):
            _read_table(path, builder, complaints)
        elif suffix in (".jsonl", ".ndjson"):
            _read_json_lines(path, builder, complaints)
        elif suffix == ".json":
            _read_json(path, builder, complaints)
        elif suffix in (".nt", ".nq"):
            rdf.read_lines(path, numbered_lines(path, complaints), builder, complaints)
        elif suffix in RDF_FORMATS:
            rdf.read_rdf(path, RDF_FORMATS[suffix], builder)
        elif suffix == ".graphml":
            graphml.read_graphml(path, builder, complaints)
        else:
            raise GraphError(f"{path}: {suffix or 'no ending'} is no graph format; known are {' '.join(SUFFIXES)}.")
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}).") from error


def _likely(path: Path) -> tuple[bool, str]:
    """By which the likeliest graph of a folder comes first: a .json may hold anything."""
    return path.suffix.lower() == ".json", path.name


# ---------------------------------------------------------------- tables


def numbered_lines(path: Path, complaints: Complaints) -> Iterator[tuple[int, str]]:
    """The lines that are UTF-8 text of a sane length, with their numbers from 1."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if len(raw) > LONGEST_LINE:
                complaints.add(f", line {number}", f"{len(raw)} bytes, above {LONGEST_LINE}")
                continue
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                complaints.add(f", line {number}", "not UTF-8 text", repr(raw[:80]))
                continue
            if line.strip():
                yield number, line


def _read_table(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    columns: tuple[int, int, int] | None = None
    tabs = path.suffix.lower() != ".csv"
    for number, line in numbered_lines(path, complaints):
        cells = line.split("\t") if tabs else next(csv.reader([line]), [])
        cells = [cell.strip() for cell in cells]
        if columns is None:
            header = _columns(cells)
            columns = header or (0, 1, 2)
            if header is not None:
                continue
        if len(cells) <= max(columns):
            complaints.add(f", line {number}", f"{len(cells)} columns, needs {max(columns) + 1}", line)
            continue
        triple = [cells[column] for column in columns]
        if not all(triple):
            complaints.add(f", line {number}", "an empty cell", line)
            continue
        builder.add(*triple)


def _columns(cells: Sequence[str]) -> tuple[int, int, int] | None:
    """Where head, relation and tail stand, if this line names columns."""
    names = [cell.lower() for cell in cells]
    places = [next((names.index(name) for name in known if name in names), None) for known in (HEAD, RELATION, TAIL)]
    head, relation, tail = places
    return None if head is None or relation is None or tail is None else (head, relation, tail)


# ---------------------------------------------------------------- JSON: triples and entity records


def _read_json_lines(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    for number, line in numbered_lines(path, complaints):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            complaints.add(f", line {number}", "not JSON", line)
            continue
        why = _add_json(value, builder)
        if why:
            complaints.add(f", line {number}", why, line)


def _read_json(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{path}: not JSON ({error}).") from error
    if "@context" in value or "@graph" in value:
        rdf.read_rdf(path, "json-ld", builder)
        return
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        why = _add_json(entry, builder)
        if why:
            complaints.add(f", entry {number}", why, json.dumps(entry, ensure_ascii=False))


def _add_json(value: Any, builder: GraphBuilder) -> str:
    """Take in a triple or an entity record; returns what is wrong with it, or ""."""
    if isinstance(value, list) and len(value) == 3 and all(map(_text, value)):
        builder.add(*map(_text, value))
        return ""
    if not isinstance(value, dict):
        return "neither a triple nor an object"
    parts = [next((_text(value[name]) for name in known if name in value), "") for known in (HEAD, RELATION, TAIL)]
    if all(parts):
        builder.add(*parts)
        return ""
    centre_field = next((name for name in CENTRE if name in value), None)
    centre = _text(value[centre_field]) if centre_field else ""
    if not centre:
        return f"neither head, relation and tail nor an entity ({', '.join(CENTRE)})"
    found = False
    for relation, entries in value.items():
        if relation == centre_field:
            continue
        for entry in entries if isinstance(entries, list) else [entries]:
            text = _text(entry)
            if text.lower() not in NO_VALUES:
                builder.add(centre, relation, text)
                found = True
    return "" if found else "an entity without facts"


def _text(value: object) -> str:
    """A JSON scalar as one line of text; "" for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return " ".join(str(value).split())


# ---------------------------------------------------------------- a file of labels


def _read_labels(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    """Names for entities and relations: .tsv with key, name and perhaps language, or the .json that a run writes."""
    try:
        if path.suffix.lower() == ".json":
            value = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(value, dict):
                raise GraphError(f"{path}: holds {_shown(value)}; it should be {{{SAID_SHAPE}}}.")
            for key, said in value.items():
                _add_said(path, key, said, builder, complaints)
            return
        for number, line in numbered_lines(path, complaints):
            cells = [cell.strip() for cell in line.split("\t")]
            if len(cells) < 2 or not all(cells[:2]):
                complaints.add(f", line {number}", "needs a key, a tab and a name", line)
                continue
            language = cells[2] if len(cells) > 2 and cells[2] else language_of_name(cells[1])
            _name(cells[0], cells[1], language, f", line {number}", builder, complaints)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise GraphError(f"{path}: not JSON ({error}).") from error


def _add_said(path: Path, key: str, said: Any, builder: GraphBuilder, complaints: Complaints) -> None:
    """One entry of a .json: a name, or a language's name or phrases. Raises GraphError where it is neither."""
    if isinstance(said, str):
        _name(key, said, language_of_name(said), f", {key!r}", builder, complaints)
        return
    if not isinstance(said, dict):
        raise GraphError(f"{path}: the key {key!r} has {_shown(said)}; it should be {SAID_SHAPE}.")
    for language, phrases in said.items():
        if language in PHRASE_FIELDS:
            raise GraphError(
                f'{path}: the key {key!r} has {language!r} where a language such as "en" belongs;'
                f" it should be {SAID_SHAPE}."
            )
        if isinstance(phrases, str):
            _name(key, phrases, language, f", {key!r}", builder, complaints)
            continue
        if not isinstance(phrases, dict):
            raise GraphError(f"{path}: the key {key!r} has {language!r}: {_shown(phrases)}; it should be {SAID_SHAPE}.")
        for what, text in phrases.items():
            if what not in PHRASE_FIELDS or not isinstance(text, str):
                complaints.add(f", {key!r}", f"{what!r} is none of {', '.join(PHRASE_FIELDS)}, or no text")
            elif builder.is_relation(key) and text:
                builder.add_phrase(key, language, what, " ".join(text.split()))


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def _name(key: str, name: str, language: str, where: str, builder: GraphBuilder, complaints: Complaints) -> None:
    if builder.is_relation(key):
        builder.add_phrase(key, language, "label", name)
    elif builder.is_node(key):
        builder.add_name(key, name, language, label=True)
    else:
        complaints.add(where, f"the graph has no entity and no relation {split_name(key)!r}", key)
