"""What the trainer builds for GPUs and for several processes, as far as a CPU can tell; and a base from the Hub.

python -m pytest tests/test_finetune_devices.py
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune import bases, estimate, evaluate, measure, run, training
from finetune.data import Example
from finetune.methods import Recipe
from finetune.rows import Audit, Row
from pipeline.backends import weights
from pipeline.errors import UsageError
from tests.needs_trainer import MARKS, torch
from tests.tiny_models import little_rows, write_rows
from tests.tiny_training import encoded

pytestmark = MARKS


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch says that there are three GPUs that compute bf16; holds the number of each that was chosen."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


# ---------------------------------------------------------------- one GPU a process


@pytest.mark.parametrize(("rank", "number"), [(None, 0), ("2", 2)])
def test_every_process_has_a_gpu_of_its_own(
    rank: str | None, number: int, gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert bases.choose_device("auto") == "cuda"
    assert gpus == [number]  # or all of them would load their base onto the first
    assert bases.device_index("cuda") == number


def test_more_processes_than_gpus_are_refused(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UsageError, match="process 4 and there are 3 GPUs"):
        bases.choose_device("cuda")


def test_gpus_that_nothing_uses_are_counted(gpus: list[int]) -> None:
    assert [bases.idle_gpus("cuda", 1), bases.idle_gpus("cuda", 3), bases.idle_gpus("cpu", 1)] == [2, 0, 0]


def test_a_gpu_without_bf16_is_refused(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(UsageError, match="computes no bf16"):
        bases.choose_device("auto")
    assert bases.choose_device("cpu") == "cpu"


def arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: Recipe, batches: training.Batches) -> Any:
    from transformers import training_args

    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    setup = training.Setup(tmp_path, "cuda", 0, packing=True, checkpointing=True)
    return training._arguments(recipe, batches, setup, watch=True)


def test_what_a_gpu_is_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = arguments(monkeypatch, tmp_path, Recipe(), training.Batches(2048, 1, 4, 10, watched_at_once=8))
    assert made.n_gpu == 1  # of three; trl refuses to spread one process over several
    assert (made.optim, made.bf16, made.use_cpu, made.gradient_checkpointing) == ("paged_adamw_8bit", True, False, True)
    assert (made.packing, made.packing_strategy, made.eval_packing) == (True, "bfd", False)
    assert (made.train_batch_size, made.eval_batch_size, made.pad_to_multiple_of) == (1, 8, 8)
    full = arguments(monkeypatch, tmp_path, Recipe(method="full"), training.Batches(2048, 1, 4, 10))
    assert full.bf16  # fp32 weights, computed with in bf16
    guanaco = arguments(monkeypatch, tmp_path, Recipe(optimizer="paged_adamw_32bit"), training.Batches(528, 4, 4, 10))
    assert guanaco.optim == "paged_adamw_32bit"


# ---------------------------------------------------------------- packs and memory


def rows_of(length: int, count: int) -> list[Row]:
    return [Row([5] * length, [5] * length)] * count


def test_packs_are_read_one_at_a_time(tmp_path: Path) -> None:
    """The trainer lays a micro-batch's packs end to end, and attention works through all of the block mask."""
    found = training.plan(rows_of(100, 4000), Recipe(batch=128), 128, packing=True, device="cuda")
    assert (found.length, found.at_once, found.accumulate, found.watched_at_once) == (2048, 1, 6, 16)
    loose = training.plan(rows_of(100, 4000), Recipe(batch=128), 128, packing=False, device="cuda")
    assert (loose.at_once, loose.accumulate, loose.watched_at_once) == (64, 2, 64)


def test_a_pack_is_given_to_attention_as_a_mask_of_blocks(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as `is_causal`, which would let rows see each other, nor as added numbers, which no fast kernel takes."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    masks: list[Any] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: Any, attn_mask: Any = None, is_causal: bool = False, **rest: Any) -> Any:
        masks.append((attn_mask, is_causal))
        return attention(*arguments, attn_mask=attn_mask, is_causal=is_causal, **rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=8)
    batch = collate([{"input_ids": [5] * 6, "labels": [5] * 6, "seq_lengths": [4, 2]}])
    batch.pop("labels")
    model = bases.load_base(tiny, "bf16", "cpu")
    with torch.no_grad():
        model(**batch, use_cache=False)
    blocks = torch.block_diag(*(torch.tril(torch.ones(size, size)) for size in (4, 2, 1, 1))).bool()  # two of padding
    assert len(masks) == 2  # a layer each
    for mask, is_causal in masks:
        assert not is_causal
        assert mask.dtype == torch.bool
        assert torch.equal(mask[0, 0], blocks)


@pytest.mark.parametrize("packing", [True, False])
def test_micro_batches_shrink_until_they_fit(
    packing: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "PROCESS", {"cpu": 0.0})  # beside it the tiny model's activations are nothing
    data = write_rows(tmp_path / "data.jsonl", little_rows(64))
    flags = ["--base", str(tiny), "--packing" if packing else "--no-packing", "--checkpointing", "off"]
    started = run._Run(run._parse([str(data), *flags]), "")
    started.device, started.base = "cpu", tiny
    started.config = bases.require_causal(tiny)
    _, rows = encoded(tiny, little_rows(64), tmp_path)
    audit = Audit(64, "", 64, [])

    def fitted(free: float) -> training.Batches:
        monkeypatch.setattr(estimate, "free_memory", lambda device: free)
        return started._fit(rows, audit, packing)[0]

    whole = fitted(1e12)
    shape = estimate.shape_of(started.config)
    settings: dict[str, Any] = {"checkpointing": False, "device": "cpu"}
    quarter = estimate.estimate(shape, started.recipe, whole.at_once * whole.length // 4, **settings).total
    less = fitted(1.01 * quarter / estimate.MARGIN)
    assert whole.at_once * whole.length == 512
    assert less.at_once * less.length <= 128
    a_step = [found.at_once * found.length * found.accumulate for found in (whole, less)]
    assert a_step[1] == pytest.approx(a_step[0], rel=0.35)  # as many records, in more and smaller parts
    with pytest.raises(UsageError, match="This run needs about"):
        fitted(1e6)


def test_measuring_the_time_takes_no_more_memory_than_training(tiny: Path, tmp_path: Path) -> None:
    _, rows = encoded(tiny, little_rows(), tmp_path)
    model = bases.load_base(tiny, "bf16", "cpu")
    seen: list[tuple[bool, list[int]]] = []

    def note(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        held = any(parameter.requires_grad for parameter in model.parameters())
        seen.append((held or not model.is_activation_checkpointing, given["position_ids"][0].tolist()))

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    gradients: list[bool] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: gradients.append(True))
    estimate.seconds_a_token(model, rows, 128, Recipe(method="lora"), checkpointing=True)
    assert gradients == []  # of a base that is not trained; in bf16 they would be as large as it is
    (held, positions), *_ = seen
    assert not held
    assert positions[: rows[0].length + 2] == [*range(rows[0].length), 0, 1]  # each row from 0, as in a pack
    assert not model.is_activation_checkpointing
    full = bases.load_base(tiny, "fp32", "cpu")
    estimate.seconds_a_token(full, rows, 128, Recipe(method="full"), checkpointing=False)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in full.parameters())


def test_what_was_trained_is_let_go_before_the_next(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a GPU would hold ours while the control is trained, and the control's estimate be refused."""
    load = bases.load_base
    models: list[weakref.ref[Any]] = []
    held: list[int] = []

    def noted(*arguments: Any, **named: Any) -> Any:
        held.append(sum(model() is not None for model in models))
        models.append(weakref.ref(model := load(*arguments, **named)))
        return model

    monkeypatch.setattr(bases, "load_base", noted)
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    tasks = write_rows(tmp_path / "tasks.jsonl", [{"instruction": "Say it, will you?", "output": "It."}])
    flags = ["--curve", "30,60", "--steps", "1", "--new-tokens", "2", "--watch", "0", "--out", str(tmp_path / "out")]
    gc.disable()  # nothing but the run's own doing lets go of them
    try:
        assert run.main([str(data), "--base", str(tiny), "--tasks", str(tasks), *flags]) == 0
    finally:
        gc.enable()
    assert held == [0, 0, 0]


def test_whole_models_are_measured_one_at_a_time(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = bases.load_base
    models: list[weakref.ref[Any]] = []
    held: list[int] = []

    def noted(*arguments: Any, **named: Any) -> Any:
        gc.collect()
        held.append(sum(model() is not None for model in models))
        models.append(weakref.ref(model := load(*arguments, **named)))
        return model

    monkeypatch.setattr(evaluate, "load_base", noted)
    tokenizer = weights.load_tokenizer(tiny)
    tasks = [Example((("user", "Say it!"), ("assistant", "It.")), "")]
    settings: dict[str, Any] = {"tokenizer": tokenizer, "device": "cpu", "control": None, "overlap": None}
    evaluate.evaluate(
        tiny, "fp32", {"ours": tiny, "50 %": tiny}, tasks, language="en", new_tokens=2, say=lambda text: None,
        **settings,
    )  # fmt: skip
    assert held == [0, 0, 0]


def test_answers_are_read_in_batches_that_a_gpu_holds() -> None:
    class OnGpu:
        device = torch.device("cuda")

    lengths = [[1] * 100] * 500
    batches = list(measure._batches(OnGpu(), lengths, extra=48))
    assert sum(map(len, batches)) == 500
    assert max(map(len, batches)) * 148 <= 8192


# ---------------------------------------------------------------- a base from the Hub


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as fetching a model asks for, and what was asked."""

    commit = "a" * 40

    def __init__(self, folder: Path, asked: list[str], *rest: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*rest)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        if path.startswith("/api/models/maker/tiny/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.folder)),
                    "size": file.stat().st_size,
                    "oid": "b" * 40,
                }
                for file in files
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/api/models/maker/tiny"):
            names = [{"rfilename": str(file.relative_to(self.folder))} for file in files]
            self.answer(json.dumps({"id": "maker/tiny", "sha": self.commit, "siblings": names}).encode())
        elif path.startswith("/maker/tiny/resolve/"):
            self.answer((self.folder / path.split("/", 5)[5]).read_bytes())
        else:
            self.send_error(404)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{len(body)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tiny: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path / "served"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.safetensors").write_bytes(b"the same again")
    (folder / "pytorch_model.bin").write_bytes(b"the same, pickled")
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, asked)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("offline", [False, True])
def test_a_base_is_fetched_by_its_name_unless_the_user_wants_no_network(
    offline: bool, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = hub
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    environment = {key: value for key, value in os.environ.items() if not key.endswith(("_OFFLINE", "_proxy"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-m", "finetune.run", str(data), "--base", "maker/tiny", "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if offline:
        assert (done.returncode, asked) == (2, [])
        assert "--base maker/tiny: neither a directory here nor a model that could be fetched" in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-2000:]
        fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
        assert not {"consolidated.safetensors", "pytorch_model.bin"} & fetched


def test_a_base_is_known_by_its_name_on_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--maker--tiny-model" / "snapshots" / ("a" * 40)
    assert bases.known_as(cached) == "maker/tiny-model"
    assert bases.known_as(tmp_path / "mine") == "mine"
    assert bases.known_as(tmp_path / "SmolLM2-135M-Instruct-0123-v1") == bases.BUNDLED_ON_HUB
