"""The journal: every request, every attempt and every raw reply, committed before anyone parses or judges it.

It holds only what cannot be computed again. All else is derived by running the same code over it, so resuming a
run is running it again: what is in here costs nothing.

SQLite in WAL mode with synchronous=FULL, one connection on one thread (SQLite before 3.51.3 can lose commits
with several), group commit: whatever is waiting when the thread looks is one transaction.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import StorageError, UsageError

Result = TypeVar("Result")
Operation = Callable[[sqlite3.Connection], object]

LAYOUT = 1
LARGEST_GROUP = 256  # operations in one commit

_TABLES = f"""
CREATE TABLE requests (               -- what was asked
    key TEXT PRIMARY KEY,             -- SHA-256 of the request as asked (llm.Request.key)
    body BLOB NOT NULL                -- its canonical JSON, compressed by zlib
) WITHOUT ROWID;
CREATE TABLE attempts (               -- each time it was sent, written before it is sent
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL REFERENCES requests (key),
    started REAL NOT NULL,            -- seconds since 1970
    ended REAL,                       -- NULL: the outcome is unknown, and the call was possibly paid
    outcome TEXT,                     -- answered, refused_parameter, cancelled, or a class of failure
    status INTEGER,                   -- HTTP status, where there was one
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    detail TEXT,                      -- one sentence about a failure
    raw BLOB                          -- the reply's exact bytes
);
CREATE TABLE outcomes (               -- how it ended: the attempt that answered, or the last one that failed
    key TEXT PRIMARY KEY REFERENCES requests (key),
    attempt INTEGER NOT NULL REFERENCES attempts (id),
    reader TEXT NOT NULL              -- what reads the raw bytes: openai, local, or failed
) WITHOUT ROWID;
CREATE TABLE refused_parameters (     -- what an endpoint was found not to take
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    parameter TEXT NOT NULL,
    PRIMARY KEY (endpoint, model, parameter)
) WITHOUT ROWID;
PRAGMA user_version = {LAYOUT};
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A journalled outcome. `reader` says what its raw bytes are: "openai", "local", or "failed"."""

    raw: bytes
    reader: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How one attempt ended, to be written beside its start."""

    outcome: str
    status: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    detail: str | None = None
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """All that a journal ever held, this run's part included."""

    requests: int = 0
    attempts: int = 0
    answered: int = 0
    failed: int = 0
    unknown: int = 0  # attempts whose outcome never arrived: possibly paid
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Journal:
    """Use as a context manager; open it only while holding the folder's lock.

    Every method that writes returns once its commit is on the disk. A journal that cannot be written raises
    StorageError from then on, and nothing that was committed is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[Operation, Future[object]] | None] = queue.SimpleQueue()
        self._opened: Future[object] = Future()
        self._stored: set[bytes] = set()
        self._requested: set[bytes] = set()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)

    def __enter__(self) -> Journal:
        self._thread.start()
        try:
            self._opened.result()
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{self._path}: cannot be opened as a journal ({error}).") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    # ---------------------------------------------------------------- what the line asks

    def __contains__(self, key: str) -> bool:
        """Whether the request with this key has an outcome."""
        return bytes.fromhex(key) in self._stored

    async def outcome(self, key: str) -> Stored:
        """The outcome of a request that is `in` the journal."""

        def read(connection: sqlite3.Connection) -> Stored:
            row = connection.execute(
                "SELECT a.raw, o.reader, a.outcome FROM outcomes o JOIN attempts a ON a.id = o.attempt WHERE o.key = ?",
                (key,),
            ).fetchone()
            return Stored(*row)

        return await self._submit(read)

    async def begin_attempt(self, key: str, body: bytes) -> int:
        """Write down that a request is about to be sent; `body` is its canonical JSON. Returns the attempt's id."""
        new = bytes.fromhex(key) not in self._requested
        self._requested.add(bytes.fromhex(key))

        def write(connection: sqlite3.Connection) -> int:
            if new:
                connection.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, zlib.compress(body, 1)))
            cursor = connection.execute("INSERT INTO attempts (key, started) VALUES (?, ?)", (key, time.time()))
            return cursor.lastrowid or 0

        return await self._submit(write)

    async def end_attempt(self, attempt: int, ended: Ended, *, settles: tuple[str, str] | None = None) -> None:
        """Write down how an attempt ended. `settles` is (key, reader) where that is the request's outcome."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE attempts SET ended = ?, outcome = ?, status = ?, prompt_tokens = ?, completion_tokens = ?,"
                " detail = ?, raw = ? WHERE id = ?",
                (time.time(), ended.outcome, ended.status, ended.prompt_tokens, ended.completion_tokens,
                 ended.detail, ended.raw, attempt),
            )  # fmt: skip
            if settles is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (settles[0], attempt, settles[1])
                )

        await self._submit(write)
        if settles is not None:
            self._stored.add(bytes.fromhex(settles[0]))

    async def refuse_parameter(self, endpoint: str, model: str, parameter: str) -> None:
        """Remember that an endpoint does not take a parameter for a model."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR IGNORE INTO refused_parameters VALUES (?, ?, ?)", (endpoint, model, parameter)
            )

        await self._submit(write)

    async def refused_parameters(self, endpoint: str, model: str) -> set[str]:
        """What `refuse_parameter` was told before, in this run or an earlier one."""

        def read(connection: sqlite3.Connection) -> set[str]:
            query = "SELECT parameter FROM refused_parameters WHERE endpoint = ? AND model = ?"
            return {row[0] for row in connection.execute(query, (endpoint, model))}

        return await self._submit(read)

    async def totals(self) -> Totals:
        """Counts over everything the folder ever asked and paid."""

        def read(connection: sqlite3.Connection) -> Totals:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM requests), count(*),"
                " (SELECT count(*) FROM outcomes WHERE reader != 'failed'),"
                " (SELECT count(*) FROM outcomes WHERE reader = 'failed'), coalesce(sum(ended IS NULL), 0),"
                " coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM attempts"
            ).fetchone()
            return Totals(*row)

        return await self._submit(read)

    # ---------------------------------------------------------------- the one thread

    async def _submit(self, operation: Callable[[sqlite3.Connection], Result]) -> Result:
        future: Future[object] = Future()
        self._queue.put((operation, future))
        try:
            return await asyncio.shield(asyncio.wrap_future(future))  # type: ignore[arg-type]
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: the journal could not be written ({error}).") from error

    def _work(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:  # noqa: BLE001 - handed to __enter__, which raises it
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        while (first := self._queue.get()) is not None:
            group = [first]
            while len(group) < LARGEST_GROUP and not self._queue.empty():
                waiting = self._queue.get()
                if waiting is None:  # closing: finish this group first
                    self._queue.put(None)
                    break
                group.append(waiting)
            self._commit(connection, group)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, group: list[tuple[Operation, Future[object]]]) -> None:
        """Run a group of operations in one transaction; nobody hears of success before it is on the disk."""
        try:
            connection.execute("BEGIN")
            results = [operation(connection) for operation, _ in group]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for _, future in group:
                future.set_exception(error)
        else:
            for (_, future), result in zip(group, results, strict=True):
                future.set_result(result)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = OFF")  # rows of one request arrive in their own order
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        if layout > LAYOUT:
            raise UsageError(
                f"{self._path}: was written by a newer instructloop (layout {layout}; this one reads up to {LAYOUT})."
            )
        if layout == 0:
            connection.executescript(f"BEGIN; {_TABLES} COMMIT;")
        self._stored = {bytes.fromhex(row[0]) for row in connection.execute("SELECT key FROM outcomes")}
        self._requested = {bytes.fromhex(row[0]) for row in connection.execute("SELECT key FROM requests")}
        return connection
