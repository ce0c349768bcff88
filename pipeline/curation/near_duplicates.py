"""Near duplicates: records that say the same in nearly the same words, found by MinHash LSH and verified exactly.

    keys = band_keys(texts)                                     # 96 bytes a record
    lost = find_near_duplicates(keys, ranked, fingerprint, 0.7) # place of each loser -> Match

Two texts are as alike as the Jaccard measure over runs of three words says (Broder 1997): runs in common by runs in
either. Two records are as alike as their least alike part: the whole, and each of instruction, input and output that
both have. So a long instruction shared by many records does not make duplicates of them while their inputs differ, nor
a long passage while one asks for more and gets another answer. Only where the question is the same word for word does
the whole decide alone: two answers to one question may be as short and as different as yes and no.

Comparing all with all is out of the question. A MinHash signature (rensa) of 96 numbers is cut into 24 bands of 4;
records with one band in common become candidates, which happens to a pair 0.7 alike with 99.9 % and to one 0.2 alike
with 4 %. Every candidate is then compared exactly, so that LSH can miss a pair but never invent one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.curation.shingles import batches, window_hashes, words_of
from pipeline.novelty import tokens
from pipeline.records import Record

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

THRESHOLD = 0.7
WORDS = 3  # a run
BANDS, ROWS = 24, 4
_SEED = 1
_BATCH = 4096  # records
_MOST_IN_BUCKET = 256  # kept records, the best first; a text that thousands share would make the search quadratic
_MOST_COMPARED = 64  # candidates of one record, those with most bands in common


@dataclass(frozen=True, slots=True)
class Match:
    """The kept record that a loser is like."""

    place: int
    similarity: float


Runs = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared of a record: the runs of the whole and of each part."""

    whole: Runs
    instruction: Runs
    input: Runs
    output: Runs


def text_of(record: Record) -> str:
    """The whole record as one text, earlier turns first."""
    turns = (text for turn in record.history for text in turn)
    return "\n".join((*turns, record.instruction, record.input, record.output))


def fingerprint(record: Record) -> Fingerprint:
    """The runs of three words of a record; a text of fewer words is one run."""
    parts = (record.instruction, record.input, record.output)
    return Fingerprint(_runs(text_of(record)), *map(_runs, parts))


def similarity(left: Fingerprint, right: Fingerprint) -> float:
    """From 0 to 1: the lowest Jaccard measure of the wholes and of each part that both have."""
    pairs = [(left.whole, right.whole)]
    if (left.instruction, left.input) != (right.instruction, right.input):
        pairs += [(left.instruction, right.instruction), (left.input, right.input), (left.output, right.output)]
    return min((len(a & b) / len(a | b) for a, b in pairs if a and b), default=0.0)


def _runs(text: str) -> Runs:
    if not text.strip():
        return frozenset()
    words = tokens(text)
    return frozenset(zip(*(words[i:] for i in range(WORDS)), strict=False)) or frozenset([tuple(words)])


def band_keys(texts: Iterable[str]) -> NDArray[numpy.uint32]:
    """One row a text: the hash of each band of its signature. 4,096 texts are in memory at a time."""
    import numpy as np

    rows = [_keys(batch) for batch in batches(texts, _BATCH, len)]
    return np.concatenate(rows) if rows else np.zeros((0, BANDS), np.uint32)


def signatures(texts: Sequence[str]) -> NDArray[numpy.uint32]:
    """One row of BANDS · ROWS numbers a text."""
    import numpy as np
    from rensa import RMinHash

    windows = window_hashes([words_of(text) for text in texts], mass=WORDS, short_ones=True)
    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(windows.hashes, windows.starts, BANDS * ROWS, _SEED)
    numbers = chain.from_iterable(matrix.to_rows())  # a third faster than np.array of the lists
    return np.fromiter(numbers, np.uint32, len(texts) * BANDS * ROWS).reshape(len(texts), BANDS * ROWS)


def _keys(texts: Sequence[str]) -> NDArray[numpy.uint32]:
    import numpy as np

    bands = signatures(texts).reshape(len(texts), BANDS, ROWS).astype(np.uint64)
    mixed = np.zeros((len(texts), BANDS), np.uint64)
    for row in range(ROWS):  # any fixed mixing will do: a collision costs one comparison
        mixed = (mixed ^ bands[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def find_near_duplicates(
    keys: NDArray[numpy.uint32],
    ranked: Sequence[int],
    fingerprint_of: Callable[[int], Fingerprint],
    threshold: float = THRESHOLD,
) -> dict[int, Match]:
    """The losers among the places `ranked` (the best first), each with the kept one it is most like.

    A record loses to one before it that was kept and is `threshold` or more alike.
    """
    import numpy as np

    places = np.asarray(ranked, np.int64)
    buckets = _Buckets(keys[places])
    lost: dict[int, Match] = {}
    for row in buckets.shared_rows():
        place = int(places[row])
        best: Match | None = None
        own: Fingerprint | None = None
        for other_row in buckets.met(row):
            own = own or fingerprint_of(place)
            other = int(places[other_row])
            alike = similarity(own, fingerprint_of(other))
            if alike >= threshold and (best is None or alike > best.similarity):
                best = Match(other, alike)
        if best is None:
            buckets.keep(row)
        else:
            lost[place] = best
    return lost


class _Buckets:
    """Which kept rows share a band with a row. In memory: 4 bytes a band and row, 8 more where the band is shared."""

    def __init__(self, keys: NDArray[numpy.uint32]) -> None:
        import numpy as np

        self._buckets = np.full(keys.shape, -1, np.int32)  # of each row and band; -1 where no other row has its key
        sizes, number = [], 0
        for band in range(keys.shape[1]):
            order = np.argsort(keys[:, band], kind="stable")
            column = keys[order, band]
            begins = np.flatnonzero(np.concatenate([[True], column[1:] != column[:-1]])[: len(column)])
            its_sizes = np.diff(np.append(begins, len(column)))
            its_numbers = np.where(its_sizes > 1, number + np.cumsum(its_sizes > 1) - 1, -1)
            self._buckets[order, band] = np.repeat(its_numbers, its_sizes)
            sizes.append(np.minimum(its_sizes[its_sizes > 1], _MOST_IN_BUCKET))
            number += len(sizes[-1])
        self._begins = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]) if sizes else np.zeros(1, np.int64)
        self._filled = np.zeros(number, np.int32)
        self._rows = np.zeros(int(self._begins[-1]), np.int32)  # the kept ones, bucket after bucket

    def shared_rows(self) -> list[int]:
        """The rows that share a band with any other. Most have none, and are never looked at again."""
        import numpy as np

        rows: list[int] = np.flatnonzero((self._buckets >= 0).any(axis=1)).tolist()
        return rows

    def met(self, row: int) -> list[int]:
        """The kept rows that share most bands with a row."""
        import numpy as np

        buckets = self._of(row)
        begins, filled = self._begins[buckets], self._filled[buckets]
        parts = [self._rows[b : b + n] for b, n in zip(begins.tolist(), filled.tolist(), strict=True) if n]
        if not parts:
            return []
        rows, times = np.unique(np.concatenate(parts), return_counts=True)
        most: list[int] = rows[np.argsort(-times, kind="stable")[:_MOST_COMPARED]].tolist()
        return most

    def keep(self, row: int) -> None:
        """Put a row into its buckets, where these have room."""
        buckets = self._of(row)
        ends = self._begins[buckets] + self._filled[buckets]
        room = ends < self._begins[buckets + 1]
        self._rows[ends[room]] = row
        self._filled[buckets[room]] += 1

    def _of(self, row: int) -> NDArray[numpy.int32]:
        buckets: NDArray[numpy.int32] = self._buckets[row]
        return buckets[buckets >= 0]
