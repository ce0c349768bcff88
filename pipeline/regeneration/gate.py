"""The gate: whether a new version may become the latest. Rules come from the project file, the manifest says why."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.regeneration.project import Gate


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rules look at."""

    records: int
    before: int | None  # records of the last version; None: there was none
    candidates: int  # everything that was judged, kept or not
    judge_score: float | None  # mean over the records that have one
    verdict: str | None  # of the training step


def objections(gate: Gate, found: Measured) -> list[str]:
    """Why the version may not become the latest, a sentence each; none where it may."""
    why: list[str] = []
    if found.records < gate.least_records:
        why.append(f"{found.records} records, fewer than least_records = {gate.least_records}")
    if gate.largest_drop is not None and found.before:
        drop = 1 - found.records / found.before
        if drop > gate.largest_drop:
            why.append(
                f"{found.records} records after {found.before}: {drop:.1%} fewer, above largest_drop ="
                f" {gate.largest_drop:g}"
            )
    if gate.kept_ratio is not None:
        ratio = found.records / found.candidates if found.candidates else 0.0
        if ratio < gate.kept_ratio:
            why.append(
                f"{found.records} of {found.candidates} candidates kept: {ratio:.3f}, below kept_ratio ="
                f" {gate.kept_ratio:g}"
            )
    if gate.judge_score is not None and (found.judge_score is None or found.judge_score < gate.judge_score):
        said = "no record has a judge score" if found.judge_score is None else f"mean judge {found.judge_score:.3f}"
        why.append(f"{said}, below judge_score = {gate.judge_score:g}")
    allowed = {None: None, "better": {"better"}, "not worse": {"better", "cannot tell"}}[gate.verdict]
    if allowed is not None and found.verdict not in allowed:
        why.append(f"training says {found.verdict!r}, and the gate wants {gate.verdict!r}")
    return why
