"""API descriptions as chunks, and whether a call keeps to its description (Gorilla, Patil et al. 2023).

A description is a JSON object with at least `api_call`, the call as it is written; `api_name`, `description`,
`api_arguments` and whatever else it holds are read by the model. The call of an answer is parsed and never run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.hygiene import clean
from pipeline.reading.blocks import Block, Document
from pipeline.reading.chunks import Chunk
from pipeline.reading.documents import bytes_of, find_files, rejected_file
from pipeline.reading.extraction import BadFile, decode, guessed_encoding
from pipeline.records import Rejection, content_id
from pipeline.text import language_of, one_line


@dataclass(frozen=True, slots=True)
class Description:
    """One API: its fields, its text as a document of its own, and that text as a chunk."""

    fields: Mapping[str, Any]
    document: Document
    chunk: Chunk


def read_descriptions(
    paths: Sequence[Path], *, generator: str, leave_out: Collection[str] = ()
) -> Iterator[Description | Rejection]:
    """Every description in the JSON Lines files under the paths; a line that is none is one Rejection."""
    for file in find_files(paths):
        if file.name in leave_out:
            continue
        try:
            if file.path.suffix.lower() != ".jsonl":
                raise BadFile("unsupported_format", "--mode api reads .jsonl files of API descriptions.")
            data = bytes_of(file)
            lines, guessed = decode(data).split("\n"), guessed_encoding(data)
        except BadFile as bad:
            yield rejected_file(file.name, bad.kind, bad.detail, generator)
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                name = f"{file.name}, line {number}"
                try:
                    yield _description(line, name, guessed)
                except (ValueError, RecursionError) as error:
                    yield rejected_file(name, "bad_row", str(error), generator)


def _description(line: str, name: str, guessed: str) -> Description:
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("api_call"), str):
        raise ValueError("no JSON object with the text `api_call`.")
    if parse_call(fields["api_call"]) is None:
        raise ValueError(f"`api_call` is no call that can be parsed: {fields['api_call'][:80]!r}.")
    text, dropped = clean("\n".join(f"{key}: {_said(value)}" for key, value in fields.items()))
    headings = (one_line(str(fields["api_name"])),) if fields.get("api_name") else ()
    document = Document(name, text, (Block("paragraph", 0, len(text)),), language_of(text), dropped, guessed)
    chunk = Chunk(content_id("chunk", text, *headings), name, headings, 0, len(text), text, document.language)
    return Description(fields, document, chunk)


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- calls


def parse_call(text: str) -> ast.Call | None:
    """The call in a text such as `model = torch.hub.load('a/b', 'c')`; None where it is not one call."""
    try:
        body = ast.parse(text.strip().strip("`").strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    value = getattr(body[0], "value", None) if len(body) == 1 else None
    return value if isinstance(value, ast.Call) else None


def objection_to(call: str, fields: Mapping[str, Any]) -> str | None:
    """Why a call does not keep to the description; None where it does.

    The function and every text among the described arguments must be the same; other arguments may differ in value,
    and only those that the description names may be there.
    """
    asked, described = parse_call(call), parse_call(str(fields["api_call"]))
    if asked is None or described is None:
        return "not one call that can be parsed"
    if ast.unparse(asked.func) != ast.unparse(described.func):
        return f"calls {ast.unparse(asked.func)}, not {ast.unparse(described.func)}"
    names = [keyword.arg for keyword in described.keywords]
    given, wanted = _arguments(asked, names), _arguments(described, names)
    for name, value in wanted.items():
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            if name not in given:
                return f"lacks the argument {name}"
            if ast.dump(given[name]) != ast.dump(value):
                return f"{name} is {ast.unparse(given[name])}, not {ast.unparse(value)}"
    known = {*wanted, *_named_arguments(fields.get("api_arguments"))}
    unknown = [name for name in given if name not in known]
    return f"the description knows no argument {unknown[0]}" if unknown else None


def _arguments(call: ast.Call, names: Sequence[str | None]) -> dict[str, ast.expr]:
    """A call's arguments by name; positional ones take the described names in order, or their number."""
    positional = {(names[at] if at < len(names) else None) or f"#{at + 1}": value for at, value in enumerate(call.args)}
    return positional | {keyword.arg or "**": keyword.value for keyword in call.keywords}


def _named_arguments(described: object) -> set[str]:
    """The names in `api_arguments`, which real descriptions write as an object, a list or a text."""
    if isinstance(described, dict):
        return set(map(str, described))
    texts = described if isinstance(described, list) else [described]
    return {
        part for text in texts for part in str(text).replace("=", " ").replace(",", " ").split() if part.isidentifier()
    }
