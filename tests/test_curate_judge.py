"""curate --judge: what has no score gets one, once, from a journal of its own, within limits; then it decides."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from pipeline import curate
from pipeline.ask import Ask
from pipeline.backends.endpoint import parse_reply
from pipeline.errors import Interrupted
from pipeline.interrupt import interruptible
from pipeline.journal import Journal
from pipeline.llm import Reply, Request
from pipeline.records import DocumentSource, Quote, Record
from pipeline.run_folder import read_records
from tests.conftest import StartServer, summary
from tests.fake_server import FakeServer
from tests.forked import Forked
from tests.test_curate import SUBJECTS, record, rejected, run_folder

JUDGED = record("Write about the sea.", judge=5.0)
OFF = ["--near-duplicates", "off", "--semantic-duplicates", "off"]


def made_before(count: int = 8) -> list[Record]:
    """One record with a judge's score, and others without."""
    return [JUDGED, *(record(f"Write about {subject}.") for subject in SUBJECTS[:count])]


def flags(server: FakeServer, source: Path, out: Path, *more: object) -> list[str]:
    flags = [source, "--out", out, "--judge", "--judge-model", "j", "--judge-base-url", server.base_url, *more]
    return [*map(str, flags), *OFF]


def test_what_has_no_score_is_judged_once_and_the_score_decides(tmp_path: Path, start_server: StartServer) -> None:
    server, source, out = start_server(), run_folder(tmp_path / "a", made_before()), tmp_path / "c"
    command = flags(server, source, out)
    assert curate.main(command) == 0
    assert len(server.ledger()) == 8, "the record that had a score is not judged again"
    kept, poor = list(read_records(out)), rejected(out)
    assert {one.id for one in kept} >= {JUDGED.id}
    assert all(one.scores["judge"] >= 4 for one in kept)
    assert poor
    assert all(line["filter"] == "poor" and line["scores"]["judge"] == line["value"] < 4 for line in poor.values())
    assert len(kept) + len(poor) == 9
    assert (out / "journal.sqlite").exists()

    before = (out / "records.jsonl").read_bytes()
    assert curate.main(command) == 0
    assert len(server.ledger()) == 8, "replayed for nothing"
    assert (out / "records.jsonl").read_bytes() == before
    assert summary(out)["judge"]["sent"] == 0

    assert curate.main([*command, "--min-score", "judge=1"]) == 0
    everyone = {one.id: one.scores["judge"] for one in read_records(out)}
    assert len(everyone) == 9, "a limit of one's own takes the place of the filter's"
    assert curate.main([*command, "--min-score", "judge=1", "--select", "3"]) == 0
    best = sorted(one.scores["judge"] for one in read_records(out))
    assert best == sorted(everyone.values())[-3:]
    assert len(server.ledger()) == 8


def test_a_judge_that_thinks_gets_the_room_it_needs(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run_folder(tmp_path / "a", made_before())
    server = start_server(plan=[{"fault": "reasoning_only", "match": '"max_tokens":400[,}]'}])
    assert curate.main(flags(server, source, tmp_path / "c")) == 0
    assert "8 gave no verdict; a judge that thinks needs a higher --judge-max-tokens." in capsys.readouterr().err
    roomy = flags(server, source, tmp_path / "c", "--judge-max-tokens", 4000)
    assert curate.main([*roomy, "--plan"]) == 0
    assert "Would send about 8 requests" in capsys.readouterr().err
    assert curate.main(roomy) == 0
    assert ", 8 of them asked now; 0 gave no verdict." in capsys.readouterr().err


def test_without_judge_there_is_no_journal(tmp_path: Path) -> None:
    out = tmp_path / "c"
    assert curate.main([str(run_folder(tmp_path / "a", made_before())), "--out", str(out), *OFF]) == 0
    assert not (out / "journal.sqlite").exists()


def test_contaminated_records_are_not_paid_for(tmp_path: Path, start_server: StartServer) -> None:
    server, source = start_server(), run_folder(tmp_path / "a", made_before())
    item = f"Write about {SUBJECTS[0]}."
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": item}))
    assert curate.main(flags(server, source, tmp_path / "c", "--against", tmp_path / "bench.jsonl")) == 0
    assert rejected(tmp_path / "c")[item]["filter"] == "contaminated"
    assert len(server.ledger()) == 7


def test_the_judge_sees_the_quotes(tmp_path: Path, start_server: StartServer) -> None:
    server = start_server()
    quote = Quote(text="Moss needs no roots.", start=0, end=9)
    source = DocumentSource(document="d", chunk="c", start=0, end=9, quotes=(quote,))
    one = record("Does moss need roots?").model_copy(update={"source": (source,)})
    assert curate.main(flags(server, run_folder(tmp_path / "a", [one]), tmp_path / "c")) in (0, 3)
    assert "Moss needs no roots." in json.dumps(server.ledger()[0]["body"])


def test_a_language_without_a_rubric_is_judged_by_the_english_one(tmp_path: Path, start_server: StartServer) -> None:
    server = start_server()
    (tmp_path / "x.jsonl").write_text(json.dumps({"instruction": "Chante.", "output": "La.", "language": "fr"}) + "\n")
    assert curate.main(flags(server, tmp_path / "x.jsonl", tmp_path / "c", "--min-score", "judge=1")) == 0


def test_a_reached_limit_stops_and_the_same_command_goes_on(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server, source, out = start_server(), run_folder(tmp_path / "a", made_before()), tmp_path / "c"
    assert curate.main(flags(server, source, out, "--max-requests", 5)) == 4
    said = capsys.readouterr().err
    assert "--max-requests 5 is reached" in said
    assert "Nothing was curated" in said
    assert "python -m pipeline.curate" in said
    assert not (out / "records.jsonl").exists()
    assert len(server.ledger()) == 5

    assert curate.main(flags(server, source, out, "--offline")) == 3
    assert "3 records have no verdict yet" in capsys.readouterr().err
    assert summary(out)["judge"]["missing"] == 3
    assert len(server.ledger()) == 5

    assert curate.main(flags(server, source, out)) == 0
    assert len(server.ledger()) == 8
    assert {line["attempt"] for line in server.ledger()} == {1}
    whole = tmp_path / "whole"
    assert curate.main(flags(server, source, whole)) == 0
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()


def test_plan_prices_what_is_missing_and_writes_nothing(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server, source, out = start_server(), run_folder(tmp_path / "a", made_before()), tmp_path / "c"
    prices = tmp_path / "prices.toml"
    prices.write_text("[j]\ninput = 1\noutput = 2\n")
    command = flags(server, source, out, "--prices", prices)
    assert curate.main([*command, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["requests"] == 8
    assert plan["cost"] == pytest.approx((plan["prompt_tokens"] + 2 * plan["completion_tokens"]) / 1e6)
    assert not out.exists()
    assert server.ledger() == []

    assert curate.main([*command, "--max-requests", "5"]) == 4
    capsys.readouterr()
    assert curate.main([*command, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["requests"] == 3
    assert plan["spent"] > 0
    assert not (out / "records.jsonl").exists()
    assert curate.main([str(source), "--out", str(out), "--plan", *OFF]) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge-base-url", "http://127.0.0.1:9/v1"], "--judge-base-url needs --judge-model"),
        (["--judge-model", "m", "--judge-base-url", "https://models.example/v1"], "--judge-api-key-env"),
        (["--judge-model", "./nowhere"], "there is no model at"),
        (["--judge-model", "m", "--judge-base-url", "http://127.0.0.1:9/v1", "--min-score", "jugde=3"], "is 'judge'"),
    ],
)
def test_what_cannot_judge_is_said_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    source = run_folder(tmp_path / "a", made_before())
    assert curate.main([str(source), "--out", str(tmp_path / "c"), "--judge", *more, *OFF]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_judge_that_refuses_the_key_is_said(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server, source = start_server(key="secret"), run_folder(tmp_path / "a", made_before())
    assert curate.main(flags(server, source, tmp_path / "c")) == 5
    assert "Nothing was curated" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_judging_goes_on_and_asks_nothing_twice(tmp_path: Path, start_server: StartServer) -> None:
    server, source, out = start_server(), run_folder(tmp_path / "a", made_before()), tmp_path / "c"
    command = flags(server, source, out, "--concurrency", 2)
    with Forked(tmp_path, module="pipeline.curate") as forked:
        assert forked.run(command, env={"INSTRUCTLOOP_CRASH_AT": "reply.stored:4"}) == -signal.SIGKILL
        sent = len(server.ledger())
        assert forked.run(command) == 0, forked.output
    again = [line for line in server.ledger() if line["attempt"] > 1]
    assert sent - len(again) >= 4, "what was stored is not asked again"
    assert len({line["key"] for line in server.ledger()}) == 8
    assert curate.main(flags(server, source, tmp_path / "whole")) == 0
    for name in ("records.jsonl", "rejected.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class Slow:
    """A model that answers once it is told to."""

    reader = "openai"
    is_local = False
    address = identity = "slow"

    def __init__(self) -> None:
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    def refuse(self, parameters: set[str]) -> None:
        raise AssertionError("nothing was refused")

    async def complete(self, request: Request) -> Reply:
        self.asked.set()
        await self.may_answer.wait()
        return parse_reply(b'{"choices": [{"message": {"content": "Well."}, "finish_reason": "stop"}]}')

    async def close(self) -> None:
        pass


async def test_a_signal_lets_what_is_in_flight_end_and_sends_nothing_more(tmp_path: Path) -> None:
    model, said = Slow(), list[str]()

    async def work() -> str:
        first = asyncio.ensure_future(ask(Request((("user", "One?"),), max_tokens=20)))
        await model.asked.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while ask.stopped is None:
            await asyncio.sleep(0)
        model.may_answer.set()
        reply = await first
        with pytest.raises(Interrupted):
            await ask(Request((("user", "Two?"),), max_tokens=20))
        return reply.text

    with Journal(tmp_path / "journal.sqlite") as journal:
        ask = Ask(model, journal, concurrency=2)
        assert await interruptible(work(), ask, said.append) == "Well."
        assert (await journal.totals()).attempts == 1
    assert "Stopping: finishing what is in flight" in said[0]
