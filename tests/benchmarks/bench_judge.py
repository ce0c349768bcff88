"""How often does a judge rank a record below its copy made worse?  python -m tests.benchmarks.bench_judge [MODEL URL]

Real records of ../shared/data, and copies spoilt in known ways: the wrong label, another record's answer, an answer
cut off, an answer off the topic. A coin would rank half of them right; ties count as half.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.backends.endpoint import Endpoint
from pipeline.backends.local_model import LocalModel
from pipeline.judge import Judge
from pipeline.llm import Model, Reply, Request
from pipeline.parsing import Unreadable
from pipeline.prompts import Prompts
from pipeline.records import PromptSource, Record, make_record

DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", "../shared/data"))
PAIRS_A_WAY = 25


def record(row: dict[str, str], output: str) -> Record:
    return make_record(
        instruction=row["instruction"], input=row["input"], output=output, task="generation", generator="imported",
        model="unknown", language="en", source=PromptSource(prompt=0, seeds=(), pool=()), prompts={}, requests=(),
    )  # fmt: skip


def load() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(human-written tasks with an answer of some length, those whose answer is a label)."""
    rows = []
    for line in (DATA / "user_oriented_252.jsonl").read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        instance = task["instances"][0]
        rows.append({"instruction": task["instruction"], "input": instance["input"], "output": instance["output"]})
    short = [row for row in rows if 0 < len(row["output"].split()) <= 3 and row["input"]]
    long = [row for row in rows if 15 <= len(row["output"].split()) <= 150]
    return long, short


def spoil(long: list[dict[str, str]], short: list[dict[str, str]]) -> dict[str, list[tuple[Record, Record]]]:
    """Way -> pairs of (good, worse)."""
    dice = random.Random(0)
    with gzip.open(DATA / "alpaca_4k.jsonl.gz", "rt", encoding="utf-8") as lines:
        others = [json.loads(line)["output"] for line in lines][:500]
    worse: dict[str, tuple[list[dict[str, str]], Callable[[dict[str, str]], str]]] = {
        "wrong label": (short, lambda row: next(o for o in dice.sample(labels, len(labels)) if o != row["output"])),
        "swapped answer": (long, lambda row: dice.choice([r["output"] for r in long if r is not row])),
        "cut off": (long, lambda row: row["output"][: len(row["output"]) // 3]),
        "off topic": (long, lambda _: dice.choice(others)),
    }
    labels = [row["output"] for row in short]
    return {
        way: [
            (record(row, row["output"]), record(row, change(row)))
            for row in dice.sample(rows, min(PAIRS_A_WAY, len(rows)))
        ]
        for way, (rows, change) in worse.items()
    }


async def measure(model: Model) -> None:
    async def ask(request: Request, *, shows: Sequence[tuple[str, str]] = ()) -> Reply:
        return await model.complete(request)

    judge = Judge(ask, {"en": Prompts("en")}, {})

    async def score(one: Record) -> int | None:
        try:
            return (await judge.opinion(one))["score"]
        except Unreadable:
            return None

    print("| spoilt by | pairs | ranked right | ties | unreadable |\n|---|---|---|---|---|")
    for way, pairs in spoil(*load()).items():
        scores = await asyncio.gather(*(score(one) for pair in pairs for one in pair))
        both = [
            (good, bad)
            for good, bad in zip(scores[::2], scores[1::2], strict=True)
            if good is not None and bad is not None
        ]
        right = sum(good > bad for good, bad in both)
        ties = sum(good == bad for good, bad in both)
        share = (right + ties / 2) / len(both) if both else float("nan")
        print(f"| {way} | {len(both)} | {share:.0%} | {ties} | {len(pairs) - len(both)} |", flush=True)
    await model.close()


def main() -> None:
    """Measure the bundled model, or MODEL at URL with the key in OPENAI_API_KEY."""
    if len(sys.argv) == 3:
        model: Model = Endpoint(sys.argv[1], base_url=sys.argv[2], api_key=os.environ.get("OPENAI_API_KEY", "none"))
    else:
        model = LocalModel.bundled()
    asyncio.run(measure(model))


if __name__ == "__main__":
    main()
