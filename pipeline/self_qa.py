"""Self-QA: from documents to question/answer records that quote their source (Zhang and Yang 2023).

    python -m pipeline.self_qa docs/
    python -m pipeline.self_qa manual.pdf "notes/*.md" --model gpt-4o-mini --per-chunk 8
    python -m pipeline.self_qa docs/ --mode open --distractors 3
    python -m pipeline.self_qa apis.jsonl --mode api

A document becomes chunks. A chunk is asked once for questions that stand alone, then once for each question: the
sentences that hold the answer, and the answer. A quote is kept where the chunk holds it, with its place; an answer
without one, or with numbers, names or units of the model's own, is turned away. docs/self-qa.md is the guide.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import cache
from pipeline.ask import Ask
from pipeline.cli import run_command
from pipeline.errors import UsageError
from pipeline.filtering import Candidate
from pipeline.llm import Reply, Request
from pipeline.money import Expected, Plan, plan_of
from pipeline.parsing import Unreadable, read_items, read_value
from pipeline.prompts import Prompts
from pipeline.reading.api_calls import Description, objection_to, read_descriptions
from pipeline.reading.blocks import Document
from pipeline.reading.chunks import Chunk, chunk_document
from pipeline.reading.corpus import Corpus
from pipeline.reading.documents import guessed_encodings, read_documents, said_of_guesses
from pipeline.reading.extraction import KIND, Extractor
from pipeline.records import DocumentSource, Neighbour, Quote, Record, Rejection, Stage, content_id, make_record
from pipeline.run import Made, Outlook
from pipeline.self_qa_examples import DECLINES
from pipeline.self_qa_requests import (
    SHORTEST_QUESTION,
    RequestWriter,
    evidence_of,
    find_quotes,
    questions_wanted,
    read_style,
)
from pipeline.settings import GeneratorSettings, setting
from pipeline.text import count_words, estimate_tokens, one_line, replace_surrogates

SHAPING_VERSION = 4  # of the code that extracts, chunks and builds prompts
MAX_TOKENS, MAX_TOKENS_BUNDLED = 1024, 320  # of a reply
QUESTION_TOKENS, ANSWER_TOKENS, KEPT_OF_ASKED = 20, 120, 0.7  # for --plan: what replies usually take and bring
LANGUAGES = ("en", "zh")


class SelfQASettings(GeneratorSettings):
    """The shared settings, and Self-QA's own."""

    paths: tuple[Path, ...] = setting((), "running", "folders, files or globs to read", metavar="PATH", positional=True)
    out: Path = setting(Path("outputs/self_qa"), "running", "the run folder", metavar="DIR")
    per_chunk: int = setting(5, "shaping", "questions asked of a chunk, at most", gt=0, le=30)
    chunk_tokens: int = setting(400, "shaping", "tokens of a chunk, at most", ge=40, le=20_000)
    overlap: int = setting(40, "shaping", "tokens taken along from the chunk before, at most", ge=0, le=2_000)
    style: Path | None = setting(None, "running", "how to write the answers: tone, length, wording", metavar="FILE")
    mode: Literal["closed", "open", "refuse", "api"] = setting(
        "closed", "deriving", "answers; answers with their passage in `input`; declining; calls of described APIs"
    )
    distractors: int = setting(0, "deriving", "mode open: other passages put around the right one", ge=0, le=20)
    without_passage: float = setting(0.2, "deriving", "mode open: share that gets distractors alone", ge=0, le=1)
    strict: bool = setting(False, "running", "stop at the first file that cannot be read")


class SelfQA:
    """A `run.Generator` whose items are the chunks of the documents."""

    name = "self_qa"
    at_its_end = "every passage has been asked about"

    def __init__(self, settings: SelfQASettings, leave_out: Collection[str] = (), folder: Path | None = None) -> None:
        """`leave_out` names documents that are not read, as records name them; the cache lies in `folder`, or --out."""
        self._settings, self._leave_out = settings, leave_out
        self._cache = (folder or settings.out) / cache.NAME
        self.passed_over: frozenset[str] = frozenset()  # ids of chunks that are not asked
        manner = settings.manner(MAX_TOKENS, MAX_TOKENS_BUNDLED)
        languages = LANGUAGES if settings.language == "auto" else (settings.language,)
        self._prompts = {language: Prompts(language, settings.prompts) for language in languages}
        self._styles = {language: read_style(settings.style, language) for language in languages}
        self._writer = RequestWriter(
            self._prompts,
            self._styles,
            mode=settings.mode,
            by_sentence=settings.model is None,
            per_chunk=settings.per_chunk,
            manner=manner,
        )
        self.shaping: dict[str, Any] = {
            "max_tokens": manner.max_tokens,
            "templates": {
                language: prompts.hashes(*self._writer.templates) for language, prompts in self._prompts.items()
            },
            "style": self._styles if settings.mode in ("closed", "open") else {},
            "code": SHAPING_VERSION,
        }
        self._fresh_texts: dict[bytes, bytes] = {}  # out of files that no earlier run on this folder has read
        self._rejected: list[Rejection] = []
        self._documents: list[Document] = []
        self._chunks: list[Chunk] = []
        self._judged_from: dict[tuple[str, str], list[int]] = {}  # (document, chunk): [kept, judged]
        self._recalled: dict[str, list[Request]] = {}  # chunk id -> its answers' requests, if its questions are stored
        self._described: dict[str, Mapping[str, Any]] = {}  # mode api: chunk id -> the description's fields
        self._read()
        self._corpus = Corpus(self._chunks) if settings.mode in ("open", "refuse") else None

    def _read(self) -> None:
        """Take in what the paths hold: documents, or the descriptions of APIs."""
        paths, name, leave_out = self._settings.paths, self.name, self._leave_out
        language = self._settings.language
        with Extractor(cache=self._cache) as extractor:
            if self._settings.mode == "api":
                self._take(read_descriptions(paths, generator=name, leave_out=leave_out))
            else:
                self._take(
                    read_documents(paths, generator=name, extractor=extractor, language=language, leave_out=leave_out)
                )
        self._fresh_texts = extractor.fresh

    def _take(self, entries: Iterable[Document | Description | Rejection]) -> None:
        settings = self._settings
        for entry in entries:
            if isinstance(entry, Document):
                self._documents.append(entry)
                self._chunks += chunk_document(entry, tokens=settings.chunk_tokens, overlap=settings.overlap)
            elif isinstance(entry, Description):
                self._documents.append(entry.document)
                self._chunks.append(entry.chunk)
                self._described[entry.chunk.id] = entry.fields
            elif settings.strict:
                raise UsageError(f"--strict: {entry.reason}")
            else:
                self._rejected.append(entry)

    # ---------------------------------------------------------------- items

    async def items(self, ask: Ask, outlook: Outlook) -> AsyncIterator[Chunk | Rejection]:
        """The files that could not be read, then the chunks in an order that spreads a small target over them all."""
        if self._fresh_texts:  # only now is the folder there, and ours
            with cache.Cache(self._cache) as texts:
                texts.put(KIND, self._fresh_texts)
            self._fresh_texts = {}
        for rejection in self._rejected:
            yield rejection.model_copy(update={"model": ask.model.identity})
        for chunk in self._in_order():
            yield chunk

    @property
    def live(self) -> set[str]:
        """The ids of all chunks there are."""
        return {chunk.id for chunk in self._chunks}

    @property
    def chunks(self) -> dict[str, Chunk]:
        """All chunks by id; of equal ones the first."""
        return {chunk.id: chunk for chunk in reversed(self._chunks)}

    def _in_order(self) -> list[Chunk]:
        seed = str(self._settings.seed)
        wanted = (chunk for chunk in self._chunks if chunk.id not in self.passed_over)
        return sorted(wanted, key=lambda c: (content_id(seed, c.id), c.document, c.start))

    async def make(self, item: Chunk, ask: Ask) -> Made:
        """The chunk's candidates: questions first, then each one's answer from the same text."""
        trail = Trail(item, self._language(item), ask)
        try:
            questions = await self._questions(trail)
        except Unreadable as unreadable:
            return [self._unreadable(trail, unreadable)]
        # Gathered with their exceptions, so that none is left running behind a stop.
        served = (self._serve(trail, question, sentence) for question, sentence in questions.items())
        made = await asyncio.gather(*served, return_exceptions=True)
        entries: Made = []
        for some in made:
            if isinstance(some, BaseException):
                raise some
            entries += some
        return entries or [self._rejection(trail, "reply", "no_questions", "the reply holds no question")]

    async def _serve(self, trail: Trail, question: str, sentence: str) -> Made:
        if count_words(question) <= SHORTEST_QUESTION:
            reason = f"{question[:60]!r} is no question: {SHORTEST_QUESTION} words or fewer"
            return [self._rejection(trail, "instruction", "no_question", reason, instruction=question)]
        if self._settings.mode in ("refuse", "api"):
            return await (self._decline if self._settings.mode == "refuse" else self._call)(trail, question)
        return await self._answer(trail, question, sentence)

    async def recall(self, ask: Ask) -> None:
        """The questions that are stored, so that a plan knows which answers they still need."""
        for chunk in self._in_order():
            trail, found = Trail(chunk, self._language(chunk), ask), dict[str, str]()
            if ask.is_stored(self._writer.questions(chunk, trail.language)):
                with contextlib.suppress(Unreadable):
                    found = await self._questions(trail)
                asked = [one for one in found.items() if count_words(one[0]) > SHORTEST_QUESTION]
                local = ask.model.is_local
                self._recalled[chunk.id] = [self._answer_request(chunk, trail.language, local, *one) for one in asked]

    def plan(self, target: int | None, stored: Callable[[Request], bool]) -> Plan:
        """What the chunks take that is not stored yet, in their order as far as the target reaches."""
        settings = self._settings
        answers = settings.mode != "refuse"
        expected: list[tuple[Request, float]] = []
        wanted, read = 0, 0.0
        for chunk in self._in_order():
            if target is not None and wanted >= target / KEPT_OF_ASKED:
                break
            language, count = self._language(chunk), questions_wanted(chunk, self._settings.per_chunk)
            request, known = self._writer.questions(chunk, language), self._recalled.get(chunk.id)
            if known is not None:
                count = len(known)
                expected += [(one, ANSWER_TOKENS) for one in known if answers and not stored(one)]
            else:
                expected.append((request, count * QUESTION_TOKENS))
                if answers:  # the questions are not known yet; one of the usual length stands for each
                    usual = self._answer_request(chunk, language, settings.model is None, "x" * 4 * QUESTION_TOKENS)
                    expected += [(usual, ANSWER_TOKENS)] * count
            wanted += count
            read += count * estimate_tokens(chunk.text)
        plan = plan_of(
            expected,
            f"every chunk brings the questions it is asked for, of {QUESTION_TOKENS} tokens, with answers and quotes of"
            f" {ANSWER_TOKENS}; to a target, {KEPT_OF_ASKED:.0%} of them are kept. Of questions that are stored, the"
            " answers that are not are counted.",
        )
        records = min(wanted * KEPT_OF_ASKED, target or math.inf)
        source = read / max(1, wanted) if answers else 0.0
        return replace(plan, expected=Expected(records, QUESTION_TOKENS, ANSWER_TOKENS, source))

    @property
    def kept_an_item(self) -> float:
        asked = sum(questions_wanted(chunk, self._settings.per_chunk) for chunk in self._chunks)
        return KEPT_OF_ASKED * asked / max(1, len(self._chunks))

    def _answer_request(self, chunk: Chunk, language: str, choose: bool, question: str, sentence: str = "") -> Request:
        if self._settings.mode == "api":
            return self._writer.call(chunk, language, question)
        return self._writer.answer(chunk, language, question, choose=choose, sentence=sentence)

    def _language(self, chunk: Chunk) -> str:
        return chunk.language if self._settings.language == "auto" else self._settings.language

    # ---------------------------------------------------------------- questions, then answers

    async def _questions(self, trail: Trail) -> dict[str, str]:
        """The chunk's questions, each with the sentence it was asked about, "" where none was named."""
        request = self._writer.questions(trail.chunk, trail.language)
        items = read_items(await self._asked(trail, self._writer.templates[0], request), "questions")
        found: dict[str, str] = {}
        for value in items.values[:-1] if items.cut else items.values:
            fields = value if isinstance(value, dict) else {"question": value}
            text, sentence = fields.get("question"), fields.get("sentence", "")
            about = sentence if self._writer.by_sentence and isinstance(sentence, str) else ""
            if not isinstance(text, str) or (about and about in found.values()):
                continue  # a small model that chooses a sentence again asks the same again
            if text := one_line(replace_surrogates(text)):
                found.setdefault(text, about)
        return dict(list(found.items())[: questions_wanted(trail.chunk, self._settings.per_chunk)])

    async def _answer(self, trail: Trail, question: str, sentence: str) -> Made:
        """The question's answer from the same text, with the sentences it rests on."""
        trail = trail.branch()
        request = self._answer_request(trail.chunk, trail.language, trail.ask.model.is_local, question, sentence)
        reply = await self._asked(trail, "self_qa_answer", request)
        try:
            answer, said = read_value(reply, "answer"), read_value(reply, "quotes")
            if not isinstance(answer, str):
                raise Unreadable("wrong_shape", f"the answer is no text: {str(answer)[:80]}")
        except Unreadable as unreadable:
            return [self._unreadable(trail, unreadable, question)]
        quotes = find_quotes(said, trail.chunk)
        passages = self._passages(trail.chunk, question, quotes)
        record = self._record(trail, question, answer.strip(), quotes, passages)
        return [Candidate(record, evidence=evidence_of(trail.chunk))]

    async def _decline(self, trail: Trail, question: str) -> Made:
        """A question that should have no answer here, declined; with the passage that comes nearest to one."""
        assert self._corpus is not None
        ways = DECLINES[trail.language]
        way = ways[int(content_id("decline", question), 16) % len(ways)]
        score, chunk = self._corpus.nearest(question)
        nearest = (score, Neighbour(id=chunk.id, text=one_line(chunk.text)[:300])) if chunk else None
        record = self._record(trail, question, way, [], "")
        return [Candidate(record, passage=evidence_of(trail.chunk), declines=True, nearest=nearest)]

    async def _call(self, trail: Trail, question: str) -> Made:
        """A request with the call that serves it: once from memory, once with the description at hand."""
        trail = trail.branch()
        request = self._writer.call(trail.chunk, trail.language, question)
        reply = await self._asked(trail, "self_qa_api_call", request)
        try:
            call = read_value(reply, "call")
            if not isinstance(call, str):
                raise Unreadable("wrong_shape", f"the call is no text: {str(call)[:80]}")
        except Unreadable as unreadable:
            return [self._unreadable(trail, unreadable, question)]
        fields = self._described[trail.chunk.id]
        quotes = find_quotes(fields["api_call"], trail.chunk)
        records = [self._record(trail, question, call.strip(), quotes, input_) for input_ in ("", trail.chunk.text)]
        objection = objection_to(call, fields)
        if objection is None:
            return [Candidate(record, passage=evidence_of(trail.chunk)) for record in records]
        return [
            Rejection(stage="record", filter="wrong_call", reason=objection, **record.model_dump())
            for record in records
        ]

    def _passages(self, chunk: Chunk, question: str, quotes: Sequence[Quote]) -> str:
        """What `input` holds in mode open: the passage among distractors, in an order and a share drawn by hash."""
        if self._settings.mode != "open":
            return ""
        assert self._corpus is not None
        settings = self._settings
        texts = [quote.text for quote in quotes]
        others = self._corpus.others(chunk, question, texts, settings.distractors, settings.seed)
        draw = random.Random(f"{settings.seed}:{question}")
        left_out = bool(others) and draw.random() < settings.without_passage
        passages = [evidence_of(passage) for passage in (*others, *(() if left_out else (chunk,)))]
        draw.shuffle(passages)
        return "\n\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))

    def _record(self, trail: Trail, question: str, answer: str, quotes: Sequence[Quote], passages: str) -> Record:
        return make_record(
            instruction=question,
            input=passages,
            output=answer,
            task="qa",
            generator=self.name,
            model=trail.ask.model.identity,
            language=trail.language,
            source=source_of(trail.chunk, quotes),
            prompts=trail.prompts,
            requests=trail.requests,
        )

    async def _asked(self, trail: Trail, template: str, request: Request) -> Reply:
        """The reply to a request; it and its template are noted on the trail."""
        trail.prompts |= self._prompts[trail.language].hashes(template)
        trail.requests.append(trail.ask.key(request))
        return await trail.ask(request, shows=[(trail.chunk.document, trail.chunk.id)])

    # ---------------------------------------------------------------- what did not work, and what was covered

    def _unreadable(self, trail: Trail, error: Unreadable, question: str = "") -> Rejection:
        trail.ask.counts.unreadable += 1
        return self._rejection(trail, "reply", "parse", error.detail, value=error.reason, instruction=question)

    def _rejection(
        self, trail: Trail, stage: Stage, filter_: str, reason: str, *, value: str | None = None, instruction: str = ""
    ) -> Rejection:
        return Rejection(
            stage=stage, filter=filter_, reason=reason, value=value, instruction=instruction, task="qa",
            generator=self.name, model=trail.ask.model.identity, language=trail.language,
            source=(source_of(trail.chunk),), prompts=trail.prompts, requests=tuple(trail.requests),
        )  # fmt: skip

    def cover(self, entry: Record | Rejection, *, kept: bool) -> None:
        """Count towards the chunk that the entry came from."""
        for source in entry.source[:1]:
            if isinstance(source, DocumentSource):
                counts = self._judged_from.setdefault((source.document, source.chunk), [0, 0])
                counts[0] += kept
                counts[1] += 1

    def coverage(self) -> dict[str, Any]:
        """How much of each document was asked and brought a record, and which were read in a guessed encoding."""
        return {
            "documents": coverage(self._documents, self._chunks, self._judged_from),
            "guessed_encodings": guessed_encodings(self._documents),
        }

    @property
    def notes(self) -> list[str]:
        return said_of_guesses(guessed_encodings(self._documents))


@dataclass
class Trail:
    """What has led to a record so far: the chunk, the templates, the requests."""

    chunk: Chunk
    language: str
    ask: Ask
    prompts: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def branch(self) -> Trail:
        """A trail that goes on from here without touching this one."""
        return Trail(self.chunk, self.language, self.ask, dict(self.prompts), list(self.requests))


# ---------------------------------------------------------------- small parts


def source_of(chunk: Chunk, quotes: Sequence[Quote] = ()) -> DocumentSource:
    """The chunk as a record names it."""
    return DocumentSource(
        document=chunk.document,
        chunk=chunk.id,
        headings=chunk.headings,
        start=chunk.start,
        end=chunk.end,
        quotes=tuple(quotes),
    )


def coverage(
    documents: Sequence[Document], chunks: Sequence[Chunk], judged_from: Mapping[tuple[str, str], list[int]]
) -> dict[str, Any]:
    """Per document: its chunks, how many were asked, how many brought a record, the records, what was left out."""
    rows: dict[str, Any] = {}
    by_document: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_document.setdefault(chunk.document, []).append(chunk)
    for document in documents:
        own = {chunk.id for chunk in by_document.get(document.name, ())}
        judged = [counts for id_ in own if (counts := judged_from.get((document.name, id_)))]
        rows[document.name] = {
            "characters": len(document.text),
            "chunks": len(own),
            "asked": len(judged),
            "with_records": sum(kept > 0 for kept, _ in judged),
            "records": sum(kept for kept, _ in judged),
            "left_out": dict(Counter(document.dropped)),
        }
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(SelfQASettings, argv, command="pipeline.self_qa", about=__doc__ or "", prepare=SelfQA)


if __name__ == "__main__":
    sys.exit(main())
