"""How to train: presets with their source, methods with their limits, and the adapter each puts on its base.

python -m finetune.run --method list        what each method does and cannot do
python -m finetune.run --preset list        the published numbers, and where they stand
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class Method:
    """What a method trains, and what it cannot do."""

    does: str
    learning_rate: float
    precision: str = "bf16"  # of the base it stands on, unless --four-bit says otherwise
    merges: bool = True
    cannot: str = ""


SOFT = "cannot be merged or exported, nor write data here"
METHODS = {
    "qlora": Method("low-rank adapters on all linear layers, NF4 quantised twice, bf16 compute", 2e-4, "nf4"),
    "lora": Method("low-rank adapters on all linear layers", 2e-4),
    "dora": Method("low-rank adapters with a learnt magnitude", 2e-4, "nf4"),
    "full": Method("every weight", 2e-5, "fp32", cannot="writes a whole model, no adapter; 4 bits cannot be trained"),
    "adalora": Method("adapters whose ranks are pruned to half while training", 2e-3),
    "prefix": Method("trained keys and values before every layer (P-Tuning v2)", 2e-2, merges=False,
        cannot="cannot be merged or exported, nor write data here; trains without gradient checkpointing"),
    "prompt": Method("trained embeddings before the prompt", 2e-2, merges=False, cannot=SOFT),
    "ptuning": Method("trained embeddings made by a small network", 2e-2, merges=False, cannot=SOFT),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number of a training run. None means: the method's, or the device's, own."""

    method: str = "qlora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    learning_rate: float | None = None
    schedule: str = "cosine_with_min_lr"
    warmup: float = 0.03  # below 1: a share of the steps
    batch: int = 16  # records a step, packed or not
    epochs: float = 3.0
    steps: int | None = None  # instead of epochs
    max_length: int | None = None
    optimizer: str | None = None
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float = 0.3
    packing: bool = True
    group_by_length: bool = False
    neftune: float | None = None
    rslora: bool = False
    virtual_tokens: int = 32  # of prefix, prompt and ptuning
    four_bit: bool | None = None  # None: the method's own

    def check(self) -> None:
        """Whether its numbers make sense together.

        :raises UsageError: naming the flag.
        """
        for name in ("batch", "rank", "alpha", "epochs", "learning_rate", "steps", "max_length"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:  # nan is neither
                raise UsageError(f"--{name.replace('_', '-')} is {value}, and must be above 0.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout is {self.dropout}: a share, from 0 to below 1.")
        if self.neftune is not None and not 0 <= self.neftune < math.inf:
            raise UsageError(f"--neftune is {self.neftune}, and must be 0 or above.")
        if self.four_bit and self.method == "full":
            raise UsageError("--four-bit does not go with --method full: weights in 4 bits cannot be trained.")
        if self.four_bit is False and self.method in ("qlora", "full"):
            raise UsageError(f"--no-four-bit does not go with --method {self.method}: take lora, on a bf16 base.")

    @property
    def rate(self) -> float:
        return self.learning_rate or METHODS[self.method].learning_rate

    @property
    def precision(self) -> str:
        """Of the base: nf4, bf16 or fp32."""
        if self.four_bit is None:
            return METHODS[self.method].precision
        return "nf4" if self.four_bit else "bf16"


@dataclass(frozen=True, slots=True)
class Preset:
    """A published recipe: the numbers that are set, where they stand, and what could not be checked."""

    source: str
    numbers: dict[str, Any]
    unverified: str = ""


PRESETS = {
    "guanaco": Preset(
        "artidoro/qlora, scripts/finetune_guanaco_7b.sh (7B and 13B; 33B and up: rate 1e-4, dropout 0.05)",
        {"method": "qlora", "rank": 64, "alpha": 16.0, "dropout": 0.1, "learning_rate": 2e-4,
         "schedule": "constant_with_warmup", "warmup": 0.03, "batch": 16, "steps": 1875, "max_length": 528,
         "optimizer": "paged_adamw_32bit", "beta2": 0.999, "clip": 0.3, "packing": False, "group_by_length": True},
        "the script says 'constant' with a warm-up share, which that schedule ignores; here the warm-up is kept",
    ),
    "firefly": Preset(
        "yangjianxin1/Firefly, train_args/sft/qlora/bloom-7b1-sft-qlora.json (its fp16 is bf16 here)",
        {"method": "qlora", "rank": 64, "alpha": 16.0, "dropout": 0.05, "learning_rate": 2e-4,
         "schedule": "constant_with_warmup", "warmup": 100, "batch": 16, "epochs": 1.0, "max_length": 1024,
         "optimizer": "paged_adamw_32bit", "clip": 0.3, "packing": False},
    ),
    "alpaca": Preset(
        "tatsu-lab/stanford_alpaca, README (LLaMA-7B; 13B: rate 1e-5, 5 epochs), a full fine-tune",
        {"method": "full", "learning_rate": 2e-5, "schedule": "cosine", "warmup": 0.03, "batch": 128, "epochs": 3.0,
         "max_length": 512, "optimizer": "adamw_torch", "clip": 1.0, "packing": False},
    ),
    "lima": Preset(
        "the LIMA paper, a full fine-tune",
        {"method": "full", "learning_rate": 1e-5, "schedule": "linear", "warmup": 0.0, "batch": 32, "epochs": 15.0,
         "max_length": 2048, "optimizer": "adamw_torch", "weight_decay": 0.1, "beta2": 0.95, "clip": 1.0,
         "packing": False},
        "none of these numbers could be checked against the paper here; its residual dropout (0 to 0.3, growing with "
        "depth) and its final rate of 1e-6 are not applied",
    ),
}  # fmt: skip


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe: defaults, then the preset's numbers, then the flags.

    :raises UsageError: for numbers that make no sense.
    """
    preset = PRESETS[options.preset].numbers if options.preset else {}
    given = {field.name: getattr(options, field.name, None) for field in fields(Recipe)}
    values = {**preset, **{name: value for name, value in given.items() if value is not None}}
    if given["epochs"] is not None and given["steps"] is None:
        values.pop("steps", None)  # a preset's
    if "rank" in values and "alpha" not in values:
        values["alpha"] = 2.0 * values["rank"]
    recipe = Recipe(**values)
    recipe.check()
    return recipe


# ---------------------------------------------------------------- the adapter


def adapter_config(recipe: Recipe, model: Any, steps: int, stage: str = "sft") -> Any:
    """What peft shall put on the base; None for a full fine-tune."""
    import peft

    if recipe.method == "full":
        return None
    if recipe.method in ("prefix", "prompt", "ptuning"):
        kinds = {
            "prefix": peft.PrefixTuningConfig,
            "prompt": peft.PromptTuningConfig,
            "ptuning": peft.PromptEncoderConfig,
        }
        extra = {"encoder_hidden_size": model.config.hidden_size} if recipe.method == "ptuning" else {}
        return kinds[recipe.method](task_type="CAUSAL_LM", num_virtual_tokens=recipe.virtual_tokens, **extra)
    lora = {
        "task_type": "SEQ_CLS" if stage == "reward" else "CAUSAL_LM",
        "target_modules": "all-linear",
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
    }
    if recipe.method == "adalora":
        return peft.AdaLoraConfig(
            init_r=recipe.rank, target_r=max(1, recipe.rank // 2), total_step=max(steps, 3),
            tinit=steps // 5, tfinal=steps // 5, **lora,
        )  # fmt: skip
    return peft.LoraConfig(r=recipe.rank, use_dora=recipe.method == "dora", use_rslora=recipe.rslora, **lora)


def describe_methods() -> str:
    """The methods in lines."""
    lines = []
    for name, method in METHODS.items():
        base = {"nf4": "4 bits", "bf16": "bf16, or --four-bit", "fp32": "fp32"}[method.precision]
        lines.append(
            f"{name:8} {method.does} (base in {base}; rate {method.learning_rate:g})"
            + (f"; {method.cannot}" if method.cannot else "")
        )
    return "\n".join(lines)


def describe_presets() -> str:
    """The presets in lines."""
    lines = []
    for name, preset in PRESETS.items():
        lines.append(f"{name:8} {preset.source}")
        lines.append(f"         {', '.join(f'{key} {value}' for key, value in preset.numbers.items())}")
        if preset.unverified:
            lines.append(f"         not verified or different: {preset.unverified}")
    return "\n".join(lines)
