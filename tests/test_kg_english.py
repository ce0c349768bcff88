"""phrasing/english.py: what a label becomes in a sentence, whatever its grammar, and what no path may go through."""

from __future__ import annotations

import pytest

from kg.graph import GraphBuilder
from kg.questions import Sampler
from pipeline.checks.graph_check import Asked, check
from pipeline.phrasing.english import is_neutral, measure, phrases_of
from pipeline.phrasing.speaker import Speaker, capital, fill

SAID = {
    "lives in": "Ada lives in Oslo.",
    "worked in": "Ada worked in Oslo.",
    "graduated from": "Ada graduated from Oslo.",
    "belongs to": "Ada belongs to Oslo.",
    "borders": "Ada borders Oslo.",
    "located in": "Ada is located in Oslo.",
    "is located in": "Ada is located in Oslo.",
    "born in": "Ada was born in Oslo.",
    "was born in": "Ada was born in Oslo.",
    "founded by": "Ada was founded by Oslo.",
    "managed by": "Ada is managed by Oslo.",
    "known for": "Ada is known for Oslo.",
    "also known as": "Ada is also known as Oslo.",
    "married to": "Ada is married to Oslo.",
    "part of": "Ada is part of Oslo.",
    "capital of": "Ada is capital of Oslo.",
    "member of": "Ada is a member of Oslo.",
    "is instance of": "Ada is an instance of Oslo.",
    "side effect of": "Ada is a side effect of Oslo.",
    "near": "Ada is near Oslo.",
    "capital": "The capital of Ada is Oslo.",
    "has capital": "The capital of Ada is Oslo.",
    "has part": "The part of Ada is Oslo.",
    "date of birth": "The date of birth of Ada is Oslo.",
    "related symptoms": "The related symptoms of Ada include Oslo.",
    "complications": "The complications of Ada include Oslo.",
    "led by": "Ada is led by Oslo.",
    "acted in": "Ada acted in Oslo.",
    "number of moons": "The number of moons of Ada is Oslo.",
    "moons": "The moons of Ada include Oslo.",
    "speed": "The speed of Ada is Oslo.",
}
NEUTRAL = """founded|discovered|year founded|lives|imbued with|inhabit|worships|eats plants|is capital|at location
consumed in|starring|lived by|parts of|won award|is a|uses language|has located in|can fly|made
ran""".replace("\n", "|").split("|")


@pytest.mark.parametrize(("label", "sentence"), SAID.items())
def test_a_label_whose_grammar_is_sure_is_said(label: str, sentence: str) -> None:
    assert capital(fill(phrases_of(label).statement, s="Ada", o="Oslo")) + "." == sentence
    assert not is_neutral(label)


@pytest.mark.parametrize("label", NEUTRAL)
def test_any_other_label_is_quoted(label: str) -> None:
    phrases = phrases_of(label)
    assert fill(phrases.statement, s="Ada", o="Oslo") == f"the entry under “{label}” for Ada is Oslo"
    assert fill(phrases.tail, s="Ada") == f"What do the facts give under “{label}” for Ada?"
    assert fill(phrases.head, o="Oslo") == f"For what do the facts give Oslo under “{label}”?"
    assert is_neutral(label)


def test_questions_with_a_gap_and_comparisons() -> None:
    lives = phrases_of("lives in")
    assert fill(lives.tail, s="Bob") == "What completes the statement “Bob lives in …”?"
    assert fill(lives.head, o="Paris") == "What completes the statement “… lives in Paris”?"
    assert fill(phrases_of("capital of").tail, s=fill(lives.ref, s="Bob")) == (
        "What completes the statement “what Bob lives in is capital of …”?"
    )
    assert list(map(measure, ("height", "has area", "founded"))) == ["height", "area", "entry under “founded”"]


def test_the_graph_vouches_for_all_forms_and_no_path_goes_through_a_neutral_one() -> None:
    builder = GraphBuilder()
    for at, label in enumerate((*SAID, *NEUTRAL)):
        for thing in "abc":
            builder.add(f"{thing}{at}x", label, f"{thing}{at}y")
            builder.add(f"{thing}{at}y", "leader", f"{thing}{at}z")
            builder.add(f"{thing}{at}w", "leader", f"{thing}{at}x")
        builder.add(f"a{at}x", label, f"a{at}u")
    graph = builder.build()
    speaker = Speaker(graph, "en")
    through = set()
    for question in Sampler(graph, per_fact=11, can_say=speaker.can_say).questions():
        draft = speaker.draft(question)
        assert check(Asked(question, speaker), draft.instruction, draft.output) is None, draft
        if question.kind == "path":
            through |= {graph.relation_keys[relation] for relation in question.relations}
    assert through == {*SAID, "leader"}
