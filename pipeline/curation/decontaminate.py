"""Decontamination: which records hold a benchmark's items, so that training on them would spoil the measurement.

    benchmark = Benchmark(load_items([Path("heldout.jsonl")]))
    for record, hit in benchmark.hits(records): ...    # hit names the item

A record is a hit where
1. it shares an n-gram with an item's question: 8 words in a row or 13 CJK characters (Brown et al. 2020, appendix C,
   used 13 words), wherever in the record they stand. Runs that more than MOST_ITEMS items share are boilerplate and
   count for none of them; or
2. it holds half the n-grams of an item's answer. One alone says nothing there: on our data such hits were titles of
   well-known books and the one way to test for a prime, in 29 of 9,000 records, none of them contaminated; or
3. its question is a near duplicate of one: ROUGE-L of 0.8 or more, which a few changed words do not hide. Questions of
   fewer than 8 words must be equal, word for word: too many short ones are alike by chance.

A benchmark file is jsonl, json, parquet, csv (any columns) or txt (an item a line). What asks is told by the usual
field names; where there are none, all texts in the item count as question. Items with the same texts are one. Items
are kept in memory; records stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.curation.near_duplicates import text_of
from pipeline.curation.rows import read_rows
from pipeline.curation.shingles import Windows, batches, is_cjk, window_hashes, words_of
from pipeline.errors import UsageError
from pipeline.novelty import NoveltyIndex, tokens
from pipeline.records import Record
from pipeline.text import readable_name

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

WORDS, CJK_CHARACTERS = 8, 13
SIMILARITY = 0.8
ANSWER_SHARE = 0.5
MOST_ITEMS = 3  # that may share a run, before it is boilerplate
_BATCH = 2048  # records
_QUESTION_FIELDS = ("instruction", "input", "question", "prompt", "query", "problem", "text", "goal")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark: the texts that ask, and all others in it."""

    id: str
    asking: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def question(self) -> str:
        return "\n".join(self.asking)


@dataclass(frozen=True, slots=True)
class Hit:
    """The item that a record holds, and how that was found: the run of words, or the ROUGE-L of the questions."""

    item: Item
    shared: str = ""
    similarity: float | None = None


def load_items(paths: Sequence[Path]) -> list[Item]:
    """The items of all files. Raises UsageError naming file and line; a file without any text is an error too."""
    items: dict[tuple[str, ...], Item] = {}
    for path in paths:
        found = False
        for row in read_rows(path, text_lines=True):
            asking, others = _texts_of(row.value)
            if not asking:
                continue
            found = True
            name = row.value.get("id") if isinstance(row.value, dict) else None
            id_ = f"{readable_name(path.name)}:{name if isinstance(name, str | int) else row.number}"
            items.setdefault((*asking, *others), Item(id_, asking, others))
        if not found:
            raise UsageError(f"{path}: holds no text to decontaminate against.")
    return list(items.values())


@dataclass(slots=True)
class _Field:
    """One text of an item, and how many different n-grams it has."""

    item: int
    asks: bool
    text: str
    grams: int = 0


class Benchmark:
    """Items, indexed: `hits` says which records hold one."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        words: int = WORDS,
        cjk: int = CJK_CHARACTERS,
        similarity: float = SIMILARITY,
    ) -> None:
        self.items = items
        self._mass, self._word_weight, self._cjk_weight = words * cjk, cjk, words
        self._fields: list[_Field] = []
        self._grams, self._fields_of = self._index()
        # The index keeps what is above its threshold, and a hit is at or above ours.
        self.similarity = similarity
        self._questions = NoveltyIndex(max(similarity - 1e-9, 0.0))
        self._short: dict[tuple[str, ...], int] = {}
        for place, item in enumerate(items):
            asked = tokens(item.question)
            if self._weight(asked) < self._mass:
                self._short.setdefault(tuple(asked), place)
            else:
                self._questions.add(item.question, str(place))

    def hits(self, records: Iterable[Record]) -> Iterator[tuple[Record, Hit | None]]:
        """Each record with the item it holds, or None, in order."""
        with_texts = ((record, text_of(record)) for record in records)
        for batch in batches(with_texts, _BATCH, lambda pair: len(pair[1])):
            shared = self._shared([text for _, text in batch])
            for place, (record, _) in enumerate(batch):
                yield record, shared.get(place) or self._alike(record)

    # ---------------------------------------------------------------- n-grams

    def _windows(self, texts: Sequence[str]) -> Windows:
        words = [words_of(text) for text in texts]
        return window_hashes(words, mass=self._mass, word_weight=self._word_weight, cjk_weight=self._cjk_weight)

    def _index(self) -> tuple[NDArray[numpy.uint64], NDArray[numpy.int64]]:
        """The n-grams that at most MOST_ITEMS items have, sorted, each with the place of a field that has it."""
        import numpy as np

        all_grams, all_fields = [], []
        for place, item in enumerate(self.items):
            self._fields += [_Field(place, True, text) for text in item.asking]
            self._fields += [_Field(place, False, text) for text in item.others]
        for places in batches(range(len(self._fields)), _BATCH):
            windows = self._windows([self._fields[place].text for place in places])
            for place, begin, end in zip(
                places, windows.starts[:-1].tolist(), windows.starts[1:].tolist(), strict=True
            ):
                grams = np.unique(windows.hashes[begin:end])
                self._fields[place].grams = len(grams)
                all_grams.append(grams)
                all_fields.append(np.full(len(grams), place, np.int64))
        hashes, fields = np.concatenate(all_grams), np.concatenate(all_fields)
        items = np.array([field.item for field in self._fields], np.uint64)
        distinct, times = np.unique(np.unique(np.stack([hashes, items[fields]]), axis=1)[0], return_counts=True)
        rare = np.isin(hashes, distinct[times <= MOST_ITEMS])
        order = np.argsort(hashes[rare], kind="stable")
        return hashes[rare][order], fields[rare][order]

    def _shared(self, texts: Sequence[str]) -> dict[int, Hit]:
        """The texts of a batch that hold an item, by its n-grams: the one that most of them point to."""
        import numpy as np

        windows = self._windows(texts)
        left = np.searchsorted(self._grams, windows.hashes, side="left")
        right = np.searchsorted(self._grams, windows.hashes, side="right")
        met: dict[int, dict[int, dict[int, int]]] = {}  # text -> field -> gram -> the window that has it
        for window in np.flatnonzero(right > left).tolist():
            text = int(np.searchsorted(windows.starts, window, side="right")) - 1
            for at in range(left[window], right[window]):
                its_grams = met.setdefault(text, {}).setdefault(int(self._fields_of[at]), {})
                its_grams.setdefault(int(windows.hashes[window]), window)
        result = {}
        for text, by_field in met.items():
            for field_place, its_grams in sorted(by_field.items(), key=lambda pair: -len(pair[1])):
                field = self._fields[field_place]
                if field.asks or len(its_grams) >= ANSWER_SHARE * field.grams:
                    word = int(windows.first[min(its_grams.values())] - windows.offsets[text])
                    result[text] = Hit(self.items[field.item], shared=self._run(tokens(texts[text])[word:]))
                    break
        return result

    def _run(self, words: Sequence[str]) -> str:
        """The n-gram that `words` begin with."""
        length = next(n for n in range(1, len(words) + 1) if self._weight(words[:n]) >= self._mass)
        shown = words[0]
        for before, word in pairwise(words[:length]):
            shown += word if is_cjk(before) or is_cjk(word) else f" {word}"
        return shown

    def _weight(self, words: Sequence[str]) -> int:
        return sum(self._cjk_weight if is_cjk(word) else self._word_weight for word in words)

    # ---------------------------------------------------------------- near duplicates

    def _alike(self, record: Record) -> Hit | None:
        """The item whose question the record's is nearly, or exactly where it is short."""
        both = f"{record.instruction}\n{record.input}" if record.input else record.instruction
        for text in dict.fromkeys((both, record.instruction, record.input)):
            if not text.strip():
                continue
            place = self._short.get(tuple(tokens(text)))
            if place is not None:
                return Hit(self.items[place], similarity=1.0)
            nearest = self._questions.nearest(text)
            if nearest is not None:
                return Hit(self.items[int(nearest[1])], similarity=nearest[0])
        return None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _texts_of(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of a row that ask, by the usual names of their fields, an instance's input included; and the others."""
    texts = list(_texts(value))
    asking: list[Any] = []
    if isinstance(value, dict):
        asking = [value[name] for name in _QUESTION_FIELDS if isinstance(value.get(name), str)]
        instances = value.get("instances")
        if isinstance(instances, list):
            asking += [part.get("input") for part in instances if isinstance(part, dict)]
    asking = [text for text in asking if isinstance(text, str) and text.strip()]
    if not asking:
        return tuple(texts), ()
    for text in asking:
        texts.remove(text)
    return tuple(asking), tuple(texts)
