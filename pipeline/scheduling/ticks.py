"""What became of every tick: one row each in `ticks.sqlite`, unique by (schedule, tick).

    claimed     started, or about to be; where the process died, the next one goes on with it
    ended       it ran, and its hook is still to be called
    settled     it ran, and all is done
    missed      nobody looked when it came, and the schedule does not run such ticks
    overlap     the run before it was still going on

A rollback journal instead of a WAL: several processes open this file, and a tick needs no speed. They take turns all
the same, for whoever runs a tick holds the folder's lock, and hands it on to the run itself: a run whose scheduler was
killed still keeps others out.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline import crash
from pipeline.errors import StorageError

_TABLES = """
CREATE TABLE IF NOT EXISTS schedules (
    schedule TEXT PRIMARY KEY,   -- Schedule.name
    since REAL NOT NULL          -- when it was first seen, in seconds since 1970: what came before was not missed
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ticks (
    schedule TEXT NOT NULL,
    tick INTEGER NOT NULL,       -- its moment, in seconds since 1970
    state TEXT NOT NULL,
    before TEXT,                 -- the version that was the latest when it was claimed
    after TEXT,                  -- and when its run had ended
    began REAL,                  -- when its run was started, the last time
    ended REAL,
    exit_code INTEGER,
    result TEXT,                 -- what the run printed as JSON
    hook TEXT,                   -- what came of telling: NULL nothing yet, '' all well, else what went wrong
    PRIMARY KEY (schedule, tick)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Tick:
    """A row of a tick that ran or is running."""

    schedule: str
    tick: int
    state: str
    before: str | None
    after: str | None
    began: float | None
    ended: float | None
    exit_code: int | None
    result: Any
    hook: str | None


_COLUMNS = [field.name for field in fields(Tick)]
_ROW = f"SELECT {', '.join(_COLUMNS)} FROM ticks"


class Ticks:
    """The rows of a project. Every method that writes returns once it is on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = PERSIST")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLES)

    def close(self) -> None:
        self._connection.close()

    # ---------------------------------------------------------------- what is asked

    def since(self, schedule: str) -> float | None:
        """When a schedule was first seen; None where it never was."""
        rows = self._read("SELECT since FROM schedules WHERE schedule = ?", schedule)
        return float(rows[0][0]) if rows else None

    def newest(self, schedule: str, until: float) -> int | None:
        """The newest tick up to a moment that has a row. (What lies ahead, a wrong clock wrote.)"""
        query = "SELECT max(tick) FROM ticks WHERE schedule = ? AND tick <= ?"
        newest: int | None = self._read(query, schedule, until)[0][0]
        return newest

    def runs(self, since: float) -> list[tuple[float, float]]:
        """When the runs began and ended that ended at a moment or later."""
        return [(began, ended) for began, ended in self._read("SELECT began, ended FROM ticks WHERE ended >= ?", since)]

    def unsettled(self) -> list[Tick]:
        """Ticks of this or an earlier rule that somebody began and did not end, the oldest first."""
        return self._ticks(f"{_ROW} WHERE state IN ('claimed', 'ended') ORDER BY tick")

    def row(self, schedule: str, tick: int) -> Tick:
        return self._ticks(f"{_ROW} WHERE schedule = ? AND tick = ?", schedule, tick)[0]

    # ---------------------------------------------------------------- what is written

    def see(self, schedule: str, since: float) -> None:
        """Remember when a schedule was first seen."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?)", (schedule, since))

    def claim(
        self,
        schedule: str,
        tick: int | None,
        *,
        now: float,
        before: str | None = None,
        passed: Mapping[int, str] | None = None,
    ) -> bool:
        """Take a tick that is to run now, and say of others that they will not run: all of it or nothing.

        False if any of them was taken already. Of any number of processes that claim a tick, at whatever times, one is
        told True, once.
        """
        rows: list[tuple[object, ...]] = [(schedule, at, what, None, None) for at, what in (passed or {}).items()]
        if tick is not None:
            rows.append((schedule, tick, "claimed", before, now))
        try:
            with self._transaction():
                self._connection.executemany(
                    "INSERT INTO ticks (schedule, tick, state, before, began) VALUES (?, ?, ?, ?, ?)", rows
                )
        except sqlite3.IntegrityError:
            return False
        crash.point("tick.claimed")
        return True

    def begin_again(self, tick: Tick, now: float) -> None:
        """The run of a claimed tick is about to be started once more."""
        self._update(tick, began=now)

    def end(self, tick: Tick) -> None:
        """How a run ended, and what its tick is now: ended, settled where nobody is to be told, or an overlap."""
        self._update(
            tick,
            state=tick.state,
            ended=tick.ended,
            exit_code=tick.exit_code,
            after=tick.after,
            result=json.dumps(tick.result),
        )
        crash.point("tick.ended")

    def settle(self, tick: Tick, hook: str) -> None:
        """The hook was called; "" if that went well, else what went wrong."""
        self._update(tick, state="settled", hook=hook)
        crash.point("tick.settled")

    # ---------------------------------------------------------------- SQLite

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._errors():
            return self._connection.execute(query, values).fetchall()

    def _ticks(self, query: str, *values: object) -> list[Tick]:
        rows = self._read(query, *values)
        found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        return [Tick(**{**columns, "result": json.loads(columns["result"] or "null")}) for columns in found]

    def _update(self, tick: Tick, **values: object) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        with self._transaction():
            self._connection.execute(
                f"UPDATE ticks SET {columns} WHERE schedule = ? AND tick = ?",
                (*values.values(), tick.schedule, tick.tick),
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:  # an interrupt, too, must leave no open transaction behind; it goes on from here
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: the schedule's record cannot be kept ({error}).") from error
