"""The ordered list of filters, from free to dear. Each says keep (None), or reject and why (Found).

A filter is one small pure function with a threshold, named after what it rejects. To add one: write the function
beside its kin, put `@_filter(...)` above it, and add a row to its table in tests/test_filters.py. The order of
the functions in this file is the order in which they are asked; the first that finds something rejects.

INSTRUCTION filters decide what joins Self-Instruct's pool and so shape later prompts; RECORD filters act on
finished records and can be changed at any time for free. Sources: Self-Instruct (Wang et al. 2023) and its code,
`bootstrap_instructions.py` and `prepare_for_finetuning.py`; Alpaca's `generate_instruction.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pipeline.novelty import NoveltyIndex
from pipeline.records import Neighbour, Record
from pipeline.text import count_words, one_line

Stage = Literal["instruction", "record"]


@dataclass(frozen=True, slots=True)
class Found:
    """Why a candidate is turned away; `value` is what was measured, `neighbour` what it collided with."""

    reason: str
    value: float | str | None = None
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class NewInstruction:
    """What an INSTRUCTION filter sees. `pool` holds the seeds and all instructions kept so far."""

    text: str
    pool: NoveltyIndex
    pool_texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a RECORD filter sees. `siblings` are all records made from the same item, this one included."""

    record: Record
    siblings: Sequence[Record] = ()
    cut: bool = False  # the reply ended inside this record


Seen = TypeVar("Seen", NewInstruction, Candidate)


@dataclass(frozen=True, slots=True)
class Filter(Generic[Seen]):
    """A named check. `threshold` is None where there is nothing to set; what it means, the function says."""

    name: str
    check: Callable[[Seen, float], Found | None]
    threshold: float | None
    source: str


INSTRUCTION: list[Filter[NewInstruction]] = []
RECORD: list[Filter[Candidate]] = []


def _filter(
    into: list[Filter[Seen]], source: str, threshold: float | None = None
) -> Callable[[Callable[[Seen, float], Found | None]], Callable[[Seen, float], Found | None]]:
    def register(check: Callable[[Seen, float], Found | None]) -> Callable[[Seen, float], Found | None]:
        into.append(Filter(check.__name__, check, threshold, source))
        return check

    return register


# ---------------------------------------------------------------- instructions


@_filter(INSTRUCTION, "Self-Instruct: 3 words or fewer", threshold=3)
def too_short(new: NewInstruction, at_most: float) -> Found | None:
    """An instruction of `at_most` words or fewer; a Chinese word counts as one and a half characters."""
    words = count_words(new.text)
    return Found(f"{words:.3g} words, at most {at_most:g} is too short", words) if words <= at_most else None


@_filter(INSTRUCTION, "Self-Instruct: more than 150 words", threshold=150)
def too_long(new: NewInstruction, more_than: float) -> Found | None:
    """An instruction of more than `more_than` words."""
    words = count_words(new.text)
    return Found(f"{words:.3g} words, more than {more_than:g} is too long", words) if words > more_than else None


# Self-Instruct's list and Alpaca's five more; the Chinese ones are ours, made so as not to hit 计划 or 动画一集.
KEYWORDS_EN = (
    "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
).split()
KEYWORDS_EN.append("go to")
KEYWORDS_ZH = (
    "图片 图像 照片 图表 流程图 示意图 地图 文件 视频 音频 绘制 (?<![动漫绘油国版壁字年描刻])画[图出一]".split()
)
_KEYWORDS = re.compile(  # \b would see no border between 开 and file
    rf"(?<![a-z0-9_])(?:{'|'.join(KEYWORDS_EN)})(?![a-z0-9_])|{'|'.join(KEYWORDS_ZH)}", re.IGNORECASE
)


@_filter(INSTRUCTION, "Self-Instruct and Alpaca: keyword list")
def keywords(new: NewInstruction, _: float) -> Found | None:
    """An instruction that asks for what a text model cannot see, hear, draw or open."""
    hit = _KEYWORDS.search(new.text)
    return Found(f"names {hit.group()!r}, which text cannot give", hit.group()) if hit else None


_PROGRAM = re.compile(r"\s*(?:write a program|(?:编写|写)一?个?程序(?!员))", re.IGNORECASE)


@_filter(INSTRUCTION, 'Self-Instruct: starts with "Write a program"')
def asks_for_program(new: NewInstruction, _: float) -> Found | None:
    """ "Write a program …": the original found its model unsure whether to write or to run it."""
    return Found('starts with "write a program"') if _PROGRAM.match(new.text) else None


_OPENING = "《「『“‘¿¡"


@_filter(INSTRUCTION, "Self-Instruct: starts with punctuation")
def first_character(new: NewInstruction, _: float) -> Found | None:
    """A first character that is no letter or digit of any script, nor one that opens a title or a quotation.

    The original also drops every non-ASCII start, and with it all of Chinese (docs/decisions.md).
    """
    first = new.text[:1]
    fine = first != "" and (first in _OPENING or unicodedata.category(first)[0] in "LN")
    return None if fine else Found(f"starts with {first!r}", first)


@_filter(INSTRUCTION, "Self-Instruct: ROUGE-L above 0.7 against seeds and kept", threshold=0.7)
def novelty(new: NewInstruction, above: float) -> Found | None:
    """ROUGE-L F above `above` against a seed or an instruction kept before (the index holds the threshold)."""
    nearest = new.pool.nearest(new.text)
    if nearest is None:
        return None
    score, id_ = nearest
    neighbour = Neighbour(id=id_, text=new.pool_texts[id_])
    return Found(f"ROUGE-L {score:.3f} with {id_}, above {above:g}", round(score, 4), neighbour)


# ---------------------------------------------------------------- records


@_filter(RECORD, "Self-Instruct: last instance of a reply cut off by the token limit")
def cut_off(candidate: Candidate, _: float) -> Found | None:
    """The reply ended, by its token limit, inside this record."""
    return Found("cut off by the token limit") if candidate.cut else None


@_filter(RECORD, "Self-Instruct: empty output")
def empty_output(candidate: Candidate, _: float) -> Found | None:
    """An output without any letter, digit or symbol."""
    return None if candidate.record.output.strip() else Found("the output is empty")


@_filter(RECORD, "Self-Instruct: output equal to input")
def echo(candidate: Candidate, _: float) -> Found | None:
    """An output that repeats the input or the instruction, white space and case aside."""
    record = candidate.record
    output = one_line(record.output).casefold()
    for name in ("input", "instruction"):
        if output == one_line(getattr(record, name)).casefold():
            return Found(f"the output is the {name}")
    return None


@_filter(RECORD, "Self-Instruct: input or output ending in a colon")
def ends_with_colon(candidate: Candidate, _: float) -> Found | None:
    """An input or output that ends where something should follow."""
    for name in ("input", "output"):
        if getattr(candidate.record, name).rstrip().endswith((":", "：")):
            return Found(f"the {name} ends with a colon")
    return None


@_filter(RECORD, "Self-Instruct: one input, different outputs")
def contradiction(candidate: Candidate, _: float) -> Found | None:
    """The same non-empty input with different outputs: all records of that task go, for none can be trusted."""
    answers: dict[str, str] = {}
    for sibling in candidate.siblings:
        if sibling.input and answers.setdefault(sibling.input, sibling.output) != sibling.output:
            return Found(f"the task answers one input in two ways: {sibling.input[:60]!r}")
    return None


@_filter(RECORD, "ours, after Self-Instruct's exact dedup of instances")
def repeated_output(candidate: Candidate, _: float) -> Found | None:
    """A generation task's output given before to another input of the same task; labels may repeat."""
    record = candidate.record
    if record.task == "classification":
        return None
    for sibling in candidate.siblings:
        if sibling is record:
            return None
        if sibling.output == record.output and sibling.input != record.input:
            return Found(
                "the same output as for another input of the task",
                neighbour=Neighbour(id=sibling.id, text=sibling.output),
            )
    return None


_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_]+|[^\w\s]")


@_filter(RECORD, "after MassiveText's repetition rules (Rae et al. 2021, table A1)", threshold=0.5)
def looping(candidate: Candidate, above: float) -> Found | None:
    """Input or output whose 4-grams are repeats by a share of more than `above`; texts under 24 tokens pass."""
    for name in ("input", "output"):
        tokens = _TOKEN.findall(getattr(candidate.record, name))
        if len(tokens) < 24:
            continue
        grams = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
        share = 1 - len(set(grams)) / len(grams)
        if share > above:
            return Found(f"{share:.0%} of the {name}'s 4-grams are repeats, above {above:.0%}", round(share, 4))
    return None


# ---------------------------------------------------------------- choosing and asking

THRESHOLDS = {f.name: f.threshold for f in INSTRUCTION} | {f.name: f.threshold for f in RECORD}


def chosen(all_filters: Sequence[Filter[Seen]], settings: Mapping[str, float | bool]) -> list[Filter[Seen]]:
    """The filters that are on, with the user's thresholds. `settings` maps a name to False, True or a threshold."""
    result = []
    for filter_ in all_filters:
        setting = settings.get(filter_.name, True)
        if setting is False:
            continue
        threshold = filter_.threshold if setting is True else float(setting)
        result.append(Filter(filter_.name, filter_.check, threshold, filter_.source))
    return result


def first_objection(filters: Sequence[Filter[Seen]], seen: Seen) -> tuple[Filter[Seen], Found] | None:
    """The first filter that turns the candidate away, with what it found; None where all keep it."""
    for filter_ in filters:
        found = filter_.check(seen, filter_.threshold if filter_.threshold is not None else 0.0)
        if found is not None:
            return filter_, found
    return None
