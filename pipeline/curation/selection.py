"""Choosing N records: score first, diverse always.

A few good and varied examples teach as much as many alike ones (Zhou et al. 2023, LIMA; Liu et al. 2024, Deita, whose
score-first pass with a similarity limit this is). The records are walked from the best; one is taken if it is less
alike than 0.5 to everything taken before. If that leaves places open, the rest is walked again with 0.6, and so on up
to no limit at all. So a worse record is taken before a better one only where the better one adds less that is new.

Alike is the cosine of two questions' embeddings; for records without one, ROUGE-L of the questions. The two kinds do
not compare with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.curation.semantic import question_of
from pipeline.curation.shingles import batches
from pipeline.novelty import NoveltyIndex
from pipeline.records import DocumentSource, FileSource, GraphSource, PromptSource, Record, Source

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

LADDER = (0.5, 0.6, 0.7, 0.8, 0.9, None)  # how alike a record may be to those taken
KINDS = ("generator", "task", "source")
_BLOCK = 1024  # records
_COLUMNS = 8192  # of those taken, compared with a block at a time
_NAMED_FROM = 0.3  # ROUGE-L from which a record left out is told its neighbour


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` records of a kind's value, or of each value where `value` is None; a share is of N."""

    kind: str
    value: str | None
    limit: float
    is_share: bool = False

    def at_most(self, wanted: int) -> int:
        return int(self.limit * wanted) if self.is_share else int(self.limit)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a record was not chosen: a full quota, or that N were found before it; and the chosen one nearest to it."""

    quota: str = ""
    nearest: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The places that were chosen, and all others with the reason."""

    chosen: list[int]
    left_out: dict[int, LeftOut]


def groups_of(record: Record) -> set[tuple[str, str]]:
    """(kind, value) of all that a quota can count; a record of several sources counts for each."""
    return {("generator", record.generator), ("task", record.task)} | {
        ("source", _source_name(source)) for source in record.source
    }


def _source_name(source: Source) -> str:
    """What a source is called in a quota: a document, a file, the fact's subject, or the first seed shown."""
    match source:
        case DocumentSource():
            return source.document
        case FileSource():
            return source.file
        case GraphSource():
            return source.triples[0][0] if source.triples else ""
        case PromptSource():
            return source.seeds[0] if source.seeds else f"prompt {source.prompt}"


def select(
    ranked: Sequence[int],
    wanted: int,
    record_of: Callable[[int], Record],
    vectors: NDArray[numpy.float16] | None = None,
    embedded: Collection[int] = (),
    quotas: Sequence[Quota] = (),
) -> Selection:
    """Choose up to `wanted` of the places `ranked`, the best first. `vectors` has a row for each place `embedded`."""
    room = _Room(quotas, wanted, record_of)
    by_words = _ByWords(record_of)
    by_vector = None if vectors is None else _ByVector(vectors, min(wanted, len(ranked)))
    left_out: dict[int, LeftOut] = {}
    chosen: list[int] = []
    rest = list(ranked)
    for limit in LADDER:
        waiting: list[int] = []
        by_words.set_limit(limit)
        for block in batches(rest, _BLOCK):
            if len(chosen) == wanted:
                waiting += block
                continue
            if by_vector is not None:
                by_vector.look_at([place for place in block if place in embedded])
            for place in block:
                measure = by_vector if by_vector is not None and place in embedded else by_words
                if len(chosen) == wanted or not measure.is_fresh(place, limit):
                    waiting.append(place)
                elif full := room.full_for(place):
                    left_out[place] = LeftOut(quota=full)
                else:
                    chosen.append(place)
                    room.take(place)
                    measure.take(place)
        rest = waiting
    by_words.set_limit(_NAMED_FROM)
    for block in batches(rest, _BLOCK):
        if by_vector is not None:
            by_vector.look_at([place for place in block if place in embedded])
        for place in block:
            measure = by_vector if by_vector is not None and place in embedded else by_words
            left_out[place] = LeftOut(nearest=measure.nearest(place))
    return Selection(sorted(chosen), left_out)


class _Room:
    """What the quotas still allow."""

    def __init__(self, quotas: Sequence[Quota], wanted: int, record_of: Callable[[int], Record]) -> None:
        self._quotas, self._wanted, self._record_of = quotas, wanted, record_of
        self._counts: Counter[tuple[str, str]] = Counter()

    def full_for(self, place: int) -> str:
        """The (kind and value of the) first quota that has no room for the record; "" where all have."""
        if self._quotas:
            for kind, value in sorted(groups_of(self._record_of(place))):
                for quota in self._quotas:
                    applies = quota.kind == kind and quota.value in (None, value)
                    if applies and self._counts[kind, value] >= quota.at_most(self._wanted):
                        return f"{kind} {value}"
        return ""

    def take(self, place: int) -> None:
        if self._quotas:
            self._counts.update(groups_of(self._record_of(place)))


class _ByWords:
    """ROUGE-L of questions."""

    def __init__(self, record_of: Callable[[int], Record]) -> None:
        self._record_of = record_of
        self._taken: list[int] = []
        self._index: NoveltyIndex | None = None

    def set_limit(self, limit: float | None) -> None:
        self._index = None if limit is None else NoveltyIndex(limit)
        for place in self._taken:
            self._add(place)

    def is_fresh(self, place: int, _: float | None) -> bool:
        return self.nearest(place) is None

    def nearest(self, place: int) -> tuple[float, int] | None:
        """The taken record that is most alike, if any is above the limit."""
        if self._index is None:
            return None
        found = self._index.nearest(question_of(self._record_of(place)))
        return None if found is None else (found[0], int(found[1]))

    def take(self, place: int) -> None:
        self._taken.append(place)
        self._add(place)

    def _add(self, place: int) -> None:
        if self._index is not None:
            self._index.add(question_of(self._record_of(place)), str(place))


class _ByVector:
    """Cosine of embeddings. What is known of a record's nearest is kept, so that a later walk adds only what is new."""

    def __init__(self, vectors: NDArray[numpy.float16], wanted: int) -> None:
        import numpy as np

        self._vectors = vectors
        self._taken = np.zeros((wanted, vectors.shape[1]), np.float32)
        self._places: list[int] = []
        self._best = np.full(len(vectors), -1.0, np.float32)
        self._which = np.full(len(vectors), -1, np.int64)
        self._compared = np.zeros(len(vectors), np.int64)  # with how many of the taken
        self._block: list[int] = []
        self._rows = self._taken[:0]

    def look_at(self, places: list[int]) -> None:
        """Compare these with everything taken since they were last looked at."""
        self._block = places
        self._rows = self._vectors[places].astype("float32")
        if not places:
            return
        for first in range(int(self._compared[places].min()), len(self._places), _COLUMNS):
            self._compare(first, min(first + _COLUMNS, len(self._places)))

    def is_fresh(self, place: int, limit: float | None) -> bool:
        return limit is None or float(self._best[place]) < limit

    def nearest(self, place: int) -> tuple[float, int] | None:
        which = int(self._which[place])
        return None if which < 0 else (min(float(self._best[place]), 1.0), self._places[which])

    def take(self, place: int) -> None:
        number = len(self._places)
        self._taken[number] = self._rows[self._block.index(place)]
        self._places.append(place)
        self._compare(number, number + 1)

    def _compare(self, first: int, last: int) -> None:
        import numpy as np

        scores = self._rows @ self._taken[first:last].T
        which = scores.argmax(axis=1)
        best = scores[np.arange(len(which)), which]
        better = best > self._best[self._block]
        places = np.asarray(self._block)[better]
        self._best[places], self._which[places] = best[better], which[better] + first
        self._compared[self._block] = last
