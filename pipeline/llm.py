"""One protocol for every model: a `Request` goes in, a `Reply` comes out.

Two backends speak it: `endpoint.Endpoint` (any OpenAI-compatible server) and
`local_model.LocalModel` (in process, on the CPU or a GPU). Nothing else reaches a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

JsonObject = Mapping[str, Any]

WRITING_TEMPERATURE, WRITING_TOP_P = 0.7, 0.9  # of what is written; 0 makes small models echo (docs/decisions.md)


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a model, as asked: never as negotiated with a server that refuses a parameter.

    `messages` are (role, content) pairs, oldest first. `max_tokens` bounds the reply. `schema` is the
    JSON schema the reply should follow, or None for free text. `sample` tells apart requests that are
    equal but meant to be answered anew. `extra` goes into the body as it stands. Its canonical JSON hashes to the
    key under which the journal keeps the reply.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.7
    top_p: float = 1.0
    schema: JsonObject | None = None
    sample: int = 0
    extra: JsonObject = field(default_factory=dict)

    def body(self, model_identity: str) -> bytes:
        """Everything that shapes the reply, and nothing else, as canonical JSON; its SHA-256 is the journal's key."""
        asked = {
            "model": model_identity,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "schema": self.schema,
            "sample": self.sample,
            "extra": self.extra,
        }
        return canonical_json(asked)


@dataclass(frozen=True, slots=True)
class Manner:
    """How all requests of a run are asked, by what the user set; None stands for each stage's own."""

    max_tokens: int
    temperature: float | None
    top_p: float | None
    extra: JsonObject

    def request(
        self,
        messages: tuple[tuple[str, str], ...],
        schema: JsonObject | None = None,
        *,
        temperature: float = WRITING_TEMPERATURE,
        top_p: float = WRITING_TOP_P,
        sample: int = 0,
    ) -> Request:
        """A request of a stage whose own settings are these."""
        return Request(
            messages,
            max_tokens=self.max_tokens,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=top_p if self.top_p is None else self.top_p,
            schema=schema,
            sample=sample,
            extra=self.extra,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `raw` holds the exact bytes; all other fields are derived from them.

    `finish_reason` is the server's word: "stop", "length", "content_filter" … Token counts are None
    where the server did not say.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    raw: bytes
    flaws: tuple[str, ...] = ()  # what is odd about it, by class: refusal, length, no_usage … (docs/reliability.md)


class RequestFailed(Exception):
    """One attempt did not bring a reply that can be used.

    `outcome` is its class, one word of docs/data-format.md. `retry_after` is in seconds, where the server asked
    for a pause. `raw` is what came back, if anything did.
    """

    def __init__(
        self,
        outcome: str,
        detail: str,
        *,
        status: int | None = None,
        worth_retrying: bool = True,
        retry_after: float | None = None,
        raw: bytes | None = None,
    ) -> None:
        super().__init__(detail)
        self.outcome, self.detail, self.status, self.raw = outcome, detail, status, raw
        self.worth_retrying, self.retry_after = worth_retrying, retry_after


class ParameterRefused(RequestFailed):
    """The server does not take a parameter; the backend has learned it, and the request can be sent again at once."""

    def __init__(self, parameter: str, detail: str, *, status: int, raw: bytes) -> None:
        super().__init__("refused_parameter", detail, status=status, raw=raw)
        self.parameter = parameter


class Model(Protocol):
    """What the line asks of a model."""

    reader: str  # what reads a raw reply back: "openai" or "local"
    is_local: bool  # in process and free, so that nothing is lost by breaking off

    @property
    def address(self) -> str:
        """Where it is, for the journal's list of refused parameters; no secrets in it."""

    @property
    def identity(self) -> str:
        """What the model is, whatever its address: an endpoint's model name, or a hash of local weights."""

    def refuse(self, parameters: set[str]) -> None:
        """Take in what an earlier run learned that the endpoint does not take."""

    async def complete(self, request: Request) -> Reply:
        """Answer one request; many may be under way at once. Raises RequestFailed, or EndpointError to stop the run."""

    async def close(self) -> None:
        """Let go of connections, threads and memory."""


def object_schema(properties: JsonObject) -> dict[str, Any]:
    """A JSON schema of an object with exactly these properties, in this order."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def list_schema(name: str, items: JsonObject, at_most: int) -> dict[str, Any]:
    """A JSON schema of an object that holds one list."""
    return object_schema({name: {"type": "array", "items": items, "minItems": 1, "maxItems": at_most}})


UNNAMED_TOKENS = 128  # what a chat template may add to a request that its JSON does not show


def most_prompt_tokens(body: bytes) -> int:
    """More tokens than a request with this canonical JSON can have: none is shorter than a byte."""
    return len(body) + UNNAMED_TOKENS


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: keys sorted, no spaces, UTF-8 (lone surrogates escaped)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
