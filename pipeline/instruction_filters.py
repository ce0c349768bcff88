"""The filters of new instructions: they decide what joins Self-Instruct's pool, and so shape later prompts.

    too_short · too_long · keywords · asks_for_program · first_character · novelty

The other generators have no pool; there they act on a record's instruction, where --filters names them. How to add
one is said in filters.py.
"""

from __future__ import annotations

import unicodedata

from pipeline.checks import wording
from pipeline.filtering import Filter, Found, NewInstruction, Range, add_to
from pipeline.records import Neighbour
from pipeline.text import count_words

INSTRUCTION: list[Filter[NewInstruction]] = []

WORDS = Range(0)


@add_to(INSTRUCTION, "Self-Instruct: 3 words or fewer", threshold=3, why="as published", range_=WORDS)
def too_short(new: NewInstruction, at_most: float) -> Found | None:
    """An instruction of `at_most` words or fewer; a Chinese word counts as one and a half characters."""
    words = count_words(new.text)
    return Found(f"{words:.3g} words, at most {at_most:g} is too short", words) if words <= at_most else None


@add_to(INSTRUCTION, "Self-Instruct: more than 150 words", threshold=150, why="as published", range_=WORDS)
def too_long(new: NewInstruction, more_than: float) -> Found | None:
    """An instruction of more than `more_than` words."""
    words = count_words(new.text)
    return Found(f"{words:.3g} words, more than {more_than:g} is too long", words) if words > more_than else None


@add_to(INSTRUCTION, "Self-Instruct and Alpaca: keyword list")
def keywords(new: NewInstruction, _: float) -> Found | None:
    """An instruction that asks for what a text model cannot see, hear, draw or open."""
    hit = wording.names_medium(new.text)
    return Found(f"names {hit!r}, which text cannot give", hit) if hit else None


@add_to(INSTRUCTION, 'Self-Instruct: starts with "Write a program"')
def asks_for_program(new: NewInstruction, _: float) -> Found | None:
    """ "Write a program …": the original found its model unsure whether to write or to run it."""
    return Found('starts with "write a program"') if wording.WRITE_A_PROGRAM.match(new.text) else None


_OPENING = '《「『“‘"¿¡'


@add_to(INSTRUCTION, "Self-Instruct: starts with punctuation")
def first_character(new: NewInstruction, _: float) -> Found | None:
    """A first character that is no letter or digit of any script, nor one that opens a title or a quotation.

    The original also drops every non-ASCII start, and with it all of Chinese (docs/decisions.md).
    """
    first = new.text[:1]
    fine = first != "" and (first in _OPENING or unicodedata.category(first)[0] in "LN")
    return None if fine else Found(f"starts with {first!r}", first)


@add_to(
    INSTRUCTION,
    "Self-Instruct: ROUGE-L above 0.7 against seeds and kept",
    threshold=0.7,
    why="as published",
    range_=Range(0, 1, below=True),  # at 1 nothing would be found, not even the same words
)
def novelty(new: NewInstruction, above: float) -> Found | None:
    """ROUGE-L F above `above` against a seed or an instruction kept before (the index holds the threshold)."""
    nearest = new.pool.nearest(new.text) if new.pool is not None else None
    if nearest is None:
        return None
    score, id_ = nearest
    neighbour = Neighbour(id=id_, text=new.pool_texts[id_])
    return Found(f"ROUGE-L {score:.3f} with {id_}, above {above:g}", round(score, 4), neighbour)
