"""The record of ticks: one row each, claimed once, whatever dies or races."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.scheduling.ticks import Ticks
from tests.fake_schedule import ended, forked


@pytest.fixture
def ticks(tmp_path: Path) -> Iterator[Ticks]:
    opened = Ticks(tmp_path / "ticks.sqlite")
    yield opened
    opened.close()


def test_a_tick_is_claimed_once(ticks: Ticks) -> None:
    assert ticks.claim("daily", 100, now=101)
    assert not ticks.claim("daily", 100, now=102)
    assert ticks.claim("hourly", 100, now=103)
    assert (ticks.row("daily", 100).began, ticks.row("hourly", 100).began) == (101, 103)


def test_a_claim_is_taken_whole_or_not_at_all(ticks: Ticks) -> None:
    assert ticks.claim("daily", None, now=0, passed={100: "missed"})
    assert not ticks.claim("daily", 300, now=301, passed={200: "missed", 100: "missed"})
    assert ticks.newest("daily", 1000) == 100
    assert ticks.unsettled() == []
    assert ticks.claim("daily", 300, now=301, passed={200: "overlap"})
    assert [row.tick for row in ticks.unsettled()] == [300]


def test_of_many_processes_one_is_told_that_it_may_start(tmp_path: Path) -> None:
    """Five processes claim the same thirty ticks, all from one moment on, and without any lock."""
    path, (ready, go) = tmp_path / "ticks.sqlite", os.pipe()
    Ticks(path).close()

    def work() -> None:
        os.read(ready, 1)
        ticks = Ticks(path)
        mine = [tick for tick in range(30) if ticks.claim("daily", tick, now=tick)]
        ticks.close()
        (tmp_path / f"{os.getpid()}.txt").write_text(" ".join(map(str, mine)))

    children = [forked(work) for _ in range(5)]
    os.write(go, b".....")
    assert [ended(child) for child in children] == [0] * 5
    os.close(ready)
    os.close(go)
    started = Counter(tick for file in tmp_path.glob("*.txt") for tick in map(int, file.read_text().split()))
    assert started == dict.fromkeys(range(30), 1)


def test_the_future_is_left_out(ticks: Ticks) -> None:
    for tick in (100, 200, 300):
        ticks.claim("daily", tick, now=tick)
    assert [ticks.newest("daily", now) for now in (50, 100, 250, 300)] == [None, 100, 200, 300]


def test_a_second_process_sees_what_the_first_wrote(ticks: Ticks, tmp_path: Path) -> None:
    ticks.see("daily", 5.5)
    ticks.claim("daily", 100, now=101, before="v1")
    other = Ticks(tmp_path / "ticks.sqlite")
    (row,) = other.unsettled()
    assert (row.state, row.before, row.began, other.since("daily"), other.since("hourly")) == (
        "claimed", "v1", 101, 5.5, None,
    )  # fmt: skip
    other.close()


def test_a_file_that_is_no_database_is_a_storage_failure(tmp_path: Path) -> None:
    (tmp_path / "ticks.sqlite").write_text("not a database, and longer than the header of one. " * 20)
    with pytest.raises(StorageError, match=r"ticks\.sqlite: the schedule's record cannot be kept"):
        Ticks(tmp_path / "ticks.sqlite")


def test_a_full_disk_is_a_storage_failure_and_loses_nothing(ticks: Ticks, tmp_path: Path) -> None:
    ticks.claim("daily", 1, now=1)
    ticks._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageError, match="full"):
        ticks.claim("daily", 9999, now=1, passed=dict.fromkeys(range(2, 2000), "missed"))
    with sqlite3.connect(tmp_path / "ticks.sqlite") as connection:
        assert connection.execute("SELECT tick FROM ticks").fetchall() == [(1,)]
    connection.close()
