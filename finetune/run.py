"""Train on what was kept, and say whether it helped.

    python -m finetune.run                              the shipped sample, on the bundled model
    python -m finetune.run outputs/self_instruct        a run folder: adapter, control, verdict
    python -m finetune.run data.jsonl --base DIR        Alpaca, ShareGPT, messages, prompt and completion, ChatGLM
    python -m finetune.run DATA --plan                  what it would train on and take, then stop
    accelerate launch --multi_gpu --num_processes 2 -m finetune.run DATA

QLoRA as published, on the CPU or a GPU. Before the first step it shows what is learnt and what it will take; after
the last it measures base, control and ours on tasks none was trained on, and says one sentence. The same command
goes on after a kill. For a run folder the control is a sample of the same size from everything that reached an
output, kept or rejected; for a file, --control names one, or nothing is said about filtering.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune import bases, card, estimate, evaluate, methods, rows, training
from finetune.bases import TOKENIZER_FILES
from finetune.data import (
    SAMPLE,
    Example,
    Source,
    candidates,
    hash_examples,
    main_language,
    read,
    sample_control,
    split,
    without_held_out,
)
from finetune.evaluate import say
from finetune.methods import METHODS, PRESETS
from pipeline.backends import weights as local_weights
from pipeline.errors import DONE, UsageError
from pipeline.run_folder import locked, write_json

WATCHED_SHARE = 0.1
MOST_WATCHED = 0.5
STAGES = ("sft", "pretrain", "dpo", "reward")
PIECE = 512  # tokens of a document, and half of a preference pair's, unless --max-length says otherwise
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    again = shlex.join(["python", "-m", "finetune.run", *(sys.argv[1:] if argv is None else argv)])
    if "list" in (options.method, options.preset):
        print(methods.describe_methods() if options.method == "list" else methods.describe_presets())
        return DONE
    return evaluate.ended(
        lambda: _Run(options, again).run(), f"Interrupted. Go on from the last checkpoint with: {again}"
    )


# ---------------------------------------------------------------- options


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", nargs="?", type=Path, default=SAMPLE, help="a run folder or a file [the shipped sample]")
    add("--base", metavar="DIR|HUB_ID", help="the model to start from [the bundled one]")
    add("--out", type=Path, metavar="DIR", help="where it all goes [outputs/NAME-tuned]")
    add("--control", metavar="FILE|none", help="a file to compare with; none: no control")
    add("--controls", type=int, default=1, metavar="N", help="draw and train it so often: what is luck? [1]")
    add("--tasks", type=Path, metavar="FILE", help="held-out tasks [40 of ours; Chinese for Chinese rows]")
    add(
        "--new-tokens",
        type=evaluate.more_than_nothing,
        default=evaluate.NEW_TOKENS,
        metavar="N",
        help="an answer's most, in the verdict [48]",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto: a GPU where there is one]")
    add("--stage", choices=STAGES, default="sft", help="pretrain: on plain documents; dpo, reward: on preference pairs")
    add("--curve", metavar="25,50,100", help="train on these shares too, in percent: would more data still help?")
    add("--seed", type=int, default=0, metavar="N")
    add(
        "--watch",
        type=float,
        default=WATCHED_SHARE,
        metavar="SHARE",
        help="of the rows, held out to stop early by [0.1]",
    )
    add(
        "--checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="[auto: on a GPU, or where memory is short]",
    )
    numbers = parser.add_argument_group("the recipe (a preset's numbers first, then what is given here)")
    number = numbers.add_argument
    number("--preset", choices=(*PRESETS, "list"), help="a published recipe")
    number("--method", choices=(*METHODS, "list"), help="[qlora]")
    number("--epochs", type=float, metavar="X", help="[3]")
    number("--steps", type=int, metavar="N", help="instead of epochs")
    number("--batch", type=int, metavar="N", help="records a step [16]")
    number("--learning-rate", type=float, metavar="X", help="[the method's]")
    number("--rank", type=int, metavar="N", help="of the adapter [16]")
    number("--alpha", type=float, metavar="X", help="[twice the rank]")
    number("--dropout", type=float, metavar="X", help="[0.05]")
    number("--max-length", type=int, metavar="N", help="longer rows are dropped [their 99th percentile]")
    number("--packing", action=argparse.BooleanOptionalAction, default=None, help="several rows to a sequence [yes]")
    number("--neftune", type=float, metavar="ALPHA", help="noise on embeddings while training")
    number("--four-bit", action=argparse.BooleanOptionalAction, default=None, help="the base in NF4 [the method's]")
    number("--rslora", action=argparse.BooleanOptionalAction, default=None, help="scale by the root of the rank")
    evaluate.add_judge(parser)
    switches = parser.add_argument_group("switches")
    switches.add_argument("--plan", action="store_true", help="audit and estimate, then stop")
    switches.add_argument("--force", action="store_true", help="train even where memory will not do")
    switches.add_argument("--log", action="store_true", help="write TensorBoard files too, into DIR/log")
    switches.add_argument("--json", action="store_true", help="print verdict.json on stdout")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the run


@dataclass(frozen=True, slots=True)
class Arm:
    """One training run of the comparison: what on, and where to."""

    folder: Path
    examples: list[Example]
    name: str
    seed: int
    overlap: float | None = None  # of a control: the share of its rows that are ours too


class _Run:
    def __init__(self, options: argparse.Namespace, again: str) -> None:
        self.options, self.again = options, again
        self.recipe = methods.recipe_of(options)
        if not 0 <= options.watch <= MOST_WATCHED:
            raise UsageError(f"--watch is {options.watch}: a share of the rows, from 0 to {MOST_WATCHED}.")
        if not 0 <= options.seed < 2**32:
            raise UsageError(f"--seed is {options.seed}: a number from 0 to {2**32 - 1}.")
        if options.stage == "reward" and not METHODS[self.recipe.method].merges:
            raise UsageError(
                f"--stage reward trains by lora, qlora, dora, adalora or full, not by {self.recipe.method}."
            )
        if options.controls < 1:
            raise UsageError(f"--controls is {options.controls}: at least 1, or --control none.")
        if options.controls > 1 and options.control == "none":
            raise UsageError(f"--controls {options.controls} does not go with --control none.")
        named = options.control not in (None, "none")
        for flag, given in {"--curve": options.curve, "--control": named, "--controls": options.controls > 1}.items():
            if given and options.stage != "sft":
                raise UsageError(f"{flag} is for --stage sft, not {options.stage}.")
        self.drawn_from: str | None = None  # what the control is a sample of
        self.overlap: float | None = None  # share of it that is among ours
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.main_process = os.environ.get("RANK", "0") == "0"
        self.say: Callable[[str], None] = say if self.main_process else lambda text: None
        self.out: Path = options.out or Path("outputs") / f"{options.data.name.split('.')[0]}-tuned"

    def run(self) -> int:
        evaluate.judge_of(self.options)
        source = read(self.options.data, self.options.stage)
        self.say(f"{self.options.data}: {len(source.examples)} examples ({source.shape})")
        self.language = main_language(source.examples)
        tasks = evaluate.read_tasks(self.options.tasks, self.language, self.say)
        arms = self._arms(source, tasks)
        bases.prepare()
        self.device = bases.choose_device(self.options.device)
        self.base = bases.find_base(self.options.base)
        self.config = bases.require_causal(self.base)
        self.tokenizer = local_weights.load_tokenizer(self.base)
        self.template = rows.ensure_template(self.tokenizer)
        if self.options.stage != "reward":
            evaluate.encode_tasks(
                self.tokenizer, tasks, stops=self._stops(), config=self.config, new_tokens=self.options.new_tokens
            )
        if idle := bases.idle_gpus(self.device, self.processes):
            self.say(f"One GPU is used, {idle} more are there: accelerate launch --multi_gpu -m finetune.run uses all")
        if self.options.preset:
            preset = PRESETS[self.options.preset]
            self.say("; ".join(filter(None, [f"Preset {self.options.preset}: {preset.source}", preset.unverified])))
        if METHODS[self.recipe.method].cannot:
            self.say(f"Note: {self.recipe.method} {METHODS[self.recipe.method].cannot}.")
        for arm in arms:
            trained = self._train(arm)
            bases.release_memory()
            if not trained:
                return DONE
        if not self.main_process:
            return DONE
        if self.options.stage == "reward":
            return self._report_reward()
        found, pages = evaluate.evaluate(
            self.base, self.recipe.precision, {arm.name: arm.folder for arm in arms}, tasks, language=self.language,
            tokenizer=self.tokenizer, device=self.device, control=self.drawn_from, overlap=self.overlap,
            new_tokens=self.options.new_tokens, say=self.say,
        )  # fmt: skip
        code = evaluate.conclude(self.out, found, pages, tasks, self.options)
        card.refresh_card(self.out, bases.known_as(self.base))
        say(f"All about it: {self.out / 'verdict.html'}")
        say(f"Next: python -m finetune.chat {self.out}, or make data with it: --model {self.out}")
        return code

    def _report_reward(self) -> int:
        """A reward model says no answers; what counts is how often it puts the better one first."""
        accuracy = json.loads((self.out / "trained.json").read_text(encoding="utf-8"))["accuracy"]
        if accuracy is None:
            say("Too few pairs to hold any back: how often it puts the better answer first was not measured")
        else:
            say(f"It puts the better answer first in {accuracy:.0%} of the pairs it did not learn from")
        return DONE

    # ---------------------------------------------------------------- what to train on

    def _arms(self, source: Source, tasks: Sequence[Example]) -> list[Arm]:
        """Shares of ours for --curve, ours, and the control where there is one."""
        if source.empty:
            self.say(f"{source.empty} rows have an empty answer, or the same one twice as a pair, and are left out")
        repeats = len(source.examples) - len({(example.messages, example.rejected) for example in source.examples})
        if repeats:
            self.say(f"{repeats} of them say the same as another, word for word; pipeline.curate takes repeats out")
        ours = self._without_held_out(source.examples, tasks, "examples")
        if not ours:
            raise UsageError("Every example collides with a held-out task, so there is nothing to train on.")
        return [
            *self._shares(ours),
            Arm(self.out, ours, "ours", self.options.seed),
            *self._controls(source.path, ours, tasks),
        ]

    def _shares(self, ours: list[Example]) -> list[Arm]:
        """The arms of --curve but the whole: nested samples, each holding the one before."""
        if self.options.curve is None:
            return []
        try:
            shares = sorted({int(part) for part in self.options.curve.split(",")} - {100})
        except ValueError:
            shares = [0]
        counts = [len(ours) * share // 100 for share in shares]
        if not shares or shares[0] <= 0 or shares[-1] > 100 or counts[0] == 0:
            raise UsageError(
                f"--curve {self.options.curve}: percentages, say 25,50,100, that leave at least one record."
            )
        shuffled = sample_control(ours, len(ours), self.options.seed)
        return [
            Arm(self.out / "curve" / str(share), shuffled[:count], f"{share} %", self.options.seed)
            for share, count in zip(shares, counts, strict=True)
        ]

    def _controls(self, path: Path, ours: list[Example], tasks: Sequence[Example]) -> list[Arm]:
        """Samples as large as ours, each drawn and trained by a seed of its own; none where nothing is to be drawn."""
        if self.options.control == "none" or self.options.stage != "sft":
            return []
        if self.options.control is not None:
            pool, about = read(Path(self.options.control)).examples, self.options.control
        elif path.is_dir():
            pool, about = candidates(path)
        else:
            self.say("No --control FILE: the verdict will say nothing about filtering")
            return []
        pool = self._without_held_out(pool, tasks, "control's candidates")
        if {example.messages for example in pool} <= {example.messages for example in ours}:
            if self.options.control is not None:
                raise UsageError(f"All rows of {about} are among ours, so it is no control. Use --control none.")
            self.say(
                "Nothing was rejected, so a control would be the same rows: the verdict says nothing about filtering"
            )
            return []
        if len(pool) < len(ours):
            raise UsageError(
                f"The control has {len(pool)} rows and ours {len(ours)}: a fair one has as many. Use --control none."
            )
        self.drawn_from = about
        said, draws = {example.messages for example in ours}, []
        for number in range(self.options.controls):
            seed, name = self.options.seed + number, evaluate.control_name(number)
            drawn = sample_control(pool, len(ours), seed)
            overlap = sum(example.messages in said for example in drawn) / len(drawn)
            self.say(f"{name.capitalize()}: {len(drawn)} of {about}; {overlap:.0%} of them are among ours")
            draws.append(Arm(self.out / evaluate.folder_of(name), drawn, name, seed, overlap))
        self.overlap = statistics.fmean(arm.overlap or 0.0 for arm in draws)
        return draws

    def _without_held_out(self, examples: list[Example], tasks: Sequence[Example], what: str) -> list[Example]:
        kept = without_held_out(examples, tasks)
        if len(kept) < len(examples):
            self.say(f"{len(examples) - len(kept)} of the {what} collide with held-out tasks and are left out")
        return kept

    # ---------------------------------------------------------------- one arm

    def _train(self, arm: Arm) -> bool:
        """Train an arm, unless its folder says it is done. False: --plan asked only for what stands before."""
        recipe, stage = self.recipe, self.options.stage
        learn, watch = split(arm.examples, self.options.watch, arm.seed)
        if self.options.watch and not watch:
            self.say("Too few documents, subjects or clusters to watch any: training does not stop early")
        encoded, audit = self._encode(learn, recipe.max_length)
        rows.check(audit)
        watched, _ = self._encode(watch, audit.max_length) if watch else ([], None)
        for line in rows.describe(audit) if arm.name == "ours" else rows.describe(audit)[:3]:
            self.say(line)
        packing = recipe.packing and stage in ("sft", "pretrain")
        fit = self._fit(encoded, audit, packing)
        if self.options.plan:
            return False
        with locked(arm.folder) if self.main_process else contextlib.nullcontext():
            if self.main_process:
                self._settle(arm, audit)
            if (arm.folder / "trained.json").is_file():
                self._require_its_own(arm.folder)
                self.say(f"{arm.folder} is trained already")
            else:
                self._learn(arm, encoded, watched, audit, *fit)
        return True

    def _require_its_own(self, folder: Path) -> None:
        """Refuse a folder that merge or somebody else made of one of ours."""
        if (folder / "adapter_config.json").is_file() == (self.recipe.method == "full"):
            raise UsageError(f"{folder} holds what was merged or made of such a run. Use another --out.")

    def _learn(
        self,
        arm: Arm,
        encoded: Any,
        watched: Any,
        audit: rows.Audit,
        batches: training.Batches,
        checkpointing: bool,
    ) -> None:
        recipe, stage = self.recipe, self.options.stage
        packing = recipe.packing and stage in ("sft", "pretrain")
        model = bases.load_base(self.base, recipe.precision, self.device, stage)
        with bases.first_use(self.base, recipe.precision):
            if packing:
                packing, why_not = training.can_pack(model, recipe, encoded)
                if not packing:
                    self.say(f"No packing: {why_not}")
                    batches, checkpointing = self._fit(encoded, audit, packing)
            if stage != "reward":
                a_token = estimate.seconds_a_token(model, encoded, batches.length, recipe, checkpointing=checkpointing)
                self._say_time(a_token, encoded, batches)
        setup = training.Setup(arm.folder, self.device, arm.seed, stage, packing, checkpointing, self.options.log)
        trainer, result = training.train(model, self.tokenizer, encoded, watched, recipe, batches, setup, self.say)
        done: dict[str, Any] = {"result": asdict(result), "audit": asdict(audit), "base": str(self.base)}
        if stage == "reward":  # asked of all processes, which measure it together
            done["accuracy"] = trainer.evaluate().get("eval_accuracy") if trainer.eval_dataset else None
        if self.main_process:
            self._save(arm, trainer, result, done)

    def _stops(self) -> list[int]:
        return rows.stop_ids(self.tokenizer, bases.generation_config(self.base))

    def _encode(self, examples: Sequence[Example], max_length: int | None) -> tuple[Any, rows.Audit]:
        """Rows (or pairs) of examples, as the stage wants them, and their audit."""
        longest = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None) or sys.maxsize
        if self.options.stage == "pretrain":
            return rows.encode_documents(self.tokenizer, examples, min(max_length or PIECE, longest))
        settings: dict[str, Any] = {"stops": self._stops(), "template": self.template}
        if self.options.stage in ("dpo", "reward"):
            most = min(max_length or 2 * PIECE, longest)
            return rows.encode_pairs(self.tokenizer, examples, max_length=most, **settings)
        return rows.encode(self.tokenizer, examples, max_length=max_length, longest=longest, **settings)

    def _say_time(self, a_token: float, encoded: Any, batches: training.Batches) -> None:
        a_record = sum(row.length for row in encoded) / len(encoded)
        seconds = a_token * a_record * batches.steps * min(self.recipe.batch, len(encoded)) / self.processes
        self.say(
            f"Time: about {seconds / 60:.1f} minutes for {batches.steps} steps,"
            f" at {1 / a_token:.0f} tokens/s (measured on one micro-batch)"
        )

    def _fit(self, encoded: Any, audit: rows.Audit, packing: bool) -> tuple[training.Batches, bool]:
        """Batches that the memory holds, and whether with gradient checkpointing; it is said, or refused."""
        shape, free = estimate.shape_of(self.config), estimate.free_memory(self.device)
        wanted = self.options.checkpointing
        if self.recipe.method == "prefix":  # its keys and values are lost when a layer is computed again
            if wanted == "on":
                raise UsageError("--checkpointing on does not go with --method prefix.")
            wanted = "off"
        most = sys.maxsize
        while True:
            batches = training.plan(
                encoded, self.recipe, audit.max_length, packing=packing, device=self.device, processes=self.processes,
                most=most,
            )  # fmt: skip
            tokens = batches.at_once * batches.length * (2 if self.options.stage in ("dpo", "reward") else 1)
            on = wanted == "on" or (wanted == "auto" and self.device == "cuda")
            found = estimate.estimate(shape, self.recipe, tokens, checkpointing=on, device=self.device)
            if wanted == "auto" and not on and found.total > free / 2:
                on = True
                found = estimate.estimate(shape, self.recipe, tokens, checkpointing=on, device=self.device)
            if found.total <= estimate.MARGIN * free or batches.at_once * batches.length <= audit.max_length:
                break
            most = batches.at_once * batches.length // 2
        self.say(estimate.describe(found, free, self.device))
        if not self.options.force:
            estimate.require_room(found, shape, self.recipe, tokens, checkpointing=on, device=self.device, free=free)
        return batches, on

    def _settle(self, arm: Arm, audit: rows.Audit) -> None:
        """Note what the run is made of, and refuse a folder begun with something else."""
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        training.fingerprint(arm.folder, {
            "data": hash_examples(arm.examples), "examples": len(arm.examples), "recipe": asdict(self.recipe),
            "stage": self.options.stage,
            "base": local_weights.find(self.base).identity, "seed": arm.seed, "watch": self.options.watch,
            "max_length": audit.max_length, "processes": self.processes, "device": self.device, "versions": versions,
        }, language=self.language)  # fmt: skip

    def _save(self, arm: Arm, trainer: Any, result: training.Result, done: dict[str, Any]) -> None:
        """The adapter (or model), the base's own tokenizer files, and last of all trained.json: all is there."""
        trainer.model.save_pretrained(arm.folder)
        for name in TOKENIZER_FILES:
            if (self.base / name).is_file():
                shutil.copyfile(self.base / name, arm.folder / name)
        if self.template != rows.OWN_TEMPLATE:
            (arm.folder / "chat_template.jinja").write_text(self.tokenizer.chat_template, encoding="utf-8")
        generation = bases.generation_config(self.base)
        generation.eos_token_id = self._stops()
        generation.save_pretrained(arm.folder)
        training.draw_losses(result, arm.folder / "loss.png")
        if arm.overlap is not None:
            done |= {"drawn_from": self.drawn_from, "overlap": arm.overlap}
        write_json(arm.folder / "trained.json", done)
        shutil.rmtree(arm.folder / "checkpoints", ignore_errors=True)
        self.say(
            f"{arm.name}: {result.steps} steps in {result.seconds:.0f} s, {result.tokens_per_second:.0f} tokens/s;"
            f" saved in {arm.folder}"
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C does
    sys.exit(main())
