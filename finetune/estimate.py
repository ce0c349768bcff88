"""How much memory and time a run will take, told before anything is loaded.

Parameters are counted exactly, on a model without weights; activations follow from the widths of its layers. Time is
measured, on one micro-batch, once the base is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.methods import METHODS, Recipe
from finetune.rows import Row
from pipeline.errors import UsageError

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # a block of 64 has an 8-bit scale; 256 of those share one in 32 bits
HEAD_ROWS = 256  # tokens whose logits the trainer's fused head holds at a time, in fp32, with their gradient
BYTES_AN_ELEMENT = 4.1  # kept for the backward pass: bf16, and norms, rotations and sums in fp32 (measured, see docs)
BYTES_A_DROPPED_INPUT = 4.0  # an adapter's dropout keeps its result and its mask (measured)
PROCESS = {"cpu": 0.9e9, "cuda": 1.2e9}  # Python, torch and its libraries; a CUDA context
MARGIN = 0.9  # of what is free


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's make-up decides its memory, in numbers of parameters or elements."""

    linear: int  # in linear layers but the head
    other: int  # everything else; tied weights once
    adapter_a_rank: int  # adapter parameters for each rank
    layers: int
    hidden: int
    vocabulary: int
    elements_a_token: int  # what goes into and comes out of all layers, kept for the backward pass
    inputs_a_token: int  # what goes into the linear layers alone; adapters with dropout keep it once more


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes, by what they are for."""

    weights: float
    adapter: float  # with its gradients and the optimizer's state
    activations: float
    head: float
    process: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.head + self.process


def shape_of(config: Any) -> Shape:
    """The shape of the model a configuration describes; no weight is made."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    linear = sum(module.weight.numel() for module in linears)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = config.get_text_config(decoder=True)
    return Shape(
        linear=linear,
        other=parameters - linear,
        adapter_a_rank=sum(module.in_features + module.out_features for module in linears),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        # Each linear keeps its input and its output is kept by what follows; two norms and two sums a layer.
        elements_a_token=sum(module.in_features + module.out_features for module in linears)
        + 6 * text.num_hidden_layers * text.hidden_size,
        inputs_a_token=sum(module.in_features for module in linears),
    )


def estimate(shape: Shape, recipe: Recipe, tokens: int, *, checkpointing: bool, device: str) -> Estimate:
    """The memory of training on micro-batches of that many tokens."""
    method = METHODS[recipe.method]
    optimizer = recipe.optimizer or ("paged_adamw_8bit" if device == "cuda" else "adamw_torch_fused")
    if recipe.method == "full":
        weights, trained = 4.0 * (shape.linear + shape.other), shape.linear + shape.other
        bytes_each = 4 + (2 if "8bit" in optimizer else 8)
    else:
        weights = (NF4_BITS / 8 if recipe.precision == "nf4" else 2.0) * shape.linear + 2.0 * shape.other
        width = recipe.rank if method.merges else 0
        trained = width * shape.adapter_a_rank + (
            0 if method.merges else recipe.virtual_tokens * 2 * shape.layers * shape.hidden
        )
        adapter_bytes = 2 if recipe.precision == "nf4" else 4
        bytes_each = 2 * adapter_bytes + (
            2 if "8bit" in optimizer else 8 if "32bit" in optimizer else 2 * adapter_bytes
        )
    dropped = BYTES_A_DROPPED_INPUT * shape.inputs_a_token if method.merges and recipe.dropout else 0.0
    wide = 2 if recipe.method == "full" and device == "cpu" else 1  # all of it in fp32
    kept = wide * BYTES_AN_ELEMENT * shape.elements_a_token + dropped
    if checkpointing:  # each layer's input, and one layer in full
        activations = tokens * (wide * 2 * shape.layers * shape.hidden + kept / shape.layers)
    else:
        activations = tokens * kept
    head = 2 * 4.0 * min(tokens, HEAD_ROWS) * shape.vocabulary
    return Estimate(weights, trained * bytes_each, activations, head, PROCESS[device])


def free_memory(device: str) -> float:
    """Bytes that can still be had: on the GPU, or of the machine's or the container's memory."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    import psutil

    free = float(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return min(free, float(limit) - float(used)) if limit != "max" else free
    except (OSError, ValueError):
        return free


def require_room(
    found: Estimate, shape: Shape, recipe: Recipe, tokens: int, *, checkpointing: bool, device: str, free: float
) -> None:
    """Refuse what will not fit.

    :raises UsageError: with the changes that would make it fit, the gentlest first.
    """
    if found.total <= MARGIN * free:
        return

    def gigabytes(recipe: Recipe, tokens: int, checkpointing: bool) -> float:
        return estimate(shape, recipe, tokens, checkpointing=checkpointing, device=device).total

    ways = [
        ("--checkpointing on", gigabytes(recipe, tokens, True)),
        (f"--max-length {tokens // 2} --checkpointing on", gigabytes(recipe, tokens // 2, True)),
        ("--method qlora", gigabytes(replace(recipe, method="qlora", four_bit=None), tokens, checkpointing)),
        (
            f"--method qlora --max-length {tokens // 2} --checkpointing on",
            gigabytes(replace(recipe, method="qlora", four_bit=None), tokens // 2, True),
        ),
    ]
    fits = next((f"{way} would take {need / 1e9:.1f} GB" for way, need in ways if need <= MARGIN * free), None)
    raise UsageError(
        f"This run needs about {found.total / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
        f"{fits or 'no setting makes it fit; take a smaller --base'}. (--force tries it all the same.)"
    )


def describe(found: Estimate, free: float, device: str) -> str:
    """The estimate in a line."""
    parts = {"weights": found.weights, "adapter and optimizer": found.adapter, "activations": found.activations,
             "head": found.head, "process": found.process}  # fmt: skip
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return f"Memory: about {found.total / 1e9:.2f} GB of {free / 1e9:.1f} GB free on the {device} ({listed})"


def seconds_a_token(model: Any, rows: Sequence[Row], tokens: int, recipe: Recipe, *, checkpointing: bool) -> float:
    """Measured on one forward and backward pass over a micro-batch's worth of tokens; the model is left as it was.

    It takes no more memory than the training will: a base that is not trained gets no gradients here either.
    """
    import torch

    ids: list[int] = []
    positions: list[int] = []
    learnt = 0
    for row in rows:
        ids += row.input_ids
        positions += range(len(row.input_ids))  # some models know no more of them than a row has
        learnt += row.answer_tokens
        if len(ids) >= tokens:
            break
    at = {"device": model.device}
    batch = {"input_ids": torch.tensor([ids[:tokens]], **at), "position_ids": torch.tensor([positions[:tokens]], **at)}
    model.train()
    if recipe.method != "full":
        model.requires_grad_(False)
    if checkpointing:
        model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    on_gpu = model.device.type == "cuda"
    for _ in range(2 if on_gpu else 1):  # the first pass on a GPU also loads its kernels
        started = time.monotonic()
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            logits = model(**batch, use_cache=False, logits_to_keep=min(learnt, len(ids[:tokens]))).logits.float()
            (logits.logsumexp(-1) - logits[..., 0]).mean().backward()  # as the trainer's head
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
    model.zero_grad(set_to_none=True)
    model.disable_input_require_grads()
    if checkpointing:
        model.activation_checkpointing_disable()
    return seconds / len(ids[:tokens])
