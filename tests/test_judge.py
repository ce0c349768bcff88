"""judge.py: verdicts are read strictly, asked once, paid from the same budget, and decide by the filter `poor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.judge import Judge, judge_request
from pipeline.llm import Reply, Request
from pipeline.parsing import Unreadable
from pipeline.prompts import Prompts
from pipeline.records import Record
from tests.conftest import Run, StartServer, a_record, against, read_lines

PROMPTS = {language: Prompts(language) for language in ("en", "zh")}


def record(**fields: Any) -> Record:
    return a_record("Name a colour.", "Blue.", **fields)


def judge(answer: object) -> Judge:
    async def ask(request: Request, *, shows: Sequence[tuple[str, str]]) -> Reply:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Reply(text, "stop", None, None, b"")

    return Judge(ask, PROMPTS, {})


GOOD = {"reason": "True.", "correctness": 5, "following": 4, "score": 4}


async def test_scores_are_named_and_in_range() -> None:
    assert await judge(GOOD).scores(record()) == {"judge_correctness": 5, "judge_following": 4, "judge": 4}
    with_source = {**GOOD, "grounding": 2}
    assert (await judge(with_source).scores(record(), "The sky is blue."))["judge_grounding"] == 2


@pytest.mark.parametrize("four", [4, 4.0, "4", " 4 "])
async def test_four_is_four_however_it_is_written(four: object) -> None:
    assert (await judge({**GOOD, "score": four}).opinion(record()))["score"] == 4


@pytest.mark.parametrize(
    "answer",
    [
        "I would give it a four.",
        {**GOOD, "score": 6},
        {**GOOD, "score": 0},
        {**GOOD, "score": "four"},
        {**GOOD, "score": 4.5},
        {**GOOD, "score": True},
        {"reason": "No numbers."},
    ],
)
async def test_what_is_no_verdict_scores_nothing_and_is_counted(answer: object) -> None:
    one = judge(answer)
    with pytest.raises(Unreadable):
        await one.opinion(record())
    assert await one.scores(record()) == {}
    assert one.unreadable == 1


async def test_grounding_is_asked_only_where_there_is_a_source() -> None:
    one = judge(GOOD)
    with pytest.raises(Unreadable):  # a source was shown, and the verdict does not speak of it
        await one.opinion(record(), "The sky is blue.")


def test_the_request_shows_all_of_the_record_and_scores_last() -> None:
    shown = record(input="warm ones", history=[("Hello?", "Yes?")])
    request = judge_request(shown, "Red is warm.", PROMPTS["en"], {})
    question = request.messages[-1][1]
    for text in ("Name a colour.", "warm ones", "Blue.", "Hello?", "Yes?", "Red is warm."):
        assert text in question
    assert request.schema is not None
    assert list(request.schema["properties"]) == ["reason", "correctness", "following", "grounding", "score"]
    assert request.temperature == 0
    assert "评判" in judge_request(record(language="zh"), "", PROMPTS["zh"], {}).messages[0][1]


def test_a_judged_run_keeps_what_scored_well_and_replays_for_free(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(), tmp_path / "out"
    judged = against(server, out, "--target", 12, "--judge", "--judge-model", "j")
    ran = run(*judged)
    assert ran.returncode == 0, ran.stderr
    records, rejected = read_lines(out / "records.jsonl"), read_lines(out / "rejected.jsonl")
    assert all(line["scores"]["judge"] >= 4 for line in records)
    poor = [line for line in rejected if line["filter"] == "poor"]
    assert poor
    assert all(line["scores"]["judge"] == line["value"] < 4 for line in poor)
    sent = len(server.ledger())
    assert sum(line["body"]["model"] == "j" for line in server.ledger() if line["body"]) >= len(records) + len(poor)

    assert run(*judged).returncode == 0
    assert len(server.ledger()) == sent
    assert read_lines(out / "records.jsonl") == records

    lenient = run(*judged, "--filters", "poor=1")
    assert lenient.returncode == 0
    assert [line["id"] for line in read_lines(out / "records.jsonl")] != [line["id"] for line in records]


def test_a_judge_that_cannot_be_read_is_said(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server = start_server(plan=[{"fault": "reasoning_only", "match": '"model":"j"'}])
    ran = run(*against(server, tmp_path / "out", "--target", 3, "--judge", "--judge-model", "j"))
    assert ran.returncode == 0, ran.stderr
    judge = json.loads((tmp_path / "out" / "summary.json").read_bytes())["judge"]
    assert (judge["readable"], judge["unreadable"] >= 3) == (0, True)
    said = f"{judge['unreadable']} gave no verdict and passed unjudged; a judge that thinks needs"
    assert f"{said} a higher --judge-max-tokens." in ran.stderr


def test_the_judge_spends_from_the_same_budget(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    ran = run(*against(server, out, "--target", 50, "--judge", "--judge-model", "j", "--max-requests", 60))
    assert ran.returncode == 4, ran.stderr
    assert len(server.ledger()) == 60
    assert {line["body"]["model"] for line in server.ledger() if line["body"]} == {"fake", "j"}


def test_a_judge_that_wrote_the_records_itself_is_pointed_out(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server = start_server()
    same = run(*against(server, tmp_path / "same", "--target", 2, "--judge"))
    other = run(*against(server, tmp_path / "other", "--target", 2, "--judge", "--judge-model", "j"))
    assert "the judge is the model that wrote the records" in same.stderr
    assert "the judge is the model" not in other.stderr
