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

from pipeline.ask import Ask
from pipeline.backends.endpoint import without_secrets
from pipeline.errors import (
    DONE,
    SHORT,
    BudgetReached,
    Interrupted,
    Offline,
    StopRun,
    StorageError,
    UsageError,
    storage_failures,
)
from pipeline.funnel import likeliest_cause, what_next, why_short
from pipeline.instruction_filters import INSTRUCTION
from pipeline.interrupt import interruptible
from pipeline.journal import Journal, Totals
from pipeline.judge import USUAL_VERDICT_TOKENS, room_to_think
from pipeline.llm import Model
from pipeline.models import open_model
from pipeline.money import usd
from pipeline.one_run import OneRun, changes
from pipeline.pairs import Pairs
from pipeline.run import Generator, Tally
from pipeline.run_folder import DerivedFiles, check_maker, locked, write_json
from pipeline.settings import (
    AskingSettings,
    Checked,
    GeneratorSettings,
    add_switches,
    checked,
    flags_of,
    parse,
    resolved,
)
from pipeline.text import for_terminal

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
        with storage_failures():
            return asyncio.run(run.plan() if switches.plan else run.run())
    except StopRun as stop:
        say(f"{stop} Go on with: {again}" if isinstance(stop, StorageError | Interrupted) else str(stop))
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
        with storage_failures():
            summary, code = work(checked(settings_model, arguments), Switches(say, again, **given))
    except StopRun as stop:
        say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        say("Interrupted; what was there before is as it was.")
        return Interrupted.exit_code
    if arguments.json:
        show_json(summary)
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
        self.settings, self.switches, self.generator, self.again = settings, switches, generator, again
        self.folder = settings.out
        self.one = OneRun(settings, generator, model, settings.limits)

    async def run(self) -> int:
        with locked(self.folder), Journal(self.folder / "journal.sqlite") as self.journal:
            await self._settle_config()
            await self.one.open(self.journal, await self.journal.totals(), retry_failed=self.switches.retry_failed)
            for note in self.one.notes:
                say(note)
            if self.switches.offline:
                self.one.ask.stop(Offline("--offline: what is stored does not reach further."))
            with DerivedFiles(self.folder, preferences=self.one.pairs is not None) as files:
                progress = Progress(self.settings.target, self.one.ask, sys.stderr.isatty(), self.one.pairs)
                line = self.one.line(files, progress, self.settings.target)
                try:
                    stopped = await interruptible(line.run(), self.one.ask, say)
                finally:
                    await self.one.close()
            progress(line.tally, final=True)
            return await self._report(line.tally, stopped)

    async def plan(self) -> int:
        """Say what a run would send, and send nothing; a folder that is not there yet is not made."""
        check_maker(self.folder, self.generator.name)
        with contextlib.ExitStack() as open_ones:
            journal: Journal | None = None
            if (self.folder / "journal.sqlite").exists():
                open_ones.enter_context(locked(self.folder))
                journal = open_ones.enter_context(Journal(self.folder / "journal.sqlite"))
                self.one.budget.start(await journal.totals())
            plan = await self.one.plan(self.settings.target, journal)
        forecast = self.one.forecast(plan, self.folder)
        plan, price = forecast.plan, forecast.price
        over = self.one.budget.exceeded_by(plan, price)
        found = dataclasses.asdict(plan) | {"cost": price, "spent": self.one.budget.cost, "stopped_by": over}
        found |= {"answers": forecast.answers, "verdicts": forecast.verdicts}
        if self.switches.json:
            show_json(found)
        say(f"Would send {plan.priced(price)}. Spent so far: {usd(self.one.budget.cost)}.")
        for note in self.one.notes:
            say(note)
        say(f"Assumed: {plan.assumes}")
        if forecast.answers or forecast.verdicts:
            say(
                f"Among them {forecast.answers} further answers and {forecast.verdicts} verdicts of"
                f" {USUAL_VERDICT_TOKENS} tokens, for {plan.expected.records:.0f} records; what the judge turns away on"
                " the way there comes on top, and what summary.json counts as done is taken off."
            )
        for sentence in over:
            say(f"Warning: {sentence}")
        say(f"Nothing was sent. To do it: {self.again.replace(' --plan', '')}")
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
        now = self.one.shaping
        before = check_maker(self.folder, self.generator.name)
        if before is not None and not self.switches.accept_changes:
            changed = changes(before["shaping"], now)
            if changed:
                raise UsageError(_refusal(self.folder, changed, await self.journal.totals()))
        versions = {name: importlib.metadata.version(name) for name in ("instructloop", "openai", "pydantic")}
        config = {
            "generator": self.generator.name,
            "shaping": now,
            "settings": resolved(self.settings),
            "versions": versions,
        }
        if config != before:
            write_json(self.folder / "config.json", config)

    # ---------------------------------------------------------------- the last lines

    async def _report(self, tally: Tally, stopped: StopRun | None) -> int:
        summary = await self.one.summarize(tally)
        if self.switches.json:
            show_json(summary)
        kinds = ", ".join(f"{n} {task}" for task, n in tally.kept_by_task.most_common())
        say(f"Kept {tally.kept}{f' ({kinds})' if kinds else ''}; rejected {tally.rejected.total()}.")
        for name, number in tally.rejected.most_common():
            say(f"  {number:6} {name}")
        if "missing_package" in tally.firsts:  # a count alone is easily overlooked
            say(f"Not read for want of a package: {tally.firsts['missing_package'].reason}, then run this again.")
        say(
            f"Asked {summary['asked']}, answered {summary['answered']}, parsed {summary['parsed']};"
            f" sent in this run {self.one.ask.sent_in_run}, by this folder ever {summary['sent_ever']};"
            f" {summary['completion_tokens']} tokens written, {summary['seconds']} s."
        )
        say(self._spent(summary))
        if summary["judge"] is not None:
            say(judge_line(summary["judge"]))
        if self.one.pairs is not None:
            say(_pairs_line(self.one.pairs))
        files = f"Records: {self.folder / 'records.jsonl'}; rejections: {self.folder / 'rejected.jsonl'}"
        say(files + (f"; pairs: {self.folder / 'preferences.jsonl'}." if self.one.pairs is not None else "."))
        if stopped is not None:
            how = {BudgetReached: "With a higher limit, go on with", Offline: "Without --offline, go on with"}
            again = self.again.replace(" --offline", "") if isinstance(stopped, Offline) else self.again
            say(f"{stopped} {how.get(type(stopped), 'Go on with')}: {again}")
            return stopped.exit_code
        short = self.settings.target is not None and tally.kept < self.settings.target
        if short or not tally.kept:
            self._say_why_short(tally)
            return SHORT
        if summary["failed"]:
            say(f"Next: {summary['failed']} requests failed for good; ask them again with: {self.again} --retry-failed")
            return SHORT
        more = "; a larger --target goes on from here" if self.settings.target is not None else ""
        say(f"Next: read the records{more}. This was: {self.again}")
        return DONE

    def _say_why_short(self, tally: Tally) -> None:
        """Which end it came to, what most likely did it, and what to do next."""
        what = "Short of the target" if tally.kept else "Nothing was kept"
        say(f"{what}: {why_short(tally, self.generator.at_its_end)}.")
        switches = {f.name for f in self.one.filters} | {f.name for f in INSTRUCTION}
        say(likeliest_cause(tally, switches, self.settings.target, self.generator.name))
        read = f"read {self.folder / 'rejected.jsonl'}; then " * bool(tally.rejected)
        say(f"Next: {read}{what_next(tally, switches, self.generator.name)}. This was: {self.again}")


def judge_line(judge: dict[str, Any]) -> str:
    """What became of the verdicts; a judge that nobody could read has turned nothing away, and must not look well."""
    readable, unreadable = judge["readable"], judge["unreadable"]
    line = f"Judged {readable + unreadable} records, {judge['sent']} requests sent now; {unreadable} gave no verdict"
    if not unreadable:
        return f"{line}."
    return f"{line} and passed unjudged{room_to_think(judge)}."


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


def _refusal(folder: Path, changed: str, totals: Totals) -> str:
    """What differs from the folder's settings, what going on would cost, and the three ways out."""
    return (
        f"{folder} was made with other settings ({changed}). Its {totals.answered} stored replies"
        f" ({totals.completion_tokens} tokens) answer the old ones; what differs would be asked anew."
        " Use another --out, the old settings, or --accept-changes."
    )


def show(text: str) -> None:
    """What was asked for, to stdout."""
    print(text, end="")


class Progress:
    """One line of progress: rewritten in a terminal, a new one every 15 seconds in a log."""

    def __init__(self, target: int | None, ask: Ask, terminal: bool, pairs: Pairs | None = None) -> None:
        self._target, self._ask, self._terminal, self._pairs = target, ask, terminal, pairs
        self._started = self._shown = time.monotonic()

    def __call__(self, tally: Tally, *, final: bool = False) -> None:
        now = time.monotonic()
        if not final and now - self._shown < (0.2 if self._terminal else 15.0):
            return
        self._shown = now
        line = self._line(tally, now - self._started, is_over=final or tally.ended != "")
        if self._terminal:
            say(f"\r{line:<100}", end="\n" if final else "")
        else:
            say(line)

    def _line(self, tally: Tally, seconds: float, *, is_over: bool) -> str:
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
        if self._target and 0 < tally.kept < self._target and counts.sent and not is_over:
            parts.append(f"about {_duration(seconds * (self._target - tally.kept) / tally.kept)} left")
        return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def show_json(value: dict[str, Any]) -> None:
    """To stdout, on one line; what no UTF-8 holds, and what a terminal would obey, stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    print(re.sub("[\x7f-\x9f\ud800-\udfff]", lambda odd: f"\\u{ord(odd.group()):04x}", text))


def say(text: str, end: str = "\n") -> None:
    """To stderr; where its reader is gone (a parent that died), the run goes on without it."""
    with contextlib.suppress(OSError):
        rewritten = "\r" * text.startswith("\r")  # a line of progress in a terminal
        print(rewritten + for_terminal(text.removeprefix("\r")), file=sys.stderr, end=end, flush=True)
