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

from pipeline.grounding import unsupported
from pipeline.hygiene import CONTROL_TOKEN, hidden_instruction
from pipeline.novelty import NoveltyIndex
from pipeline.records import DocumentSource, Neighbour, Record
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
    evidence: str | None = None  # Self-QA: the passage that the answer must rest on
    nearest: tuple[float, Neighbour] | None = None  # Self-QA, refusals: the passage that comes nearest to an answer


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


# Self-Instruct's list and Alpaca's five more; the Chinese ones are ours, chosen so as not to hit 计划 or 动画.
KEYWORDS_EN = (
    "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
).split()
KEYWORDS_EN.append("go to")
KEYWORDS_ZH = "图片 图像 照片 图表 流程图 示意图 地图 文件 视频 音频 画图 画出 画一 绘制".split()
_KEYWORDS = re.compile(rf"\b(?:{'|'.join(KEYWORDS_EN)})\b|{'|'.join(KEYWORDS_ZH)}", re.IGNORECASE)


@_filter(INSTRUCTION, "Self-Instruct and Alpaca: keyword list")
def keywords(new: NewInstruction, _: float) -> Found | None:
    """An instruction that asks for what a text model cannot see, hear, draw or open."""
    hit = _KEYWORDS.search(new.text)
    return Found(f"names {hit.group()!r}, which text cannot give", hit.group()) if hit else None


_PROGRAM = re.compile(r"\s*(?:write a program|(?:编写|写)一?个?程序)", re.IGNORECASE)


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
    fine = first in _OPENING or unicodedata.category(first or " ")[0] in "LN"
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
    for name in ("output",) if candidate.record.task == "qa" else ("input", "output"):  # a qa input is a document
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


# ---------------------------------------------------------------- records of Self-QA: pruning and grounding

# What a question that stands alone does not hold: it points at a text, or at something only the text would show.
_POINTING = re.compile(
    r"\b(?:this|these)\b"
    r"|\b(?:in|from|by|of|to|does|do|is|what|how|as) (?:the|that) (?:given |above |following |provided )?"
    r"(?:text|passage|article|document|paragraph|excerpt|author|section|chapter|page)\b"
    r"|\b(?:the|that) (?:above|aforementioned|following|given|provided)\b|\bmentioned (?:above|earlier|here|in)\b"
    r"|本文|本章|本节|本段|该文|(?<![论論])文中|文章中?|上文|下文|上述|前述|如上|材料中|段落中|作者"
    r"|这(?!样|么说|就)|(?<!应)(?<!活)该(?!不该|死)|此(?:文|处|外|类|项|法|时|种)?(?=[，。？的中])",
    re.IGNORECASE,
)
_LEAKING = re.compile(
    r"\b(?:based on|according to|as (?:stated|mentioned|described|noted|shown|discussed|explained|outlined) (?:in|by)"
    r"|per|from|in) (?:the|this|that) (?:given |above |following |provided )?"
    r"(?:text|passage|article|document|paragraph|excerpt|context|author|quotes?)\b"
    r"|\bthe (?:text|passage|article|excerpt|author|paragraph)s?"
    r" (?:says?|states?|mentions?|describes?|explains?|notes?|does|do|is|provides?|discusses|suggests?|indicates?)\b"
    r"|(?:根据|依据|基于|按照)(?:本|该|此|这篇|上述|以上|所给|给定|提供的|原)?(?:文本?|文章|材料|段落|资料|内容)"
    r"|(?:从|如)(?:本|该|此|这篇|上述|以上|原)(?:文|文章|材料|段落|资料)"
    r"|本文|(?<![论論])文中|该文|这篇文章|(?:文章|作者|材料|原文)(?:中)?(?:提到|指出|说|认为|写道|描述|介绍)",
    re.IGNORECASE,
)
_DECLINING = re.compile(
    r"\b(?:does|do|did|is|are|was) not (?:\w+ )?(?:say|state|mention|specify|provide|answer|contain|mentioned|specified"
    r"|stated|provided|given)\b|\b(?:cannot|can't|can not) be (?:answered|determined)\b"
    r"|\bno information\b|\bi (?:do not|don't) know\b"
    r"|(?:没有|未|并未)(?:明确)?(?:提到|提及|说明|提供|给出|回答)|无法(?:回答|得知|确定)|不得而知",
    re.IGNORECASE,
)


@_filter(RECORD, "ours, after RELIABILITY S1: instructions hidden in a document")
def injection(candidate: Candidate, _: float) -> Found | None:
    """A passage that speaks to the model: whatever came of it waits for a person's review."""
    phrase = hidden_instruction(candidate.evidence or "")
    return Found(f"for review: its passage holds an instruction to the model, {phrase!r}", phrase) if phrase else None


@_filter(RECORD, "ours, after RELIABILITY S3: control tokens in training text")
def control_token(candidate: Candidate, _: float) -> Found | None:
    """A text of the record with a chat template's control token in it, which a model may have made up itself."""
    record = candidate.record
    found = CONTROL_TOKEN.search("\n".join((record.instruction, record.input, record.output)))
    return Found(f"holds the control token {found.group()!r}", found.group()) if found else None


@_filter(RECORD, "Self-QA: no demonstratives, for there is no article to refer to")
def points_at_text(candidate: Candidate, _: float) -> Found | None:
    """A question that does not stand alone: "this method", "in the passage", 本文, 上述."""
    found = _POINTING.search(candidate.record.instruction) if candidate.record.task == "qa" else None
    return (
        Found(f"the question points at what its reader cannot see: {found.group()!r}", found.group()) if found else None
    )


@_filter(RECORD, 'Self-QA: no "based on the above article"')
def leaks_text(candidate: Candidate, _: float) -> Found | None:
    """An answer that speaks of the passage: "according to the text", 根据上文."""
    found = _LEAKING.search(candidate.record.output) if candidate.record.task == "qa" else None
    return Found(f"the answer speaks of its source: {found.group()!r}", found.group()) if found else None


@_filter(RECORD, "ours: an answer that declines where a passage was read")
def unanswered(candidate: Candidate, _: float) -> Found | None:
    """An answer that says the passage lacks it."""
    found = _DECLINING.search(candidate.record.output) if candidate.evidence is not None else None
    return Found(f"the answer declines: {found.group()!r}", found.group()) if found else None


@_filter(RECORD, "ours: grounded by construction")
def ungrounded(candidate: Candidate, _: float) -> Found | None:
    """An answer without a quote that its passage holds, or with numbers, names or units that the passage lacks."""
    if candidate.evidence is None:
        return None
    source = candidate.record.source[0]
    if not isinstance(source, DocumentSource) or not source.quotes:
        return Found("no quote of the answer stands in its passage")
    lacking = unsupported(candidate.record.output, candidate.evidence)
    return Found(f"its passage lacks {', '.join(map(repr, lacking[:5]))}", lacking[0]) if lacking else None


@_filter(RECORD, "ours: a question to be declined must not be answered by the corpus", threshold=0.5)
def answerable(candidate: Candidate, at_least: float) -> Found | None:
    """A question to be declined of whose terms one passage of the corpus holds `at_least` that share, by weight."""
    if candidate.nearest is None or candidate.nearest[0] < at_least:
        return None
    score, neighbour = candidate.nearest
    return Found(
        f"a passage holds {score:.0%} of what it asks about, at least {at_least:.0%}", round(score, 4), neighbour
    )


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
