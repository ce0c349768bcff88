"""`ask(request)`: answered from the journal, or sent. The only way from a generator to a model.

What is in the journal costs nothing, also once the run is stopping: a stop only means that nothing more is sent.
So the records of a stopped run are the fold of all that is stored, and the same command goes on from there.

A failure becomes an outcome only once a request sent after it was answered. Until then it may be an outage, and
an outage is no outcome: the run stops, and the request is sent again next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline import crash
from pipeline.backends import endpoint, local_model
from pipeline.backends.pace import Pace
from pipeline.errors import BudgetReached, EndpointError, StopRun, StorageError
from pipeline.journal import UNPAID, Ended, Journal, Stored, Totals
from pipeline.llm import Model, ParameterRefused, Reply, Request, RequestFailed, most_prompt_tokens
from pipeline.money import Budget
from pipeline.text import replace_surrogates, strip_thinking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ATTEMPTS = 5  # a request is sent this often before it counts as failed; rate limits do not count
RATE_LIMITED_S = 600.0  # a request that was told to wait for longer than this in all counts as failed
LONGEST_BACKOFF_S = 30.0
OUTAGE_AFTER, OUTAGE_AFTER_S = 20, 30.0  # failures in a row, and seconds without an answer, that call for a probe
PROBES = 6  # where the server answers each with a 429 or a parameter that it does not take
STRAIN = ("timeout", "connection", "unreachable", "server_error")  # failures that say: not so many at once
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
        budget: Budget | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        retry_failed: bool = False,
        pause_s: float = 1.0,
        source: str | None = None,
    ) -> None:
        """`source` is the name under which a project's journal notes what each request shows."""
        self.model = model
        self.read: set[str] = set()  # keys of all requests asked for, in a project
        self._source = source
        self.counts = Counts()
        self.budget = budget or Budget(model.identity, {})
        self.pace = Pace(concurrency, rpm=rpm, tpm=tpm, slow_start=not model.is_local)
        self.stopped: StopRun | None = None
        self._crew: list[Ask] = [self]  # all that send in this run: they stop together
        self._journal = journal
        self._retry_failed = retry_failed
        self._pause_s = pause_s
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._latest: tuple[Request, tuple[bytes, str]] | None = None
        self._wire = asyncio.Semaphore(concurrency)
        self._in_flight = 0  # attempts begun and not ended
        self._number = 0  # of the latest attempt sent
        self._answered_number = 0  # the highest number that was answered
        self._answered_at = time.monotonic()
        self._failures_in_a_row = 0
        self._news = asyncio.Event()  # set, and replaced, whenever something ended
        self._halted = asyncio.Event()
        self._caught_up = asyncio.Event()  # nothing is sent before: the run may turn out to be complete
        self._caught_up.set()
        self._has_stored = False
        self._probing = asyncio.Lock()
        self._doubtful = 0  # failures waiting to learn whether it is an outage

    async def start(self, spent: Totals | None = None) -> None:
        """Take in what earlier runs on this folder spent and learned; `spent`, if given, is what counts."""
        totals = spent or await self._journal.totals()
        self.budget.start(totals)
        self._has_stored = totals.answered > 0
        self.model.refuse(await self._journal.refused_parameters(self.model.address, self.model.identity))

    def beside(self, model: Model, *, concurrency: int, rpm: float | None = None, tpm: float | None = None) -> Ask:
        """Another model asked in the same run: one journal, one budget, one stop."""
        other = Ask(
            model,
            self._journal,
            concurrency=concurrency,
            budget=self.budget.beside(model.identity),
            rpm=rpm,
            tpm=tpm,
            retry_failed=self._retry_failed,
            pause_s=self._pause_s,
            source=self._source,
        )
        other.read = self.read
        self._crew.append(other)
        other._crew = self._crew
        return other

    @property
    def sent_in_run(self) -> int:
        """Requests sent in this process, by all that ask beside this one."""
        return sum(ask.counts.sent for ask in self._crew)

    def catch_up(self) -> None:
        """Give out stored replies alone until `caught_up`, if there are any."""
        if self._has_stored and self.stopped is None and not self._retry_failed:
            for ask in self._crew:
                ask._caught_up.clear()

    @property
    def is_catching_up(self) -> bool:
        """Whether only stored replies are given out so far; `caught_up` ends that."""
        return not self._caught_up.is_set()

    def caught_up(self) -> None:
        """The fold waits for something that is not stored: send from now on."""
        for ask in self._crew:
            ask._caught_up.set()

    def stop(self, why: StopRun) -> None:
        """Send nothing more; the first reason given stays.

        What is in flight is finished and stored; a local model breaks it off, since nothing was paid for it.
        """
        for ask in self._crew:
            ask.stopped = ask.stopped or why
            ask._halted.set()
            ask._caught_up.set()
            ask.pace.open()
            ask._tell()
            if ask.model.is_local:
                ask._break_off()

    def abort(self) -> None:
        """Break off what is in flight, too; the journal then says that it was possibly paid."""
        for ask in self._crew:
            ask._break_off()

    def _break_off(self) -> None:
        for task in self._under_way.values():
            task.cancel()

    async def drain(self) -> None:
        """Wait for what is in flight."""
        under_way = [task for ask in self._crew for task in ask._under_way.values()]
        await asyncio.gather(*under_way, return_exceptions=True)

    def key(self, request: Request) -> str:
        """The journal key of a request to this model."""
        return self._spelled(request)[1]

    def _spelled(self, request: Request) -> tuple[bytes, str]:
        """Its canonical JSON and its key; remembered for the latest one, whose key is asked first, then its reply."""
        if self._latest is None or self._latest[0] is not request:
            body = request.body(self.model.identity)
            self._latest = request, (body, hashlib.sha256(body).hexdigest())
        return self._latest[1]

    def is_stored(self, request: Request) -> bool:
        """Whether it has an outcome already, so that it costs nothing."""
        return self.key(request) in self._journal

    async def __call__(self, request: Request, *, retry: bool = True, shows: Sequence[tuple[str, str]] = ()) -> Reply:
        """The reply, stored or new. `retry=False` keeps a stored failure even under --retry-failed.

        `shows` names what of the source the request holds: pairs of a file's name, or "", and an item's id, or the
        key of an earlier request.
        """
        body, key = self._spelled(request)
        self.counts.asked += 1
        if self._source is not None:
            self.read.add(key)
            await self._journal.note(key, self._source, shows)
        reply = _read(key, await self._journal.outcome(key)) if key in self._journal else None
        if reply is None or (reply.finish_reason == "failed" and self._retry_failed and retry):
            if key not in self._under_way:
                self._require_permission()
                task = asyncio.create_task(self._send(key, body, request))
                task.add_done_callback(lambda done: self._ended(key, done))
                self._under_way[key] = task
            under_way = self._under_way[key]
            try:
                reply = await asyncio.shield(under_way)
            except asyncio.CancelledError:
                if under_way.cancelled():  # a stop broke it off before it began: say that one, not this
                    self._require_permission()
                raise
        if reply.finish_reason == "failed":
            self.counts.failed += 1
            return reply
        self.counts.answered += 1
        said = strip_thinking(reply.text)
        if said != reply.text:
            self.counts.think_blocks += 1
            flaws = reply.flaws if said.strip() else (*reply.flaws, "reasoning_only")
            reply = replace(reply, text=said, flaws=flaws)
        return reply

    def _require_permission(self) -> None:
        if self.stopped is not None:
            raise self.stopped

    # ---------------------------------------------------------------- sending

    async def _send(self, key: str, body: bytes, request: Request) -> Reply:
        """Send until there is an outcome: at most ATTEMPTS times, with pauses that grow and are jittered."""
        most_tokens = (most_prompt_tokens(body), request.max_tokens)
        likely_tokens = len(body) / 4 + request.max_tokens  # as servers count them against a tpm
        failures, limited_at, again = 0, None, False
        await self._caught_up.wait()
        while True:
            await self.pace.enter(likely_tokens, again=again)
            try:
                number, attempt, sent_at = await self._begin(key, body, most_tokens)
                return await self._attempt(key, attempt, number, request, most_tokens, likely_tokens)
            except ParameterRefused:
                continue
            except RequestFailed as error:
                failure = error
            finally:
                again = True
                self.pace.leave()
            if failure.outcome == "rate_limit":
                limited_at = limited_at or time.monotonic()
                self.pace.limited(sent_at, failure.retry_after)
                if time.monotonic() - limited_at < RATE_LIMITED_S:
                    continue
            failures += 1
            self._slow_down(sent_at, failure)
            if not failure.worth_retrying or failures >= ATTEMPTS or failure.outcome == "rate_limit":
                return await self._give_up(key, attempt, number, failure)
            if self._looks_like_an_outage(failure):
                await self._probe_once(failure)
            pause_s = min(self._pause_s * 2 ** (failures - 1), LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._halted.wait()

    async def _begin(self, key: str, body: bytes, most_tokens: tuple[int, int]) -> tuple[int, int, float]:
        """Permission, then the entry in the journal: the attempt's number, its id there, and when it is sent."""
        while (objection := self.budget.objection(most_tokens)) is not None:
            self._require_permission()
            if not any(ask._in_flight for ask in self._crew):
                self.stop(BudgetReached(objection))
            else:
                await self._news.wait()  # a reply costs less than it might have, whoever asked for it
        self._require_permission()
        self.budget.reserve(most_tokens)
        self._in_flight += 1
        self.counts.sent += 1
        self._number += 1
        number = self._number
        try:
            attempt = await self._journal.begin_attempt(key, body, model=self.model.identity, most_tokens=most_tokens)
        except BaseException:  # a cancelled task, too: it is not in flight, whatever kept it from being written down
            self._in_flight -= 1
            self._tell_all()
            raise
        crash.point("attempt.begun")
        return number, attempt, self.pace.now()

    async def _attempt(
        self, key: str, attempt: int, number: int, request: Request, most_tokens: tuple[int, int], likely_tokens: float
    ) -> Reply:
        """One attempt, its end written down whatever it is; `key` "" is a probe, whose reply is no outcome."""
        try:
            async with self._wire:  # the pace lets in some more, so that none of these waits for a commit
                reply = await self.model.complete(request)
        except RequestFailed as failure:
            self.counts.faults[failure.outcome] = self.counts.faults.get(failure.outcome, 0) + 1
            await self._end(attempt, _ended_by(failure), most_tokens)
            if isinstance(failure, ParameterRefused):
                address, identity = self.model.address, self.model.identity
                await self._journal.refuse_parameter(address, identity, failure.parameter)
            raise
        except EndpointError as error:
            self.stop(error)
            await self._end(attempt, Ended("endpoint_refused", detail=str(error)), most_tokens)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(
                self._end(attempt, Ended("broken_off" if self.model.is_local else "cancelled"), most_tokens)
            )
            self._require_permission()
            raise
        crash.point("reply.arrived")
        tokens = (reply.prompt_tokens, reply.completion_tokens)
        ended = Ended(
            "answered", prompt_tokens=tokens[0], completion_tokens=tokens[1], raw=reply.raw, flaws=reply.flaws
        )
        await self._end(attempt, ended, most_tokens, settles=(key, self.model.reader) if key else None)
        crash.point("reply.stored")
        self.counts.completion_tokens += reply.completion_tokens or 0
        self.pace.answered(likely_tokens - sum(tokens) if None not in tokens else 0.0)  # type: ignore[arg-type]
        self._failures_in_a_row, self._answered_at = 0, time.monotonic()
        self._answered_number = max(self._answered_number, number)
        self._tell()
        return reply

    async def _end(
        self, attempt: int, ended: Ended, most_tokens: tuple[int, int], settles: tuple[str, str] | None = None
    ) -> None:
        """Write down how an attempt ended, and count what it cost."""
        self._in_flight -= 1
        tokens = (ended.prompt_tokens, ended.completion_tokens)
        self.budget.settle(most_tokens, tokens, paid=ended.outcome not in UNPAID)
        self._tell_all()
        await self._journal.end_attempt(attempt, ended, settles=settles)

    def _slow_down(self, sent_at: float, failure: RequestFailed) -> None:
        if failure.outcome in STRAIN:
            self._failures_in_a_row += 1
            self.pace.strained(sent_at)
        if failure.retry_after is not None:
            self.pace.hold(failure.retry_after)

    # ---------------------------------------------------------------- a failure, or an outage?

    async def _give_up(self, key: str, attempt: int, number: int, failure: RequestFailed) -> Reply:
        """Make a failure the request's outcome, once something sent later was answered; else stop the run.

        Nobody waits for ever here: each thing that could change the answer (a reply, the end of another request,
        the stop of the run) is news, and where nothing else is on its way, a probe is.
        """
        self._doubtful += 1
        self._tell()
        try:
            while self._answered_number < number:
                self._require_permission()
                if self._doubtful == len(self._under_way):  # nothing else is on its way that could tell
                    await self._probe_once(failure, unless_answered=number)
                else:
                    await self._news.wait()
        finally:
            self._doubtful -= 1
        await self._journal.end_attempt(attempt, _ended_by(failure), settles=(key, "failed"))
        return _failed(replace_surrogates(failure.detail))

    def _looks_like_an_outage(self, failure: RequestFailed) -> bool:
        if failure.outcome == "unreachable" and not self._answered_number:  # a wrong address: say so at once
            return self._failures_in_a_row >= 2
        silent_s = time.monotonic() - self._answered_at
        return self._failures_in_a_row >= OUTAGE_AFTER and silent_s >= OUTAGE_AFTER_S

    async def _probe_once(self, failure: RequestFailed, *, unless_answered: int | None = None) -> None:
        """Probe, one caller at a time; who had to wait for another's probe is often answered by it."""
        async with self._probing:
            self._require_permission()
            if unless_answered is None:
                doubtful = self._looks_like_an_outage(failure)
            else:
                doubtful = self._answered_number < unless_answered
            if doubtful:
                await self._probe(failure)

    async def _probe(self, failure: RequestFailed) -> None:
        """Send the smallest request there is, to learn whether the endpoint answers anything at all."""
        probe = Request((("user", "Say OK."),), max_tokens=16, sample=self._number)
        body = probe.body(self.model.identity)
        key = hashlib.sha256(body).hexdigest()
        most_tokens = (most_prompt_tokens(body), probe.max_tokens)
        for _ in range(PROBES):
            await self.pace.enter(again=True)
            try:
                number, attempt, sent_at = await self._begin(key, body, most_tokens)
                await self._attempt("", attempt, number, probe, most_tokens, 0.0)
                return
            except RequestFailed as error:
                second = error
            finally:
                self.pace.leave()
            if second.outcome == "rate_limit":
                self.pace.limited(sent_at, second.retry_after)
            elif not isinstance(second, ParameterRefused):
                break
        outage = EndpointError(
            f"{self.model.address} does not answer: {failure.detail}; then a probe failed too: {second.detail}."
        )
        self.stop(outage)
        raise outage from second

    def _ended(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._under_way[key]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StopRun):  # storage failed, say; its waiter may be gone, or far from the head of the line
            self.stop(error)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _tell_all(self) -> None:
        """What they have in common, the budget, has changed."""
        for ask in self._crew:
            ask._tell()


def _ended_by(failure: RequestFailed) -> Ended:
    return Ended(failure.outcome, status=failure.status, detail=failure.detail, raw=failure.raw)


def _failed(detail: str) -> Reply:
    """What stands for the reply to a request that failed for good: a sentence about why."""
    return Reply(text=detail, finish_reason="failed", prompt_tokens=None, completion_tokens=None, raw=b"")


def _read(key: str, stored: Stored) -> Reply:
    """A journalled outcome as the Reply it was when it arrived; raises StorageError where it is that no more."""
    if stored.reader == "failed":
        return _failed(stored.detail or "")
    try:
        return READERS[stored.reader](stored.raw)
    except RequestFailed as error:  # it could be read before it was stored
        raise StorageError(f"The stored reply to request {key[:12]} is damaged ({error.detail}).") from error
