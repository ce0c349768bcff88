"""Read graphs as people have them into one `Graph`.

    graph, complaints = load([Path("kg/planets.ttl"), Path("more.tsv")], labels=Path("labels.tsv"))

.tsv .csv        triples, with or without a header that names the columns
.jsonl .json     {"head": …, "relation": …, "tail": …}, a list of three, or an entity record as HuaTuo has them:
                 {"中心词": "偏头痛", "相关症状": ["头痛", "恶心"]}; .json holds a list of these, or JSON-LD
.ttl .nt .jsonld .rdf .xml .owl    by rdflib, with labels, language tags, datatypes and blank nodes
.graphml         by networkx; an edge's relation is its attribute "relation", "label" or "type"

Tables, JSON lines and N-Triples are read line by line, so millions of triples need no more memory than the graph
itself; a line that cannot be read becomes a complaint that names it, and the others count.
"""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kg.graph import PHRASE_FIELDS, Graph, GraphBuilder, GraphError
from kg.names import language_of_name, literal_key, split_name

HEAD = ("head", "subject", "s", "source", "from", "h", "头实体", "主语", "主体")
RELATION = ("relation", "predicate", "p", "property", "r", "label", "type", "关系", "谓语", "属性")
TAIL = ("tail", "object", "o", "target", "to", "t", "尾实体", "宾语", "客体")
CENTRE = ("中心词", "entity", "name", "实体", "名称")  # the entity that a record is about
NO_VALUES = frozenset({"", "无", "暂无", "none", "null", "n/a", "-"})
COMPLAINTS_A_FILE = 1000  # a file with more broken lines than that is not worth listing further
LONGEST_LINE = 2**20

RDF_FORMATS = {
    ".ttl": "turtle", ".n3": "turtle", ".jsonld": "json-ld", ".rdf": "xml", ".xml": "xml", ".owl": "xml",
}  # fmt: skip
PHRASES = "https://instructloop.invalid/phrase#"  # statement, tail, head, ref: how a relation is said (kg/README.md)
LABELS = ("rdf-schema#label", "skos/core#prefLabel", "schema.org/name", "foaf/0.1/name")
ALIASES = ("skos/core#altLabel", "schema.org/alternateName")
TYPE = "22-rdf-syntax-ns#type"
SCHEMA = ("22-rdf-syntax-ns#", "rdf-schema#", "skos/core#", "/owl#", "ontology/vann", PHRASES)  # no facts to ask about


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something in a file that could not be used: where, why, and what it was."""

    where: str
    why: str
    text: str = ""


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


class Complaints:
    """What could not be used, at most COMPLAINTS_A_FILE of each file and a last one that counts the rest."""

    def __init__(self) -> None:
        self.found: list[Complaint] = []
        self._path, self._number = Path(), 0

    def start(self, path: Path) -> None:
        self._path, self._number = path, 0

    def add(self, place: str, why: str, text: str = "") -> None:
        self._number += 1
        if self._number <= COMPLAINTS_A_FILE:
            self.found.append(Complaint(f"{self._path.name}{place}", why, text[:200]))
        elif self._number == COMPLAINTS_A_FILE + 1:
            self.found.append(Complaint(self._path.name, f"more than {COMPLAINTS_A_FILE} broken lines; no more listed"))


def _read(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    suffix = path.suffix.lower()
    try:
        if suffix in (".tsv", ".csv", ".txt"):
            _read_table(path, builder, complaints)
        elif suffix in (".jsonl", ".ndjson"):
            _read_json_lines(path, builder, complaints)
        elif suffix == ".json":
            _read_json(path, builder, complaints)
        elif suffix == ".nt":
            _take(_ntriples(path, complaints), builder)
        elif suffix in RDF_FORMATS:
            _read_rdf(path, RDF_FORMATS[suffix], builder)
        elif suffix == ".graphml":
            _read_graphml(path, builder, complaints)
        else:
            known = " ".join((".tsv", ".csv", ".jsonl", ".json", ".nt", *RDF_FORMATS, ".graphml"))
            raise GraphError(f"{path}: {suffix or 'no ending'} is no graph format; known are {known}.")
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}).") from error


# ---------------------------------------------------------------- tables


def _lines(path: Path, complaints: Complaints) -> Iterator[tuple[int, str]]:
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
    for number, line in _lines(path, complaints):
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
    for number, line in _lines(path, complaints):
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
        _read_rdf(path, "json-ld", builder)
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


# ---------------------------------------------------------------- RDF, by rdflib


def _read_rdf(path: Path, format_: str, builder: GraphBuilder) -> None:
    try:
        import rdflib
        from rdflib.term import BNode
    except ImportError as error:
        raise GraphError(f"{path}: reading RDF needs rdflib: pip install -c constraints.txt -e '.[kg]'.") from error
    logging.getLogger("rdflib.term").setLevel(logging.ERROR)  # a date that is none stays the text it is
    store = rdflib.Graph()
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own calls to itself
            if format_ == "json-ld":  # it may hold named graphs
                named = rdflib.Dataset(default_union=True)
                named.parse(file=file, format=format_)
                for triple in named.triples((None, None, None)):
                    store.add(triple)
            else:
                store.parse(file=file, format=format_)
    except OSError:
        raise
    except Exception as error:  # its parsers raise what they like, from ValueError to SAXParseException
        raise GraphError(f"{path}: not {format_} ({' '.join(str(error).split())[:200]}).") from error
    blank = _name_blank_nodes(store, BNode)
    rows = store.triples((None, None, None))
    _take(((_key(s, blank), str(p), _key(o, blank), o) for s, p, o in rows), builder)


def _ntriples(path: Path, complaints: Complaints) -> Iterator[tuple[str, str, str, Any]]:
    """The triples of a file of N-Triples, line by line; a blank node's key is its place among the blank nodes."""
    try:
        from rdflib.plugins.parsers.ntriples import DummySink, W3CNTriplesParser
        from rdflib.term import BNode
    except ImportError as error:
        raise GraphError(f"{path}: reading RDF needs rdflib: pip install -c constraints.txt -e '.[kg]'.") from error
    read: list[tuple[Any, Any, Any]] = []

    class Sink(DummySink):
        def __init__(self) -> None:
            self.length = 0

        def triple(self, subject: Any, predicate: Any, object_: Any) -> None:
            read.append((subject, predicate, object_))

    parser, blank = W3CNTriplesParser(Sink()), dict[Any, str]()
    for number, line in _lines(path, complaints):
        try:
            parser.parsestring(line + "\n")
        except Exception as error:  # noqa: BLE001  ParseError, and whatever an odd address raises
            complaints.add(f", line {number}", " ".join(str(error).split())[:120] or "not N-Triples", line)
        for subject, predicate, object_ in read:
            for term in (subject, object_):
                if isinstance(term, BNode):
                    blank.setdefault(term, f"_:{len(blank)}")
            yield _key(subject, blank), str(predicate), _key(object_, blank), object_
        read.clear()


def _key(term: Any, blank: dict[Any, str]) -> str:
    """A term's key: a literal's, a blank node's, else the address."""
    if hasattr(term, "datatype"):
        kind = str(term.datatype).rsplit("#", 1)[-1] if term.datatype else None
        return literal_key(" ".join(str(term).split()), term.language, kind)
    return blank.get(term, str(term))


def _take(rows: Iterable[tuple[str, str, str, Any]], builder: GraphBuilder) -> None:
    """Facts, names, types and phrases out of RDF: (subject, predicate, object) as keys, and the object itself."""
    names: list[tuple[str, str, str, bool]] = []
    for subject, relation, object_, term in rows:
        if relation.startswith(PHRASES) and relation[len(PHRASES) :] in PHRASE_FIELDS:
            builder.add_phrase(subject, _language(term), relation[len(PHRASES) :], str(term))
        elif relation.endswith((*LABELS, *ALIASES)):
            names.append((subject, " ".join(str(term).split()), _language(term), relation.endswith(LABELS)))
        elif relation.endswith(TYPE):
            builder.add_type(subject, object_)
        elif not any(part in relation for part in SCHEMA):
            builder.add(subject, relation, object_)
    for subject, name, language, is_label in sorted(names):  # once it is known which terms are relations
        if not builder.is_relation(subject):
            builder.add_name(subject, name, language, label=is_label)
        elif is_label:
            builder.add_phrase(subject, language, "label", name)


def _language(literal: Any) -> str:
    """The main part of a language tag; without a tag, what the text looks like."""
    return (literal.language or language_of_name(str(literal))).split("-")[0].lower()


def _name_blank_nodes(store: Any, blank_node: type) -> dict[Any, str]:
    """A stable key for each blank node: its number in the order of what is said about it, cycles included.

    rdflib names them anew at every reading. Each round describes a node by its neighbours' names of the round
    before; after four rounds what is still alike stands in the order of the file's own labels, if it has any.
    """
    nodes = {term for triple in store.triples((None, None, None)) for term in triple if isinstance(term, blank_node)}
    if not nodes:
        return {}
    from kg.graph import stable_hash

    names: dict[Any, int] = dict.fromkeys(nodes, 0)
    about: dict[Any, list[tuple[Any, ...]]] = {node: [] for node in nodes}
    for triple in store.triples((None, None, None)):
        for term in {triple[0], triple[2]} & nodes:
            about[term].append((*triple, triple[0] == term))
    for _ in range(4):
        names = {
            node: stable_hash(*sorted(str([names.get(term, str(term)) for term in triple]) for triple in about[node]))
            for node in nodes
        }
    taken: dict[int, int] = {}
    keys: dict[Any, str] = {}
    for node in sorted(nodes, key=lambda node: (names[node], str(node))):
        taken[names[node]] = taken.get(names[node], 0) + 1
        keys[node] = f"_:{names[node]:016x}.{taken[names[node]]}"
    return keys


# ---------------------------------------------------------------- GraphML, by networkx


def _read_graphml(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    try:
        import networkx
    except ImportError as error:
        raise GraphError(
            f"{path}: reading GraphML needs networkx: pip install -c constraints.txt -e '.[kg]'."
        ) from error
    try:
        graph = networkx.read_graphml(path, force_multigraph=True)
    except OSError:
        raise
    except Exception as error:  # XML, attribute and value errors of many kinds
        raise GraphError(f"{path}: not GraphML ({' '.join(str(error).split())[:200]}).") from error
    for node, attributes in graph.nodes(data=True):
        name = next((str(attributes[field]) for field in ("label", "name") if attributes.get(field)), None)
        if name is not None:
            builder.add_name(str(node), name, language_of_name(name), label=True)
        if attributes.get("type"):
            builder.add_type(str(node), str(attributes["type"]))
    for head, tail, attributes in graph.edges(data=True):
        relation = next(
            (str(attributes[field]) for field in ("relation", "label", "type") if attributes.get(field)), ""
        )
        if relation:
            builder.add(str(head), relation, str(tail))
        else:
            complaints.add(f", edge {head} to {tail}", "no attribute relation, label or type")


# ---------------------------------------------------------------- a file of labels


def _read_labels(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    """Names for entities and relations: .tsv with key, name and perhaps language, or the .json that a run writes."""
    try:
        if path.suffix.lower() == ".json":
            value = json.loads(path.read_text(encoding="utf-8-sig"))
            entries: Iterable[tuple[str, Any]] = value.items() if isinstance(value, dict) else []
            for key, said in entries:
                _add_said(key, said, builder, complaints)
            return
        for number, line in _lines(path, complaints):
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


def _add_said(key: str, said: Any, builder: GraphBuilder, complaints: Complaints) -> None:
    """One entry of a .json: a name, or a language's name or phrases."""
    if isinstance(said, str):
        _name(key, said, language_of_name(said), f", {key!r}", builder, complaints)
        return
    for language, phrases in said.items() if isinstance(said, dict) else ():
        if isinstance(phrases, str):
            _name(key, phrases, language, f", {key!r}", builder, complaints)
            continue
        for what, text in phrases.items() if isinstance(phrases, dict) else ():
            if what not in PHRASE_FIELDS or not isinstance(text, str):
                complaints.add(f", {key!r}", f"{what!r} is none of {', '.join(PHRASE_FIELDS)}, or no text")
            elif builder.is_relation(key) and text:
                builder.add_phrase(key, language, what, " ".join(text.split()))


def _name(key: str, name: str, language: str, where: str, builder: GraphBuilder, complaints: Complaints) -> None:
    if builder.is_relation(key):
        builder.add_phrase(key, language, "label", name)
    elif builder.is_node(key):
        builder.add_name(key, name, language, label=True)
    else:
        complaints.add(where, f"the graph has no entity and no relation {split_name(key)!r}", key)
