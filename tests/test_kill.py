"""kill -9 at every marked point and at random moments: resume ends byte-identical, and nothing stored is asked again.

    python -m pytest tests/test_kill.py -m "not slow"    some of the points, each once or twice
    python -m pytest tests/test_kill.py                  every passing of every point, fifty random moments and a dozen

The oracle stands outside the process that dies: the fake server's ledger, written by a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import crash
from pipeline.journal import LAYOUT
from tests.fake_server import FakeServer
from tests.forked import ROOT, Forked

CONCURRENCY = 4
ARGUMENTS = ["--model", "fake", "--target", "12", "--concurrency", str(CONCURRENCY)]
DERIVED = ("records.jsonl", "rejected.jsonl")
LAYOUT_1 = ROOT / "tests/data/journal_layout_1.sqlite"
QUICK = ("attempt.begun", "commit.before", "reply.arrived", "file.renamed")  # the most different ones
MARKED = sorted({name for name in crash.POINTS if name != "journal.migrate"})
QUICK_FIRST = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MARKED if name not in QUICK)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> dict[str, bytes]:
    """What a run writes that nobody killed."""
    folder = tmp_path_factory.mktemp("clean")
    with FakeServer(ledger=folder / "ledger.jsonl", dirty=0.2) as server:
        assert Case(folder / "out", server, forked).run() == 0, forked.output
    assert (folder / "out/records.jsonl").read_bytes().count(b"\n") == 12
    return {name: (folder / "out" / name).read_bytes() for name in DERIVED}


class Case:
    """One folder against one server, with the oracle over both."""

    def __init__(self, folder: Path, server: FakeServer, forked: Forked, *more: str) -> None:
        self.folder, self.server, self.forked = folder, server, forked
        self.arguments = [*ARGUMENTS, "--out", str(folder), "--base-url", server.base_url, *more]
        self.kills = 0
        self.in_flight = CONCURRENCY * (2 if "--judge-model" in more else 1)  # another model has places of its own

    def run(self, crash_at: str | None = None) -> int:
        """Run the command; after each kill, check what must hold then."""
        stored, asked = self.stored(), self.asked()
        code = self.forked.run(self.arguments, env={crash.VARIABLE: crash_at} if crash_at else None)
        return self.check(code, stored, asked)

    def run_killed_after(self, requests: int, turns: int) -> int:
        """Kill it once so many requests have come to the server, and so many looks later: wherever it is then."""
        stored, asked = self.stored(), self.asked()
        process = self.forked.start(self.arguments)
        with contextlib.suppress(ProcessLookupError):  # it was done before
            while self.asked().total() < asked.total() + requests:
                os.kill(process, 0)
            for _ in range(turns):
                os.kill(process, 0)
            os.kill(process, signal.SIGKILL)
        return self.check(self.forked.wait(), stored, asked)

    def check(self, code: int, stored: set[str], asked: Counter[str]) -> int:
        self.kills += code == -signal.SIGKILL
        now = self.asked()
        again = [key for key in stored if now[key] != asked[key]]
        assert not again, f"{len(again)} stored replies were asked again"
        lost = sum(line["answered"] and line["status"] == 200 for line in self.server.ledger()) - len(self.stored())
        assert lost <= self.kills * self.in_flight, f"{lost} answers lost in {self.kills} kills"
        return code

    def asked(self) -> Counter[str]:
        """How often each request came to the server, by the first half of its key."""
        return Counter(line["key"][:24] for line in self.server.ledger())

    def stored(self) -> set[str]:
        """The server's keys of the replies in the journal: the fake server's replies carry them as their id."""
        path = self.folder / "journal.sqlite"
        if not path.exists():
            return set()
        connection = sqlite3.connect(path)
        try:
            rows = connection.execute(
                "SELECT raw FROM outcomes JOIN attempts ON attempts.id = attempt WHERE reader = 'openai'"
            ).fetchall()
        except sqlite3.OperationalError:  # killed before its tables were there
            rows = []
        connection.close()
        return {raw.split(b'"chatcmpl-', 1)[1][:24].decode() for (raw,) in rows}

    def ends_as(self, clean: dict[str, bytes]) -> None:
        assert self.run() == 0, self.forked.output
        assert {name: (self.folder / name).read_bytes() for name in clean} == clean
        left = {path.name for path in self.folder.iterdir()} - {"journal.sqlite-wal", "journal.sqlite-shm"}
        assert left == {".lock", "config.json", "journal.sqlite", "summary.json", *clean}


@pytest.fixture
def case(tmp_path: Path, forked: Forked) -> Iterator[Case]:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", dirty=0.2) as server:
        yield Case(tmp_path / "out", server, forked)


def test_every_point_in_the_code_is_in_the_list_and_the_other_way_round() -> None:
    marked: Counter[str] = Counter()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for call in re.findall(r"crash\.point\((.*?)\)", path.read_text(encoding="utf-8")):
            marked.update(re.findall(r'"([a-z]+\.[a-z]+)"', call))
    assert set(marked) == {*crash.POINTS, *crash.TICK_POINTS, *crash.PROJECT_POINTS}


@pytest.mark.parametrize("point", QUICK_FIRST)
def test_killed_at_a_marked_point_and_again_later(case: Case, clean: dict[str, bytes], point: str) -> None:
    assert case.run(f"{point}:1") == -signal.SIGKILL, f"{point} was never passed"
    case.run(f"{point}:3")
    case.ends_as(clean)


@pytest.mark.slow
@pytest.mark.parametrize("point", MARKED)
def test_killed_at_every_passing_of_a_point(
    tmp_path: Path, forked: Forked, clean: dict[str, bytes], point: str
) -> None:
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        with FakeServer(ledger=folder / "ledger.jsonl", dirty=0.2) as server:
            case = Case(folder / "out", server, forked)
            if case.run(f"{point}:{number}") == 0:
                assert number > 1
                return
            case.ends_as(clean)


def killed_at_random(case: Case, lives: int, seed: int) -> int:
    """Kill the run again and again; each life gets a random share of the requests that a whole run takes.

    `case` checks after each that nothing stored was asked again. Returns how many did not end by themselves.
    """
    random_ = random.Random(seed)
    assert case.run() == 0
    whole, killed = case.asked().total(), 0
    for _ in range(lives):
        if random_.random() < 0.4:  # from the start again, so that the kills do not all hit a replay
            shutil.rmtree(case.folder, ignore_errors=True)
            case.kills = 1  # requests of the old life may still be on their way
            case.server.path.write_bytes(b"")
        code = case.run_killed_after(random_.choice([0, random_.randrange(whole)]), random_.randrange(200_000))
        killed += code == -signal.SIGKILL
    return killed


@pytest.mark.slow
def test_killed_at_a_dozen_random_moments(case: Case, clean: dict[str, bytes]) -> None:
    assert killed_at_random(case, 12, seed=1) > 0
    case.ends_as(clean)


@pytest.mark.slow
def test_killed_at_fifty_random_moments(case: Case, clean: dict[str, bytes]) -> None:
    assert killed_at_random(case, 50, seed=2) > 0
    case.ends_as(clean)


PAIRS = ("--pairs", "1", "--judge-model", "j")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["attempt.begun", "reply.arrived", "reply.stored", "file.written", "file.renamed"])
def test_killed_while_pairs_are_made(tmp_path: Path, forked: Forked, point: str) -> None:
    names = (*DERIVED, "preferences.jsonl")
    with FakeServer(ledger=tmp_path / "clean.jsonl", dirty=0.2) as server:
        whole = Case(tmp_path / "clean", server, forked, *PAIRS)
        assert whole.run() == 0, forked.output
        clean = {name: (whole.folder / name).read_bytes() for name in names}
        for_records = len(server.ledger()) - 3 * 12  # an answer and two verdicts a record, at most
    assert clean["preferences.jsonl"].count(b"\n") > 3
    with FakeServer(ledger=tmp_path / "ledger.jsonl", dirty=0.2) as server:
        case = Case(tmp_path / "out", server, forked, *PAIRS)
        passing = for_records + 12 if point.partition(".")[0] != "file" else 4
        assert case.run(f"{point}:{passing}") == -signal.SIGKILL
        case.run(f"{point}:{4}")
        case.ends_as(clean)


@pytest.mark.parametrize("crash_at", ["journal.migrate:1", "journal.open:1", None])
def test_a_migration_is_done_whole_or_not_at_all(tmp_path: Path, forked: Forked, crash_at: str | None) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(LAYOUT_1, folder / "journal.sqlite")
    arguments = [*ARGUMENTS, "--out", str(folder), "--base-url", "http://127.0.0.1:9/v1", "--offline"]
    code = forked.run(arguments, env={crash.VARIABLE: crash_at} if crash_at else None)
    assert code == (3 if crash_at is None else -signal.SIGKILL), forked.output
    connection = sqlite3.connect(folder / "journal.sqlite")
    layout = connection.execute("PRAGMA user_version").fetchone()[0]
    columns = {row[1] for row in connection.execute("PRAGMA table_info(attempts)")}
    connection.close()
    assert (layout, "flaws" in columns) == ((1, False) if crash_at == "journal.migrate:1" else (LAYOUT, True))
    assert forked.run(arguments) == 3, forked.output
