"""The run folder: one process at a time, derived files old or new and never between, sources of duplicates added."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import crash
from pipeline.errors import FolderBusy, UsageError
from pipeline.records import PromptSource, Record, Rejection
from pipeline.run_folder import DerivedFiles, locked, open_set, read_config, read_records, write_json
from tests.conftest import Run, StartServer, a_record, against, read_lines
from tests.fake_server import ROOT

HOLDER = """
import sys
from pathlib import Path
from pipeline.run_folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def source(prompt: int) -> PromptSource:
    return PromptSource(prompt=prompt, seeds=("s",), pool=())


def record(number: int, text: str = "") -> Record:
    return a_record(f"Say {number}.", f"{number}{text}", source=source(number), requests=("k",))


def rejection(number: int) -> Rejection:
    return Rejection(stage="record", filter="echo", reason="it repeats", **record(number).model_dump())


# ---------------------------------------------------------------- the lock


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until its stdin closes."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_exits_75_and_names_the_first(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, folder = start_server(), tmp_path / "out"
    with holder(folder) as process:
        ran = run(*against(server, folder, "--target", 3))
        assert ran.returncode == 75
        assert ran.stderr.startswith(f"{folder}: in use by process {process.pid} on ")
        assert ran.stderr.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == [".lock"]
        assert server.ledger() == []
    assert run(*against(server, folder, "--target", 3)).returncode == 0


def test_a_killed_holder_leaves_no_lock_behind(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    folder = tmp_path / "out"
    with holder(folder) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert f"process {process.pid} " in (folder / ".lock").read_text(encoding="utf-8")
        assert run(*against(start_server(), folder, "--target", 3)).returncode == 0
    assert f"process {os.getpid()} " in (folder / ".lock").read_text(encoding="utf-8")


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path), pytest.raises(FolderBusy, match=f"process {os.getpid()} "), locked(tmp_path):
        raise AssertionError("the folder was given to two")
    with locked(tmp_path):
        pass


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match=f"^{folder}: a file stands there"), locked(folder):
            pass


# ---------------------------------------------------------------- config.json and other JSON


@pytest.mark.parametrize("value", [{"shaping": {}}, {"shaping": {"ä": "中文\u2028"}, "n": [1, None, True]}])
def test_json_is_read_back(tmp_path: Path, value: dict[str, Any]) -> None:
    write_json(tmp_path / "config.json", value)
    assert read_config(tmp_path) == value
    assert published(tmp_path).keys() == {"config.json"}


def test_a_missing_config_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"half": ', encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.json: is not JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"shaping": 1}', "null"])
def test_a_config_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.json: is not of a run of instructloop"):
        read_config(tmp_path)


# ---------------------------------------------------------------- derived files


def published(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_published_files_hold_what_was_given_in_its_order(tmp_path: Path) -> None:
    with DerivedFiles(tmp_path) as files:
        for number in (3, 1, 2):
            files.keep(record(number, "\u2028 中文 \ufffd"))
            files.reject(rejection(number))
        files.publish({"kept": 3})
    assert sorted(published(tmp_path)) == ["records.jsonl", "rejected.jsonl", "summary.json"]
    assert [kept.instruction for kept in read_records(tmp_path)] == ["Say 3.", "Say 1.", "Say 2."]
    assert next(read_records(tmp_path)) == record(3, "\u2028 中文 \ufffd")
    rejected = (tmp_path / "rejected.jsonl").read_bytes().splitlines()
    assert [Rejection.model_validate_json(line) for line in rejected] == [rejection(n) for n in (3, 1, 2)]
    summary = json.loads((tmp_path / "summary.json").read_bytes())
    assert summary == {
        "kept": 3,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name in ("records.jsonl", "rejected.jsonl")
            for data in [(tmp_path / name).read_bytes()]
        },
    }


def test_nothing_shows_before_it_is_published_and_all_is_replaced_then(tmp_path: Path) -> None:
    with DerivedFiles(tmp_path) as files:
        files.keep(record(1))
        files.publish({})
        files.keep(record(2))
        assert len(list(read_records(tmp_path))) == 1
        files.publish({})
        assert len(list(read_records(tmp_path))) == 2
    before = published(tmp_path)
    with DerivedFiles(tmp_path) as files:  # the next run builds anew
        files.keep(record(7))
        assert {name: data for name, data in published(tmp_path).items() if name in before} == before
        files.publish({})
    assert [kept.instruction for kept in read_records(tmp_path)] == ["Say 7."]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00\xff"])
def test_a_damaged_line_is_named_with_its_file(tmp_path: Path, damage: bytes) -> None:
    with DerivedFiles(tmp_path) as files:
        for number in (1, 2):
            files.keep(record(number))
        files.publish({})
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n" + damage + b"\n")
    with pytest.raises(UsageError, match=re.escape(f"{path}, line 2: is no record any more")):
        list(read_records(tmp_path))


def test_a_run_that_breaks_off_leaves_the_old_files(tmp_path: Path) -> None:
    with DerivedFiles(tmp_path) as files:
        files.keep(record(1))
        files.publish({"kept": 1})
    before = published(tmp_path)
    with pytest.raises(ZeroDivisionError), DerivedFiles(tmp_path) as files:
        files.keep(record(1 // 0))
    assert published(tmp_path) == before


def test_a_file_that_cannot_be_finished_stays_as_it_was(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"kept": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"kept": 2, "broken": object()})
    assert json.loads((tmp_path / "summary.json").read_bytes()) == {"kept": 1}
    write_json(tmp_path / "summary.json", {"kept": 3})  # what was left aside is in nobody's way
    assert published(tmp_path).keys() == {"summary.json"}


def test_a_reader_sees_whole_versions_only(tmp_path: Path) -> None:
    versions: set[bytes] = {b""}
    seen: set[bytes] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            path = tmp_path / "records.jsonl"
            seen.add(path.read_bytes() if path.exists() else b"")

    reader = threading.Thread(target=read)
    with DerivedFiles(tmp_path) as files:
        reader.start()
        lines = b""
        for number in range(1000):
            one = record(number, "long " * 200)
            files.keep(one)
            lines += one.model_dump_json().encode() + b"\n"
            versions.add(lines)
            files.publish({})
            if len(seen) > 3:
                break
        over.set()
        reader.join()
    assert len(seen) > 3, "the reader never came in between"
    assert seen <= versions


def test_what_is_published_is_on_the_disk_and_so_are_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be had in a test: so the real fsync is watched, as it is called."""
    synced: list[int] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    publish(tmp_path, 1)
    for name in ("records.jsonl", "rejected.jsonl", "summary.json", "."):
        assert (tmp_path / name).stat().st_ino in synced
    assert synced[-1] == tmp_path.stat().st_ino, "the last thing is the name of the last file"


# ---------------------------------------------------------------- the files are one set

PUBLISH_2 = """
import sys
from pathlib import Path
from tests.test_run_folder import publish
publish(Path(sys.argv[1]), 2)
"""


def publish(folder: Path, version: int) -> None:
    """As a run does that has so many records and rejections."""
    with DerivedFiles(folder) as files:
        for number in range(version):
            files.keep(record(number))
            files.reject(rejection(number))
        files.publish({"version": version})


def versions_in(folder: Path) -> tuple[int, int, int]:
    """What a reader of the set finds: the summary's version, and how many records and rejections."""
    with open_set(folder) as published:
        return published.summary["version"], len(list(published.records())), len(list(published.rejections()))


@pytest.mark.parametrize(
    ("point", "new"),
    [
        pytest.param("file.written:1", False, marks=pytest.mark.slow),
        pytest.param("file.written:2", False, marks=pytest.mark.slow),
        ("file.written:3", False),
        ("file.renamed:1", True),
        pytest.param("file.renamed:2", True, marks=pytest.mark.slow),
        pytest.param("file.renamed:3", True, marks=pytest.mark.slow),
    ],
)
def test_between_all_marked_points_a_reader_finds_one_set(tmp_path: Path, point: str, new: bool) -> None:
    """What lies on the disk where the publishing process dies is what a reader finds who comes at that moment."""
    publish(tmp_path, 1)
    command = [sys.executable, "-c", PUBLISH_2, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, env=os.environ | {crash.VARIABLE: point}).returncode == -signal.SIGKILL
    assert versions_in(tmp_path) == ((2, 2, 2) if new else (1, 1, 1))
    assert len(list(read_records(tmp_path))) == (2 if new else 1)
    with DerivedFiles(tmp_path):  # the next run, before it has anything to say
        assert len((tmp_path / "records.jsonl").read_bytes().splitlines()) == (2 if new else 1)
        assert len((tmp_path / "rejected.jsonl").read_bytes().splitlines()) == (2 if new else 1)
        assert versions_in(tmp_path) == ((2, 2, 2) if new else (1, 1, 1))
    publish(tmp_path, 2)
    assert versions_in(tmp_path) == (2, 2, 2)
    assert published(tmp_path).keys() == {"records.jsonl", "rejected.jsonl", "summary.json"}


def test_a_reader_of_several_files_never_sees_a_mix(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(versions_in(tmp_path))

    reader = threading.Thread(target=read)
    with DerivedFiles(tmp_path) as files:
        for number in range(1000):
            files.keep(record(number))
            files.reject(rejection(number))
            files.publish({"version": number + 1})
            if not number:
                reader.start()
            if len(set(seen)) > 3:
                break
        over.set()
        reader.join()
    assert len(set(seen)) > 3, "the reader never came in between"
    assert all(version == records == rejections for version, records, rejections in seen)


@pytest.mark.parametrize("summary", [None, "{", "[]", '{"kept": 2}'])
def test_a_set_that_was_edited_or_is_of_an_earlier_time_is_taken_as_it_is(tmp_path: Path, summary: str | None) -> None:
    with DerivedFiles(tmp_path) as files:
        files.keep(record(1))
        files.publish({})
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(record(2).model_dump_json().encode() + b"\n")
    assert list(read_records(tmp_path)) == [record(1), record(2)]
    if summary is None:
        (tmp_path / "summary.json").unlink()
    else:
        (tmp_path / "summary.json").write_text(summary)
    assert list(read_records(tmp_path)) == [record(1), record(2)]
    (tmp_path / "rejected.jsonl").unlink()
    with open_set(tmp_path) as published:
        assert published.files.keys() == {"records.jsonl"}


# ---------------------------------------------------------------- exact duplicates


def test_a_merge_adds_a_source_to_what_was_written(tmp_path: Path) -> None:
    with DerivedFiles(tmp_path) as files:
        for number in range(3):
            files.keep(record(number, "汉字"))
        files.reject(rejection(9))
        files.publish({})
        before = published(tmp_path)["records.jsonl"].splitlines()
        files.merge(record(1, "汉字").id, source(5))
        files.merge(record(1, "汉字").id, source(6))
        files.merge(record(9).id, source(7))
        files.publish({})
    after = published(tmp_path)["records.jsonl"].splitlines()
    assert (after[0], after[2]) == (before[0], before[2])
    merged = Record.model_validate_json(after[1])
    assert merged == record(1, "汉字").model_copy(update={"source": (source(1), source(5), source(6))})
    assert merged.model_dump_json().encode() == after[1], "a merged line is written like any other"
    assert [s["prompt"] for s in read_lines(tmp_path / "rejected.jsonl")[0]["source"]] == [9, 7]
