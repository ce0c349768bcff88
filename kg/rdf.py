"""RDF by rdflib, which parses and keeps nothing: each triple passes on into the graph as it is read.

    read_rdf(Path("kg/planets.ttl"), "turtle", builder)

rdflib's own store takes 1 to 2 KB a triple; its parsers are given a store here that holds none. Only triples with blank
nodes wait until the end, since such a node is named after all that is said about it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from xml.sax import SAXParseException

from kg.complaints import Complaints
from kg.graph import PHRASE_FIELDS, GraphBuilder, GraphError, stable_hash
from kg.names import language_of_name, literal_key

PHRASES = "https://instructloop.invalid/phrase#"  # statement, tail, head, ref: how a relation is said (kg/README.md)
LABELS = ("rdf-schema#label", "skos/core#prefLabel", "schema.org/name", "foaf/0.1/name")
ALIASES = ("skos/core#altLabel", "schema.org/alternateName")
TYPE = "22-rdf-syntax-ns#type"
SCHEMA = ("22-rdf-syntax-ns#", "rdf-schema#", "skos/core#", "/owl#", "ontology/vann", PHRASES)  # no facts to ask about
INSTALL = "reading RDF needs rdflib: pip install -c constraints.txt -e '.[kg]'"

Triple = tuple[Any, Any, Any]


def read_rdf(path: Path, format_: str, builder: GraphBuilder) -> None:
    """Turtle, RDF/XML or JSON-LD. Raises GraphError where the file is none."""
    try:
        import rdflib
        from rdflib.term import BNode
    except ImportError as error:
        raise GraphError(f"{path}: {INSTALL}.") from error
    logging.getLogger("rdflib.term").setLevel(logging.ERROR)  # a date that is none stays the text it is
    taker, waiting = _Taker(builder), list[Triple]()

    def take(triple: Triple) -> None:
        if isinstance(triple[0], BNode) or isinstance(triple[2], BNode):
            waiting.append(triple)
        else:
            taker.take(triple, {})

    if format_ == "json-ld":
        _refuse_contexts_on_the_web(path)
    store = _passing_store(take)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own calls to itself
            kind = rdflib.Dataset if format_ == "json-ld" else rdflib.Graph  # JSON-LD may hold named graphs
            kind(store=store).parse(file=file, format=format_)
    except OSError:
        raise
    except Exception as error:  # its parsers raise what they like, from ValueError to SAXParseException
        raise GraphError(f"{path}: not {format_} ({_reason(error)}).") from error
    blank = _name_blank_nodes(waiting, BNode)
    for triple in waiting:
        taker.take(triple, blank)
    taker.finish()


def _passing_store(take: Callable[[Triple], None]) -> Any:
    """An rdflib store that hands on what is put into it."""
    from rdflib.store import Store

    class Passing(Store):
        context_aware = graph_aware = True

        def add(self, triple: Any, context: Any, quoted: bool = False) -> None:
            take(triple)

        def add_graph(self, graph: Any) -> None:
            pass

    return Passing()


def _reason(error: Exception) -> str:
    """What a parser says, with the line it came to."""
    if isinstance(error, IndexError):  # what notation3 raises at the end of a file that was cut off
        return "it ends in the middle of a statement"
    lines, why = getattr(error, "lines", None), getattr(error, "_why", None)
    if lines is not None and why is not None:  # notation3.BadSyntax, whose message is a page long
        return f"line {lines + 1}: {' '.join(str(why).split())[:160]}"
    if isinstance(error, SAXParseException):
        return f"line {error.getLineNumber()}: {error.getMessage()}"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _refuse_contexts_on_the_web(path: Path) -> None:
    """rdflib would fetch them, and reading a file must not depend on who answers there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{path}: not json-ld ({error}).") from error
    found: list[Any] = [value]
    while found:
        one = found.pop()
        if isinstance(one, dict):
            contexts = one.get("@context", [])
            for context in contexts if isinstance(contexts, list) else [contexts]:
                address = context if isinstance(context, str) else (context or {}).get("@import")
                if address:
                    raise GraphError(f"{path}: its context lies at {address}; put the context into the file.")
            found += one.values()
        elif isinstance(one, list):
            found += one


# ---------------------------------------------------------------- N-Triples and N-Quads


def read_lines(path: Path, lines: Iterable[tuple[int, str]], builder: GraphBuilder, complaints: Complaints) -> None:
    """N-Triples, or N-Quads, whose graphs' names are dropped; a blank node's key is its place among the blank nodes."""
    try:
        from rdflib.plugins.parsers.nquads import NQuadsParser
        from rdflib.plugins.parsers.ntriples import DummySink, W3CNTriplesParser
        from rdflib.term import BNode
    except ImportError as error:
        raise GraphError(f"{path}: {INSTALL}.") from error
    read: list[Triple] = []

    class Sink(DummySink):
        """Of both parsers: triples come by `triple`, quads by `add` to one of its graphs, which it is itself."""

        def __init__(self) -> None:
            self.length = 0

        def triple(self, subject: Any, predicate: Any, object_: Any) -> None:
            read.append((subject, predicate, object_))

        def add(self, triple: Triple) -> None:
            read.append(triple)

        def get_context(self, name: Any) -> Sink:
            return self

        @property
        def default_context(self) -> Sink:
            return self

    parser = (NQuadsParser if path.suffix.lower() == ".nq" else W3CNTriplesParser)(Sink())
    taker, blank = _Taker(builder), dict[Any, str]()
    for number, line in lines:
        try:
            W3CNTriplesParser.parse(parser, StringIO(line + "\n"))
        except Exception as error:  # noqa: BLE001  ParseError, and whatever an odd address raises
            complaints.add(f", line {number}", " ".join(str(error).split())[:120] or "not N-Triples", line)
        for triple in read:
            for term in triple[::2]:
                if isinstance(term, BNode):
                    blank.setdefault(term, f"_:{len(blank)}")
            taker.take(triple, blank)
        read.clear()
    taker.finish()


# ---------------------------------------------------------------- from terms to facts, names, types and phrases


class _Taker:
    """Puts triples into a builder. Names wait: only at the end is it known which terms are relations."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._names: list[tuple[str, str, str, bool]] = []

    def take(self, triple: Triple, blank: dict[Any, str]) -> None:
        """A triple of rdflib's terms; `blank` has the keys of blank nodes."""
        subject, relation, term = _key(triple[0], blank), str(triple[1]), triple[2]
        if relation.startswith(PHRASES) and relation[len(PHRASES) :] in PHRASE_FIELDS:
            self._builder.add_phrase(subject, _language(term), relation[len(PHRASES) :], str(term))
        elif relation.endswith((*LABELS, *ALIASES)):
            name = " ".join(str(term).split())
            self._names.append((subject, name, _language(term), relation.endswith(LABELS)))
        elif relation.endswith(TYPE):
            self._builder.add_type(subject, _key(term, blank))
        elif not any(part in relation for part in SCHEMA):
            self._builder.add(subject, relation, _key(term, blank))

    def finish(self) -> None:
        for subject, name, language, is_label in sorted(self._names):
            if not self._builder.is_relation(subject):
                self._builder.add_name(subject, name, language, label=is_label)
            elif is_label:
                self._builder.add_phrase(subject, language, "label", name)


def _key(term: Any, blank: dict[Any, str]) -> str:
    """A term's key: a literal's, a blank node's, else the address."""
    if hasattr(term, "datatype"):
        kind = str(term.datatype).rsplit("#", 1)[-1] if term.datatype else None
        return literal_key(" ".join(str(term).split()), term.language, kind)
    return blank.get(term, str(term))


def _language(literal: Any) -> str:
    """The main part of a language tag; without a tag, what the text looks like."""
    tag = getattr(literal, "language", None)  # a label may be an address, in bad data
    return (tag or language_of_name(str(literal))).split("-")[0].lower()


def _name_blank_nodes(triples: Sequence[Triple], blank_node: type) -> dict[Any, str]:
    """A stable key for each blank node: its number in the order of what is said about it, cycles included.

    rdflib names them anew at every reading. Each round describes a node by its neighbours' names of the round
    before; after four rounds what is still alike stands in the order of the file's own labels, if it has any.
    """
    nodes = {term for triple in triples for term in triple if isinstance(term, blank_node)}
    names: dict[Any, int] = dict.fromkeys(nodes, 0)
    about: dict[Any, list[tuple[Any, ...]]] = {node: [] for node in nodes}
    for triple in triples:
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
