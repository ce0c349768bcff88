"""From a reply's text to JSON values: through code fences, chatter and a cut-off end.

A reply that cannot be read stays in the journal and becomes a rejection; it is never an empty success.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import from_json

from pipeline.llm import Reply

MOST_STARTS = 20  # brackets looked at: chatter seldom holds more before the JSON
LONGEST_MENDED = 100_000  # characters; what is longer and no JSON is no honest mistake
_BRACKET = re.compile(r"[{\[]")


class Unreadable(Exception):
    """The reply holds nothing that can be used. `reason` is the word it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Items:
    """The values of the list that was asked for. `cut` says that the last one was cut off by the token limit."""

    values: list[Any]
    cut: bool


def read_items(reply: Reply, name: str) -> Items:
    """The list under `name` in the reply's JSON object; a bare list is taken as well."""
    value, cut = _find(
        reply,
        lambda value: isinstance(value, dict) and isinstance(value.get(name), list),
        lambda value: isinstance(value, list),
        wanted=f"list {name!r}",
    )
    return Items(value[name] if isinstance(value, dict) else value, cut)


def read_object(reply: Reply, *names: str) -> dict[str, Any]:
    """The JSON object in the reply that has these names; it must be complete."""
    value, cut = _find(
        reply,
        lambda value: isinstance(value, dict) and all(name in value for name in names),
        wanted=", ".join(map(repr, names)),
    )
    if cut:
        raise Unreadable("cut_off", "the reply was cut off by the token limit")
    return dict(value)


def read_value(reply: Reply, name: str) -> Any:
    """The value under `name` in the reply's JSON object, which must be complete."""
    value = read_object(reply, name)
    return value[name]


def read_text(reply: Reply) -> str:
    """The reply's text, for replies that are wanted as they stand; one cut off by the token limit is taken, too."""
    if reply.finish_reason == "failed":
        raise Unreadable("request_failed", "the request failed for good")
    if reply.finish_reason in ("refusal", "content_filter"):
        raise Unreadable(reply.finish_reason, f"the server withheld the answer: {reply.text[:80]!r}")
    if not reply.text.strip():
        if "reasoning_only" in reply.flaws:
            ended = ", to the end of its tokens" * (reply.finish_reason == "length")
            raise Unreadable("reasoning_only", f"the model thought{ended}, and gave no answer")
        raise Unreadable("empty_reply", "the reply is empty")
    return reply.text.strip()


def _find(reply: Reply, *fits: Callable[[Any], bool], wanted: str) -> tuple[Any, bool]:
    """The JSON value that was asked for, and whether the token limit cut it off.

    Chatter may hold JSON too ("as in [1]"), so it is the first value that meets `fits[0]`, else `fits[1]`, and so on.
    Where none does, small mistakes are mended, or Python's way to write values is read; what was cut is never closed.
    """
    text, was_cut = read_text(reply), reply.finish_reason == "length"
    text = _TEX.sub(lambda found: found.group() if len(found.group()) == 2 else "\\\\", text)
    values = _values_in(text, was_cut)
    for fit in fits:
        found = next((entry for entry in values if fit(entry[0])), None)
        if found is None and fit is fits[0] and len(text) <= LONGEST_MENDED:
            mended = [*_values_in(_mended(text), was_cut), *_python_values(text)]
            found = next((entry for entry in mended if fit(entry[0])), None)
            values = values or mended
        if found is not None:
            return found
    if any(cut for _, cut in values) or (was_cut and not values and _BRACKET.search(text)):
        raise Unreadable("cut_off", "the reply was cut off before anything in it was complete")
    if not values:
        raise Unreadable("not_json", f"no JSON in {reply.text[:80]!r}")
    raise Unreadable("wrong_shape", f"the JSON holds no {wanted}")


Values = list[tuple[Any, bool]]


def _values_in(text: str, was_cut: bool) -> Values:
    """The outermost objects and lists in the text, each with whether the token limit cut it off."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    values: Values = []
    start = _BRACKET.search(text)
    for _ in range(MOST_STARTS):
        if start is None:
            break
        at = start.start()
        try:
            value, end = decoder.raw_decode(text, at)
            values.append((value, False))
        except (ValueError, RecursionError):
            end = at + 1
            beginning = _beginning(text[at:])
            if beginning is not None:  # all the rest belongs to it, so nothing inside it is looked at by itself
                values += [(beginning, True)] if was_cut else []
                break
        start = _BRACKET.search(text, end)
    return values


# A backslash that JSON takes for the start of a form feed, a backspace, a line break or a tab, where TeX or a regex was
# meant: "\\frac", "\\beta", "\\times". Escaped backslashes are passed over in pairs.
_TEX = re.compile(
    r"\\\\|\\(?=[bf][A-Za-z]|r(?:ho|ight|angle|floor|ceil)|t(?:imes|heta|ext(?:bf|it|rm)?\{)|n(?:eq|abla)(?![A-Za-z]))"
)
# A string, which a cut may have left open; or a comma behind the last item.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\Z)|,(?=\s*[\]}])', re.DOTALL)
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|\\|[\x00-\x1f]')


def _mended(text: str) -> str:
    """The text from its first bracket on, without three mistakes that keep what a model wrote from being JSON.

    Line breaks as such inside strings, a backslash that escapes nothing (LaTeX), a comma behind the last item.
    """

    def sign(found: re.Match[str]) -> str:
        if found.group() == "\\":
            return "\\\\"
        return found.group() if len(found.group()) > 1 else json.dumps(found.group())[1:-1]

    def piece(found: re.Match[str]) -> str:
        return "" if found.group() == "," else _ESCAPE.sub(sign, found.group())

    start = _BRACKET.search(text)
    return _PIECE.sub(piece, text[start.start() :]) if start is not None else ""


_PYTHON = re.compile(r"[{\[][{\[\s]*'")
_SIDE_BY_SIDE = re.compile(r"['\"]\s+['\"]")  # to Python one text, to whoever forgot the comma two


def _python_values(text: str) -> Values:
    """What stands between the first bracket and the last, where it is a Python literal that JSON could hold."""
    start, end = _PYTHON.search(text), max(text.rfind("}"), text.rfind("]"))
    if start is None or end < start.start() or _SIDE_BY_SIDE.search(text):
        return []
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes that escape nothing
            value = ast.literal_eval(text[start.start() : end + 1])
        return [(json.loads(json.dumps(value, allow_nan=False)), False)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []


def _beginning(text: str) -> Any:
    """What is there of a JSON value whose end is missing; None where the text is no beginning of one."""
    try:
        return from_json(text, allow_partial="trailing-strings", allow_inf_nan=False)
    except ValueError:
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
