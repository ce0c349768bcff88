"""Exact ROUGE-L novelty: the index against rouge_score itself, one step at a time.

Run: pytest tests/test_novelty.py
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score import tokenize as rouge_tokenize

from pipeline import novelty
from pipeline.novelty import NoveltyIndex, f_measure, tokens

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))
SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def rouge_score_f(left: str, right: str) -> float:
    """What rouge_score says, but for texts without a word, where equality decides (see the module)."""
    if not any(map(str.isalnum, left)) and not any(map(str.isalnum, right)):
        return float(left.lower().split() == right.lower().split())
    return float(SCORER.score(left, right)["rougeL"].fmeasure)


def token_f(left: str, right: str) -> float:
    """rouge_score's own dynamic programme over our tokens: for texts beyond ASCII."""
    return float(rouge_scorer._score_lcs(tokens(left), tokens(right)).fmeasure)


class Loop:
    """What the index replaces: every text kept so far, scored one by one."""

    def __init__(self, threshold: float, score: Callable[[str, str], float]) -> None:
        self.threshold = threshold
        self.score = score
        self.kept: list[tuple[str, str]] = []

    def add(self, text: str, id: str) -> None:
        self.kept.append((text, id))

    def top(self, text: str, k: int) -> list[tuple[float, str]]:
        scores = [(self.score(kept, text), id) for kept, id in self.kept]
        return sorted(scores, key=lambda pair: -pair[0])[:k]  # stable: the earlier first

    def nearest(self, text: str) -> tuple[float, str] | None:
        return next((best for best in self.top(text, 1) if best[0] > self.threshold), None)


def check_every_step(
    texts: list[str], threshold: float, keep_all: bool, score: Callable[[str, str], float] = token_f
) -> None:
    index, loop = NoveltyIndex(threshold), Loop(threshold, score)
    for place, text in enumerate(texts):
        expected = loop.nearest(text)
        assert index.nearest(text) == expected, (place, text)
        if expected is None or keep_all:
            index.add(text, str(place))
            loop.add(text, str(place))
    assert len(index) == len(loop.kept)
    assert index.top(texts[0], 3) == loop.top(texts[0], 3)


# ---------------------------------------------------------------- strategies: few words, so that texts collide

THRESHOLDS = st.sampled_from([0.0, 1e-12, 0.25, 0.5, 0.6, 2 / 3, 0.7, 0.8, 0.95, 1 - 1e-12]) | st.floats(
    0, 1, exclude_max=True
)


@st.composite
def alike(draw: st.DrawFn, words: list[str], longest: int = 24) -> list[str]:
    """Texts made of a few sentences by dropping, doubling, swapping and replacing words."""
    word = st.sampled_from(words)
    sentences = draw(st.lists(st.lists(word, max_size=longest), min_size=1, max_size=4))
    texts = []
    for _ in range(draw(st.integers(1, 45))):
        text = list(draw(st.sampled_from(sentences)))
        for edit in draw(st.lists(st.integers(0, 3), max_size=6)):
            at = draw(st.integers(0, max(0, len(text) - 1)))
            text[at : at + 1] = [[], text[at : at + 1] * 2, text[at + 1 : at + 2] + text[at : at + 1], [draw(word)]][
                edit
            ]
        texts.append(" ".join(text))
    return texts


ASCII = alike([*"abcdefgh", "The", "the", "of!", "it's", "x_y", "--", "42"])
MIXED = alike(
    [*"我们写一首诗吗", "詩", "カナ", "가나", "GPT4", "naïve", "nai\u0308ve", "мир", "Мир", "ＡＢ", "❤️", "。", "😀"]
)


FEWER = settings(max_examples=settings().max_examples // 4)  # where an example is dear


@given(ASCII, THRESHOLDS, st.booleans())
def test_ascii_decides_as_rouge_score_at_every_step(texts: list[str], threshold: float, keep_all: bool) -> None:
    check_every_step(texts, threshold, keep_all, rouge_score_f)


@given(MIXED, THRESHOLDS, st.booleans())
def test_any_script_decides_as_the_loop_at_every_step(texts: list[str], threshold: float, keep_all: bool) -> None:
    check_every_step(texts, threshold, keep_all)


@FEWER
@given(ASCII, THRESHOLDS)
def test_more_words_than_characters_changes_nothing(texts: list[str], threshold: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "_LAST_CHARACTER", 5)  # so some texts are strings and some are lists of numbers
        check_every_step(texts, threshold, keep_all=True)


@FEWER
@given(alike(list("abcdefghijklmnopqrstuvwxyz"), longest=150), st.sampled_from([0.5, 0.7, 0.9]))
def test_long_texts_with_wider_sketches_decide_as_the_loop(texts: list[str], threshold: float) -> None:
    check_every_step(texts, threshold, keep_all=True)


def test_exactly_at_the_threshold_rouge_score_decides() -> None:
    """F is 7/10 for many lengths, but in floating point it lies above, at or below 0.7."""
    decisions = set()
    for both in range(10, 121, 10):
        common = both * 7 // 20
        if Fraction(2 * common, both) != Fraction(7, 10):
            continue
        for m in range(common, both - common + 1):
            n = both - m
            left = " ".join(f"w{place}" for place in range(m))
            right = " ".join(f"w{place}" if place < common else f"v{place}" for place in range(n))
            expected = SCORER.score(left, right)["rougeL"].fmeasure
            index = NoveltyIndex(0.7)
            index.add(left, "left")
            assert index.nearest(right) == ((expected, "left") if expected > 0.7 else None), (common, m, n)
            decisions.add(expected > 0.7)
    assert decisions == {True, False}


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_f_measure_has_rouge_scores_bits(m: int, n: int, data: st.DataObject) -> None:
    common = data.draw(st.integers(0, min(m, n)))
    precision, recall = common / n, common / m
    assert f_measure(common, m, n) == rouge_scorer.scoring.fmeasure(precision, recall)


# ---------------------------------------------------------------- words


@given(st.text(st.characters(max_codepoint=127)))
@example("Don't_stop 3.14\tTHE\x1fend")
def test_ascii_words_are_rouge_scores(text: str) -> None:
    expected = rouge_tokenize.tokenize(text, None)
    assert tokens(text) == (expected or [" ".join(text.lower().split())])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("写一首诗。", ["写", "一", "首", "诗"]),
        ("用Python写3个函数", ["用", "python", "写", "3", "个", "函", "数"]),
        ("カナ・かな", ["カ", "ナ", "か", "な"]),
        ("ｶﾞ ﾅ", ["ガ", "ナ"]),  # half-width kana are the kana
        ("안녕 world", ["안", "녕", "world"]),
        ("\U00020000々", ["\U00020000", "々"]),
        ("Naïve CAFE\u0301", ["naïve", "café"]),
        ("Straße Мир ΣΊΣΥΦΟΣ", ["strasse", "мир", "σίσυφοσ"]),
        ("السلام عليكم", ["السلام", "عليكم"]),
        ("हिन्दी", ["हिन्दी"]),  # vowel signs are marks, and stay in their word
        ("ＡＢＣ１２", ["abc12"]),
        ("it’s it´s it's", ["it", "s"] * 3),
        ("co\u00adoperate", ["cooperate"]),
        ("a\u200bb", ["a", "b"]),
        ("I ❤️ it", ["i", "it"]),
        ("😀", ["😀"]),
        (" !  ! ", ["! !"]),
        ("", [""]),
        ("\ud800a", ["a"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert tokens(text) == words


@given(st.text(), THRESHOLDS)
def test_any_text_is_wholly_like_itself(text: str, threshold: float) -> None:
    index = NoveltyIndex(threshold)
    index.add(text, "first")
    assert index.nearest(text) == (1.0, "first")
    assert index.top(text, 1) == [(1.0, "first")]


def test_a_chinese_near_duplicate_is_found_where_rouge_score_sees_nothing() -> None:
    index = NoveltyIndex()
    index.add("请写一首关于春天的短诗", "spring")
    assert index.nearest("请写一首关于秋天的短诗") == (f_measure(10, 11, 11), "spring")
    assert SCORER.score("请写一首诗", "请写一首诗")["rougeL"].fmeasure == 0


def test_texts_without_words_are_like_their_equals_alone() -> None:
    index = NoveltyIndex()
    for text in ("!!!", "😀", "a word"):
        assert index.nearest(text) is None
        index.add(text, text)
    assert index.nearest(" !!!\n") == (1.0, "!!!")
    assert index.nearest("!!") is None


# ---------------------------------------------------------------- the interface


def test_the_earliest_of_equals_is_the_nearest() -> None:
    index = NoveltyIndex(0.5)
    for id in ("first", "second"):
        index.add("It's dangerous to go alone!", id)
    index.add("It's risky to go alone!", "third")
    assert index.nearest("it's DANGEROUS to go alone") == (1.0, "first")
    assert [id for _, id in index.top("it's dangerous to go alone", 9)] == ["first", "second", "third"]
    assert index.nearest("it's foolish to go alone") == (f_measure(5, 6, 6), "first")


def test_an_empty_index_knows_nothing() -> None:
    index = NoveltyIndex()
    assert len(index) == 0
    assert index.nearest("anything") is None
    assert index.top("anything", 3) == []


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        NoveltyIndex(threshold)


def test_sixty_thousand_words_are_told_apart() -> None:
    """Word numbers pass through the surrogates' range, which ordinary strings avoid."""
    index = NoveltyIndex()
    texts = [" ".join(f"w{place}" for place in range(start, start + 50)) for start in range(0, 60_000, 50)]
    for place, text in enumerate(texts):
        index.add(text, str(place))
    for place in range(0, len(texts), 7):
        words = texts[place].split()
        assert index.nearest(" ".join([*words[:40], *["new"] * 10])) == (f_measure(40, 50, 50), str(place))
        assert index.nearest(" ".join([*words[:35], *["new"] * 16])) is None


def test_importing_it_is_light() -> None:
    check = "import sys, pipeline.novelty; print({'numpy', 'rouge_score', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- real instructions


def real_ascii_instructions(count: int) -> list[str]:
    """Ten runs of the file, so that near-duplicates, which stand together there, stay together."""
    path = DATA / "instructions_en.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path} (set INSTRUCTLOOP_DATA to the folder with the real instructions)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [text for line in lines if (text := json.loads(line)["instruction"]).isascii()]
    run = count // 10
    return [text for start in range(0, len(texts), len(texts) // 10) for text in texts[start : start + run]][:count]


class Overlaps:
    """For a text, all words it has in common with each kept one, counted with their repetitions: at least the LCS."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.having: dict[tuple[str, int], list[int]] = defaultdict(list)

    @staticmethod
    def numbered(words: list[str]) -> list[tuple[str, int]]:
        return [(word, words[:place].count(word)) for place, word in enumerate(words)]

    def add(self, words: list[str]) -> None:
        for key in self.numbered(words):
            self.having[key].append(len(self.lengths))
        self.lengths.append(len(words))

    def bounds(self, words: list[str]) -> list[float]:
        """The highest F that the words in common allow, for each kept text."""
        places = [place for key in self.numbered(words) for place in self.having.get(key, ())]
        common = np.bincount(np.array(places, dtype=np.int64), minlength=len(self.lengths))
        bounds: list[float] = (2 * common / (np.array(self.lengths) + len(words))).tolist()
        return bounds


@pytest.mark.slow
def test_five_thousand_real_instructions_decide_as_rouge_score() -> None:
    """rouge_score scores every pair that could pass 0.7 by its words in common, and a sample of the others."""
    texts = real_ascii_instructions(5000)
    index, overlaps, rng = NoveltyIndex(0.7), Overlaps(), random.Random(0)
    kept: list[int] = []
    scored = 0
    for place, text in enumerate(texts):
        words = rouge_tokenize.tokenize(text, None)
        expected = None
        if kept:
            bounds = overlaps.bounds(words)
            if place % 10 == 0:
                other = rng.randrange(len(kept))
                assert SCORER.score(texts[kept[other]], text)["rougeL"].fmeasure <= bounds[other] + 1e-9
            for other in (other for other, bound in enumerate(bounds) if bound > 0.7 - 1e-6):
                f = SCORER.score(texts[kept[other]], text)["rougeL"].fmeasure
                scored += 1
                if f > (expected[0] if expected else 0.7):
                    expected = (f, str(kept[other]))
        assert index.nearest(text) == expected, place
        if expected is None:
            index.add(text, str(place))
            overlaps.add(words)
            kept.append(place)
    assert len(index) == len(kept)
    assert scored > len(texts) // 10  # the sample has near-duplicates to decide on
