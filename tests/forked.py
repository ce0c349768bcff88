"""Commands in forked children of a process that has everything imported: a start costs milliseconds, not a second.

    with Forked(tmp_path) as forked:
        assert forked.run(["--target", "12", …], env={"INSTRUCTLOOP_CRASH_AT": "reply.stored:3"}) == -9

The children are real processes with signals, limits and exit codes of their own, so they can be killed anywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent


class Forked:
    """One command at a time; `output` holds what the last one wrote to stdout and stderr."""

    def __init__(self, scratch: Path, module: str = "pipeline.self_instruct") -> None:
        self._output, self._module = scratch / "output.txt", module

    def __enter__(self) -> Forked:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def start(
        self, arguments: Sequence[str], *, env: Mapping[str, str] | None = None, largest_file: int | None = None
    ) -> int:
        """Start a command; its process id."""
        job = {
            "module": self._module,
            "arguments": list(arguments),
            "env": dict(env or {}),
            "output": str(self._output),
            "limit": largest_file,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self._running = int(self._line())
        return self._running

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code; a negative one is the signal that ended it."""
        try:
            return int(self._line(seconds))
        except TimeoutError:
            os.kill(self._running, signal.SIGKILL)
            self._line()
            raise

    def run(
        self, arguments: Sequence[str], *, env: Mapping[str, str] | None = None, largest_file: int | None = None
    ) -> int:
        self.start(arguments, env=env, largest_file=largest_file)
        return self.wait()

    def _line(self, seconds: float = 60.0) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError(f"no end after {seconds} s; so far: {self.output}")
        return self.process.stdout.readline()


def _child(job: dict[str, object]) -> None:
    main = importlib.import_module(str(job["module"])).main
    output = os.open(str(job["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "INSTRUCTLOOP_CRASH_AT"):
        os.environ.pop(name, None)
    assert isinstance(job["env"], dict)
    assert isinstance(job["arguments"], list)
    os.environ.update(job["env"])
    if isinstance(job["limit"], int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    code = 1
    try:
        code = main(job["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  what an interpreter does: the traceback, and exit code 1
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Fork a child for each line of stdin, say its id, wait for it, say its exit code."""
    import openai
    import openai.types.chat  # noqa: F401

    import pipeline.backends.capped
    import pipeline.regenerate
    import pipeline.self_instruct  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the tests to handle
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _child(json.loads(line))
        os.write(1, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    serve()
