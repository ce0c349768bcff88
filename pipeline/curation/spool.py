"""Records by place, on disk: what lets a million be compared while few are in memory.

Each record is one JSON line of a scratch file. In memory stay its id, where its line begins, and what exact
duplicates brought with them. Add everything first, then read.
"""

from __future__ import annotations

import math
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.records import Record

_REMEMBERED = 512  # records read back last


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
        self._merged: dict[int, list[int]] = {}  # place -> where the lines of its exact duplicates begin
        self._scores: dict[str, array[float]] = {}  # name -> what was found out here, NaN where nothing was
        self._forgotten: set[str] = set()
        self._recent = lru_cache(_REMEMBERED)(self._read)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._begins)

    def add(self, record: Record) -> bool:
        """Take a record in; False where its id is there already, and it was merged into that one."""
        place = self._places.setdefault(bytes.fromhex(record.id), len(self))
        is_new = place == len(self)
        if is_new:
            self.hashes.append(int(record.id[:16], 16))
            self._begins.append(self._end)
        else:  # sources and scores are all it adds
            self._merged.setdefault(place, []).append(self._end)
            record = record.model_copy(update={"instruction": "", "input": "", "output": "", "history": ()})
        line = record.model_dump_json().encode() + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise StorageError(f"the scratch file cannot be written ({error.strerror}).") from error
        self._end += len(line)
        return is_new

    def add_score(self, name: str, place: int, score: float) -> None:
        """Give the record at a place a score; call it once all records are in."""
        if name not in self._scores:
            self._scores[name] = array("d", [math.nan]) * len(self)
        self._scores[name][place] = score
        self._recent.cache_clear()

    def forget_scores(self, names: Iterable[str]) -> None:
        """Leave out these scores of the records that came with them."""
        self._forgotten.update(names)
        self._recent.cache_clear()

    def __getitem__(self, place: int) -> Record:
        return self._recent(place)

    def records(self, places: Iterable[int] | None = None) -> Iterator[Record]:
        """The records at these places, or all, in order."""
        return map(self._read, range(len(self)) if places is None else places)

    def _read(self, place: int) -> Record:
        record = self._whole(place)
        found = {name: scores[place] for name, scores in self._scores.items() if not math.isnan(scores[place])}
        if not found and not self._forgotten:
            return record
        brought = {name: score for name, score in record.scores.items() if name not in self._forgotten}
        return record.model_copy(update={"scores": brought | found})

    def _whole(self, place: int) -> Record:
        """The record as it came, with what its exact duplicates brought."""
        record = self._at(self._begins[place])
        merged = self._merged.get(place)
        if merged is None:
            return record
        sources, scores = dict.fromkeys(record.source), dict(record.scores)
        for other in map(self._at, merged):
            sources |= dict.fromkeys(other.source)
            scores = dict(other.scores) | scores
        return record.model_copy(update={"source": tuple(sources), "scores": scores})

    def _at(self, begin: int) -> Record:
        self._file.seek(begin)
        return Record.model_validate_json(self._file.readline())
