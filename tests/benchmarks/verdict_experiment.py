"""A real verdict on a CPU: rows that `pipeline.curate` chose, against as many raw ones, on 252 human-written tasks.

    python -m tests.benchmarks.verdict_experiment                 # about an hour of one core
    python -m tests.benchmarks.verdict_experiment --records 100 --tasks 60

Curates Alpaca's and Self-Instruct's real records (INSTRUCTLOOP_DATA, default ../shared/data), trains one adapter on
the chosen ones and one on each of three seeded samples of everything there was, and measures all. The folder is
kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))


def trained_on(folder: Path | None) -> list[str]:
    """Rows and tokens of an arm; the base's are none."""
    if folder is None:
        return ["–", "–"]
    audit = json.loads((folder / "trained.json").read_text(encoding="utf-8"))["audit"]
    return [str(audit["rows"]), str(audit["tokens"])]


def main(argv: Sequence[str] | None = None) -> int:
    from finetune import run
    from finetune.evaluate import folder_of
    from pipeline import curate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300, help="in each arm")
    parser.add_argument("--tasks", type=int, default=252, help="of the 252, the first so many")
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--controls", default="3", help="draws of the raw rows")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "verdict_experiment")
    options = parser.parse_args(argv)
    tasks = options.out / "tasks.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    lines = (DATA / "user_oriented_252.jsonl").read_text(encoding="utf-8").splitlines()[: options.tasks]
    tasks.write_text("\n".join(lines) + "\n", encoding="utf-8")
    curated, tuned = options.out / "curated", options.out / "tuned"
    sources = [str(DATA / name) for name in ("alpaca_4k.jsonl.gz", "self_instruct_5k.jsonl.gz")]
    against = str(DATA / "user_oriented_252.jsonl")
    if not (curated / "records.jsonl").is_file():
        code = curate.main([*sources, "--out", str(curated), "--against", against, "--select", str(options.records)])
        if code:
            return code
    flags = ["--tasks", str(tasks), "--out", str(tuned), "--epochs", options.epochs, "--max-length", "512"]
    flags += ["--controls", options.controls]
    code = run.main([str(curated), *flags])
    if code == 0:
        verdict = json.loads((tuned / "verdict.json").read_text(encoding="utf-8"))
        print("| arm | rows | tokens | answer loss | ROUGE-L | BLEU | stops | plain-text loss |")
        print("|---|---|---|---|---|---|---|---|")
        for name, arm in verdict["arms"].items():
            folder = {"base": None, "ours": tuned}.get(name, tuned / folder_of(name))
            cells = [f"{arm[key]:.4f}" for key in ("answer_loss", "rouge_l", "bleu", "stop_rate", "plain_text_loss")]
            print(f"| {name} | {' | '.join([*trained_on(folder), *cells])} |")
        print(f"\n{verdict['sentence']}")
    return code


if __name__ == "__main__":
    sys.exit(main())
