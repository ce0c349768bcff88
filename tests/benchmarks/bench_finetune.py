"""The trainer beside a plain script on trl's SFTTrainer, on the same rows, in the same run.

    python -m tests.benchmarks.bench_finetune            # three arms, some minutes; a Markdown table
    python -m tests.benchmarks.bench_finetune --records 200 --base DIR

Each arm trains in a process of its own, so that its peak memory is its own. A useful token is one of a row, answer or
not; padding is none. On a CPU tokens a processor second are compared, which a busy machine changes least. The rows are
short records of real data where they are there (INSTRUCTLOOP_DATA, default ../shared/data), else the shipped sample,
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))
ARMS = {"plain": "plain SFTTrainer script", "unpacked": "finetune, --no-packing", "packed": "finetune"}
LONGEST = 128  # tokens: short records, as generators write them
BATCH = 16


def rows_of(base: Path, count: int) -> tuple[Any, list[Any], list[Any]]:
    """The tokenizer, and so many short examples with their rows."""
    from finetune import data, rows
    from pipeline.backends import weights

    tokenizer = weights.load_tokenizer(base)
    path = DATA / "alpaca_4k.jsonl.gz"
    examples = data.read(path if path.is_file() else data.SAMPLE).examples
    examples = examples * (1 + count * 4 // len(examples))
    found = []
    for example in examples[: count * 4]:
        encoded, _ = rows.encode(tokenizer, [example], stops=rows.stop_ids(tokenizer), max_length=LONGEST)
        found += [(example, encoded[0])] if encoded else []
        if len(found) == count:
            break
    return tokenizer, [example for example, _ in found], [row for _, row in found]


def plain(base: Path, count: int, device: str) -> dict[str, float]:
    """What trl's own documentation shows, with the same adapter: its defaults kept, checkpointing and all."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from finetune.bases import nf4

    tokenizer, examples, encoded = rows_of(base, count)
    as_messages = [[{"role": role, "content": text} for role, text in example.messages] for example in examples]
    dataset = Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in as_messages])
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=str(base),
            quantization_config=nf4(),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            args=SFTConfig(
                output_dir=folder, num_train_epochs=1, per_device_train_batch_size=8,
                gradient_accumulation_steps=BATCH // 8,
                learning_rate=2e-4, use_cpu=device == "cpu", report_to="none", save_strategy="no", disable_tqdm=True,
                model_init_kwargs={"dtype": "bfloat16"},
            ),
        )  # fmt: skip
        started, worked = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return {"seconds": seconds, "worked": worked, "tokens": sum(row.length for row in encoded)}


def ours(base: Path, count: int, device: str, *, packing: bool) -> dict[str, float]:
    from finetune import bases, training
    from finetune.methods import Recipe

    tokenizer, _, encoded = rows_of(base, count)
    recipe = Recipe(batch=BATCH, epochs=1, packing=packing)
    batches = training.plan(encoded, recipe, LONGEST, packing=packing, device=device)
    model = bases.load_base(base, recipe.precision, device)
    with tempfile.TemporaryDirectory() as folder:
        setup = training.Setup(Path(folder), device, 0, packing=packing, checkpointing=device == "cuda")
        worked = time.process_time()
        _, result = training.train(model, tokenizer, encoded, [], recipe, batches, setup, lambda text: None)
        worked = time.process_time() - worked
    # Whole steps are taken, so a last one may begin the next epoch; its tokens are counted as trained.
    tokens = result.tokens_per_second * result.seconds if packing else sum(row.length for row in encoded)
    return {"seconds": result.seconds, "worked": worked, "tokens": tokens}


def measure(arm: str, base: Path, count: int, device: str) -> dict[str, float]:
    from finetune import bases

    bases.prepare()
    import torch

    found = plain(base, count, device) if arm == "plain" else ours(base, count, device, packing=arm == "packed")
    if device == "cuda":
        found["peak"] = float(torch.cuda.max_memory_allocated())
    else:
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--base", help="a model's folder [the bundled one]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    from finetune.bases import find_base

    base = find_base(options.base)
    if options.arm:
        print(json.dumps(measure(options.arm, base, options.records, options.device)))
        return 0
    print(
        "| arm | useful tokens/s | a processor second | beside plain | seconds | peak GB |\n|---|---|---|---|---|---|"
    )
    beside = 0.0
    for arm, name in ARMS.items():
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--arm", arm, "--base", str(base)]
        command += ["--records", str(options.records), "--device", options.device]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
        rate, worked = found["tokens"] / found["seconds"], found["tokens"] / found["worked"]
        compared = worked if options.device == "cpu" else rate
        beside = beside or compared
        print(
            f"| {name} | {rate:.0f} | {worked:.0f} | {compared / beside:.2f} | {found['seconds']:.0f}"
            f" | {found['peak'] / 1e9:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
