"""Dear derived values (text out of PDFs, embeddings, IFD), so that none is computed twice; deleting the file is safe.

    with Cache(folder / "cache.sqlite") as cache:
        key = key_of(model.identity, text)
        value = cache.get("ifd", key)          # bytes, or None
        cache.put("ifd", {key: b"…"})

A key names all that the value depends on, versions and weights included, so that nothing in here is ever out of date.
Unlike the journal it holds only what can be computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.errors import StorageError

NAME = "cache.sqlite"  # in a run folder
_AT_ONCE = 500  # keys looked up in one query


class Cache:
    """(kind, key) -> bytes, in a SQLite file that is made when it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._as_storage_error("cannot be used"):
            self._db = sqlite3.connect(path)
            columns = "kind TEXT, key BLOB, value BLOB, PRIMARY KEY (kind, key)"
            self._db.execute(f"CREATE TABLE IF NOT EXISTS derived ({columns}) WITHOUT ROWID")

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, kind: str, key: bytes) -> bytes | None:
        """What was put under this key; None where nothing was."""
        return self.get_many(kind, [key]).get(key)

    def get_many(self, kind: str, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Of these keys, those that have a value."""
        known: dict[bytes, bytes] = {}
        left = iter(keys)
        while some := list(itertools.islice(left, _AT_ONCE)):
            marks = ",".join("?" * len(some))
            with self._as_storage_error("cannot be read"):
                query = f"SELECT key, value FROM derived WHERE kind = ? AND key IN ({marks})"
                known.update(self._db.execute(query, (kind, *some)))
        return known

    def put(self, kind: str, values: Mapping[bytes, bytes]) -> None:
        """Keep values under their keys; they are on the disk when this returns."""
        with self._as_storage_error("cannot be written"), self._db:
            rows = ((kind, key, value) for key, value in values.items())
            self._db.executemany("INSERT OR REPLACE INTO derived VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _as_storage_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: {what} ({error}); it is a cache, and may be deleted.") from error


def key_of(*parts: str | bytes) -> bytes:
    """A key of 16 bytes for texts and bytes, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.digest()[:16]
