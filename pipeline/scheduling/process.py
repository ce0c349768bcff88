"""What a schedule asks of the world: a clock that can be stopped, and the run itself in a process of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pipeline import crash

LONGEST_WAIT_S = 60.0  # then look at the clock again: it may have been set, or the machine may have slept


class Clock(Protocol):
    """Seconds since 1970, and waiting. A test hands in one of its own."""

    @property
    def stopping(self) -> bool:
        """Whether somebody asked us to end."""

    def now(self) -> float: ...

    def wait(self, seconds: float) -> None:
        """Return after so long, or earlier; at once when we are to end."""


class Runner(Protocol):
    """What regenerates. A test hands in one of its own."""

    def __call__(self, lock: int, output: Path) -> int:
        """Run to the end, keeping the file descriptor `lock` open all the while; stdout goes to a file."""

    def stop(self) -> None:
        """Ask the run, if there is one, to stop in order."""


class SystemClock:
    """The real one. Signals write to a pipe, which ends any wait at once."""

    def __init__(self) -> None:
        self.stopping = False
        self._read_end, self._write_end = os.pipe()

    def now(self) -> float:
        return time.time()

    def wait(self, seconds: float) -> None:
        select.select([self._read_end], [], [], max(0.0, min(seconds, LONGEST_WAIT_S)))

    def stop(self) -> None:
        self.stopping = True
        os.write(self._write_end, b".")

    @contextlib.contextmanager
    def stopped_by_signals(self, runner: Runner) -> Iterator[None]:
        """While this is open, signals stop the clock and the run instead of this process."""

        def on_signal(*_: object) -> None:
            self.stop()
            runner.stop()

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            os.close(self._read_end)
            os.close(self._write_end)


class Regenerate:
    """A run in a process of its own. It inherits the schedule's lock: while it lives, nobody else starts one."""

    def __init__(self, command: Sequence[str], clock: Clock) -> None:
        self._command, self._clock = command, clock
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False

    def __call__(self, lock: int, output: Path) -> int:
        self._asked = False
        with output.open("wb") as stdout:
            # a session of its own: a Ctrl-C at the terminal reaches it through us, once, not twice
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=stdout, pass_fds=(lock,), start_new_session=True
            )
            crash.point("tick.started")
            if self._clock.stopping and not self._asked:  # a signal came before there was a process to hand it to
                self.stop()
            try:
                return self._process.wait()
            finally:
                self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._asked = True
            self._process.terminate()
