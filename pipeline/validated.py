"""Settings held against their model: what is wrong with one is said in a plain sentence, not in pydantic's words.

settings = validated(SelfQASettings, values, lambda name: f"regenerate.toml, [[source]] docs, {name}")

regenerate.toml, [[source]] docs, paths: takes a list, such as ["docs/"] (given: 'docs/').
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)

MOST_SHOWN = 60  # characters of what was given

# pydantic's kind of error -> what would have been right; in braces what the error knows
_WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text in quotes",
    "path_type": "a path in quotes",
    **dict.fromkeys(("tuple_type", "list_type"), "a list in brackets"),
    **dict.fromkeys(("dict_type", "model_type"), "a table, NAME = VALUE"),
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number from {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number up to {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "is_instance_of": "the name of a file",
}
# A place inside a union is named after the alternative that was tried: that says nothing to a user.
_ALTERNATIVE = re.compile(r"str|int|float|bool|(?:tuple|list|dict|function-\w+|constrained-\w+)\[.*")


def validated(model: type[Model], values: Mapping[str, Any], where: Callable[[str], str]) -> Model:
    """The model of these values. Raises UsageError with the place, what is wanted there, and what was given.

    `where` says in words where a setting of this name was given; "" is the whole.
    """
    for name, value in values.items():
        kinds = _kinds(model, name)
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:  # Python takes true for 1
            kind = "whole number" if int in kinds else "number"
            raise UsageError(f"{where(name)}: takes a {kind} (given: {shown(value)}).")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first, *others = error.errors()
        place = _place(first)
        wanted = [_said(one) for one in (first, *others) if one["input"] is first["input"] and _place(one) == place]
        said = " or ".join(dict.fromkeys(wanted))
        if first["type"] != "value_error":
            said = f"takes {said}"
        raise UsageError(f"{where(place)}: {said} (given: {shown(first['input'])}).") from error


def shown(value: object) -> str:
    """What was given, as the user wrote it, or nearly so."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _kinds(model: type[BaseModel], name: str) -> set[object]:
    field = model.model_fields.get(name)
    return {field.annotation, *get_args(field.annotation)} if field is not None else set()


def _place(error: ErrorDetails) -> str:
    """The setting that an error is about: its name, its keys, the number of an item in its list."""
    named = [part for part in error["loc"] if isinstance(part, int) or not _ALTERNATIVE.fullmatch(part)]
    return ", ".join(f"item {part + 1}" if isinstance(part, int) else part for part in named)


def _said(error: ErrorDetails) -> str:
    """What would have been right; of a check of ours, what it says."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in ("tuple_type", "list_type") and isinstance(given, str):
        return f"a list, such as [{json.dumps(given, ensure_ascii=False)}]"
    if kind == "string_pattern_mismatch":
        return f"a text that matches {context['pattern']}"
    return _WANTED.get(kind, error["msg"]).format(**context)
