"""Preference pairs: two answers to one question, and which of them is better, for training by preference.

    python -m pipeline.self_instruct --pairs 2 --judge-model gpt-4o        writes preferences.jsonl beside the records

They come after the records, from two sources:

    for free    a filter turned an answer away, and another answer to the same question was kept. Only where the reason
                is about the answer: never where it was too near to another one, or its document was at fault.
    asked for   N more answers to each kept question, asked as a trained model will be asked, without any source. One
                that a filter turns away has lost; of the others a judge says which is better, in both orders, for
                judges favour a place (Zheng et al. 2023). Only verdicts that agree make a pair (AI feedback in the
                place of people's: Lee et al. 2023, RLAIF).

Nothing here changes which records are kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.ask import Ask
from pipeline.errors import Offline, StopRun
from pipeline.filtering import Candidate, Filter, Found, apply_filters, first_objection
from pipeline.in_order import in_order
from pipeline.judge import (
    BETTER,
    VERDICT_TOKENS,
    comparison_request,
    prompts_for,
    question_shown,
    shown_of,
    source_text,
)
from pipeline.llm import Manner, Request
from pipeline.parsing import Unreadable, read_text, read_value
from pipeline.prompts import Prompts
from pipeline.records import Message, Preference, Record, content_id, user_message
from pipeline.run_folder import DerivedFiles
from pipeline.text import one_line, replace_surrogates

ANSWERING_TEMPERATURE = 1.0  # answers are to differ

# Filters whose objection is about the answer, so that the kept one is the better of the two. Not among them: what
# compares records (novelty, duplicates, contradiction …), and what is wrong with a document or a whole record.
ABOUT_THE_ANSWER = frozenset((
    "graph", "cut_off", "unfinished", "echo", "ends_with_colon", "language", "looping", "refusal", "leaked_prompt",
    "links", "leaks_text", "unanswered", "ungrounded", "poor",
))  # fmt: skip
# … and of those, what holds only against the very passage or fact that the answer was written for.
BOUND_TO_SOURCE = frozenset(("graph", "links", "unanswered", "ungrounded"))
# What nobody should train on, not even as the worse answer. personal_data may mend it.
UNFIT = frozenset(("empty_output", "overlong", "control_tokens", "secrets", "personal_data"))

Ending = Literal["judge", "filter", "free", "equal", "unfit", "disagreed", "tied", "unreadable", "not_stored"]


@dataclass(frozen=True, slots=True)
class _Lost:
    """A candidate that a filter turned away, fit to stand in a pair, and why."""

    candidate: Candidate
    filter: str
    reason: str


Outcome = tuple[Ending, Preference | None]


class Pairs:
    """Takes note of what the fold keeps and turns away; `make` then writes the pairs, in the order of the records.

    All that was kept, and what was turned away for its answer, stays in memory until then.
    """

    def __init__(
        self,
        wanted: int,
        on: Sequence[Filter[Candidate]],
        prompts: Mapping[str, Prompts],
        manner: Manner,
        verdict_tokens: int = VERDICT_TOKENS,
    ) -> None:
        """`wanted` further answers are asked for of each record, 0 for the free pairs alone; `on` are the filters."""
        self.wanted = wanted
        self.endings: Counter[Ending] = Counter()
        self.records = 0  # whose pairs are written
        self._against = [filter_ for filter_ in on if filter_.name in ABOUT_THE_ANSWER]
        self._unfit = [filter_ for filter_ in on if filter_.name in UNFIT]
        self._prompts, self._manner, self._verdict_tokens = prompts, manner, verdict_tokens
        self._offline: Offline | None = None  # a reply was not stored, and none may be asked for
        self._kept: list[Candidate] = []
        self._lost: dict[str, list[_Lost]] = {}  # by question

    # ---------------------------------------------------------------- what the fold tells

    def kept(self, candidate: Candidate, record: Record) -> None:
        """A candidate was kept, as `record`."""
        self._kept.append(replace(candidate, record=record, siblings=()))

    def rejected(self, candidate: Candidate, filter_: str, found: Found) -> None:
        """A candidate was turned away."""
        record = candidate.record
        if filter_ not in ABOUT_THE_ANSWER or (filter_ == "cut_off" and record.task == "classification"):
            return  # a label stands before its input: that was cut off, not the answer
        fit = apply_filters(self._unfit, candidate)
        if isinstance(fit, Record):
            lost = _Lost(replace(candidate, record=fit, siblings=()), filter_, found.reason)
            self._lost.setdefault(_question_id(fit), []).append(lost)

    # ---------------------------------------------------------------- making them

    async def make(self, answer: Ask, compare: Ask, files: DerivedFiles, concurrency: int) -> StopRun | None:
        """Write the pairs of all that was kept. Returns why it stopped early, None where it did not.

        Whatever the reason, what is written are the pairs of the longest complete prefix of the records; but under
        --offline, where nothing will come any more, of all whose replies are stored.
        """
        written: set[str] = set()

        async def of(candidate: Candidate) -> list[Outcome]:
            return await self._of(candidate, answer, compare)

        try:
            async with aclosing(in_order(self._kept, of, at_once=2 * concurrency)) as made:
                async for outcomes in made:
                    for ending, pair in outcomes:
                        is_new = pair is None or pair.id not in written  # two answers may be alike, to the letter
                        self.endings[ending if is_new else "equal"] += 1
                        if pair is not None and is_new:
                            written.add(pair.id)
                            files.prefer(pair)
                    self.records += 1
        except StopRun as stop:
            return stop
        return self._offline

    async def _of(self, candidate: Candidate, answer: Ask, compare: Ask) -> list[Outcome]:
        outcomes: list[Outcome] = list(self._free(candidate))
        contests = [self._contest(candidate, number, answer, compare) for number in range(self.wanted)]
        # Gathered with their exceptions, so that none is left running behind a stop.
        for ended in await asyncio.gather(*contests, return_exceptions=True):
            if isinstance(ended, Offline):
                self._offline, ended = ended, ("not_stored", None)
            if isinstance(ended, BaseException):
                raise ended
            outcomes.append(ended)
        return outcomes

    def _free(self, candidate: Candidate) -> list[Outcome]:
        """Pairs with what was turned away; a question that was kept twice has them once."""
        pairs: list[Outcome] = []
        rest: list[_Lost] = []
        for lost in self._lost.pop(_question_id(candidate.record), ()):
            other = lost.candidate
            same_ground = (other.evidence, other.asked) == (candidate.evidence, candidate.asked)
            if lost.filter in BOUND_TO_SOURCE and not same_ground:
                rest.append(lost)
            elif not _same(other.record.output, candidate.record.output):
                pairs.append(
                    ("free", _pair(candidate.record, other.record.output, lost.reason, by="filter", filter=lost.filter))
                )
        if rest:
            self._lost[_question_id(candidate.record)] = rest
        return pairs

    async def _contest(self, candidate: Candidate, number: int, answer: Ask, compare: Ask) -> Outcome:
        """One further answer against the kept one."""
        record = candidate.record
        request = answer_request(record, number, prompts_for(record, self._prompts), self._manner)
        reply = await answer(request, shows=shown_of(record))
        keys = [answer.key(request)]
        try:
            text = replace_surrogates(read_text(reply))
        except Unreadable:
            return "unreadable", None
        if _same(text, record.output):
            return "equal", None
        cut = reply.finish_reason == "length"
        other = replace(candidate, record=record.model_copy(update={"output": text}), cut=cut, scores={})
        fit = apply_filters(self._unfit, other)
        if not isinstance(fit, Record):
            return "unfit", None
        objection = first_objection(self._against, replace(other, record=fit))
        if objection is not None:
            filter_, found = objection
            return "filter", _pair(record, fit.output, found.reason, by="filter", filter=filter_.name, requests=keys)
        return await self._compared(candidate, fit.output, compare, keys)

    async def _compared(self, candidate: Candidate, other: str, compare: Ask, keys: list[str]) -> Outcome:
        """The judge's word on the kept answer and another, asked in both orders."""
        record = candidate.record
        source, prompts = candidate.evidence or source_text(record), prompts_for(record, self._prompts)
        orders = ((record.output, other), (other, record.output))
        shown, extra = question_shown(record, source), self._manner.extra
        requests = [comparison_request(shown, pair, prompts, extra, self._verdict_tokens) for pair in orders]
        verdicts_ = (compare(request, shows=shown_of(record)) for request in requests)
        replies = await asyncio.gather(*verdicts_, return_exceptions=True)
        said: list[tuple[str, str]] = []
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
            try:
                said.append((read_value(reply, "better"), str(read_value(reply, "reason"))))
            except Unreadable:
                return "unreadable", None
        verdicts = tuple(better for better, _ in said)
        if not set(verdicts) <= set(BETTER):
            return "unreadable", None
        keys = [*keys, *map(compare.key, requests)]
        reason = one_line(replace_surrogates(said[0][1]))
        if verdicts == ("first", "second"):
            return "judge", _pair(record, other, reason, by="judge", requests=keys)
        if verdicts == ("second", "first"):
            return "judge", _pair(record, other, reason, by="judge", requests=keys, kept_is_better=False)
        return ("tied" if verdicts == ("tie", "tie") else "disagreed"), None

    def counts(self) -> dict[str, Any]:
        """For the summary: what became of the answers, over the records whose pairs are written."""
        made = {ending: self.endings[ending] for ending in ("judge", "filter", "free")}
        none = {ending: self.endings[ending] for ending in ("equal", "unfit", "disagreed", "tied", "unreadable")}
        none["not_stored"] = missing = self.endings["not_stored"]
        asked_of = self.records * self.wanted - missing
        return {"written": sum(made.values()), "by": made, "records": self.records, "answers": asked_of, "none": none}


# ---------------------------------------------------------------- requests


def answer_request(record: Record, number: int, prompts: Prompts, manner: Manner) -> Request:
    """One more answer to a record's question: its turns, as a chat. `number` tells the answers apart."""
    earlier = [({"question": user}, assistant) for user, assistant in record.history]
    values = {"question": user_message(record.instruction, record.input)}
    messages = prompts.chat("pair_answer", values, earlier)
    return manner.request(messages, temperature=ANSWERING_TEMPERATURE, top_p=1.0, sample=number)


# ---------------------------------------------------------------- small parts


def _pair(
    record: Record,
    other: str,
    reason: str,
    *,
    by: Literal["judge", "filter"],
    filter: str = "",
    requests: Sequence[str] = (),
    kept_is_better: bool = True,
) -> Preference:
    """The pair of a kept record's answer and another one."""
    chosen, rejected = (record.output, other) if kept_is_better else (other, record.output)
    prompt: list[Message] = []
    for user, assistant in record.history:
        prompt += [Message(role="user", content=user), Message(role="assistant", content=assistant)]
    prompt.append(Message(role="user", content=user_message(record.instruction, record.input)))
    return Preference(
        prompt=tuple(prompt),
        chosen=(Message(role="assistant", content=chosen),),
        rejected=(Message(role="assistant", content=rejected),),
        instruction=record.instruction,
        input=record.input,
        history=record.history,
        chosen_output=chosen,
        rejected_output=rejected,
        id=content_id("pair", record.id, chosen, rejected),
        record=record.id,
        by=by,
        filter=filter,
        reason=reason,
        generator=record.generator,
        model=record.model,
        language=record.language,
        requests=tuple(requests),
    )


def _question_id(record: Record) -> str:
    return content_id(record.instruction, record.input, *(text for turn in record.history for text in turn))


def _same(left: str, right: str) -> bool:
    return one_line(left).casefold() == one_line(right).casefold()
