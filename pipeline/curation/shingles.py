"""Runs of words as 64-bit hashes, many texts at a time: what near duplicates and decontamination both compare.

    windows = window_hashes([words_of(text), …], mass=3)      # windows.hashes, windows.starts

A window starts at every word and is the shortest run whose words weigh `mass` together. With all weights 1 it is an
n-gram; with 13 a word, 8 a CJK character and a mass of 8 · 13 it is 8 words, 13 characters, or a mixture of both.
What a window is depends on its own words alone, so a passage gives the same windows wherever it stands.

The hash of a run is a polynomial over its words' hashes modulo 2**64. With the sums over all prefixes at hand, that of
any run is one subtraction and one multiplication, so that numpy does a whole batch at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from pipeline.novelty import tokens

if TYPE_CHECKING:  # numpy takes a tenth of a second, which --help should not wait for
    import numpy
    from numpy.typing import NDArray

Item = TypeVar("Item")

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_MIX = 0xFF51AFD7ED558CCD
_MOST_WORDS = 1_000_000  # remembered, some 120 MB
_MOST_CHARACTERS = 8_000_000  # of a batch
_FIRST_CJK = "\u3005"  # novelty.tokens makes a word of each single character from here on


def is_cjk(word: str) -> bool:
    """Whether a word of `novelty.tokens` is one character of a script without blanks."""
    return len(word) == 1 and word >= _FIRST_CJK


Words = Sequence[str] | Sequence[bytes]
_AS_WORDS = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 32 for code in range(256))


def words_of(text: str) -> Words:
    """The words of `novelty.tokens`, for hashing only: those of an ASCII text as bytes, which is four times as fast."""
    return (text.encode().translate(_AS_WORDS).split() if text.isascii() else None) or tokens(text)


class _WordHashes(dict[str | bytes, int]):
    """word -> 64 bits, the lowest of which says whether it is one CJK character. The same in every process."""

    def __missing__(self, word: str | bytes) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        data = word if isinstance(word, bytes) else word.encode("utf-8", "surrogatepass")
        digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        value = self[word] = digest & ~1 | (isinstance(word, str) and is_cjk(word))
        return value


_WORD_HASHES = _WordHashes()


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a batch: text i has the `hashes` from `starts[i]` to before `starts[i + 1]`.

    `first` is the place of each window's first word, counted through the whole batch, and `offsets` where each text's
    words begin in that count.
    """

    hashes: NDArray[numpy.uint64]
    starts: NDArray[numpy.uint64]
    first: NDArray[numpy.uint64]
    offsets: NDArray[numpy.uint64]


def window_hashes(
    texts: Sequence[Words], *, mass: int, word_weight: int = 1, cjk_weight: int = 1, short_ones: bool = False
) -> Windows:
    """All windows of texts cut into words. A text too light for one has none, or with `short_ones` one: itself."""
    import numpy as np

    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    every: Iterator[str | bytes] = chain.from_iterable(texts)
    words = np.fromiter(map(_WORD_HASHES.__getitem__, every), np.uint64, total)

    if word_weight == cjk_weight:
        ends = np.arange(total) - (-mass // word_weight)
    else:
        weights = np.where(words & np.uint64(1), cjk_weight, word_weight).astype(np.int64)
        weighed = np.concatenate([[0], np.cumsum(weights)])
        ends = np.searchsorted(weighed, weighed[:-1] + mass)  # the first place at which the run is heavy enough
    text_end = np.repeat(offsets[1:], lengths)
    fits = ends <= text_end
    if short_ones:
        begins = np.zeros(total, bool)
        begins[offsets[:-1][lengths > 0]] = True
        ends = np.minimum(ends, text_end)
        fits |= begins
    first = np.flatnonzero(fits)

    powers, inverses = np.full(total, _BASE, np.uint64), np.full(total, _INVERSE, np.uint64)
    powers[:1] = inverses[:1] = 1
    powers, inverses = np.cumprod(powers), np.cumprod(inverses)
    prefixes = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers)])
    hashes = (prefixes[ends[first]] - prefixes[first]) * inverses[first]
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(_MIX)  # MinHash wants every bit to matter
    hashes ^= hashes >> np.uint64(29)
    starts = np.searchsorted(first, offsets)
    return Windows(hashes, starts.astype(np.uint64), first.astype(np.uint64), offsets.astype(np.uint64))


def batches(items: Iterable[Item], size: int, length: Callable[[Item], int] | None = None) -> Iterator[list[Item]]:
    """Lists of up to `size` items, in order; with `length`, shorter ones where the items are long."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += length(item) if length is not None else 0
        if len(batch) == size or total >= _MOST_CHARACTERS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
