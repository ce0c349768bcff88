"""How fast requests follow each other, in virtual time: minutes of storm take a moment here, the same each time."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.backends.pace import LONGEST_PAUSE_S, Pace


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        loop = self

        class Jumping(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                assert timeout is not None, "everything waits for something that will never happen"
                loop.elapsed += max(0.0, timeout)
                return super().select(0)

        super().__init__(Jumping())

    def time(self) -> float:
        return self.elapsed


def in_virtual_time(coroutine: Coroutine[Any, Any, Any]) -> Any:
    random.seed(0)
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(coroutine)


@dataclass
class Server:
    """A token bucket with a latency. `rate` may change; `says` makes the Retry-After of the seconds until a token."""

    rate: float
    burst: float
    latency_s: float
    says: Callable[[float], float | None]
    sent: int = 0
    answered: int = 0
    allowed: float = 0.0

    def __post_init__(self) -> None:
        self.tokens, self.then = self.burst, 0.0
        self.allowed = self.burst

    def advance(self) -> None:
        now = asyncio.get_running_loop().time()
        self.tokens = min(self.burst, self.tokens + (now - self.then) * self.rate)
        self.allowed += (now - self.then) * self.rate
        self.then = now

    async def ask(self) -> float | bool | None:
        """True: answered; else the Retry-After of a 429."""
        self.sent += 1
        self.advance()
        if self.tokens < 1:
            await asyncio.sleep(0.005)
            return self.says((1 - self.tokens) / self.rate if self.rate else 60.0)
        self.tokens -= 1
        await asyncio.sleep(self.latency_s)
        self.answered += 1
        return True


async def keep_asking(pace: Pace, server: Server, seconds: float, workers: int = 64) -> None:
    """More requests than may be in flight, each sent until it is answered."""

    async def work() -> None:
        again = False
        while pace.now() < seconds:
            await pace.enter(again=again)
            sent_at = pace.now()
            found = await server.ask()
            if found is True:
                pace.answered()
            else:
                pace.limited(sent_at, found if isinstance(found, float) else None)
            again = found is not True
            pace.leave()

    await asyncio.gather(*(work() for _ in range(workers)))
    server.advance()


def whole_seconds(wait_s: float) -> float:
    return float(-(-wait_s // 1))


@pytest.mark.parametrize("latency_s", [0.01, 0.2, 1.0])
@pytest.mark.parametrize(("rate", "burst"), [(5, 5), (20, 10), (20, 20), (50, 3000)])
@pytest.mark.parametrize("says", [float, whole_seconds], ids=["exact", "whole seconds"])
def test_most_of_a_limit_is_used_and_little_is_asked_twice(
    rate: float, burst: float, latency_s: float, says: Callable[[float], float]
) -> None:
    server = Server(rate, burst, latency_s, says)
    in_virtual_time(keep_asking(Pace(32), server, seconds=120))
    assert server.sent <= 1.2 * server.answered, f"{server.sent} attempts for {server.answered}"
    possible = min(server.allowed, 32 / (latency_s + 1e-9) * 120)
    assert server.answered >= 0.8 * possible, f"{server.answered} of {possible:.0f}"


def test_without_retry_after_the_rate_is_learned_all_the_same() -> None:
    server = Server(20, 20, 0.1, lambda wait_s: None)
    in_virtual_time(keep_asking(Pace(32), server, seconds=120))
    assert server.sent <= 1.2 * server.answered
    assert server.answered >= 0.8 * server.allowed


def test_a_limit_that_falls_to_a_tenth_and_rises_again_is_followed() -> None:
    server = Server(50, 50, 0.1, float)
    pace = Pace(32)

    async def phases() -> list[float]:
        shares = []
        for end, rate in ((60, 50), (180, 5), (420, 50)):
            server.advance()
            server.rate = rate
            answered, allowed = server.answered, server.allowed
            await keep_asking(pace, server, seconds=end)
            shares.append((server.answered - answered) / (server.allowed - allowed))
        return shares

    shares = in_virtual_time(phases())
    assert shares[0] >= 0.8
    assert shares[1] >= 0.8
    assert shares[2] >= 0.5  # nobody tells us that there is more; it is found by creeping up
    assert server.sent <= 1.2 * server.answered


def test_a_storm_without_any_answer_is_met_with_ever_longer_pauses() -> None:
    server = Server(0, 0, 0.1, lambda wait_s: None)
    pace = Pace(32)
    in_virtual_time(keep_asking(pace, server, seconds=600))
    assert server.sent < 64 + 30  # each asks once more at the very end
    assert server.answered == 0


@pytest.mark.parametrize("absurd", [1e9, 86_400.0])
def test_an_absurd_retry_after_is_capped(absurd: float) -> None:
    async def held() -> float:
        pace = Pace(4)
        pace.limited(0.0, absurd)
        await pace.enter()
        return pace.now()

    assert in_virtual_time(held()) == pytest.approx(LONGEST_PAUSE_S, abs=0.1)


def test_concurrency_starts_small_halves_under_strain_and_recovers() -> None:
    async def watch() -> list[float]:
        pace = Pace(64)
        limits = [pace.limit]

        async def answer(times: int) -> None:
            for _ in range(times):
                await pace.enter()
                await asyncio.sleep(0.001)
                pace.answered()
                pace.leave()
            limits.append(pace.limit)

        await answer(100)
        for _ in range(10):  # all that were in flight fail together: one halving
            pace.strained(pace.now())
        limits.append(pace.limit)
        await asyncio.sleep(1)
        pace.strained(pace.now())
        limits.append(pace.limit)
        await answer(600)
        return limits

    assert in_virtual_time(watch()) == [1, 64, 32, 16, 64]


@pytest.mark.parametrize(("limits", "seconds"), [({"rpm": 60}, 29), ({"tpm": 6000}, 29), ({}, 0)])
def test_rpm_and_tpm_hold_from_the_start(limits: dict[str, float], seconds: float) -> None:
    async def thirty() -> float:
        pace = Pace(64, slow_start=False, **limits)
        await asyncio.gather(*(pace.enter(100) for _ in range(30)))
        return pace.now()

    assert in_virtual_time(thirty()) == pytest.approx(seconds, abs=0.1)


def test_tokens_that_a_reply_did_not_take_are_given_back() -> None:
    async def ten() -> float:
        pace = Pace(64, slow_start=False, tpm=600)
        for _ in range(10):
            await pace.enter(100)
            pace.answered(tokens_saved=90)
            pace.leave()
        return pace.now()

    assert in_virtual_time(ten()) == pytest.approx(10 * 1.0, abs=1.1)


def test_who_is_sent_again_goes_first_and_a_cancelled_one_leaves_its_place() -> None:
    async def order() -> list[str]:
        pace, entered = Pace(1, slow_start=False), list[str]()

        async def enter(name: str, again: bool = False) -> None:
            await pace.enter(again=again)
            entered.append(name)
            pace.leave()

        await pace.enter()
        waiting = [asyncio.ensure_future(enter(name)) for name in ("first", "cancelled", "second")]
        waiting.append(asyncio.ensure_future(enter("again", again=True)))
        await asyncio.sleep(0)
        waiting[1].cancel()
        pace.leave()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert pace.in_flight == 0
        return entered

    assert in_virtual_time(order()) == ["again", "first", "second"]


def test_once_open_nobody_waits() -> None:
    async def opened() -> float:
        pace = Pace(1)
        pace.hold(100)
        waiting: list[Awaitable[None]] = [asyncio.ensure_future(pace.enter()) for _ in range(5)]
        await asyncio.sleep(0)
        pace.open()
        await asyncio.gather(*waiting)
        return pace.now()

    assert in_virtual_time(opened()) == 0.0
