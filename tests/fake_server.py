"""A stand-in for an OpenAI-compatible endpoint, with every fault a real one has shown.

    python -m tests.fake_server --port 0 --ledger ledger.jsonl --latency-ms 200

    with FakeServer(ledger=path, plan=[{"nth": [3], "fault": "reset"}], schema_in_prompt=True) as server:
        client = OpenAI(base_url=server.base_url, api_key="any")
        ...
    assert len(server.ledger()) == 10

It runs in a process of its own, so that it sees what was really sent and outlives a client that is killed. An answer is
a pure function of the request body (and of the options); a fault may also depend on how often that body was asked (the
attempt) and on the request's number. The ledger is append-only. A request's line is written before the last byte of its
reply, so whatever a client could have stored stands there; a reply that is held back (latency, most wire faults) gets a
line on arrival as well, and of lines with the same n the last one holds: `read_ledger` joins them.

A plan is a list of {"fault": NAME, ...its arguments} with conditions that must all hold; the first entry that applies
is used: "match": a regex on the canonical body (characters unescaped) · "nth": [request numbers] · "every": N ·
"share": p, drawn from key and attempt · "attempts": [1, 2]. The faults and their arguments: tests/fake_faults.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fake_faults import (
    CREATED,
    FAULTS,
    Exchange,
    Json,
    Ledger,
    LedgerLine,
    bad_request,
    encoded,
    key_of,
    model_not_found,
    read_ledger,
    read_plan,
    unauthorized,
)
from tests.fake_words import CannotWriteError

__all__ = ["FAULTS", "FakeServer", "LedgerLine", "key_of", "read_ledger", "read_plan"]

ROOT = Path(__file__).resolve().parent.parent
LARGEST_BODY = 64 * 2**20


class Bucket:
    """Token bucket: `burst` at once, then `per_minute`."""

    def __init__(self, per_minute: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = per_minute / 60
        self.burst = self.tokens = burst
        self.clock = clock
        self.then = clock()

    def wait(self) -> float:
        """Takes a token and says 0, or says for how many seconds there will be none."""
        now = self.clock()
        self.tokens = min(self.burst, self.tokens + (now - self.then) * self.rate)
        self.then = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.plan = read_plan(json.loads(options.plan.read_bytes())) if options.plan else []
        options.prepared = json.loads(options.answers.read_bytes()) if options.answers else {}
        self.bucket = Bucket(*options.rpm_bucket) if options.rpm_bucket else None
        self.ledger = Ledger(options.ledger, options.ledger_keys_only, options.ledger_fsync)
        self.in_flight = self.most_in_flight = 0
        self.stopped = asyncio.Event()
        self.failed = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client leaves, a fault closes it, or the server stops."""
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the client left or speaks no HTTP, or the server stops
        except Exception:  # noqa: BLE001  a bug of the fake must not look like a fault of the plan: exit with 1
            traceback.print_exc()
            self.failed = True
            self.stopped.set()
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        lowered = head.lower()
        authorization = header(head, lowered, b"authorization")
        if not head.startswith((b"POST /v1/chat/completions ", b"POST /v1/chat/completions?")):
            return self.get(head, authorization, writer)
        size = header(head, lowered, b"content-length")
        if not size.isdecimal() or int(size) > LARGEST_BODY:
            writer.write(b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        if b"\r\nexpect: 100-continue" in lowered:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange = Exchange(self.options, self.ledger, reader, writer, await reader.readexactly(int(size)))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.answer(exchange, authorization)
        finally:
            self.in_flight -= 1
        return exchange.keep_alive and b"\r\nconnection: close" not in lowered

    def get(self, head: bytes, authorization: str, writer: asyncio.StreamWriter) -> bool:
        """The models, and what the ledger can not say. These count as no request."""
        asked = head.split(b"\r\n")[0].rpartition(b" ")[0]
        status, value = 404, error_of(f"Invalid URL ({asked.decode('latin-1')})", None)
        if asked == b"GET /stats":
            status, value = 200, {"requests": self.ledger.requests, "most_in_flight": self.most_in_flight}
        elif asked == b"GET /v1/models" and not self.knows(authorization):
            status, value = 401, error_of("Incorrect API key provided.", "invalid_api_key")
        elif asked == b"GET /v1/models":
            model = {"id": self.options.model or "fake", "object": "model", "created": CREATED, "owned_by": "fake"}
            status, value = 200, {"object": "list", "data": [model]}
        body = encoded(value)
        start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        writer.write(f"{start}content-length: {len(body)}\r\n\r\n".encode() + body)
        return asked.startswith(b"GET ")  # of anything else the body would be taken for the next request

    def knows(self, authorization: str) -> bool:
        return self.options.key is None or authorization == f"Bearer {self.options.key}"

    async def answer(self, exchange: Exchange, authorization: str) -> None:
        due = time.monotonic() + self.options.latency_ms / 1000
        gate = self.gate(exchange, authorization)
        if gate is not None:
            exchange.fault, refuse = gate
            return await refuse
        planned = next((planned for planned in self.plan if planned.applies(exchange)), None)
        try:
            if planned is not None:
                exchange.fault = planned.fault
                return await FAULTS[planned.fault](exchange, **planned.arguments)
            completion = exchange.completion()
        except CannotWriteError as error:
            exchange.fault = "invalid"
            return await exchange.send_error(400, f"The fake server can not answer this: {error}", None)
        if self.options.latency_ms:
            exchange.record(0, answered=False)
            await asyncio.sleep(due - time.monotonic())
        return await exchange.send(200, completion)

    def gate(self, exchange: Exchange, authorization: str) -> tuple[str, Awaitable[None]] | None:
        """What stands before any plan: the key, the form, the model, the rate, parameters that are not taken here."""
        body = exchange.body
        if not self.knows(authorization):
            return "key", unauthorized(exchange)
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or "model" not in body:
            return "invalid", bad_request(exchange)
        if body.get("stream") or body.get("n", 1) != 1:
            return "invalid", bad_request(exchange, "The fake server knows neither `stream` nor `n`.")
        if self.options.model is not None and body["model"] != self.options.model:
            return "model", model_not_found(exchange)
        wait = self.bucket.wait() if self.bucket else 0.0
        if wait:
            headers = {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
            message = "Rate limit reached for requests per minute."
            return "rpm", exchange.send_error(429, message, "rate_limit_exceeded", "requests", headers=headers)
        for name in self.options.refuse:
            refused = refused_parameter(name, body)
            if refused is not None:
                return "refuse", exchange.send_error(400, refused[0], refused[1], param=refused[2])
        return None


def refused_parameter(name: str, body: Json) -> tuple[str, str | None, str] | None:
    """OpenAI's message, code and param for a parameter that this model does not take, where the body has it."""
    if name in ("json_schema", "json_object"):
        if (body.get("response_format") or {}).get("type") != name:
            return None
        message = f"Invalid parameter: 'response_format' of type '{name}' is not supported with this model."
        return message, None, "response_format"
    if body.get(name) is None:
        return None
    if name == "temperature":
        if body[name] == 1:
            return None
        message = f"Unsupported value: '{name}' does not support {body[name]} with this model."
        return f"{message} Only the default (1) value is supported.", "unsupported_value", name
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    if name == "max_tokens":
        message += " Use 'max_completion_tokens' instead."
    return message, "unsupported_parameter", name


def error_of(message: str, code: str | None) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def header(head: bytes, lowered: bytes, name: bytes) -> str:
    start = lowered.find(b"\r\n" + name + b":")
    if start < 0:
        return ""
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip().decode("latin-1")


# ---------------------------------------------------------------------------------------------------------------------
# The command


async def run(options: argparse.Namespace) -> int:
    server = Server(options)
    loop = asyncio.get_running_loop()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", options.port, backlog=1024)
    loop.call_later(options.lifetime_s, server.stopped.set)
    if options.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), server.stopped.set)
    print(json.dumps({"port": listening.sockets[0].getsockname()[1]}), flush=True)
    await server.stopped.wait()
    listening.close()
    return 1 if server.failed else 0


def two_numbers(text: str) -> tuple[float, float]:
    first, second = text.split(",")
    return float(first), float(second)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_server", description="An endpoint to test against.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one; the first line of stdout says which")
    parser.add_argument("--ledger", type=Path, help="append a JSON line a request to this file")
    parser.add_argument("--ledger-keys-only", action="store_true", help="leave the bodies out")
    parser.add_argument("--ledger-fsync", action="store_true", help="fsync each line")
    parser.add_argument("--plan", type=Path, help="JSON file: which request gets which fault")
    parser.add_argument("--answers", type=Path, help="JSON file: the last user message -> the reply to it")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer; faults have their own times")
    parser.add_argument("--dirty", type=float, default=0.0, help="share of bad instructions, empty outputs, chatter, …")
    parser.add_argument("--full-lists", action="store_true", help="every list is as long as its schema lets it be")
    parser.add_argument("--plant", type=float, default=0.0, help="share of answers to a passage that invent something")
    parser.add_argument("--schema-in-prompt", action="store_true", help="answer by a schema in a ```json fence")
    parser.add_argument("--refuse", type=lambda text: text.split(","), default=[], help="json_schema,temperature,…")
    parser.add_argument("--key", help="the bearer token that is asked for")
    parser.add_argument("--model", help="the only model there is")
    parser.add_argument("--rpm-bucket", type=two_numbers, help="REQUESTS_PER_MINUTE,BURST")
    parser.add_argument("--lifetime-s", type=float, default=600.0)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the parent that holds the pipe")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(run(parser.parse_args(argv)))
    return 130


class FakeServer:
    """The server in a process of its own, for a `with` block. Further options are those of the command line:
    FakeServer(ledger=path, refuse=["json_schema"], latency_ms=200, rpm_bucket=(600, 10)).

    `stop()` and `start()` inside the block make an outage; the port stays, and the ledger goes on.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, *, ledger: Path, plan: Sequence[Mapping[str, Any]] = (), port: int = 0, **options: Any) -> None:
        read_plan(plan)  # a mistake in it shows here, not in a process that dies
        self.path = ledger
        self.plan = plan
        self.port = port
        self.options = options

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def command(self) -> list[str]:
        # -S: the standard library is enough, and without site-packages it starts in 0.1 s
        command = [sys.executable, "-S", "-m", "tests.fake_server", "--until-stdin-closes"]
        command += ["--port", str(self.port), "--ledger", str(self.path.resolve())]
        if self.plan:
            plan_path = self.path.resolve().with_suffix(".plan.json")
            plan_path.write_text(json.dumps(self.plan), encoding="utf-8")
            command += ["--plan", str(plan_path)]
        for name, value in self.options.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                command.append(flag)
            elif value is not None and value is not False:
                command.append(f"{flag}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}")
        return command

    def start(self) -> None:
        command = self.command()
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 30)
        first = self.process.stdout.readline() if ready else b""
        if not first:
            self.process.kill()
            raise RuntimeError(f"the fake server did not start, exit code {self.stop()}: {' '.join(command)}")
        self.port = json.loads(first)["port"]

    def stop(self) -> int:
        """Ends the process, bounded in time; its exit code is 1 after a bug of its own."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.process.stdout.close()

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        code = self.stop()
        if code and kind is None:
            raise RuntimeError(f"the fake server itself failed, exit code {code}; its traceback is on stderr")

    def ledger(self) -> list[LedgerLine]:
        return read_ledger(self.path) if self.path.exists() else []

    def stats(self) -> dict[str, int]:
        """requests: how many came; most_in_flight: how many of them at once."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/stats")
            found: dict[str, int] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


if __name__ == "__main__":
    sys.exit(main())
