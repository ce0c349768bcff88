"""What is worth asking of a graph: questions that start at its facts, each with the facts that answer it.

    sampler = Sampler(graph, seed=0)
    for question in sampler.questions():
        ...

What starts at a fact is decided by hash(seed, fact) and by its neighbourhood alone, and a group of facts that makes
one question (a list, a count) is started by the fact of it that hashes lowest. So no question comes twice, none needs
to be remembered, and one triple added asks only the questions whose facts or answers it changes. Balancing ranks
afterwards: hubs and frequent relations come later, and every fact has its first question before any has its second.
Every step is bounded by the constants below.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from kg.graph import Fact, Graph, stable_hash
from kg.names import literal_text
from kg.values import Value, value_of

KINDS = ("tail", "head", "list", "count", "path", "both", "compare", "true", "false", "summary", "absent")
# How often a kind is to come before the others; those that fit almost every fact would else be most of them.
# True and false alike, so that a claim tells nothing by being made.
WEIGHTS = {"true": 0.2, "false": 0.2, "absent": 0.4, "compare": 0.5, "path": 0.7}

MOST_LISTED = 12  # members of a list that is asked for; longer ones make no good answer
MOST_COUNTED = 30
FAN = 64  # ways that a path or an intersection may have at a step
SKETCH = 64  # facts kept of each relation, those that hash lowest: where partners and false tails are drawn from
SUMMARISED = 5  # facts of a summary
RELATIONS_SEEN = 32  # relations of an entity that are looked at


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and what the graph answers.

    `asked` are the nodes the question must name, `answers` those the answer must name; `facts` is what vouches for
    it; `relations` in the order in which they are asked. `truth` belongs to "true" and "false", whose `claimed` is
    the fact put to the reader; `number` to "count"; `more` to "compare" (whether the larger is asked for).
    `inverse` says that subjects are asked for.
    """

    kind: str
    asked: tuple[int, ...]
    answers: tuple[int, ...]
    facts: tuple[Fact, ...]
    relations: tuple[int, ...]
    inverse: bool = False
    claimed: Fact | None = None
    number: int | None = None
    more: bool = True

    @property
    def truth(self) -> bool | None:
        return {"true": True, "false": False}.get(self.kind)


class Sampler:
    """Decides which questions start where. One pass over the facts at the start; afterwards all work is local."""

    def __init__(
        self,
        graph: Graph,
        *,
        seed: int = 0,
        kinds: tuple[str, ...] = KINDS,
        hops: int = 2,
        per_fact: int = 2,
        can_say: Callable[[Question], bool] = lambda question: True,
    ) -> None:
        """`can_say` turns away what cannot be put into words; the fact's next kind takes its place."""
        self.graph, self._can_say = graph, can_say
        self._seed, self._kinds, self._hops, self._per_fact = seed, kinds, hops, per_fact
        self._ways: dict[str, Callable[[Fact], Question | None]] = {
            "tail": self._tail, "head": self._head, "list": self._list, "count": self._count, "path": self._path,
            "both": self._both, "compare": self._compare, "true": self._true, "false": self._false,
            "summary": self._summary, "absent": self._absent,
        }  # fmt: skip
        self._sketches: dict[int, list[Fact]] = {}
        self._order = self._survey()

    # ---------------------------------------------------------------- in which order

    def questions(self) -> Iterator[Question]:
        """All questions: of every fact its first one, then of every fact its second …"""
        for round_ in range(self._per_fact):
            for index in self._order:
                question = self.nth(self.graph.fact_at(index), round_)
                if question is not None:
                    yield question

    def groups(self, most: int) -> Iterator[tuple[Question, ...]]:
        """The questions about an entity, the subject of the facts they start at, at most so many together."""
        for start in self._order:
            subject = self.graph.fact_at(start)[0]
            if start and self.graph.fact_at(start - 1)[0] == subject:
                continue  # its group is where its first fact stands
            end = start + self.graph.out_degree(subject)
            own = (
                question
                for index in range(start, end)
                for question in islice(self.starting_at(self.graph.fact_at(index)), self._per_fact)
                if question.asked[0] == subject
            )
            while group := tuple(islice(own, most)):
                yield group

    def examples(self, relation: int, number: int) -> list[Fact]:
        """A few facts of a relation: those that hash lowest, so that they stay the same while others come and go."""
        return self._sketches[relation][:number]

    def nth(self, fact: Fact, number: int) -> Question | None:
        """The fact's question of this number, from 0; None where it has fewer."""
        return next(islice(self.starting_at(fact), number, None), None)

    def starting_at(self, fact: Fact) -> Iterator[Question]:
        """The questions that start at a fact, of kinds in the order of hash(seed, fact, kind), without a limit."""
        keys = self.graph.key_fact(fact)
        ranks = {
            kind: -math.log((stable_hash(self._seed, kind, *keys) + 1) / 2**64) / WEIGHTS.get(kind, 1.0)
            for kind in self._kinds
        }
        for kind in sorted(self._kinds, key=ranks.__getitem__):
            question = self._ways[kind](fact)
            if question is not None and self._can_be_said(question) and self._can_say(question):
                yield question

    def _can_be_said(self, question: Question) -> bool:
        """Whether everything it must name has a name; what a path goes through is described and needs none."""
        nodes = {*question.asked, *question.answers, *(question.claimed or ())[::2]}
        if question.kind != "path":
            nodes.update(node for fact in question.facts for node in (fact[0], fact[2]))
        return not any(map(self.graph.is_nameless, nodes))

    def _survey(self) -> array[int]:
        """Hash every fact once: for the order of the facts, and for the sketch of each relation."""
        graph, how_many = self.graph, [0] * len(self.graph.relation_keys)
        for fact in graph.facts():
            how_many[fact[1]] += 1
        sketches: dict[int, list[tuple[int, Fact]]] = {}
        rank = array("d")
        degree_of, degree = -1, 0
        for fact in graph.facts():
            hash_ = self.hash(fact)
            sketch = sketches.setdefault(fact[1], [])
            if len(sketch) < SKETCH:
                heapq.heappush(sketch, (-hash_, fact))
            elif -hash_ > sketch[0][0]:
                heapq.heapreplace(sketch, (-hash_, fact))
            if fact[0] != degree_of:
                degree_of, degree = fact[0], graph.out_degree(fact[0])
            # Weighted order (Efraimidis and Spirakis 2006): rare relations and small entities tend to come first.
            # Powers of two, so that one fact more seldom moves others.
            weight = 2.0 ** -((how_many[fact[1]].bit_length() + degree.bit_length()) / 2)
            rank.append(-math.log((hash_ + 1) / 2**64) / weight)
        self._sketches = {
            relation: [fact for _, fact in sorted(sketch, reverse=True)] for relation, sketch in sketches.items()
        }
        return array("I", sorted(range(len(rank)), key=rank.__getitem__))

    def hash(self, fact: Fact) -> int:
        return stable_hash(self._seed, *self.graph.key_fact(fact))

    def _lowest(self, facts: list[Fact]) -> Fact:
        return min(facts, key=self.hash)

    # ---------------------------------------------------------------- one fact

    def _tail(self, fact: Fact) -> Question | None:
        subject, relation, object_ = fact
        if object_ == subject or self.graph.count_tails(subject, relation) != 1:
            return None
        return Question("tail", (subject,), (object_,), (fact,), (relation,))

    def _head(self, fact: Fact) -> Question | None:
        subject, relation, object_ = fact
        if object_ == subject or self._is_value(object_) or self.graph.count_heads(object_, relation) != 1:
            return None
        return Question("head", (object_,), (subject,), (fact,), (relation,), inverse=True)

    def _true(self, fact: Fact) -> Question | None:
        if fact[0] == fact[2]:
            return None
        return Question("true", (fact[0], fact[2]), (), (fact,), (fact[1],), claimed=fact)

    def _false(self, fact: Fact) -> Question | None:
        """A false fact: the tail swapped for one of the same type, which the graph does not give.

        Every fact of a subject and relation may start one, as every fact may start a true one; in the order of their
        hashes each takes a tail that those before it left.
        """
        subject, relation, _ = fact
        if self.graph.count_tails(subject, relation) > MOST_LISTED:
            return None
        facts = tuple((subject, relation, tail) for tail in self.graph.tails(subject, relation))
        others = {f[2] for f in self._sketches[relation] if not self.graph.is_nameless(f[2])} - {subject}
        left = [node for node in others if not self.graph.has(subject, relation, node)]
        keys = self.graph.key_fact(fact)[:2]
        left.sort(key=lambda node: stable_hash(self._seed, "false", *keys, self.graph.keys[node]))
        for earlier in sorted(facts, key=self.hash):
            swapped = next((node for node in left if self._alike(node, earlier[2])), None)
            if earlier == fact:
                break
            if swapped is not None:
                left.remove(swapped)
        if swapped is None:
            return None
        return Question("false", (subject, swapped), (), facts, (relation,), claimed=(subject, relation, swapped))

    # ---------------------------------------------------------------- several facts

    def _list(self, fact: Fact) -> Question | None:
        return self._group(fact, "list", MOST_LISTED)

    def _count(self, fact: Fact) -> Question | None:
        return self._group(fact, "count", MOST_COUNTED)

    def _group(self, fact: Fact, kind: str, most: int) -> Question | None:
        """All objects of a subject and a relation, else all subjects of an object and a relation."""
        subject, relation, object_ = fact
        for inverse in (False, True):
            if inverse:
                facts = [(s, relation, object_) for s in self.graph.heads(object_, relation, most + 1)]
            else:
                facts = [(subject, relation, o) for o in self.graph.tails(subject, relation, most + 1)]
            if not 2 <= len(facts) <= most or self._lowest(facts) != fact or (inverse and self._is_value(object_)):
                continue
            asked = object_ if inverse else subject
            members = tuple(sorted((f[0] if inverse else f[2] for f in facts), key=self._by_label))
            if asked in members or len(set(map(self._by_label, members))) < len(members):
                continue  # a self-loop, or two members of one name
            number = len(members) if kind == "count" else None
            return Question(kind, (asked,), members, tuple(facts), (relation,), inverse=inverse, number=number)
        return None

    def _path(self, fact: Fact) -> Question | None:
        """The fact, and on from its object: two to `hops` relations that lead to one entity alone."""
        subject, relation, object_ = fact
        if self.graph.count_tails(subject, relation) != 1 or object_ == subject:
            return None
        facts, here, seen = [fact], object_, {subject, object_}
        wanted = 2 + stable_hash(self._seed, "hops", *self.graph.key_fact(fact)) % max(1, self._hops - 1)
        while len(facts) < min(wanted, self._hops):
            steps = [(here, r, self.graph.tails(here, r, 2)) for r in self.graph.relations_of(here, RELATIONS_SEEN)]
            fitting = [(s, r, tails[0]) for s, r, tails in steps if len(tails) == 1 and tails[0] not in seen]
            if not fitting:
                break
            facts.append(self._lowest(fitting))
            here = facts[-1][2]
            seen.add(here)
        if len(facts) < 2:
            return None
        return Question("path", (subject,), (here,), tuple(facts), tuple(f[1] for f in facts))

    def _both(self, fact: Fact) -> Question | None:
        """An intersection: which subjects share this fact's object and another one's? It narrows both."""
        subject, relation, object_ = fact
        own = self.hash(fact)
        if self._is_value(object_) or not 2 <= self.graph.count_heads(object_, relation) <= FAN:
            return None
        first = set(self.graph.heads(object_, relation, FAN))
        for other in sorted(self._facts_of(subject), key=self.hash):
            _, relation2, object2 = other
            known = other == fact or self.hash(other) <= own or object2 in (object_, subject)
            if known or self._is_value(object2) or not 2 <= self.graph.count_heads(object2, relation2) <= FAN:
                continue
            second = set(self.graph.heads(object2, relation2, FAN))
            members = first & second
            narrow = len(members) < min(len(first), len(second)) and len(members) <= MOST_LISTED
            if not narrow or members & {object_, object2}:
                continue
            if self._lowest([(member, relation, object_) for member in members]) != fact:
                return None  # another member starts it
            answers = tuple(sorted(members, key=self._by_label))
            facts = tuple(f for m in answers for f in ((m, relation, object_), (m, relation2, object2)))
            return Question("both", (object_, object2), answers, facts, (relation, relation2), inverse=True)
        return None

    def _compare(self, fact: Fact) -> Question | None:
        """Two subjects of one type and their numbers: which has more, or less?"""
        subject, relation, object_ = fact
        own, value = self.hash(fact), self._value(object_)
        if value is None or self.graph.count_tails(subject, relation) != 1:
            return None
        for other in self._sketches[relation]:
            theirs = self._value(other[2])
            fits = self.hash(other) < own and other[0] != subject and self._alike(other[0], subject)
            if not fits or theirs is None or theirs.dimension != value.dimension or theirs.number == value.number:
                continue
            if self.graph.count_tails(other[0], relation) != 1:
                continue
            more = stable_hash(self._seed, "more", *self.graph.key_fact(fact)) % 2 == 0
            winner = subject if (value.number > theirs.number) == more else other[0]
            asked = tuple(sorted((subject, other[0]), key=self._by_label))
            return Question("compare", asked, (winner,), (fact, other), (relation,), more=more)
        return None

    # ---------------------------------------------------------------- an entity as a whole

    def _summary(self, fact: Fact) -> Question | None:
        single = self._single_facts(fact[0])
        if len(single) < 3 or self._lowest(single) != fact:
            return None
        chosen = tuple(sorted(single, key=self.hash)[:SUMMARISED])
        return Question("summary", (fact[0],), tuple(f[2] for f in chosen), chosen, tuple(f[1] for f in chosen))

    def _absent(self, fact: Fact) -> Question | None:
        """What the graph does not say of an entity, though it says it of one like it."""
        single = self._single_facts(fact[0])
        if not single or self._lowest(single) != fact:
            return None
        own = set(self.graph.relations_of(fact[0], RELATIONS_SEEN))
        if len(own) == RELATIONS_SEEN:
            return None  # it may have more than was looked at
        for other in self._sketches[fact[1]]:
            if other[0] == fact[0] or not self._alike(other[0], fact[0]):
                continue
            missing = [r for r in self.graph.relations_of(other[0], RELATIONS_SEEN) if r not in own]
            if missing:
                keys = self.graph.relation_keys
                relation = min(missing, key=lambda r: stable_hash(self._seed, keys[r], self.graph.keys[fact[0]]))
                return Question("absent", (fact[0],), (), (), (relation,))
        return None

    def _single_facts(self, subject: int) -> list[Fact]:
        """Of each relation that has one object alone, that fact."""
        relations = self.graph.relations_of(subject, RELATIONS_SEEN)
        tails = [(relation, self.graph.tails(subject, relation, 2)) for relation in relations]
        return [
            (subject, relation, objects[0])
            for relation, objects in tails
            if len(objects) == 1 and objects[0] != subject and not self.graph.is_nameless(objects[0])
        ]

    def _facts_of(self, subject: int) -> list[Fact]:
        relations = self.graph.relations_of(subject, RELATIONS_SEEN)
        return [(subject, relation, o) for relation in relations for o in self.graph.tails(subject, relation, 4)]

    # ---------------------------------------------------------------- nodes

    def _by_label(self, node: int) -> str:
        return self.graph.label(node, "en")

    def _alike(self, one: int, other: int) -> bool:
        """Whether two nodes are of one type: by their types where they have them, else both values or neither."""
        graph = self.graph
        if one in graph.types or other in graph.types:
            return bool(set(graph.types.get(one, ())) & set(graph.types.get(other, ())))
        return self._is_value(one) == self._is_value(other)

    def _is_value(self, node: int) -> bool:
        return self.graph.is_literal(node) or self._value(node) is not None

    def _value(self, node: int) -> Value | None:
        """The number or date that a node is; None for an entity or a text."""
        key = self.graph.keys[node]
        if not any(map(str.isdigit, key[:12])):
            return None
        return value_of(literal_text(key) if key.startswith('"') else self.graph.label(node, "en"))
