"""judge_answers.py: a judge is asked in both orders, counts only where it agrees with itself, and has a budget.

python -m pytest tests/test_judge_answers.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BudgetReached, EndpointError, UsageError
from pipeline.judge_answers import Judge, Opinions, Pair, ask_judge, opinions, request
from pipeline.llm import Reply, Request
from pipeline.prompts import Prompts
from tests.conftest import StartServer

PROMPTS = {language: Prompts(language) for language in ("en", "zh")}


def pairs(count: int, language: str = "en") -> list[Pair]:
    return [Pair(f"Question {n}?", f"short {n}", f"a longer answer {n}", language) for n in range(count)]


async def asked(given: list[Pair], decide: Callable[[str], object]) -> tuple[list[Opinions], list[Request]]:
    """Opinions by a judge that reads what is asked and answers with JSON, or with a text of its own."""
    sent: list[Request] = []

    async def ask(request_: Request) -> Reply:
        sent.append(request_)
        said = decide(request_.messages[-1][1])
        return Reply(said if isinstance(said, str) else json.dumps(said), "stop", None, None, b"")

    return await opinions(given, ask, PROMPTS), sent


async def test_a_judge_of_contents_is_heard_whatever_stands_first() -> None:
    def shorter(text: str) -> object:
        return {"reason": "It is short.", "better": "first" if text.index("short") < text.index("longer") else "second"}

    found, sent = await asked([*pairs(2), pairs(1)[0].turned], shorter)
    assert [opinion.winner for opinion in found] == ["first", "first", "second"]
    assert len(sent) == 6


@pytest.mark.parametrize("place", ["first", "second"])
async def test_a_judge_of_places_decides_nothing(place: str) -> None:
    found, _ = await asked(pairs(3), lambda text: {"reason": "", "better": place})
    assert [(opinion.is_known, opinion.agree, opinion.winner) for opinion in found] == [(True, False, "tie")] * 3


async def test_answers_alike_are_a_tie_that_nobody_is_asked_about() -> None:
    found, sent = await asked([Pair("Why?", "So.", " So.\n", "en")], lambda text: "unasked")
    assert found == [Opinions("tie", "tie")]
    assert sent == []


@pytest.mark.parametrize("said", ["The first one.", {"better": "left"}, {"better": 1}, {"reason": "x"}])
async def test_what_is_no_choice_is_no_opinion(said: object) -> None:
    found, _ = await asked(pairs(1), lambda text: said)
    assert found == [Opinions(None, None)]
    assert not found[0].is_known


def test_the_request_shows_both_answers_in_their_order_and_decides_last() -> None:
    (system, rubric), (_, question) = request(pairs(1)[0], PROMPTS["en"]).messages
    assert system == "system"
    assert question.index("Question 0?") < question.index("short 0") < question.index("a longer answer 0")
    made = request(pairs(1)[0].turned, PROMPTS["en"])
    assert made.messages[-1][1].index("a longer answer 0") < made.messages[-1][1].index("short 0")
    assert made.schema is not None
    assert list(made.schema["properties"]) == ["reason", "better"]
    assert made.temperature == 0
    assert "比较" in request(pairs(1, "zh")[0], PROMPTS["zh"]).messages[0][1]
    assert rubric != request(pairs(1, "zh")[0], PROMPTS["zh"]).messages[0][1]


def test_a_verdict_gets_the_room_that_its_judge_was_given(tmp_path: Path, start_server: StartServer) -> None:
    server = start_server()
    ask_judge(judge(server.base_url, max_tokens=4000), pairs(1), tmp_path)
    assert [entry["body"]["max_tokens"] for entry in server.ledger()] == [4000, 4000]


def judge(base_url: str | None, **changed: Any) -> Judge:
    given: dict[str, Any] = {
        "model": "j", "base_url": base_url, "api_key_env": "NO_SUCH_KEY", "max_requests": None, "max_cost": None,
    }  # fmt: skip
    return Judge(**given | changed)


def test_it_keeps_to_its_budget_and_goes_on_for_the_rest(tmp_path: Path, start_server: StartServer) -> None:
    server = start_server()
    first, stopped = ask_judge(judge(server.base_url, max_requests=10), pairs(12), tmp_path)
    assert isinstance(stopped, BudgetReached)
    assert len(server.ledger()) == 10
    assert 0 < sum(opinion.is_known for opinion in first) <= 5 + 5
    assert not all(opinion.is_known for opinion in first)

    whole, stopped = ask_judge(judge(server.base_url), pairs(12), tmp_path)
    assert stopped is None
    assert all(opinion.is_known for opinion in whole)
    assert len(server.ledger()) == 24  # each pair twice, and nothing again
    assert ask_judge(judge(server.base_url), pairs(12), tmp_path) == (whole, None)
    assert len(server.ledger()) == 24


def test_a_judge_that_cannot_be_asked_is_found_out_before(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a key: set NO_SUCH_KEY"):
        judge("https://api.example.org/v1").open()
    with pytest.raises(UsageError, match="the price of 'j' is unknown"):
        judge("http://127.0.0.1:9/v1", max_cost=1.0).open()
    found, stopped = ask_judge(judge("http://127.0.0.1:9/v1"), pairs(1), tmp_path)
    assert isinstance(stopped, EndpointError)
    assert not found[0].is_known
