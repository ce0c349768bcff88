"""What a filter is, what it sees, what it may say, and how a list of them is asked. The list is in filters.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pipeline.checks import graph_check
from pipeline.novelty import NoveltyIndex
from pipeline.records import Neighbour, Record


@dataclass(frozen=True, slots=True)
class Found:
    """Why a candidate is turned away; `value` is what was measured, `neighbour` what it collided with."""

    reason: str
    value: float | str | None = None
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class Mended:
    """The record with what was wrong taken out, to go on with."""

    record: Record


@dataclass(frozen=True, slots=True)
class NewInstruction:
    """What an INSTRUCTION filter sees. `pool` holds the seeds and all instructions kept so far; None: not known yet."""

    text: str
    pool: NoveltyIndex | None
    pool_texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a RECORD filter sees. `siblings` are all records made from the same item, this one included."""

    record: Record
    siblings: Sequence[Record] = ()
    cut: bool = False  # the reply ended inside this record
    evidence: str = ""  # what the answer must rest on, and a judge may see: the passage, the facts
    passage: str = ""  # what the question came from, where the answer need not rest on it
    declines: bool = False  # Self-QA: the question is there to be declined
    nearest: tuple[float, Neighbour] | None = None  # … and this passage comes nearest to an answer
    scores: Mapping[str, float] = field(default_factory=dict)  # what judges said of it
    asked: graph_check.Asked | None = None  # Self-KG: the question as the graph knows it
    pool: NoveltyIndex | None = None  # the instructions of all records kept before, where novelty is on
    pool_texts: Mapping[str, str] = field(default_factory=dict)


Seen = TypeVar("Seen", NewInstruction, Candidate)
Verdict = Found | Mended | None
Check = Callable[[Seen, Any], Verdict]


@dataclass(frozen=True, slots=True)
class Range:
    """The thresholds that make sense; `below` leaves the highest itself out."""

    least: float = -math.inf
    most: float = math.inf
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most and not (self.below and value == self.most)

    def __str__(self) -> str:
        least = f" from {self.least:g}" if math.isfinite(self.least) else ""
        most = f" to {'below ' * self.below}{self.most:g}" if math.isfinite(self.most) else ""
        return f"a number{least}{most}"


ANY_NUMBER = Range()


@dataclass(frozen=True, slots=True)
class Filter(Generic[Seen]):
    """A named check with its setting: a number, one of `choices`, or None where there is nothing to set."""

    name: str
    check: Check[Seen]
    threshold: float | str | None
    source: str
    choices: tuple[str, ...] = ()
    why: str = ""  # the reason for the threshold, where there is one
    range: Range = ANY_NUMBER  # of the threshold, where it is a number


def add_to(
    filters: list[Filter[Seen]],
    source: str,
    threshold: float | None = None,
    choices: tuple[str, ...] = (),
    why: str = "",
    range_: Range = ANY_NUMBER,
) -> Callable[[Check[Seen]], Check[Seen]]:
    """Put a check into a list, as the filter of its name; of `choices` the first is the default."""

    def add(check: Check[Seen]) -> Check[Seen]:
        filters.append(
            Filter(check.__name__, check, choices[0] if choices else threshold, source, choices, why, range_)
        )
        return check

    return add


def on_a_record(filter_: Filter[NewInstruction]) -> Filter[Candidate]:
    """A filter of new instructions as one that asks a finished record's instruction."""

    def check(candidate: Candidate, setting: Any) -> Verdict:
        new = NewInstruction(candidate.record.instruction, candidate.pool, candidate.pool_texts)
        return filter_.check(new, setting)

    return Filter(filter_.name, check, filter_.threshold, filter_.source, filter_.choices, filter_.why, filter_.range)


def chosen(all_filters: Sequence[Filter[Seen]], settings: Mapping[str, float | str | bool]) -> list[Filter[Seen]]:
    """The filters that are on, as the user set them. `settings` maps a name to False, True, a number or a choice."""
    result = []
    for filter_ in all_filters:
        setting = settings.get(filter_.name, True)
        if setting is not False:
            result.append(filter_ if setting is True else replace(filter_, threshold=setting))
    return result


def first_objection(filters: Sequence[Filter[Seen]], seen: Seen) -> tuple[Filter[Seen], Found] | None:
    """The first filter that turns the candidate away, with what it found; None where all keep it."""
    for filter_ in filters:
        found = filter_.check(seen, filter_.threshold)
        if isinstance(found, Found):
            return filter_, found
    return None


def apply_filters(
    filters: Sequence[Filter[Candidate]], candidate: Candidate
) -> Record | tuple[Record, Filter[Candidate], Found]:
    """The record to keep, mended where a filter did so; or, with the record, the filter that rejects it and why."""
    for filter_ in filters:
        verdict = filter_.check(candidate, filter_.threshold)
        if isinstance(verdict, Found):
            return candidate.record, filter_, verdict
        if isinstance(verdict, Mended):
            siblings = [verdict.record if sibling is candidate.record else sibling for sibling in candidate.siblings]
            candidate = replace(candidate, record=verdict.record, siblings=siblings)
    return candidate.record
