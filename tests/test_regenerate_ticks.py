"""Twenty ticks of a project over a folder that is edited, and the same ticks killed wherever they can be.

    python -m pytest tests/test_regenerate_ticks.py

The oracle stands outside: the fake server's ledger says what was asked, a second project made from scratch against the
same server says what the records must be, and a reader in a thread of its own polls LATEST all the while.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import crash, regenerate
from pipeline.regeneration.versions import Versions, check_records
from tests.a_project import Folder, damaged, said
from tests.conftest import StartServer, wait_for
from tests.forked import Forked

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Edit:
    """What happens before a tick, and what the tick may be about: words of which each request holds one."""

    do: Callable[[Folder], object]
    about: tuple[str, ...] = ()  # none: nothing may be asked
    gone: tuple[str, ...] = ()  # words that no file of the newest version may hold from now on
    exit: int = 0
    arguments: tuple[str, ...] = ()


def _reseed(folder: Folder, **seeds: str) -> None:
    folder.seeds |= seeds
    folder.write_seeds()


def _drop_seed(folder: Folder, name: str) -> None:
    del folder.seeds[name]
    folder.write_seeds()


def _rename(folder: Folder, old: str, new: str) -> Path:
    return (folder.root / "docs" / old).rename(folder.root / "docs" / new)


CHAIN = ("child of", '"instances"', '"classification"')  # instruction prompts show seeds; the others say what they ask
DUNMARROW = "Dunmarrow\tlies in\tKesterland"
OSTRANDER, PELLWICK = "Ostrander\tlies in\tVelmoor", "Pellwick\tlies in\tVelmoor"
EDITS = [
    Edit(lambda f: None, ("Quillfern", "Marrowick", "Tansyvole", "Ostrander", "Pellwick", *CHAIN)),
    Edit(lambda f: None),
    Edit(lambda f: f.document("Hobbleside"), ("Hobbleside",)),
    Edit(lambda f: f.document("Marrowick", 99), ("99 hens",)),
    Edit(lambda f: _rename(f, "quillfern.md", "renamed.md"), gone=("quillfern.md",)),
    Edit(lambda f: (f.root / "docs/tansyvole.md").unlink(), gone=("Tansyvole",)),
    Edit(lambda f: f.facts("facts.tsv", [OSTRANDER, PELLWICK, DUNMARROW]), ("Dunmarrow", "Kesterland")),
    Edit(lambda f: f.facts("more.tsv", ["Ostrander\thas mayor\tBertram Sallow"]), ("Sallow",), gone=("Carrow",)),
    Edit(lambda f: (f.root / "docs/hobbleside.md").write_bytes(b"\x00\x01\x02"), gone=("Hobbleside grinds",), exit=3),
    Edit(lambda f: None),  # a bad file that was reported, and has not changed, fails no further tick
    Edit(lambda f: f.document("Hobbleside")),  # what was paid for once is free when it comes back
    Edit(lambda f: f.facts("facts.tsv", [OSTRANDER, "broken line", DUNMARROW]), gone=("Pellwick",), exit=3),
    Edit(lambda f: f.facts("facts.tsv", [OSTRANDER, DUNMARROW])),
    Edit(lambda f: f.write(target=7), CHAIN),
    Edit(lambda f: _reseed(f, seed_Anvil="Anvil"), CHAIN),
    Edit(lambda f: _drop_seed(f, "seed_Quernloom"), CHAIN, gone=("Quernloom",)),
    Edit(lambda f: f.document("Marrowick", 12)),  # as it was at first
    Edit(lambda f: (f.document("Wickenhall"), _rename(f, "renamed.md", "again.md")), ("Wickenhall",)),
    Edit(lambda f: None, gone=("Wickenhall",), arguments=("--revoke", "wickenhall.md")),
    Edit(lambda f: f.document("Wickenhall", name="elsewhere.md"), gone=("Wickenhall",)),  # revoked under any name
]  # fmt: skip


def test_twenty_ticks(tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    server, fresh_server = start_server(), start_server()
    folder = Folder(tmp_path / "project", server)
    assert len(EDITS) == 20
    gone: set[str] = set()
    with polling(folder.versions) as seen:
        for number, edit in enumerate(EDITS):
            edit.do(folder)
            before = len(server.ledger())
            code = regenerate.main([str(folder.root / "regenerate.toml"), *edit.arguments])
            assert code == edit.exit, number
            asked = server.ledger()
            for line in asked[before:]:
                assert any(word in said(line) for word in edit.about), (number, said(line)[-400:])
            assert bool(edit.about) == (len(asked) > before), number
            assert {line["attempt"] for line in asked} == {1}, "a stored reply was asked for again"
            gone = {word for word in gone | set(edit.gone) if not _is_back(folder, word)}
            for word in gone:
                assert folder.traces(word) == [], (number, word)
            assert damaged(folder.latest) == []
            assert folder.data() == from_scratch(folder, number, fresh_server), number
    assert not seen.broken
    assert seen.versions == {version.name for version in folder.versions.all()} & seen.versions
    assert seen.polls > len(EDITS)


def _is_back(folder: Folder, word: str) -> bool:
    """Whether an edit has put a word back."""
    return word.startswith("Hobbleside") and b"Hobbleside" in (folder.root / "docs/hobbleside.md").read_bytes()


def from_scratch(folder: Folder, number: int, server) -> dict[str, bytes]:  # type: ignore[no-untyped-def]
    """What a project of the same sources makes that has never run before."""
    out, revoked = folder.values["out"], folder.root / "out/revoked.json"
    own, folder.server = folder.server, server
    try:
        folder.write(out=f"fresh-{number}")
        if revoked.exists():
            (folder.root / f"fresh-{number}").mkdir()
            (folder.root / f"fresh-{number}/revoked.json").write_bytes(revoked.read_bytes())
        assert regenerate.main([str(folder.root / "regenerate.toml")]) in (0, 3)
        return folder.data()
    finally:
        folder.server = own
        folder.write(out=out)


# ---------------------------------------------------------------- a reader that polls


@dataclass
class Seen:
    polls: int = 0
    broken: str = ""

    def __post_init__(self) -> None:
        self.versions: set[str] = set()


@contextmanager
def polling(versions: Versions) -> Iterator[Seen]:
    """Read LATEST again and again in a thread: follow it once, then read every file it names."""
    seen, done = Seen(), threading.Event()

    def read() -> None:
        while not done.wait(0.01):
            try:
                latest = versions.latest()
                if latest is not None:
                    assert damaged(latest) == []
                    check_records(latest.folder, latest.manifest["counts"]["records"])
                    assert latest.passed
                    seen.versions.add(latest.name)
                seen.polls += 1
            except Exception as error:  # noqa: BLE001  whatever it is, a reader met it
                seen.broken = seen.broken or repr(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


# ---------------------------------------------------------------- killed wherever it can be


def scenario(folder: Folder, run: Callable[..., int]) -> None:
    """Three ticks with edits between them, a revocation and a collection."""
    path = str(folder.root / "regenerate.toml")
    assert run(path) == 0
    folder.document("Hobbleside")
    (folder.root / "docs/tansyvole.md").unlink()
    assert run(path) == 0
    assert run(path, "--revoke", "marrowick.md") == 0
    folder.facts("more.tsv", ["Ostrander\thas mayor\tBertram Sallow"])
    assert run(path) == 0
    assert run(path, "--gc", "1") == 0


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    with Forked(tmp_path_factory.mktemp("forked"), module="pipeline.regenerate") as process:
        yield process


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> tuple[dict[str, bytes], set[str]]:
    """What the scenario ends with where nobody killed anything."""
    from tests.fake_server import FakeServer

    root = tmp_path_factory.mktemp("unharmed")
    with FakeServer(ledger=root / "ledger.jsonl") as server:
        folder = Folder(root / "project", server)
        scenario(folder, lambda *arguments: forked.run(arguments))
        return folder.data(), names_below(folder)


def names_below(folder: Folder) -> set[str]:
    """What lies in the project's folder, but for names that hold a time."""
    left = {path.name for path in (folder.root / "out").iterdir()}
    return left - {"journal.sqlite-wal", "journal.sqlite-shm"}


@pytest.mark.parametrize(
    ("point", "passing"),
    [
        *((point, 1) for point in (*crash.PROJECT_POINTS, *crash.POINTS) if point != "journal.migrate"),
        ("source.done", 3),
        ("reply.stored", 2),
        ("commit.after", 5),
        *(("file.renamed", passing) for passing in (2, 5, 9)),
    ],
)
def test_killed_at_every_marked_point(
    point: str,
    passing: int,
    tmp_path: Path,
    start_server: StartServer,
    forked: Forked,
    unharmed: tuple[dict[str, bytes], set[str]],
) -> None:
    server = start_server()
    folder = Folder(tmp_path / "project", server)
    kills = 0

    def run(*arguments: str) -> int:
        nonlocal kills
        code = forked.run(arguments, env={crash.VARIABLE: f"{point}:{passing}"})
        if code == -9:
            kills += 1
            latest = folder.versions.latest()
            if latest is not None:
                assert damaged(latest) == []
            code = forked.run(arguments)
            if arguments[1:2] == ("--revoke",) and code == 2:  # it is known no more: the first life finished it
                code = 0
        return code

    scenario(folder, run)
    assert kills, f"{point} was never passed {passing} times"
    data, names = unharmed
    assert folder.data() == data
    assert names_below(folder) == names
    assert folder.traces("Marrowick grinds", within=folder.root / "out") == []
    assert folder.in_journal("Marrowick") == []
    assert len(folder.versions.all()) == 1
    repeated = [line for line in server.ledger() if line["attempt"] > 1]
    assert len(repeated) <= kills * 4, "more was asked again than was in flight"


def test_a_signal_ends_a_tick_and_the_next_goes_on(tmp_path: Path, start_server: StartServer, forked: Forked) -> None:
    folder = Folder(tmp_path / "project", start_server(latency_ms=30))
    path = str(folder.root / "regenerate.toml")
    process = forked.start([path, "--json"])
    wait_for(lambda: len(folder.server.ledger()) > 3)
    os.kill(process, signal.SIGTERM)
    assert forked.wait() == 130, forked.output
    assert '"exit": 130}' in forked.output
    assert folder.versions.latest() is None
    assert all(line["answered"] for line in folder.server.ledger())
    assert forked.run([path]) == 0, forked.output
    assert {line["attempt"] for line in folder.server.ledger()} == {1}


def test_a_killed_tick_and_the_one_that_goes_on_with_it_share_a_budget(
    tmp_path: Path, start_server: StartServer, forked: Forked
) -> None:
    folder = Folder(tmp_path / "project", start_server())
    path = str(folder.write(tables="[budget]\nmax_requests_per_tick = 7"))
    assert forked.run([path], env={crash.VARIABLE: "reply.stored:3"}) == -9
    assert forked.run([path]) == 4, forked.output
    assert len(folder.server.ledger()) <= 7
    assert forked.run([path]) in (0, 4), "that tick is over, and this is another"
    assert len(folder.server.ledger()) > 7
