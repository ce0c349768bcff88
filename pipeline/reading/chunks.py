"""From a document to chunks: by its structure, by tokens, and so that an edit stays where it was made.

Chunks begin anew at every heading. Inside a section that is too long, the cuts come from the content: a gap between
two units (paragraphs; sentences where a paragraph is too long) is cut where its hash is the smallest far and wide,
so that text put in earlier moves no cut. Fixed-size packing, as the common chunkers do it, would shift every later
chunk, and every later chunk would be asked again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipeline.reading.blocks import Block, Document, heading_text
from pipeline.records import content_id
from pipeline.text import count_words, estimate_tokens

TITLE_WORDS = 6  # at most, before a document's first heading: alone they are nothing to ask about
LETTERS_A_TOKEN = 4  # by which text.estimate_tokens counts

_SENTENCE_END = re.compile(
    r"[.!?…][\"'”’)\]]*(?=\s)|[。！？；…]+[”’」』）]*|\n(?=\s*(?:[-*+•]|\d+[.)、]|\|)\s?)|\n\s*\n"
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document: `text` is `document.text[start:end]`, the overlap with the chunk before included."""

    id: str
    document: str
    headings: tuple[str, ...]
    start: int
    end: int
    text: str
    language: str


@dataclass(frozen=True, slots=True)
class Unit:
    """What is not cut any further. `rank` says how bad a cut before it would be: 0 is a good place."""

    start: int
    end: int
    tokens: float
    rank: int
    hash: bytes


def chunk_document(document: Document, *, tokens: int, overlap: int) -> list[Chunk]:
    """All chunks, in order. Together they hold every block but the headings, which are in the chunks' paths.

    A few words before anything else, a title that is no heading, say, go with what comes next.
    """
    chunks: list[Chunk] = []
    path: list[tuple[int, str]] = []
    title: list[Block] = []
    section: list[Block] = []
    for block in (*document.blocks, None):
        if block is not None and block.kind != "heading":
            words = count_words(document.text[(title or [block])[0].start : block.end])
            if not (chunks or section or path) and words <= TITLE_WORDS:
                title.append(block)
            else:
                section.append(replace(block, start=title[0].start) if title else block)
                title = []
            continue
        if block is None and title:  # there is nothing else
            section = title
        if section:
            headings = tuple(text for _, text in path)
            chunks += _chunk_section(document, section, headings, tokens, overlap)
            section = []
        if block is not None:
            path = [entry for entry in path if entry[0] < block.level]
            path.append((block.level, heading_text(document.text[block.start : block.end])))
    return chunks


def _chunk_section(
    document: Document, section: Sequence[Block], headings: tuple[str, ...], tokens: int, overlap: int
) -> list[Chunk]:
    units = [unit for number, block in enumerate(section) for unit in _units(document.text, block, number, tokens)]
    chunks = []
    for group in _cut(units, tokens, tokens / 2):
        start, end = group[0].start, group[-1].end
        start = _overlapping(document.text, section[0].start, start, overlap)
        text = document.text[start:end]
        id_ = content_id("chunk", text, *headings)
        chunks.append(Chunk(id_, document.name, headings, start, end, text, document.language))
    return chunks


# ---------------------------------------------------------------- units


def _units(text: str, block: Block, number: int, tokens: int) -> list[Unit]:
    """A block whole where it fits, else in lines (code, tables) or sentences, and those in clauses or bare lengths."""
    spans = [(block.start, block.end)]
    if estimate_tokens(text[block.start : block.end]) > tokens:
        by_lines = block.kind in ("code", "table")
        spans = _lines(text, block) if by_lines else sentences(text, block.start, block.end)
        spans = [part for span in spans for part in _no_longer_than(text, *span, tokens)]
    _, ended = _stripped(text, 0, block.start)
    before = text[max(0, ended - 1) : ended]
    leans_on_it = block.kind in ("code", "table") or before in (":", "：")
    return [
        Unit(
            start,
            end,
            estimate_tokens(text[start:end]),
            2 if part else int(leans_on_it and number > 0),
            hashlib.blake2b(text[start:end].encode(), digest_size=8).digest(),
        )
        for part, (start, end) in enumerate(spans)
    ]


def sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The sentences between two offsets, without the white space around them."""
    spans, at = [], start
    for found in _SENTENCE_END.finditer(text, start, end):
        spans.append((at, found.end()))
        at = found.end()
    spans.append((at, end))
    return [span for span in (_stripped(text, *span) for span in spans) if span[0] < span[1]]


def _lines(text: str, block: Block) -> list[tuple[int, int]]:
    spans, at = [], block.start
    for line in text[block.start : block.end].split("\n"):
        if line.strip():
            spans.append((at, at + len(line)))
        at += len(line) + 1
    return spans


_CLAUSE_END = re.compile(r"[,;:，、；：\n]\s*|\s+")


def _no_longer_than(text: str, start: int, end: int, tokens: int) -> list[tuple[int, int]]:
    """A span in parts of at most so many tokens, cut after clauses or words, or anywhere where there are none."""
    if estimate_tokens(text[start:end]) <= tokens:
        return [(start, end)]
    middle = (start + end) // 2
    ends = [found.end() for found in _CLAUSE_END.finditer(text, start + 1, end - 1)]
    cut = min(ends, key=lambda at: abs(at - middle), default=middle)
    if min(cut - start, end - cut) < (end - start) // 10:
        cut = middle
    halves = (_stripped(text, start, cut), _stripped(text, cut, end))
    return [part for half in halves if half[0] < half[1] for part in _no_longer_than(text, *half, tokens)]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


# ---------------------------------------------------------------- cuts


def _cut(units: Sequence[Unit], tokens: int, window: float) -> list[Sequence[Unit]]:
    """The units in groups of at most `tokens`, cut at gaps that are the best within `window` tokens on either side.

    Each cut depends on the text within the window alone, so an edit reaches its own chunk and the next ones at most.
    Groups that are still too long are cut again with half the window.
    """
    positions = [0.0]
    for before, unit in pairwise((units[0], *units)):
        blanks = max(0, unit.start - before.end) / LETTERS_A_TOKEN
        positions.append(positions[-1] + blanks + unit.tokens)
    total = positions[-1]
    if total <= tokens or len(units) == 1:
        return [units]
    gaps = range(1, len(units))
    if total <= 2 * tokens:  # one cut will do, if there is a gap in the right place
        fitting = [gap for gap in gaps if positions[gap] <= tokens and total - positions[gap] <= tokens]
        if fitting:
            best = min(fitting, key=lambda gap: _badness(units, gap))
            return [units[:best], units[best:]]
    inner = (gap for gap in gaps if window / 2 <= positions[gap] <= total - window / 2)
    best_around = [gap for gap in inner if _is_best_around(units, positions, gap, window)]
    edges = [0, *best_around, len(units)]
    groups = [units[a:b] for a, b in pairwise(edges)]
    return [part for group in groups for part in _cut(group, tokens, window / 2)]


def _is_best_around(units: Sequence[Unit], positions: Sequence[float], gap: int, window: float) -> bool:
    """Whether no other gap within the window is better; of equal ones the first is."""
    own = _badness(units, gap)
    other = gap - 1
    while other > 0 and positions[gap] - positions[other] <= window:
        if _badness(units, other) <= own:
            return False
        other -= 1
    other = gap + 1
    while other < len(units) and positions[other] - positions[gap] <= window:
        if _badness(units, other) < own:
            return False
        other += 1
    return True


def _badness(units: Sequence[Unit], gap: int) -> tuple[int, bytes]:
    return units[gap].rank, units[gap].hash


def _overlapping(text: str, first: int, start: int, overlap: int) -> int:
    """Where a chunk begins that takes along the last sentences before it, up to `overlap` tokens of its section."""
    begin = start
    low = max(first, start - 2 * LETTERS_A_TOKEN * overlap)
    spans = sentences(text, low, start)
    for earlier, _ in reversed(spans if low == first else spans[1:]):  # the first of them is a piece of a sentence
        if estimate_tokens(text[earlier:start]) > overlap:
            break
        begin = earlier
    return begin
