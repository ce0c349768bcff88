"""What `pipeline.curate` starts from: run folders, and plain files of Alpaca's shape that were made elsewhere.

A plain file is jsonl, json, csv or parquet (the first three also as .gz) whose rows have `instruction`, `output` and,
if they like, `input`, `history`, `language`, `task` and `scores`; other fields are ignored. Its records get the
generator "imported" and name file and line as their source. A records.jsonl by itself is read as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.curation.rows import Row, file_hash, format_of, read_rows
from pipeline.errors import UsageError
from pipeline.records import FileSource, Record, Task, content_id, make_record
from pipeline.text import language_of, readable_name

GENERATOR = "imported"
_RECORD_FIELDS = {"id", "generator", "source", "requests"}  # what no plain file has all of


@dataclass(frozen=True, slots=True)
class Parent:
    """One input, as it was given, and the hash of the file that is read."""

    path: Path
    file: Path
    hash: str

    def as_json(self) -> dict[str, str]:
        return {"path": str(self.path), "sha256": self.hash}


def open_parent(path: Path) -> Parent:
    """A run folder or a file, checked at the door. Raises UsageError where it is neither."""
    file = path / "records.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        latest = path / "LATEST"
        project = f" It is a project's; its newest version is {latest}." if latest.exists() else ""
        raise UsageError(f"{path}: no run folder; it has no records.jsonl.{project}")
    if not file.exists():
        raise UsageError(f"{path}: there is no such folder or file.")
    format_of(file)
    return Parent(path, file, file_hash(file))


def read_parent(parent: Parent) -> Iterator[Record]:
    """The records of a parent, in order. Raises UsageError with file, line and what is wrong.

    So it does where the file was replaced since it was opened: the hash would name other records than were read.
    """
    empty = True
    for row in read_rows(parent.file):
        empty = False
        where = f"{parent.file}, line {row.number}"
        if not isinstance(row.value, dict):
            raise UsageError(f"{where}: a record is an object with instruction and output, not {_short(row.value)}.")
        yield _record(row.value, where) if row.value.keys() >= _RECORD_FIELDS else _imported(row, parent, where)
    if file_hash(parent.file) != parent.hash:
        raise UsageError(f"{parent.path}: changed while it was read; run this again when nothing writes there.")
    if empty and parent.file is parent.path:
        raise UsageError(f"{parent.path}: holds no record.")


def _record(value: dict[str, Any], where: str) -> Record:
    try:
        record = Record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{where}: field {'.'.join(map(str, first['loc']))!r}: {first['msg']}.") from error
    if not _all_finite(record.scores):
        raise UsageError(f"{where}: the field 'scores' must be an object of finite numbers.")
    turns = (text for turn in record.history for text in turn)
    id_ = content_id(record.generator, record.instruction, record.input, record.output, *turns)
    return record if record.id == id_ else record.model_copy(update={"id": id_})  # a line edited by hand


def _imported(row: Row, parent: Parent, where: str) -> Record:
    value = row.value
    for name in ("instruction", "output"):
        if name not in value:
            raise UsageError(f"{where}: the field {name!r} is missing.")
    instruction, output, input_ = value["instruction"], value["output"], value.get("input") or ""
    for name, text in (("instruction", instruction), ("output", output), ("input", input_)):
        if not isinstance(text, str):
            raise UsageError(f"{where}: the field {name!r} must be text, not {_short(text)}.")
    if not instruction.strip() and not input_.strip():
        raise UsageError(f"{where}: instruction and input are both empty.")
    task, history, scores = value.get("task"), value.get("history") or [], value.get("scores") or {}
    language = value.get("language") or _language(f"{instruction}\n{input_}\n{output}")
    if not isinstance(language, str):
        raise UsageError(f"{where}: the field 'language' must be text, not {_short(language)}.")
    if not _is_history(history):
        raise UsageError(f"{where}: the field 'history' must be a list of [user, assistant] texts.")
    if not isinstance(scores, dict) or not _all_finite(scores):
        raise UsageError(f"{where}: the field 'scores' must be an object of finite numbers.")
    record = make_record(
        instruction=instruction,
        input=input_,
        output=output,
        history=[(user, assistant) for user, assistant in history],
        task=task if task in get_args(Task) else "generation",
        generator=GENERATOR,
        model="",
        language=language,
        source=FileSource(file=readable_name(parent.path.name), line=row.number),
        prompts={},
        requests=(),
    )
    return record.model_copy(update={"scores": {name: float(score) for name, score in scores.items()}})


def _language(text: str) -> str:
    """ "zh" or "en", by script; "und" where it is neither. Languages in Latin letters are all taken for "en"."""
    found = language_of(text)
    letters = [char for char in text if char.isalpha()]
    return "und" if found == "en" and 2 * sum(map(str.isascii, letters)) < len(letters) else found


def _all_finite(scores: dict[str, Any]) -> bool:
    return all(type(score) in (int, float) and math.isfinite(score) for score in scores.values())


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in value
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
