"""From a reply's text to JSON values: through code fences, chatter and a cut-off end.

A reply that cannot be read stays in the journal and becomes a rejection; it is never an empty success.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import from_json

from pipeline.llm import Reply

MOST_STARTS = 20  # brackets looked at: chatter seldom holds more before the JSON
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
        raise Unreadable("empty_reply", "the reply is empty")
    return reply.text.strip()


def _find(reply: Reply, *fits: Callable[[Any], bool], wanted: str) -> tuple[Any, bool]:
    """The JSON value that was asked for, and whether the token limit cut it off.

    Chatter may hold JSON too ("as in [1]"), so it is the first value that meets `fits[0]`, else `fits[1]`, and so on.
    """
    values = _json_values(reply)
    for fit in fits:
        for value, cut in values:
            if fit(value):
                return value, cut
    if any(cut for _, cut in values):
        raise Unreadable("cut_off", "the reply was cut off before anything in it was complete")
    raise Unreadable("wrong_shape", f"the JSON holds no {wanted}")


def _json_values(reply: Reply) -> list[tuple[Any, bool]]:
    """The outermost objects and lists in the reply, each with whether the token limit cut it off."""
    read_text(reply)
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    values: list[tuple[Any, bool]] = []
    start = _BRACKET.search(reply.text)
    for _ in range(MOST_STARTS):
        if start is None:
            break
        at = start.start()
        try:
            value, end = decoder.raw_decode(reply.text, at)
            values.append((value, False))
        except (ValueError, RecursionError):
            end = at + 1
            beginning = _beginning(reply.text[at:])
            if beginning is not None:  # all the rest belongs to it, so nothing inside it is looked at by itself
                values += [(beginning, True)] if reply.finish_reason == "length" else []
                break
        start = _BRACKET.search(reply.text, end)
    if not values and reply.finish_reason == "length" and _BRACKET.search(reply.text):
        raise Unreadable("cut_off", "the reply was cut off before anything in it was complete")
    if not values:
        raise Unreadable("not_json", f"no JSON in {reply.text[:80]!r}")
    return values


def _beginning(text: str) -> Any:
    """What is there of a JSON value whose end is missing; None where the text is no beginning of one."""
    try:
        return from_json(text, allow_partial="trailing-strings", allow_inf_nan=False)
    except ValueError:
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
