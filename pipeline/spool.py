"""Records by place, on disk: what lets a million be compared while few are in memory.

Each record is one JSON line of a scratch file. In memory stay its id, where its line begins, and what exact
duplicates brought with them. Add everything first, then read.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from pipeline.errors import StorageError
from pipeline.records import Record

_REMEMBERED = 2048  # records read back last


class Spool:
    """Records in the order in which they came, each id once; `spool[place]` is one of them."""

    def __init__(self, folder: Path) -> None:
        """The scratch file lies, without a name, in `folder`: it vanishes with the process, however that ends."""
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror}).") from error
        self.hashes = array("Q")  # the first half of each id
        self._begins = array("Q")
        self._end = 0
        self._places: dict[bytes, int] = {}
        self._merged: dict[int, list[Record]] = {}
        self.read = lru_cache(_REMEMBERED)(self._read)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._begins)

    def add(self, record: Record) -> bool:
        """Take a record in; False where its id is there already, and it was merged into that one."""
        place = self._places.setdefault(bytes.fromhex(record.id), len(self))
        if place < len(self):
            self._merged.setdefault(place, []).append(_light(record))
            return False
        line = record.model_dump_json().encode()
        try:
            self._file.write(line + b"\n")
        except OSError as error:
            raise StorageError(f"the scratch file cannot be written ({error.strerror}).") from error
        self.hashes.append(int(record.id[:16], 16))
        self._begins.append(self._end)
        self._end += len(line) + 1
        return True

    def __getitem__(self, place: int) -> Record:
        return self.read(place)

    def records(self, places: Iterable[int] | None = None) -> Iterator[Record]:
        """The records at these places, or all, in order."""
        return map(self._read, range(len(self)) if places is None else places)

    def _read(self, place: int) -> Record:
        self._file.seek(self._begins[place])
        record = Record.model_validate_json(self._file.readline())
        others = self._merged.get(place)
        if others is None:
            return record
        sources = list(record.source)
        scores = dict(record.scores)
        for other in others:
            sources += [source for source in other.source if source not in sources]
            scores = dict(other.scores) | scores
        return record.model_copy(update={"source": tuple(sources), "scores": scores})


def _light(record: Record) -> Record:
    """A duplicate without its texts: sources and scores are all it adds."""
    return record.model_copy(update={"instruction": "", "input": "", "output": "", "history": (), "prompts": {}})
