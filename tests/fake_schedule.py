"""A clock that is told what time it is, and a regeneration that takes its time of that clock and does as it is told."""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pipeline import crash
from pipeline.schedule import Project, Scheduler
from pipeline.scheduling.ticks import Ticks
from pipeline.scheduling.timing import Schedule

HOUR, DAY = 3600, 86400


def at(text: str, zone: str = "UTC", fold: int = 0) -> float:
    """ "2026-03-29 02:30" as seconds since 1970."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def shown(moments: list[float], zone: str = "UTC") -> list[str]:
    return [datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime("%m-%d %H:%M") for moment in moments]


class FakeClock:
    """Waiting is what makes it go on; at `until` it says that we are to stop."""

    def __init__(self, now: float, until: float = float("inf")) -> None:
        self.time, self.until = now, until
        self.waits: list[float] = []

    @property
    def stopping(self) -> bool:
        return self.time >= self.until

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        assert len(self.waits) < 100_000, "it waits for ever"
        self.waits.append(seconds)
        self.time += max(seconds, 0.001)


@dataclass
class FakeRun:
    """Appends the moment of every start to a ledger; `codes` and `versions` are its plan, one a run."""

    clock: FakeClock
    ledger: Path
    takes_s: float = 0
    codes: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    latest: Path | None = None

    def __call__(self, lock: int, output: Path) -> int:
        number = len(self.starts())
        with self.ledger.open("a") as ledger:
            ledger.write(f"{self.clock.now()}\n")
        self.clock.time += self.takes_s
        if number < len(self.versions) and self.latest is not None:
            self.latest.unlink(missing_ok=True)
            self.latest.symlink_to(Path("versions") / self.versions[number])
        code = self.codes[number] if number < len(self.codes) else 0
        output.write_text(f"{json.dumps({'run': number, 'exit': code})}\n")
        return code

    def stop(self) -> None:
        raise AssertionError("nobody sends a signal")

    def starts(self) -> list[float]:
        return [float(line) for line in self.ledger.read_text().split()] if self.ledger.exists() else []


@dataclass
class Case:
    """A project in a folder of its own, and as many processes after one another as a test starts."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def scheduler(self, schedule: Schedule, now: float, until: float = float("inf"), **run: Any) -> Scheduler:
        (self.folder / "demo").mkdir(exist_ok=True)
        project = Project(self.folder / "demo.toml", "demo", self.folder / "demo", schedule)
        clock = FakeClock(now, until)
        runner = FakeRun(clock, self.folder / "ledger.txt", latest=self.folder / "demo/LATEST", **run)
        return Scheduler(project, clock=clock, runner=runner, say=self.said.append)

    def starts(self) -> list[float]:
        """When runs were started, as the run itself wrote it down."""
        return FakeRun(FakeClock(0), self.folder / "ledger.txt").starts()

    def rows(self) -> list[tuple[int, str]]:
        """What became of every tick."""
        ticks = Ticks(self.folder / "demo/schedule/ticks.sqlite")
        found = ticks._read("SELECT tick, state FROM ticks ORDER BY tick")
        ticks.close()
        return found

    def told(self) -> list[dict[str, Any]]:
        """What hooks were given that are `remember`."""
        path = self.folder / "told.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# A hook that keeps what it is told in the project's folder.
REMEMBER = ("sh", "-c", "cat >> told.jsonl; echo >> told.jsonl")


def forked(work: Callable[[], object], crash_at: str | None = None) -> int:
    """Start a child of this process that does this one thing, and dies at a marked point, if one is named; its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.pop(crash.VARIABLE, None)
        if crash_at:
            os.environ[crash.VARIABLE] = crash_at
        importlib.reload(crash)  # which has read the variable by now
        work()
    except BaseException:  # noqa: BLE001  a child of a test must never go on as a second test run
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """Wait for a child; its exit code, or the signal that ended it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
