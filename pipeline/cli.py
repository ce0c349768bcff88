"""What all commands share: from flags to a run, progress on the way, and an exit code with a sentence at the end.

Only this file prints. Progress and messages go to stderr; stdout holds the summary, for --json.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
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
from pipeline.errors import DONE, SHORT, Interrupted, Offline, StopRun, UsageError
from pipeline.journal import Journal, Totals
from pipeline.llm import Model
from pipeline.models import open_model
from pipeline.run import GIVE_UP_AFTER, Covering, Generator, Line, Tally
from pipeline.run_folder import DerivedFiles, locked, read_config, write_json
from pipeline.settings import GeneratorSettings, parse, resolved, shaping

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
    again = shlex.join(["python", "-m", command, *(sys.argv[1:] if argv is None else argv)])
    try:
        settings, switches = parse(settings_model, argv, command=command, about=about)
        generator = prepare(settings)
        model = open_model(settings)
        return asyncio.run(_Run(settings, switches, generator, model, again).run())
    except StopRun as stop:
        _say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:  # before the run could take the signal itself
        return Interrupted.exit_code


class _Run:
    """One generator over one run folder."""

    def __init__(
        self, settings: GeneratorSettings, switches: Namespace, generator: Generator[Any], model: Model, again: str
    ) -> None:
        self.settings, self.switches, self.generator, self.model, self.again = (
            settings,
            switches,
            generator,
            model,
            again,
        )
        self.folder = settings.out
        self.started = time.monotonic()

    async def run(self) -> int:
        with locked(self.folder), Journal(self.folder / "journal.sqlite") as self.journal:
            await self._settle_config()
            self.ask = Ask(
                self.model,
                self.journal,
                concurrency=self.settings.concurrency,
                max_requests=self.settings.max_requests,
                retry_failed=self.switches.retry_failed,
            )
            await self.ask.start()
            if self.switches.offline:
                self.ask.stop(Offline("--offline: what is stored does not reach further."))
            with DerivedFiles(self.folder) as files:
                progress = Progress(self.settings.target, self.ask, sys.stderr.isatty())
                line = Line(
                    self.generator,
                    self.ask,
                    files,
                    filters=filters.chosen(filters.RECORD, self.settings.filters),
                    target=self.settings.target,
                    concurrency=self.settings.concurrency,
                    summarize=self._summarize,
                    progress=progress,
                )
                try:
                    stopped = await self._interruptible(line)
                finally:
                    await self.model.close()
            progress(line.tally, final=True)
            return await self._report(line.tally, stopped)

    async def _interruptible(self, line: Line) -> StopRun | None:
        """Run the line; the first SIGINT or SIGTERM drains it, the second breaks off."""
        task = asyncio.ensure_future(line.run())

        def on_signal() -> None:
            if isinstance(self.ask.stopped, Interrupted):
                task.cancel()
                return
            in_flight = "nothing is in flight" if self.model.is_local else "finishing what is in flight"
            _say(f"\nStopping: {in_flight}, and everything that arrived is kept. Once more to stop at once.")
            self.ask.stop(Interrupted("Interrupted."))

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            return await task
        except asyncio.CancelledError:
            raise Interrupted(f"Stopped at once. Go on with: {self.again}") from None

    # ---------------------------------------------------------------- config.json

    async def _settle_config(self) -> None:
        """Refuse a folder made with other shaping settings, unless told to go on; then write config.json."""
        now = {"model": self.model.identity, **shaping(self.settings), **self.generator.shaping}
        before = read_config(self.folder)
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
            "faults": counts.faults,
            "think_blocks": counts.think_blocks,
            "sent_ever": totals.attempts,
            "possibly_paid": totals.unknown,
            "prompt_tokens": totals.prompt_tokens,
            "completion_tokens": totals.completion_tokens,
            "seconds": round(time.monotonic() - self.started, 1),
            **(self.generator.coverage() if isinstance(self.generator, Covering) else {}),
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
            f" sent in this run {self.ask.counts.sent}, by this folder ever {summary['sent_ever']};"
            f" {summary['completion_tokens']} tokens written, {summary['seconds']} s."
        )
        _say(f"Records: {self.folder / 'records.jsonl'}; rejections: {self.folder / 'rejected.jsonl'}.")
        if stopped is not None:
            _say(f"{stopped} Go on with: {self.again}")
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
        _say(f"Next: read the records; for more of them, the same command with a larger --target: {self.again}")
        return DONE


def _changes(folder: Path, names: list[str], before: dict[str, Any], now: dict[str, Any], totals: Totals) -> str:
    """What differs from the folder's settings, what going on would cost, and the three ways out."""
    listed = "; ".join(f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}" for name in names)
    return (
        f"{folder} was made with other settings ({listed}). Its {totals.answered} stored replies"
        f" ({totals.completion_tokens} tokens) answer the old ones; what differs would be asked anew."
        " Use another --out, the old settings, or --accept-changes."
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


class Progress:
    """One line of progress: rewritten in a terminal, a new one every 15 seconds in a log."""

    def __init__(self, target: int | None, ask: Ask, terminal: bool) -> None:
        self._target, self._ask, self._terminal = target, ask, terminal
        self._started = self._shown = time.monotonic()

    def __call__(self, tally: Tally, *, final: bool = False) -> None:
        now = time.monotonic()
        if not final and now - self._shown < (0.2 if self._terminal else 15.0):
            return
        self._shown = now
        line = self._line(tally, now - self._started)
        if self._terminal:
            sys.stderr.write(f"\r{line:<100}" + ("\n" if final else ""))
            sys.stderr.flush()
        else:
            _say(line)

    def _line(self, tally: Tally, seconds: float) -> str:
        counts = self._ask.counts
        of = f" of {self._target}" if self._target else ""
        parts = [f"kept {tally.kept}{of}", f"rejected {tally.rejected.total()}", f"sent {counts.sent}"]
        if seconds > 1:
            parts.append(f"{counts.completion_tokens / seconds:.0f} tokens/s")
        if faults := sum(counts.faults.values()):
            parts.append(f"{faults} faults")
        if self._target and 0 < tally.kept < self._target and counts.sent:
            parts.append(f"about {_duration(seconds * (self._target - tally.kept) / tally.kept)} left")
        return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
