"""What Self-QA asks of a model: a chunk's questions, one question's answer, one request's call.

A request depends on its chunk and the settings alone. The passage is data: it stands between two lines marked by a
hash of it, its control tokens are neutralised by now (hygiene.py), and no path is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.checks.grounding import quotes_in
from pipeline.errors import UsageError
from pipeline.llm import JsonObject, Manner, Request, list_schema, object_schema
from pipeline.prompts import Prompts
from pipeline.reading.chunks import Chunk, sentences
from pipeline.records import Quote
from pipeline.self_qa_examples import API_EXAMPLES, EXAMPLES, STYLES, Example
from pipeline.text import count_words, estimate_tokens, replace_surrogates

ASKING_TEMPERATURE, ANSWERING_TEMPERATURE = 0.7, 0.0  # diverse questions, faithful answers
ASKING_TEMPERATURE_BUNDLED = 0.3  # at 0.7 it asks about coconuts
ASKING_TOP_P = 0.9
LONGEST_CHOSEN = 400  # characters of an answer whose quotes are chosen: a small model that goes on is in a loop
TOKENS_A_QUESTION = 40  # a chunk is asked for one question for each so many tokens it holds, at most --per-chunk
SHORTEST_QUESTION = 3  # words; what is no longer is not asked for an answer
MOST_QUOTES = 4  # of an answer
TEMPLATES: dict[str, tuple[str, ...]] = {  # mode -> the template for questions, and the one for answers
    "closed": ("self_qa_questions", "self_qa_answer"),
    "open": ("self_qa_questions", "self_qa_answer"),
    "refuse": ("self_qa_refusals",),
    "api": ("self_qa_api_tasks", "self_qa_api_call"),
}
BY_SENTENCE = {"self_qa_questions": "self_qa_sentence_questions"}


class RequestWriter:
    """Writes the requests about a chunk. What it is given at the start is all that shapes them."""

    def __init__(
        self,
        prompts: Mapping[str, Prompts],
        styles: Mapping[str, str],
        *,
        mode: str,
        by_sentence: bool,
        per_chunk: int,
        manner: Manner,
    ) -> None:
        self.prompts, self._styles, self._mode = prompts, styles, mode
        self.by_sentence = by_sentence and mode in ("closed", "open")  # each question is about a sentence named first
        self._per_chunk, self._manner = per_chunk, manner

    @property
    def templates(self) -> tuple[str, ...]:
        """The names of the templates for questions and for answers."""
        names = TEMPLATES[self._mode]
        return tuple(BY_SENTENCE.get(name, name) for name in names) if self.by_sentence else names

    def questions(self, chunk: Chunk, language: str) -> Request:
        """For the questions of a chunk, as many as its text is good for."""
        count = questions_wanted(chunk, self._per_chunk)
        example = self._example(language)
        asked: tuple[Any, ...] = example.beyond if self._mode == "refuse" else example.questions
        item: JsonObject = {"type": "string"}
        if self.by_sentence:
            pairs = zip(example.sentences, example.questions, strict=True)
            asked = tuple({"sentence": sentence, "question": question} for sentence, question in pairs)
            item = object_schema({"sentence": {"type": "string", "enum": sentences_of(chunk)}, "question": item})
        shown = {"count": len(asked)}, _json({"questions": asked})
        temperature = ASKING_TEMPERATURE_BUNDLED if self.by_sentence else ASKING_TEMPERATURE
        schema = list_schema("questions", item, count)
        return self._request(chunk, language, self.templates[0], {"count": count}, shown, schema, temperature)

    def answer(self, chunk: Chunk, language: str, question: str, *, choose: bool, sentence: str = "") -> Request:
        """For the quotes and the answer; `choose`: the quotes are chosen among the passage's sentences.

        Where the question was asked about a `sentence`, that one is quoted.
        """
        quotes: JsonObject = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_QUOTES}
        said: JsonObject = {"type": "string"}
        if choose or sentence:
            choice = {"type": "string", "enum": [sentence] if sentence else sentences_of(chunk)}
            quotes = {"type": "array", "items": choice, "minItems": 1, "maxItems": 1 if sentence else 2}
            said = {"type": "string", "maxLength": LONGEST_CHOSEN}
        example = self._example(language)
        style = {"style": self._styles[language]}
        shown = {"question": example.questions[0], **style}, _json({"quotes": example.quotes, "answer": example.answer})
        schema = object_schema({"quotes": quotes, "answer": said})
        values = {"question": question, **style}
        return self._request(chunk, language, "self_qa_answer", values, shown, schema, ANSWERING_TEMPERATURE)

    def call(self, chunk: Chunk, language: str, question: str) -> Request:
        """For the call of the described API that serves a user's request."""
        example = self._example(language)
        shown = {"question": example.questions[0]}, _json({"call": example.answer})
        schema = object_schema({"call": {"type": "string"}})
        values = {"question": question}
        return self._request(chunk, language, "self_qa_api_call", values, shown, schema, ANSWERING_TEMPERATURE)

    def _example(self, language: str) -> Example:
        return (API_EXAMPLES if self._mode == "api" else EXAMPLES)[language]

    def _request(
        self,
        chunk: Chunk,
        language: str,
        template: str,
        values: JsonObject,
        shown: tuple[JsonObject, str],
        schema: JsonObject,
        temperature: float,
    ) -> Request:
        example = {**_marked_off(self._example(language).passage), **shown[0]}
        filled = {**_marked_off(evidence_of(chunk)), **values}
        messages = self.prompts[language].chat(template, filled, [(example, shown[1])])
        top_p = ASKING_TOP_P if temperature else 1.0
        return self._manner.request(messages, schema, temperature=temperature, top_p=top_p)


def read_style(path: Path | None, language: str) -> str:
    """The text of --style, or the shipped one."""
    if path is None:
        return STYLES[language]
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--style {path}: cannot be read ({error}).") from error
    if not text:
        raise UsageError(f"--style {path}: the file is empty.")
    return text


# ---------------------------------------------------------------- passages


def questions_wanted(chunk: Chunk, per_chunk: int) -> int:
    """How many questions a chunk is asked for: its text decides, at least one, at most `per_chunk`."""
    return max(1, min(per_chunk, int(estimate_tokens(chunk.text)) // TOKENS_A_QUESTION))


def evidence_of(chunk: Chunk) -> str:
    """What the model reads of a chunk, and what its answers may state: the headings above it, and its text."""
    return f"{' > '.join(chunk.headings)}\n\n{chunk.text}" if chunk.headings else chunk.text


def passages_in(text: str) -> list[str]:
    """The passages of an `input` in mode open; one that holds such a number itself comes in pieces."""
    return [re.sub(r"^\[\d+\] ", "", part) for part in re.split(r"\n\n(?=\[\d+\] )", text)]


def find_quotes(said: object, chunk: Chunk) -> list[Quote]:
    """What the model gave as quotes, as the chunk has them, with offsets into the document; others are left out."""
    places: dict[tuple[int, int], None] = {}
    for text in said if isinstance(said, list) else [said]:
        if isinstance(text, str):
            places |= dict.fromkeys(quotes_in(replace_surrogates(text), chunk.text))
    return [
        Quote(text=chunk.text[start:end], start=chunk.start + start, end=chunk.start + end)
        for start, end in sorted(places)
    ]


def sentences_of(chunk: Chunk) -> list[str]:
    """The chunk's own sentences, those that are long enough to say something.

    For a local model, whose decoding is held to the schema: a small one cannot copy, but it can choose.
    """
    spans = [chunk.text[start:end] for start, end in sentences(chunk.text, 0, len(chunk.text))]
    long_enough = [span for span in spans if count_words(span) > SHORTEST_QUESTION] or [chunk.text]
    return list(dict.fromkeys(long_enough))


def _marked_off(passage: str) -> dict[str, str]:
    """A passage and its mark, a hash of it, which its writer cannot have put in."""
    mark = hashlib.sha256(passage.encode()).hexdigest()[:16]
    while mark in passage:
        mark = hashlib.sha256(mark.encode()).hexdigest()[:16]
    return {"passage": passage, "mark": mark}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
