"""Is this instruction new? Exact ROUGE-L against every text kept so far, by an index instead of a loop.

    index = NoveltyIndex(threshold=0.7)
    if index.nearest(text) is None:      # nothing kept is more than 0.7 alike
        index.add(text, id)

ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries") is the F-measure over the longest
common subsequence of words: F = 2·lcs / (m + n) for texts of m and n words. Self-Instruct (Wang et al. 2023,
section 2.2, "Filtering and Postprocessing") keeps an instruction only if no earlier one is above 0.7; its loop
compares with all of them. Here nothing is approximated: `nearest` gives the value `rouge_score` gives, to the
last bit, and three bounds only skip texts that cannot reach it. F > t says lcs > t·(m + n)/2, and the words in
common, order aside, are at least lcs. So, with the words of every text sorted in one fixed order:

1. Prefix and position (Bayardo et al. 2007; Xiao et al. 2008, PPJoin). All words in common come at or after the
   first of them; if that is word i of m and j of n, there are at most m - i and at most n - j. So a text is filed
   under its first words only, each with the longest partner that m - i allows. Any order is exact; the rarest
   word first is fast, as few texts share it. Words are numbered as they come (a later one is likely rarer), and
   anew by frequency each time the index has doubled.
2. Parity (Mitzenmacher et al. 2014, odd sketches). Each text has 256 bits (more where texts are long), bit b the
   parity of its words whose number is b modulo 256. Each word not in common flips one bit at most, so two texts
   differ in at most m + n - 2·common bits.
3. What is left, a handful of texts, goes to rapidfuzz's bit-parallel LCS, each word as one character.

Words: `tokens` says what counts as one. On ASCII text they are rouge_score's. rouge_score sees nothing else, so
that two equal Chinese sentences get 0 there; here they get 1.0. A text without any word ("!!!", an emoji) is one
word, itself, so it is 1.0 like its equal and 0 like all else; this alone differs from rouge_score on ASCII.
"""

from __future__ import annotations

import heapq
import math
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from rapidfuzz.distance import LCSseq

# F is computed in floating point, so every bound is drawn this much below the threshold; rounding is 1e-15.
_SLACK = 1e-9
_LAST_CHARACTER = sys.maxunicode
_UNKNOWN = 0  # the number of a word that no kept text has; it matches nothing
_LONGEST = 2**32 - 1  # what half an entry holds
_BITS_A_WORD, _NARROWEST = 8, 256  # of the sketches
_FIRST_RENUMBERING = 16  # texts; then at each doubling

# Scripts written without blanks, where each character is a word: kana, bopomofo, Han, Hangul syllables.
_ONE_CHARACTER_WORDS = (
    (0x3005, 0x3007), (0x3040, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
# "it´s": NFKC would make of these a blank and a mark, and the mark would begin a word.
_SPACING_ACCENTS = dict.fromkeys(map(ord, "¨¯´¸˘˙˚˛˜˝ͺ΄΅‗‾"), " ")
_VARIATION_SELECTORS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_ZERO_WIDTH_SPACE = 0x200B


def _within(code: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)


class _Spelling(dict[int, str]):
    """For `str.translate`: a character stays, becomes a word of its own, a gap between words, or nothing."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if (category == "Cf" and code != _ZERO_WIDTH_SPACE) or _within(code, _VARIATION_SELECTORS):
            spelt = ""  # invisible: soft hyphens, joiners, an emoji's colour
        elif not char.isalnum() and category not in ("Mn", "Mc"):  # marks: vowel signs, accents that stay apart
            spelt = " "
        else:
            spelt = f" {char} " if _within(code, _ONE_CHARACTER_WORDS) else char
        self[code] = spelt
        return spelt


_SPELLING = _Spelling()


def tokens(text: str) -> list[str]:
    """The words that ROUGE-L compares; never empty.

    ASCII text: its runs of a-z and 0-9, lower-cased, exactly as rouge_score has them. Any other text is
    case-folded under NFKC first; each ideograph, kana or Hangul syllable is a word, and so is each run of other
    letters, digits and the marks on them ("naïve", "мир"). Thai, Lao, Khmer and Burmese, written without blanks,
    get one word a phrase: equal texts are found there, similar ones seldom. A text with no word in it is one word,
    itself, with its white space made single blanks.
    """
    if text.isascii():
        folded = text.lower()
    else:
        composed = unicodedata.normalize("NFKC", text.translate(_SPACING_ACCENTS))
        folded = unicodedata.normalize("NFKC", composed.casefold())
    return folded.translate(_SPELLING).split() or [" ".join(folded.split())]


def f_measure(common: int, m: int, n: int) -> float:
    """ROUGE-L's F for a common subsequence of that length, in rouge_score's order of operations, to the last bit."""
    if not common:
        return 0.0
    precision, recall = common / n, common / m
    return 2 * precision * recall / (precision + recall)


def _as_sequence(numbers: list[int]) -> Sequence[int] | str:
    """Numbered words as a string, fast and small; as they are, once there are more words than characters."""
    return "".join(map(chr, numbers)) if max(numbers) <= _LAST_CHARACTER else numbers


def _as_numbers(sequence: Sequence[int] | str) -> Iterable[int]:
    return map(ord, sequence) if isinstance(sequence, str) else sequence


def _sketch(numbers: Iterable[int], width: int) -> bytes:
    """Bit b is the parity of how many of the numbers are b modulo `width`, a power of two."""
    parities, last = bytearray(width // 8), width // 8 - 1
    for number in numbers:
        parities[number >> 3 & last] ^= 1 << (number & 7)
    return bytes(parities)


class NoveltyIndex:
    """The texts kept so far, and which of them is most like a new one.

    `add` takes O(m log m) for m words, and now and then renumbers everything, which doubles that on average.
    `nearest` takes O(n log n) for n words, a few nanoseconds for every kept text that shares one of its rarest
    words, and O(n · m/64) for each of the few that are left. A text of ten words takes some 300 bytes.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        """`threshold` (0 <= threshold < 1) is the F above which a text is not new; F equal to it still is."""
        if not 0 <= threshold < 1:
            raise ValueError(f"the threshold lies from 0 to below 1, and {threshold} does not")
        self.threshold = threshold
        self._floor = max(threshold - _SLACK, _SLACK)  # F > threshold says F > floor, also where it is 0
        self._numbers: dict[str, int] = {}  # word -> 1, 2, … the rarer the higher
        self._ids: list[str] = []
        self._texts: list[Sequence[int] | str] = []  # the numbered words of each text
        self._lengths = array("I")
        self._width = _NARROWEST  # bits a sketch
        self._sketches = bytearray()  # one after the other
        # word -> an entry for each text filed under it: longest partner << 32 | place in the lists above
        self._postings: dict[int, array[int]] = {}
        self._renumber_at = _FIRST_RENUMBERING

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, text: str, id: str) -> None:
        """Keep a text. Ids are handed back as they came; nothing is checked about them."""
        if len(self._ids) >= self._renumber_at:
            self._renumber()
        numbers = self._numbers
        self._file([numbers.setdefault(word, len(numbers) + 1) for word in tokens(text)])
        self._ids.append(id)

    def nearest(self, text: str) -> tuple[float, str] | None:
        """The highest F of any kept text, and its id, if that is above the threshold; the earliest among equals."""
        numbers = self._numbered(text)
        best, best_place = self.threshold, -1
        if candidates := self._candidates(numbers):
            sequence, n, half = _as_sequence(numbers), len(numbers), self._floor / 2
            for place in candidates:
                kept = self._texts[place]
                m = len(kept)
                # below score_cutoff rapidfuzz may stop early, and says 0
                f = f_measure(LCSseq.similarity(sequence, kept, score_cutoff=int(half * (m + n))), m, n)
                if f > best or (f == best and place < best_place):
                    best, best_place, half = f, place, (f - _SLACK) / 2
        return None if best_place < 0 else (best, self._ids[best_place])

    def top(self, text: str, k: int) -> list[tuple[float, str]]:
        """The k kept texts most like this one, whatever the threshold; the earlier first among equals.

        For reports: it compares with every kept text, some 20 ms for 50,000 of them.
        """
        numbers = self._numbered(text)
        sequence, n = _as_sequence(numbers), len(numbers)
        scores = (f_measure(LCSseq.similarity(sequence, kept), len(kept), n) for kept in self._texts)
        ranked = heapq.nsmallest(k, ((-f, place) for place, f in enumerate(scores)))
        return [(-negative, self._ids[place]) for negative, place in ranked]

    # ---------------------------------------------------------------- the index

    def _numbered(self, text: str) -> list[int]:
        known_number = self._numbers.get
        return [known_number(word, _UNKNOWN) for word in tokens(text)]

    def _prefix(self, rarest_first: list[int], length: int) -> list[tuple[int, int]]:
        """(word, longest partner) for each word that can be the first in common with a text above the floor.

        `length` counts unknown words too; they are the rarest of all, so they stand before `rarest_first`.
        With the first common word at place i, common <= length - i; and common > floor·(length + partner)/2 then
        bounds the partner's length above. Below, common <= partner, so a partner has more than
        floor·length/(2 - floor) words, and from `end` on not even the shortest would do.
        """
        place = length - len(rarest_first)
        end = math.ceil(length - self._floor * length / (2 - self._floor))
        twice = 2 / self._floor
        prefix, last = [], _UNKNOWN
        for number in rarest_first[: max(0, end - place)]:
            if number != last:  # a word that repeats is first in common at its first place
                prefix.append((number, min(int(twice * (length - place) - length), _LONGEST)))
                last = number
            place += 1
        return prefix

    def _candidates(self, numbers: list[int]) -> set[int]:
        """The places of all texts that may be above the threshold."""
        n = len(numbers)
        known = sorted(filter(None, numbers), reverse=True)
        postings, longest = [], []
        for number, its_longest in self._prefix(known, n):
            if (posting := self._postings.get(number)) is not None:
                postings.append(posting)
                longest.append(its_longest)
        if not postings:
            return set()
        import numpy as np  # here, because a command's --help should not wait for it

        entries = np.frombuffer(b"".join(postings), np.uint64)
        fit = np.flatnonzero(entries >= n << 32)
        places = entries[fit].astype(np.uint32)  # the lower half
        lengths = np.frombuffer(self._lengths, np.uint32)
        places = places[lengths[places] <= np.repeat(longest, [len(posting) for posting in postings])[fit]]
        if len(places) > len(self._ids):  # long texts meet at many words
            places = np.unique(places)
        sketches = np.frombuffer(self._sketches, np.uint64).reshape(-1, self._width // 64)
        own = np.frombuffer(_sketch(known, self._width), np.uint64)
        differ = np.bitwise_count(sketches[places] ^ own).sum(axis=1, dtype=np.uint32)
        near = differ + (n - len(known)) < (1 - self._floor) * (lengths[places] + n)
        return set(places[near].tolist())

    def _file(self, numbers: list[int]) -> None:
        """Store one more text, and file it under the words of its prefix."""
        place, m = len(self._texts), len(numbers)
        self._texts.append(_as_sequence(numbers))
        self._lengths.append(m)
        self._sketches += _sketch(numbers, self._width)
        for number, longest in self._prefix(sorted(numbers, reverse=True), m):
            entry = longest << 32 | place
            posting = self._postings.get(number)
            if posting is None:
                self._postings[number] = array("Q", (entry,))
            else:
                posting.append(entry)

    def _renumber(self) -> None:
        """Number the words anew, the most frequent first, and file everything again."""
        self._renumber_at = 2 * len(self._ids)
        frequency = Counter(number for text in self._texts for number in _as_numbers(text))
        new = {old: number for number, (old, _) in enumerate(frequency.most_common(), start=1)}
        self._numbers = {word: new[old] for word, old in self._numbers.items()}
        bits = _BITS_A_WORD * frequency.total() // len(self._texts)
        self._width = max(_NARROWEST, 1 << (bits - 1).bit_length())
        texts, self._texts = self._texts, []
        self._lengths, self._sketches, self._postings = array("I"), bytearray(), {}
        for text in texts:
            self._file([new[old] for old in _as_numbers(text)])
