"""`ask(request)`: answered from the journal, or sent. The only way from a generator to a model.

What is in the journal costs nothing, also once the run is stopping: a stop only means that nothing more is sent.
So the records of a stopped run are the fold of all that is stored, and the same command goes on from there.

A failure becomes an outcome only once a request sent after it was answered. Until then it may be an outage, and
an outage is no outcome: the run stops, and the request is sent again next time.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline import endpoint, local_model
from pipeline.errors import BudgetReached, EndpointError, StopRun
from pipeline.journal import Ended, Journal, Stored
from pipeline.llm import Model, ParameterRefused, Reply, Request, RequestFailed
from pipeline.text import strip_thinking

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPTS = 5  # a request is sent this often before it counts as failed; rate limits do not count
RATE_LIMITED_S = 600.0  # a request that was told to wait for longer than this in all counts as failed
LONGEST_BACKOFF_S = 30.0
READERS: dict[str, Callable[[bytes], Reply]] = {"openai": endpoint.parse_reply, "local": local_model.parse_reply}


@dataclass
class Counts:
    """What went through `ask` in this process; stored replies count as asked and answered, not as sent."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    unreadable: int = 0  # answered, but not in a form that could be read; the generator counts these
    think_blocks: int = 0  # taken off
    sent: int = 0
    completion_tokens: int = 0  # of replies that arrived in this process
    faults: dict[str, int] = field(default_factory=dict)  # class of failed attempt -> how often


class Ask:
    """Call it with a Request, await a Reply. Raises the StopRun that `stop` was given where it may not send.

    A request that failed for good comes back as a Reply whose finish reason is "failed".
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        *,
        concurrency: int,
        max_requests: int | None = None,
        retry_failed: bool = False,
        pause_s: float = 1.0,
    ) -> None:
        self.model = model
        self.counts = Counts()
        self.stopped: StopRun | None = None
        self._journal = journal
        self._slots = asyncio.Semaphore(concurrency)
        self._max_requests = max_requests
        self._retry_failed = retry_failed
        self._pause_s = pause_s
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._held_back_until = 0.0  # monotonic; set by a server that asks for a pause
        self._sent_before = 0  # attempts of earlier runs on this folder
        self._number = 0  # of the latest request sent
        self._answered_number = 0  # the highest number that was answered
        self._news = asyncio.Event()  # set, and replaced, whenever an answer or a failure arrives
        self._probing = asyncio.Lock()
        self._doubtful = 0  # failures waiting to learn whether it is an outage

    async def start(self) -> None:
        """Take in what earlier runs on this folder spent and learned."""
        self._sent_before = (await self._journal.totals()).attempts
        self.model.refuse(await self._journal.refused_parameters(self.model.address, self.model.identity))

    def stop(self, why: StopRun) -> None:
        """Send nothing more; the first reason given stays.

        What is in flight is finished and stored; a local model breaks it off, since nothing was paid for it.
        """
        self.stopped = self.stopped or why
        if self.model.is_local:
            for task in self._under_way.values():
                task.cancel()

    async def drain(self) -> None:
        """Wait for what is in flight."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def key(self, request: Request) -> str:
        """The journal key of a request to this model."""
        return hashlib.sha256(request.body(self.model.identity)).hexdigest()

    async def __call__(self, request: Request, *, retry: bool = True) -> Reply:
        """The reply, stored or new. `retry=False` keeps a stored failure even under --retry-failed."""
        body = request.body(self.model.identity)
        key = hashlib.sha256(body).hexdigest()
        self.counts.asked += 1
        reply = _read(await self._journal.outcome(key)) if key in self._journal else None
        if reply is None or (reply.finish_reason == "failed" and self._retry_failed and retry):
            if key not in self._under_way:
                self._require_permission()
                task = asyncio.create_task(self._send(key, body, request))
                task.add_done_callback(lambda done: self._ended(key, done))
                self._under_way[key] = task
            reply = await asyncio.shield(self._under_way[key])
        if reply.finish_reason == "failed":
            self.counts.failed += 1
        else:
            self.counts.answered += 1
        if "<think>" in reply.text:
            self.counts.think_blocks += 1
            reply = replace(reply, text=strip_thinking(reply.text))
        return reply

    def _require_permission(self) -> None:
        if self.stopped is None and self._max_requests is not None and self.sent_ever >= self._max_requests:
            self.stop(BudgetReached(f"--max-requests {self._max_requests} is reached ({self.sent_ever} sent in all)."))
        if self.stopped is not None:
            raise self.stopped

    @property
    def sent_ever(self) -> int:
        """Attempts of this folder, earlier runs included."""
        return self._sent_before + self.counts.sent

    # ---------------------------------------------------------------- sending

    async def _send(self, key: str, body: bytes, request: Request) -> Reply:
        """Send until there is an outcome: at most ATTEMPTS times, with pauses that grow and are jittered."""
        failures, waited_s = 0, 0.0
        while True:
            async with self._slots:
                await self._wait_while_held_back()
                self._require_permission()
                number, attempt = await self._begin(key, body)
                try:
                    return await self._attempt(key, attempt, number, request)
                except ParameterRefused as refused:
                    await self._journal.refuse_parameter(self.model.address, self.model.identity, refused.parameter)
                    continue
                except RequestFailed as error:
                    failure = error
            pause_s = min(self._pause_s * 2**failures, LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)
            if failure.outcome == "rate_limit":
                pause_s = failure.retry_after if failure.retry_after is not None else pause_s
                self._held_back_until = max(self._held_back_until, time.monotonic() + pause_s)
            waited_s += pause_s
            failures += failure.outcome != "rate_limit"
            if not failure.worth_retrying or failures >= ATTEMPTS or waited_s > RATE_LIMITED_S:
                return await self._give_up(key, attempt, number, failure)
            await asyncio.sleep(pause_s)

    async def _begin(self, key: str, body: bytes) -> tuple[int, int]:
        self.counts.sent += 1
        self._number += 1
        return self._number, await self._journal.begin_attempt(key, body)

    async def _attempt(self, key: str, attempt: int, number: int, request: Request) -> Reply:
        """One attempt, its end written down whatever it is; `key` "" is a probe, whose reply is no outcome."""
        try:
            reply = await self.model.complete(request)
        except RequestFailed as failure:
            self.counts.faults[failure.outcome] = self.counts.faults.get(failure.outcome, 0) + 1
            ended = Ended(failure.outcome, status=failure.status, detail=failure.detail, raw=failure.raw)
            await self._journal.end_attempt(attempt, ended)
            raise
        except EndpointError as error:
            await self._journal.end_attempt(attempt, Ended("endpoint_refused", detail=str(error)))
            self.stop(error)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._journal.end_attempt(attempt, Ended("cancelled")))
            if self.stopped is not None:
                raise self.stopped from None
            raise
        ended = Ended(
            "answered",
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            raw=reply.raw,
        )
        await self._journal.end_attempt(attempt, ended, settles=(key, self.model.reader) if key else None)
        self.counts.completion_tokens += reply.completion_tokens or 0
        self._answered_number = max(self._answered_number, number)
        self._tell()
        return reply

    async def _wait_while_held_back(self) -> None:
        while (left_s := self._held_back_until - time.monotonic()) > 0 and self.stopped is None:
            await asyncio.sleep(min(left_s, 1.0))

    # ---------------------------------------------------------------- a failure, or an outage?

    async def _give_up(self, key: str, attempt: int, number: int, failure: RequestFailed) -> Reply:
        """Make a failure the request's outcome, once something sent later was answered; else stop the run."""
        self._doubtful += 1
        self._tell()
        try:
            while self._answered_number < number:
                if self._doubtful == len(self._under_way):  # nothing else is on its way that could tell
                    async with self._probing:
                        if self._answered_number < number:
                            await self._probe(failure)
                else:
                    await self._news.wait()
        finally:
            self._doubtful -= 1
        ended = Ended(failure.outcome, status=failure.status, detail=failure.detail, raw=failure.raw)
        await self._journal.end_attempt(attempt, ended, settles=(key, "failed"))
        return Reply(text="", finish_reason="failed", prompt_tokens=None, completion_tokens=None, raw=b"")

    async def _probe(self, failure: RequestFailed) -> None:
        """Send the smallest request there is, to learn whether the endpoint answers anything at all."""
        self._require_permission()
        probe = Request((("user", "Say OK."),), max_tokens=1, sample=self._number)
        body = probe.body(self.model.identity)
        number, attempt = await self._begin(hashlib.sha256(body).hexdigest(), body)
        try:
            await self._attempt("", attempt, number, probe)
        except RequestFailed as second:
            outage = EndpointError(
                f"{self.model.address} does not answer: {failure.detail}; then a probe failed too: {second.detail}."
            )
            self.stop(outage)
            self._tell()
            raise outage from second

    def _ended(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen: its waiter may be gone
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _read(stored: Stored) -> Reply:
    """A journalled outcome as the Reply it was when it arrived."""
    if stored.reader == "failed":
        return Reply(text="", finish_reason="failed", prompt_tokens=None, completion_tokens=None, raw=stored.raw or b"")
    return READERS[stored.reader](stored.raw)
