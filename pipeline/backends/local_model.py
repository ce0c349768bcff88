"""The model in this process: the bundled one, a directory, an adapter, or a GGUF file.

    model = LocalModel.bundled()
    reply = await model.complete(Request((("user", "Name three fruits."),), max_tokens=64))

Finding a model costs milliseconds and no torch; the weights are loaded, by the one thread that uses them, when
the first request comes. So a finished run replays from its journal without ever loading them. Requests that are
under way together decode together (`continuous_batch`).
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends import weights as local_weights
from pipeline.backends.chat_template import render_chat
from pipeline.errors import EndpointError, UsageError
from pipeline.llm import Reply, Request, RequestFailed, canonical_json
from pipeline.text import one_line

if TYPE_CHECKING:
    from pipeline.backends.continuous_batch import ContinuousBatch, Row

DEFAULT_BATCH = 32
PREFILLS_A_STEP = 4  # prompts read between two tokens of the rest, so that a burst of long ones holds nobody up
CACHE_BYTES = 4 * 2**30  # keys and values of all rows together; on a GPU, half of what is free instead


class LocalModel:
    """Speaks `llm.Model`. Any number of `complete` calls may be under way; up to `batch` decode together."""

    reader = "local"
    is_local = True

    def __init__(self, weights: local_weights.Weights, *, batch: int = DEFAULT_BATCH) -> None:
        if batch < 1:
            raise UsageError(f"batch is {batch}, but at least one request must fit in")
        local_weights.prepare_process()  # now, before anything else in this process imports torch
        self._weights = weights
        self._batch = batch
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: close
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._end: BaseException | None = None  # why nothing is taken any more

    @classmethod
    def bundled(cls, *, batch: int = DEFAULT_BATCH) -> LocalModel:
        """The packaged SmolLM2-135M-Instruct: there so that everything runs, not to write good data."""
        return cls(local_weights.bundled(), batch=batch)

    @classmethod
    def from_directory(cls, path: str | Path, *, batch: int = DEFAULT_BATCH) -> LocalModel:
        """A transformers model directory, a PEFT adapter directory, or a .gguf file.

        :raises UsageError: with one sentence that says what the path lacks.
        """
        return cls(local_weights.find(path), batch=batch)

    @property
    def identity(self) -> str:
        """A hash of the weights (and adapter) by content, wherever they lie."""
        return self._weights.identity

    @property
    def address(self) -> str:
        """Nowhere on a network, and no path either: the journal keeps this."""
        return "in process"

    def refuse(self, parameters: set[str]) -> None:
        """Nothing to learn: a model in process takes every parameter there is."""

    async def complete(self, request: Request) -> Reply:
        """Answer one request. Cancelling the call frees its place in the batch at the next token.

        :raises RequestFailed: if the model cannot take this request's schema or messages.
        :raises EndpointError: if the model cannot be loaded.
        """
        job = _Job(request)
        with self._lock:
            if self._end is not None:
                raise self._end
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="local-model", daemon=True)
                self._thread.start()
            self._inbox.put(job)
        return await asyncio.wrap_future(job.future)

    async def close(self) -> None:
        """Stop the thread and let go of the weights. Requests still under way are cancelled."""
        with self._lock:
            self._end = self._end or RuntimeError("this model was closed")
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(thread.join)

    # ------------------------------------------------------------------------------------------------------------
    # The worker thread

    def _work(self) -> None:
        """Load the model, then serve until closed. Whatever goes wrong here is told to every request, never lost."""
        jobs: list[_Job] = []  # every request taken from the inbox and not answered yet
        try:
            engine = _Engine(self._weights, self._batch)
            while self._serve_once(engine, jobs):
                pass
        except UsageError as error:
            self._fail(jobs, EndpointError(str(error)))
        except BaseException as error:  # noqa: BLE001  # a panic in Rust is no Exception, and must not leave callers waiting
            self._fail(jobs, error)

    def _fail(self, jobs: list[_Job], error: BaseException) -> None:
        with self._lock:  # from here on nothing enters the inbox
            self._end = error
        while not self._inbox.empty():
            if (job := self._inbox.get()) is not None:
                jobs.append(job)
        for job in jobs:
            job.fail(error)

    def _serve_once(self, engine: _Engine, jobs: list[_Job]) -> bool:
        """One round: take in what came, fill the batch, say one token in each row, answer who is done."""
        while not jobs or not self._inbox.empty():
            if (job := self._inbox.get()) is None:  # with nothing to do, this waits
                for unanswered in jobs:
                    unanswered.future.cancel()
                return False
            jobs.append(job)
        jobs[:] = engine.advance(jobs)
        return True


class _Job:
    """A request and the promise of its reply. `row` is made once, and `started` when it enters the batch."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.future: Future[Reply] = Future()
        self.row: Row | None = None
        self.started = False

    def answer(self, reply: Reply) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():  # it may be cancelled this instant
            self.future.set_result(reply)

    def fail(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Engine:
    """The loaded model. Lives and dies in the worker thread."""

    def __init__(self, weights: local_weights.Weights, batch: int) -> None:
        import torch

        torch.set_num_threads(_cores())
        self._identity = weights.identity
        self._model, self._tokenizer = local_weights.load(weights)
        from pipeline.backends.continuous_batch import ContinuousBatch, can_batch

        config = self._model.config.get_text_config(decoder=True)
        if not can_batch(self._model):
            raise UsageError(
                f"{weights.path}: a {config.model_type} keeps a recurrent state, which is not supported in process; "
                "serve it and name it with --base-url"
            )
        self._window: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        self._stop_ids = _stop_ids(self._model, self._tokenizer)
        on_gpu = self._model.device.type == "cuda"
        cache_bytes = torch.cuda.mem_get_info()[0] // 2 if on_gpu else CACHE_BYTES
        self._rows: ContinuousBatch = ContinuousBatch(self._model, self._stop_ids, size=batch, cache_bytes=cache_bytes)
        self._grammars: Any = None

    def advance(self, jobs: list[_Job]) -> list[_Job]:
        """Bring every job one token further, as many as fit in; returns those not answered yet."""
        for job in jobs:
            if job.row is not None and job.future.cancelled():
                job.row.finish_reason = "dropped"
        jobs = [job for job in jobs if not job.future.cancelled()]
        for job in [job for job in jobs if not job.started][:PREFILLS_A_STEP]:
            if not self._start(job):
                break
        self._rows.step()
        for job in jobs:
            if job.row is not None and job.row.finish_reason is not None:
                text = self._tokenizer.decode(
                    job.row.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                stopped = job.row.finish_reason == "stop"
                job.answer(_reply(text, job.row.finish_reason, len(job.row.prompt), len(job.row.tokens) + stopped))
        return [job for job in jobs if not job.future.done()]

    def _start(self, job: _Job) -> bool:
        """Let a job into the batch, or answer it at once where that is impossible. False: no room for it now."""
        try:
            row = job.row = job.row or self._row(job.request)
        except RequestFailed as failure:
            job.fail(failure)
            return True
        if row.max_tokens < 1:  # the prompt leaves no room for a reply
            job.answer(_reply("", "length", len(row.prompt), 0))
            return True
        if not self._rows.has_room_for(row):
            return False
        self._rows.add(row)
        job.started = True
        return True

    def _row(self, request: Request) -> Row:
        import jinja2

        from pipeline.backends.continuous_batch import Row

        unknown = sorted(set(request.extra) - {"chat_template_kwargs"})
        if unknown:
            raise _refusal(f"a model in process knows no {unknown[0]!r}, only 'chat_template_kwargs'")
        options = request.extra.get("chat_template_kwargs")
        try:
            prompt = render_chat(self._tokenizer, request.messages, template_options=options)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise _refusal(f"the model's chat template does not take these messages: {one_line(str(error))}") from error
        room = request.max_tokens if self._window is None else self._window - len(prompt)
        return Row(
            prompt=prompt,
            max_tokens=min(request.max_tokens, room),
            temperature=request.temperature,
            top_p=request.top_p,
            # Its own numbers, seeded by the request: the same reply whoever else is being answered (but for bf16).
            rng=random.Random(request.body(self._identity)),
            matcher=self._matcher(request),
        )

    def _matcher(self, request: Request) -> Any:
        """What holds a reply to the request's schema, or None."""
        if request.schema is None:
            return None
        try:
            import xgrammar
        except ImportError as error:
            raise EndpointError("holding a reply to a schema needs xgrammar: pip install xgrammar") from error
        if self._grammars is None:
            info = xgrammar.TokenizerInfo.from_huggingface(
                self._tokenizer, vocab_size=self._vocabulary, stop_token_ids=sorted(self._stop_ids)
            )
            self._grammars = xgrammar.GrammarCompiler(info, max_threads=_cores())  # caches by schema
        try:
            # No free whitespace: a small model given the choice fills its reply with blanks.
            grammar = self._grammars.compile_json_schema(json.dumps(request.schema), any_whitespace=False)
        except RuntimeError as error:
            raise _refusal(f"xgrammar cannot follow the schema: {one_line(str(error))}") from error
        return xgrammar.GrammarMatcher(grammar)


def _cores() -> int:
    """The cores this process may use, which in a container are fewer than there are (macOS cannot say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refusal(detail: str) -> RequestFailed:
    return RequestFailed("bad_request", detail, worth_retrying=False)


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None)


# ----------------------------------------------------------------------------------------------------------------
# The reply


def _reply(text: str, finish_reason: str, prompt_tokens: int, completion_tokens: int) -> Reply:
    raw = {
        "text": text,
        "finish_reason": finish_reason,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }
    return parse_reply(canonical_json(raw))


def parse_reply(raw: bytes) -> Reply:
    """A reply from its exact bytes: fresh ones and those replayed from a journal are made here alike."""
    body = json.loads(raw)
    return Reply(
        text=body["text"],
        finish_reason=body["finish_reason"],
        prompt_tokens=body["prompt_tokens"],
        completion_tokens=body["completion_tokens"],
        raw=raw,
    )
