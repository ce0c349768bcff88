"""The verdict: base, control and ours on tasks that none of them was trained on.

    python -m finetune.evaluate outputs/self_instruct-tuned
    python -m finetune.evaluate outputs/A-tuned --control outputs/B-tuned --tasks my_tasks.jsonl
    python -m finetune.evaluate outputs/A-tuned --control outputs/B-tuned outputs/C-tuned outputs/D-tuned
    python -m finetune.evaluate outputs/A-tuned --judge-model NAME --max-requests 500

`finetune.run` ends with this; run it again for other tasks or another control. Writes verdict.json and verdict.html
into the first folder and says one sentence. Tasks are rows in any shape that `finetune.run` reads; without --tasks
forty of ours: finetune/heldout_zh.jsonl where most rows of the run were Chinese, else finetune/heldout.jsonl. With a
judge the answers are also compared in pairs, in both orders; its calls are kept beside the model, so a second time
they cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import verdict as verdicts
from finetune.bases import (
    choose_device,
    is_out_of_memory,
    keep_gradients_right,
    load_base,
    prepare,
    put_on_adapter,
)
from finetune.data import HELD_OUT, Example, read, read_json
from finetune.measure import PLAIN_TEXT, Loss, Reply, answer_losses, mean_loss, plain_text_loss, scores, write_answers
from finetune.methods import Recipe
from finetune.rows import Row, encode, last_answer_only, stop_ids
from pipeline.backends import weights as local_weights
from pipeline.errors import DONE, Interrupted, StopRun, StorageError, UsageError
from pipeline.judge import VERDICT_TOKENS

if TYPE_CHECKING:
    from pipeline.judge_answers import Judge

NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a folder of `finetune.run` holds, and what it stands on."""

    folder: Path
    base: Path
    method: str
    precision: str  # of the base

    @classmethod
    def at(cls, folder: Path) -> Tuned:
        """Read a folder.

        :raises UsageError: where it is no model or its base is not here.
        """
        found = local_weights.find(folder)
        noted = read_json(folder / "run.json")
        if noted.get("stage") == "reward":
            raise UsageError(f"{folder} is a reward model: it scores answers and writes none.")
        try:
            recipe = Recipe(**noted.get("recipe", {"method": "lora"}))  # what was made elsewhere stands on bf16
        except TypeError as error:
            raise UsageError(f"{folder}/run.json was written by another version of this program ({error}).") from error
        if found.adapter is not None:
            return cls(folder, local_weights.transformers_directory(found), recipe.method, recipe.precision)
        base = read_json(folder / "trained.json").get("base")
        if recipe.method != "full" or base is None or not Path(base).is_dir():
            raise UsageError(
                f"{folder} is a whole model, and what it was trained from is not noted there, or gone. "
                "Where it was merged from an adapter, measure that."
            )
        return cls(folder, Path(base), recipe.method, recipe.precision)


def arms(base: Path, precision: str, device: str, folders: dict[str, Path]) -> Iterator[tuple[str, Any]]:
    """(name, model) of the base and of each folder, one after the other; the base is loaded once for all adapters."""
    if precision == "fp32":  # whole models
        for name, directory in {"base": base, **folders}.items():
            yield name, load_base(directory, precision, device).eval()
        return
    model = load_base(base, precision, device).eval()
    yield "base", model
    for name, folder in folders.items():
        model = put_on_adapter(model, folder, name)
        keep_gradients_right(model)
        yield name, model.eval()


def evaluate(
    base: Path,
    precision: str,
    folders: dict[str, Path],
    tasks: Sequence[Example],
    *,
    language: str,
    tokenizer: Any,
    device: str,
    control: str | None,
    overlap: float | None,
    new_tokens: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict, and every task with all answers.

    :param folders: "ours", and each draw of the control by its `control_name`, where there is one.
    :param language: of the plain text that forgetting is measured on.
    :param control: what the control was trained on; None: there is none.
    :param overlap: the share of the control's rows that ours was trained on too, where it is known.
    """
    measures: dict[str, dict[str, Any]] = {}
    losses: dict[str, list[Loss]] = {}
    replies: dict[str, list[Reply]] = {}
    for name, model in arms(base, precision, device, folders):
        say(f"Measuring {name} on {len(tasks)} tasks")
        stops = stop_ids(tokenizer, model.generation_config)
        rows = encode_tasks(tokenizer, tasks, stops=stops, config=model.config, new_tokens=new_tokens)
        losses[name] = answer_losses(model, rows)
        replies[name] = write_answers(model, tokenizer, tasks, stops=stops, max_new_tokens=new_tokens)
        measures[name] = {
            "answer_loss": mean_loss(losses[name]),
            **scores(tasks, replies[name]),
            "plain_text_loss": plain_text_loss(model, tokenizer, PLAIN_TEXT[language]),
        }
        del model  # a whole one would stay while the next is loaded
    found = verdicts.judge(measures, losses, control=control, overlap=overlap)
    pages = [
        {
            "question": task.question,
            "wanted": task.answer,
            "losses": {name: losses[name][number].nats / max(1, losses[name][number].tokens) for name in losses},
            "answers": {name: replies[name][number].text for name in replies},
        }
        for number, task in enumerate(tasks)
    ]
    return found, pages


def encode_tasks(
    tokenizer: Any, tasks: Sequence[Example], *, stops: Sequence[int], config: Any, new_tokens: int
) -> list[Row]:
    """A row of each task, its last answer measured; what was said before is given.

    :raises UsageError: where one cannot be asked; found out before hours of training, not after.
    """
    rows, audit = encode(tokenizer, list(map(last_answer_only, tasks)), stops=stops, max_length=sys.maxsize)
    if len(rows) != len(tasks):
        raise UsageError(f"{audit.unfit} of the {len(tasks)} tasks do not fit the chat template.")
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or sys.maxsize
    too_long = sum(max(row.length, row.length - row.answer_tokens + new_tokens) > longest for row in rows)
    if too_long:
        raise UsageError(
            f"{too_long} of the {len(tasks)} tasks are longer, with the answer, than the {longest} tokens that the "
            "model reads."
        )
    return rows


def conclude(
    folder: Path,
    found: dict[str, Any],
    pages: Sequence[dict[str, Any]],
    tasks: Sequence[Example],
    options: argparse.Namespace,
) -> int:
    """Write the verdict and say it; with a judge, write it first, for what the judge says only stands beside it."""
    verdicts.write(folder, found, pages)
    stopped, judge = None, judge_of(options)
    if judge is not None:
        from pipeline import judge_answers

        pairs = [
            judge_answers.Pair(
                "\n\n".join(text for _, text in task.messages[:-1]),
                page["answers"]["ours"], page["answers"][found["against"]], task.language,
            )
            for task, page in zip(tasks, pages, strict=True)
        ]  # fmt: skip
        say(f"Asking {judge.model} about {len(pairs)} pairs of answers, in both orders")
        opinions, stopped = judge_answers.ask_judge(judge, pairs, folder)
        found["judge"] = verdicts.judged(pairs, opinions, judge.model, found["against"])
        verdicts.write(folder, found, pages)
    for line in verdicts.describe(found):
        say(line)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    if stopped is None:
        return DONE
    say(f"{stopped} What it said is kept: go on with python -m finetune.evaluate {folder} and the same flags.")
    return stopped.exit_code


def judge_of(options: argparse.Namespace) -> Judge | None:
    """The judge that the flags name, None where they name none.

    :raises UsageError: where it could not be asked; found out before hours of training, not after.
    """
    if options.judge_max_tokens is not None and options.judge_max_tokens < 16:
        raise UsageError(f"--judge-max-tokens is {options.judge_max_tokens}: a verdict needs 16 at least.")
    for name in ("max_requests", "max_cost"):
        if (getattr(options, name) or 0) < 0:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(options, name)}, and must be 0 or above.")
    if options.judge_model is None:
        if any(
            given is not None
            for given in (options.judge_base_url, options.judge_max_tokens, options.max_requests, options.max_cost)
        ):
            raise UsageError(
                "--judge-base-url, --judge-max-tokens, --max-requests and --max-cost are a judge's: name it by"
                " --judge-model."
            )
        return None
    from pipeline.judge_answers import Judge

    judge = Judge(
        options.judge_model, options.judge_base_url, options.judge_api_key_env, options.max_requests, options.max_cost,
        options.judge_max_tokens or VERDICT_TOKENS,
    )  # fmt: skip
    judge.open()
    return judge


def read_tasks(path: Path | None, language: str, say: Callable[[str], None]) -> list[Example]:
    """The held-out tasks, a file's or ours in that language, saying which."""
    found = read(path or HELD_OUT[language]).examples
    say(f"Held-out tasks: {len(found)} of {path or f'finetune/{HELD_OUT[language].name}, the language of most rows'}")
    return found


def language_of_run(folder: Path) -> str:
    """The language that most rows of a run were in; English where nothing was noted."""
    return "zh" if read_json(folder / "run.json").get("language") == "zh" else "en"


# ---------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> int:
    return ended(lambda: _run(_parse(argv)))


def ended(work: Callable[[], int], again: str = "") -> int:
    """What a command of the trainer returns: every way it can stop has its code, and a sentence.

    :param again: what to say after Ctrl-C.
    """
    try:
        return work()
    except StopRun as stop:
        say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        if again:
            say(again)
        return Interrupted.exit_code
    except OSError as error:
        say(f"{error.filename or 'A file'}: {error.strerror or error}.")
        return StorageError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(
            "The memory is full. --max-length N or --checkpointing on make training take less, --method qlora too; "
            "a smaller --base is sure to. What was trained is kept."
        )
        return UsageError.exit_code


def more_than_nothing(text: str) -> int:
    """A flag's number, which must be above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, and must be above 0")
    return number


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tuned", type=Path, help="a folder that finetune.run wrote")
    parser.add_argument(
        "--control", type=Path, nargs="+", metavar="DIR",
        help="another one, trained on what ours is compared with, or several, each on another draw of it",
    )  # fmt: skip
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="held-out tasks [ours, in the language of its run]")
    parser.add_argument(
        "--new-tokens",
        type=more_than_nothing,
        default=NEW_TOKENS,
        metavar="N",
        help=f"an answer's most [{NEW_TOKENS}]",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print verdict.json on stdout")
    add_judge(parser)
    return parser.parse_args(argv)


def add_judge(parser: argparse.ArgumentParser) -> None:
    """The flags of the judge; without --judge-model there is none."""
    add = parser.add_argument_group("a judge of the answers, in both orders").add_argument
    add("--judge-model", metavar="NAME", help="at an endpoint, or a local folder")
    add("--judge-base-url", metavar="URL", help="the endpoint [OPENAI_BASE_URL]")
    add("--judge-api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="the variable that holds its key")
    add(
        "--judge-max-tokens",
        type=int,
        metavar="N",
        help=f"of a verdict; thinking takes more [{VERDICT_TOKENS}]",
    )
    add("--max-requests", type=int, metavar="N", help="sent to it at most, counting all that was ever sent")
    add("--max-cost", type=float, metavar="USD", help="spent on it at most, counted likewise; prices.toml says prices")


def _run(options: argparse.Namespace) -> int:
    language = language_of_run(options.tuned)
    tasks = read_tasks(options.tasks, language, say)
    judge_of(options)
    prepare()
    ours = Tuned.at(options.tuned)
    if options.control is None:
        draws, about, overlap = _own_draws(ours.folder)
    else:
        draws, about, overlap = options.control, " and ".join(map(str, options.control)), None
    folders = {"ours": ours.folder}
    for number, draw in enumerate(draws):
        other = Tuned.at(draw)
        if (other.base, other.precision) != (ours.base, ours.precision):
            raise UsageError(
                f"{other.folder} stands on another base than {ours.folder}, so the two say nothing of the data."
            )
        folders[control_name(number)] = other.folder
    tokenizer = local_weights.load_tokenizer(ours.folder)
    found, pages = evaluate(
        ours.base, ours.precision, folders, tasks, language=language, tokenizer=tokenizer,
        device=choose_device(options.device), control=about, overlap=overlap, new_tokens=options.new_tokens, say=say,
    )  # fmt: skip
    return conclude(ours.folder, found, pages, tasks, options)


def control_name(number: int) -> str:
    """What a draw of the control is called, among the arms of a verdict: "control", "control 2" and so on."""
    return "control" if number == 0 else f"control {number + 1}"


def folder_of(control: str) -> str:
    """The folder of a draw, beside our adapter."""
    return control.replace(" ", "-")


def _own_draws(folder: Path) -> tuple[list[Path], str | None, float | None]:
    """The draws of the control that `finetune.run` trained, what they were drawn from, and their overlap with ours."""
    beside = (folder / folder_of(control_name(number)) for number in itertools.count())
    draws = list(itertools.takewhile(lambda draw: (draw / "trained.json").is_file(), beside))
    if not draws:
        return [], None, None
    noted = [read_json(draw / "trained.json") for draw in draws]
    return draws, noted[0]["drawn_from"], statistics.fmean(each["overlap"] for each in noted)


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
