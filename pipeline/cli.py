"""What all commands share: from flags to a run, progress on the way, and an exit code with a sentence at the end.

Only this file prints. Progress and messages go to stderr; stdout holds the summary, for --json.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import json
import re
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import filters
from pipeline.ask import Ask
from pipeline.asking import budget_of, interruptible, read_prompts, usd
from pipeline.backends.endpoint import without_secrets
from pipeline.errors import DONE, SHORT, BudgetReached, Interrupted, Offline, StopRun, StorageError, UsageError
from pipeline.journal import Journal, Totals
from pipeline.judge import USUAL_VERDICT_TOKENS, Judge
from pipeline.later import plan_judge, plan_pairs
from pipeline.llm import Model, Request
from pipeline.models import open_judge, open_model
from pipeline.money import Plan, plan_of
from pipeline.pairs import Manner, Pairs
from pipeline.run import GIVE_UP_AFTER, Covering, Generator, Line, Tally
from pipeline.run_folder import DerivedFiles, locked, read_config, write_json
from pipeline.settings import (
    AskingSettings,
    Checked,
    GeneratorSettings,
    add_switches,
    checked,
    flags_of,
    parse,
    resolved,
    shaping,
)

Settings = TypeVar("Settings", bound=GeneratorSettings)


def run_command(
    settings_model: type[Settings],
    argv: Sequence[str] | None,
    *,
    command: str,
    about: str,
    prepare: Callable[[Settings], Generator[Any]],
) -> int:
    """Parse, run, report; returns the exit code. `prepare` checks the sources and builds the generator."""
    again = _without_secrets(["python", "-m", command, *(sys.argv[1:] if argv is None else argv)])
    try:
        settings, switches = parse(settings_model, argv, command=command, about=about)
        if settings.out == Path():
            raise UsageError("--out: no folder is named.")
        generator = prepare(settings)
        model = open_model(settings)
        run = _Run(settings, switches, generator, model, again)
        return asyncio.run(run.plan() if switches.plan else run.run())
    except StopRun as stop:
        _say(f"{stop} Go on with: {again}" if isinstance(stop, StorageError | Interrupted) else str(stop))
        return stop.exit_code
    except KeyboardInterrupt:  # before the run could take the signal itself
        return Interrupted.exit_code


def run_deriving(
    settings_model: type[Checked],
    argv: Sequence[str] | None,
    *,
    command: str,
    about: str,
    work: Callable[[Checked, Switches], tuple[dict[str, Any], int]],
) -> int:
    """Parse, work, report, for commands that derive and hardly ask; returns the exit code.

    `work` is given the settings and the switches; it returns the summary and the exit code.
    """
    again = _without_secrets(["python", "-m", command, *(sys.argv[1:] if argv is None else argv)])
    try:
        parser = flags_of(settings_model, command=command, about=about)
        if issubclass(settings_model, AskingSettings):
            add_switches(parser)
        else:
            parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
        arguments = parser.parse_args(argv)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        given = {name: getattr(arguments, name, False) for name in ("offline", "retry_failed", "plan")}
        summary, code = work(checked(settings_model, arguments), Switches(_say, again, **given))
    except StopRun as stop:
        _say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        _say("Interrupted; what was there before is as it was.")
        return Interrupted.exit_code
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False))
    return code


@dataclasses.dataclass(frozen=True, slots=True)
class Switches:
    """What a deriving command was told beside its settings; `say` says a line, `again` is the command to go on with."""

    say: Callable[[str], None]
    again: str
    offline: bool
    retry_failed: bool
    plan: bool


class _Run:
    """One generator over one run folder."""

    def __init__(
        self, settings: GeneratorSettings, switches: Namespace, generator: Generator[Any], model: Model, again: str
    ) -> None:
        self.settings, self.switches, self.generator, self.model = settings, switches, generator, model
        self.again = again
        self.folder = settings.out
        self.judge: Judge | None = None
        self.judge_ask: Ask | None = None
        self.pairs: Pairs | None = None
        self.started = time.monotonic()
        if settings.pairs and not settings.needs_model:
            raise UsageError("--pairs: further answers need a model, and this run asks none; --pairs 0 asks for none.")
        self.judge_model = open_judge(settings, model) if settings.judge or settings.pairs else model
        self.budget = budget_of(settings, model, self.judge_model)

    async def run(self) -> int:
        with locked(self.folder), Journal(self.folder / "journal.sqlite") as self.journal:
            await self._settle_config()
            self.ask = Ask(
                self.model,
                self.journal,
                concurrency=self.settings.concurrency,
                budget=self.budget,
                rpm=self.settings.rpm,
                tpm=self.settings.tpm,
                retry_failed=self.switches.retry_failed,
            )
            await self.ask.start()
            judge = await self._open_judge()
            on = filters.chosen(filters.RECORD, self.settings.filters)
            self.pairs = self._open_pairs(on)
            if self.switches.offline:
                self.ask.stop(Offline("--offline: what is stored does not reach further."))
            with DerivedFiles(self.folder, preferences=self.pairs is not None) as files:
                progress = Progress(self.settings.target, self.ask, self.pairs, sys.stderr.isatty())
                line = Line(
                    self.generator,
                    self.ask,
                    files,
                    filters=on,
                    target=self.settings.target,
                    concurrency=self.settings.concurrency,
                    summarize=self._summarize,
                    progress=progress,
                    judge=judge,
                    pairs=self.pairs,
                    pair_asks=self._pair_asks,
                )
                try:
                    stopped = await interruptible(line.run(), self.ask, _say)
                finally:
                    await self.model.close()
                    await self.judge_model.close()
            progress(line.tally, final=True)
            return await self._report(line.tally, stopped)

    async def _open_judge(self) -> Judge | None:
        """The judge, if one is wanted, asked beside the generator."""
        if (self.settings.judge or self.settings.pairs) and self.judge_model.identity == self.model.identity:
            _say("Note: the judge is the model that wrote the records; it will like them. --judge-model names another.")
        if not self.settings.judge:
            return None
        self.judge_ask = self.ask.beside(self.judge_model, concurrency=self.settings.concurrency)
        await self.judge_ask.start()
        self.judge = Judge(self.judge_ask, read_prompts(self.settings.prompts), self.settings.extra_body)
        return self.judge

    def _open_pairs(self, on: list[filters.Filter[filters.Candidate]]) -> Pairs | None:
        """What makes preference pairs, if they are wanted."""
        settings = self.settings
        if settings.pairs is None:
            return None
        return Pairs(settings.pairs, on, read_prompts(settings.prompts), self._manner())

    def _manner(self) -> Manner:
        settings, max_tokens = self.settings, self.generator.shaping["max_tokens"]
        return Manner(max_tokens, settings.temperature, settings.top_p, settings.extra_body)

    async def _pair_asks(self) -> tuple[Ask, Ask]:
        """Who is asked for further answers, and who for verdicts, once nothing more is sent for records."""
        settings = self.settings
        answers = self.ask.beside(self.model, concurrency=settings.concurrency, rpm=settings.rpm, tpm=settings.tpm)
        await answers.start()
        verdicts = answers
        if self.judge_model is not self.model:
            verdicts = self.ask.beside(self.judge_model, concurrency=settings.concurrency)
            await verdicts.start()
        if isinstance(self.ask.stopped, Offline | Interrupted):  # meant for all that may be sent, not for records alone
            answers.stop(self.ask.stopped)
        return answers, verdicts

    def _plan_later(self, plan: Plan) -> tuple[Plan, Plan]:
        """What the judge would be asked, and what further answers."""
        settings, verdicts, answers = self.settings, plan_of((), ""), plan_of((), "")
        prompts = read_prompts(settings.prompts)["zh" if settings.language == "zh" else "en"]
        if settings.judge:
            verdicts = plan_judge(plan.expected, self.folder, prompts)
        if settings.pairs:
            answers, more = plan_pairs(plan.expected, settings.pairs, self.folder, prompts, self._manner())
            verdicts += more
        return verdicts, answers

    async def plan(self) -> int:
        """Say what a run would send, and send nothing; a folder that is not there yet is not made."""
        with contextlib.ExitStack() as open_ones:
            stored: Callable[[Request], bool] = lambda request: False  # noqa: E731
            if (self.folder / "journal.sqlite").exists():
                open_ones.enter_context(locked(self.folder))
                journal = open_ones.enter_context(Journal(self.folder / "journal.sqlite"))
                self.budget.start(await journal.totals())
                stored = Ask(self.model, journal, concurrency=1).is_stored
            plan = self.generator.plan(self.settings.target, stored)
        verdicts, answers = self._plan_later(plan)
        own, whole = plan + answers, plan + answers + verdicts
        prices = [self.budget.price_of(own.prompt_tokens, own.completion_tokens)]
        if verdicts.requests:
            prices.append(
                self.budget.beside(self.judge_model.identity).price_of(
                    verdicts.prompt_tokens, verdicts.completion_tokens
                )
            )
        price = None if None in prices else sum(filter(None, prices))
        found = dataclasses.asdict(whole) | {"cost": price, "spent": self.budget.cost}
        found |= {"answers": answers.requests, "verdicts": verdicts.requests}
        if self.switches.json:
            print(json.dumps(found, ensure_ascii=False))
        _say(
            f"Would send about {whole.requests} requests: {whole.prompt_tokens} tokens to read,"
            f" {whole.completion_tokens} to write, {usd(price)}. Spent so far: {usd(self.budget.cost)}."
        )
        _say(f"Assumed: {plan.assumes}")
        if answers.requests or verdicts.requests:
            _say(
                f"Among them {answers.requests} further answers and {verdicts.requests} verdicts of"
                f" {USUAL_VERDICT_TOKENS} tokens, for {plan.expected.records:.0f} records; what the judge turns away on"
                " the way there comes on top, and what summary.json counts as done is taken off."
            )
        _say(f"Nothing was sent. To do it: {self.again.replace(' --plan', '')}")
        return DONE

    def _spent(self, summary: dict[str, Any]) -> str:
        unsure = f"; {summary['possibly_paid']} calls brought no reply and were possibly paid" * bool(
            summary["possibly_paid"]
        )
        if summary["cost"] is None:
            return f"Spent by this folder: {usd(None)}{unsure}."
        each = summary["cost_per_kept"]
        rate = f", {each:.6f} a kept record" if each is not None else ""
        return f"Spent by this folder: {usd(summary['cost'])}{rate}; at most {usd(summary['cost_at_most'])}{unsure}."

    # ---------------------------------------------------------------- config.json

    async def _settle_config(self) -> None:
        """Refuse a folder made with other shaping settings, unless told to go on; then write config.json."""
        now = {"model": self.model.identity, **shaping(self.settings), **self.generator.shaping}
        before = read_config(self.folder)
        if before is not None and before.get("generator") != self.generator.name:
            raise UsageError(f"{self.folder} was made by {before.get('generator')}; use another --out.")
        if before is not None and not self.switches.accept_changes:
            changed = [name for name in (*now, *before["shaping"]) if now.get(name) != before["shaping"].get(name)]
            if changed:
                raise UsageError(
                    _changes(
                        self.folder, list(dict.fromkeys(changed)), before["shaping"], now, await self.journal.totals()
                    )
                )
        versions = {name: importlib.metadata.version(name) for name in ("instructloop", "openai", "pydantic")}
        config = {
            "generator": self.generator.name,
            "shaping": now,
            "settings": resolved(self.settings),
            "versions": versions,
        }
        if config != before:
            write_json(self.folder / "config.json", config)

    # ---------------------------------------------------------------- summary.json and the last lines

    async def _summarize(self, tally: Tally) -> dict[str, Any]:
        counts, totals = self.ask.counts, await self.journal.totals()
        own = self.generator.coverage() if isinstance(self.generator, Covering) else {}
        return {
            "target": self.settings.target,
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
            "judge": self._judge_counts(),
            "pairs": self.pairs.counts() if self.pairs is not None else None,
            "seconds": round(time.monotonic() - self.started, 1),
            **own,
        }

    def _judge_counts(self) -> dict[str, Any] | None:
        if self.judge is None or self.judge_ask is None:
            return None
        counts = self.judge_ask.counts
        return {
            "model": self.judge_model.identity,
            "asked": counts.asked,
            "sent": counts.sent,
            "unreadable": self.judge.unreadable,
        }

    async def _report(self, tally: Tally, stopped: StopRun | None) -> int:
        summary = await self._summarize(tally)
        if self.switches.json:
            print(json.dumps(summary, ensure_ascii=False))
        kinds = ", ".join(f"{n} {task}" for task, n in tally.kept_by_task.most_common())
        _say(f"Kept {tally.kept}{f' ({kinds})' if kinds else ''}; rejected {tally.rejected.total()}.")
        for name, number in tally.rejected.most_common():
            _say(f"  {number:6} {name}")
        _say(
            f"Asked {summary['asked']}, answered {summary['answered']}, parsed {summary['parsed']};"
            f" sent in this run {self.ask.sent_in_run}, by this folder ever {summary['sent_ever']};"
            f" {summary['completion_tokens']} tokens written, {summary['seconds']} s."
        )
        _say(self._spent(summary))
        if self.pairs is not None:
            _say(_pairs_line(self.pairs))
        files = f"Records: {self.folder / 'records.jsonl'}; rejections: {self.folder / 'rejected.jsonl'}"
        _say(files + (f"; pairs: {self.folder / 'preferences.jsonl'}." if self.pairs is not None else "."))
        if stopped is not None:
            how = {BudgetReached: "With a higher limit, go on with", Offline: "Without --offline, go on with"}
            _say(f"{stopped} {how.get(type(stopped), 'Go on with')}: {self.again}")
            return stopped.exit_code
        if self.settings.target is not None and tally.kept < self.settings.target:
            _say(f"Short of the target: all there is, or {GIVE_UP_AFTER} items in a row, gave no more.")
            _say(
                f"Next: read {self.folder / 'rejected.jsonl'}; change --filters, --seed or the model; then {self.again}"
            )
            return SHORT
        if not tally.kept:
            _say(f"Nothing was kept; {self.folder / 'rejected.jsonl'} says why. Then again: {self.again}")
            return SHORT
        if summary["failed"]:
            _say(
                f"Next: {summary['failed']} requests failed for good; ask them again with: {self.again} --retry-failed"
            )
            return SHORT
        more = "; a larger --target goes on from here" if self.settings.target is not None else ""
        _say(f"Next: read the records{more}. This was: {self.again}")
        return DONE


def _pairs_line(pairs: Pairs) -> str:
    counts = pairs.counts()
    how = ", ".join(f"{number} {name}" for name, number in counts["by"].items() if number)
    none = ", ".join(f"{number} {name}" for name, number in counts["none"].items() if number)
    return (
        f"Pairs {counts['written']}{f' ({how})' if how else ''} of {counts['records']} records and {counts['answers']}"
        f" further answers{f'; no pair: {none}' if none else ''}."
    )


def _without_secrets(command: list[str]) -> str:
    """The command to go on with; passwords and queries in addresses are taken out, for it may end up in a log."""
    return shlex.join(re.sub(r"\w+://\S+", lambda url: without_secrets(url.group()), part) for part in command)


def _changes(folder: Path, names: list[str], before: dict[str, Any], now: dict[str, Any], totals: Totals) -> str:
    """What differs from the folder's settings, what going on would cost, and the three ways out."""
    listed = "; ".join(_change(name, before.get(name), now.get(name)) for name in names)
    return (
        f"{folder} was made with other settings ({listed}). Its {totals.answered} stored replies"
        f" ({totals.completion_tokens} tokens) answer the old ones; what differs would be asked anew."
        " Use another --out, the old settings, or --accept-changes."
    )


def _change(name: str, before: object, now: object) -> str:
    """One changed setting; of a table only the rows that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        rows = [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]
        before, now = ({key: table[key] for key in rows if key in table} for table in (before, now))
    return f"{name}: {_short(before)} -> {_short(now)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


class Progress:
    """One line of progress: rewritten in a terminal, a new one every 15 seconds in a log."""

    def __init__(self, target: int | None, ask: Ask, pairs: Pairs | None, terminal: bool) -> None:
        self._target, self._ask, self._pairs, self._terminal = target, ask, pairs, terminal
        self._started = self._shown = time.monotonic()

    def __call__(self, tally: Tally, *, final: bool = False) -> None:
        now = time.monotonic()
        if not final and now - self._shown < (0.2 if self._terminal else 15.0):
            return
        self._shown = now
        line = self._line(tally, now - self._started)
        if self._terminal:
            _say(f"\r{line:<100}", end="\n" if final else "")
        else:
            _say(line)

    def _line(self, tally: Tally, seconds: float) -> str:
        counts = self._ask.counts
        of = f" of {self._target}" if self._target else ""
        parts = [f"kept {tally.kept}{of}", f"rejected {tally.rejected.total()}", f"sent {self._ask.sent_in_run}"]
        if self._pairs is not None and self._pairs.records:
            parts.append(f"pairs of {self._pairs.records} records")
        if seconds > 1:
            parts.append(f"{counts.completion_tokens / seconds:.0f} tokens/s")
        if faults := sum(counts.faults.values()):
            parts.append(f"{faults} faults")
        if cost := self._ask.budget.cost:
            parts.append(usd(cost) + (f", {cost / tally.kept:.5f} a record" if tally.kept else ""))
        if self._target and 0 < tally.kept < self._target and counts.sent:
            parts.append(f"about {_duration(seconds * (self._target - tally.kept) / tally.kept)} left")
        return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _say(text: str, end: str = "\n") -> None:
    """To stderr; where its reader is gone (a parent that died), the run goes on without it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, end=end, flush=True)
