"""Seed tasks: the human-written examples that Self-Instruct starts from, one JSON object a line.

The shape is that of Self-Instruct's own seed_tasks.jsonl, which loads as it is; an instance may also have a
`history` of [user, assistant] turns, for multi-turn seeds.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UsageError
from pipeline.llm import canonical_json
from pipeline.records import Turn


class Instance(BaseModel):
    """One worked example of a task; `input` is "" where the instruction needs none."""

    model_config = ConfigDict(frozen=True)

    input: str = ""
    output: str = Field(min_length=1)
    history: tuple[Turn, ...] = ()


class SeedTask(BaseModel):
    """One human-written task. Fields beyond these are allowed and ignored."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    instruction: str = Field(min_length=1, pattern=r"\S")
    instances: tuple[Instance, ...] = Field(min_length=1)
    is_classification: bool
    name: str = ""


def load_seed_tasks(path: Path) -> list[SeedTask]:
    """All tasks of a file, in its order. Raises UsageError with file, line and what is wrong."""
    if path.is_dir():
        raise UsageError(f"{path}: a folder; --seeds takes one JSON Lines file.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        at = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {at}: not UTF-8; save the file in that encoding.") from error
    lines: dict[str, int] = {}
    tasks = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        task = _parse(line, f"{path}, line {number}")
        if task.id in lines:
            raise UsageError(f"{path}, line {number}: the id {task.id!r} stands in line {lines[task.id]} already.")
        lines[task.id] = number
        tasks.append(task)
    if not tasks:
        raise UsageError(f"{path}: holds no seed task.")
    return tasks


def fingerprint(tasks: list[SeedTask]) -> str:
    """A hash of everything the prompts can see of the seeds (16 hex digits); their file's name is no part of it."""
    return hashlib.sha256(canonical_json([task.model_dump() for task in tasks])).hexdigest()[:16]


def _parse(line: str, where: str) -> SeedTask:
    try:
        return SeedTask.model_validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "json_invalid":
            raise UsageError(f"{where}: not JSON ({first['msg']}).") from error
        if first["type"] == "missing":
            raise UsageError(f"{where}: the field {field!r} is missing. docs/guide.md shows a seed task.") from error
        raise UsageError(f"{where}: {f'field {field!r}: ' if field else ''}{first['msg']}.") from error
