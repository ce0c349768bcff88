"""The one loop: items in, records out, folded in item order whatever the concurrency and however often it stopped.

    async for item in generator.items(...):     many items at once …
        generator.make(item, ask)               … each asks what it needs …
    fold                                        … and the results are filtered one after the other, in item order

The loop runs from the start every time. What is in the journal costs nothing, so a run that was killed, a larger
target and a changed filter all mean the same: run the loop again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pipeline.ask import Ask
from pipeline.errors import BrokenFilter, StopRun
from pipeline.filtering import Candidate, Filter, Found, apply_filters
from pipeline.judge import Judge, source_text
from pipeline.llm import Request
from pipeline.money import Plan
from pipeline.novelty import NoveltyIndex
from pipeline.pairs import Pairs
from pipeline.records import Record, Rejection
from pipeline.run_folder import DerivedFiles

Item = TypeVar("Item")
Made = list[Candidate | Rejection]

PUBLISH_EVERY_S = 60.0
PUBLISHING_SHARE = 0.02  # of the run's time, at most
CATCHING_UP_S = 0.1  # a replay that stands still for so long waits for something that must be sent
GIVE_UP_AFTER = 200  # items in a row that brought no kept record, on the way to a target
ITEMS_A_SLOT = 2  # items being made for each request in flight, so that there is always one to send
WAITING_A_SLOT = 32  # items made or being made behind a slow first one, before it holds up the others


class Outlook:
    """How many more items the loop expects to need: what a chain of prompts may usefully run ahead."""

    def __init__(self, target: int | None, kept_an_item: float = 1.0) -> None:
        """`kept_an_item`: records to expect of an item while there is no experience."""
        self.target = target
        self._expected = kept_an_item
        self.kept = 0
        self.folded = 0  # items
        self.under_way = 0  # items

    @property
    def wanted(self) -> float:
        """Items beyond those under way; infinite without a target."""
        if self.target is None:
            return float("inf")
        kept_an_item = (self.kept + self._expected) / (self.folded + 1)  # never zero, whatever the start
        return (self.target - self.kept) / kept_an_item - self.under_way


class Generator(Protocol[Item]):
    """Where records come from. `shaping` names everything that enters its requests, JSON-ready."""

    name: str
    shaping: dict[str, Any]
    at_its_end: str  # what it means that the items end, for a run that falls short of its target

    def items(self, ask: Ask, outlook: Outlook) -> AsyncIterator[Item | Rejection]:
        """The items in their order; a Rejection stands where an item would have been."""

    async def make(self, item: Item, ask: Ask) -> Made:
        """One item's candidates. It may depend on nothing but the item and the settings."""

    def plan(self, target: int | None, stored: Callable[[Request], bool]) -> Plan:
        """What a run would still send, for --plan; `money.plan_of` adds requests up. `stored` says what is free."""


@runtime_checkable
class Recalling(Protocol):
    """A generator whose later requests follow from earlier replies, so that its plan is the better for reading them."""

    async def recall(self, ask: Ask) -> None:
        """Read what is stored, before `plan`; `ask` sends nothing."""


@runtime_checkable
class Covering(Protocol):
    """A generator that says what of its source the records cover; its words join the summary."""

    def cover(self, entry: Record | Rejection, *, kept: bool) -> None:
        """Take note of a record that was kept, or of what was turned away or merged into an earlier one."""

    def coverage(self) -> dict[str, Any]:
        """Further keys of the summary, JSON-ready."""


@runtime_checkable
class Noting(Protocol):
    """A generator that has something to say of its sources before it begins."""

    @property
    def notes(self) -> list[str]:
        """Sentences, each of which is said once."""


@runtime_checkable
class Expecting(Protocol):
    """A generator that knows about how much an item brings; so its first items are not asked in vain."""

    @property
    def kept_an_item(self) -> float:
        """Kept records to expect of an item, as --plan does."""


@dataclass
class Tally:
    """What the fold has counted so far."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # filter -> candidates
    reasons: Counter[str] = field(default_factory=Counter)  # "filter: reason" of replies that could not be read
    merged: int = 0  # exact duplicates of an earlier candidate
    kept_by_task: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, Rejection] = field(default_factory=dict)  # filter -> its first rejection, as an example
    ended: Literal["", "target", "barren", "exhausted"] = ""  # why no more items were taken; "": stopped


class Line:
    """One run of a generator into a folder's derived files."""

    def __init__(
        self,
        generator: Generator[Any],
        ask: Ask,
        files: DerivedFiles,
        *,
        filters: list[Filter[Candidate]],
        target: int | None,
        concurrency: int,
        summarize: Callable[[Tally], Awaitable[dict[str, Any]]],
        progress: Callable[[Tally], None],
        judge: Judge | None = None,
        pairs: Pairs | None = None,
        pair_asks: Callable[[], Awaitable[tuple[Ask, Ask]]] | None = None,
    ) -> None:
        """`pair_asks` opens what `pairs` asks for answers and for verdicts, once the records are done."""
        self.tally = Tally()
        self._judge, self._pairs, self._pair_asks = judge, pairs, pair_asks
        self._generator, self._ask, self._files, self._filters = generator, ask, files, filters
        self._target, self._concurrency = target, concurrency
        self._pool = next((NoveltyIndex(float(f.threshold or 0)) for f in filters if f.name == "novelty"), None)
        self._pool_texts: dict[str, str] = {}
        self._summarize, self._progress = summarize, progress
        self._outlook = Outlook(target, generator.kept_an_item if isinstance(generator, Expecting) else 1.0)
        self._seen: set[str] = set()
        self._being_made = 0
        self._barren = 0  # items folded since a record was kept
        self._published_at = time.monotonic()
        self._publishing_s = 0.0

    async def run(self) -> StopRun | None:
        """Fold items until the target is reached or they end. Returns why it stopped early, None where it did not.

        Whatever the reason, the records are the fold of the longest complete prefix of the items. Pairs come after
        them, so that a limit is spent on records first.
        """
        ticker = asyncio.create_task(self._tick())
        self._ask.catch_up()
        try:
            stopped = await self._make_records()
            if self._pairs is not None and not isinstance(stopped, BrokenFilter):
                stopped = await self._make_pairs(self._pairs, stopped)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        if isinstance(stopped, BrokenFilter):  # what stood there before stays
            raise stopped
        await self._publish()
        return stopped

    async def _make_records(self) -> StopRun | None:
        pending: deque[asyncio.Task[Made] | Rejection] = deque()
        try:
            return await self._drive(pending)
        finally:
            self._ask.stop(StopRun("the run is over"))  # what waits for its turn is not sent any more
            rest = [entry for entry in pending if not isinstance(entry, Rejection)]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            await self._ask.drain()

    async def _make_pairs(self, pairs: Pairs, stopped: StopRun | None) -> StopRun | None:
        """The pairs of what was kept; of a run that was stopped, those whose replies are stored."""
        assert self._pair_asks is not None
        answer, compare = await self._pair_asks()
        if stopped is not None:
            answer.stop(stopped)
        try:
            stopped_here = await pairs.make(answer, compare, self._files, self._concurrency)
        finally:
            answer.stop(StopRun("the run is over"))
            await answer.drain()
        return stopped or stopped_here

    async def _drive(self, pending: deque[asyncio.Task[Made] | Rejection]) -> StopRun | None:
        items = self._generator.items(self._ask, self._outlook)
        pull: asyncio.Task[Any] | None = None
        source_stopped: StopRun | None = None
        exhausted = False
        try:
            while True:
                try:
                    if self._fold_what_is_done(pending):
                        return None
                except StopRun as stop:
                    return stop  # the complete prefix ends here
                self._outlook.under_way = len(pending)
                if pull is None and not exhausted and self._has_room(len(pending)):
                    pull = asyncio.create_task(anext(items, None))
                head = pending[0] if pending else None
                waits = [task for task in (pull, head) if isinstance(task, asyncio.Task)]
                if not waits:
                    self.tally.ended = "exhausted" if source_stopped is None else ""
                    return source_stopped
                catching_up_s = CATCHING_UP_S if self._ask.is_catching_up else None
                done, _ = await asyncio.wait(waits, timeout=catching_up_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    self._ask.caught_up()
                if pull is not None and pull.done():
                    try:
                        item = pull.result()
                    except StopRun as stop:
                        source_stopped, item = stop, None
                    pull, exhausted = None, item is None
                    if item is not None:
                        pending.append(item if isinstance(item, Rejection) else self._begin(item))
        finally:
            if pull is not None:
                pull.cancel()
                await asyncio.gather(pull, return_exceptions=True)
            await items.aclose()  # type: ignore[attr-defined]

    def _has_room(self, waiting: int) -> bool:
        return not waiting or (
            self._being_made < ITEMS_A_SLOT * self._concurrency
            and waiting < WAITING_A_SLOT * self._concurrency
            and self._outlook.wanted > 0
        )

    def _begin(self, item: Any) -> asyncio.Task[Made]:
        task = asyncio.ensure_future(self._make(item))
        self._being_made += 1
        task.add_done_callback(self._one_made)
        return task

    async def _make(self, item: Any) -> Made:
        made = await self._generator.make(item, self._ask)
        return made if self._judge is None else await asyncio.gather(*map(self._scored, made))

    async def _scored(self, entry: Candidate | Rejection) -> Candidate | Rejection:
        """The candidate with its judge's scores; what a filter turns away anyway is not shown to the judge."""
        if (
            isinstance(entry, Rejection)
            or self._judge is None
            or not isinstance(apply_filters(self._filters, entry), Record)
        ):
            return entry
        source = entry.evidence or source_text(entry.record)
        return replace(entry, scores=await self._judge.scores(entry.record, source))

    def _one_made(self, _: object) -> None:
        self._being_made -= 1

    # ---------------------------------------------------------------- the fold

    def _fold_what_is_done(self, pending: deque[asyncio.Task[Made] | Rejection]) -> bool:
        """Fold from the head while results are there. Returns whether the run is over."""
        while pending:
            head = pending[0]
            if isinstance(head, Rejection):
                self._reject(head)
            elif not head.done():
                return False
            else:
                self._fold(head.result())
            pending.popleft()
            if self._target is not None and (self.tally.kept >= self._target or self._barren >= GIVE_UP_AFTER):
                self.tally.ended = "target" if self.tally.kept >= self._target else "barren"
                return True
        return False

    def _fold(self, made: Made) -> None:
        """Take one item's candidates in order, until the target is reached."""
        kept_before = self.tally.kept
        for candidate in made:
            if self.tally.kept == self._target:
                break
            if isinstance(candidate, Rejection):
                self._reject(candidate)
            elif candidate.record.id in self._seen:
                self.tally.merged += 1
                self._cover(candidate.record, kept=False)
                self._files.merge(candidate.record.id, candidate.record.source[0])
            else:
                self._take(candidate)
        self._outlook.kept = self.tally.kept
        self._outlook.folded += 1
        self._barren = 0 if self.tally.kept > kept_before else self._barren + 1

    def _take(self, candidate: Candidate) -> None:
        """Filter one candidate, and keep, reject or merge it."""
        record = candidate.record
        self._seen.add(record.id)
        if self._pool is not None:
            candidate = replace(candidate, pool=self._pool, pool_texts=self._pool_texts)
        filtered = apply_filters(self._filters, candidate)
        if not isinstance(filtered, Record):
            self._reject(rejection_of(*filtered, scores=candidate.scores))
            if self._pairs is not None:
                _, filter_, found = filtered
                self._pairs.rejected(candidate, filter_.name, found)
        elif filtered is not record and filtered.id in self._seen:  # mended, it is what another record is already
            self.tally.merged += 1
            self._cover(record, kept=False)
            self._files.merge(filtered.id, filtered.source[0])
        else:
            self._keep(candidate, filtered)

    def _keep(self, candidate: Candidate, record: Record) -> None:
        self._seen.add(record.id)
        if self._pool is not None:
            self._pool.add(record.instruction, record.id)
            self._pool_texts[record.id] = record.instruction
        self._files.keep(record.model_copy(update={"scores": {**record.scores, **candidate.scores}}))
        self.tally.kept += 1
        self.tally.kept_by_task[record.task] += 1
        self._cover(record, kept=True)
        if self._pairs is not None:
            self._pairs.kept(candidate, record)

    def _reject(self, rejection: Rejection) -> None:
        self._files.reject(rejection)
        self.tally.rejected[rejection.filter] += 1
        self.tally.firsts.setdefault(rejection.filter, rejection)
        self._cover(rejection, kept=False)
        if rejection.stage == "reply":
            self.tally.reasons[str(rejection.value)] += 1

    def _cover(self, entry: Record | Rejection, *, kept: bool) -> None:
        if isinstance(self._generator, Covering):
            self._generator.cover(entry, kept=kept)

    # ---------------------------------------------------------------- showing and publishing

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._progress(self.tally)
            due_s = max(PUBLISH_EVERY_S, self._publishing_s / PUBLISHING_SHARE)
            if time.monotonic() - self._published_at > due_s:
                await self._publish()

    async def _publish(self) -> None:
        started = time.monotonic()
        self._files.publish(await self._summarize(self.tally))
        self._published_at = time.monotonic()
        self._publishing_s = self._published_at - started


def rejection_of(
    record: Record, filter_: Filter[Any], found: Found, scores: Mapping[str, float] | None = None
) -> Rejection:
    """A finished record as the rejection that a filter made of it."""
    fields = record.model_dump()
    fields["scores"] |= scores or {}
    return Rejection(
        stage="record",
        filter=filter_.name,
        reason=found.reason,
        value=found.value,
        threshold=None if isinstance(filter_.threshold, str) else filter_.threshold,
        neighbour=found.neighbour,
        **fields,
    )
