"""A document as text with structure: which stretch of it is a heading, a paragraph, code, a table or a row.

Readers bring text; here it gets its blocks. Offsets count characters of the extracted text, the same text that
chunks and quotes point into, so `document.text[quote.start:quote.end]` is always what was quoted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.text import is_menu

Kind = Literal["heading", "paragraph", "code", "table", "row"]
Part = tuple[Kind, int, str]  # kind, heading level (0 for all else), text: what a reader of a binary format brings


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the text. `level` is a heading's depth, from 1."""

    kind: Kind
    start: int
    end: int
    level: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """An extracted document. `name` is relative to the folder given; `dropped` counts what was left out, by kind.

    `guessed` is the encoding that its file was read in, where that was not UTF-8; "" where nothing was guessed.
    """

    name: str
    text: str
    blocks: tuple[Block, ...]
    language: str
    dropped: Counter[str] = field(default_factory=Counter)
    guessed: str = ""


def join_parts(parts: Sequence[Part]) -> tuple[str, list[Block]]:
    """The text of a reader's parts, blank lines between them, with its blocks."""
    blocks, pieces, at = [], [], 0
    for kind, level, text in parts:
        blocks.append(Block(kind, at, at + len(text), level))
        pieces.append(text)
        at += len(text) + 2
    return "\n\n".join(pieces), blocks


# ---------------------------------------------------------------- Markdown

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)


def read_markdown(text: str) -> tuple[str, list[Block], Counter[str]]:
    """The text without front matter and comments, which no reader of the page sees; its blocks; what was cut."""
    front = _FRONT_MATTER.match(text)
    if front:
        text = text[front.end() :]
    blocks = _markdown_blocks(text)
    hidden = [
        (block.start + found.start(), block.start + found.end())
        for block in blocks
        if block.kind != "code"
        for found in _COMMENT.finditer(text[block.start : block.end])
    ]
    for start, end in reversed(hidden):
        text = text[:start] + text[end:]
    if hidden:
        blocks = _markdown_blocks(text)
    dropped = Counter({"front_matter": int(front is not None), "comments": len(hidden)})
    return text, [block for block in blocks if text[block.start : block.end].strip()], +dropped


def _markdown_blocks(text: str) -> list[Block]:
    from markdown_it import MarkdownIt

    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    kinds: dict[str, Kind] = {"fence": "code", "code_block": "code", "table_open": "table", "heading_open": "heading"}
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])  # nothing inside paragraphs: faster, and no trap for it
    blocks = []
    for token in parser.parse(text):
        if token.level or token.map is None or token.nesting < 0 or token.type == "hr":
            continue
        start, end = starts[token.map[0]], min(starts[token.map[1]], len(text))
        start, end = _trim(text, start, end)
        kind = kinds.get(token.type, "paragraph")
        if start < end:
            blocks.append(Block(kind, start, end, int(token.tag[1:]) if kind == "heading" else 0))
    return blocks


_HEADING_MARKS = re.compile(r"^#+\s*|\s*#*\s*(?:\{[^}]*\})?$|\n[=-]+\s*$|[*`]+|\[([^\]]*)\]\([^)]*\)")


def heading_text(text: str) -> str:
    """A heading as it reads: without Markdown's marks, on one line."""
    return " ".join(_HEADING_MARKS.sub(lambda found: found.group(1) or "", text).split())


# ---------------------------------------------------------------- plain text

_NUMBERED = [
    re.compile(r"第[一二三四五六七八九十百\d]+[章篇部编]"),
    re.compile(r"第[一二三四五六七八九十百\d]+节|[一二三四五六七八九十]+、|(?:Chapter|Part|Section)\s+\w+\b"),
    re.compile(r"[（(][一二三四五六七八九十]+[）)]|\d{1,2}(?:\.\d{1,2})+\.?\s|\d{1,2}[.、．]\s?(?!\d)"),
]
_STOP = "。.!！?？;；,，、:：…"
_SENTENCE_STOP = '。.!！?？:：…)）]”"'
_NO_HEADING = re.compile(r"[=(){}<>_;|。]")  # code, and the middle of a sentence
LONGEST_HEADING = 60  # columns, a Han character taking two


def read_plain(text: str) -> tuple[str, list[Block], Counter[str]]:
    """The text without the menus that pages copied from the web begin with; its blocks; what was cut.

    Paragraphs lie between blank lines, or are lines where the text has hardly any blank ones. A short line without
    a stop that stands over a longer paragraph is a heading.
    """
    menus = [span for span in _paragraphs(text) if is_menu(text[slice(*span)])]
    for start, end in reversed(menus):
        text = text[:start] + text[end:]
    spans = list(_paragraphs(text))
    blocks: list[Block] = []
    for number, (start, end) in enumerate(spans):
        following = text[slice(*spans[number + 1])] if number + 1 < len(spans) else ""
        level = 0
        if not blocks or blocks[-1].kind == "heading" or text[blocks[-1].end - 1] in _SENTENCE_STOP:
            level = _heading_level(text[start:end], following, bool(blocks) and blocks[-1].kind == "heading")
        blocks.append(Block("heading" if level else "paragraph", start, end, level))
    return text, blocks, +Counter({"menus": len(menus)})


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    lines = text.split("\n")
    filled = sum(bool(line.strip()) for line in lines)
    by_line = filled and (len(lines) - filled) < 0.1 * filled
    pattern = r"[^\n]+" if by_line else r"[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*"
    for found in re.finditer(pattern, text):
        start, end = _trim(text, *found.span())
        if start < end:
            yield start, end


def _heading_level(text: str, following: str, after_heading: bool) -> int:
    """The depth of a heading, 0 for what is none."""
    columns = sum(2 if character > "\u2e80" else 1 for character in text)
    if "\n" in text or columns > LONGEST_HEADING or text[-1] in _STOP or not following or _NO_HEADING.search(text):
        return 0
    for level, pattern in enumerate(_NUMBERED, 1):
        if pattern.match(text):
            return 0 if pattern.match(following) else level  # two in a row are a list
    stands_over = len(following) > max(40, 2 * len(text))
    return 2 if stands_over and text[0].isalpha() and not after_heading else 0


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        # leading blanks belong to the block: in code they mean something; only whole blank lines go
        newline = text.find("\n", start, end)
        if newline < 0 or text[start:newline].strip():
            break
        start = newline + 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
