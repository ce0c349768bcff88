"""GraphML, read as it streams by: an edge is a fact, its relation the attribute "relation", "label" or "type".

networkx reads it too, and holds every node and edge in dictionaries while it does, some KB each; here an element is
forgotten once it is read. A node's attribute "label" or "name" names it, "type" says what it is; the labels that yEd
writes into its own elements count as well. Hyperedges are no facts and become complaints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, iterparse

from kg.complaints import Complaints
from kg.graph import GraphBuilder, GraphError
from kg.names import language_of_name

RELATION = ("relation", "label", "type")
NAME = ("label", "name")
Defaults = dict[str, tuple[str, str, str | None]]  # key's id -> what it is for, its name, its default


def read_graphml(path: Path, builder: GraphBuilder, complaints: Complaints) -> None:
    """Raises GraphError where the file is no GraphML."""
    keys: Defaults = {}
    is_graphml = False
    try:
        for element in _elements(path):
            kind = _local(element)
            if kind == "graphml":
                is_graphml = True
            elif kind == "key":
                default = next((child.text for child in element if _local(child) == "default"), None)
                name = element.get("attr.name") or element.get("id", "")
                keys[element.get("id", "")] = (element.get("for", "all"), name or "", default)
            elif kind == "node":
                _take_node(element.get("id", ""), _attributes(element, keys), builder)
            elif kind == "edge":
                _take_edge(element, _attributes(element, keys), builder, complaints)
            elif kind == "hyperedge":
                complaints.add(", a hyperedge", "joins more than two nodes, and is no fact")
    except ParseError as error:
        raise GraphError(f"{path}: not GraphML ({error}).") from error
    if not is_graphml:
        raise GraphError(f"{path}: not GraphML (no element graphml).")


def _elements(path: Path) -> Iterator[Element]:
    """Every element of interest at its end, when it is complete; it is forgotten afterwards."""
    within: list[Element] = []
    for event, element in iterparse(path, events=("start", "end")):
        if event == "start":
            within.append(element)
            continue
        within.pop()
        if _local(element) in ("graphml", "key", "node", "edge", "hyperedge"):
            yield element
            if within:
                within[-1].remove(element)


def _local(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def _attributes(element: Element, keys: Defaults) -> Mapping[str, str]:
    """The attributes of a node or an edge by name: their defaults, what XML itself says, and the element's data."""
    found = {name: default for kind, name, default in keys.values() if default and kind in (_local(element), "all")}
    found |= element.attrib
    for data in element:
        if _local(data) == "data":
            name = keys.get(data.get("key", ""), ("", data.get("key", ""), None))[1]
            drawn = next((part.text for part in data.iter() if _local(part) in ("NodeLabel", "EdgeLabel")), None)
            if drawn:
                found["label"] = drawn
            elif data.text:
                found[name] = data.text
    return {name: " ".join(text.split()) for name, text in found.items()}


def _first(attributes: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((attributes[name] for name in names if attributes.get(name)), "")


def _take_node(id_: str, attributes: Mapping[str, str], builder: GraphBuilder) -> None:
    if name := _first(attributes, NAME):
        builder.add_name(id_, name, language_of_name(name), label=True)
    if type_ := attributes.get("type"):
        builder.add_type(id_, type_)


def _take_edge(element: Element, attributes: Mapping[str, str], builder: GraphBuilder, complaints: Complaints) -> None:
    head, tail, relation = element.get("source"), element.get("target"), _first(attributes, RELATION)
    if not head or not tail:
        complaints.add(f", edge {element.get('id', '')}", "no source or no target")
    elif not relation:
        complaints.add(f", edge {head} to {tail}", "no attribute relation, label or type")
    else:
        builder.add(head, relation, tail)
