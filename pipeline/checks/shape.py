"""How a text is built, whatever it says: it breaks off in mid-sentence, goes round in circles, says nothing, echoes.

Nothing here knows grammar. It goes by stops and line ends, by words that cannot end a sentence, and by repeats.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pipeline.text import count_words, one_line

# ---------------------------------------------------------------- breaking off

_STOPS = tuple(".!?。！？…")
_NEXT_SENTENCE = re.compile(  # behind a stop that ends a sentence: not that of "1. ", "e.g. ", "J. Doe" or "Mr. Doe"
    r"(?<=[a-z0-9)\]\"'”’%][a-z)\]\"'”’%])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bNo)(?<!\bMrs)(?<!\bLtd)"
    r"(?<!\bInc)(?<!\bJr)(?<!\betc)[.!?][\"'”’)]?\s+(?=[A-Z\"'“(])|[。！？]"
)
_NO_END = re.compile(r"[\w,，、;；—–(（“《-](?<!即可)(?<![吧呢啊呀吗啦嘛哟])\Z")
_LEFT_HANGING = re.compile(
    r"(?:\b(?:the|an?|of|to|and|or|with|for|from|into|is|are|was|were|be|that|which|by|as|at|their|its|his|your|our"
    r"|my|because|but|if|than|between|such|this|these|can|will|would|should|has|have)|[,，、;；(（“《—]"
    r"|[的和是与及或把被在对从向将而且但因由也很再]|然后|接着|随后|首先|其次|此外|另外|不仅|不但|正在|已经|应该|能够|必须|为了|由于|关于|对于|根据|按照|包括|以便|所以|以及|例如|比如|如果|通过|其中)\Z"
)
_SENTENCE = re.compile(
    r"\A(?:[\w ]{1,20}: ?)?[\"'“(]?[A-Z][^|:;=]*\b(?:is|are|was|were|can|could|will|would|should|may|might|must|has"
    r"|have|had|do|does|did|because|which|that|while|so|but|it|they|we|you)\b"
    r"|(?P<zh>\A(?:[^：]{1,8}：)?[^|=]*[\u4e00-\u9fff]{4}[，；,、][\u4e00-\u9fff])"
)
_CODE_LINE = re.compile(r"</?\w+>|^\s*(?:def|class|import|return|print|for|if|SELECT|var|let|const)\b.*[:(;]|[{};]\s*$")
_NUMBER = re.compile(r"^\s*(?:[-*•·]|\(?\d{1,3}[.):、])\s+", re.MULTILINE)
_ITEM = re.compile(rf"{_NUMBER.pattern}|[^：\s]{{1,8}}：")  # 正方：…
_SIGNATURE = re.compile(  # hashtags, an address, who said it, the last line of a letter: they need no stop
    r"\n(?:[\w']+ ?){1,5},\s*\Z|(?:\s+#\w+)+\s*\Z|\S*://\S+\s*\Z"
    r"|(?:\s[-–—~]+|\n[-–—~]+)\s*[^\W\d][\w.,]*(?: [\w.,]+){0,3}\s*\Z"
)
_LONG_SENTENCE, _LONG_LINE = 10, 5  # words, from which a sentence or a line shows what it is
_PAIRS_ZH = (("“", "”"), ("「", "」"), ("《", "》"), ("（", "）"), ("【", "】"))
_LONG_ALONE_ZH = 20  # a slogan, a verse of four lines, a definition: models often leave out a single sentence's stop


def breaks_off(text: str) -> str | None:
    """The last words of a text that ends in mid-sentence; None where it ends, or where nobody could tell."""
    text = text.rstrip()
    if not _NO_END.search(text) or text.count("```") % 2 or _SIGNATURE.search(text):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = _NUMBER.sub("", lines[-1]).strip()
    if not last or _CODE_LINE.search(lines[-1]):
        return None
    words = count_words(last)
    broken = (
        _NEXT_SENTENCE.split(last)[-1].strip() not in ("", last)
        or (words >= _LONG_LINE and _LEFT_HANGING.search(last) is not None)
        or (_is_sentence(last, words, alone=len(lines) == 1 and last == lines[-1]) and _mostly_stopped(lines[:-1]))
        or _alone_without_stop(lines)
        or any(lines[-1].count(opening) > lines[-1].count(closing) for opening, closing in _PAIRS_ZH)
    )
    return last[-40:] if broken else None


def _is_sentence(line: str, words: float, *, alone: bool) -> bool:
    """Whether a line is long enough, and built, as only sentences are; one in Chinese alone is often left unstopped."""
    found = _SENTENCE.search(line) if words >= _LONG_SENTENCE else None
    return found is not None and (not alone or found["zh"] is None or words >= _LONG_ALONE_ZH)


def _mostly_stopped(lines: Sequence[str]) -> bool:
    """Whether half of the lines end with a stop, as those of verse and of many lists do not."""
    return 2 * sum(line.endswith(_STOPS) for line in lines) >= len(lines)


def _alone_without_stop(lines: Sequence[str]) -> bool:
    """Whether all lines of the kind of the last one end with a stop, and it alone does not."""
    numbered = _ITEM.match(lines[-1]) is not None
    others = [line for line in lines[:-1] if (_ITEM.match(line) is not None) == numbered]
    if len(others) < (1 if numbered else 2) or not (numbered or count_words(lines[-1]) >= 2):
        return False
    return all(line.rstrip("\"'”’)）").endswith(_STOPS) for line in others)


# ---------------------------------------------------------------- going round in circles

_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_]+|[^\w\s]")
_FEWEST_TOKENS, _MOSTLY_WORDS = 24, 0.7
_LOOP_ROUNDS, _LOOP_TOKENS, _LONGEST_ROUND = 4, 16, 40
_LONG_WORD = re.compile(r"\S{20,}")
_STUTTER = re.compile(r"([^\W\d_]{1,6}?)\1{14,}|([!?！？。，,])\2{39,}")  # hahaha…, 啊啊啊…; not 0000 or a ruled line


def repeated_share(text: str) -> float:
    """The share of a text's 4-grams that are repeats; 1 where it ends in a loop, 0 for short ones and for tables.

    Numbers before the items of a list do not count, for a loop counts on.
    """
    if _LONG_WORD.search(text) and _STUTTER.search(text):
        return 1.0
    if len(text) < _LOOP_TOKENS:
        return 0.0
    tokens = _TOKEN.findall(_NUMBER.sub("", text))
    if len(tokens) >= _LOOP_TOKENS and _ends_in_a_loop(tokens):
        return 1.0
    if len(tokens) < _FEWEST_TOKENS or not _are_words(tokens):
        return 0.0
    grams = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return 1 - len(set(grams)) / len(grams)


def _ends_in_a_loop(tokens: Sequence[str]) -> bool:
    """Whether the text ends in the same few words, over and over; the last round may be cut."""
    last = len(tokens) - 1
    for length in range(1, min(_LONGEST_ROUND, len(tokens) // _LOOP_ROUNDS) + 1):
        same = 0
        while same + length <= last and tokens[last - same] == tokens[last - same - length]:
            same += 1
        if same >= (_LOOP_ROUNDS - 1) * length and same + length >= _LOOP_TOKENS:
            return _are_words(tokens[-same - length :])
    return False


def _are_words(tokens: Sequence[str]) -> bool:
    return sum(map(str.isalpha, tokens)) >= _MOSTLY_WORDS * len(tokens)


# ---------------------------------------------------------------- saying nothing, saying it again

_NOTHING = re.compile(
    r"[\s\u200b-\u200f\u2060\ufeff.…_~*。，、,;；\"'“”‘’`·-]*"
    r"(?:[\[(<（【]?(?:n/?a|null|nan|undefined|tbd|todo|empty|blank|no (?:output|response|answer)|your answer(?: here)?"
    r"|(?:the )?(?:output|answer|response)(?: (?:goes )?here)?|(?:insert|add) \w+(?: here)?"
    r"|暂无|无输出|没有输出|待补充|此处为空|(?:在此|此处)?(?:填写|输入)(?:答案|回答|输出)?|空|(?:此处|内容)?(?:从|省)?略|同上|待[定填])[\])>）】]?[\s.。\"']*)?",
    re.IGNORECASE,
)


def says_nothing(text: str, asked: str) -> bool:
    """Whether an output is blank, or a word that stands where it should; a word that was asked for says something."""
    found = _NOTHING.fullmatch(text)
    word = text.strip(" \n\t\"'.。[]()<>")
    return found is not None and not (word.strip("-–—…*_") and word.casefold() in asked.casefold())


_LABEL = re.compile(r"\A(?:output|answer|response|result|text|输出|答案|回答|结果)\s*[:：]\s*", re.IGNORECASE)
_QUOTES = "\"'“”‘’「」` "
_SHORT = 4  # words: the longest palindrome in "racecar" is just that
_MOST_ADDED = 0.3  # of the instruction's length: "Sure! You ask: …"


def echoed(output: str, instruction: str, input_: str) -> str | None:
    """What an output repeats: "input" to the letter (case may be the task), or "instruction" in any case."""
    if len(output) > 2 * (len(instruction) + len(input_)) + 40:
        return None
    said, given = one_line(output), one_line(input_)
    if given and said == given:
        return "input"
    said, given = _LABEL.sub("", said).strip(_QUOTES), given.strip(_QUOTES)
    if given and said == given and count_words(given) >= _SHORT:
        return "input"
    letters, asked = _letters(said), _letters(instruction)
    if letters in (asked, asked + _letters(input_)):
        return "instruction"
    again = len(asked) >= 20 and asked in letters and len(letters) <= (1 + _MOST_ADDED) * len(asked)
    return "instruction" if again else None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))
