"""A knowledge graph in memory: facts as packed integers in two sorted arrays, names beside them.

    builder = GraphBuilder()
    builder.add("Earth", "orbits", "Sun")
    graph = builder.build()
    graph.tails(graph.node("Earth"), graph.relation("orbits"))

A fact is (subject, relation, object), three small integers; sorted once by subject and once by object, any
neighbourhood is a stretch of an array that bisection finds. So a fact costs 16 bytes beside its names, a hub of a
million edges is as quick to ask as a leaf, and nothing here walks further than the limit it is given.
Direction is kept; facts that are given twice count once. Pure: no file, no model, no chance but a seeded hash.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from kg.names import LONGEST_NAME, normal, split_name, split_relation, tokens

Fact = tuple[int, int, int]


class GraphError(Exception):
    """The graph cannot be read or held; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Phrases:
    """How a relation is said in one language; {s} is the subject, {o} the object. "" where there is nothing yet.

    `label` is its name; `statement` a clause without full stop; `tail` the question for the object, `head` the
    question for the subject; `ref` a noun phrase for the object by way of the subject ("the body that {s} orbits").
    """

    label: str = ""
    statement: str = ""
    tail: str = ""
    head: str = ""
    ref: str = ""


PHRASE_FIELDS = ("label", "statement", "tail", "head", "ref")


def stable_hash(*parts: object) -> int:
    """64 bits that depend on the parts alone, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class Mention:
    """A name found in a text, and the nodes it may mean."""

    start: int
    end: int
    nodes: tuple[int, ...]


@dataclass(eq=False)
class Graph:
    """Build it with `GraphBuilder`. Nodes and relations are numbers; `keys` and `relation_keys` hold what they were."""

    keys: list[str]
    relation_keys: list[str]
    labels: dict[int, dict[str, list[str]]] = field(repr=False)  # node -> language -> names, the label first
    types: dict[int, list[int]] = field(repr=False)
    phrases: dict[int, dict[str, Phrases]] = field(repr=False)  # relation -> language -> how it is said
    by_subject: array[int] = field(repr=False)
    by_object: array[int] = field(repr=False)

    def __post_init__(self) -> None:
        self._node_bits = max(1, len(self.keys).bit_length())
        self._relation_bits = max(1, len(self.relation_keys).bit_length())
        self._name_index: dict[str, int | tuple[int, ...]] | None = None
        self._longest: dict[str, int] = {}  # first word of a name -> words of the longest name that begins so
        self._nodes: dict[str, int] | None = None
        self._relations_by_key = {key: number for number, key in enumerate(self.relation_keys)}

    def __len__(self) -> int:
        return len(self.by_subject)

    # ---------------------------------------------------------------- facts

    def fact_at(self, index: int) -> Fact:
        """The fact that stands at this place, sorted by subject, relation, object."""
        return self._unpack(self.by_subject[index])

    def facts(self) -> Iterator[Fact]:
        """All facts, sorted."""
        return map(self._unpack, self.by_subject)

    def packed(self, keys: tuple[str, str, str]) -> int:
        """A fact, by its keys, as it stands in `by_subject`."""
        return self._pack(self.node(keys[0]), self.relation(keys[1]), self.node(keys[2]))

    def has(self, subject: int, relation: int, object_: int) -> bool:
        packed = self._pack(subject, relation, object_)
        at = bisect_left(self.by_subject, packed)
        return at < len(self.by_subject) and self.by_subject[at] == packed

    def tails(self, subject: int, relation: int, limit: int = 64) -> list[int]:
        """At most `limit` objects of a subject and a relation."""
        return self._third(self.by_subject, subject, relation, limit)

    def heads(self, object_: int, relation: int, limit: int = 64) -> list[int]:
        """At most `limit` subjects of an object and a relation."""
        return self._third(self.by_object, object_, relation, limit)

    def count_tails(self, subject: int, relation: int) -> int:
        return self._width(self.by_subject, self._pack(subject, relation, 0), self._pack(subject, relation + 1, 0))

    def count_heads(self, object_: int, relation: int) -> int:
        return self._width(self.by_object, self._pack(object_, relation, 0), self._pack(object_, relation + 1, 0))

    def out_degree(self, node: int) -> int:
        return self._width(self.by_subject, self._pack(node, 0, 0), self._pack(node + 1, 0, 0))

    def in_degree(self, node: int) -> int:
        return self._width(self.by_object, self._pack(node, 0, 0), self._pack(node + 1, 0, 0))

    def relations_of(self, subject: int, limit: int = 64) -> list[int]:
        """The relations a subject has, at most `limit`: one bisection each, however many facts there are."""
        return self._relations(self.by_subject, subject, limit)

    def relations_into(self, object_: int, limit: int = 64) -> list[int]:
        """The relations an object is reached by, at most `limit`."""
        return self._relations(self.by_object, object_, limit)

    def _pack(self, first: int, relation: int, third: int) -> int:
        return ((first << self._relation_bits) + relation << self._node_bits) + third

    def _unpack(self, packed: int) -> Fact:
        rest = packed >> self._node_bits
        node_mask, relation_mask = (1 << self._node_bits) - 1, (1 << self._relation_bits) - 1
        return rest >> self._relation_bits, rest & relation_mask, packed & node_mask

    def _width(self, where: array[int], low: int, high: int) -> int:
        return bisect_left(where, high) - bisect_left(where, low)

    def _third(self, where: array[int], first: int, relation: int, limit: int) -> list[int]:
        low = bisect_left(where, self._pack(first, relation, 0))
        high = bisect_left(where, self._pack(first, relation + 1, 0), low)
        mask = (1 << self._node_bits) - 1
        return [packed & mask for packed in where[low : min(high, low + limit)]]

    def _relations(self, where: array[int], node: int, limit: int) -> list[int]:
        found: list[int] = []
        at, end = bisect_left(where, self._pack(node, 0, 0)), bisect_left(where, self._pack(node + 1, 0, 0))
        while at < end and len(found) < limit:
            relation = self._unpack(where[at])[1]
            found.append(relation)
            at = bisect_left(where, self._pack(node, relation + 1, 0), at, end)
        return found

    # ---------------------------------------------------------------- names

    def node(self, key: str) -> int:
        """The node of a key; KeyError where there is none."""
        if self._nodes is None:
            self._nodes = {key: number for number, key in enumerate(self.keys)}
        return self._nodes[key]

    def relation(self, key: str) -> int:
        return self._relations_by_key[key]

    def is_literal(self, node: int) -> bool:
        return self.keys[node].startswith('"')

    def is_nameless(self, node: int) -> bool:
        """Whether a node is a blank one that nobody gave a label: its key says nothing to a reader."""
        return self.keys[node].startswith("_:") and node not in self.labels

    def label(self, node: int, language: str) -> str:
        """The node's name in a language, else in any, else what its key says."""
        names = self.labels.get(node)
        if names:
            return (names.get(language) or names.get("") or next(iter(names.values())))[0]
        return split_name(self.keys[node])

    def names(self, node: int) -> list[str]:
        """All names of a node, labels and aliases in all languages; its split key where it has none."""
        names = self.labels.get(node)
        return [name for several in names.values() for name in several] if names else [split_name(self.keys[node])]

    def relation_phrases(self, relation: int, language: str) -> Phrases:
        """What is known of how a relation is said; the label is split out of its key where nobody gave one."""
        known = self.phrases.get(relation, {}).get(language, Phrases())
        return known if known.label else replace(known, label=split_relation(self.relation_keys[relation]))

    def is_named(self, relation: int, language: str) -> bool:
        """Whether somebody said how the relation is called in this language."""
        return language in self.phrases.get(relation, {})

    def key_fact(self, fact: Fact) -> tuple[str, str, str]:
        """A fact as its keys."""
        return self.keys[fact[0]], self.relation_keys[fact[1]], self.keys[fact[2]]

    def nodes_named(self, name: str) -> tuple[int, ...]:
        """The nodes that a name may mean."""
        found = self._names().get(normal(name), ())
        return (found,) if isinstance(found, int) else found

    def mentions(self, text: str) -> list[Mention]:
        """The names in a text, the longest at each place, left to right."""
        index, words = self._names(), tokens(text)
        found: list[Mention] = []
        at = 0
        while at < len(words):
            longest = min(self._longest.get(words[at][0], 0), LONGEST_NAME)
            for end in range(min(len(words), at + longest), at, -1):
                nodes = index.get(" ".join(word for word, _, _ in words[at:end]))
                if nodes is not None:
                    found.append(
                        Mention(words[at][1], words[end - 1][2], (nodes,) if isinstance(nodes, int) else nodes)
                    )
                    at = end
                    break
            else:
                at += 1
        return found

    def _names(self) -> dict[str, int | tuple[int, ...]]:
        if self._name_index is None:
            index: dict[str, int | tuple[int, ...]] = {}
            for node in range(len(self.keys)):
                if self.is_literal(node):
                    continue
                for name in dict.fromkeys(map(normal, self.names(node))):
                    first, length = name.partition(" ")[0], name.count(" ") + 1
                    if length > self._longest.get(first, 0):
                        self._longest[first] = length
                    before = index.get(name)
                    if name and before is None:
                        index[name] = node
                    elif before is not None:
                        index[name] = (*((before,) if isinstance(before, int) else before), node)
            self._name_index = index
        return self._name_index


class GraphBuilder:
    """Takes facts and names in any order, in memory that grows with distinct facts and names alone."""

    def __init__(self) -> None:
        self._nodes: dict[str, int] = {}
        self._relations: dict[str, int] = {}
        self._subjects, self._links, self._objects = array("I"), array("I"), array("I")
        self._labels: dict[int, dict[str, list[str]]] = {}
        self._types: dict[int, list[int]] = {}
        self._phrases: dict[int, dict[str, Phrases]] = {}

    def add(self, subject: str, relation: str, object_: str) -> None:
        """One fact, by its keys."""
        self._subjects.append(self._node(subject))
        self._links.append(self._relations.setdefault(relation, len(self._relations)))
        self._objects.append(self._node(object_))

    def add_name(self, key: str, name: str, language: str, *, label: bool) -> None:
        """A name of a node; a label comes first among the names of its language."""
        names = self._labels.setdefault(self._node(key), {}).setdefault(language, [])
        if name in names:
            names.remove(name)
        names.insert(0 if label else len(names), name)

    def add_type(self, key: str, type_: str) -> None:
        types = self._types.setdefault(self._node(key), [])
        node = self._node(type_)
        if node not in types:
            types.append(node)

    def add_phrase(self, relation: str, language: str, what: str, text: str) -> None:
        """One of PHRASE_FIELDS of a relation."""
        number = self._relations.setdefault(relation, len(self._relations))
        known = self._phrases.setdefault(number, {})
        known[language] = replace(known.get(language, Phrases()), **{what: text})

    def is_relation(self, key: str) -> bool:
        return key in self._relations

    def is_node(self, key: str) -> bool:
        return key in self._nodes

    def build(self) -> Graph:
        """The graph. The builder is empty afterwards."""
        nodes, relations = max(1, len(self._nodes).bit_length()), max(1, len(self._relations).bit_length())
        if 2 * nodes + relations > 64:
            raise GraphError(f"The graph is too large: {len(self._nodes)} nodes, {len(self._relations)} relations.")

        import numpy as np  # here, so that importing kg stays quick

        def packed(first: array[int], third: array[int]) -> array[int]:
            rows = np.frombuffer(first, np.uint32).astype(np.uint64)
            rows <<= np.uint64(relations)
            rows += np.frombuffer(self._links, np.uint32)
            rows <<= np.uint64(nodes)
            rows += np.frombuffer(third, np.uint32)
            return array("Q", np.unique(rows).tobytes())

        by_subject = packed(self._subjects, self._objects)
        by_object = packed(self._objects, self._subjects)
        graph = Graph(
            keys=list(self._nodes),
            relation_keys=list(self._relations),
            labels=self._labels,
            types=self._types,
            phrases=self._phrases,
            by_subject=by_subject,
            by_object=by_object,
        )
        self.__init__()  # type: ignore[misc]  # its dicts are the graph's now
        return graph

    def _node(self, key: str) -> int:
        return self._nodes.setdefault(key, len(self._nodes))
