"""From a reply's text to JSON values: through code fences, chatter and a cut-off end.

A reply that cannot be read stays in the journal and becomes a rejection; it is never an empty success.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import from_json

from pipeline.llm import Reply


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
    value, cut = _read_json(reply)
    if isinstance(value, dict):
        value = value.get(name)
    if not isinstance(value, list):
        raise Unreadable("wrong_shape", f"the JSON holds no list {name!r}")
    return Items(value, cut)


def read_object(reply: Reply) -> dict[str, Any]:
    """The reply's JSON object, which must be complete."""
    value, cut = _read_json(reply)
    if cut:
        raise Unreadable("cut_off", "the reply was cut off by the token limit")
    if not isinstance(value, dict):
        raise Unreadable("wrong_shape", "the JSON is no object")
    return value


def read_value(reply: Reply, name: str) -> Any:
    """The value under `name` in the reply's JSON object, which must be complete."""
    value = read_object(reply)
    if name not in value:
        raise Unreadable("wrong_shape", f"the JSON holds no {name!r}")
    return value[name]


def _read_json(reply: Reply) -> tuple[Any, bool]:
    if reply.finish_reason == "failed":
        raise Unreadable("request_failed", "the request failed for good")
    if reply.finish_reason in ("refusal", "content_filter"):
        raise Unreadable(reply.finish_reason, f"the server withheld the answer: {reply.text[:80]!r}")
    if not reply.text.strip():
        raise Unreadable("empty_reply", "the reply is empty")
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    starts = [at for at, character in enumerate(reply.text) if character in "{["]
    for at in starts[:20]:  # chatter seldom holds more brackets than that before the JSON
        try:
            return decoder.raw_decode(reply.text, at)[0], False
        except (ValueError, RecursionError):
            continue
    if reply.finish_reason == "length" and starts:
        try:
            return from_json(reply.text[starts[0] :], allow_partial="trailing-strings"), True
        except ValueError:
            raise Unreadable("cut_off", "the reply was cut off before anything in it was complete") from None
    raise Unreadable("not_json", f"no JSON in {reply.text[:80]!r}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
