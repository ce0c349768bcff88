"""One generator against one journal: its model, its judge, what it may spend, and what it has counted.

    one = OneRun(settings, generator, model, limits)
    await one.open(journal, spent)
    await one.line(files, progress).run()

A command makes one of it, a project one for each of its sources.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import filters
from pipeline.ask import Ask
from pipeline.errors import Interrupted, Offline, StopRun, UsageError
from pipeline.journal import Journal, Totals
from pipeline.judge import Judge
from pipeline.llm import Manner, Model
from pipeline.models import check_judge_is_asked, open_judge
from pipeline.money import Budget, Limits, Plan, Price, plan_of, read_prices
from pipeline.pairs import Pairs
from pipeline.plan_judging import as_counted, plan_judge, plan_pairs
from pipeline.prompts import read_prompts
from pipeline.run import Covering, Generator, Line, Noting, Recalling, Tally
from pipeline.run_folder import DerivedFiles
from pipeline.settings import GeneratorSettings, shaping


@dataclass(frozen=True, slots=True)
class Forecast:
    """All that a run would still send, its price (None: unknown), and how much of it comes after the records."""

    plan: Plan
    price: float | None
    answers: int
    verdicts: int


class OneRun:
    """What a run needs besides its folder; `open` it within the event loop that runs the line."""

    ask: Ask
    journal: Journal

    def __init__(
        self,
        settings: GeneratorSettings,
        generator: Generator[Any],
        model: Model,
        limits: Limits | None = None,
        more_prices: Mapping[str, Price] | None = None,
    ) -> None:
        """`more_prices` are of models that others in the same project spend on."""
        self.settings, self.generator, self.model = settings, generator, model
        own = settings.own_filters.filters if settings.own_filters is not None else ()
        has_pool = "pool_rules" in generator.shaping  # there the filters of instructions have acted by then
        self.filters = filters.of_records(settings.filters, own, has_pool=has_pool)
        self.judge: Judge | None = None
        self.judge_ask: Ask | None = None
        if settings.pairs and not settings.needs_model:
            raise UsageError("--pairs: further answers need a model, and this run asks none; --pairs 0 asks for none.")
        check_judge_is_asked(settings, "--judge or --pairs", asked=settings.judge or settings.pairs is not None)
        self.judge_model = open_judge(settings, model) if settings.judge or settings.pairs else model
        self.pairs: Pairs | None = None
        self.notes: list[str] = list(generator.notes) if isinstance(generator, Noting) else []  # to be said
        self.started = time.monotonic()
        prices = {**(more_prices or {}), **read_prices(settings.prices, model, self.judge_model)}
        self.budget = Budget(model.identity, prices, limits or Limits())

    @property
    def shaping(self) -> dict[str, Any]:
        """Everything that enters a request."""
        return {"model": self.model.identity, **shaping(self.settings), **self.generator.shaping}

    async def plan(self, target: int | None, journal: Journal | None) -> Plan:
        """What the generator would still send; what has an outcome in the journal costs nothing."""
        if journal is None:
            return self.generator.plan(target, lambda request: False)
        ask = Ask(self.model, journal, concurrency=1)
        ask.stop(StopRun("--plan sends nothing."))
        if isinstance(self.generator, Recalling):
            await self.generator.recall(ask)
        return self.generator.plan(target, ask.is_stored)

    def forecast(self, plan: Plan, folder: Path) -> Forecast:
        """A plan of the records with the judge's verdicts and the further answers, each model at its own price.

        `folder` holds the summary of what was done before.
        """
        settings, verdicts, answers = self.settings, plan_of((), ""), plan_of((), "")
        plan = replace(plan, expected=as_counted(plan, folder, settings.target))
        prompts, judges = read_prompts(settings.prompts)["zh" if settings.language == "zh" else "en"], self.judge_model
        if settings.judge:
            verdicts = plan_judge(plan.expected, folder, prompts, judges.identity)
        if settings.pairs:
            answers, more = plan_pairs(plan.expected, settings.pairs, folder, prompts, self.manner)
            verdicts += more
        own = plan + answers
        prices = [
            budget.price_of(part.prompt_tokens, part.completion_tokens)
            for budget, part in ((self.budget, own), (self.budget.beside(judges.identity), verdicts))
            if part.requests
        ]
        price = None if None in prices else sum(filter(None, prices))
        return Forecast(own + verdicts, price, answers.requests, verdicts.requests)

    async def open(
        self, journal: Journal, spent: Totals, *, retry_failed: bool = False, source: str | None = None
    ) -> None:
        """Get ready to ask. `spent` counts against the limits; `source` is the generator's name in a project."""
        self.journal = journal
        if self.settings.pairs is not None:
            prompts, tokens = read_prompts(self.settings.prompts), self.settings.judge_max_tokens
            self.pairs = Pairs(self.settings.pairs, self.filters, prompts, self.manner, tokens)
        self.ask = Ask(
            self.model,
            journal,
            concurrency=self.settings.concurrency,
            budget=self.budget,
            rpm=self.settings.rpm,
            tpm=self.settings.tpm,
            retry_failed=retry_failed,
            source=source,
        )
        await self.ask.start(spent)
        if (self.settings.judge or self.settings.pairs) and self.judge_model.identity == self.model.identity:
            self.notes.append(
                "Note: the judge is the model that wrote the records; it will like them. --judge-model names another."
            )
        if not self.settings.judge:
            return
        self.judge_ask = self.ask.beside(self.judge_model, concurrency=self.settings.concurrency)
        await self.judge_ask.start(spent)
        prompts, extra = read_prompts(self.settings.prompts), self.settings.extra_body
        self.judge = Judge(self.judge_ask, prompts, extra, self.settings.judge_max_tokens)

    @property
    def manner(self) -> Manner:
        """How further answers are asked for."""
        settings, max_tokens = self.settings, self.generator.shaping["max_tokens"]
        return Manner(max_tokens, settings.temperature, settings.top_p, settings.extra_body)

    async def _pair_asks(self) -> tuple[Ask, Ask]:
        """Who is asked for further answers, and who for verdicts, once nothing more is sent for records."""
        settings = self.settings
        answers = self.ask.beside(self.model, concurrency=settings.concurrency, rpm=settings.rpm, tpm=settings.tpm)
        verdicts = answers
        if self.judge_model is not self.model:
            verdicts = self.ask.beside(self.judge_model, concurrency=settings.concurrency)
        for ask in {answers, verdicts}:
            ask.model.refuse(await self.journal.refused_parameters(ask.model.address, ask.model.identity))
        if isinstance(self.ask.stopped, Offline | Interrupted):  # meant for all that may be sent, not for records alone
            answers.stop(self.ask.stopped)
        return answers, verdicts

    def line(self, files: DerivedFiles, progress: Callable[[Tally], None], target: int | None) -> Line:
        return Line(
            self.generator,
            self.ask,
            files,
            filters=self.filters,
            target=target,
            concurrency=self.settings.concurrency,
            summarize=self.summarize,
            progress=progress,
            judge=self.judge,
            pairs=self.pairs,
            pair_asks=self._pair_asks,
        )

    async def close(self) -> None:
        await self.model.close()
        await self.judge_model.close()

    # ---------------------------------------------------------------- summary.json

    async def summarize(self, tally: Tally) -> dict[str, Any]:
        counts, totals = self.ask.counts, await self.journal.totals()
        own = self.generator.coverage() if isinstance(self.generator, Covering) else {}
        return {
            "target": self.settings.target,
            "ended": tally.ended,
            "kept": tally.kept,
            "kept_by_task": dict(tally.kept_by_task),
            "rejected": dict(tally.rejected.most_common()),
            "unreadable": dict(tally.reasons.most_common()),
            "merged": tally.merged,
            "asked": counts.asked,
            "answered": counts.answered,
            "parsed": counts.answered - counts.unreadable,
            "failed": counts.failed,
            "faults": dict(totals.faults),
            "think_blocks": counts.think_blocks,
            "sent_ever": totals.attempts,
            "possibly_paid": totals.unknown,
            "prompt_tokens": totals.prompt_tokens,
            "completion_tokens": totals.completion_tokens,
            "cost": self.budget.cost,
            "cost_at_most": self.budget.cost_at_most,
            "cost_per_kept": self.budget.cost_per(tally.kept),
            "judge": self.judge_counts(),
            "pairs": self.pairs.counts() if self.pairs is not None else None,
            "seconds": round(time.monotonic() - self.started, 1),
            **own,
        }

    def judge_counts(self) -> dict[str, Any] | None:
        """How many verdicts were asked for, sent for, and could be read; None without a judge."""
        if self.judge is None or self.judge_ask is None:
            return None
        counts = self.judge_ask.counts
        return {
            "model": self.judge_model.identity,
            "asked": counts.asked,
            "sent": counts.sent,
            "readable": self.judge.readable,
            "unreadable": self.judge.unreadable,
        }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What shapes a request otherwise than before, each with both values; "" where nothing does."""
    changed = [name for name in (*now, *before) if now.get(name) != before.get(name)]
    return "; ".join(_change(name, before.get(name), now.get(name)) for name in dict.fromkeys(changed))


def _change(name: str, before: object, now: object) -> str:
    """One changed setting; of a table only the rows that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        rows = [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]
        before, now = ({key: table[key] for key in rows if key in table} for table in (before, now))
    return f"{name}: {_short(before)} -> {_short(now)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
