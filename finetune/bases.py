"""The base a run starts from: found or fetched, checked, and loaded into a process that is ready for it.

What is loaded here is the model as it was published, in NF4, bf16 or fp32, with or without an adapter on top;
`methods` says which, and what is trained on it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.backends import weights as local_weights
from pipeline.errors import UsageError

BUNDLED_ON_HUB = f"HuggingFaceTB/{local_weights.BUNDLED_NAME}"  # what others know the bundled model by
# Whether the user wants no network; asked before `prepare` sets the same variable for the libraries' own sake.
WANTS_OFFLINE = any(os.environ.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes")
INSTALL = 'pip install -c constraints.txt -e ".[local,train]"'
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


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
    torch.cuda.set_device(device_index("cuda"))  # from here on "cuda" is this process's own
    return "cuda"


def idle_gpus(device: str, processes: int) -> int:
    """How many GPUs are there that nothing of this run uses."""
    import torch

    return max(0, torch.cuda.device_count() - processes) if device == "cuda" else 0


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
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    other = ["*/*", "consolidated*"]  # the same weights for other programs, as large again
    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, WANTS_OFFLINE  # `prepare` closed the network
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=other))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().split("\n")[0]
        raise UsageError(
            f"--base {name}: neither a directory here nor a model that could be fetched ({said})."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = was


def known_as(base: Path) -> str:
    """What others know a base by: its name on the Hub, if it came from there, else its folder's."""
    if base.name.startswith(local_weights.BUNDLED_NAME):
        return BUNDLED_ON_HUB
    cached = re.search(r"/models--([^/]+)--([^/]+)/snapshots/", base.as_posix() + "/")
    return "/".join(cached.groups()) if cached else base.name


def require_causal(directory: Path) -> Any:
    """The base's configuration.

    :raises UsageError: where it does not describe a model that continues text.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{directory}/config.json cannot be read: {_first_line(error)}") from error
    kinds = config.architectures or []
    known = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # These fill gaps, reading both ways, unless their configuration says otherwise.
    fills = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    if not known or fills or config.is_encoder_decoder or (kinds and not any(_continues_text(kind) for kind in kinds)):
        kind = kinds[0] if kinds else config.model_type
        raise UsageError(
            f"{directory} holds a {kind}, which is not a causal language model: it cannot be trained to answer."
        )
    return config


def _continues_text(kind: str) -> bool:
    return kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


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
    from safetensors import SafetensorError
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
        model, found = kind.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            **settings,
        )  # fmt: skip
    except ImportError as error:
        raise UsageError(f"{directory} cannot be loaded: {_first_line(error)}. This may help: {INSTALL}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        unlike = "its weights are of other sizes than its config.json says" if "mismatched" in str(error) else ""
        raise UsageError(f"{directory} cannot be loaded: {unlike or _first_line(error)}") from error
    missing = sorted(key for key in found["missing_keys"] if stage != "reward" or not key.startswith("score"))
    if missing:  # transformers would fill them with random numbers and go on
        raise UsageError(f"{directory} is incomplete: {len(missing)} weights are missing, {missing[0]} among them.")
    if precision != "nf4" and getattr(model, "is_quantized", False):
        raise UsageError(f"{directory} holds quantised weights: take --method qlora, or the base they were made from.")
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that says that the GPU's or the machine's memory is full."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def first_use(directory: Path, precision: str) -> Iterator[None]:
    """Around the first passes through a base: what kinds of layers cannot do shows here, not when they are loaded.

    :raises UsageError: with what the layer said.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        instead = "; its layers may not take 4 bits: try --method lora" if precision == "nf4" else ""
        raise UsageError(f"{directory} cannot be trained in {precision} ({_first_line(error)}){instead}.") from error


def release_memory() -> None:
    """Give back what a trained model held; a trainer refers to itself, and torch keeps what it once had of a GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_gradients_right(model: Any) -> None:
    """Keep 4-bit layers in the layout that training reads.

    On CPUs with AVX512-BF16, bitsandbytes (up to 0.50.2) repacks a 4-bit layer's weights when it is first used for
    inference; from then on training takes a kernel through which no gradient flows, and nothing says so.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def put_on_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """The model with an adapter, beside those it has already; this one is at work.

    :raises UsageError: where it does not fit.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with quiet():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(f"the adapter in {folder} does not fit its model: {_first_line(error)}") from error
    model.set_adapter(name)
    return model
