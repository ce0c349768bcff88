"""How fast and how large the novelty index is, beside rouge_score's loop.

    python -m tests.benchmarks.bench_novelty            # all, some two minutes, one core; a Markdown table
    python -m tests.benchmarks.bench_novelty --only file

Each measure runs in a process of its own, so that its peak memory is its own (data and imports included). The real
instructions are read from INSTRUCTLOOP_DATA (default ../shared/data). The line for rouge_score is extrapolated: the
time of a sample of pairs, times the pairs its loop would score over the whole file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))
THRESHOLD = 0.7
FEW, MANY, ASKED = 5_000, 48_000, 1_000
SYNTHETIC = 1_000_000
PAIRS = 3_000


def instructions() -> list[str]:
    with gzip.open(DATA / "instructions_en.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["instruction"] for line in lines]


def measure_file() -> dict[str, float]:
    """Every instruction in file order, the novel ones added."""
    from pipeline.novelty import NoveltyIndex

    texts, index = instructions(), NoveltyIndex(THRESHOLD)
    started = time.perf_counter()
    for place, text in enumerate(texts):
        if index.nearest(text) is None:
            index.add(text, str(place))
    return {"seconds": time.perf_counter() - started, "texts": len(texts), "kept": len(index)}


def measure_growth() -> dict[str, float]:
    """Time a candidate with few and with many texts added, near-duplicates too: the best of five rounds."""
    from pipeline.novelty import NoveltyIndex

    texts, index = instructions(), NoveltyIndex(THRESHOLD)
    asked = random.Random(0).sample(texts, ASKED)
    seconds = {}
    for size in (FEW, MANY):
        for place in range(len(index), size):
            index.add(texts[place], str(place))
        rounds = []
        for _ in range(5):
            started = time.perf_counter()
            for text in asked:
                index.nearest(text)
            rounds.append(time.perf_counter() - started)
        seconds[size] = min(rounds) / len(asked)
    return {"few": seconds[FEW], "many": seconds[MANY], "growth": seconds[MANY] / seconds[FEW]}


def measure_million() -> dict[str, float]:
    """A million short texts of Zipf-distributed words, all added; then how long one candidate takes."""
    from pipeline.novelty import NoveltyIndex

    rng, index = random.Random(0), NoveltyIndex(THRESHOLD)
    words = [f"w{rank}" for rank in range(50_000)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))

    def text() -> str:
        return " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(6, 14)))

    started = time.perf_counter()
    for place in range(SYNTHETIC):
        index.add(text(), str(place))
    seconds = time.perf_counter() - started
    asked = [text() for _ in range(ASKED)]
    started = time.perf_counter()
    for candidate in asked:
        index.nearest(candidate)
    return {"seconds": seconds, "candidate": (time.perf_counter() - started) / len(asked)}


def measure_twelve() -> dict[str, float]:
    """A run of twelve records in a fresh process: imports and all."""
    started = time.perf_counter()
    from pipeline.novelty import NoveltyIndex

    imported = time.perf_counter()
    index = NoveltyIndex(THRESHOLD)
    for place in range(12):
        text = f"Name {place} rivers that flow through {place + 2} countries, and say where each begins."
        if index.nearest(text) is None:
            index.add(text, str(place))
    return {"imported": imported - started, "seconds": time.perf_counter() - started}


def measure_rouge_score() -> dict[str, float]:
    """The loop with rouge_score: a sample of pairs timed, the pairs of the whole file counted."""
    from rouge_score.rouge_scorer import RougeScorer

    from pipeline.novelty import NoveltyIndex

    texts, index = instructions(), NoveltyIndex(THRESHOLD)
    pairs = 0
    for place, text in enumerate(texts):
        pairs += len(index)
        if index.nearest(text) is None:
            index.add(text, str(place))
    rng, scorer = random.Random(0), RougeScorer(["rougeL"], use_stemmer=False)
    sample = [(rng.choice(texts), rng.choice(texts)) for _ in range(PAIRS)]
    started = time.perf_counter()
    for left, right in sample:
        scorer.score(left, right)
    pair = (time.perf_counter() - started) / len(sample)
    return {"pair": pair, "pairs": pairs, "hours": pair * pairs / 3600}


MEASURES: dict[str, Callable[[], dict[str, float]]] = {
    "file": measure_file,
    "growth": measure_growth,
    "million": measure_million,
    "twelve": measure_twelve,
    "rouge_score": measure_rouge_score,
}


def run_apart(name: str) -> dict[str, float]:
    """One measure in its own process, with its peak memory in MB."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_novelty", "--only", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def table() -> str:
    """All measures beside their bars, as Markdown."""
    file, growth, million = run_apart("file"), run_apart("growth"), run_apart("million")
    twelve = [run_apart("twelve") for _ in range(5)]
    small, imported = (statistics.median(run[key] for run in twelve) for key in ("seconds", "imported"))
    loop = run_apart("rouge_score")
    rows = [
        (
            f"{file['texts']:,.0f} instructions one by one, {file['kept']:,.0f} kept",
            f"{file['seconds']:.1f} s",
            f"{file['mb']:.0f} MB",
            "8 s, 500 MB",
        ),
        (
            f"one candidate, {FEW:,} and {MANY:,} added",
            f"{growth['few'] * 1e6:.0f} and {growth['many'] * 1e6:.0f} µs: {growth['growth']:.1f} times",
            f"{growth['mb']:.0f} MB",
            "3 times",
        ),
        (
            f"{SYNTHETIC:,} synthetic texts added, then one candidate",
            f"{million['seconds']:.0f} s, {million['candidate'] * 1e3:.2f} ms",
            f"{million['mb']:.0f} MB",
            "1,500 MB",
        ),
        (
            "12 records in a fresh process, imports included",
            f"{small * 1e3:.0f} ms, of which importing {imported * 1e3:.0f} ms",
            f"{twelve[0]['mb']:.0f} MB",
            "importing 100 ms",
        ),
        (
            "the first line with rouge_score, extrapolated",
            f"{loop['hours']:.0f} h ({loop['pairs']:,.0f} pairs of {loop['pair'] * 1e6:.0f} µs, from {PAIRS:,})",
            "–",
            "–",
        ),
    ]
    lines = ["| what | time | peak memory | bar |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the novelty index.")
    parser.add_argument("--only", choices=MEASURES, help="one measure, in this process, as JSON")
    args = parser.parse_args(argv)
    if not (DATA / "instructions_en.jsonl.gz").exists():
        print(f"needs {DATA / 'instructions_en.jsonl.gz'}: set INSTRUCTLOOP_DATA", file=sys.stderr)
        return 2
    if args.only is None:
        print(table())
    else:
        measured = MEASURES[args.only]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**measured, "mb": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
