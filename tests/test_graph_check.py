"""graph_check: no lie passes, nearly every truth does, and what is rejected names the triple it broke."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from kg.graph import Graph, GraphBuilder
from kg.load import load
from kg.questions import KINDS, Question, Sampler
from pipeline.checks.graph_check import Asked, Broken, check
from pipeline.phrasing.speaker import Speaker
from tests.fake_kg import teller_of

PLANETS = Path(__file__).parent.parent / "kg" / "planets.ttl"
SAMPLE_OR_ALL = (10, pytest.param(1, marks=pytest.mark.slow))  # every so-manieth question


@cache
def planets() -> Graph:
    pytest.importorskip("rdflib")
    return load([PLANETS])[0]


@cache
def questions(seed: int = 0) -> list[Question]:
    return list(Sampler(planets(), seed=seed, per_fact=len(KINDS), hops=3).questions())


@pytest.mark.parametrize("step", SAMPLE_OR_ALL)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_templates_always_pass(language: str, step: int) -> None:
    speaker = Speaker(planets(), language)
    for question in questions()[::step]:
        for scenario in (False, True):
            draft = speaker.draft(question, scenario=scenario)
            assert check(Asked(question, speaker, scenario), draft.instruction, draft.output) is None, draft


@pytest.mark.parametrize(("seed", "step"), [(0, 10), *(pytest.param(s, 1, marks=pytest.mark.slow) for s in (0, 1, 2))])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_lie_passes(language: str, seed: int, step: int) -> None:
    """Wrong tails, missing members, swapped entities, negated booleans and more, of every question there is."""
    teller = teller_of(planets(), language, seed)
    told: dict[str, int] = {}
    for question in questions(seed)[::step]:
        for kind, draft in teller.lies(question):
            told[kind] = told.get(kind, 0) + 1
            broken = check(Asked(question, teller.speaker), draft.instruction, draft.output)
            assert broken is not None, (kind, question.kind, draft)
            assert broken.triple or not question.facts, "a lie breaks a triple"
    assert sum(told.values()) > 5000 / step
    assert len(told) >= (30 if step == 1 else 20), "kinds of lies"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_of_500_true_pairs_in_free_words_95_of_100_pass(language: str, seed: int) -> None:
    teller = teller_of(planets(), language, seed)
    chosen = random.Random(seed).sample(questions(seed), 500)
    rejected = []
    for question in chosen:
        draft = teller.true_pair(question)
        if (broken := check(Asked(question, teller.speaker), draft.instruction, draft.output)) is not None:
            rejected.append((broken.reason, draft))
    assert len(rejected) <= 25, rejected[:5]


# ---------------------------------------------------------------- sentences by hand


def small() -> Graph:
    builder = GraphBuilder()
    for fact in [
        ("France", "capital", "Paris"),
        ("Italy", "capital", "Rome"),
        ("Paris", "located in", "France"),
        ("Rome", "located in", "Italy"),
        ("Seine", "flows through", "Paris"),
        ("Seine", "flows through", "Rouen"),
        ("Tiber", "flows through", "Rome"),
        ("Seine", "length", "777 km"),
        ("Tiber", "length", "406 km"),
        ("Louvre", "opened on", "1793-08-10"),
        ("Mercury", "orbits", "Sun"),
        ("Mercury element", "symbol", "Hg"),
        ("Earth", "orbits", "Sun"),
        ("Moon", "orbits", "Earth"),
    ]:
        builder.add(*fact)
    builder.add_name("Mercury element", "Mercury", "en", label=True)
    builder.add_name("Paris", "Paris", "en", label=True)
    builder.add_name("Paris", "the City of Light", "en", label=False)
    builder.add_type("Mercury", "planet")
    builder.add_type("Mercury element", "chemical element")
    builder.add_phrase("flows through", "en", "statement", "{s} flows through {o}")
    return builder.build()


def of(kind: str, relation: str, *asked: str) -> Asked:
    graph = small()
    for question in Sampler(graph, per_fact=len(KINDS), kinds=(kind,)).questions():
        names = [graph.keys[node] for node in question.asked]
        if graph.relation_keys[question.relations[0]] == relation and set(asked) <= set(names):
            return Asked(question, Speaker(graph, "en"))
    raise AssertionError(f"no {kind} about {relation} of {asked}")


CAPITAL = ("tail", "capital", "France")
RIVERS = ("list", "flows through", "Seine")
LENGTH = ("tail", "length", "Seine")
OPENED = ("tail", "opened on", "Louvre")
TRUE = ("true", "capital", "Italy")
COMPARE = ("compare", "length", "Seine", "Tiber")
ORBIT = ("tail", "orbits", "Moon")
ASK = "What is the capital of France?"
SENTENCES: list[tuple[tuple[str, ...], str, str, str]] = [
    (CAPITAL, ASK, "Paris.", ""),
    (CAPITAL, ASK, "It is the City of Light.", ""),
    (CAPITAL, ASK, "PARIS is France's capital.", ""),
    (CAPITAL, ASK, "Rome.", "names 'Rome'"),
    (CAPITAL, ASK, "Paris or Rome.", "names 'Rome'"),
    (CAPITAL, ASK, "A city on the Seine.", "does not name 'Paris'"),
    (CAPITAL, ASK, "It isn't Paris.", "denies"),
    (CAPITAL, ASK, "France is the capital of Paris.", "turns a fact round"),
    (CAPITAL, ASK, "Paris's capital is France.", "turns a fact round"),
    (CAPITAL, ASK, "Paris, population 2102650.", "says '2102650'"),
    (CAPITAL, "Paris is the capital of which country, France?", "Paris.", "gives 'Paris' away"),
    (CAPITAL, "The City of Light is the capital of France, is it called so?", "Paris.", "gives 'Paris' away"),
    (CAPITAL, "What is the capital of Italy?", "Paris.", "does not name 'France'"),
    (CAPITAL, "What is the capital of France and Italy?", "Paris.", "names 'Italy'"),
    (CAPITAL, "Which city is not the capital of France?", "Paris.", "negated"),
    (CAPITAL, "Whose capital is France?", "Paris.", ""),  # a limit: no wording of ours, and one name alone
    (RIVERS, "Which cities lie on the Seine?", "Rouen and Paris.", ""),
    (RIVERS, "Which cities lie on the Seine?", "Two of them: Rouen and Paris.", ""),
    (RIVERS, "Which cities lie on the Seine?", "Rouen.", "does not name 'Paris'"),
    (RIVERS, "Which cities lie on the Seine?", "Rouen, Paris and Rome.", "names 'Rome'"),
    (RIVERS, "Which cities lie on the Seine?", "All 3: Rouen and Paris.", "says '3'"),
    (LENGTH, "How long is the Seine?", "777 kilometres.", ""),
    (LENGTH, "How long is the Seine?", "It is 777,000 m long.", ""),
    (LENGTH, "How long is the Seine?", "777", ""),
    (LENGTH, "How long is the Seine?", "777 miles.", "says '777 miles'"),
    (LENGTH, "How long is the Seine?", "776 km.", "says '776 km'"),
    (OPENED, "When did the Louvre open?", "On 10 August 1793.", ""),
    (OPENED, "When did the Louvre open?", "On August 10th, 1793.", ""),
    (OPENED, "When did the Louvre open?", "On 11 August 1793.", "says '11 August 1793'"),
    (TRUE, "Is Rome the capital of Italy?", "Yes.", ""),
    (TRUE, "Is Rome the capital of Italy?", "That's right, it is Rome.", ""),
    (TRUE, "Is Rome the capital of Italy?", "No.", "the graph the opposite"),
    (TRUE, "Is Rome the capital of Italy?", "Not so, Rome it is.", "the graph the opposite"),
    (TRUE, "Is Rome the capital of Italy?", "Yes, although it is not Rome.", "denies"),
    (TRUE, "Is Rome the capital of Italy?", "Perhaps.", "neither yes nor no"),
    (TRUE, "Isn't Rome the capital of Italy?", "Yes.", "negated"),
    (COMPARE, "Which is longer, the Seine or the Tiber?", "The Seine.", "?"),
    (ORBIT, "What does the Moon orbit?", "The Earth goes around the Moon.", "turns a fact round"),
    (ORBIT, "What does the Moon orbit?", "The Moon circles the Earth.", ""),
    (ORBIT, "What does the Moon orbit?", "The Earth is orbited by the Moon.", ""),
    (ORBIT, "What does the Moon orbit?", "The Moon is orbited by the Earth.", "turns a fact round"),
    (ORBIT, "What orbits the Moon?", "The Earth.", "wrong way round"),
]  # fmt: skip


@pytest.mark.parametrize(("which", "instruction", "output", "reason"), SENTENCES)
def test_sentences(which: tuple[str, ...], instruction: str, output: str, reason: str) -> None:
    asked = of(*which)
    if reason == "?":  # a comparison asks for more or for less, by the seed
        reason = "" if asked.question.more else "asks for the opposite"
    broken = check(asked, instruction, output)
    assert (broken is None) == (reason == ""), broken
    assert broken is None or reason in broken.reason


def test_the_broken_triple_is_named() -> None:
    assert check(of(*CAPITAL), ASK, "Rome.") == Broken(
        "the answer names 'Rome', which the facts do not give", "France — capital — Paris"
    )
    missing = check(of(*RIVERS), "Which cities lie on the Seine?", "Rouen.")
    assert missing is not None
    assert missing.triple == "Seine — flows through — Paris"


def test_a_name_that_two_entities_share_needs_its_type() -> None:
    asked = of("tail", "orbits", "Mercury")
    broken = check(asked, "What does Mercury orbit?", "The Sun.")
    assert broken is not None
    assert "may mean several" in broken.reason
    assert check(asked, "What does the planet Mercury orbit?", "The Sun.") is None
