"""The journal: every request, every attempt and every raw reply, committed before anyone parses or judges it.

It holds only what cannot be computed again. All else is derived by running the same code over it, so resuming a
run is running it again: what is in here costs nothing.

SQLite in WAL mode with synchronous=FULL, one connection on one thread (SQLite before 3.51.3 can lose commits
with several), group commit: whatever is waiting when the thread looks is one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline import crash
from pipeline.errors import StorageError, UsageError
from pipeline.llm import most_prompt_tokens
from pipeline.text import replace_surrogates

Result = TypeVar("Result")
Operation = Callable[[sqlite3.Connection], object]

LARGEST_GROUP = 256  # operations in one commit
READ_AHEAD, MOST_AHEAD = 128, 1024  # outcomes read at once; those that wait to be asked for
# Nothing is owed for an attempt that ended like this: it was refused, or never got through.
UNPAID = (
    "rate_limit", "server_error", "conflict", "bad_request", "refused_parameter", "endpoint_refused", "unreachable",
    "broken_off",  # a local model's
)  # fmt: skip

# Layout 1. Later ones are what _MIGRATIONS makes of it, one step a layout, so that old journals and new ones are alike.
_TABLES = """
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
    raw BLOB                          -- the bytes that came back, exactly
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
"""


def _to_layout_2(connection: sqlite3.Connection) -> None:
    """What each attempt was for and may have cost at most, and what was odd about its reply."""
    for column in (
        "model TEXT NOT NULL DEFAULT ''",  # whose price counts
        "prompt_bound INTEGER NOT NULL DEFAULT 0",  # where the tokens are not known, there were not more than this;
        "completion_bound INTEGER NOT NULL DEFAULT 0",  # 0 once it is known that nothing was paid
        "flaws TEXT",  # of a reply: refusal, length, no_usage …, with blanks in between
    ):
        connection.execute(f"ALTER TABLE attempts ADD COLUMN {column}")
    for key, packed in connection.execute("SELECT key, body FROM requests").fetchall():
        body = zlib.decompress(packed)
        asked = json.loads(body)
        connection.execute(
            "UPDATE attempts SET model = ?, prompt_bound = ?, completion_bound = ? WHERE key = ?",
            (asked["model"], most_prompt_tokens(body), asked["max_tokens"], key),
        )
    unpaid = ", ".join(f"'{name}'" for name in UNPAID)
    connection.execute(f"UPDATE attempts SET prompt_bound = 0, completion_bound = 0 WHERE outcome IN ({unpaid})")


def _to_layout_3(connection: sqlite3.Connection) -> None:
    """In a project: what each request shows of its sources, so that a source can be taken out again."""
    connection.execute(
        "CREATE TABLE shown (key TEXT NOT NULL, source TEXT NOT NULL, file TEXT NOT NULL, item TEXT NOT NULL,"
        " PRIMARY KEY (key, source, file, item)) WITHOUT ROWID"
    )


_MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_to_layout_2, _to_layout_3)
LAYOUT = 1 + len(_MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Stored:
    """A journalled outcome. `reader` says what its raw bytes are: "openai", "local", or "failed"."""

    raw: bytes
    reader: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How one attempt ended, to be written beside its start."""

    outcome: str
    status: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    detail: str | None = None
    raw: bytes | None = None
    flaws: tuple[str, ...] = ()


@dataclass(slots=True)
class Used:
    """Tokens of one model: as its server counted them, and at most, for attempts whose count is not known."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_bound: int = 0
    completion_bound: int = 0

    @property
    def at_most(self) -> int:
        return self.prompt_tokens + self.completion_tokens + self.prompt_bound + self.completion_bound


@dataclass(frozen=True, slots=True)
class Totals:
    """All that a journal ever held, this run's part included."""

    requests: int = 0
    attempts: int = 0
    answered: int = 0
    failed: int = 0
    unknown: int = 0  # attempts that brought no reply and may have been paid for all the same
    faults: Mapping[str, int] = field(default_factory=dict)  # class of failed attempt, or flaw of a reply -> how often
    used: Mapping[str, Used] = field(default_factory=dict)  # by model

    @property
    def prompt_tokens(self) -> int:
        return sum(used.prompt_tokens for used in self.used.values())

    @property
    def completion_tokens(self) -> int:
        return sum(used.completion_tokens for used in self.used.values())


class Journal:
    """Use as a context manager; open it only while holding the folder's lock.

    Every method that writes returns once its commit is on the disk. A journal that cannot be written raises
    StorageError from then on, and nothing that was committed is lost.
    """

    def __init__(self, path: Path, *, max_pages: int | None = None) -> None:
        """`max_pages` bounds the file as a full disk would (SQLite's max_page_count)."""
        self._path, self._max_pages = path, max_pages
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._opened: Future[object] = Future()
        self._broken: sqlite3.Error | None = None  # why nothing more is written
        self._ahead: dict[str, Stored] = {}
        self._reading: asyncio.Task[None] | None = None
        self._requested: dict[bytes, bool] = {}  # key -> whether it has an outcome; one table, for there are many
        self._noted: set[tuple[bytes, str, str]] = set()  # key, source and file of what is in `shown`
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)

    def __enter__(self) -> Journal:
        self._thread.start()
        try:
            self._opened.result()
        except (sqlite3.DatabaseError, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise UsageError(
                    f"{self._path}: is damaged, or no journal ({error}). What was paid for cannot be read from it:"
                    " put back a copy, or use another --out."
                ) from error
            raise StorageError(f"{self._path}: cannot be opened as a journal ({error}).") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    # ---------------------------------------------------------------- what the line asks

    def __contains__(self, key: str) -> bool:
        """Whether the request with this key has an outcome."""
        return self._requested.get(bytes.fromhex(key), False)

    async def outcome(self, key: str) -> Stored:
        """The outcome of a request that is `in` the journal.

        Replay asks in about the order in which replies came, so the next ones are read along: a hop to the thread
        costs more than the reading.
        """
        while (stored := self._ahead.pop(key, None)) is None:
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._read_ahead(key))
            await asyncio.shield(self._reading)
        return stored

    async def _read_ahead(self, key: str) -> None:
        def read(connection: sqlite3.Connection) -> list[tuple[str, bytes, str]]:
            query = (
                "SELECT o.key, a.raw, o.reader FROM attempts a JOIN outcomes o ON o.attempt = a.id"
                " AND o.key = a.key WHERE a.id >= (SELECT attempt FROM outcomes WHERE key = ?) ORDER BY a.id LIMIT ?"
            )
            return connection.execute(query, (key, READ_AHEAD)).fetchall()

        try:
            for found, raw, reader in await self._submit(read):
                self._ahead[found] = Stored(raw, reader)
        finally:
            self._reading = None
        while len(self._ahead) > MOST_AHEAD:
            del self._ahead[next(iter(self._ahead))]

    async def begin_attempt(self, key: str, body: bytes, *, model: str, most_tokens: tuple[int, int]) -> int:
        """Write down that a request is about to be sent; `body` is its canonical JSON. Returns the attempt's id.

        `most_tokens` (prompt, completion) is what it can cost at most: what counts until its usage is known.
        """
        packed = bytes.fromhex(key)
        new = packed not in self._requested
        self._requested.setdefault(packed, False)

        def write(connection: sqlite3.Connection) -> int:
            if new:
                connection.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, zlib.compress(body, 1)))
            cursor = connection.execute(
                "INSERT INTO attempts (key, started, model, prompt_bound, completion_bound) VALUES (?, ?, ?, ?, ?)",
                (key, time.time(), model, *most_tokens),
            )
            return cursor.lastrowid or 0

        return await self._submit(write, writes=True)

    async def end_attempt(self, attempt: int, ended: Ended, *, settles: tuple[str, str] | None = None) -> None:
        """Write down how an attempt ended. `settles` is (key, reader) where that is the request's outcome."""
        detail = None if ended.detail is None else replace_surrogates(ended.detail)
        maybe_paid = ended.outcome not in UNPAID

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE attempts SET ended = ?, outcome = ?, status = ?, prompt_tokens = ?, completion_tokens = ?,"
                " detail = ?, raw = ?, flaws = ?, prompt_bound = prompt_bound * ?,"
                " completion_bound = completion_bound * ? WHERE id = ?",
                (time.time(), ended.outcome, ended.status, ended.prompt_tokens, ended.completion_tokens,
                 detail, ended.raw, " ".join(ended.flaws) or None, maybe_paid, maybe_paid, attempt),
            )  # fmt: skip
            if settles is not None:
                key, reader = settles
                connection.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (key, attempt, reader))

        await self._submit(write, writes=True)
        if settles is not None:
            self._requested[bytes.fromhex(settles[0])] = True
            self._ahead.pop(settles[0], None)

    async def refuse_parameter(self, endpoint: str, model: str, parameter: str) -> None:
        """Remember that an endpoint does not take a parameter for a model."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR IGNORE INTO refused_parameters VALUES (?, ?, ?)", (endpoint, model, parameter)
            )

        await self._submit(write, writes=True)

    async def refused_parameters(self, endpoint: str, model: str) -> set[str]:
        """What `refuse_parameter` was told before, in this run or an earlier one."""
        query = "SELECT parameter FROM refused_parameters WHERE endpoint = ? AND model = ?"
        return await self._submit(lambda db: {row[0] for row in db.execute(query, (endpoint, model))})

    async def note(self, key: str, source: str, shown: Sequence[tuple[str, str]]) -> None:
        """Remember what of a source a request shows: pairs of a file's name, or "", and an item's id."""
        packed = bytes.fromhex(key)
        rows = [(key, source, file, item) for file, item in shown if (packed, source, file) not in self._noted]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR IGNORE INTO shown VALUES (?, ?, ?, ?)", rows)

        if rows:
            await self._submit(write, writes=True)
            self._noted.update((packed, source, file) for _, _, file, _ in rows)

    async def latest(self) -> int:
        """The number of the latest attempt; 0 before the first."""
        return await self._submit(lambda db: int(db.execute("SELECT coalesce(max(id), 0) FROM attempts").fetchone()[0]))

    async def totals(self, *, after: int = 0, since: float = 0.0) -> Totals:
        """Counts over everything the folder ever asked and paid; what was sent and used only `after` an attempt's
        number and `since` a time, in seconds since 1970."""

        def read(connection: sqlite3.Connection) -> Totals:
            counts: tuple[int, int, int, int, int] = connection.execute(
                "SELECT (SELECT count(*) FROM requests), count(*),"
                " (SELECT count(*) FROM outcomes WHERE reader != 'failed'),"
                " (SELECT count(*) FROM outcomes WHERE reader = 'failed'),"
                " coalesce(sum(outcome IS NOT 'answered' AND prompt_bound > 0), 0) FROM attempts"
                " WHERE id > ? AND started >= ?",
                (after, since),
            ).fetchone()
            faults: Counter[str] = Counter()
            ends = "SELECT outcome, flaws, count(*) FROM attempts WHERE ended IS NOT NULL GROUP BY outcome, flaws"
            for outcome, flaws, number in connection.execute(ends):
                for name in (flaws or "").split() if outcome == "answered" else [outcome]:
                    faults[name] += number
            used = connection.execute(
                "SELECT model, coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),"
                " coalesce(sum(prompt_bound) FILTER (WHERE prompt_tokens IS NULL), 0),"
                " coalesce(sum(completion_bound) FILTER (WHERE completion_tokens IS NULL), 0)"
                " FROM attempts WHERE id > ? AND started >= ? GROUP BY model",
                (after, since),
            )
            by_model = {row[0]: Used(*row[1:]) for row in used}
            return Totals(*counts, dict(faults.most_common()), by_model)

        return await self._submit(read)

    # ---------------------------------------------------------------- the one thread

    async def _submit(self, operation: Callable[[sqlite3.Connection], Result], *, writes: bool = False) -> Result:
        if writes and self._broken is not None:
            raise self._unwritable(self._broken)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.put(_Waiting(operation, writes, future, loop))
        try:
            return await future
        except sqlite3.Error as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: sqlite3.Error) -> StorageError:
        return StorageError(f"{self._path}: the journal could not be written ({error}); nothing stored is lost.")

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

    def _commit(self, connection: sqlite3.Connection, group: list[_Waiting]) -> None:
        """Run a group of operations in one transaction; nobody hears of success before it is on the disk."""
        writes = any(waiting.writes for waiting in group)
        results: list[object] = []
        failure: Exception | None = None
        try:
            if self._broken is not None and writes:
                raise self._broken
            connection.execute("BEGIN")
            results = [waiting.operation(connection) for waiting in group]
            if writes:
                crash.point("commit.before")
            connection.execute("COMMIT")
            if writes:
                crash.point("commit.after")
        except Exception as error:  # noqa: BLE001 - handed to whoever waits; a thread that died would leave them waiting
            failure = error
            if writes and isinstance(error, sqlite3.Error):
                self._broken = self._broken or error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            group[0].loop.call_soon_threadsafe(_deliver, group, results, failure)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = OFF")  # rows of one request arrive in their own order
        if self._max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {self._max_pages}")
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        if layout > LAYOUT:
            raise UsageError(
                f"{self._path}: was written by a newer instructloop (layout {layout}; this one reads up to {LAYOUT})."
            )
        if not layout and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise UsageError(f"{self._path}: is a database of something else; use another --out.")
        if layout < LAYOUT:
            _bring_up_to_date(connection, layout)
        crash.point("journal.open")
        self._requested = {bytes.fromhex(row[0]): False for row in connection.execute("SELECT key FROM requests")}
        self._requested.update((bytes.fromhex(row[0]), True) for row in connection.execute("SELECT key FROM outcomes"))
        noted = connection.execute("SELECT key, source, file FROM shown")
        self._noted = {(bytes.fromhex(row[0]), *row[1:]) for row in noted}
        return connection


def _bring_up_to_date(connection: sqlite3.Connection, layout: int) -> None:
    """From an earlier layout, or from an empty file (0), to this one, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    if layout == 0:
        for statement in _TABLES.split(";"):
            connection.execute(statement)
    for migrate in _MIGRATIONS[max(0, layout - 1) :]:
        migrate(connection)
    connection.execute(f"PRAGMA user_version = {LAYOUT}")
    crash.point("journal.create" if layout == 0 else "journal.migrate")
    connection.execute("COMMIT")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An operation on its way to the thread, and who waits for its result."""

    operation: Operation
    writes: bool
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


def _deliver(group: list[_Waiting], results: list[object], failure: Exception | None) -> None:
    """Tell everyone in a group how it went; in the loop's own thread, so that a group costs one wake-up."""
    for number, waiting in enumerate(group):
        if waiting.future.done():  # cancelled
            continue
        if failure is None:
            waiting.future.set_result(results[number])
        else:
            waiting.future.set_exception(failure)
