"""Names: from a key to something readable, and from any spelling to the one under which a name is found again."""

from __future__ import annotations

import itertools
import re
import unicodedata
from urllib.parse import unquote

_TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CODE = re.compile(r"^[A-Za-z]{1,2}\d{1,9}$")  # P31, Q42
ARTICLES = ("the", "a", "an")
_FUNCTION_WORDS = frozenset(
    "of in on at by to from for with as into about is are was were has have had be been can may does "
    "of's during after before under over between and or near".split()
)
LONGEST_NAME = 24  # tokens; a longer name is found by its first ones no more


def tokens(text: str) -> list[tuple[str, int, int]]:
    """The words of a text, case folded, with their offsets; a Han character is a word of its own."""
    return [(unicodedata.normalize("NFKC", m.group()).casefold(), m.start(), m.end()) for m in _TOKEN.finditer(text)]


def normal(name: str) -> str:
    """The spelling under which a name is looked up: words case folded, no punctuation, no leading small article.

    "the Sun" is found as "sun"; "The Who" keeps its article, or every "who" would name a band.
    """
    words = tokens(name)
    if len(words) > 1 and name[words[0][1] : words[0][2]] in ARTICLES:
        del words[0]
    return " ".join(word for word, _, _ in words)


def language_of_name(text: str) -> str:
    """ "zh" where a name holds a Han character, else "en"."""
    return "zh" if _HAN.search(text) else "en"


def split_name(key: str) -> str:
    """A readable name for a key: the last part of an address, its camel case taken apart; "_" is a blank.

    What is no address is a name as somebody wrote it: PyTorch, YouTube.
    """
    if key.startswith('"'):
        return literal_text(key)
    if "://" not in key and not key.startswith("urn:"):
        return " ".join(key.replace("_", " ").split()) or key
    text = unquote(re.split(r"[#/:]", key.rstrip("#/"))[-1] or key)
    if " " in text:
        return " ".join(text.split())
    return _words_of(text) or key


def _words_of(text: str) -> str:
    return " ".join(_CAMEL.sub(" ", text.replace("_", " ")).split())


def split_relation(key: str) -> str:
    """A readable name for a relation: as `split_name`, in lower case but for capitals that stand together."""
    name = split_name(key)
    words = (name if " " in key else _words_of(name)).replace("-", " ").replace(".", " .").replace("/", " ").split()
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words).replace(" .", ".")


def is_awkward(name: str) -> bool:
    """Whether a relation's name, split out of a key, would read badly in a sentence: "film film genre", "P31"."""
    words = name.lower().replace(".", " . ").split()
    if not words or _CODE.match(name) or not re.search(r"[^\W\d_]", name):
        return True
    if "." in words or any(a == b for a, b in itertools.pairwise(words)):
        return True
    return sum(word not in _FUNCTION_WORDS for word in words) >= 3


# ---------------------------------------------------------------- literals, whose keys begin with a quotation mark


def literal_key(text: str, language: str | None = None, datatype: str | None = None) -> str:
    """The key of a literal: "text" and then @language or ^^datatype, as in N-Triples."""
    return f'"{text}"' + (f"@{language}" if language else f"^^{datatype}" if datatype else "")


def literal_text(key: str) -> str:
    """The text of a literal's key."""
    return key[1 : key.rfind('"')]
