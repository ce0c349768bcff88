"""Small training runs on tiny models, for several test files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import bases, training
from finetune import rows as finetune_rows
from finetune.data import read
from finetune.methods import Recipe
from pipeline.backends import weights
from tests.tiny_models import little_rows, write_rows

QUICK = Recipe(rank=4, alpha=8, dropout=0.0, learning_rate=3e-3, batch=4, steps=4, packing=False)


def encoded(base: Path, rows: list[dict[str, Any]], tmp_path: Path) -> tuple[Any, list[Any]]:
    tokenizer = weights.load_tokenizer(base)
    examples = read(write_rows(tmp_path / "rows.jsonl", rows)).examples
    found, _ = finetune_rows.encode(tokenizer, examples, stops=finetune_rows.stop_ids(tokenizer))
    return tokenizer, found


def train(
    base: Path,
    tmp_path: Path,
    recipe: Recipe = QUICK,
    *,
    folder: str = "out",
    say: Any = None,
    watch: bool = True,
    **changed: Any,
) -> Any:
    """(trainer, result) of a small run."""
    tokenizer, rows = encoded(base, little_rows(), tmp_path)
    packing = changed.pop("packing", False)
    batches = training.plan(rows, recipe, 64, packing=packing, device="cpu")
    batches = replace(batches, **changed)
    model = bases.load_base(base, recipe.precision, "cpu")
    setup = training.Setup(tmp_path / folder, "cpu", 0, packing=packing)
    watched = rows[20:] if watch else []
    return training.train(model, tokenizer, rows[:20], watched, recipe, batches, setup, say or (lambda text: None))


def gradients(model: Any, ids: list[int]) -> Any:
    """Of everything that is trained, in one row."""
    import torch

    model.train()
    model.zero_grad()
    batch = torch.tensor([ids])
    model(input_ids=batch, labels=batch).loss.backward()
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad and p.grad is not None])


def logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits.float()
