"""text.py: words, languages and white space, in English and Chinese alike."""

from __future__ import annotations

import pytest

from pipeline.text import count_words, language_of, one_line, replace_surrogates, strip_thinking


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the boiling point of water?", "en"),
        ("水的沸点是多少？", "zh"),
        ("用 Python 写一个函数，返回列表的平均值。", "zh"),
        ("Explain the word 'tofu' (豆腐) to a child in two sentences.", "en"),
        ("", "en"),
        ("123 !?", "en"),
    ],
)
def test_language_of(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Name three rivers.", 3),
        ("It's a well-known fact, isn't it?", 6),
        ("写一首诗", 4 / 1.5),
        ("用 Python 排序", 1 + 3 / 1.5),
        ("... --- !!!", 0),
    ],
)
def test_count_words(text: str, words: float) -> None:
    assert count_words(text) == pytest.approx(words)


def test_one_line_folds_every_kind_of_white_space() -> None:
    assert one_line("  a\t b\r\n\n c\u3000d ") == "a b c d"


def test_lone_surrogates_become_replacement_characters_and_pairs_stay() -> None:
    assert replace_surrogates("a\ud83db") == "a\ufffdb"
    assert replace_surrogates("😀 中") == "😀 中"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("no thinking here", "no thinking here"),
        ("<think>let me see</think>\n\nThe answer is 4.", "The answer is 4."),
        ("<think>a</think>x<think>b</think>y", "xy"),
        ("<think>cut off before it ended", ""),
        ('They want {"a": 1}.\n</think>\n\n{"a": 2}', '{"a": 2}'),  # the template had opened it
        ("</think>It is 4.", "It is 4."),
        ('{"output": "A block ends with </think>."}', '{"output": "A block ends with </think>."}'),
        ('```json\n["</think>"]\n```', '```json\n["</think>"]\n```'),
    ],
)
def test_strip_thinking(text: str, left: str) -> None:
    assert strip_thinking(text) == left
