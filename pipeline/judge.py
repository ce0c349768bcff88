"""A judge of finished records: correctness, following the instruction, and grounding in the source, one number last.

The reason comes before the score in the schema, so that the score can follow from it (G-Eval, Liu et al. 2023;
AlpaGasus, Chen et al. 2023, scores 0 to 5 the same way). The rubric is prompts/*/judge.md. Its calls are asked,
journalled and limited like any other; a verdict that cannot be read scores nothing, and is counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.llm import JsonObject, Reply, Request
from pipeline.parsing import Unreadable, read_object
from pipeline.prompts import Prompts
from pipeline.records import GraphSource, Record, content_id

CRITERIA = ("correctness", "following", "grounding", "score")
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judge thinks of one record; every score lies from LOWEST to HIGHEST."""

    reason: str
    scores: dict[str, int]


class Asking(Protocol):
    """What `ask.Ask` is to a judge."""

    def __call__(self, request: Request, *, shows: Sequence[tuple[str, str]]) -> Awaitable[Reply]: ...


class Judge:
    """Reads records in the language they are in, through `ask`, its own model's."""

    def __init__(self, ask: Asking, prompts: dict[str, Prompts], extra: JsonObject) -> None:
        self._ask, self._prompts, self._extra = ask, prompts, extra
        self.unreadable = 0  # replies that were no verdict

    async def scores(self, record: Record, source: str = "") -> dict[str, float]:
        """Filter and score names -> values, for a record's `scores`; empty where the reply was no verdict."""
        try:
            opinion = await self.opinion(record, source)
        except Unreadable:
            self.unreadable += 1
            return {}
        return {"judge" if name == "score" else f"judge_{name}": float(value) for name, value in opinion.scores.items()}

    async def opinion(self, record: Record, source: str = "") -> Opinion:
        """The verdict on a record. `source` is the passage or the facts it rests on, "" where there are none.

        Raises Unreadable where the reply is no verdict.
        """
        request = judge_request(record, source, self._prompts[record.language], self._extra)
        triples = [
            triple for source_ in record.source if isinstance(source_, GraphSource) for triple in source_.triples
        ]
        shows = record.requests or [content_id(*triple) for triple in triples]
        reply = await self._ask(request, shows=[("", shown) for shown in shows])
        names = [name for name in CRITERIA if name != "grounding" or source]
        verdict = read_object(reply, *names)
        scores = {name: verdict[name] for name in names}
        allowed = range(LOWEST, HIGHEST + 1)
        whole = {name: value for name, value in scores.items() if type(value) is int and value in allowed}
        if len(whole) < len(scores):
            raise Unreadable("wrong_shape", f"a score is missing or out of range: {scores}")
        return Opinion(str(verdict.get("reason", "")), whole)


def judge_request(record: Record, source: str, prompts: Prompts, extra: JsonObject) -> Request:
    """The request that judges a record, at temperature 0. What is judged is marked off as data."""
    names = [name for name in CRITERIA if name != "grounding" or source]
    number = {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}
    properties = {"reason": {"type": "string"}, **dict.fromkeys(names, number)}
    turns = [f"user: {user}\nassistant: {assistant}" for user, assistant in record.history]
    values = {
        "source": source or "-",
        "history": "\n".join(turns) or "-",
        "instruction": record.instruction,
        "input": record.input or "-",
        "output": record.output,
    }
    return Request(
        prompts.chat("judge", values),
        max_tokens=400,
        temperature=0.0,
        schema={
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
        extra=extra,
    )
