"""All chunks of a run together: which other chunks to put around one, and which comes nearest to answering a question.

Nothing here enters a request: what it says changes records for free, when documents come or go.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence

from pipeline.reading.chunks import Chunk
from pipeline.records import content_id
from pipeline.text import terms


class Corpus:
    """The chunks by their id, and an inverted index of their terms."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = {chunk.id: chunk for chunk in chunks}
        self._ids = sorted(self._chunks)
        self._holding: dict[str, set[str]] = {}  # term -> ids of the chunks that hold it
        for chunk in self._chunks.values():
            for term in terms(" ".join((*chunk.headings, chunk.text))):
                self._holding.setdefault(term, set()).add(chunk.id)

    def others(self, chunk: Chunk, question: str, quotes: Sequence[str], wanted: int, seed: int) -> list[Chunk]:
        """Up to `wanted` chunks that do not hold the answer, drawn so that a chunk more or less changes few draws."""
        found: dict[str, Chunk] = {}
        for draw in range(4 * wanted):
            at = bisect.bisect(self._ids, content_id(str(seed), question, str(draw))) % len(self._ids)
            other = self._chunks[self._ids[at]]
            overlaps = other.document == chunk.document and other.start < chunk.end and chunk.start < other.end
            if not overlaps and not any(quote in other.text for quote in quotes):
                found[other.id] = other
            if len(found) == wanted:
                break
        return list(found.values())

    def nearest(self, question: str) -> tuple[float, Chunk | None]:
        """The chunk that holds the most of what the question is about, and how much: 1 is every term of it.

        A term counts by how rare it is in the corpus; one that no chunk holds counts most.
        """
        weights = {
            term: math.log(1 + len(self._ids) / (0.5 + len(self._holding.get(term, ())))) for term in terms(question)
        }
        total = sum(weights.values())
        held: defaultdict[str, float] = defaultdict(float)
        for term, weight in weights.items():
            for id_ in self._holding.get(term, ()):
                held[id_] += weight
        if not held or not total:
            return 0.0, None
        best = min(held, key=lambda id_: (-held[id_], id_))
        return held[best] / total, self._chunks[best]
