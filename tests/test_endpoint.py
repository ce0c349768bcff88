"""One call against every fault that the fake server knows, over real sockets: a class each, never a traceback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.backends.capped import LARGEST_BODY
from pipeline.backends.endpoint import Endpoint, parse_reply, parse_retry_after, without_secrets
from pipeline.errors import EndpointError
from pipeline.llm import Reply, Request, RequestFailed
from tests.fake_server import FAULTS, ROOT, FakeServer

DEADLINE_S = 60.0  # far beyond what any call takes here; only where a call must run into it, it is short
SHORT_DEADLINE_S = 0.5
KEY = "sk-CANARY-0123456789"
REQUEST = Request((("user", "Write a sentence about rivers."),), max_tokens=200)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


async def call(server: FakeServer, request: Request = REQUEST, deadline_s: float = DEADLINE_S) -> Reply:
    endpoint = Endpoint("fake", base_url=server.base_url, api_key=KEY, deadline_s=deadline_s)
    try:
        return await endpoint.complete(request)
    finally:
        await endpoint.close()


def try_call(tmp_path: Path, fault: dict[str, Any], request: Request = REQUEST, deadline_s: float = DEADLINE_S) -> Any:
    """What a call comes to under a fault: its Reply, or the exception."""
    with FakeServer(ledger=tmp_path / "ledger.jsonl", plan=[fault]) as server:
        try:
            return asyncio.run(asyncio.wait_for(call(server, request, deadline_s), 2 * DEADLINE_S))
        except (RequestFailed, EndpointError) as error:
            return error


# ---------------------------------------------------------------- every fault has a class

# fault -> the class of failure ("rate_limit" …), "stops" for what stops the run, or the flaws of a reply
CLASSES: list[tuple[dict[str, Any], str | tuple[str, ...]]] = [
    ({"fault": "rate_limit"}, "rate_limit"),
    ({"fault": "rate_limit", "retry_after": 3}, "rate_limit"),
    ({"fault": "quota"}, "stops"),
    ({"fault": "server_error"}, "server_error"),
    ({"fault": "server_error", "status": 503}, "server_error"),
    ({"fault": "unauthorized"}, "stops"),
    ({"fault": "forbidden"}, "stops"),
    ({"fault": "model_not_found"}, "stops"),
    ({"fault": "bad_request"}, "bad_request"),
    ({"fault": "html_page"}, "malformed_reply"),
    ({"fault": "html_page", "status": 502}, "server_error"),
    ({"fault": "delay", "seconds": 0.1}, ()),
    ({"fault": "delay", "seconds": 30}, "timeout"),
    ({"fault": "hang_before_headers"}, "timeout"),
    ({"fault": "hang_after_headers"}, "timeout"),
    ({"fault": "slow_drip"}, "timeout"),
    ({"fault": "slow_drip", "headers_too": True}, "timeout"),
    ({"fault": "cut_body"}, "connection"),
    ({"fault": "reset"}, "connection"),
    ({"fault": "reset", "before_headers": True}, "connection"),
    ({"fault": "wrong_length"}, "connection"),
    ({"fault": "endless_body"}, "too_large"),
    ({"fault": "gzip_bomb", "unpacked_mb": 64}, "too_large"),
    ({"fault": "garbage_json"}, "malformed_reply"),
    ({"fault": "garbage_json", "inside": True}, ()),  # the text is the parser's to judge
    ({"fault": "duplicate_keys"}, ("duplicate_keys",)),
    ({"fault": "nan"}, ("nan", "no_usage")),
    ({"fault": "nan", "where": "logprobs"}, ("nan",)),
    ({"fault": "refusal"}, ("refusal",)),
    ({"fault": "content_filter"}, ("content_filter", "empty_reply")),
    ({"fault": "length"}, ("length",)),
    ({"fault": "empty_choices"}, "malformed_reply"),
    ({"fault": "missing_choices"}, "malformed_reply"),
    ({"fault": "null_content"}, ("empty_reply",)),
    ({"fault": "reasoning_only"}, ("reasoning_only",)),
    ({"fault": "think_block"}, ()),
    ({"fault": "tool_calls"}, ("tool_calls", "empty_reply")),
    ({"fault": "missing_usage"}, ("no_usage",)),
    ({"fault": "negative_usage"}, ("no_usage",)),
]  # fmt: skip


def test_every_fault_of_the_fake_server_is_in_the_table() -> None:
    assert {fault["fault"] for fault, _ in CLASSES} == set(FAULTS)


@pytest.mark.parametrize(
    ("fault", "expected"), CLASSES, ids=lambda value: "-".join(map(str, getattr(value, "values", list)()))
)
def test_each_fault_is_a_class(tmp_path: Path, fault: dict[str, Any], expected: str | tuple[str, ...]) -> None:
    """A call that its deadline did not end would hang for as long as the server holds it, which is ten minutes."""
    found = try_call(tmp_path, fault, deadline_s=SHORT_DEADLINE_S if expected == "timeout" else DEADLINE_S)
    if isinstance(found, EndpointError):
        assert expected == "stops"
        assert KEY not in str(found)
    elif isinstance(found, RequestFailed):
        assert found.outcome == expected
        assert found.worth_retrying is (expected != "bad_request")
    else:
        assert found.flaws == expected
        assert parse_reply(found.raw) == found
        if "no_usage" in found.flaws:
            assert None in (found.prompt_tokens, found.completion_tokens)


@pytest.mark.parametrize("fault", ["cut_body", "reset", "html_page", "garbage_json", "empty_choices", "server_error"])
def test_what_the_server_said_is_kept_also_where_it_cannot_be_read(tmp_path: Path, fault: str) -> None:
    found = try_call(tmp_path, {"fault": fault})
    assert found.raw
    starts = {"html_page": b"<!DOCTYPE html>", "server_error": b'{"error"'}
    assert found.raw.startswith(starts.get(fault, b'{"id": "chatcmpl-'))


def test_a_server_that_is_not_there_is_unreachable_at_once(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        pass
    with pytest.raises(RequestFailed) as caught:
        asyncio.run(call(server))
    assert caught.value.outcome == "unreachable"


@pytest.mark.parametrize(
    ("message", "usage", "text", "flaws"),
    [
        ({"content": [{"type": "text", "text": "Blue"}, {"type": "text", "text": "."}]}, {}, "Blue.", ()),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Red."}]}, {}, "Red.", ()),
        ({"content": [{"type": "thinking", "thinking": [{"text": "Hm"}]}]}, {}, "", ("reasoning_only",)),
        ({"content": [{"type": "image_url"}, 7, {"text": None}]}, {}, "", ("empty_reply",)),
        ({"content": ""}, {"completion_tokens_details": {"reasoning_tokens": 64}}, "", ("reasoning_only",)),
        ({"content": ""}, {"completion_tokens_details": {"reasoning_tokens": 0}}, "", ("empty_reply",)),
        ({"content": ""}, {"completion_tokens_details": 64}, "", ("empty_reply",)),
    ],
)
def test_a_text_in_parts_and_thinking_that_nobody_is_shown(message: Any, usage: Any, text: str, flaws: Any) -> None:
    counted = {"prompt_tokens": 1, "completion_tokens": 64} | usage
    reply = parse_reply(json.dumps({"choices": [{"message": message}], "usage": counted}).encode())
    assert (reply.text, reply.flaws) == (text, flaws)


# ---------------------------------------------------------------- time and memory are bounded

BOMB = """
import asyncio, sys
from pathlib import Path
from pipeline.backends.endpoint import Endpoint
from pipeline.llm import Request, RequestFailed

async def ask():
    endpoint = Endpoint("fake", base_url=sys.argv[1], api_key="none", deadline_s=60.0)
    try:
        await endpoint.complete(Request((("user", "a bomb, please"),), max_tokens=9))
    except RequestFailed as error:
        print(error.outcome)
    await endpoint.close()

asyncio.run(ask())
# VmHWM begins at exec; ru_maxrss still holds what the parent had when it forked
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "gzip_bomb", "unpacked_mb": 384},
        pytest.param({"fault": "gzip_bomb", "unpacked_mb": 1536}, marks=pytest.mark.slow),
        {"fault": "endless_body"},
    ],
    ids=str,
)
def test_a_bomb_ends_by_its_cap_and_in_little_memory(tmp_path: Path, fault: dict[str, Any]) -> None:
    """The SDK alone unpacks the second one into 1.5 GB. What ends by the cap has not come to its deadline."""
    with FakeServer(ledger=tmp_path / "ledger.jsonl", plan=[fault]) as server:
        command = [sys.executable, "-c", BOMB, server.base_url]
        run = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300, cwd=ROOT, text=True)
    outcome, megabytes = run.stdout.splitlines()
    assert outcome == "too_large"
    assert int(megabytes) < 100 + 4 * (LARGEST_BODY >> 20)  # a bare interpreter with the SDK has 80


async def test_the_cap_is_on_what_arrives_and_on_what_it_unpacks_to(tmp_path: Path) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", plan=[{"fault": "gzip_bomb", "unpacked_mb": 1}]) as server:
        for cap, fits in ((2 * 2**20, True), (2**20, False)):
            endpoint = Endpoint("fake", base_url=server.base_url, api_key=KEY, largest_body=cap)
            try:
                if fits:
                    assert (await endpoint.complete(REQUEST)).text
                else:
                    with pytest.raises(RequestFailed, match="larger than 1 MB"):
                        await endpoint.complete(REQUEST)
            finally:
                await endpoint.close()


# ---------------------------------------------------------------- keys stay out


@pytest.mark.parametrize("fault", [{"fault": "bad_request", "message": f"Your key {KEY} is odd."},
                                   {"fault": "content_filter", "content": f"{KEY} is a key"}])  # fmt: skip
def test_a_server_that_echoes_the_key_cannot_get_it_stored(tmp_path: Path, fault: dict[str, Any]) -> None:
    found = try_call(tmp_path, fault)
    assert KEY.encode() not in (found.raw or b"")
    assert b"***" in found.raw
    assert KEY not in str(found)


async def answered_with(body: bytes, *, key: str, userinfo: str = "") -> RequestFailed:
    """What a call comes to whose server answers 400 with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = Endpoint("fake", base_url=f"http://{userinfo}127.0.0.1:{port}/v1", api_key=key, deadline_s=DEADLINE_S)
    async with server:
        with pytest.raises(RequestFailed) as caught:
            await endpoint.complete(REQUEST)
        await endpoint.close()
    return caught.value


ODD_KEY = 'bed/rock+key"CANARY=='
SPELLINGS = {
    "as it is": ODD_KEY.encode(),
    "in JSON": json.dumps({"error": {"message": f"Your key {ODD_KEY} is odd."}}).encode(),
    "as PHP writes JSON": b'{"error": {"message": "bed\\/rock+key\\"CANARY=="}}',
    "as Java writes JSON": b'{"error": {"message": "bed/rock\\u002bkey\\u0022CANARY\\u003D\\u003d"}}',
    "in an address": b'{"error": {"message": "bed%2Frock%2bkey%22CANARY%3D%3D"}}',
}


@pytest.mark.parametrize("spelt", SPELLINGS)
async def test_a_key_is_known_however_a_server_spells_it(spelt: str) -> None:
    failure = await answered_with(SPELLINGS[spelt], key=ODD_KEY)
    assert b"***" in failure.raw  # type: ignore[operator]
    assert b"CANARY" not in failure.raw  # type: ignore[operator]
    assert "CANARY" not in str(failure)


@pytest.mark.parametrize(
    "said", [b"You sent p@ss-CANARY!", b"You sent p%40ss-CANARY%21", b"Basic bWU6cEBzcy1DQU5BUlkh"]
)
async def test_a_password_is_known_as_it_was_typed_as_it_is_and_in_its_header(said: bytes) -> None:
    failure = await answered_with(said, key="any", userinfo="me:p%40ss-CANARY%21@")
    assert b"CANARY" not in failure.raw  # type: ignore[operator]
    assert b"bWU6" not in failure.raw  # type: ignore[operator]
    assert "CANARY" not in str(failure)


def test_a_password_in_the_address_is_used_and_not_shown() -> None:
    assert without_secrets("https://me:secret@host:8/v1?key=secret#x") == "https://host:8/v1"
    assert Endpoint("m", base_url="https://me:secret@host/v1", api_key="k").address == "https://host/v1"


# ---------------------------------------------------------------- negotiation


@pytest.mark.parametrize(
    ("refused", "learned"),
    [(["json_schema"], ["json_schema"]), (["json_schema", "json_object"], ["json_schema", "json_object"]),
     (["temperature", "max_tokens"], ["temperature", "max_tokens"])],
)  # fmt: skip
async def test_what_a_server_refuses_is_learned_once(tmp_path: Path, refused: list[str], learned: list[str]) -> None:
    request = Request((("user", "Write one."),), max_tokens=60, schema=SCHEMA)
    with FakeServer(ledger=tmp_path / "ledger.jsonl", refuse=refused, schema_in_prompt=True) as server:
        endpoint = Endpoint("fake", base_url=server.base_url, api_key=KEY)
        found: list[str] = []
        while True:
            try:
                await endpoint.complete(request)
                break
            except RequestFailed as error:
                found.append(error.parameter)  # type: ignore[attr-defined]
        reply = await endpoint.complete(request)
        await endpoint.close()
        assert sorted(found) == sorted(learned)
        assert [line["status"] for line in server.ledger()] == [400] * len(learned) + [200, 200]
    assert "a" in json.loads(reply.text[reply.text.index("{") : reply.text.rindex("}") + 1])


# ---------------------------------------------------------------- Retry-After

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    clock: Callable[[], float] = lambda: NOW  # noqa: E731
    assert parse_retry_after(headers, clock) == seconds
