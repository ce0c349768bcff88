"""What --plan says of the stages after the records: the judge's verdicts, further answers, and verdicts on those.

Their requests depend on replies that are not there yet, so records of the expected lengths stand in for the real ones.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from pipeline.judge import USUAL_VERDICT_TOKENS, comparison_request, judge_request, question_shown
from pipeline.llm import Manner
from pipeline.money import Expected, Plan, plan_of
from pipeline.pairs import answer_request
from pipeline.prompts import Prompts
from pipeline.records import PromptSource, Record, make_record
from pipeline.run_folder import read_summary


def as_counted(plan: Plan, folder: Path, target: int | None) -> Expected:
    """What a plan expects; where the folder has all replies for its records, as many as its summary counts."""
    summary = read_summary(folder)
    if plan.requests or summary.get("target", ...) != target or summary.get("ended") not in ("target", "exhausted"):
        return plan.expected
    return replace(plan.expected, records=summary["kept"], judged=summary["kept"] + summary["rejected"].get("poor", 0))


def plan_judge(expected: Expected, folder: Path, prompts: Prompts, model: str) -> Plan:
    """A verdict for each record that is expected, less those that this model gave, as the folder's summary counts."""
    judge = read_summary(folder).get("judge") or {}
    done = judge["asked"] if judge.get("model") == model else 0
    request = judge_request(_stand_in(expected), _text(expected.source), prompts, {})
    wanted = expected.records if expected.judged is None else expected.judged
    return plan_of([(request, USUAL_VERDICT_TOKENS)], "", max(0, math.ceil(wanted) - done))


def plan_pairs(expected: Expected, wanted: int, folder: Path, prompts: Prompts, manner: Manner) -> tuple[Plan, Plan]:
    """`wanted` further answers to each record, and two verdicts on each, less those that the summary counts."""
    done = (read_summary(folder).get("pairs") or {}).get("answers", 0)
    times = max(0, wanted * math.ceil(expected.records) - done)
    record = _stand_in(expected)
    answer = answer_request(record, 0, prompts, manner)
    shown = question_shown(record, _text(expected.source))
    verdict = comparison_request(shown, (record.output, record.output), prompts, {})
    return plan_of([(answer, expected.answer)], "", times), plan_of([(verdict, USUAL_VERDICT_TOKENS)] * 2, "", times)


def _stand_in(expected: Expected) -> Record:
    return make_record(
        instruction=_text(expected.question), output=_text(expected.answer), task="generation", generator="", model="",
        language="", source=PromptSource(prompt=0, seeds=(), pool=()), prompts={}, requests=(),
    )  # fmt: skip


def _text(tokens: float) -> str:
    """A text of about so many tokens."""
    return "x" * round(4 * tokens)
