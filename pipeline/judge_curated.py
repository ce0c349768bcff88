"""A judge for records that were made before: what `pipeline.curate --judge` does, in a journal of the curated folder.

It asks like a generator does: each verdict is stored before it is read, limits hold, and the same command goes on
where it was stopped. Of the record's ground the judge sees what the record itself names: its quotes, its facts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from pipeline.ask import Ask
from pipeline.errors import BudgetReached, Offline, StopRun
from pipeline.in_order import in_order
from pipeline.interrupt import interruptible
from pipeline.journal import Journal
from pipeline.judge import USUAL_VERDICT_TOKENS, Judge, judge_request, prompts_for, source_text
from pipeline.llm import Model
from pipeline.models import open_judge_alone
from pipeline.money import Budget, plan_of, read_prices, usd
from pipeline.prompts import read_prompts
from pipeline.records import Record
from pipeline.settings import AskingSettings

Say = Callable[[str], None]
_SHOW_EVERY = 200  # records


class Judging:
    """One round of judging; `summary` says what it asked and cost. Raises UsageError where there is no such model."""

    def __init__(
        self, settings: AskingSettings, folder: Path, *, again: str, say: Say, offline: bool, retry_failed: bool
    ) -> None:
        self._settings, self._folder, self._again, self._say = settings, folder, again, say
        self._offline, self._retry_failed = offline, retry_failed
        self._model: Model = open_judge_alone(settings)
        if settings.judge_model is None:
            say("Note: the bundled model judges, and it cannot (docs/quality.md). --judge-model names another.")
        self._budget = Budget(self._model.identity, read_prices(settings.prices, self._model), settings.limits)
        self._prompts = read_prompts(settings.prompts)
        self.missing = 0  # records whose verdict is not stored, under --offline
        self.summary: dict[str, Any] = {}

    def plan(self, records: Iterable[Record]) -> dict[str, Any]:
        """What judging these would send and cost; nothing is sent, and nothing written."""
        return asyncio.run(self._plan(records))

    async def _plan(self, records: Iterable[Record]) -> dict[str, Any]:
        requests = (self._request(record) for record in records)
        with ExitStack() as open_ones:
            if (self._folder / "journal.sqlite").exists():
                journal = open_ones.enter_context(Journal(self._folder / "journal.sqlite"))
                self._budget.start(await journal.totals())
                ask = Ask(self._model, journal, concurrency=1)
                requests = (request for request in requests if not ask.is_stored(request))
            plan = plan_of(((request, USUAL_VERDICT_TOKENS) for request in requests), "")
        price = self._budget.price_of(plan.prompt_tokens, plan.completion_tokens)
        self._say(f"Would send {plan.priced(price)}. Spent so far: {usd(self._budget.cost)}.")
        self._say(f"Assumed: a verdict takes {USUAL_VERDICT_TOKENS} tokens. Nothing was sent, and nothing written.")
        return {
            "requests": plan.requests, "prompt_tokens": plan.prompt_tokens, "completion_tokens": plan.completion_tokens,
            "cost": price, "spent": self._budget.cost,
        }  # fmt: skip

    def score(self, records: Iterable[tuple[int, Record]], put: Callable[[int, dict[str, float]], None]) -> None:
        """Judge the records, by place; `put` is handed each one's scores, none where there is no verdict.

        Raises the StopRun that ended it early; what was paid for is stored. --offline takes what is stored.
        """
        asyncio.run(self._score(records, put))

    async def _score(self, records: Iterable[tuple[int, Record]], put: Callable[[int, dict[str, float]], None]) -> None:
        with Journal(self._folder / "journal.sqlite") as journal:
            settings = self._settings
            ask = Ask(
                self._model, journal, concurrency=settings.concurrency, budget=self._budget, rpm=settings.rpm,
                tpm=settings.tpm, retry_failed=self._retry_failed,
            )  # fmt: skip
            await ask.start()
            if self._offline:
                ask.stop(Offline("--offline: what is stored does not reach further."))
            judge = Judge(ask, self._prompts, settings.extra_body, settings.judge_max_tokens)
            try:
                await interruptible(self._judge_all(judge, ask, records, put), ask, self._say)
            except StopRun as stop:
                how = "With a higher limit, go on with" if isinstance(stop, BudgetReached) else "Go on with"
                raise type(stop)(
                    f"{stop} Nothing was curated. {how}: {self._again}"
                    " (or with --offline, by the verdicts that are stored)."
                ) from stop
            finally:
                ask.stop(StopRun("the run is over"))
                await ask.drain()
                await self._model.close()
            totals = await journal.totals()
            self.summary = {
                "model": self._model.identity, "asked": ask.counts.asked, "sent": ask.counts.sent,
                "readable": judge.readable, "unreadable": judge.unreadable, "missing": self.missing,
                "sent_ever": totals.attempts, "cost": self._budget.cost, "cost_at_most": self._budget.cost_at_most,
            }  # fmt: skip

    async def _judge_all(
        self,
        judge: Judge,
        ask: Ask,
        records: Iterable[tuple[int, Record]],
        put: Callable[[int, dict[str, float]], None],
    ) -> None:
        async def scored(entry: tuple[int, Record]) -> tuple[int, dict[str, float]]:
            place, record = entry
            if self._offline and not ask.is_stored(self._request(record)):
                self.missing += 1
                return place, {}
            return place, await judge.scores(record, source_text(record))

        done = 0
        async with aclosing(in_order(records, scored, at_once=2 * self._settings.concurrency)) as results:
            async for place, scores in results:
                put(place, scores)
                done += 1
                if done % _SHOW_EVERY == 0 and ask.counts.sent:
                    self._say(f"           (judged: {done}; {ask.counts.sent} asked now, {usd(self._budget.cost)})")

    def _request(self, record: Record) -> Any:
        settings, prompts = self._settings, prompts_for(record, self._prompts)
        return judge_request(record, source_text(record), prompts, settings.extra_body, settings.judge_max_tokens)
