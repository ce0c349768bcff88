"""What several test files share: the data folder, a command run to its end, a fake server, run folders, records."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pipeline import self_instruct
from pipeline.records import PromptSource, Record, make_record
from tests.fake_server import ROOT, FakeServer
from tests.forked import Forked

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


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """A process that has imported everything, and forks a child for each command."""
    with Forked(tmp_path_factory.mktemp("forked")) as process:
        yield process


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that trains in a second."""
    from tests.tiny_models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: on tiny models more of them wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(*arguments: object) -> list[str]:
    """The same command as `run`, for a process of its own."""
    return [sys.executable, "-m", "pipeline.self_instruct", *map(str, arguments)]


def against(server: FakeServer, out: Path, *more: object) -> list[object]:
    """The flags of a small run on the English seeds against a fake server."""
    flags = ["--seeds", ROOT / "seeds/175.jsonl", "--model", "fake", "--base-url", server.base_url, "--out", out]
    return [*flags, *more]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something has come about; the two minutes only guard against hanging."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def a_record(instruction: str, output: str = "Done.", **fields: Any) -> Record:
    """A record of no generator in particular."""
    usual: dict[str, Any] = {
        "task": "generation", "generator": "g", "model": "m", "language": "en",
        "source": PromptSource(prompt=0, seeds=(), pool=()), "prompts": {}, "requests": (),
    }  # fmt: skip
    return make_record(instruction=instruction, output=output, **(usual | fields))


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_bytes())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, values: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path
