"""What do IFD and perplexity see, and how fast are they?  python -m tests.benchmarks.bench_ifd [MODEL FOLDER]

The pairs of bench_judge: records of ../shared/data, and copies spoilt in known ways. An answer that does not belong to
its question should have the higher IFD; a coin would rank half of them right.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline.difficulty import LossModel
from tests.benchmarks.bench_judge import load, spoil


def main() -> None:
    """Measure the bundled model, or the one in MODEL FOLDER."""
    model = LossModel(Path(sys.argv[1])) if len(sys.argv) > 1 else LossModel()
    pairs = spoil(*load())
    one, _ = next(iter(pairs.values()))[0]
    model.losses([one])  # loads the weights
    print("| spoilt by | pairs | IFD higher | perplexity higher | mean IFD, good | mean IFD, spoilt |")
    print("|---|---|---|---|---|---|")
    started, records, words = time.perf_counter(), 0, 0
    for way, some in pairs.items():
        both = [one for pair in some for one in pair]
        scores = [losses.scores() for losses in model.losses(both)]
        records += len(both)
        words += sum(len(f"{one.instruction} {one.input} {one.output} {one.output}".split()) for one in both)
        ranked = [(good, bad) for good, bad in zip(scores[::2], scores[1::2], strict=True) if good and bad]
        higher = {name: sum(bad[name] > good[name] for good, bad in ranked) / len(ranked) for name in ranked[0][0]}
        means = [sum(pair[side]["ifd"] for pair in ranked) / len(ranked) for side in (0, 1)]
        print(
            f"| {way} | {len(ranked)} | {higher['ifd']:.0%} | {higher['perplexity']:.0%} | {means[0]:.2f} |"
            f" {means[1]:.2f} |",
            flush=True,
        )
    seconds = time.perf_counter() - started
    print(f"\n{records} records ({words} words read) in {seconds:.1f} s: {records / seconds:.1f} records/s")


if __name__ == "__main__":
    main()
