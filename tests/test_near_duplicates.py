"""Near duplicates: what counts as alike, that LSH finds what a full comparison finds, and who stays.

Run: pytest tests/test_near_duplicates.py
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curation.near_duplicates import (
    BANDS,
    Match,
    band_keys,
    find_near_duplicates,
    fingerprint,
    similarity,
    text_of,
)
from pipeline.curation.shingles import batches, window_hashes, words_of
from pipeline.novelty import tokens
from pipeline.records import Record
from tests.conftest import a_record

ROOT = Path(__file__).parents[1]


def record(instruction: str, output: str, input: str = "", history: Sequence[tuple[str, str]] = ()) -> Record:
    return a_record(instruction, output, input=input, history=history)


def losers(records: Sequence[Record], threshold: float = 0.7, ranked: Sequence[int] | None = None) -> dict[int, Match]:
    keys = band_keys(map(text_of, records))
    order = range(len(records)) if ranked is None else ranked
    return find_near_duplicates(keys, order, lambda place: fingerprint(records[place]), threshold)


LONG = "Read the review below with care and say in one word whether its writer liked the film or did not like it."
POEM = "The tide comes in at evening and carries every footprint of the afternoon back to the dark and patient sea."


# ---------------------------------------------------------------- what is alike

SEA = record("Write about the sea.", POEM)
POEM_ZH = "海潮在黄昏涨起，带走沙滩上午后的每一个脚印，回到深蓝的远"
ALIKE = [
    ("the same but for case and marks", record("Name a river.", POEM), record("name a RIVER", POEM), True),
    ("one word of a long answer", SEA, record("Write about the sea.", POEM + " Amen."), True),
    ("too little is the same of a short instruction", SEA, record("Write about a sea.", POEM), False),
    ("one instruction, other inputs", record(LONG, "yes", "A joy to see."), record(LONG, "yes", "Too long."), False),
    ("one passage, other question", record("Who?", "she", POEM * 2), record("When?", "now", POEM * 2), False),
    ("one question, other answers at length", SEA, record("Write about the sea.", LONG), False),
    ("one question, yes and no", record(LONG, "yes", POEM), record(LONG, "no", POEM), True),
    ("nearly one question, yes and no", record(LONG, "yes", POEM), record(LONG, "no", POEM + " Amen."), False),
    ("other turns before", record("Go on.", POEM, history=[(LONG, POEM[::-1])]), record("Go on.", POEM), False),
    ("Chinese, a character", record("写一首短诗", POEM_ZH + "方"), record("写一首短诗", POEM_ZH + "处"), True),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right", "expected"), [row[1:] for row in ALIKE], ids=[row[0] for row in ALIKE])
def test_what_is_a_near_duplicate(left: Record, right: Record, expected: bool) -> None:
    assert (1 in losers([left, right])) is expected


def test_similarity_is_the_jaccard_measure_of_runs_of_three_words() -> None:
    left, right = record("a b c d", "x"), record("a b c e", "x")
    # instruction: {abc, bcd} and {abc, bce}; the whole: {abc, bcd, cdx} and {abc, bce, cex}
    assert similarity(fingerprint(left), fingerprint(right)) == 1 / 5
    assert similarity(fingerprint(left), fingerprint(left)) == 1.0


def test_a_record_without_any_words_is_like_none_but_its_equal() -> None:
    blank, marks = record("!!!", "?"), record("...", "-")
    assert losers([blank, marks, record("!!!", "?")]) == {2: Match(0, 1.0)}


# ---------------------------------------------------------------- who stays

CHAIN = [record("Tell a story.", f"{POEM} {ending}") for ending in ("One.", "Two two.", "Three three three.")]


def test_the_first_in_rank_stays_and_every_loser_names_a_kept_one() -> None:
    assert set(losers(CHAIN, ranked=[2, 0, 1])) == {0, 1}
    assert {match.place for match in losers(CHAIN, ranked=[2, 0, 1]).values()} == {2}


def test_a_loser_names_the_most_similar_kept_one() -> None:
    far, near = record("Tell a story.", POEM + " a b c d e f"), record("Tell a story.", POEM + " z")
    copy = record("Tell a story.", POEM)
    found = losers([far, near, copy], threshold=0.85)
    assert found[2].place == 1
    assert found[2].similarity == similarity(fingerprint(near), fingerprint(copy))


def test_places_that_are_not_ranked_take_no_part() -> None:
    assert losers(CHAIN, ranked=[1]) == {}


def test_nothing_to_compare() -> None:
    assert band_keys([]).shape == (0, BANDS)
    assert losers([]) == {}


# ---------------------------------------------------------------- LSH against a full comparison


def perturbed(words: list[str], random_: random.Random) -> list[str]:
    """The words with a few of them changed."""
    changed = list(words)
    for _ in range(random_.randint(0, 6)):
        changed[random_.randrange(len(changed))] = f"w{random_.randrange(10_000)}"
    return changed


def test_lsh_finds_what_a_full_comparison_finds() -> None:
    random_ = random.Random(7)
    records = []
    for number in range(150):
        words = [f"w{random_.randrange(10_000)}" for _ in range(random_.randint(40, 90))]
        for copy in range(3):
            text = " ".join(words if copy == 0 else perturbed(words, random_))
            records.append(record(f"Task {number} of the list", text))
    prints = [fingerprint(one) for one in records]
    expected: set[int] = set()
    for place in range(len(records)):
        kept = [other for other in range(place) if other not in expected]
        if any(similarity(prints[place], prints[other]) >= 0.7 for other in kept):
            expected.add(place)
    found = losers(records)
    assert 50 < len(expected) < 300  # the data holds both kinds
    assert len(expected - found.keys()) <= 2  # LSH may miss 1 in 700 at 0.7, fewer above
    for place, match in found.items():
        assert match.place not in found
        assert match.similarity == similarity(prints[place], prints[match.place]) >= 0.7


@pytest.mark.parametrize("number", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_records_of_one_template_stay_fast_and_apart_and_their_copies_are_found(number: int) -> None:
    """Thousands share most of their words; a full comparison of them all would be millions of pairs."""
    records = [
        record(LONG, "yes", f"film number {n} was seen by {n * 7} people in {n * 3} towns") for n in range(number)
    ]
    copies = [record(one.instruction, one.output, one.input + "!") for one in records[::200]]
    compared = 0

    def counting(place: int) -> object:
        nonlocal compared
        compared += 1
        return fingerprint((records + copies)[place])

    keys = band_keys(map(text_of, records + copies))
    found = find_near_duplicates(keys, range(len(records) + len(copies)), counting)  # type: ignore[arg-type]
    assert {place: match.place for place, match in found.items()} == {number + n: n * 200 for n in range(number // 200)}
    assert compared < 65 * len(records + copies)


def test_the_same_keys_in_any_batch_and_process() -> None:
    texts = [f"{POEM} {n}" for n in range(5000)]  # more than a batch
    keys = band_keys(texts)
    assert np.array_equal(keys[4990:], band_keys(texts[4990:]))
    code = f"from pipeline.curation.near_duplicates import band_keys; print(band_keys([{texts[0]!r}])[0].tolist())"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(ran.stdout) == keys[0].tolist()


# ---------------------------------------------------------------- windows

WORDS = st.lists(st.sampled_from(["a", "b", "cat", "海", "潮", "7"]), max_size=30)


@given(texts=st.lists(WORDS, max_size=6), mass=st.integers(1, 120), weights=st.sampled_from([(13, 8), (1, 1), (7, 7)]))
def test_windows_are_the_shortest_runs_that_weigh_enough(
    texts: list[list[str]], mass: int, weights: tuple[int, int]
) -> None:
    a_word, a_character = weights
    windows = window_hashes(texts, mass=mass, word_weight=a_word, cjk_weight=a_character)
    seen: dict[int, tuple[str, ...]] = {}
    for number, words in enumerate(texts):
        expected = []
        for first in range(len(words)):
            weight = 0
            for last in range(first, len(words)):
                weight += a_character if words[last] in "海潮" else a_word
                if weight >= mass:
                    expected.append(tuple(words[first : last + 1]))
                    break
        hashes = windows.hashes[int(windows.starts[number]) : int(windows.starts[number + 1])].tolist()
        assert len(hashes) == len(expected)
        for hash_, run in zip(hashes, expected, strict=True):
            assert seen.setdefault(hash_, run) == run  # equal hash, equal run
    assert len(set(seen.values())) == len(seen)  # and the other way round


def test_a_short_text_is_one_window_if_wanted() -> None:
    assert len(window_hashes([tokens("two words"), []], mass=3).hashes) == 0
    windows = window_hashes([tokens("two words"), [], tokens("now three words")], mass=3, short_ones=True)
    assert windows.starts.tolist() == [0, 1, 1, 2]


@given(st.text(max_size=40) | st.text(st.characters(max_codepoint=127), max_size=40))
def test_the_fast_words_are_the_same_words(text: str) -> None:
    fast, plain = window_hashes([words_of(text)], mass=1), window_hashes([tokens(text)], mass=1)
    assert fast.hashes.tolist() == plain.hashes.tolist()


def test_batches_are_shorter_where_texts_are_long() -> None:
    assert [len(batch) for batch in batches(["x"] * 10, 4, len)] == [4, 4, 2]
    assert [len(batch) for batch in batches(["x" * 3_000_000] * 7, 4, len)] == [3, 3, 1]
    assert list(batches([], 4)) == []
