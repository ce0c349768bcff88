"""What --plan says of the stages after the records: the judge's verdicts, further answers, and verdicts on those.

Their requests depend on replies that are not there yet, so records of the expected lengths stand in for the real ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.judge import USUAL_VERDICT_TOKENS, judge_request
from pipeline.llm import Request
from pipeline.money import Expected, Plan, plan_of
from pipeline.pairs import Manner, answer_request, compare_request
from pipeline.prompts import Prompts
from pipeline.records import PromptSource, Record, make_record


def plan_judge(expected: Expected, folder: Path, prompts: Prompts) -> Plan:
    """A verdict for each record that is expected, less those that the folder's summary counts as judged."""
    done = (_summary(folder).get("judge") or {}).get("asked", 0)
    request = judge_request(_stand_in(expected), _text(expected.source), prompts, {})
    return plan_of([(request, USUAL_VERDICT_TOKENS)], "", max(0, math.ceil(expected.records) - done))


def plan_pairs(expected: Expected, wanted: int, folder: Path, prompts: Prompts, manner: Manner) -> tuple[Plan, Plan]:
    """`wanted` further answers to each record, and two verdicts on each, less those that the summary counts."""
    done = (_summary(folder).get("pairs") or {}).get("answers", 0)
    times = max(0, wanted * math.ceil(expected.records) - done)
    record, source = _stand_in(expected), _text(expected.source)
    answer = answer_request(record, 0, prompts, manner)
    verdicts = [compare_request(record, source, (record.output, record.output), prompts, {})] * 2
    return plan_of([(answer, expected.answer)], "", times), plan_of(_verdicts(verdicts), "", times)


def _verdicts(requests: list[Request]) -> Iterator[tuple[Request, float]]:
    return ((request, USUAL_VERDICT_TOKENS) for request in requests)


def _stand_in(expected: Expected) -> Record:
    return make_record(
        instruction=_text(expected.question), output=_text(expected.answer), task="generation", generator="", model="",
        language="", source=PromptSource(prompt=0, seeds=(), pool=()), prompts={}, requests=(),
    )  # fmt: skip


def _text(tokens: float) -> str:
    """A text of about so many tokens."""
    return "x" * round(4 * tokens)


def _summary(folder: Path) -> dict[str, Any]:
    """summary.json, as far as it can be read; without one nothing was done yet."""
    try:
        found = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
