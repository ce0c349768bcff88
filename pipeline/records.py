"""The one type that travels the whole line: a `Record`, and its twin for what was turned away, a `Rejection`.

Each is one JSON line in a run folder. docs/data-format.md says what every field holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.text import replace_surrogates

Stage = Literal["file", "reply", "instruction", "record"]  # how far a rejected candidate came
Task = Literal["classification", "generation", "qa", "kg"]
Turn = tuple[str, str]


class PromptSource(BaseModel):
    """Self-Instruct: the seed tasks that the instruction's prompt showed, and the kept instructions beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: int = Field(description="number of the instruction prompt, from 0")
    seeds: tuple[str, ...] = Field(description="ids of the seed tasks shown")
    pool: tuple[str, ...] = Field(description="ids of the kept instructions shown")


class Quote(BaseModel):
    """A passage that an answer rests on, with its character offsets into the document's extracted text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    start: int
    end: int


class DocumentSource(BaseModel):
    """Self-QA: the chunk that was read. `start` and `end` are character offsets into the extracted text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: str = Field(description="name of the document, relative to the folder given")
    chunk: str = Field(description="id of the chunk: a hash of its text and headings")
    headings: tuple[str, ...] = ()
    start: int
    end: int
    quotes: tuple[Quote, ...] = ()


class GraphSource(BaseModel):
    """Self-KG: the facts (subject, relation, object) that vouch for the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    triples: tuple[tuple[str, str, str], ...]


class FileSource(BaseModel):
    """Made elsewhere: the row of a plain file that `pipeline.curate` took in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="name of the file, without its folder")
    line: int = Field(description="number of the row, from 1; of the line, where the format has lines")


Source = PromptSource | DocumentSource | GraphSource | FileSource


class Record(BaseModel):
    """One instruction with its answer. Build it with `make_record`, which gives it its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    instruction: str
    input: str = Field(default="", description='"" when the instruction needs none')
    output: str
    history: tuple[Turn, ...] = Field(default=(), description="earlier [user, assistant] turns, oldest first")
    task: Task
    generator: str
    model: str
    language: str
    source: tuple[Source, ...] = Field(description="several when exact duplicates were merged")
    prompts: dict[str, str] = Field(description="template name -> hash of its text")
    requests: tuple[str, ...] = Field(description="journal keys of the requests that led here")
    scores: dict[str, float] = Field(default_factory=dict, description="filter name -> value")


class Neighbour(BaseModel):
    """What a rejected candidate collided with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str


class Rejection(BaseModel):
    """A candidate that was turned away, with the reason; fields that were not reached yet are empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    filter: str = Field(description='name of the filter, or "parse" where a reply could not be read')
    reason: str = Field(description="one sentence")
    value: float | str | None = None
    threshold: float | None = None
    neighbour: Neighbour | None = None

    id: str = ""
    instruction: str = ""
    input: str = ""
    output: str = ""
    history: tuple[Turn, ...] = ()
    task: Task | None = None
    generator: str
    model: str
    language: str = ""
    source: tuple[Source, ...] = ()
    prompts: dict[str, str] = Field(default_factory=dict)
    requests: tuple[str, ...] = ()
    scores: dict[str, float] = Field(default_factory=dict)


class Message(BaseModel):
    """A turn, as chat templates know it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["user", "assistant"]
    content: str


class Preference(BaseModel):
    """Two answers to one question, the better one named: a line of preferences.jsonl.

    The first three fields are what TRL reads, the next five what LLaMA-Factory reads (docs/data-format.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]

    instruction: str
    input: str
    history: tuple[Turn, ...]
    chosen_output: str
    rejected_output: str

    id: str
    record: str = Field(description="id of the kept record that asks the question")
    by: Literal["judge", "filter"]
    filter: str = Field(description='what turned the rejected answer away; "" where a judge decided')
    reason: str = Field(description="one sentence")
    generator: str
    model: str = Field(description="whose answers they are")
    language: str
    requests: tuple[str, ...] = Field(description="journal keys of the answers and verdicts asked for the pair")


def content_id(*parts: str) -> str:
    """A stable id for texts: 32 hex digits of SHA-256, each part preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:32]


def make_record(
    *,
    instruction: str,
    output: str,
    task: Task,
    generator: str,
    model: str,
    language: str,
    source: Source,
    prompts: dict[str, str],
    requests: Sequence[str],
    input: str = "",
    history: Sequence[Turn] = (),
) -> Record:
    """A record with its id: a hash of generator, instruction, input, output and history, and of nothing else.

    This is the border at which lone surrogates become U+FFFD.
    """
    instruction, input, output = (replace_surrogates(text) for text in (instruction, input, output))
    turns = tuple((replace_surrogates(user), replace_surrogates(assistant)) for user, assistant in history)
    return Record(
        id=content_id(generator, instruction, input, output, *(text for turn in turns for text in turn)),
        instruction=instruction,
        input=input,
        output=output,
        history=turns,
        task=task,
        generator=generator,
        model=model,
        language=language,
        source=(source,),
        prompts=prompts,
        requests=tuple(requests),
    )


def with_texts(record: Record, change: Callable[[str], str]) -> Record:
    """The record with `change` applied to each of its texts, and the id that goes with them; else the same object."""
    instruction, input, output = change(record.instruction), change(record.input), change(record.output)
    history = tuple((change(user), change(assistant)) for user, assistant in record.history)
    if (instruction, input, output, history) == (record.instruction, record.input, record.output, record.history):
        return record
    id_ = content_id(record.generator, instruction, input, output, *(text for turn in history for text in turn))
    changed = {"id": id_, "instruction": instruction, "input": input, "output": output, "history": history}
    return record.model_copy(update=changed)


def user_message(instruction: str, input: str = "") -> str:
    """What the user says for a record; pairs, training, evaluation and chat all say it like this."""
    return f"{instruction}\n\n{input}" if input.strip() else instruction


def texts_of(record: Record) -> list[tuple[str, str]]:
    """(name of the field, text) for each text of a record that is not empty, earlier turns last."""
    texts = [("instruction", record.instruction), ("input", record.input), ("output", record.output)]
    texts += [("history", text) for turn in record.history for text in turn]
    return [(name, text) for name, text in texts if text]
