"""A judge of finished records: correctness, following the instruction, and grounding in the source, one number last.

The reason comes before the score in the schema, so that the score can follow from it (G-Eval, Liu et al. 2023;
AlpaGasus, Chen et al. 2023, scores 0 to 5 the same way). The rubric is prompts/*/judge.md. Its calls are asked,
journalled and limited like any other; a verdict that cannot be read scores nothing, and is counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from pipeline.llm import JsonObject, Reply, Request, object_schema
from pipeline.parsing import Unreadable, read_object
from pipeline.prompts import Prompts
from pipeline.records import DocumentSource, GraphSource, Record, content_id

CRITERIA = ("correctness", "following", "grounding", "score")
LOWEST, HIGHEST = 1, 5
BETTER = ("first", "second", "tie")  # of two answers
VERDICT_TOKENS = 400  # of a reply, at most; --judge-max-tokens
USUAL_VERDICT_TOKENS = 80  # for --plan


def room_to_think(counts: Mapping[str, int]) -> str:
    """What to say of a judge of whose verdicts most could not be read; "" of any other."""
    if 2 * counts["unreadable"] <= counts["readable"] + counts["unreadable"]:
        return ""
    return "; a judge that thinks needs a higher --judge-max-tokens"


class Asking(Protocol):
    """What `ask.Ask` is to a judge."""

    def __call__(self, request: Request, *, shows: Sequence[tuple[str, str]]) -> Awaitable[Reply]: ...


class Judge:
    """Reads records in the language they are in, through `ask`, its own model's."""

    def __init__(
        self, ask: Asking, prompts: Mapping[str, Prompts], extra: JsonObject, max_tokens: int = VERDICT_TOKENS
    ) -> None:
        self._ask, self._prompts, self._extra, self._max_tokens = ask, prompts, extra, max_tokens
        self.readable = self.unreadable = 0  # replies that were a verdict, or none

    async def scores(self, record: Record, source: str = "") -> dict[str, float]:
        """Filter and score names -> values, for a record's `scores`; empty where the reply was no verdict."""
        try:
            scores = await self.opinion(record, source)
        except Unreadable:
            self.unreadable += 1
            return {}
        self.readable += 1
        return {"judge" if name == "score" else f"judge_{name}": float(value) for name, value in scores.items()}

    async def opinion(self, record: Record, source: str = "") -> dict[str, int]:
        """The verdict on a record, from LOWEST to HIGHEST by each criterion.

        `source` is the passage or the facts it rests on, "" where there are none. Raises Unreadable where the reply is
        no verdict.
        """
        request = judge_request(record, source, prompts_for(record, self._prompts), self._extra, self._max_tokens)
        reply = await self._ask(request, shows=shown_of(record))
        names = [name for name in CRITERIA if name != "grounding" or source]
        verdict = read_object(reply, *names)
        scores = {name: score for name in names if (score := _score(verdict[name])) is not None}
        if len(scores) < len(names):
            said = {name: verdict[name] for name in names}
            raise Unreadable("wrong_shape", f"a score is missing or out of range: {said}")
        return scores


def _score(said: object) -> int | None:
    """A whole number from LOWEST to HIGHEST, also as 4.0 or "4", as servers without schemas give it; None otherwise."""
    if isinstance(said, str) and said.strip().isdecimal():
        said = int(said)
    if isinstance(said, bool) or not isinstance(said, int | float) or said not in range(LOWEST, HIGHEST + 1):
        return None
    return int(said)


def judge_request(
    record: Record, source: str, prompts: Prompts, extra: JsonObject, max_tokens: int = VERDICT_TOKENS
) -> Request:
    """The request that judges a record, at temperature 0. What is judged is marked off as data."""
    names = [name for name in CRITERIA if name != "grounding" or source]
    number = {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}
    properties = {"reason": {"type": "string"}, **dict.fromkeys(names, number)}
    values = question_shown(record, source) | {"output": record.output}
    return verdict_request(prompts.chat("judge", values), properties, extra, max_tokens)


def comparison_request(
    shown: dict[str, str],
    answers: tuple[str, str],
    prompts: Prompts,
    extra: JsonObject,
    max_tokens: int = VERDICT_TOKENS,
) -> Request:
    """The request that says which of two answers is BETTER, both marked off as data; `question_shown` gives `shown`."""
    properties = {"reason": {"type": "string"}, "better": {"type": "string", "enum": list(BETTER)}}
    values = shown | {"first": answers[0] or "-", "second": answers[1] or "-"}
    return verdict_request(prompts.chat("pair_judge", values), properties, extra, max_tokens)


def verdict_request(
    messages: tuple[tuple[str, str], ...], properties: JsonObject, extra: JsonObject, max_tokens: int
) -> Request:
    """A request for a verdict with exactly these properties, in this order."""
    schema = object_schema(properties)
    return Request(messages, max_tokens=max_tokens, temperature=0.0, schema=schema, extra=extra)


# ---------------------------------------------------------------- what a judge is shown


def question_shown(record: Record, source: str) -> dict[str, str]:
    """What was asked, and what the answer must rest on, as a rubric's template names them."""
    turns = [f"user: {user}\nassistant: {assistant}" for user, assistant in record.history]
    return {
        "source": source or "-",
        "history": "\n".join(turns) or "-",
        "instruction": record.instruction,
        "input": record.input or "-",
    }


def source_text(record: Record) -> str:
    """What the record itself names as its ground, for a judge that has no more: its quotes, its facts; "" for none."""
    lines: list[str] = []
    for source in record.source:
        if isinstance(source, DocumentSource):
            lines += [quote.text for quote in source.quotes]
        elif isinstance(source, GraphSource):
            lines += [" | ".join(triple) for triple in source.triples]
    return "\n".join(dict.fromkeys(lines))


def prompts_for(record: Record, prompts: Mapping[str, Prompts]) -> Prompts:
    """The templates of the record's language; English ones for a language that has none."""
    return prompts.get(record.language, prompts["en"])


def shown_of(record: Record) -> list[tuple[str, str]]:
    """What a request about the record shows of its source, as a project's journal notes it."""
    triples = [triple for source in record.source if isinstance(source, GraphSource) for triple in source.triples]
    return [("", shown) for shown in record.requests or [content_id(*triple) for triple in triples]]
