"""Any OpenAI-compatible endpoint: OpenAI, vLLM, llama-server, Ollama, a gateway.

The SDK sends, and nothing else: its retries are off (they pay up to three times), its timeout is no deadline
(`capped` has one), and its parsing is left out, since the raw bytes are what the journal keeps. What a server
refuses (JSON schema, `temperature`, `max_tokens` …) is learned once and left out from then on.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pipeline.errors import EndpointError
from pipeline.llm import ParameterRefused, Reply, Request, RequestFailed

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

REASONING = ("reasoning_content", "reasoning")  # where servers put a model's thinking
# Words by which servers name what they do not take; looked for in a 400's message and `param`.
PARAMETER_WORDS = {
    "json_schema": ("response_format", "json_schema", "guided", "grammar", "structured output", "schema"),
    "json_object": ("response_format", "json_object", "json mode"),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
}


class Endpoint:
    """Speaks `llm.Model`. `deadline_s` bounds a whole call, from connecting to the last byte of the body."""

    reader = "openai"
    is_local = False

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str,
        deadline_s: float = 300.0,
        largest_body: int | None = None,
    ) -> None:
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._deadline_s = deadline_s
        self._largest_body = largest_body  # in bytes; None: what `capped` allows
        self._refused: set[str] = set()
        self._client: AsyncOpenAI | None = None
        self.address = without_secrets(base_url or "https://api.openai.com/v1")

    @property
    def identity(self) -> str:
        return self._model

    def refuse(self, parameters: set[str]) -> None:
        self._refused |= parameters

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    # ---------------------------------------------------------------- one call

    async def complete(self, request: Request) -> Reply:
        import httpx2
        import openai

        from pipeline.backends.capped import TransferFailed

        if self._client is None:
            self._client = self._open()
        body, sent = self._body(request)
        try:
            response = await self._client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response, options={"idempotency_key": "none"}
            )  # no header comes of it, as of the random one that the SDK would draw
        except openai.APIStatusError as error:
            raise self._failure(error, sent) from None
        except TransferFailed as error:  # the SDK lets through what its own transports would not raise
            detail = f"{self.address}: {error}"
            raise RequestFailed(error.outcome, detail, status=error.status, raw=error.part or None) from None
        return parse_reply(response.content)

    def _open(self) -> AsyncOpenAI:
        import httpx2
        import openai

        from pipeline.backends.capped import LARGEST_BODY, CappedTransport

        parts = urlsplit(self._base_url or "")
        query = dict(parse_qsl(parts.query))  # a gateway's version, or its key
        name, password = unquote(parts.username or ""), unquote(parts.password or "")
        in_header = base64.b64encode(f"{name}:{password}".encode()).decode() if password else ""
        transport = CappedTransport(
            deadline_s=self._deadline_s,
            secrets=(self._api_key, password, in_header, *query.values()),
            largest_body=self._largest_body or LARGEST_BODY,
        )
        return openai.AsyncOpenAI(
            api_key=self._api_key,
            base_url=parts._replace(query="", fragment="").geturl() or None,
            default_query=query,
            max_retries=0,
            timeout=None,
            http_client=httpx2.AsyncClient(transport=transport, timeout=None, trust_env=False),
        )

    def _body(self, request: Request) -> tuple[dict[str, Any], set[str]]:
        """The request as negotiated, and which of the parameters that a server may refuse are in it."""
        messages = [{"role": role, "content": content} for role, content in request.messages]
        body: dict[str, Any] = {"model": self._model, "messages": messages}
        sent = {"max_tokens", "temperature", "top_p"} - self._refused
        body["max_tokens" if "max_tokens" in sent else "max_completion_tokens"] = request.max_tokens
        if "temperature" in sent:
            body["temperature"] = request.temperature
        if "top_p" in sent and request.top_p != 1.0:
            body["top_p"] = request.top_p
        if request.schema is not None:
            form = next((f for f in ("json_schema", "json_object") if f not in self._refused), None)
            if form == "json_schema":
                wanted = {"name": "reply", "schema": request.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": wanted}
            else:
                schema = json.dumps(request.schema, ensure_ascii=False)
                messages[-1]["content"] += f"\n\nAnswer with JSON alone, by this schema:\n```json\n{schema}\n```"
                if form == "json_object":
                    body["response_format"] = {"type": "json_object"}
            sent |= {form} if form else set()
        return body | dict(request.extra), sent

    def _failure(self, error: APIStatusError, sent: set[str]) -> Exception:
        """What an HTTP error status means for us; of the server's own words a short line is kept."""
        status, raw = error.status_code, error.response.content
        said = _error_text(error.body) or raw[:200].decode("utf-8", "replace")
        detail = f"{status}: {' '.join(said.split())[:200]}"
        if status in (401, 403):
            return EndpointError(f"{self.address} refused the key ({detail}).")
        if status == 404:
            return EndpointError(
                f"{self.address} does not know the model {self._model!r}, or --base-url lacks its /v1 ({detail})."
            )
        if status == 429 and "insufficient_quota" in said:
            return EndpointError(f"{self.address}: the account's quota is used up ({detail}).")
        if status in (400, 422):
            parameter = _refused_parameter(said, sent)
            if parameter is not None:
                self._refused.add(parameter)
                return ParameterRefused(parameter, detail, status=status, raw=raw)
            return RequestFailed("bad_request", detail, status=status, worth_retrying=False, raw=raw)
        retry_after = parse_retry_after(error.response.headers) if status in (429, 503) else None
        outcome = {429: "rate_limit", 408: "timeout", 409: "conflict"}.get(status)
        if outcome is None:
            outcome = "server_error" if status >= 500 else "bad_request"
        return RequestFailed(
            outcome, detail, status=status, worth_retrying=outcome != "bad_request", retry_after=retry_after, raw=raw
        )


# ---------------------------------------------------------------- reading what came back


def parse_reply(raw: bytes) -> Reply:
    """A chat completion's bytes as a Reply; the one way to read them, on arrival and from the journal.

    Raises RequestFailed("malformed_reply") where they are no chat completion: an HTML page, cut JSON, no choices.
    A refusal, a content filter and an empty answer are replies: they have a finish reason and were paid for.
    """
    flaws: list[str] = []
    try:
        body = _load(raw, flaws)
        choice = body["choices"][0]
        message = choice["message"]
        text = _said(message.get("content"))
        refusal = message.get("refusal")
        finish_reason = choice.get("finish_reason") or "stop"
        usage = body.get("usage") or {}
        tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        start = raw[:80].decode("utf-8", "replace")
        raise RequestFailed("malformed_reply", f"not a chat completion: {start!r}", status=200, raw=raw) from error
    if None in tokens:
        flaws.append("no_usage")
    if finish_reason in ("length", "content_filter", "tool_calls"):
        flaws.append(finish_reason)
    if refusal and not text:
        text, finish_reason = str(refusal), "refusal"
        flaws.append("refusal")
    elif not isinstance(text, str) or not text.strip():
        thought = any(message.get(name) for name in REASONING) or _thought(message.get("content"), usage)
        flaws.append("reasoning_only" if thought else "empty_reply")
    return Reply(
        text=text if isinstance(text, str) else "",
        finish_reason=str(finish_reason),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        raw=raw,
        flaws=tuple(flaws),
    )


def _said(content: object) -> object:
    """A message's text; some servers hold it in parts, the thinking apart from what is said."""
    if not isinstance(content, list):
        return content
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _thought(content: object, usage: Mapping[str, object]) -> bool:
    """Whether there was thinking: a part of the content, or a count of tokens that nobody is shown."""
    details = usage.get("completion_tokens_details")
    tokens = details.get("reasoning_tokens") if isinstance(details, dict) else None
    parts = content if isinstance(content, list) else []
    return bool(_count(tokens)) or any(isinstance(part, dict) and part.get("type") == "thinking" for part in parts)


def _load(raw: bytes, flaws: list[str]) -> Any:
    """The JSON value, with what it should not hold noted: a key twice (the last one counts), NaN and its kin."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items) and "duplicate_keys" not in flaws:
            flaws.append("duplicate_keys")
        return found

    def constant(name: str) -> float:
        if "nan" not in flaws:
            flaws.append("nan")
        return float(name.replace("Infinity", "inf"))

    return json.loads(raw, object_pairs_hook=pairs, parse_constant=constant)


def parse_retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or a date), at least 0; `pace` caps them."""
    for name, seconds_each in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * seconds_each
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - now()
            except (ValueError, OverflowError):
                continue
        if seconds == seconds:  # not NaN
            return max(seconds, 0.0)
    return None


def without_secrets(url: str) -> str:
    """The address without user name, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no address, so nothing of it is safe to show
        return "(no address)"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _refused_parameter(said: str, sent: set[str]) -> str | None:
    """Which of the parameters we sent a server's complaint is about, by the words it uses."""
    complaint = said.lower()
    for parameter, words in PARAMETER_WORDS.items():
        if parameter in sent and any(word in complaint for word in words):
            return parameter
    return None


def _error_text(body: object) -> str:
    """The server's own words in an error body: OpenAI's shape ({"error": {"message": …}}), or any JSON."""
    if not isinstance(body, Mapping):
        return ""
    error = body.get("error", body)  # the SDK may hand over the inner object
    if not isinstance(error, Mapping):
        return str(error)
    return " ".join(str(error[name]) for name in ("message", "code", "param", "detail") if error.get(name))


def _count(value: object) -> int | None:
    """A token count as a server gave it: None where it is missing, negative, or no whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
