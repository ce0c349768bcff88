"""One request at the fake server: its line in the ledger, its reply on the wire, and the faults that spoil it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import inspect
import json
import math
import os
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypedDict

from tests.fake_words import CannotWriteError, Writer, schema_in_prompt

CREATED = 1_700_000_000  # no clock in an answer
Json = dict[str, Any]


class LedgerLine(TypedDict):
    """One request, without times: two runs that ask the same in the same order have equal ledgers."""

    n: int  # the server's request number, from 1; goes on when a server is started on an older ledger
    key: str  # sha256 of the canonical request body
    attempt: int  # how often this body had been asked, this time included
    body: Any  # None where the server keeps keys only; a text where it was no JSON
    status: int  # 0: no status line was sent
    fault: str | None  # of the plan; or the gate that refused it: key, model, rpm, refuse, invalid
    answered: bool  # a complete body was written
    prompt_tokens: int  # what an honest usage says, whatever the reply says
    completion_tokens: int


def canonical(body: Any, ascii_only: bool = True) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=ascii_only)


def key_of(body: Any) -> str:
    """The ledger's key of a request body, for tests that look one up."""
    return hashlib.sha256(canonical(body).encode()).hexdigest()


def read_ledger(path: Path) -> list[LedgerLine]:
    """The ledger in order of arrival, one entry a request. A line that is being written right now is left out."""
    found: dict[int, Any] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        entry = json.loads(line)
        found[entry["n"]] = {"body": None, **found.get(entry["n"], {}), **entry}
    return [found[n] for n in sorted(found)]


class Ledger:
    """The append-only file, and the counts that a plan goes by; both go on where an older ledger ends."""

    def __init__(self, path: Path | None, keys_only: bool, fsync: bool) -> None:
        old = read_ledger(path) if path is not None and path.exists() else []
        self.requests = max((line["n"] for line in old), default=0)
        self.attempts = Counter(line["key"] for line in old)
        self.keys_only = keys_only
        self.fsync = fsync
        self.file = os.open(path or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, line: str) -> None:
        os.write(self.file, line.encode())  # no buffer of ours: from here on every reader sees it
        if self.fsync:
            os.fsync(self.file)


# ---------------------------------------------------------------------------------------------------------------------
# One request and its reply


class Exchange:
    """One request on its connection. The faults get it and may do with the wire what they like."""

    def __init__(
        self,
        options: argparse.Namespace,
        ledger: Ledger,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        raw: bytes,
    ) -> None:
        self.options = options
        self.ledger = ledger
        self.reader = reader
        self.writer = writer
        self.fault: str | None = None
        self.keep_alive = True
        self.tokens = (0, 0)
        self.recorded = ledger.keys_only  # the body stands in the first line only
        self.body: Any
        try:
            self.body = json.loads(raw)
            self.canonical = canonical(self.body)
        except (ValueError, RecursionError):  # no JSON: kept in the ledger as a string
            self.body, self.canonical = None, canonical(raw.decode("utf-8", "replace"))
        self.key = hashlib.sha256(self.canonical.encode()).hexdigest()
        ledger.attempts[self.key] += 1
        self.attempt = ledger.attempts[self.key]
        ledger.requests += 1
        self.n = ledger.requests

    def gone(self) -> bool:
        return self.writer.transport.is_closing() or self.reader.at_eof()

    def record(self, status: int, answered: bool) -> None:
        body = "" if self.recorded else f'"body":{self.canonical},'
        self.recorded = True
        fault = "null" if self.fault is None else f'"{self.fault}"'
        self.ledger.append(
            f'{{"n":{self.n},"key":"{self.key}","attempt":{self.attempt},{body}"status":{status},"fault":{fault},'
            f'"answered":{"true" if answered else "false"},'
            f'"prompt_tokens":{self.tokens[0]},"completion_tokens":{self.tokens[1]}}}\n'
        )

    def completion(self) -> Json:
        """The answer to this body; from here on its tokens count as used."""
        messages = self.body["messages"]
        prompt = "\n\n".join(text_of(message) for message in messages)
        users = [message for message in messages if message.get("role") == "user"]
        source = text_of(users[-1]) if users else ""
        writer = Writer(int(self.key[:16], 16), source, self.options.dirty, self.options.plant, self.options.full_lists)
        prepared = self.options.prepared.get(source)
        text, finish = (prepared, "stop") if prepared is not None else writer.answer(self.schema(prompt))
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        if limit and len(text) > 4 * limit:
            text, finish = text[: 4 * limit], "length"
        self.tokens = (max(1, len(prompt) // 4), max(1, len(text) // 4))
        return {
            "id": f"chatcmpl-{self.key[:24]}",
            "object": "chat.completion",
            "created": CREATED,
            "model": self.body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": finish,
                }
            ],
            "usage": {
                "prompt_tokens": self.tokens[0],
                "completion_tokens": self.tokens[1],
                "total_tokens": sum(self.tokens),
            },
        }

    def schema(self, prompt: str) -> Json | None:
        wanted = self.body.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            schema = (wanted.get("json_schema") or {}).get("schema")
            if not isinstance(schema, dict):
                raise CannotWriteError("response_format has no json_schema.schema")
            return schema
        return schema_in_prompt(prompt) if self.options.schema_in_prompt else None

    async def send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        await self.send_bytes(status, encoded(value), headers)

    async def send_bytes(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole reply."""
        if self.gone():
            self.record(0, answered=False)
            return
        self.record(status, answered=True)
        self.writer.write(self.head(status, len(body), headers) + body)
        await self.writer.drain()

    async def send_error(
        self, status: int, message: str, code: str | None, kind: str = "invalid_request_error",
        param: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        error = {"message": message, "type": kind, "param": param, "code": code}
        await self.send(status, {"error": error}, headers)

    def head(self, status: int, length: int | None, headers: Mapping[str, str] | None = None) -> bytes:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"x-request-id: req-{self.n}"]
        if length is not None:
            lines.append(f"content-length: {length}")
        lines += [f"{name}: {value}" for name, value in {"content-type": "application/json", **(headers or {})}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def until_gone(self, seconds: float) -> None:
        """Says nothing more until the client leaves."""
        self.keep_alive = False
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass


def text_of(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------------------------------
# Faults: each a function of the exchange, registered by its name; its keywords are what a plan may set

FAULTS: dict[str, Callable[..., Awaitable[None]]] = {}


def fault(act: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    FAULTS[act.__name__] = act
    return act


def misshapen(change: Callable[..., None]) -> Callable[..., Awaitable[None]]:
    """A fault that changes the completion in place and sends it as a 200."""

    @functools.wraps(change)
    async def act(exchange: Exchange, **arguments: Any) -> None:
        completion = exchange.completion()
        change(completion, **arguments)
        await exchange.send(200, completion)

    return fault(act)


# -- errors, said politely


@fault
async def rate_limit(exchange: Exchange, retry_after: float | str | None = None, form: str = "seconds") -> None:
    """`form` of a number: seconds, ms (header retry-after-ms) or date. A text is sent as it is: "-1", "soon"."""
    headers = {}
    if isinstance(retry_after, str):
        headers["retry-after"] = retry_after
    elif retry_after is not None and form == "ms":
        headers["retry-after-ms"] = f"{retry_after * 1000:g}"
    elif retry_after is not None and form == "date":
        headers["retry-after"] = formatdate(time.time() + retry_after, usegmt=True)
    elif retry_after is not None:
        headers["retry-after"] = f"{retry_after:g}"
    await exchange.send_error(429, "Rate limit reached.", "rate_limit_exceeded", "requests", headers=headers)


@fault
async def quota(exchange: Exchange) -> None:
    message = "You exceeded your current quota, please check your plan and billing details."
    await exchange.send_error(429, message, "insufficient_quota", "insufficient_quota")


@fault
async def server_error(exchange: Exchange, status: int = 500) -> None:
    await exchange.send_error(status, "The server had an error while processing your request.", None, "server_error")


@fault
async def unauthorized(exchange: Exchange) -> None:
    await exchange.send_error(401, "Incorrect API key provided.", "invalid_api_key")


@fault
async def forbidden(exchange: Exchange) -> None:
    code = "unsupported_country_region_territory"
    await exchange.send_error(403, "Country, region, or territory not supported.", code, "request_forbidden")


@fault
async def model_not_found(exchange: Exchange) -> None:
    message = f"The model `{exchange.body['model']}` does not exist or you do not have access to it."
    await exchange.send_error(404, message, "model_not_found")


@fault
async def bad_request(exchange: Exchange, message: str = "We could not parse your request.") -> None:
    await exchange.send_error(400, message, None)


@fault
async def html_page(exchange: Exchange, status: int = 200) -> None:
    """A proxy's page instead of the API's reply."""
    page = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Please sign in</h1></body></html>"
    await exchange.send_bytes(status, page, {"content-type": "text/html; charset=utf-8"})


# -- a wire that misbehaves


@fault
async def delay(exchange: Exchange, seconds: float = 1.0) -> None:
    """A straggler: late, but whole."""
    completion = exchange.completion()
    exchange.record(0, answered=False)
    await asyncio.sleep(seconds)
    await exchange.send(200, completion)


@fault
async def hang_before_headers(exchange: Exchange, seconds: float = 600.0) -> None:
    exchange.completion()
    exchange.record(0, answered=False)
    await exchange.until_gone(seconds)


@fault
async def hang_after_headers(exchange: Exchange, seconds: float = 600.0) -> None:
    body = encoded(exchange.completion())
    exchange.record(200, answered=False)
    exchange.writer.write(exchange.head(200, len(body)))
    await exchange.until_gone(seconds)


@fault
async def slow_drip(exchange: Exchange, interval_s: float = 0.1, headers_too: bool = False) -> None:
    """A byte each interval: every single read succeeds, the whole takes for ever."""
    body = encoded(exchange.completion())
    exchange.record(0 if headers_too else 200, answered=False)
    head = exchange.head(200, len(body))
    if not headers_too:
        exchange.writer.write(head)
    dripped = head + body if headers_too else body
    for i in range(len(dripped)):
        await asyncio.sleep(interval_s)
        if exchange.gone():
            return
        if i == len(dripped) - 1:
            exchange.record(200, answered=True)
        exchange.writer.write(dripped[i : i + 1])


@fault
async def cut_body(exchange: Exchange) -> None:
    """Half of the body, then an orderly close."""
    body = encoded(exchange.completion())
    exchange.record(200, answered=False)
    exchange.writer.write(exchange.head(200, len(body)) + body[: len(body) // 2])
    exchange.keep_alive = False


@fault
async def reset(exchange: Exchange, before_headers: bool = False) -> None:
    """RST, in the middle of the body or before anything was said."""
    body = encoded(exchange.completion())
    exchange.record(0 if before_headers else 200, answered=False)
    if not before_headers:
        exchange.writer.write(exchange.head(200, len(body)) + body[: len(body) // 2])
        await asyncio.sleep(0.01)  # an RST throws away what the client has not yet been sent
    exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()
    exchange.keep_alive = False


@fault
async def wrong_length(exchange: Exchange, extra: int = 100) -> None:
    """A content-length that is off by `extra` (negative: too small), then a close."""
    body = encoded(exchange.completion())
    exchange.record(200, answered=False)
    exchange.writer.write(exchange.head(200, max(0, len(body) + extra)) + body)
    exchange.keep_alive = False


@fault
async def endless_body(exchange: Exchange, max_mb: float = 1024.0) -> None:
    """A content that never ends, in chunks, as fast as the client reads."""
    start, _ = json.dumps(exchange.completion(), ensure_ascii=False).split('"content": "', 1)
    exchange.record(200, answered=False)
    exchange.keep_alive = False
    exchange.writer.write(exchange.head(200, None, {"transfer-encoding": "chunked"}))
    opening, filler = f'{start}"content": "'.encode(), b"and so on " * 6554
    for i in range(int(max_mb * 2**20) // len(filler) + 2):
        piece = filler if i else opening
        exchange.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await exchange.writer.drain()  # raises ConnectionError once the client has left


@fault
async def gzip_bomb(exchange: Exchange, unpacked_mb: int = 256) -> None:
    """Good JSON and `unpacked_mb` of blanks behind it, a thousandth of that on the wire."""
    packed = await asyncio.to_thread(packed_with_blanks, encoded(exchange.completion()), unpacked_mb)
    await exchange.send_bytes(200, packed, {"content-encoding": "gzip"})


@functools.lru_cache(maxsize=1)  # 1.5 GB take seconds to pack; asked again, it comes at once
def packed_with_blanks(body: bytes, blank_mb: int) -> bytes:
    packer, blanks = zlib.compressobj(wbits=31), b" " * 2**20
    return b"".join([packer.compress(body), *(packer.compress(blanks) for _ in range(blank_mb)), packer.flush()])


# -- bodies that are not what they should be


@fault
async def garbage_json(exchange: Exchange, inside: bool = False) -> None:
    """A body, or with `inside` a content, that stops in the middle of its JSON."""
    completion = exchange.completion()
    if inside:
        message = completion["choices"][0]["message"]
        message["content"] = message["content"][: len(message["content"]) // 2]
        await exchange.send(200, completion)
    else:
        body = encoded(completion)
        await exchange.send_bytes(200, body[: len(body) // 2])


@fault
async def duplicate_keys(exchange: Exchange, inside: bool = False) -> None:
    """The first key of the message, or with `inside` of the content's object, stands there twice."""
    completion = exchange.completion()
    message = completion["choices"][0]["message"]
    if inside:
        message["content"] = re.sub(r'^\{("[^"]+": )', r'{\1"first", \1', message["content"])
        await exchange.send(200, completion)
    else:
        body = json.dumps(completion, ensure_ascii=False)
        await exchange.send_bytes(200, body.replace('"content": ', '"content": "first", "content": ', 1).encode())


@misshapen
def nan(completion: Json, where: str = "usage") -> None:
    """NaN, which Python's json writes and reads and JSON does not know: in usage, logprobs or content."""
    choice = completion["choices"][0]
    if where == "usage":
        completion["usage"]["completion_tokens"] = math.nan
    elif where == "logprobs":
        choice["logprobs"] = {"content": [{"token": "a", "logprob": math.nan, "bytes": None, "top_logprobs": []}]}
    else:
        choice["message"]["content"] = '{"score": NaN}'


@misshapen
def refusal(completion: Json) -> None:
    completion["choices"][0]["message"].update(content=None, refusal="I'm sorry, but I can't help with that.")


@misshapen
def content_filter(completion: Json, content: str | None = "") -> None:
    completion["choices"][0]["finish_reason"] = "content_filter"
    completion["choices"][0]["message"]["content"] = content


@misshapen
def length(completion: Json, keep: float = 0.5) -> None:
    """Only the first part of the content, and finish_reason says so."""
    message = completion["choices"][0]["message"]
    message["content"] = message["content"][: int(len(message["content"]) * keep)]
    completion["choices"][0]["finish_reason"] = "length"


@misshapen
def empty_choices(completion: Json) -> None:
    completion["choices"] = []


@misshapen
def missing_choices(completion: Json) -> None:
    del completion["choices"]


@misshapen
def null_content(completion: Json) -> None:
    completion["choices"][0]["message"]["content"] = None


@misshapen
def reasoning_only(completion: Json, content: str | None = None) -> None:
    """All its tokens went into thinking."""
    message = completion["choices"][0]["message"]
    message.update(content=content, reasoning_content=f"Let me see. {message['content']}")


@misshapen
def think_block(completion: Json, closed: bool = True) -> None:
    message = completion["choices"][0]["message"]
    message["content"] = f"<think>\nLet me see.\n{'</think>' if closed else ''}\n\n{message['content']}"


@misshapen
def tool_calls(completion: Json) -> None:
    """It calls a function that nobody offered."""
    choice = completion["choices"][0]
    call = {"id": "call_1", "type": "function", "function": {"name": "answer", "arguments": "{}"}}
    choice["finish_reason"] = "tool_calls"
    choice["message"].update(content=None, tool_calls=[call])


@misshapen
def missing_usage(completion: Json) -> None:
    del completion["usage"]


@misshapen
def negative_usage(completion: Json) -> None:
    completion["usage"] = {"prompt_tokens": -7, "completion_tokens": -1, "total_tokens": -8}


# ---------------------------------------------------------------------------------------------------------------------
# The plan: which request gets which fault


@dataclass(frozen=True)
class Planned:
    fault: str
    arguments: Json
    match: re.Pattern[str] | None = None
    nth: frozenset[int] | None = None
    every: int | None = None
    share: float | None = None
    attempts: frozenset[int] | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Planned:
        rest = dict(entry)
        name = rest.pop("fault")
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r} in {', '.join(sorted(FAULTS))}")
        conditions = {key: rest.pop(key, None) for key in ("match", "nth", "every", "share", "attempts")}
        inspect.signature(FAULTS[name]).bind(None, **rest)  # a TypeError names the argument that is not known
        if conditions["match"] is not None:
            conditions["match"] = re.compile(conditions["match"])
        for numbers in ("nth", "attempts"):
            if conditions[numbers] is not None:
                conditions[numbers] = frozenset(conditions[numbers])
        return cls(name, rest, **conditions)

    def applies(self, exchange: Exchange) -> bool:
        if self.nth is not None and exchange.n not in self.nth:
            return False
        if self.every is not None and exchange.n % self.every:
            return False
        if self.attempts is not None and exchange.attempt not in self.attempts:
            return False
        if self.match is not None and not self.match.search(canonical(exchange.body, ascii_only=False)):
            return False
        if self.share is not None:
            drawn = hashlib.sha256(f"{self.fault} {exchange.key} {exchange.attempt}".encode()).digest()
            return int.from_bytes(drawn[:8], "big") / 2**64 < self.share
        return True


def read_plan(entries: Iterable[Mapping[str, Any]]) -> list[Planned]:
    return [Planned.from_json(entry) for entry in entries]
