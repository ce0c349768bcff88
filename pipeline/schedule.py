"""The command that regenerates a project on a schedule, where no other scheduler does, or together with one.

    python -m pipeline.schedule regenerate.toml                  a daemon: runs every tick until it is stopped
    python -m pipeline.schedule regenerate.toml --once           runs what is due now, and ends; cron calls this
    python -m pipeline.schedule regenerate.toml --plan           says when the next ticks come; runs nothing
    python -m pipeline.schedule regenerate.toml --print systemd  a unit that calls --once: cron, systemd, k8s, github

A tick runs `python -m pipeline.regenerate FILE --json` in a process of its own. What became of every tick is in
outputs/<project>/schedule/, unique by (schedule, tick): of any number of daemons and crons one starts it, once. The
[schedule] table of the project file says the rest (scheduling/timing.py; docs/schedule.md).

SIGTERM and SIGINT stop it in order, the run included; one that was stopped or killed goes on with the same tick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline import crash
from pipeline.cli import Switches, run_deriving, show
from pipeline.errors import (
    DONE,
    REFUSED,
    SHORT,
    BudgetReached,
    EndpointError,
    FolderBusy,
    Interrupted,
    StopRun,
    StorageError,
    UsageError,
)
from pipeline.run_folder import locked
from pipeline.scheduling.hooks import tell
from pipeline.scheduling.process import Clock, Regenerate, Runner, SystemClock
from pipeline.scheduling.ticks import Tick, Ticks
from pipeline.scheduling.timing import NO_SCHEDULE, Hook, Schedule, Times, decide
from pipeline.scheduling.units import unit
from pipeline.settings import nearest, setting, toml_of
from pipeline.validated import validated

BUSY_S = 30.0  # between two looks at a project that another process holds
SHOWN_TICKS = 5

# What the exit codes of a run mean for a schedule.
MEANING = {
    DONE: "done",
    StopRun.exit_code: "a bug of ours",
    UsageError.exit_code: "bad usage or bad input",
    SHORT: "finished, but short of its target or with isolated failures",
    BudgetReached.exit_code: "budget reached",
    EndpointError.exit_code: "the endpoint is down, or the key or the model was refused",
    StorageError.exit_code: "storage failed",
    REFUSED: "a gate refused the new version",
    FolderBusy.exit_code: "another process held the project",
    Interrupted.exit_code: "interrupted",
}
FINISHED = (DONE, SHORT)


# ---------------------------------------------------------------- the project file


@dataclass(frozen=True)
class Project:
    """What a schedule needs to know of a project file."""

    file: Path
    name: str
    folder: Path  # where its versions are
    schedule: Schedule

    @classmethod
    def read(cls, file: Path) -> Project:
        """Raises UsageError for a file that cannot be read, or a [schedule] that cannot be kept."""
        content = toml_of(file)
        table = content.get("schedule")
        if not isinstance(table, dict):
            raise UsageError(f"{file}: {NO_SCHEDULE}")
        for key in table:
            if key not in Schedule.model_fields:
                raise UsageError(f"{file}: [schedule] has no {key!r}; {nearest(key, Schedule.model_fields)}.")
        schedule = validated(Schedule, table, lambda name: f"{file}: {f'[schedule] {name}'.strip()}")
        # the same two keys say to pipeline.regenerate, which checks all others, where the versions go
        name, out = content.get("name", "project"), content.get("out")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name) or not isinstance(out, str | None):
            raise UsageError(f"{file}: name or out is not as it should be (given: {name!r}, {out!r}).")
        return cls(file, name, file.resolve().parent / (out or Path("outputs") / name), schedule)

    def latest(self) -> str | None:
        """The version that readers see; None where there is none yet."""
        with contextlib.suppress(OSError):
            return (self.folder / "LATEST").readlink().name
        return None


# ---------------------------------------------------------------- the schedule


class Scheduler:
    """Runs the ticks of one project, in this process's turn."""

    def __init__(self, project: Project, *, clock: Clock, runner: Runner, say: Callable[[str], None]) -> None:
        self.project, self.clock, self.runner, self.say = project, clock, runner, say
        self.schedule = project.schedule
        self.times = Times(project.schedule)
        self.place = project.folder / "schedule"

    def daemon(self) -> None:
        """Run every tick when it comes, until we are to stop."""
        with self._ticks() as ticks:
            self._see(ticks)
        self.say(f"{self.project.file}: {self.schedule.name}; the next tick: {self.times.shown(self._next()[0])}.")
        while not self.clock.stopping:
            if self.run_due() is None:
                self.clock.wait(BUSY_S)
            else:
                self.clock.wait(self._next()[1] - self.clock.now())

    def once(self) -> list[dict[str, Any]]:
        """Run what is due now, or will be once its jitter is over.

        A schedule that was never seen before starts with its last tick: whatever called us, called for that one.
        """
        with self._ticks() as ticks:
            self._see(ticks, self.times.last(self.clock.now()))
        told: list[dict[str, Any]] = []
        while not self.clock.stopping:
            ran = self.run_due()
            if ran is None:  # another process is at it, and sees to what is due
                break
            told += ran
            tick, due = self._next()
            if tick > self.clock.now():
                break
            self.clock.wait(due - self.clock.now())
        return told

    def run_due(self) -> list[dict[str, Any]] | None:
        """Go on with what was begun, then run what is due, until nothing is; what was told of each.

        None where another process is at it: that one will see what comes due meanwhile.
        """
        told: list[dict[str, Any]] = []
        try:
            with locked(self.place) as lock, self._ticks() as ticks:
                self._see(ticks)
                for begun in ticks.unsettled():
                    if not self.clock.stopping:
                        told += self._finish(ticks, begun, lock, again=True)
                if not ticks.unsettled():
                    for left in self.place.glob("*.json"):  # of processes killed right after they wrote it down
                        left.unlink()
                while not self.clock.stopping and (claimed := self._claim(ticks)):
                    told += self._finish(ticks, claimed, lock, again=False)
        except FolderBusy:
            return None
        return told

    def _claim(self, ticks: Ticks) -> Tick | None:
        """Take the tick that is to run now, and pass by those that will not; None where nothing is due."""
        now, name = self.clock.now(), self.schedule.name
        pending = {tick: self.times.due(tick) for tick in self.times.between(self._handled(ticks), now)}
        due = {tick: at for tick, at in pending.items() if at <= now}
        if not due:
            return None
        decision = decide(self.schedule, due, ticks.runs(min(due.values())), now)
        before = self.project.latest()
        if not ticks.claim(name, decision.run, now=now, before=before, passed=decision.passed):
            return self._claim(ticks)  # somebody took one without the lock; what is left is another question
        for what in sorted(set(decision.passed.values())):
            of_it = [tick for tick, was in decision.passed.items() if was == what]
            others = f" (and {len(of_it) - 1} before it)" * (len(of_it) > 1)
            self.say(f"{self.times.shown(of_it[-1])}{others}: {what}; not run.")
        return None if decision.run is None else ticks.row(name, decision.run)

    def _finish(self, ticks: Ticks, tick: Tick, lock: int, *, again: bool) -> list[dict[str, Any]]:
        """Run a claimed tick, unless it has run, and tell what came of it. [] where we were stopped before its end."""
        when = self.times.shown(tick.tick)
        if tick.state == "claimed":
            self.say(f"{when}: {'going on with' if again else 'running'} {self.project.file}.")
            code, end = (self._ended_alone(tick) if again else None) or self._run(ticks, tick, lock, again=again)
            waits = code == FolderBusy.exit_code and self.schedule.overlap == "queue"
            if self.clock.stopping and (code < 0 or code == Interrupted.exit_code or waits):
                self.say(f"{when}: stopped; the next start goes on with it.")
                return []
            after, result = self.project.latest(), _result(self._output(tick))
            tick = dataclasses.replace(tick, exit_code=code, after=after, ended=end, result=result)
            state = "overlap" if code == FolderBusy.exit_code else "ended" if self._hook(tick) else "settled"
            tick = dataclasses.replace(tick, state=state)
            ticks.end(tick)
            self._output(tick).unlink(missing_ok=True)
        body = self._body(tick)
        self.say(body["text"])
        if tick.state == "ended":
            said = tell(self._hook(tick), body, self.project.file.resolve().parent)
            crash.point("tick.told")
            ticks.settle(tick, said)
            if said:
                self.say(f"{when}: the hook failed. {said}")
        return [body]

    def _ended_alone(self, tick: Tick) -> tuple[int, float] | None:
        """The exit code and the end of a run that went on when its scheduler was gone; None where it came to no end."""
        result = _result(self._output(tick))
        code = result.get("exit") if isinstance(result, dict) else None
        if not isinstance(code, int) or code in (FolderBusy.exit_code, Interrupted.exit_code):
            return None
        return code, max(tick.began or 0, min(self.clock.now(), self._output(tick).stat().st_mtime))

    def _run(self, ticks: Ticks, tick: Tick, lock: int, *, again: bool) -> tuple[int, float]:
        """A run's exit code and end. Where the project is in use and the schedule queues, it waits until it is not."""
        while True:
            if again:
                ticks.begin_again(tick, self.clock.now())
            try:
                code = self.runner(lock, self._output(tick))
            except OSError as error:  # of the file for its output, or of the process itself
                raise StorageError(f"{self._output(tick)}: no run could be started ({error.strerror}).") from error
            crash.point("tick.ran")
            if code != FolderBusy.exit_code or self.schedule.overlap == "skip" or self.clock.stopping:
                return code, self.clock.now()
            self.clock.wait(BUSY_S)

    def _output(self, tick: Tick) -> Path:
        """What its run prints; kept until it is written down."""
        return self.place / f"{tick.tick}.json"

    def _hook(self, tick: Tick) -> Hook | None:
        """Who is to be told of a tick that ran."""
        rule = self.schedule
        return {"success": rule.on_success, "failure": rule.on_failure, "empty": rule.on_empty}.get(_event(tick))

    def _body(self, tick: Tick) -> dict[str, Any]:
        """What a hook is told, documented in docs/schedule.md."""
        code = tick.exit_code
        assert code is not None
        assert tick.began is not None
        meaning = MEANING.get(code, f"killed by signal {-code}" if code < 0 else "an exit code nobody documented")
        event = _event(tick)
        when = self.times.shown(tick.tick)
        news = f"new version {tick.after}" if event == "success" else "nothing new" if event == "empty" else event
        empty = tick.result.get("empty", {}) if isinstance(tick.result, dict) else {}
        why = "".join(f" {name} brings no record: {reason}" for name, reason in empty.items())
        return {
            "text": f"{self.project.name}, {when}: {news} (exit code {code}: {meaning}).{why}",
            "project": self.project.name,
            "schedule": tick.schedule,
            "tick": when,
            "event": event,
            "exit_code": code,
            "meaning": meaning,
            "version": tick.after,
            "began": self.times.shown(tick.began),
            "ended": self.times.shown(tick.ended or tick.began),
            "result": tick.result,
        }

    # ---------------------------------------------------------------- when

    def _see(self, ticks: Ticks, first: int | None = None) -> None:
        """Remember that a new schedule is kept from now on, or from its first tick on."""
        now, since = self.clock.now(), ticks.since(self.schedule.name)
        if since is None or since > now:  # a moment to come: the clock was wrong when it was written
            ticks.see(self.schedule.name, now if first is None else first - 1)

    def _next(self) -> tuple[int, float]:
        """The first tick without a row, and when it is due."""
        with self._ticks() as ticks:
            tick = self.times.after(self._handled(ticks))
        return tick, self.times.due(tick)

    def _handled(self, ticks: Ticks) -> float:
        """The moment up to which every tick has a row."""
        now, since = self.clock.now(), ticks.since(self.schedule.name)
        newest = ticks.newest(self.schedule.name, now)
        return max(now if since is None else since, newest or 0)

    @contextlib.contextmanager
    def _ticks(self) -> Iterator[Ticks]:
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.place}: cannot be written ({error.strerror}).") from error
        ticks = Ticks(self.place / "ticks.sqlite")
        try:
            yield ticks
        finally:
            ticks.close()


def _event(tick: Tick) -> str:
    """What a run that ended was."""
    if tick.exit_code == FolderBusy.exit_code:
        return "skipped"
    if tick.exit_code not in FINISHED:
        return "failure"
    return "success" if tick.after != tick.before else "empty"


def _result(output: Path) -> Any:
    """The JSON line that a run printed; None where it printed none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(output.read_text(encoding="utf-8").strip().rpartition("\n")[2])
    return None


# ---------------------------------------------------------------- the command


class ScheduleFlags(BaseModel):
    """The flags of `pipeline.schedule`; what a schedule is, the project file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: tuple[Path, ...] = setting((), "running", "the project file", metavar="FILE", positional=True)
    once: bool = setting(False, "running", "run what is due now, and end")
    plan: bool = setting(False, "running", "say when the next ticks come; run nothing")
    print: Literal["cron", "systemd", "k8s", "github"] | None = setting(
        None, "running", "print a unit that calls --once", metavar="cron|systemd|k8s|github"
    )


def main(argv: Sequence[str] | None = None) -> int:
    def work(flags: ScheduleFlags, switches: Switches) -> tuple[dict[str, Any], int]:
        return _work(flags, switches.say)

    return run_deriving(ScheduleFlags, argv, command="pipeline.schedule", about=__doc__ or "", work=work)


def _work(flags: ScheduleFlags, say: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    if len(flags.project) != 1:
        raise UsageError(f"Name one project file; {len(flags.project)} are named.")
    project = Project.read(flags.project[0])
    if flags.print is not None:
        show(unit(flags.print, project.file, project.schedule, out=project.folder))
        return {"printed": flags.print}, DONE
    if flags.plan:
        return _plan(project, say), DONE
    clock = SystemClock()
    command = [sys.executable, "-m", "pipeline.regenerate", str(project.file), "--json"]
    runner = Regenerate(command, clock)
    scheduler = Scheduler(project, clock=clock, runner=runner, say=say)
    again = shlex.join(["python", "-m", "pipeline.schedule", str(project.file)])
    with clock.stopped_by_signals(runner):
        if not flags.once:
            scheduler.daemon()
        told = scheduler.once() if flags.once else []
    if clock.stopping:
        raise Interrupted(f"Stopped. Go on with: {again}{' --once' * flags.once}")
    failed = [body["exit_code"] for body in told if body["exit_code"] not in (DONE, FolderBusy.exit_code)]
    if not told and sys.stderr.isatty():  # under cron, silence: it mails every word
        say("Nothing is due, or another process is at it. --plan says when the next ticks come.")
    code = failed[-1] if failed else DONE
    return {"ran": told}, (code if code >= 0 else 128 - code)  # as a shell says that a signal ended it


def _plan(project: Project, say: Callable[[str], None]) -> dict[str, Any]:
    """When the next ticks come, without their jitter; says it, too."""
    times = Times(project.schedule)
    ticks: list[str] = []
    moment = time.time()
    while len(ticks) < SHOWN_TICKS:
        moment = times.after(moment)
        ticks.append(times.shown(moment))
    say(f"{project.schedule.name}: {', '.join(ticks)} …")
    say(f"Nothing was run. To do it: python -m pipeline.schedule {project.file}")
    return {"schedule": project.schedule.name, "next": ticks}


if __name__ == "__main__":
    sys.exit(main())
