"""One training run through trl's SFTTrainer: rows in, an adapter in a folder out.

What is ours: how records become packs, the probe that packs stay apart, progress lines, and a resume that refuses
other data. Everything else is the library's.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.bases import keep_gradients_right, quiet
from finetune.data import read_json
from finetune.methods import METHODS, Recipe, adapter_config
from finetune.rows import IGNORED, Pair, Row
from pipeline.errors import UsageError
from pipeline.run_folder import write_json

PACK_LENGTH = {"cpu": 512, "cuda": 2048}
# A micro-batch's, padding included. On a CPU packs of 250 to 500 tokens were fastest, and 1,000 an eighth slower: its
# attention works through the whole block mask. So it does on a GPU without flash attention, and the trainer lays all
# packs of a micro-batch end to end: of packs there is one at a time.
TOKENS_AT_ONCE = {"cpu": 512, "cuda": 8192}
EVALUATIONS = 10  # at most, over the run; a checkpoint is written with each
PATIENCE = 3  # evaluations without a better loss before the run ends
PROBES = 4  # pairs of rows that are packed to see whether they stay apart


@dataclass(frozen=True, slots=True)
class Result:
    """What a training run ended with."""

    steps: int
    seconds: float
    tokens_per_second: float
    losses: list[tuple[int, float]]
    watched: list[tuple[int, float]]
    best_step: int | None
    stopped_early: bool
    packed: bool


@dataclass(frozen=True, slots=True)
class Batches:
    """How rows become steps."""

    length: int  # of a pack, or the longest row
    at_once: int  # packs or rows a micro-batch
    accumulate: int  # micro-batches a step
    steps: int
    watched_at_once: int = 1  # rows, which are never packed


def plan(
    rows: Sequence[Row] | Sequence[Pair],
    recipe: Recipe,
    max_length: int,
    *,
    packing: bool,
    device: str,
    processes: int = 1,
    most: int = sys.maxsize,
) -> Batches:
    """Micro-batches and steps such that a step sees about `recipe.batch` records, packed or not.

    :param most: tokens a micro-batch shall have at most, where it can: a row is never cut.
    """
    tokens = sum(row.length for row in rows)
    length = max(max_length, min(PACK_LENGTH[device], most)) if packing else max_length
    if packing:
        units = math.ceil(tokens / length)
        a_step = max(1, round(recipe.batch * units / len(rows)))
    else:
        units, a_step = len(rows), recipe.batch
    a_step = max(1, math.ceil(min(a_step, units) / processes))
    at_once = 1 if packing else max(1, min(a_step, min(TOKENS_AT_ONCE[device], most) // length))
    accumulate = math.ceil(a_step / at_once)
    an_epoch = max(1, math.ceil(units / (at_once * accumulate * processes)))
    steps = recipe.steps or math.ceil(an_epoch * recipe.epochs)
    return Batches(length, at_once, accumulate, steps, max(1, length // max_length) if packing else at_once)


def packs_stay_apart(model: Any, rows: Sequence[Row]) -> bool:
    """Whether a row packed behind another has the loss it has alone: a model with masks of its own may fail this.

    Rounding moves a loss too, so the difference is held against what seeing the other row does to it.
    """
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)  # the trainer's: all it says of packs

    def loss(row: Row, lengths: list[int]) -> float:
        batch = collate([{"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": lengths}])
        batch = {name: part.to(model.device) if hasattr(part, "to") else part for name, part in batch.items()}
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits[labels != IGNORED].float(), labels[labels != IGNORED]))

    was_training = model.training
    model.eval()
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tails = [_tail(row, longest // 2 if longest else row.length) for row in rows]
    by_length = sorted((row for row in tails if row.answer_tokens > 1), key=lambda row: row.length)[-2 * PROBES :]
    noise = seen = 0.0
    for first, second in zip(by_length[::2], by_length[1::2], strict=False):
        labels = [IGNORED] * (first.length + 1) + second.labels[1:]
        both = Row(first.input_ids + second.input_ids, labels)
        alone = loss(second, [second.length])
        noise += abs(loss(both, [first.length, second.length]) - alone)
        seen += abs(loss(both, [both.length]) - alone)
    model.train(was_training)
    return noise < max(1e-3 * PROBES, seen / 4)


def _tail(row: Row, length: int) -> Row:
    return Row(row.input_ids[-length:], row.labels[-length:])


# ---------------------------------------------------------------- the run


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how a run trains, beside its recipe."""

    folder: Path
    device: str
    seed: int
    stage: str = "sft"  # sft, pretrain, dpo or reward
    packing: bool = False
    checkpointing: bool = False
    log: bool = False  # for TensorBoard, in folder/log


def train(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row] | Sequence[Pair],
    watched: Sequence[Row] | Sequence[Pair],
    recipe: Recipe,
    batches: Batches,
    setup: Setup,
    say: Callable[[str], None],
) -> tuple[Any, Result]:
    """Train, from the folder's last checkpoint if there is one. The trainer's model has the best weights."""
    from datasets import Dataset
    from tensorboardX import SummaryWriter
    from transformers import EarlyStoppingCallback, PrinterCallback
    from transformers.integrations import TensorBoardCallback
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = setup.folder / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if setup.device == "cpu":
        _score_what_is_learnt()
    sets = [Dataset.from_list([row.features(setup.stage) for row in part]) for part in (rows, watched) if part]
    with quiet():
        try:
            trainer = trainer_of(setup.stage)(
                model=model,
                args=_arguments(recipe, batches, setup, watch=bool(watched)),
                train_dataset=sets[0],
                eval_dataset=sets[1] if watched else None,
                processing_class=tokenizer,
                peft_config=adapter_config(recipe, model, batches.steps, setup.stage),
                callbacks=[_progress(say)],
            )
        except (ValueError, NotImplementedError) as error:  # some kinds of layers take no adapter, or not this one
            instead = " Try --dropout 0." if "dropout" in str(error) else ""
            raise UsageError(f"--method {recipe.method} does not go with this model: {error}{instead}") from error
        trainer.remove_callback(PrinterCallback)
        if watched:
            trainer.add_callback(EarlyStoppingCallback(PATIENCE))
        if setup.log and trainer.is_world_process_zero():  # its own place is among the checkpoints, which go at the end
            trainer.add_callback(TensorBoardCallback(SummaryWriter(str(setup.folder / "log"))))
        if recipe.method == "adalora":
            trainer.add_callback(_allocate_ranks())
            for name, parameter in trainer.model.named_parameters():
                if "ranknum" in name:  # the divisor of every layer; peft would train it, and not save it
                    parameter.requires_grad = False
        keep_gradients_right(trainer.model)
        if last:
            say(f"Going on from {Path(last).name}")
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=last)
    return trainer, _result(trainer, batches, time.monotonic() - started, setup.packing)


def _score_what_is_learnt() -> None:
    """Have trl's head score only the positions that are learnt, on a CPU too.

    Off the GPU it scores all of them, questions and padding included, and says why: hardware that compiles for each
    shape must. A CPU does not, and with a vocabulary of 49,152 that was a third of the time.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True  # there it decides this alone; the kernels ask under a name of their own


def trainer_of(stage: str) -> Any:
    """The library's trainer for a stage, but for what it does differently when it goes on."""
    from trl import DPOTrainer, RewardTrainer, SFTTrainer

    class RenderedDPOTrainer(DPOTrainer):  # type: ignore[misc]
        """Takes the ids our renderer made; the library's own would render the texts again, in its way."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    kind: Any = {"dpo": RenderedDPOTrainer, "reward": RewardTrainer}.get(stage, SFTTrainer)

    class SteadyTrainer(kind):  # type: ignore[misc]
        """Keeps an adapter in the type it is trained in: peft reads one back in fp32, so a resumed run would differ."""

        def _load_from_checkpoint(self, *given: Any, **named: Any) -> None:
            with _same_types(self.model):
                super()._load_from_checkpoint(*given, **named)

        def _load_best_model(self) -> None:
            with _same_types(self.model):
                super()._load_best_model()

    return SteadyTrainer


@contextlib.contextmanager
def _same_types(model: Any) -> Iterator[None]:
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != before.get(name, parameter.dtype):
            parameter.data = parameter.data.to(before[name])


def _arguments(recipe: Recipe, batches: Batches, setup: Setup, *, watch: bool) -> Any:
    """The trainer's settings. Every one that differs from the library's default is here."""
    from trl import DPOConfig, RewardConfig, SFTConfig

    often = max(1, math.ceil(batches.steps / EVALUATIONS))
    cpu = setup.device == "cpu"
    kind = {"dpo": DPOConfig, "reward": RewardConfig}.get(setup.stage, SFTConfig)
    packs = {"packing": setup.packing, "packing_strategy": "bfd", "eval_packing": False} if kind is SFTConfig else {}
    made = kind(
        **packs,
        output_dir=str(setup.folder / "checkpoints"),
        max_steps=batches.steps,
        per_device_train_batch_size=batches.at_once,
        per_device_eval_batch_size=batches.watched_at_once,
        gradient_accumulation_steps=batches.accumulate,
        learning_rate=recipe.rate,
        lr_scheduler_type=recipe.schedule,
        lr_scheduler_kwargs={"min_lr_rate": 0.1} if recipe.schedule == "cosine_with_min_lr" else None,
        warmup_steps=recipe.warmup,
        optim=recipe.optimizer or ("adamw_torch_fused" if cpu else "paged_adamw_8bit"),
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.beta2,
        max_grad_norm=recipe.clip,
        neftune_noise_alpha=recipe.neftune,
        max_length=batches.length,
        pad_to_multiple_of=None if cpu else 8,
        train_sampling_strategy="group_by_length" if recipe.group_by_length and not setup.packing else "random",
        bf16=recipe.method != "full" or not cpu,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        gradient_checkpointing=setup.checkpointing,
        seed=setup.seed,
        logging_steps=max(1, math.ceil(batches.steps / 50)),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide them
        report_to="none",
        disable_tqdm=True,
        eval_strategy="steps" if watch else "no",
        eval_steps=often,
        save_strategy="steps",
        save_steps=often,
        save_total_limit=2,
        load_best_model_at_end=watch,
        metric_for_best_model="loss" if watch else None,
    )
    made._n_gpu = min(1, made.n_gpu)  # a process uses one GPU; of several the library would make a DataParallel
    return made


def _progress(say: Callable[[str], None]) -> Any:
    """A callback: one line whenever the trainer logs."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]  # the libraries are untyped
        started = 0.0
        tokens_before = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first_step = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "eval_loss")):
                raise UsageError(
                    f"In step {state.global_step} the loss is no number any more: remove {Path(args.output_dir).parent}"
                    f" and take a lower --learning-rate than {args.learning_rate:g}."
                )
            if not state.is_world_process_zero:
                return
            seconds, done = time.monotonic() - self.started, state.global_step - self.first_step
            if "eval_loss" in logs:
                say(f"step {state.global_step} of {state.max_steps} · loss on the watched rows {logs['eval_loss']:.4f}")
            elif "loss" in logs:
                left = seconds / max(1, done) * (state.max_steps - state.global_step)
                rate = logs.get("num_tokens", 0.0) / seconds if self.first_step == 0 and seconds else 0.0
                speed = f" · {rate:.0f} tokens/s" if rate else ""
                say(
                    f"step {state.global_step} of {state.max_steps} · loss {logs['loss']:.4f}{speed}"
                    f" · about {left:.0f} s left"
                )

    return Progress()


def _allocate_ranks() -> Any:
    """A callback that does for AdaLoRA what neither peft nor the trainer calls: pruning ranks, and the penalty.

    peft notes the ranks that are left in the adapter's configuration, and then saves pruned tensors, which load only
    into a model pruned alike; a resumed run and the best checkpoint are not. So the note is kept here, and all ranks
    are saved, the pruned ones with a singular value of 0. What the next pruning rests on is saved beside them.
    """
    import torch
    from transformers import TrainerCallback

    def noted_in(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "ranks.pt"

    class AllocateRanks(TrainerCallback):  # type: ignore[misc]
        left: dict[str, list[bool]] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            if not state.global_step:
                return
            if not noted_in(args, state).is_file():
                raise UsageError(f"{noted_in(args, state).parent} was not written to its end: remove it, then again.")
            noted = torch.load(noted_in(args, state), weights_only=True)
            allocator = model.base_model.rankallocator
            self.left, allocator.exp_avg_ipt, allocator.exp_avg_unc = noted["left"], noted["mean"], noted["spread"]
            allocator.ipt = dict.fromkeys(noted["mean"])  # computed anew in each step; its names say what is known

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            """The penalty, which peft adds to a loss that the trainer does not use; after clipping, so in full."""
            sides = {name: side for name, side in model.named_parameters() if "lora_A" in name or "lora_B" in name}
            products = [side.float() @ side.float().T if "lora_A" in name else side.float().T @ side.float()
                        for name, side in sides.items()]  # fmt: skip
            off = sum(torch.linalg.norm(product - torch.eye(len(product)).to(product)) for product in products)
            penalty = model.active_peft_config.orth_reg_weight * off / len(sides)
            for side, gradient in zip(sides.values(), torch.autograd.grad(penalty, sides.values()), strict=True):
                side.grad += gradient

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            config = model.active_peft_config
            config.rank_pattern = self.left
            model.base_model.update_and_allocate(state.global_step + 1)  # gradients are still there
            self.left, config.rank_pattern = config.rank_pattern, None

        def on_save(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            allocator = model.base_model.rankallocator
            noted = {"left": self.left, "mean": allocator.exp_avg_ipt, "spread": allocator.exp_avg_unc}
            if state.is_world_process_zero:  # the others hold the same
                torch.save(noted, noted_in(args, state))

    return AllocateRanks()


def _result(trainer: Any, batches: Batches, seconds: float, packing: bool) -> Result:
    history = trainer.state.log_history
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    watched = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    tokens = max((entry.get("num_tokens", 0.0) for entry in history), default=0.0)
    best = trainer.state.best_model_checkpoint
    return Result(
        steps=trainer.state.global_step,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        losses=losses,
        watched=watched,
        best_step=int(Path(best).name.rpartition("-")[2]) if best else None,
        stopped_early=trainer.state.global_step < batches.steps,
        packed=packing,
    )


def can_pack(model: Any, recipe: Recipe, rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether to pack, and why not if not."""
    if not recipe.packing:
        return False, "it was not asked for"
    if not METHODS[recipe.method].merges:
        return False, f"{recipe.method} puts its tokens before a sequence, and a pack holds several"
    if len(rows) < 2:
        return False, "there is only one row"
    try:
        apart = packs_stay_apart(model, rows)
    except ValueError as error:  # a layer that knows that it cannot
        return False, str(error).strip().split("\n")[0]
    return apart, "" if apart else "this model lets packed rows see each other"


def draw_losses(result: Result, path: Path) -> None:
    """loss.png: what was learnt from, and what was watched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for label, points in (("training", result.losses), ("watched rows", result.watched)):
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def fingerprint(folder: Path, now: dict[str, Any], **beside: Any) -> None:
    """Refuse a folder begun with other data or settings; otherwise note these, and what stands beside them.

    :raises UsageError: naming what differs, or what else is in the folder.
    """
    path = folder / "run.json"
    now = json.loads(json.dumps(now))
    if path.is_file():
        before = read_json(path)
        changed = [name for name in {**now, **before} if name not in beside and now.get(name) != before.get(name)]
        learnt = [*folder.glob("checkpoints/checkpoint-*"), *folder.glob("trained.json")]
        if changed and learnt:  # else nothing would be lost, or mixed
            listed = "; ".join(f"{name}: {before.get(name)} -> {now.get(name)}" for name in dict.fromkeys(changed))
            raise UsageError(f"{folder} was begun with something else ({listed}). Use another --out, or remove it.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".") and file.name != "curve")
        if names:
            raise UsageError(f"{folder} holds something else ({', '.join(names[:5])}). Use another --out.")
    write_json(path, now | beside)
