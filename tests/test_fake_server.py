"""The fake server does what the other tests rely on: pure answers, a ledger that never misses, faults that are real."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from tests.conftest import wait_for
from tests.fake_server import FAULTS, ROOT, Bucket, FakeServer, LedgerLine, key_of, read_ledger, read_plan
from tests.fake_words import CannotWriteError, Writer, schema_in_prompt

Json = dict[str, Any]
TASKS: Json = {
    "type": "object",
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("instruction", "input", "output")},
                "required": ["instruction", "input", "output"],
            },
        }
    },
    "required": ["tasks"],
}


def chat(text: str, **more: Any) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def structured(text: str, schema: Json, **more: Any) -> Json:
    return chat(text, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, **more)


# ---------------------------------------------------------------------------------------------------------------------
# A client that sees the wire as it is


@dataclass
class Seen:
    """What came back. `ended`: whole (all of content-length), closed, reset, silent (nothing for too long), enough."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: str = "closed"

    def json(self) -> Any:
        return json.loads(self.body)

    def choice(self) -> Any:
        return self.json()["choices"][0]

    def content(self) -> str:
        text: str = self.choice()["message"]["content"]
        return text

    def error(self) -> Any:
        return self.json()["error"]


async def post(port: int, body: Any, headers: Mapping[str, str], silences: tuple[float, float], enough: int) -> Seen:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seen = Seen()
    sent = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: fake\r\n{extra}Content-Length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    try:
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), silences[0])
        first, *lines = raw.decode("latin-1").strip().split("\r\n")
        seen.status = int(first.split()[1])
        seen.headers = dict(line.split(": ", 1) for line in lines)
        wanted = int(seen.headers.get("content-length", enough))
        while len(seen.body) < min(wanted, enough):
            piece = await asyncio.wait_for(reader.read(min(wanted, enough) - len(seen.body)), silences[1])
            if not piece:
                return seen
            seen.body += piece
        seen.ended = "whole" if len(seen.body) == wanted and "content-length" in seen.headers else "enough"
    except TimeoutError:
        seen.ended = "silent"
    except asyncio.IncompleteReadError:
        seen.ended = "closed"
    except ConnectionResetError:
        seen.ended = "reset"
    finally:
        writer.close()
    return seen


PATIENT = 60.0  # seconds of silence that only a server which has lost its way would keep


def ask(
    server: FakeServer,
    body: Any,
    headers: Mapping[str, str] | None = None,
    silences: tuple[float, float] = (PATIENT, PATIENT),
    enough: int = 2**20,
) -> Seen:
    """`silences`: seconds to wait for the head, and for each piece of the body."""
    return asyncio.run(post(server.port, body, headers or {}, silences, enough))


def get(server: FakeServer, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", path, headers=dict(headers or {}))
    reply = connection.getresponse()
    found = json.loads(reply.read())
    connection.close()
    return reply.status, found


# ---------------------------------------------------------------------------------------------------------------------
# Faults: a row provokes one for real; a fault without a row fails the suite

Check = Callable[[Seen], bool]


def failed(status: int, code: str | None, ended: str = "whole") -> Check:
    return lambda seen: seen.status == status and seen.error()["code"] == code and seen.ended == ended


def message(check: Callable[[Any], bool]) -> Check:
    return lambda seen: seen.status == 200 and seen.ended == "whole" and check(seen.choice()["message"])


def whole(check: Check) -> Check:
    return lambda seen: seen.status == 200 and seen.ended == "whole" and check(seen)


def retry_after(name: str, value: str) -> Check:
    return lambda seen: seen.status == 429 and seen.headers.get(name) == value


def seconds_to_date(seen: Seen) -> float:
    return (parsedate_to_datetime(seen.headers["retry-after"]) - datetime.now(UTC)).total_seconds()


def pairs_seen_twice(text: str | bytes) -> bool:
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return twice


def is_json(text: str | bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def missing(seen: Seen) -> int:
    return int(seen.headers["content-length"]) - len(seen.body)


def unpacked_bytes(seen: Seen) -> int:
    return len(gzip.decompress(seen.body))


Row = tuple[str, Json, Check, bool]  # fault, its arguments, what the client sees, "answered" in the ledger
ROWS: list[Row] = [
    (
        "rate_limit",
        {},
        lambda seen: failed(429, "rate_limit_exceeded")(seen) and "retry-after" not in seen.headers,
        True,
    ),
    ("rate_limit", {"retry_after": 1.5}, retry_after("retry-after", "1.5"), True),
    ("rate_limit", {"retry_after": 0.25, "form": "ms"}, retry_after("retry-after-ms", "250"), True),
    ("rate_limit", {"retry_after": 60, "form": "date"}, lambda seen: 50 < seconds_to_date(seen) <= 61, True),
    ("rate_limit", {"retry_after": "99999999"}, retry_after("retry-after", "99999999"), True),
    ("rate_limit", {"retry_after": "-1"}, retry_after("retry-after", "-1"), True),
    ("rate_limit", {"retry_after": "soon"}, retry_after("retry-after", "soon"), True),
    ("quota", {}, failed(429, "insufficient_quota"), True),
    ("server_error", {}, failed(500, None), True),
    ("server_error", {"status": 502}, failed(502, None), True),
    ("server_error", {"status": 503}, failed(503, None), True),
    ("unauthorized", {}, failed(401, "invalid_api_key"), True),
    ("forbidden", {}, failed(403, "unsupported_country_region_territory"), True),
    ("model_not_found", {}, failed(404, "model_not_found"), True),
    ("bad_request", {}, failed(400, None), True),
    ("html_page", {}, whole(lambda seen: "text/html" in seen.headers["content-type"] and b"<html>" in seen.body), True),
    ("delay", {"seconds": 0.1}, whole(lambda seen: is_json(seen.body)), True),
    ("hang_before_headers", {}, lambda seen: seen.status == 0 and seen.ended == "silent", False),
    ("hang_before_headers", {"seconds": 0.05}, lambda seen: seen.status == 0 and seen.ended == "closed", False),
    ("hang_after_headers", {}, lambda seen: seen.status == 200 and not seen.body and seen.ended == "silent", False),
    ("slow_drip", {"interval_s": 0.0}, whole(lambda seen: is_json(seen.body)), True),
    ("slow_drip", {"interval_s": 0.0, "headers_too": True}, whole(lambda seen: is_json(seen.body)), True),
    ("slow_drip", {"interval_s": 9}, lambda seen: seen.status == 200 and seen.ended == "silent", False),
    ("cut_body", {}, lambda seen: seen.ended == "closed" and missing(seen) > 0 and bool(seen.body), False),
    ("reset", {}, lambda seen: seen.status == 200 and seen.ended == "reset" and missing(seen) > 0, False),
    ("reset", {"before_headers": True}, lambda seen: seen.status == 0 and seen.ended == "reset", False),
    ("wrong_length", {}, lambda seen: missing(seen) == 100 and is_json(seen.body) and seen.ended == "closed", False),
    ("wrong_length", {"extra": -9}, whole(lambda seen: not is_json(seen.body)), False),
    ("endless_body", {}, lambda seen: len(seen.body) == 2**20 and seen.ended == "enough", False),
    (
        "endless_body",
        {"max_mb": 0.1},
        lambda seen: 10**5 < len(seen.body) < 3 * 10**5 and seen.ended == "closed",
        False,
    ),
    (
        "gzip_bomb",
        {"unpacked_mb": 20},
        lambda seen: len(seen.body) < 50_000 and unpacked_bytes(seen) > 20 * 2**20,
        True,
    ),
    ("garbage_json", {}, whole(lambda seen: not is_json(seen.body)), True),
    ("garbage_json", {"inside": True}, message(lambda said: not is_json(said["content"])), True),
    ("duplicate_keys", {}, whole(lambda seen: pairs_seen_twice(seen.body)), True),
    ("duplicate_keys", {"inside": True}, message(lambda said: pairs_seen_twice(said["content"])), True),
    ("nan", {}, whole(lambda seen: b'"completion_tokens": NaN' in seen.body), True),
    ("nan", {"where": "logprobs"}, whole(lambda seen: b'"logprob": NaN' in seen.body), True),
    ("nan", {"where": "content"}, message(lambda said: "NaN" in said["content"]), True),
    ("refusal", {}, message(lambda said: said["content"] is None and bool(said["refusal"])), True),
    ("content_filter", {}, whole(lambda seen: seen.choice()["finish_reason"] == "content_filter"), True),
    (
        "length",
        {},
        whole(lambda seen: seen.choice()["finish_reason"] == "length" and not is_json(seen.content())),
        True,
    ),
    ("empty_choices", {}, whole(lambda seen: seen.json()["choices"] == []), True),
    ("missing_choices", {}, whole(lambda seen: "choices" not in seen.json()), True),
    ("null_content", {}, message(lambda said: said["content"] is None and said["refusal"] is None), True),
    ("reasoning_only", {}, message(lambda said: said["content"] is None and bool(said["reasoning_content"])), True),
    ("reasoning_only", {"content": ""}, message(lambda said: said["content"] == ""), True),
    ("think_block", {}, message(lambda said: bool(re.match("<think>\n.+</think>\n\n{", said["content"], re.S))), True),
    ("think_block", {"closed": False}, message(lambda said: "</think>" not in said["content"]), True),
    ("tool_calls", {}, message(lambda said: said["content"] is None and bool(said["tool_calls"])), True),
    ("missing_usage", {}, whole(lambda seen: "usage" not in seen.json()), True),
    ("negative_usage", {}, whole(lambda seen: seen.json()["usage"]["completion_tokens"] < 0), True),
]
SILENT = {
    ("hang_before_headers",): (0.3, PATIENT),
    ("hang_after_headers",): (PATIENT, 0.3),
    ("slow_drip", ("interval_s", 9)): (PATIENT, 0.3),
}
GENERATES_NOTHING = {
    "rate_limit", "quota", "server_error", "unauthorized", "forbidden", "model_not_found", "bad_request", "html_page",
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """One server for all rows: row i matches its own request."""
    plan = [{"match": f"row {i}\\b", "fault": name, **arguments} for i, (name, arguments, _, _) in enumerate(ROWS)]
    with FakeServer(ledger=tmp_path_factory.mktemp("faulty") / "ledger.jsonl", plan=plan) as server:
        yield server


def test_every_fault_has_a_row() -> None:
    assert {name for name, *_ in ROWS} == set(FAULTS)


@pytest.mark.parametrize("i", range(len(ROWS)), ids=[f"{name}-{json.dumps(given)}" for name, given, *_ in ROWS])
def test_a_fault_is_really_provoked(faulty: FakeServer, i: int) -> None:
    name, given, check, answered = ROWS[i]
    body = structured(f"row {i}", TASKS)

    seen = ask(faulty, body, silences=SILENT.get((name, *given.items()), (PATIENT, PATIENT)))

    assert check(seen), seen
    wait_for(lambda: any(line["key"] == key_of(body) for line in faulty.ledger()))
    line = next(line for line in reversed(faulty.ledger()) if line["key"] == key_of(body))
    assert (line["fault"], line["answered"], line["status"]) == (name, answered, seen.status)
    assert (line["completion_tokens"] > 0) == (name not in GENERATES_NOTHING)
    assert ask(faulty, chat("afterwards")).status == 200  # and the server is as it was


# ---------------------------------------------------------------------------------------------------------------------
# The plan


@pytest.mark.parametrize(
    ("conditions", "spoiled"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"nth": [2, 5]}, [2, 5]),
        ({"every": 3}, [3, 6]),
        ({"attempts": [1]}, [1, 2, 3]),
        ({"attempts": [2], "match": "中b"}, [5]),
        ({"match": '"content":"a"'}, [1, 4]),
        ({"share": 0.0}, []),
        ({"share": 1.0}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_conditions_of_a_plan(tmp_path: Path, conditions: Json, spoiled: list[int]) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", plan=[{"fault": "server_error", **conditions}]) as server:
        for text in ("a", "中b", "c", "a", "中b", "c"):
            ask(server, chat(text))

        assert [line["n"] for line in server.ledger() if line["status"] == 500] == spoiled
        assert [line["attempt"] for line in server.ledger()] == [1, 1, 1, 2, 2, 2]


def test_a_share_is_drawn_from_the_key_and_the_first_entry_wins(tmp_path: Path) -> None:
    plan = [{"share": 0.5, "fault": "quota"}, {"share": 0.5, "fault": "forbidden"}]
    runs = []
    for run in ("one", "two"):
        with FakeServer(ledger=tmp_path / f"{run}.jsonl", plan=plan) as server:
            for i in range(40):
                ask(server, chat(f"request {i}"))
            runs.append([(line["key"], line["fault"]) for line in server.ledger()])

    assert runs[0] == runs[1]
    counts = collections.Counter(fault for _, fault in runs[0])
    assert counts["quota"] > counts["forbidden"] > 0
    assert counts[None] > 0


def test_a_mistake_in_a_plan_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="no fault 'rate_limits' in bad_request, "):
        read_plan([{"fault": "rate_limits"}])
    with pytest.raises(TypeError, match="retry_afer"):
        FakeServer(ledger=Path("never"), plan=[{"fault": "rate_limit", "retry_afer": 1}])


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with FakeServer(ledger=tmp_path_factory.mktemp("plain") / "ledger.jsonl") as server:
        yield server


def test_an_answer_is_a_pure_function_of_the_body(plain: FakeServer, tmp_path: Path) -> None:
    body = structured("Write tasks.", TASKS, temperature=0.5)
    with FakeServer(ledger=tmp_path / "ledger.jsonl", latency_ms=1) as other:
        replies = {ask(server, body).body for server in (plain, plain, other)}
    reordered = dict(reversed(body.items()))

    assert len(replies) == 1
    assert replies == {ask(plain, reordered).body}
    assert replies != {ask(plain, {**body, "temperature": 0.6}).body}


def test_the_sdk_understands_it(plain: FakeServer) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=plain.base_url, api_key="any") as client:
        reply = client.chat.completions.create(**structured("Write tasks.", TASKS))

        assert json.loads(reply.choices[0].message.content)["tasks"]
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert [model.id for model in client.models.list()] == ["fake"]


class Instance(BaseModel):
    label: Annotated[str, Field(min_length=1, max_length=40)]
    input: str
    output: str | None


class Task(BaseModel):
    instruction: str
    kind: Literal["classification", "generation"]
    difficult: bool
    score: Annotated[int, Field(ge=1, le=10)]
    weight: Annotated[float, Field(gt=0, lt=1)]
    instances: Annotated[list[Instance], Field(min_length=1, max_length=3)]
    tags: list[Literal["a", "b", "c"]]


class Tree(BaseModel):
    name: str
    left: Tree | None
    children: list[Tree]


@pytest.mark.parametrize("model", [Instance, Task, Tree])
@pytest.mark.parametrize("dirty", [0.0, 0.3])
def test_a_value_keeps_to_its_schema(model: type[BaseModel], dirty: float) -> None:
    written = set()
    for seed in range(60):
        text = json.dumps(Writer(seed, "Write.", dirty).structured(model.model_json_schema()))
        model.model_validate_json(text)
        written.add(text)

    assert len(written) > 50


def test_what_the_writer_can_not_do_is_a_400_and_no_invention(plain: FakeServer) -> None:
    impossible = {"type": "object", "properties": {"when": {"type": "string", "pattern": r"^\d{4}-\d\d$"}}}
    for body in (structured("x", impossible), structured("x", {"$ref": "#/$defs/None"}), chat("x", n=2), b"{", b"[]"):
        seen = ask(plain, body)
        assert seen.status == 400, seen
        assert plain.ledger()[-1]["fault"] == "invalid"
    with pytest.raises(CannotWriteError, match="pattern"):
        Writer(1, "").structured(impossible)


def rouge_l(first: list[str], second: list[str]) -> float:
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for j, other in enumerate(second):
            before, row[j + 1] = row[j + 1], before + 1 if word == other else max(row[j], row[j + 1])
    return 2 * row[-1] / (len(first) + len(second))


@pytest.mark.parametrize("prompt", ["Come up with tasks.", "请想一些任务。"])
def test_most_instructions_are_new_and_some_are_not(prompt: str) -> None:
    chinese = prompt.startswith("请")
    kept: list[list[str]] = []
    for seed in range(250):
        text = Writer(seed, prompt).instruction()
        assert bool(re.search("[\u4e00-\u9fff]", text)) == chinese, text
        words = list(text) if chinese else text.lower().split()
        assert chinese or 5 <= len(words) <= 20, text
        if all(rouge_l(words, other) <= 0.7 for other in kept):
            kept.append(words)

    assert 200 < len(kept) < 250


def test_clean_instructions_hold_no_banned_word_and_dirty_ones_do() -> None:
    banned = re.compile(
        r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b"
        r"|^write a program|^\W|图片|写一个程序|^，",
        re.IGNORECASE,
    )
    for prompt in ("Tasks.", "任务。"):
        assert not any(banned.search(Writer(seed, prompt).instruction()) for seed in range(2000))
        bad = sum(bool(banned.search(Writer(seed, prompt, dirty=0.5).instruction())) for seed in range(2000))
        assert 500 < bad < 1000


def test_dirty_replies_show_every_kind_of_dirt() -> None:
    def kinds(dirty: float) -> set[str]:
        found = set()
        for seed in range(400):
            text, finish = Writer(seed, "Tasks.", dirty).answer(TASKS)
            if finish == "length":
                found.add("cut")
                continue
            if "```json" in text:
                found.add("chatter")
                text = text.split("```json\n")[1].split("\n```")[0]
            tasks = json.loads(text)["tasks"]
            inputs = [task["input"] for task in tasks if task["input"]]
            found |= {"empty output" for task in tasks if not task["output"]}
            found |= {"echo" for task in tasks if task["input"] == task["output"]}
            found |= {"too short" for task in tasks if len(task["instruction"].split()) < 3}
            found |= {"input twice" for _ in range(len(set(inputs)) < len(inputs))}
        return found

    assert kinds(0.0) <= {"input twice"}  # two one-word inputs may meet
    assert kinds(0.1) == {"cut", "chatter", "empty output", "echo", "too short", "input twice"}


def test_quotes_stand_in_the_prompt_and_labels_are_short() -> None:
    source = "Quote this.\n\nTides turn twice a day. The moon pulls at the sea! Nobody pays for it."
    for seed in range(50):
        writer = Writer(seed, source)
        assert writer.named("quote") in source
        assert len(writer.named("label").split()) == 1
        assert 1 <= len(writer.named("answer").split()) <= 40


def test_a_schema_in_the_prompt_is_answered_where_the_server_knows_how(plain: FakeServer, tmp_path: Path) -> None:
    example = '```json\n{"tasks": []}\n```'
    prompt = f"Answer in JSON like {example} by this schema:\n```json\n{json.dumps(TASKS)}\n```\nNothing else."

    with FakeServer(ledger=tmp_path / "ledger.jsonl", schema_in_prompt=True) as server:
        assert json.loads(ask(server, chat(prompt)).content())["tasks"]
        assert not is_json(ask(server, chat(example)).content())
    assert not is_json(ask(plain, chat(prompt)).content())
    assert schema_in_prompt(example) is None
    assert schema_in_prompt("```json\n{nonsense\n```") is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_cuts_and_says_so(plain: FakeServer, name: str) -> None:
    whole_text = ask(plain, structured("Tasks.", TASKS, **{name: 100_000}))
    cut = ask(plain, structured("Tasks.", TASKS, **{name: 5}))

    assert whole_text.choice()["finish_reason"] == "stop"
    assert cut.choice()["finish_reason"] == "length"
    assert len(cut.content()) == 20
    assert cut.json()["usage"]["completion_tokens"] == 5 == plain.ledger()[-1]["completion_tokens"]


# ---------------------------------------------------------------------------------------------------------------------
# What an endpoint does not take


@pytest.mark.parametrize(
    ("refuse", "body", "code", "param", "words"),
    [
        ("json_schema", structured("x", TASKS), None, "response_format", "type 'json_schema' is not supported"),
        ("json_object", chat("x", response_format={"type": "json_object"}), None, "response_format", "'json_object'"),
        ("temperature", chat("x", temperature=0.2), "unsupported_value", "temperature", "does not support 0.2"),
        ("max_tokens", chat("x", max_tokens=9), "unsupported_parameter", "max_tokens", "Use 'max_completion_tokens'"),
        ("seed", chat("x", seed=1), "unsupported_parameter", "seed", "Unsupported parameter: 'seed'"),
    ],
)
def test_a_refused_parameter(
    tmp_path: Path, refuse: str, body: Json, code: str | None, param: str, words: str
) -> None:  # fmt: skip
    with FakeServer(ledger=tmp_path / "ledger.jsonl", refuse=["logit_bias", refuse]) as server:
        seen = ask(server, body)
        assert (seen.status, seen.error()["code"], seen.error()["param"]) == (400, code, param)
        assert words in seen.error()["message"]
        assert ask(server, chat("x", temperature=1, top_p=0.9)).status == 200
        assert [line["fault"] for line in server.ledger()] == ["refuse", None]


def test_key_and_model(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", key="secret", model="m") as server:
        right = {"Authorization": "Bearer secret"}
        assert ask(server, chat("x")).status == 401
        assert ask(server, chat("x"), {"authorization": "Bearer wrong"}).error()["code"] == "invalid_api_key"
        assert ask(server, {**chat("x"), "model": "other"}, right).error()["code"] == "model_not_found"
        assert ask(server, chat("x"), right).status == 200
        assert get(server, "/v1/models")[0] == 401
        assert get(server, "/v1/models", right)[1]["data"][0]["id"] == "m"
        assert get(server, "/v1/nothing", right)[0] == 404
        assert [line["fault"] for line in server.ledger()] == ["key", "key", "model", None]


def test_a_bucket_answers_429_beyond_its_rate(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", rpm_bucket=(0.1, 3)) as server:
        replies = [ask(server, chat("x")) for _ in range(5)]

    assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
    assert 0 < int(replies[-1].headers["retry-after"]) <= 600
    assert 0 < int(replies[-1].headers["retry-after-ms"]) <= 600_000


def test_a_bucket_fills_again() -> None:
    now = [100.0]
    bucket = Bucket(120, 2, clock=lambda: now[0])
    assert [bucket.wait() for _ in range(3)] == [0.0, 0.0, 0.5]
    now[0] += 0.25
    assert bucket.wait() == 0.25
    now[0] += 0.25
    assert [bucket.wait(), bucket.wait()] == [0.0, 0.5]
    now[0] += 60
    assert [bucket.wait() for _ in range(3)] == [0.0, 0.0, 0.5]  # no more than it holds


# ---------------------------------------------------------------------------------------------------------------------
# The ledger and the process


def test_whatever_a_client_has_stands_in_the_ledger(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for i in range(200):
            body = chat(f"request {i} 中 \ud800")
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            usage = json.loads(connection.getresponse().read())["usage"]
            last = server.ledger()[-1]
            assert last == LedgerLine(
                n=i + 1, key=key_of(body), attempt=1, body=body, status=200, fault=None, answered=True,
                prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"],
            )  # fmt: skip
        connection.close()


def test_a_request_that_is_held_stands_there_from_its_arrival_on(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", latency_ms=600_000) as server:
        left = ask(server, chat("impatient"), silences=(0.2, PATIENT))
        assert left.ended == "silent"
        wait_for(server.ledger)
        assert [(line["status"], line["answered"]) for line in server.ledger()] == [(0, False)]
    with FakeServer(ledger=tmp_path / "ledger.jsonl", latency_ms=100) as server:
        started = time.monotonic()
        assert ask(server, chat("patient")).status == 200
        assert time.monotonic() - started >= 0.1
        assert [(line["n"], line["status"], line["answered"]) for line in server.ledger()] == [
            (1, 0, False),
            (2, 200, True),
        ]
        assert server.ledger()[1]["body"] == chat("patient")


def test_latency_is_served_side_by_side(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", latency_ms=600_000) as server, contextlib.ExitStack() as stack:
        for number in range(32):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)))
            connection.request("POST", "/v1/chat/completions", json.dumps(chat(str(number))))
        wait_for(lambda: server.stats()["requests"] == 32)
        assert server.stats()["most_in_flight"] == 32


def test_an_outage_and_a_ledger_that_goes_on(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", ledger_keys_only=True, ledger_fsync=True) as server:
        port = server.port
        ask(server, chat("x"))
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            ask(server, chat("x"))
        server.start()
        ask(server, chat("x"))

        assert server.port == port
        assert [(line["n"], line["attempt"], line["body"]) for line in server.ledger()] == [(1, 1, None), (2, 2, None)]


def test_a_half_written_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"n":1,"key":"a"}\n{"n":2,"ke')
    assert [line["n"] for line in read_ledger(path)] == [1]


def test_keep_alive_pipelines_and_100_continue(plain: FakeServer) -> None:
    body = json.dumps(chat("x")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nEXPECT: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    last = head.replace(b"EXPECT: 100-continue", b"Connection: close")
    with socket.create_connection(("127.0.0.1", plain.port), timeout=5) as connection:
        connection.sendall(head + body + head + body + last + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert received.count(b"HTTP/1.1 100 Continue\r\n\r\n") == 2


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""]
)
def test_what_is_no_request_harms_nobody(plain: FakeServer, sent: bytes) -> None:
    before = len(plain.ledger())
    with socket.create_connection(("127.0.0.1", plain.port), timeout=5) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert b" 200 " not in received
    assert ask(plain, chat("x")).status == 200
    assert len(plain.ledger()) == before + 1


def test_a_bug_of_the_fake_itself_is_loud(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError, match="the fake server itself failed"),
        FakeServer(ledger=tmp_path / "ledger.jsonl") as server,
    ):
        assert ask(server, {"model": "m", "messages": ["no message"]}).status == 0
    assert "AttributeError" in capfd.readouterr().err


def test_an_option_that_there_is_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="did not start, exit code 2"):
        FakeServer(ledger=tmp_path / "ledger.jsonl", latencyms=3).start()
    assert "--latencyms" in capfd.readouterr().err


def dead_within(port: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionError:
            return True
        time.sleep(0.02)
    return False


def test_it_goes_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from tests.fake_server import FakeServer; "
        f"server = FakeServer(ledger=pathlib.Path({str(tmp_path / 'ledger.jsonl')!r})).__enter__(); "
        "print(server.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert not dead_within(port, 0.1)
        os.kill(parent.pid, signal.SIGKILL)
        assert dead_within(port, 60)


def test_it_lives_no_longer_than_it_was_given(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", lifetime_s=0.2) as server:
        assert dead_within(server.port, 60)
