"""kg/graph.py and kg/questions.py: neighbourhoods are exact, questions are right, work is bounded, chance is seeded."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kg.graph import Fact, Graph, GraphBuilder, GraphError, stable_hash
from kg.load import load
from kg.questions import FAN, KINDS, MOST_COUNTED, MOST_LISTED, Question, Sampler

names = st.sampled_from([f"n{number}" for number in range(12)])
triples = st.lists(st.tuples(names, st.sampled_from("pqrs"), names), min_size=1, max_size=60)


def graph_of(facts: list[tuple[str, str, str]]) -> Graph:
    builder = GraphBuilder()
    for fact in facts:
        builder.add(*fact)
    return builder.build()


@given(triples)
def test_neighbourhoods_are_those_of_the_triples(facts: list[tuple[str, str, str]]) -> None:
    graph = graph_of(facts)
    assert {graph.key_fact(fact) for fact in graph.facts()} == set(facts)
    assert len(graph) == len(set(facts))
    tails, heads = defaultdict(set), defaultdict(set)
    for s, r, o in facts:
        tails[s, r].add(o)
        heads[o, r].add(s)
    for key in {name for s, _, o in facts for name in (s, o)}:
        node = graph.node(key)
        for relation, r in enumerate(graph.relation_keys):
            assert {graph.keys[n] for n in graph.tails(node, relation)} == tails[key, r]
            assert {graph.keys[n] for n in graph.heads(node, relation)} == heads[key, r]
            assert graph.count_tails(node, relation) == len(tails[key, r])
            assert graph.count_heads(node, relation) == len(heads[key, r])
        assert {graph.relation_keys[r] for r in graph.relations_of(node)} == {r for s, r, _ in facts if s == key}
        assert {graph.relation_keys[r] for r in graph.relations_into(node)} == {r for _, r, o in facts if o == key}
        assert graph.out_degree(node) == len({f for f in facts if f[0] == key})
    for fact in set(facts):
        subject, relation, object_ = graph.node(fact[0]), graph.relation(fact[1]), graph.node(fact[2])
        assert graph.has(subject, relation, object_)
        assert graph.has(object_, relation, subject) == (fact[::-1] in facts), "direction is kept"
        assert graph.by_subject[list(graph.facts()).index((subject, relation, object_))] == graph.packed(fact)


# ---------------------------------------------------------------- questions


def check_question(graph: Graph, question: Question) -> None:
    """The question's own claims, worked out again by looking at all facts."""
    everything = list(graph.facts())
    assert all(fact in everything for fact in question.facts)
    first = question.relations[0]
    node = question.asked[0]
    match question.kind:
        case "tail":
            assert [f[2] for f in everything if f[:2] == (node, first)] == list(question.answers)
        case "head":
            assert [f[0] for f in everything if f[1:] == (first, node)] == list(question.answers)
        case "list" | "count":
            at, other = (2, 0) if question.inverse else (0, 2)
            members = {f[other] for f in everything if f[1] == first and f[at] == node}
            assert set(question.answers) == members
            assert 2 <= len(members) <= (MOST_LISTED if question.kind == "list" else MOST_COUNTED)
            assert question.number == (len(members) if question.kind == "count" else None)
        case "path":
            here = {node}
            for relation in question.relations:
                here = {f[2] for f in everything if f[1] == relation and f[0] in here}
            assert here == set(question.answers)
            assert not set(question.answers) & set(question.asked)
        case "both":
            sets = [
                {f[0] for f in everything if f[1:] == pair}
                for pair in zip(question.relations, question.asked, strict=True)
            ]
            assert sets[0] & sets[1] == set(question.answers)
            assert all(len(question.answers) < len(found) for found in sets)
        case "true":
            assert question.claimed in everything
        case "false":
            assert question.claimed not in everything
            assert question.claimed is not None
            assert {f[2] for f in everything if f[:2] == question.claimed[:2]} == {f[2] for f in question.facts}
            assert any(f[1:] == question.claimed[1:] for f in everything)  # a tail that the relation has elsewhere
        case "compare":
            assert set(question.answers) < set(question.asked)
        case "absent":
            assert not [f for f in everything if f[:2] == (node, first)]
            assert [f for f in everything if f[1] == first]
        case "summary":
            assert len(question.answers) >= 3


@given(triples, st.integers(0, 3))
def test_every_question_is_right_whatever_the_graph(facts: list[tuple[str, str, str]], seed: int) -> None:
    """Cycles, self-loops, multi-edges and separate parts included: the graphs are random."""
    graph = graph_of(facts)
    questions = list(Sampler(graph, seed=seed, hops=4, per_fact=len(KINDS)).questions())
    for question in questions:
        check_question(graph, question)
    asked = Counter((q.kind, q.asked, q.relations, q.claimed, q.inverse) for q in questions if q.kind != "path")
    assert asked.most_common(1)[0][1] == 1 if asked else not questions, "a question came twice"


def numbers_graph() -> Graph:
    heights = {"Everest": 8849, "K2": 8611, "Lhotse": 8516, "Makalu": 8485}
    facts = [(name, "height in metres", str(height)) for name, height in heights.items()]
    return graph_of(facts + [(name, "range", "Himalaya" if name != "K2" else "Karakoram") for name in heights])


def test_comparisons_name_the_right_winner() -> None:
    graph = numbers_graph()
    found = [q for q in Sampler(graph, per_fact=11).questions() if q.kind == "compare"]
    assert found
    for question in found:
        numbers = {fact[0]: int(graph.label(fact[2], "en")) for fact in question.facts}
        winner = (max if question.more else min)(numbers, key=numbers.__getitem__)
        assert question.answers == (winner,)
    assert len({q.more for seed in range(9) for q in Sampler(graph, seed=seed, per_fact=11).questions()}) == 2


def test_kinds_hops_and_per_fact_are_obeyed() -> None:
    chain = graph_of([(f"n{i}", "next", f"n{i + 1}") for i in range(9)])
    for kind in ("tail", "path", "true"):
        assert {q.kind for q in Sampler(chain, kinds=(kind,)).questions()} == {kind}
    lengths = {
        hops: {len(q.relations) for q in Sampler(chain, kinds=("path",), hops=hops).questions()} for hops in (2, 4)
    }
    assert lengths[2] == {2}
    assert lengths[4] == {2, 3, 4}
    numbers = [len(list(Sampler(chain, per_fact=n).questions())) for n in (1, 2, 3)]
    assert numbers == sorted(set(numbers))


def test_the_seed_decides_and_the_order_of_the_lines_does_not() -> None:
    facts = [(f"n{i}", "pq"[i % 2], f"n{i * i % 17}") for i in range(60)]

    def asked(facts: list[tuple[str, str, str]], seed: int) -> list[tuple[str, list[tuple[str, str, str]]]]:
        graph = graph_of(facts)
        return [(q.kind, sorted(map(graph.key_fact, q.facts))) for q in Sampler(graph, seed=seed).questions()]

    assert asked(facts, 1) == asked(facts[::-1], 1)
    assert asked(facts, 1) != asked(facts, 2)


def test_one_more_triple_asks_only_what_it_touches() -> None:
    facts = [(f"n{i}", r, f"m{(i * 7 + ord(r)) % 50}") for i in range(100) for r in ("pq", "pqr", "qr")[i % 3]]

    def asked(facts: list[tuple[str, str, str]]) -> set[tuple[object, ...]]:
        graph = graph_of(facts)
        questions = Sampler(graph, per_fact=3).questions()
        return {
            (
                q.kind,
                q.relations,
                *map(graph.keys.__getitem__, q.asked),
                *sorted(map(graph.key_fact, q.facts)),
                q.claimed and graph.key_fact(q.claimed),
            )
            for q in questions
        }

    before, after = asked(facts), asked([*facts, ("n5", "p", "m20")])
    assert after - before
    assert len(before) > 600
    assert len(after - before) <= 25
    assert len(before - after) <= 25


def test_true_and_false_claims_are_near_balance() -> None:
    """On records whose subjects have several objects, and few facts fit any other kind."""
    graph = load([Path(__file__).parent / "huatuo_style.jsonl"])[0]
    for per_fact in (1, 2, 3):
        claims = Counter(
            question.kind
            for seed in range(10)
            for question in Sampler(graph, seed=seed, per_fact=per_fact).questions()
            if question.truth is not None
        )
        assert claims.total() >= 100
        assert 0.4 <= claims["false"] / claims.total() <= 0.6
    questions = list(Sampler(graph, kinds=("false",)).questions())
    assert len({question.claimed for question in questions}) == len(questions) >= 60


def test_rare_relations_and_small_entities_come_early() -> None:
    facts = [("hub", "common", f"n{i}") for i in range(400)] + [(f"n{i}", "rare", f"m{i}") for i in range(10)]
    graph = graph_of(facts)
    first = [q.relations[0] for q in list(Sampler(graph, kinds=("true",)).questions())[:10]]
    assert Counter(map(graph.relation_keys.__getitem__, first))["rare"] >= 5  # by chance alone it would be none


def test_every_fact_has_its_first_question_before_any_has_its_second() -> None:
    graph = numbers_graph()
    sampler = Sampler(graph, kinds=("true", "tail"), per_fact=2)
    firsts = [question.facts[0] for question in list(sampler.questions())[: len(graph)]]
    assert sorted(firsts) == list(graph.facts())


def test_groups_hold_one_entity_each_and_no_more_than_asked() -> None:
    graph = numbers_graph()
    groups = list(Sampler(graph, per_fact=4).groups(3))
    assert groups
    assert {len({q.asked[0] for q in group}) for group in groups} == {1}
    assert max(map(len, groups)) == 3


# ---------------------------------------------------------------- bounded work


class Counting(Graph):
    """A graph that counts the neighbours it hands out."""

    handed_out = 0

    def tails(self, subject: int, relation: int, limit: int = 64) -> list[int]:
        found = super().tails(subject, relation, limit)
        self.handed_out += len(found)
        return found

    def heads(self, object_: int, relation: int, limit: int = 64) -> list[int]:
        found = super().heads(object_, relation, limit)
        self.handed_out += len(found)
        return found


def hub(edges: int) -> Counting:
    facts = [("hub", "has", f"n{i}") for i in range(edges)] + [(f"n{i}", "of", "hub") for i in range(edges)]
    graph = graph_of([*facts, ("hub", "is", "hub"), ("hub", "name", "Hub")])
    return Counting(**{name: getattr(graph, name) for name in graph.__dataclass_fields__})


def test_a_hub_costs_no_more_than_a_small_one() -> None:
    work = {}
    for edges in (1_000, 50_000):
        graph = hub(edges)
        sampler = Sampler(graph, hops=4)
        graph.handed_out = 0
        some: list[Fact] = [graph.fact_at(at) for at in range(0, len(graph), len(graph) // 50)]
        for fact in some:
            assert len(list(sampler.starting_at(fact))) <= len(KINDS)
        work[edges] = graph.handed_out / len(some)
    assert work[50_000] <= 1.5 * work[1_000]
    assert work[50_000] <= 20 * FAN


def test_what_cannot_be_packed_is_refused() -> None:
    builder = GraphBuilder()
    builder.add("a", "r", "b")

    class Large(dict[str, int]):
        def __len__(self) -> int:
            return 2**33

    builder._nodes = Large(builder._nodes)
    with pytest.raises(GraphError, match="too large"):
        builder.build()


def test_hashes_are_the_same_in_every_process() -> None:
    assert stable_hash(0, "Earth", "orbits", "Sun") == 0x0 + stable_hash(0, "Earth", "orbits", "Sun")
    assert stable_hash("ab", "c") != stable_hash("a", "bc")


# ---------------------------------------------------------------- names in texts


def test_the_longest_name_wins_and_both_meanings_are_kept() -> None:
    builder = GraphBuilder()
    for fact in [("York", "in", "England"), ("New York", "in", "USA"), ("NY2", "in", "England")]:
        builder.add(*fact)
    builder.add_name("NY2", "New York", "en", label=True)
    graph = builder.build()
    text = "From New York to york, England."
    found = graph.mentions(text)
    assert [text[m.start : m.end] for m in found] == ["New York", "york", "England"]
    assert {graph.keys[n] for n in found[0].nodes} == {"New York", "NY2"}
