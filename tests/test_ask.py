"""`ask`: what is stored is not asked again, a failure is no outage, an outage no outcome, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pipeline.ask import ATTEMPTS, Ask
from pipeline.errors import BudgetReached, EndpointError, Interrupted, StopRun, StorageError
from pipeline.journal import Journal
from pipeline.llm import ParameterRefused, Reply, Request, RequestFailed
from pipeline.money import Budget, Limits
from pipeline.parsing import Unreadable, read_text

Behave = Callable[[str, int], Exception | None]  # (text asked, call number from 1) -> what goes wrong


class Scripted:
    """A model that fails as it is told to. `calls` are the texts asked; `gate` holds replies back while it is clear."""

    reader = "openai"
    is_local = False
    address = "http://127.0.0.1:9/v1"
    identity = "scripted"

    def __init__(self, behave: Behave = lambda text, number: None) -> None:
        self._behave = behave
        self.calls: list[str] = []
        self.refused: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    def refuse(self, parameters: set[str]) -> None:
        self.refused |= parameters

    async def complete(self, request: Request) -> Reply:
        text = request.messages[-1][1]
        self.calls.append(text)
        number = len(self.calls)
        await asyncio.sleep(0)
        await self.gate.wait()
        error = self._behave(text, number)
        if error is not None:
            raise error
        raw = {"choices": [{"message": {"content": f"reply to {text}"}, "finish_reason": "stop"}]}
        return Reply(f"reply to {text}", "stop", None, None, json.dumps(raw).encode(), ("no_usage",))

    async def close(self) -> None:
        pass


@asynccontextmanager
async def asking(
    path: Path, model: Scripted, concurrency: int = 4, max_pages: int | None = None, retry_failed: bool = False,
    pause_s: float = 0.0,
) -> AsyncIterator[Ask]:  # fmt: skip
    """An Ask on a journal; whatever is waiting for ever fails the test after two minutes."""
    with Journal(path / "journal.sqlite", max_pages=max_pages) as journal:
        ask = Ask(model, journal, concurrency=concurrency, retry_failed=retry_failed, pause_s=pause_s)
        await ask.start()
        async with asyncio.timeout(120):
            yield ask
            await ask.drain()


def question(text: object) -> Request:
    return Request((("user", str(text)),), max_tokens=10)


class ScriptedHere(Scripted):
    """… in this process, where a stop breaks off what is under way, since nothing is paid for it."""

    is_local = True


async def test_a_stop_tells_who_waits_for_a_turn_why_also_where_it_breaks_off(tmp_path: Path) -> None:
    model = ScriptedHere()
    model.gate.clear()
    async with asking(tmp_path, model, concurrency=1) as ask:
        waiting = [asyncio.ensure_future(ask(question(n))) for n in range(4)]
        while not model.calls:
            await asyncio.sleep(0)
        ask.stop(BudgetReached("enough"))
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in ended] == [BudgetReached] * 4
    assert model.calls == ["0"]


async def all_of(ask: Ask, number: int) -> list[str]:
    """The finish reason of each reply, or the name of the exception."""
    results = await asyncio.gather(*(ask(question(n)) for n in range(number)), return_exceptions=True)
    return [result.finish_reason if isinstance(result, Reply) else type(result).__name__ for result in results]


def failing(*texts: object, outcome: str = "server_error") -> Behave:
    names = {str(text) for text in texts}
    return lambda text, number: RequestFailed(outcome, "500: no") if text in names else None


# ---------------------------------------------------------------- stored, shared


async def test_what_is_stored_is_not_asked_again(tmp_path: Path) -> None:
    first, second = Scripted(), Scripted()
    async with asking(tmp_path, first) as ask:
        assert (await ask(question("a"))).text == "reply to a"
    async with asking(tmp_path, second) as ask:
        assert (await ask(question("a"))).text == "reply to a"
        assert ask.is_stored(question("a"))
        assert not ask.is_stored(question("b"))
    assert (first.calls, second.calls) == (["a"], [])


async def test_a_stored_reply_that_was_damaged_is_a_fault_of_the_storage(tmp_path: Path) -> None:
    async with asking(tmp_path, Scripted()) as ask:
        await ask(question("x"))
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection, connection:
        connection.execute("UPDATE attempts SET raw = ?", (b"[1]",))
    async with asking(tmp_path, Scripted()) as ask:
        with pytest.raises(StorageError, match=r"stored reply to request \w{12} is damaged"):
            await ask(question("x"))


async def test_equal_requests_at_once_are_one_call(tmp_path: Path) -> None:
    model = Scripted()
    async with asking(tmp_path, model) as ask:
        assert len(await asyncio.gather(*(ask(question("a")) for _ in range(20)))) == 20
    assert model.calls == ["a"]


async def test_an_attempt_is_on_the_disk_before_it_is_sent(tmp_path: Path) -> None:
    seen = []

    def look(text: str, number: int) -> None:
        connection = sqlite3.connect(tmp_path / "journal.sqlite")
        seen.append(connection.execute("SELECT count(*) FROM attempts WHERE ended IS NULL").fetchone()[0])
        connection.close()

    async with asking(tmp_path, Scripted(look), concurrency=1) as ask:
        await all_of(ask, 3)
    assert seen == [1, 1, 1]


# ---------------------------------------------------------------- retries


async def test_each_kind_of_passing_failure_is_retried_and_kept(tmp_path: Path) -> None:
    kinds = ["timeout", "connection", "server_error", "malformed_reply"]

    def behave(text: str, number: int) -> Exception | None:
        return RequestFailed(kinds[number - 1], "passing", raw=b"odd %d" % number) if number <= 4 else None

    model = Scripted(behave)
    async with asking(tmp_path, model) as ask:
        assert (await ask(question("a"))).finish_reason == "stop"
        assert ask.counts.faults == dict.fromkeys(kinds, 1)
    assert len(model.calls) == ATTEMPTS
    rows = sqlite3.connect(tmp_path / "journal.sqlite").execute("SELECT outcome, raw FROM attempts").fetchall()
    assert [row[0] for row in rows] == [*kinds, "answered"]
    assert [row[1] for row in rows[:4]] == [b"odd 1", b"odd 2", b"odd 3", b"odd 4"]


async def test_rate_limits_do_not_use_up_the_attempts(tmp_path: Path) -> None:
    def limited(text: str, number: int) -> Exception | None:
        return RequestFailed("rate_limit", "429", retry_after=0.001) if number <= 3 * ATTEMPTS else None

    async with asking(tmp_path, Scripted(limited)) as ask:
        assert await all_of(ask, 1) == ["stop"]


async def test_a_refused_parameter_is_learned_for_good_and_is_no_failure(tmp_path: Path) -> None:
    def refuse(text: str, number: int) -> Exception | None:
        return ParameterRefused("temperature", "400", status=400, raw=b"") if number == 1 else None

    async with asking(tmp_path, Scripted(refuse)) as ask:
        assert await all_of(ask, 3) == ["stop"] * 3
    model = Scripted()
    async with asking(tmp_path, model):
        assert model.refused == {"temperature"}


# ---------------------------------------------------------------- a failure, or an outage


async def test_a_failure_is_an_outcome_once_something_sent_later_was_answered(tmp_path: Path) -> None:
    model = Scripted(failing(3))
    async with asking(tmp_path, model) as ask:
        assert await all_of(ask, 10) == ["stop"] * 3 + ["failed"] + ["stop"] * 6
        assert model.calls.count("3") == ATTEMPTS
        assert ask.counts.failed == 1
        why = (await ask(question(3))).text
        assert why, "what the server said, or how it failed"
    model = Scripted()
    async with asking(tmp_path, model) as ask:
        stored = await ask(question(3))
        assert (stored.finish_reason, stored.text) == ("failed", why)
        with pytest.raises(Unreadable, match=re.escape(why)):
            read_text(stored)
    assert model.calls == []
    async with asking(tmp_path, model, retry_failed=True) as ask:
        assert (await ask(question(3), retry=False)).finish_reason == "failed"
        assert (await ask(question(3))).finish_reason == "stop"
    assert model.calls == ["3"]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("bad", [[9], [0], [6, 7, 8, 9], list(range(10))], ids=str)
async def test_failures_at_the_tail_are_told_from_an_outage_by_a_probe(
    tmp_path: Path, concurrency: int, bad: list[int]
) -> None:
    model = Scripted(failing(*bad, outcome="bad_answer"))
    async with asking(tmp_path, model, concurrency=concurrency) as ask:
        assert await all_of(ask, 10) == ["failed" if n in bad else "stop" for n in range(10)]
    assert model.calls.count("Say OK.") <= 2


@pytest.mark.parametrize("concurrency", [1, 4, 50])
async def test_an_outage_is_no_outcome(tmp_path: Path, concurrency: int) -> None:
    down = Scripted(lambda text, number: RequestFailed("connection", "refused") if number > 5 else None)
    async with asking(tmp_path, down, concurrency=concurrency) as ask:
        results = await all_of(ask, 20)
        assert set(results) == {"stop", "EndpointError"}
        assert isinstance(ask.stopped, EndpointError)
        assert "does not answer: refused; then a probe failed too: refused" in str(ask.stopped)
    answered = results.count("stop")
    async with asking(tmp_path, Scripted(), concurrency=concurrency) as ask:
        assert await all_of(ask, 20) == ["stop"] * 20
        assert ask.counts.sent == 20 - answered


async def test_an_answer_to_what_was_sent_earlier_makes_no_outcome(tmp_path: Path) -> None:
    """It may have been written before the outage began."""

    class Overtaken(Scripted):
        async def complete(self, request: Request) -> Reply:
            if request.messages[-1][1] != "slow":
                self.gate.set()
            return await super().complete(request)

    down = RequestFailed("connection", "down", worth_retrying=False)  # sent once, before the slow one is answered
    model = Overtaken(lambda text, number: None if text in ("first", "slow") else down)
    async with asking(tmp_path, model) as ask:
        await ask(question("first"))  # from then on several may be in flight
        model.gate.clear()
        slow, bad = await asyncio.gather(ask(question("slow")), ask(question("bad")), return_exceptions=True)
        assert isinstance(slow, Reply)
        assert isinstance(bad, EndpointError)
        assert not ask.is_stored(question("bad"))


async def test_a_probe_counts_against_the_limits_like_any_call(tmp_path: Path) -> None:
    for limit, probed in ((ATTEMPTS, False), (ATTEMPTS + 1, True)):
        model = Scripted(failing(0))
        with Journal(tmp_path / f"{limit}.sqlite") as journal:
            budget = Budget("scripted", {}, Limits(requests=limit))
            ask = Ask(model, journal, concurrency=1, budget=budget, pause_s=0.0)
            await ask.start()
            assert await all_of(ask, 1) == ["failed" if probed else "BudgetReached"]
            assert ("Say OK." in model.calls) == probed
            assert len(model.calls) == budget.requests == (await journal.totals()).attempts == limit
            await ask.drain()


async def test_a_probe_learns_a_refused_parameter_and_waits_for_a_rate_limit(tmp_path: Path) -> None:
    probes: list[Exception | None] = [
        ParameterRefused("temperature", "400", status=400, raw=b""),
        RequestFailed("rate_limit", "429", retry_after=0.001),
        None,
    ]

    def behave(text: str, number: int) -> Exception | None:
        return probes.pop(0) if text == "Say OK." else RequestFailed("malformed_reply", "no")

    async with asking(tmp_path, Scripted(behave)) as ask:
        assert await all_of(ask, 1) == ["failed"]
    assert probes == []


@pytest.mark.parametrize("number", [1, 7])
async def test_a_refused_key_stops_after_what_was_in_flight(tmp_path: Path, number: int) -> None:
    model = Scripted(lambda text, call: EndpointError("the key") if call >= number else None)
    async with asking(tmp_path, model, concurrency=4) as ask:
        results = await all_of(ask, 50)
    assert results.count("EndpointError") == 50 - (number - 1)
    assert len(model.calls) <= number - 1 + 4


# ---------------------------------------------------------------- stopping


async def test_a_stop_wakes_who_waits_for_a_pause_and_finishes_what_is_in_flight(tmp_path: Path) -> None:
    model = Scripted(failing("bad"))
    async with asking(tmp_path, model, pause_s=1000.0) as ask:
        await ask(question("first"))
        pausing = asyncio.ensure_future(ask(question("bad")))
        while ask.counts.faults == {}:
            await asyncio.sleep(0)
        model.gate.clear()
        in_flight = asyncio.ensure_future(ask(question("good")))
        while "good" not in model.calls:
            await asyncio.sleep(0)
        ask.stop(Interrupted("Interrupted."))
        with pytest.raises(Interrupted):
            await pausing
        with pytest.raises(Interrupted):
            await ask(question("another"))
        model.gate.set()
        assert (await in_flight).text == "reply to good"


async def test_an_abort_writes_down_what_was_possibly_paid(tmp_path: Path) -> None:
    model = Scripted()
    model.gate.clear()
    async with asking(tmp_path, model) as ask:
        waiting = asyncio.ensure_future(ask(question("a")))
        while not model.calls:
            await asyncio.sleep(0)
        ask.stop(Interrupted("Interrupted."))
        ask.abort()
        with pytest.raises((StopRun, asyncio.CancelledError)):
            await waiting
    with Journal(tmp_path / "journal.sqlite") as journal:
        totals = await journal.totals()
    assert (totals.unknown, totals.faults) == (1, {"cancelled": 1})


async def test_a_full_disk_stops_the_sending_and_not_only_the_one_who_met_it(tmp_path: Path) -> None:
    model = Scripted()
    async with asking(tmp_path, model, concurrency=4, max_pages=20) as ask:
        results = await all_of(ask, 400)
        assert isinstance(ask.stopped, StorageError)
    stored = results.count("stop")
    assert 0 < stored < 400
    assert stored <= len(model.calls) <= stored + 4
    async with asking(tmp_path, model) as ask:
        assert await all_of(ask, 400) == ["stop"] * 400
        assert ask.counts.sent == 400 - stored
