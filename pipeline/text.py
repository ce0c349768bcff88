"""Small facts about text that hold for English and Chinese alike."""

from __future__ import annotations

import os
import re
from functools import cache
from itertools import pairwise

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


def simplified(text: str) -> str:
    """The text with its traditional Chinese characters simplified, one for one, so that places in it stay.

    For comparing what a model wrote in one script with a source in the other, never for what is kept: which of several
    words is meant (乾 as 干 or 乾) takes more than a character.
    """
    return text if text.isascii() else text.translate(_simplified_forms())


@cache
def _simplified_forms() -> dict[int, str]:
    from opencc import OpenCC

    characters = list(map(chr, range(0x4E00, 0xA000)))
    forms = OpenCC("t2s").convert("\n".join(characters)).split("\n")
    return {ord(one): form for one, form in zip(characters, forms, strict=True) if form != one}


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


def readable_name(name: str) -> str:
    """A file's name as UTF-8 can hold it: bytes of another encoding are shown as \\xe9, so that names stay apart."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


_CONTROL = {sign: f"\\x{sign:02x}" for sign in (*range(32), *range(127, 160)) if chr(sign) not in "\n\t"}


def for_terminal(text: str) -> str:
    """A text whose control characters are shown and not obeyed: names and replies could move the cursor, or worse."""
    return text.translate(_CONTROL).encode("utf-8", "backslashreplace").decode()  # a path may hold what UTF-8 cannot


def strip_thinking(text: str) -> str:
    """The text without the `<think>` blocks that reasoning models put before their answer.

    Where a chat template opens the block for the model, the reply holds its end alone; JSON that speaks of one stays.
    """
    if "<think>" in text:
        text = _THINKING.sub("", text).lstrip()
    thought, end, answer = text.partition("</think>")
    return answer.lstrip() if end and thought.lstrip()[:1] not in ("{", "[", "`") else text


_PHRASE_END = re.compile(r"[。！；，、.;,:：!](?:\s|$|(?<=[。！；，、：]))")


def is_menu(text: str) -> bool:
    """Whether the text is a run of short titles with hardly a stop or a comma, as the menus of web pages are."""
    pieces = text.split()
    if len(text) < 200 or len(pieces) < 20 or sum(map(str.isalpha, text)) < 0.6 * len(text):
        return False
    return len(_PHRASE_END.findall(text)) < len(text) / 150


# ---------------------------------------------------------------- what a text is about

_HAN_RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_PLAIN_WORD = re.compile(r"[^\W_]+")
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


def terms(text: str) -> set[str]:
    """What a text is about: its words without endings, common ones left out; of Chinese, pairs of characters."""
    text = simplified(text.lower())
    found = {_stem(word) for word in _PLAIN_WORD.findall(_HAN_RUN.sub(" ", text)) if word not in _COMMON}
    for run in _HAN_RUN.findall(_COMMON_HAN.sub(" ", text)):
        found |= {a + b for a, b in pairwise(run)} or {run}
    return found


def _stem(word: str) -> str:
    """A word without the ending that grammar gave it: timeouts, closed and closing as timeout, clos, clos."""
    for ending in ("ations", "ation", "ingly", "ings", "ing", "edly", "ied", "ies", "ed", "es", "ly", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


# How a question is put: by a question mark, or by the word that a sentence of it opens with.
_ASKING = re.compile(
    r"[?？]|(?:\A|[.!:;,…—]\W)\W*(?:please |kindly |and |then |now |i |we |fact )*(?:what|which|who|whom|whose|when"
    r"|where|why|how|is|are|was|were|do|does|did|can|could|should|will|would|has|have|had|explain|describe|list|name|give"
    r"|(?:in|at|to|on|by|under|from|of) (?:what|which)|tell|say|state|compare|contrast|summari[sz]e|sum|outline|define"
    r"|identify|discuss|show|write|find|count|calculate|check|decide|judge|introduce|answer|complete|fill|verify|confirm"
    r"|true|suppose|imagine|if|let|wonder|want|know|need)\b"
    r"|请|什么|怎|如何|哪|多少|几|为何|何|谁|吗|呢|是否|对错|判断|解释|说[明说出]|列|比较|描述|概[括述]|简述|介绍|谈|分析"
    r"|举例|核[对实]|帮|写出|填|问",
    re.IGNORECASE,
)


def asks(text: str) -> bool:
    """Whether a text asks for anything."""
    return _ASKING.search(simplified(text)) is not None
