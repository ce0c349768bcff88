"""What several test files share: the data folder, a command run to its end, a fake server, and a run folder's files."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pipeline import self_instruct
from tests.fake_server import ROOT, FakeServer

Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]
StartServer = Callable[..., FakeServer]

DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis: no time limits, since machines differ; in `make quick` a tenth of the examples.

    And there torch gets one thread: its tests have tiny models, in which several mostly wait for each other.
    """
    quick = "not slow" in config.getoption("markexpr", "")
    if quick:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings.register_profile("here", deadline=None, max_examples=20 if quick else 200, print_blob=True)
    settings.load_profile("here")


@pytest.fixture
def data_dir() -> Path:
    """The folder of public data that comes beside the repository; without it the test is skipped."""
    if not DATA.is_dir():
        pytest.skip(f"needs the data folder: {DATA} (or INSTRUCTLOOP_DATA) is not there")
    return DATA


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("--seeds", path, …)`: pipeline.self_instruct in this process, where imports are paid once."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run_(*arguments: object) -> Ran:
        argv = [str(argument) for argument in arguments]
        capsys.readouterr()
        try:
            code = self_instruct.main(argv)
        except SystemExit as exit_:  # argparse leaves this way
            code = exit_.code if isinstance(exit_.code, int) else 1
        captured = capsys.readouterr()
        return Ran(argv, code, captured.out, captured.err)

    return run_


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """`start_server(dirty=0.1)`: a fake server with a ledger of its own, stopped at the end of the test."""
    numbers = itertools.count()
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            FakeServer(ledger=tmp_path / f"ledger{next(numbers)}.jsonl", **options)
        )


def command(*arguments: object) -> list[str]:
    """The same command as `run`, for a process of its own."""
    return [sys.executable, "-m", "pipeline.self_instruct", *map(str, arguments)]


def against(server: FakeServer, out: Path, *more: object) -> list[object]:
    """The flags of a small run on the English seeds against a fake server."""
    flags = ["--seeds", ROOT / "seeds/175.jsonl", "--model", "fake", "--base-url", server.base_url, "--out", out]
    return [*flags, *more]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, values: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path
