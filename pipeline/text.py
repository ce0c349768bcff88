"""Small facts about text that hold for English and Chinese alike."""

from __future__ import annotations

import re

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)

# A Chinese word is about one and a half characters long, so that limits in words fit both languages.
HAN_CHARACTERS_A_WORD = 1.5


def language_of(text: str) -> str:
    """ "zh" where at least three letters in ten are Han characters, else "en"."""
    letters = sum(map(str.isalpha, text))
    return "zh" if letters and len(_HAN.findall(text)) >= 0.3 * letters else "en"


def count_words(text: str) -> float:
    """Words, a Han character counting as two thirds of one."""
    return len(_WORD.findall(_HAN.sub(" ", text))) + len(_HAN.findall(text)) / HAN_CHARACTERS_A_WORD


def estimate_tokens(text: str) -> float:
    """About how many tokens a text has, before any tokenizer is known: four letters, or two thirds of a Han character.

    An estimate, for plans and the size of chunks; what counts against a limit is bounded by bytes
    (llm.most_prompt_tokens).
    """
    han = len(_HAN.findall(text))
    return (len(text) - han) / 4 + han / HAN_CHARACTERS_A_WORD


def one_line(text: str) -> str:
    """The text with every run of white space made one blank."""
    return " ".join(text.split())


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 file can hold, made U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def strip_thinking(text: str) -> str:
    """The text without the `<think>` blocks that reasoning models put before their answer."""
    return _THINKING.sub("", text).lstrip() if "<think>" in text else text


_PHRASE_END = re.compile(r"[。！；，、.;,:：!](?:\s|$|(?<=[。！；，、：]))")


def is_menu(text: str) -> bool:
    """Whether the text is a run of short titles with hardly a stop or a comma, as the menus of web pages are."""
    pieces = text.split()
    if len(text) < 200 or len(pieces) < 20 or sum(map(str.isalpha, text)) < 0.6 * len(text):
        return False
    return len(_PHRASE_END.findall(text)) < len(text) / 150
