"""All chunks of a run together: which other chunks to put around one, and which comes nearest to answering a question.

Nothing here enters a request: what it says changes records for free, when documents come or go.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from pipeline.reading.chunks import Chunk
from pipeline.records import content_id

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_WORD = re.compile(r"[^\W_]+")
# Words of questions that say nothing of their subject.
_COMMON = frozenset(
    """a about after all also an and any are as at be been before being between both but by can cannot could
    describe did difference differ do does doing done each explain find for from give given had happen happens
    has have he her his how i if in into is it its itself kind kinds know like list made main make makes many
    may me mean means might more most much must my name need needed no not of off on one only or other our out
    over possible purpose reason same shall she should show so some such take tell than that the their them then
    there these they thing things this those to two type under up use used user uses using want was way ways we
    were what when where whether which while who whom whose why will with within without work works would you
    your""".split()
)
_COMMON_HAN = re.compile(
    r"为什么|什么|怎么|怎样|如何|为何|哪[些个种里]|是否|可以|能够|应该|需要|多少|几[种个]|以及|为了|因为|所以|他们|我们|进行|使用|采用"
    r"|[的了吗呢是在被有与和把个些所次里中会能时之其就也都而且或对于从到让使这那哪几]"
)


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


def terms(text: str) -> set[str]:
    """What a text is about: its words without endings, common ones left out; of Chinese, pairs of characters."""
    text = text.lower()
    found = {_stem(word) for word in _WORD.findall(_HAN.sub(" ", text)) if word not in _COMMON}
    for run in _HAN.findall(_COMMON_HAN.sub(" ", text)):
        found |= {a + b for a, b in pairwise(run)} or {run}
    return found


def _stem(word: str) -> str:
    """A word without the ending that grammar gave it: timeouts, closed and closing as timeout, clos, clos."""
    for ending in ("ations", "ation", "ingly", "ings", "ing", "edly", "ied", "ies", "ed", "es", "ly", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
