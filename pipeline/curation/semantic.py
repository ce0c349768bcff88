"""Semantic duplicates: records that ask the same in other words, found by their questions' embeddings and faiss.

    found = find_semantic_duplicates(vectors, ranked, 0.9, likeness)    # found.lost, found.recall

Two records are as alike as the cosine of their questions (instruction and input). An embedding is blind to what makes
two questions differ: "Age: 23" and "Age: 32" are 0.99 alike, and one passage makes every task about it look the same.
So `QuestionLikeness` lets a pair through only where numbers and negations are the same and each input stands in the
other question word for word; and where there are inputs, the instructions alone must be as alike as the questions.

Up to 100,000 records every pair is compared, so nothing is missed; beyond that faiss looks into the nearest cells of an
inverted file only, and how many duplicates that finds is measured in each run, on a sample that is searched in full.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.curation.near_duplicates import Match
from pipeline.curation.shingles import batches
from pipeline.novelty import tokens
from pipeline.records import Record

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

THRESHOLD = 0.9
EXACT_UP_TO = 100_000
_BLOCK = 1024  # records
_NEIGHBOURS = 16  # looked at for each, as some may not match after all
_CELLS_SEARCHED = 32
_SAMPLE = 2000  # records searched in full, to measure the recall


Likeness = Callable[[int, int, float], float]  # two places and the cosine of their questions -> how alike they are


@dataclass(frozen=True, slots=True)
class Found:
    """The losers, each with the kept record it is most like; `recall` is 1 where every pair was compared."""

    lost: dict[int, Match]
    recall: float


def question_of(record: Record) -> str:
    """What is embedded of a record."""
    return f"{record.instruction}\n{record.input}".strip()


class QuestionLikeness:
    """How alike two questions are once what an embedding overlooks is looked at; 0 where they ask different things.

    `instruction_cosine` is asked only where there is an input, and only of pairs that pass everything else.
    """

    def __init__(
        self, record_of: Callable[[int], Record], instruction_cosine: Callable[[Record, Record], float]
    ) -> None:
        self._record_of, self._instruction_cosine = record_of, instruction_cosine

    def __call__(self, place: int, other: int, cosine: float) -> float:
        left, right = self._record_of(place), self._record_of(other)
        if _telling(left) != _telling(right) or not (_stands_in(left, right) and _stands_in(right, left)):
            return 0.0
        if not left.input and not right.input:
            return cosine
        return min(cosine, self._instruction_cosine(left, right))


_NEGATIONS = {"not", "no", "never", "without", "cannot", "don", "doesn", "isn", "aren", "won", "shouldn"}
_NUMBER = re.compile(r"[-−]?\d+(?:[.,]\d+)*")
_LABEL = re.compile(r"\s*[^\W\d_]+(?: [^\W\d_]+)?\s*[:：]")  # "Sentence:", "Date of:" before what is meant


def _telling(record: Record) -> list[str]:
    """The numbers, with their signs, and the negations of a question, in any order."""
    question = question_of(record)
    return sorted(_NUMBER.findall(question) + [word for word in tokens(question) if word in _NEGATIONS])


def _stands_in(left: Record, right: Record) -> bool:
    """Whether the left one's input, a label before it aside, stands in the right one's question."""
    if not left.input.strip():
        return True
    wanted = " ".join(tokens(_LABEL.sub("", left.input, count=1)))
    return f" {wanted} " in f" {' '.join(tokens(question_of(right)))} "


def find_semantic_duplicates(
    vectors: NDArray[numpy.float16],
    ranked: Sequence[int],
    threshold: float,
    likeness: Likeness,
    exact_up_to: int = EXACT_UP_TO,
) -> Found:
    """The losers among the rows `ranked` (the best first) of `vectors`.

    A row loses to one before it that was kept and is `threshold` or more alike, both by cosine and by `likeness`.
    """
    index = _Index(vectors, ranked, exact=len(ranked) <= exact_up_to)
    lost: dict[int, Match] = {}
    for block in batches(ranked, _BLOCK):
        rows = vectors[block].astype("float32")
        near = index.search(rows)
        own = rows @ rows.T
        kept: list[int] = []  # places in the block
        for place, row in enumerate(block):
            candidates = near[place] + [(float(own[place, other]), block[other]) for other in kept]
            match = _best(row, candidates, threshold, likeness)
            if match is None:
                kept.append(place)
            else:
                lost[row] = match
        index.add(rows[kept], [block[place] for place in kept])
    return Found(lost, _recall(index, vectors, ranked, lost, threshold, likeness))


def _best(row: int, candidates: list[tuple[float, int]], threshold: float, likeness: Likeness) -> Match | None:
    alike = sorted(((min(score, 1.0), other) for score, other in candidates if score >= threshold), reverse=True)
    looked_at = [Match(other, likeness(row, other, score)) for score, other in alike]
    best = max(looked_at, key=lambda match: match.similarity, default=None)
    return best if best is not None and best.similarity >= threshold else None


class _Index:
    """The vectors kept so far: all of them compared, or the nearest cells of an inverted file."""

    def __init__(self, vectors: NDArray[numpy.float16], ranked: Sequence[int], *, exact: bool) -> None:
        import faiss

        dimension = vectors.shape[1]
        self.exact = exact
        self.rows: list[int] = []
        self._faiss: Any
        if exact:
            self._faiss = faiss.IndexFlatIP(dimension)
            return
        cells = 4 * math.isqrt(len(ranked))
        self._faiss = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        step = max(1, len(ranked) // (40 * cells))  # 40 vectors a cell are what faiss asks for
        self._faiss.train(vectors[list(ranked[::step])].astype("float32"))
        self._faiss.nprobe = min(_CELLS_SEARCHED, cells)

    def add(self, vectors: NDArray[numpy.float32], rows: Sequence[int]) -> None:
        if rows:
            self._faiss.add(vectors)
            self.rows += rows

    def search(self, vectors: NDArray[numpy.float32]) -> list[list[tuple[float, int]]]:
        """(similarity, row) of the nearest kept ones, for each vector."""
        if not self.rows:
            return [[] for _ in vectors]
        scores, places = self._faiss.search(vectors, min(_NEIGHBOURS, len(self.rows)))
        return [
            [(score, self.rows[place]) for score, place in zip(its_scores, its_places, strict=True) if place >= 0]
            for its_scores, its_places in zip(scores.tolist(), places.tolist(), strict=True)
        ]

    def search_everything(self) -> None:
        """From here on look into every cell."""
        if not self.exact:
            self._faiss.nprobe = self._faiss.nlist


def _recall(
    index: _Index,
    vectors: NDArray[numpy.float16],
    ranked: Sequence[int],
    lost: dict[int, Match],
    threshold: float,
    likeness: Likeness,
) -> float:
    """Of the duplicates in a sample, the share that was found: a kept one that has a better like it was missed."""
    if index.exact:
        return 1.0
    index.search_everything()
    order = {row: rank for rank, row in enumerate(ranked)}
    sample = ranked[:: max(1, len(ranked) // _SAMPLE)]
    found = sum(row in lost for row in sample)
    missed = 0
    for block in batches([row for row in sample if row not in lost], _BLOCK):
        for row, near in zip(block, index.search(vectors[block].astype("float32")), strict=True):
            before = [pair for pair in near if order[pair[1]] < order[row]]
            missed += _best(row, before, threshold, likeness) is not None
    return found / (found + missed) if found + missed else 1.0
