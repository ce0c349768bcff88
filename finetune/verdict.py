"""Better, worse, or cannot tell: one measure, fixed beforehand, decides.

It is the loss of the answers against the control's, per token over all tasks, paired by task; its 95 % interval
comes from resampling tasks, and, where the control was drawn several times, from how far the draws differ. Clear of
0, it says better or worse; else nothing can be told. ROUGE-L, BLEU, exact match, stop rate, length, forgetting and
what a judge says stand beside it and decide nothing.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.measure import Loss

if TYPE_CHECKING:
    from pipeline.judge_answers import Opinions, Pair

RESAMPLES = 10_000
FEWEST_TASKS = 10  # below, an interval from resampling says little
AGREES_AT_LEAST = 0.6  # of the tasks, in both orders; a judge that agrees with itself less often is not to be used


def paired_interval(ours: Sequence[Loss], *others: Sequence[Loss], seed: int = 0) -> tuple[float, float, float]:
    """(difference, low, high) of the losses in nats a token, ours minus the others' mean: below 0, ours is better.

    Tasks are resampled whole, all models' losses together, so what makes a task hard cancels out. Several others are
    draws of one control: were our rows no better than drawn ones, our loss would be one draw more, so their spread
    widens the interval as it does one that predicts the next of N draws (Student's t, variance times 1 + 1/N).
    """
    import numpy as np

    counts = np.array([loss.tokens for loss in ours], dtype=float)
    nats = np.array([[loss.nats for loss in other] for other in others])
    difference = np.array([loss.nats for loss in ours]) - nats.mean(axis=0)
    numbers = np.random.default_rng(seed)
    drawn = numbers.multinomial(len(counts), [1 / len(counts)] * len(counts), size=RESAMPLES)
    means = (drawn @ difference) / (drawn @ counts)
    if len(others) > 1:
        spread = np.std(nats.sum(axis=1) / counts.sum(), ddof=1)
        means += numbers.standard_t(len(others) - 1, RESAMPLES) * spread * (1 + 1 / len(others)) ** 0.5
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.sum() / counts.sum()), float(low), float(high)


def decide(low: float, high: float) -> str:
    """ "better", "worse" or "cannot tell", from the interval of the difference in loss."""
    return "better" if high < 0 else "worse" if low > 0 else "cannot tell"


def judge(
    arms: dict[str, dict[str, Any]], losses: dict[str, list[Loss]], *, control: str | None, overlap: float | None
) -> dict[str, Any]:
    """The verdict of a set of arms: "base", "ours", and where there is a control "control", "control 2" and so on.

    :param arms: for each arm its measures, JSON-ready.
    :param control: what the control was trained on, for the sentence; None: there is none.
    :param overlap: the share of the control's rows that ours was trained on too, where it is known.
    """
    against = "control" if control else "base"
    others = [losses[name] for name in losses if name.split()[0] == against]
    difference, low, high = paired_interval(losses["ours"], *others)
    curve = _curve(losses)
    said = decide(low, high) if len(losses["ours"]) >= FEWEST_TASKS else "cannot tell"
    return {
        "verdict": said,
        "against": against,
        "control": control,
        "draws": len(others) if control else None,
        "overlap": overlap,
        "difference_nats": difference,
        "interval_95": [low, high],
        "tasks": len(losses["ours"]),
        "about_filtering": said if control else None,
        "sentence": _sentence(said, control, len(others), difference, low, high, len(losses["ours"])),
        "curve": curve,
        "arms": arms,
    }


def _curve(losses: dict[str, list[Loss]]) -> dict[str, Any] | None:
    """What the last step up in data did, where there are arms named by their share: would more still help?"""
    shares = sorted((int(name.removesuffix(" %")) for name in losses if name.endswith(" %")), reverse=True)
    if not shares:
        return None
    difference, low, high = paired_interval(losses["ours"], losses[f"{shares[0]} %"])
    said = {
        "better": "lowered the loss: more data would probably still help",
        "worse": "raised the loss: more data of this kind would probably not help",
        "cannot tell": "changed the loss by no more than chance may: whether more data would help cannot be told",
    }[decide(low, high)]
    return {
        "from_percent": shares[0],
        "difference_nats": difference,
        "interval_95": [low, high],
        "sentence": f"Going from {shares[0]} % to all of the data {said}"
        f" ({difference:+.4f} nats a token, {low:+.4f} to {high:+.4f}).",
    }


def _sentence(
    said: str, control: str | None, draws: int, difference: float, low: float, high: float, tasks: int
) -> str:
    numbers = f"answer loss {difference:+.4f} nats a token, 95 % interval {low:+.4f} to {high:+.4f}, {tasks} tasks"
    if control is not None:
        numbers += f", {draws} draws of the control" if draws > 1 else ""
        sentence = {
            "better": f"Better: these data beat as many rows of {control} ({numbers}).",
            "worse": f"Worse: as many rows of {control} would have taught more ({numbers}).",
            "cannot tell": f"Cannot tell whether these data beat as many rows of {control} ({numbers}).",
        }[said]
        luck = " That is against one draw of them; the luck of the draw shows with --controls 3."
        return sentence + (luck if draws == 1 and said != "cannot tell" else "")
    outcome = {
        "better": "training lowered the loss on held-out tasks",
        "worse": "training raised the loss on held-out tasks",
        "cannot tell": "whether training helped on held-out tasks cannot be told",
    }[said]
    return f"Without a control nothing is said about filtering; against the base, {outcome} ({numbers})."


def judged(pairs: Sequence[Pair], opinions: Sequence[Opinions], judge: str, against: str) -> dict[str, Any]:
    """What a judge said of our answers (the pairs' first) against the other's, JSON-ready."""
    known = [(pair, opinion) for pair, opinion in zip(pairs, opinions, strict=True) if opinion.is_known]
    read = [opinion for pair, opinion in known if not pair.is_alike]  # its own words; alike answers are nobody's
    counts = Counter(opinion.winner for _, opinion in known)
    points = {"first": 1.0, "second": 0.0, "tie": 0.5}
    agree = sum(opinion.agree for opinion in read) / len(read) if read else None
    rate = interval = None
    if len(read) >= FEWEST_TASKS:
        ours = [Loss(points[opinion.winner], 1) for _, opinion in known]
        difference, low, high = paired_interval(ours, [Loss(0.5, 1)] * len(ours))
        rate, interval = 0.5 + difference, [0.5 + low, 0.5 + high]
    decided = [(pair, opinion.winner) for pair, opinion in known if opinion.winner != "tie"]
    longer = [(winner == "first") == (len(pair.first) > len(pair.second)) for pair, winner in decided]
    found = {
        "model": judge, "against": against, "tasks": len(pairs), "judged": len(read), "alike": len(known) - len(read),
        "won": counts["first"], "lost": counts["second"], "tied": counts["tie"],
        "agrees_with_itself": agree, "win_rate": rate, "interval_95": interval,
        "longer_won": sum(longer) / len(longer) if longer else None,
    }  # fmt: skip
    return {**found, "sentence": _judge_sentence(found)}


def _judge_sentence(found: dict[str, Any]) -> str:
    alike = f" ({found['alike']} more are alike)" if found["alike"] else ""
    who = f"The judge {found['model']} read {found['judged']} of {found['tasks']} pairs in both orders{alike}"
    if found["win_rate"] is None:
        return f"{who}: too few to say anything."
    if found["agrees_with_itself"] < AGREES_AT_LEAST:
        return f"{who} and agreed with itself in {found['agrees_with_itself']:.0%} only: its word counts for nothing."
    low, high = found["interval_95"]
    return (
        f"{who}: against the {found['against']} won {found['won']}, lost {found['lost']}, tied {found['tied']}"
        f" (a tie counting half {found['win_rate']:.0%}, 95 % interval {low:.0%} to {high:.0%})."
    )


# ---------------------------------------------------------------- for people

_COLUMNS = (
    ("answer loss", "answer_loss", ".4f"), ("ROUGE-L", "rouge_l", ".1f"), ("BLEU", "bleu", ".1f"),
    ("exact match", "exact_match", ".0%"), ("stops", "stop_rate", ".0%"), ("empty", "empty_rate", ".0%"),
    ("tokens", "mean_tokens", ".0f"), ("plain-text loss", "plain_text_loss", ".4f"),
)  # fmt: skip


def table(arms: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The measures of all arms, as rows of cells with a header."""
    rows = [["", *(title for title, _, _ in _COLUMNS)]]
    for name, arm in arms.items():
        cells = ["–" if arm.get(key) is None else format(arm[key], form) for _, key, form in _COLUMNS]
        rows.append([name, *cells])
    return rows


def describe(verdict: dict[str, Any]) -> list[str]:
    """The verdict in lines: the table, then the sentence."""
    rows = table(verdict["arms"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [*lines, *_beside(verdict), verdict["sentence"]]


def _beside(verdict: dict[str, Any]) -> list[str]:
    return [verdict[name]["sentence"] for name in ("curve", "judge") if verdict.get(name)]


def write(folder: Path, verdict: dict[str, Any], tasks: Sequence[dict[str, Any]]) -> None:
    """verdict.json, and verdict.html with every task's answers side by side."""
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = table(verdict["arms"])
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    names = [name for name in verdict["arms"] if tasks and name in tasks[0]["answers"]]
    shown = "".join(
        f"<section><h3>{html.escape(task['question'])}</h3><dl><dt>wanted</dt><dd>{html.escape(task['wanted'])}</dd>"
        + "".join(f"<dt>{name}</dt><dd>{html.escape(task['answers'][name])}</dd>" for name in names)
        + "</dl></section>"
        for task in tasks
    )
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in (verdict["sentence"], *_beside(verdict)))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Verdict</title><style>'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8886}"
        "h3,dd{white-space:pre-wrap}h3{font-size:1rem}dt{color:#777}section{border-top:1px solid #8886}"
        "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}</style></head><body>"
        f"<h1>{html.escape(verdict['verdict'].capitalize())}</h1>{said}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><h2>Answers</h2>{shown}</body></html>\n"
    )
    (folder / "verdict.html").write_text(page, encoding="utf-8")
