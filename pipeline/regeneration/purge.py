"""Replies taken out of the journal for good: out of its tables, its free pages and its write-ahead log.

What was spent stays: the attempts keep their tokens, and lose their text. Use it only while no `Journal` is open and
the project's lock is held.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline import crash
from pipeline.errors import StorageError


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        with contextlib.closing(connection):
            yield connection
    except sqlite3.Error as error:
        raise StorageError(f"{path}: the journal could not be written ({error}); nothing stored is lost.") from error


def _is_made(path: Path) -> bool:
    """Whether the journal is there with its tables; a tick may have been killed before."""
    if not path.exists():
        return False
    with _opened(path) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'shown'").fetchone())


def keys_showing(path: Path, source: str, file: str | None, live: Collection[str]) -> set[str]:
    """Keys of the requests of a source that show an item which is not `live`, and of all that descends from them.

    :param file: only what shows this file; None: what shows any.
    """
    if not _is_made(path):
        return set()
    found: set[str] = set()
    with _opened(path) as connection:
        rows = connection.execute("SELECT key, file, item FROM shown WHERE source = ?", (source,)).fetchall()
    keys = {key for key, _, _ in rows}
    children: dict[str, list[str]] = {}
    for key, shown_file, item in rows:
        if item in keys:
            children.setdefault(item, []).append(key)
        elif item not in live and file in (None, shown_file):
            found.add(key)
    waiting = list(found)
    while waiting:
        for key in children.get(waiting.pop(), ()):
            if key not in found:
                found.add(key)
                waiting.append(key)
    return found


def files_shown(path: Path, source: str) -> list[str]:
    """The names of the files of which a request of the source ever showed something."""
    if not _is_made(path):
        return []
    with _opened(path) as connection:
        rows = connection.execute("SELECT DISTINCT file FROM shown WHERE source = ? AND file != ''", (source,))
        return [row[0] for row in rows]


def stored_keys(path: Path, up_to: int) -> set[str]:
    """Keys of the requests whose last attempt is not later than this one."""
    if not _is_made(path):
        return set()
    with _opened(path) as connection:
        rows = connection.execute("SELECT key FROM attempts WHERE key != '' GROUP BY key HAVING max(id) <= ?", (up_to,))
        return {row[0] for row in rows}


def purge(path: Path, keys: Collection[str]) -> None:
    """Delete requests and replies; nothing of their text is left in the file or its log. Safe to repeat."""
    if not _is_made(path):
        return
    with _opened(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("BEGIN IMMEDIATE")
        rows = [(key,) for key in keys]
        for table in ("outcomes", "requests", "shown"):
            connection.executemany(f"DELETE FROM {table} WHERE key = ?", rows)
        connection.executemany("UPDATE attempts SET raw = NULL, detail = NULL WHERE key = ?", rows)
        crash.point("purge.before")
        connection.execute("COMMIT")
        crash.point("purge.committed")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        crash.point("purge.after")
