"""How to train: presets with their source, methods with their limits, and loading the base they start from.

python -m finetune.run --method list        what each method does and cannot do
python -m finetune.run --preset list        the published numbers, and where they stand
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backends import weights as local_weights
from pipeline.errors import UsageError

BUNDLED_ON_HUB = f"HuggingFaceTB/{local_weights.BUNDLED_NAME}"  # what others know the bundled model by
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes")
INSTALL = 'pip install -c constraints.txt -e ".[local,train]"'


TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


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


def prepare() -> None:
    """Check that the trainer's libraries are there, and keep them quiet and off the network.

    :raises UsageError: with what to install.
    """
    local_weights.prepare_process()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"Training needs {', '.join(missing)}: {INSTALL}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels that it would have to download
    import datasets
    import torch

    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):  # more threads than cores crawl
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    datasets.disable_progress_bars()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what trl, peft and transformers warn each other of, and no user can act on."""
    with warnings.catch_warnings():
        for pattern in (
            ".*(gradient|activation)_checkpointing.*",
            ".*[Pp]adding-free.*",
            ".*lr_scheduler.step.*",
            "Position ids are not supported.*",  # a soft prompt's; measure.py asks it nothing that is padded in front
        ):
            warnings.filterwarnings("ignore", message=pattern)
        yield


def choose_device(wanted: str) -> str:
    """cpu or cuda.

    :raises UsageError: where cuda is wanted and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; leave it out to train on the CPU.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError("This GPU computes no bf16, which training needs (Ampere and later do): try --device cpu.")
    return "cuda"


# ---------------------------------------------------------------- the base


def find_base(name: str | None) -> Path:
    """The directory of the base model: none named, the bundled one (converted once).

    :raises UsageError: where there is none, or it is nothing to train.
    """
    if name is None:
        return local_weights.transformers_directory(local_weights.bundled())
    path = Path(name).expanduser()
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "~", "/")):
        path = _download(name)
    found = local_weights.find(path)
    if found.adapter is not None:
        raise UsageError(f"{path} is an adapter: merge it first (python -m finetune.merge {path}), then train on that.")
    return local_weights.transformers_directory(found)


def _download(name: str) -> Path:
    """A model named as on the Hub; the only place that may reach it, and only for a name the user gave."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().split("\n")[0]
        raise UsageError(
            f"--base {name}: neither a directory here nor a model that could be fetched ({said})."
        ) from error


def require_causal(directory: Path) -> Any:
    """The base's configuration.

    :raises UsageError: where it does not describe a model that continues text.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{directory}/config.json cannot be read: {str(error).strip().splitlines()[0]}") from error
    kinds = config.architectures or []
    if config.is_encoder_decoder or (kinds and not any(_continues_text(kind) for kind in kinds)):
        kind = kinds[0] if kinds else config.model_type
        raise UsageError(
            f"{directory} holds a {kind}, which is not a causal language model: it cannot be trained to answer."
        )
    return config


def _continues_text(kind: str) -> bool:
    return kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def generation_config(directory: Path) -> Any:
    """The base's generation settings, or the default ones."""
    from transformers import GenerationConfig

    if (directory / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    return GenerationConfig()


def load_base(directory: Path, precision: str, device: str, stage: str = "sft") -> Any:
    """The base, as a recipe wants it: nf4 (with double quantisation), bf16, or fp32 for a full fine-tune.

    For a reward model its head is a new one, that says one number.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    settings: dict[str, Any] = {"dtype": torch.float32 if precision == "fp32" else torch.bfloat16}
    if precision == "nf4":
        settings["quantization_config"] = nf4()
        settings["device_map"] = {"": device_index(device)}
    kind: Any = AutoModelForCausalLM
    if stage == "reward":
        torch.manual_seed(0)
        kind, settings["num_labels"] = AutoModelForSequenceClassification, 1
    try:
        model = kind.from_pretrained(directory, local_files_only=True, use_safetensors=True, **settings)
    except ImportError as error:
        raise UsageError(f"A base in 4 bits needs bitsandbytes: {INSTALL}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{directory} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    keep_gradients_right(model)
    return model if precision == "nf4" else model.to(device)


def nf4() -> Any:
    """QLoRA's quantisation as published; the library's own defaults are fp4, fp32 compute, quantised once."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "score"],  # heads stay as they are, a reward model's too
    )


def device_index(device: str) -> int | str:
    """Where this process puts its model: each of several processes has a GPU of its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if device == "cuda" else "cpu"


def keep_gradients_right(model: Any) -> None:
    """Keep 4-bit layers in the layout that training reads.

    On CPUs with AVX512-BF16, bitsandbytes (up to 0.50.2) repacks a 4-bit layer's weights when it is first used for
    inference; from then on training takes a kernel through which no gradient flows, and nothing says so.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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
