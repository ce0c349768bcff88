"""What to train on: a run folder, or a file in one of the shapes people have, as one list of `Example`s.

    outputs/NAME            a run folder: its records.jsonl, or for preferences its preferences.jsonl
    FILE                    jsonl, json, csv or parquet, of Alpaca's rows (instruction, input, output, perhaps history),
                            ShareGPT (conversations), messages, prompt and completion, ChatGLM (content, summary)

The shape is told from the first row's keys, said aloud, and asked of every row. Also here: the held-out tasks that
nothing may be trained on, the split by group, and the control's rows.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.curation.decontaminate import Benchmark, Item
from pipeline.curation.parents import open_parent, read_parent
from pipeline.curation.rows import read_rows
from pipeline.errors import UsageError
from pipeline.novelty import NoveltyIndex
from pipeline.records import DocumentSource, GraphSource, PromptSource, Record, Rejection, make_record, user_message
from pipeline.run_folder import open_set, read_config, read_records
from pipeline.text import language_of, replace_surrogates

HELD_OUT = {"en": Path(__file__).with_name("heldout.jsonl"), "zh": Path(__file__).with_name("heldout_zh.jsonl")}
SAMPLE = Path(__file__).with_name("sample.jsonl")
SAME_CLUSTER_ABOVE = 0.5  # looser: rows of one cluster must not stand on both sides of the split
PLAIN_TEXT = (".txt", ".md")
FEWEST_GROUPS = 5  # with fewer there is nothing to spare for watching

Message = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to learn from. Its last message is the answer; in `pretrain`, its only message is a document.

    `group` says what it belongs to: examples of one group never stand on both sides of a split.
    """

    messages: tuple[Message, ...]
    group: str
    task: str = "generation"
    rejected: str = ""  # the answer that lost, in preference pairs
    learn_from: int = 0  # answers before this message are given, not learnt

    @property
    def question(self) -> str:
        return next((text for role, text in reversed(self.messages[:-1]) if role == "user"), "")

    @property
    def answer(self) -> str:
        return self.messages[-1][1]

    @property
    def language(self) -> str:
        return language_of(self.question + self.answer)


@dataclass(frozen=True, slots=True)
class Source:
    """What was read, how it was shaped, and a hash of every text in it."""

    path: Path
    shape: str
    examples: list[Example]
    empty: int  # rows left out: an empty answer would teach to say nothing, and a pair of equal ones nothing at all

    @property
    def hash(self) -> str:
        return hash_examples(self.examples)


def main_language(examples: Sequence[Example]) -> str:
    """ "zh" where more than half of the examples are Chinese, else "en": half and half is English."""
    return "zh" if 2 * sum(example.language == "zh" for example in examples) > len(examples) else "en"


def hash_examples(examples: Sequence[Example]) -> str:
    """A hash of what is said in the examples, in order."""
    texts = [[*example.messages, example.rejected] for example in examples]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=True).encode()).hexdigest()[:32]


# ---------------------------------------------------------------- reading


def read(path: Path, stage: str = "sft") -> Source:
    """The examples at a path.

    :raises UsageError: where it cannot be read, holds nothing, or has a row of another shape; the sentence names it.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder.")
    if stage == "pretrain" and (path.is_dir() or path.suffix in PLAIN_TEXT):
        return _read_documents(path)
    if path.is_dir():
        if stage == "sft":
            return _read_run_folder(path)
        if not (path / "preferences.jsonl").is_file():
            raise UsageError(
                f"--stage {stage} takes preference pairs, and {path} has no preferences.jsonl: make the run with"
                " --pairs N, or name a file of pairs (prompt, chosen, rejected)."
            )
        path = path / "preferences.jsonl"
    rows = list(_read_rows(path))
    if not rows:
        raise UsageError(f"{path} holds no rows, so there is nothing to train on.")
    shape = _shape_of(rows[0][1], path, stage)
    examples, empty = [], 0
    for line, row in rows:
        try:
            example = _SHAPES[shape](row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UsageError(f"{path}, row {line}: not a row of the shape {shape} ({_said(error)}).") from error
        said = [text.strip() for role, text in example.messages if role == "assistant"]
        if all(said) and not ("rejected" in shape and said[-1] == example.rejected.strip()):
            examples.append(example)
        else:
            empty += 1
    if not examples:
        raise UsageError(
            f"{path}: none of its {len(rows)} rows has an answer to learn, so there is nothing to train on."
        )
    return Source(path, shape, examples, empty)


def _read_documents(path: Path) -> Source:
    """Plain documents: a file of text, or all of them in a folder, each a document."""
    files = sorted(file for file in path.rglob("*") if file.suffix in PLAIN_TEXT) if path.is_dir() else [path]
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as text: {error}.") from error
    examples = [Example((("assistant", text),), f"document {n}") for n, text in enumerate(texts) if text.strip()]
    if not examples:
        raise UsageError(f"{path} holds no text ({', '.join(PLAIN_TEXT)}), so there is nothing to train on.")
    return Source(path, "plain documents", examples, len(texts) - len(examples))


def _read_run_folder(folder: Path) -> Source:
    if not (folder / "records.jsonl").is_file():
        held = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise UsageError(f"{folder} is no run folder: it has no records.jsonl (it holds {held}).")
    examples = [example_of(record) for record in read_records(folder)]
    if not examples:
        raise UsageError(f"{folder}/records.jsonl is empty: nothing was kept, so there is nothing to train on.")
    return Source(folder, "run folder", examples, 0)


def example_of(record: Record | Rejection) -> Example:
    """A record as a conversation: earlier turns, then the instruction with its input, then the output."""
    earlier = [message for user, assistant in record.history for message in (("user", user), ("assistant", assistant))]
    messages = (*earlier, ("user", user_message(record.instruction, record.input)), ("assistant", record.output))
    return Example(messages, _group_of(record), record.task or "generation")


def _group_of(record: Record | Rejection) -> str:
    """The document or the subject it came from; "" where the examples' own texts must say what belongs together."""
    for source in record.source:
        if isinstance(source, DocumentSource):
            return f"document {source.document}"
        if isinstance(source, GraphSource):
            return f"subject {source.triples[0][0]}" if source.triples else ""
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """What a run noted in a file; nothing where it noted nothing.

    :raises UsageError: where that is damaged.
    """
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}): remove the folder, or name another.") from error
    if not isinstance(noted, dict):
        raise UsageError(f"{path} is damaged: it holds no object.")
    return noted


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of a data file."""
    for row in read_rows(path):
        if not isinstance(row.value, dict):
            raise UsageError(f"{path}, row {row.number}: a {type(row.value).__name__}, where an object is wanted.")
        yield row.number, row.value


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return str(error) if isinstance(error, ValueError) else "what should be text is a list or an object, or the reverse"


# ---------------------------------------------------------------- the shapes


def _alpaca(row: dict[str, Any]) -> Example:
    earlier: list[Message] = []
    for turn in row.get("history") or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise ValueError("a turn of its history is no pair of what the user and the assistant said")
        earlier += [("user", turn[0]), ("assistant", turn[1])]
    if row.get("system"):
        earlier.insert(0, ("system", row["system"]))
    if "instances" in row:  # Self-Instruct's tasks: the first instance stands for the task
        if not row["instances"]:
            raise ValueError("it has no instance")
        row = {**row, **row["instances"][0]}
    question = user_message(row["instruction"], row.get("input") or "")
    task = "classification" if row.get("is_classification") or row.get("task") == "classification" else "generation"
    return _example([*earlier, ("user", question), ("assistant", row["output"])], task=task)


_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip


def _conversation(turns: Sequence[dict[str, Any]]) -> list[Message]:
    messages = []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("its turns are no list of objects")
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        if role not in _ROLES:
            raise ValueError(f"a turn is spoken by {role!r}, which is none of {', '.join(_ROLES)}")
        messages.append((_ROLES[role], turn["content"] if "content" in turn else turn["value"]))
    while messages and messages[-1][0] != "assistant":  # nobody answered that any more
        messages.pop()
    if not messages:
        raise ValueError("nothing is said by the assistant")
    return messages


def _prompt_completion(row: dict[str, Any]) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list):
        turns = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return _example(_conversation([*prompt, *turns]))
    return _example([("user", prompt), ("assistant", completion)])


def _preference(row: dict[str, Any]) -> Example:
    if isinstance(row["prompt"], list):
        *_, rejected = _conversation([*row["prompt"], *row["rejected"]])
        return _example(_conversation([*row["prompt"], *row["chosen"]]), rejected=rejected[1])
    return _example([("user", row["prompt"]), ("assistant", row["chosen"])], rejected=row["rejected"])


def _example(messages: Sequence[Message], task: str = "generation", rejected: str = "") -> Example:
    said = []
    for role, text in messages:
        if text is None and role == "assistant":
            text = ""  # as a table has it where nothing was filled in
        if not isinstance(text, str):
            is_ = "missing" if text is None else f"a {type(text).__name__}, not a text"
            raise ValueError(f"what the {role} says is {is_}")
        said.append((role, replace_surrogates(text)))
    if not isinstance(rejected, str):
        raise ValueError("what was rejected is no text")
    return Example(tuple(said), "", task, replace_surrogates(rejected))


_SHAPES: dict[str, Callable[[dict[str, Any]], Example]] = {
    "preference pairs (prompt, chosen, rejected)": _preference,
    "messages": lambda row: _example(_conversation(row["messages"])),
    "ShareGPT (conversations)": lambda row: _example(_conversation(row["conversations"])),
    "Alpaca (instruction, input, output)": _alpaca,
    "Self-Instruct tasks (instruction, instances)": _alpaca,
    "prompt and completion": _prompt_completion,
    "ChatGLM (content, summary)": lambda row: _example([("user", row["content"]), ("assistant", row["summary"])]),
    "plain documents (text)": lambda row: _example([("assistant", row["text"])]),
}
_KEYS = (
    {"prompt", "chosen", "rejected"}, {"messages"}, {"conversations"}, {"instruction", "output"},
    {"instruction", "instances"}, {"prompt", "completion"}, {"content", "summary"}, {"text"},
)  # fmt: skip
_STAGE_OF = {"preference pairs (prompt, chosen, rejected)": ("dpo", "reward"), "plain documents (text)": ("pretrain",)}


def _shape_of(row: dict[str, Any], path: Path, stage: str) -> str:
    for shape, keys in zip(_SHAPES, _KEYS, strict=True):
        if keys <= row.keys():
            stages = _STAGE_OF.get(shape, ("sft",))
            if stage not in stages:
                raise UsageError(f"{path} holds {shape}, which is for --stage {' or '.join(stages)}, not {stage}.")
            return shape
    known = "; ".join(_SHAPES)
    raise UsageError(f"{path}: the first row has the keys {', '.join(row) or '(none)'}, which is none of: {known}.")


# ---------------------------------------------------------------- what must not be trained on


def without_held_out(examples: Sequence[Example], tasks: Sequence[Example]) -> list[Example]:
    """The examples that hold none of the tasks a verdict is measured on, as pipeline/curation/decontaminate.py does."""
    items = [Item(str(number), (task.question,), (task.answer,)) for number, task in enumerate(tasks)]
    hits = Benchmark(items).hits(map(_as_record, examples))
    return [example for example, (_, hit) in zip(examples, hits, strict=True) if hit is None]


def _as_record(example: Example) -> Record:
    """An example in the one shape that the pipeline's leaves read; all that is said before the question is history."""
    *earlier, last = example.messages
    question = earlier.pop()[1] if earlier else ""
    history = [(text, "") for _, text in earlier]
    source = PromptSource(prompt=0, seeds=(), pool=())
    return make_record(
        instruction=question, output=last[1], history=history, task="generation", generator="finetune", model="",
        language="", source=source, prompts={}, requests=(),
    )  # fmt: skip


# ---------------------------------------------------------------- the split, and the control


def grouped(examples: Sequence[Example]) -> list[str]:
    """A group for every example: its own, or the cluster of near duplicates its question falls into."""
    index = NoveltyIndex(SAME_CLUSTER_ABOVE)
    groups: list[str] = []
    cluster_of: dict[str, str] = {}
    for number, example in enumerate(examples):
        text = example.question or example.answer
        if example.group:
            groups.append(example.group)
            continue
        near = index.nearest(text)
        cluster = cluster_of[near[1]] if near else f"cluster {number}"
        cluster_of[str(number)] = cluster
        index.add(text, str(number))
        groups.append(cluster)
    return groups


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(to learn from, to watch): whole groups go to one side, about `share` of all examples to the second.

    The second is empty where the examples are too few groups to spare one.
    """
    groups = grouped(examples)
    sizes = Counter(groups)
    if share <= 0 or len(sizes) < FEWEST_GROUPS:
        return list(examples), []
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    wanted = max(1, round(share * len(examples)))
    watched: set[str] = set()
    taken = 0
    for name in names:  # a group that would overshoot by much is passed over for a smaller one
        if taken < wanted and taken + sizes[name] <= min(2 * wanted, len(examples) - 1):
            watched.add(name)
            taken += sizes[name]
    learn = [example for example, group in zip(examples, groups, strict=True) if group not in watched]
    watch = [example for example, group in zip(examples, groups, strict=True) if group in watched]
    return learn, watch


def candidates(folder: Path) -> tuple[list[Example], str]:
    """Everything there was before filtering, and in words what that is: of a run folder all that reached an output,
    kept or rejected; of one that `pipeline.curate` made, what it was given.

    :raises UsageError: where an input of a curated folder is gone or has changed since.
    """
    parents = (read_config(folder) or {}).get("parents")
    about = "what it was curated from" if parents else "all candidates, kept or rejected"
    if parents:
        found = [example_of(record) for parent in parents for record in _read_parent(folder, parent)]
    else:
        with open_set(folder) as published:
            found = [*map(example_of, published.records()), *map(example_of, published.rejections())]
    pool: dict[tuple[Message, ...], Example] = {}
    for example in found:
        if example.question.strip() and example.answer.strip():
            pool.setdefault(example.messages, example)
    return list(pool.values()), about


def _read_parent(folder: Path, noted: dict[str, str]) -> Iterator[Record]:
    path = Path(noted["path"])
    if not path.exists():
        raise UsageError(f"{folder} was curated from {path}, which is gone: name a --control FILE, or --control none.")
    parent = open_parent(path)
    if parent.hash != noted["sha256"]:
        raise UsageError(f"{path} has changed since {folder} was curated from it: curate again, or use --control none.")
    yield from read_parent(parent)


def sample_control(pool: Sequence[Example], count: int, seed: int) -> list[Example]:
    """A seeded sample of the pool, or all of it where it is no larger."""
    return random.Random(seed).sample(list(pool), min(count, len(pool)))
