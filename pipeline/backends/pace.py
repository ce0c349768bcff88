"""When the next request may go: how many are in flight, and how fast they follow each other.

Two things are learned from the server. `limit`, the requests in flight, starts at one, doubles with each round of
answers, halves under pressure (429, 5xx, timeouts, broken connections) and then grows step by step (AIMD). `rate` is
learned from 429s: each means "nothing is left", so what was answered between two of them is what the server allows.
From then on requests are spread at that rate, which creeps up until the next 429 says otherwise: fast while it rests
on a moment's watching, slowly once it rests on seconds.

`rpm` and `tpm` are for those who know their limits: never faster than that, from the start.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque

STEP_SHARE = 16  # under AIMD a round of answers adds a sixteenth of the most that may be in flight
FIRST_STEP = 8  # in flight after the first answer
AT_THE_JOURNAL = 1 / 8  # as many more, beside those in flight, may be in the hands of the journal, before or after
BELOW_RATE = 0.95  # of the learned rate, to start from after a 429
WATCHED_S = 10.0  # 429s of so long ago count for the rate
DOUBLED_AFTER = 5.0  # times as long as was watched, the rate has crept up to its double …
DOUBLED_AFTER_S = (2.0, 10.0)  # … but not before the first, and by the second at the latest
LONGEST_PAUSE_S = 120.0  # no server may ask for a longer one
FIRST_PAUSE_S = 1.0  # after a 429 that names none; doubles while nothing is answered in between
SLACK_S = 0.02  # a late timer may be made good for by this much


class Pace:
    """`await enter(tokens)`, send, then `leave()`; in between tell it how the call went."""

    def __init__(
        self, concurrency: int, *, rpm: float | None = None, tpm: float | None = None, slow_start: bool = True
    ) -> None:
        self.limit = 1.0 if slow_start else float(concurrency)
        self.in_flight = 0
        self._most = concurrency
        self._slow_start = slow_start
        self._per_request_s = 60 / rpm if rpm else 0.0
        self._per_token_s = 60 / tpm if tpm else 0.0
        self._request_at = self._token_at = 0.0  # the earliest moment by rpm and by tpm
        self._waiting: list[tuple[int, int, float, asyncio.Future[None]]] = []
        self._came = 0  # numbers the waiting ones
        self._timer: asyncio.TimerHandle | None = None
        self._open = False  # everything may pass: the run is stopping
        self._held_until = 0.0
        self._pressed_at = -1.0  # when `limit` was last halved
        self._answered = 0
        self._limits: deque[tuple[float, int]] = deque()  # when epochs of 429s began, and the answers until then
        self._silent_epochs = 0  # of 429s without any answer in between
        self._rate: float | None = None  # requests a second that the server was found to allow …
        self._doubled_after_s = 0.0  # … and how fast that creeps up
        self._rate_at = 0.0  # the earliest moment by that rate

    def now(self) -> float:
        """The clock that all moments here are by."""
        return asyncio.get_running_loop().time()

    async def enter(self, tokens: float = 0.0, *, again: bool = False) -> None:
        """Wait for a turn. Requests that are sent `again` go first, so that the oldest item is the first one done."""
        self._came += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (0 if again else 1, self._came, tokens, future))
        self._release()
        if future.done():
            return
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """The call is over, whatever came of it."""
        self.in_flight -= 1
        self._release()

    def open(self) -> None:
        """Let everyone through from now on: they find that the run has stopped."""
        self._open = True
        self._release()

    # ---------------------------------------------------------------- what the server said

    def answered(self, tokens_saved: float = 0.0) -> None:
        """A reply came. `tokens_saved` is how many fewer tokens it was than `enter` was told."""
        self._answered += 1
        self._token_at -= tokens_saved * self._per_token_s
        if self._slow_start:
            self.limit = max(self.limit + 1, FIRST_STEP)
        else:
            self.limit += max(1.0, self._most / STEP_SHARE) / self.limit
        self.limit = min(self.limit, float(self._most))

    def strained(self, sent_at: float) -> None:
        """A timeout, a 5xx, a broken connection: half as many from now on, once for all that were in flight."""
        if sent_at > self._pressed_at:
            self.limit = max(1.0, self.limit / 2)
            self._slow_start = False
            self._pressed_at = self.now()

    def limited(self, sent_at: float, retry_after: float | None) -> None:
        """A 429: nobody sends until the pause is over, and then at the rate that was learned."""
        if not self._limits or sent_at > self._limits[-1][0]:  # the first one of its epoch
            self._learn(self.now())
            if self._rate is None:
                self.strained(sent_at)
        if retry_after is None:
            retry_after = FIRST_PAUSE_S * 2 ** min(self._silent_epochs, 7) * random.uniform(0.5, 1.0)
        self.hold(retry_after)

    def _learn(self, now: float) -> None:
        """Nothing is left at the server now, as at the epochs before: what came in between is what it allows."""
        answered_since = self._answered - self._limits[-1][1] if self._limits else 1
        self._silent_epochs = 0 if answered_since else self._silent_epochs + 1
        self._limits.append((now, self._answered))
        while len(self._limits) > 2 and now - self._limits[0][0] > WATCHED_S:
            self._limits.popleft()
        began, answered = self._limits[0]
        if self._answered > answered:
            self._rate = (self._answered - answered) / (now - began)
            self._doubled_after_s = min(max(DOUBLED_AFTER * (now - began), DOUBLED_AFTER_S[0]), DOUBLED_AFTER_S[1])

    def hold(self, pause_s: float) -> None:
        """Nobody sends for this long."""
        self._held_until = max(self._held_until, self.now() + min(pause_s, LONGEST_PAUSE_S))

    # ---------------------------------------------------------------- whose turn it is

    def _release(self) -> None:
        while self._waiting and (self._open or self.in_flight < int(self.limit * (1 + AT_THE_JOURNAL))):
            _, _, tokens, future = self._waiting[0]
            if future.done():  # cancelled
                heapq.heappop(self._waiting)
                continue
            now = self.now()
            due = max(self._held_until, self._request_at, self._token_at, self._rate_at)
            if due > now and not self._open:
                self._wake_at(due)
                return
            heapq.heappop(self._waiting)
            self.in_flight += 1
            self._charge(now, tokens)
            future.set_result(None)

    def _charge(self, now: float, tokens: float) -> None:
        self._request_at = max(self._request_at, now - SLACK_S) + self._per_request_s
        self._token_at = max(self._token_at, now - SLACK_S) + tokens * self._per_token_s
        if self._rate is not None:
            grown = 2 ** min((now - self._limits[-1][0]) / self._doubled_after_s, 30.0)
            self._rate_at = max(self._rate_at, now - SLACK_S) + 1 / (self._rate * BELOW_RATE * grown)

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._release)
