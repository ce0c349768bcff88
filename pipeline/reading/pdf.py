"""PDF as parts: lines put back into columns, paragraphs and headings. Runs in the child process (extraction.py).

PDFium says where each piece of text stands and how large it is; all else is worked out here. Columns: a gutter that
hardly any line crosses, between lines long enough to be prose, is read left side first; lines that cross it part the
page. Running headers and page numbers: what stands at the margin of most pages, digits aside, is dropped. Hyphens at
a line's end go, unless the document writes the word with one elsewhere. Headings: short lines larger than the body.
"""

from __future__ import annotations

import ctypes
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from pipeline.reading.blocks import Part
from pipeline.reading.extraction import LARGEST_TEXT, BadFile, Extracted

MARGIN = 0.12  # share of a page's height in which headers and footers stand
_STOP = re.compile(r"[.!?:;。！？：；…][\"'”’)）」』]*$")
_PAGE_NUMBER = re.compile(
    r"(?:page|seite|第)?\s*[-–—]?\s*\d{1,4}\s*[-–—]?\s*(?:页)?(?:\s*(?:of|/|共)\s*\d{1,4}\s*页?)?", re.I
)
_HAN = re.compile("[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")


@dataclass(frozen=True, slots=True)
class Line:
    """A piece of text on one base line, in points from the page's lower left corner."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    cells: int = 1  # pieces with wide gaps between them, as in a table's row


def read_pdf(data: bytes) -> Extracted:
    """The document's text, page after page. Pages without a text layer are a remark; a document of them fails."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        kind = "encrypted" if "assword" in str(error) else "damaged"
        raise BadFile(kind, f"{str(error).rstrip('.')}.") from error
    pages, without_text, size = [], [], 0
    for number in range(len(document)):
        page = document[number]
        lines = _lines(page)
        height = page.get_height()
        page.close()
        size += sum(len(line.text) for line in lines)
        if size > LARGEST_TEXT:
            raise BadFile("too_large", f"more than {LARGEST_TEXT >> 20} MB of text.")
        if lines:
            pages.append((height, lines))
        else:
            without_text.append(number + 1)
    if not pages:
        raise BadFile("no_text_layer", "no page has a text layer; run OCR over it first (ocrmypdf, say).")
    remarks = []
    if without_text:
        listed = ", ".join(map(str, without_text[:10])) + (" …" if len(without_text) > 10 else "")
        remarks.append(("no_text_layer", f"pages without a text layer: {listed}; OCR would bring them."))
    kept, dropped = _without_margins(pages)
    return Extracted(_parts(kept), remarks, Counter({"running_lines": dropped} if dropped else {}))


# ---------------------------------------------------------------- lines


def _lines(page: object) -> list[Line]:
    """The page's pieces of text, those joined that follow one another on a base line."""
    import pypdfium2.raw as pdfium

    textpage = page.get_textpage()  # type: ignore[attr-defined]
    found = []
    for number in range(textpage.count_rects()):
        left, bottom, right, top = textpage.get_rect(number)
        text = textpage.get_text_bounded(left, bottom, right, top)
        text = re.sub("[\x02\ufffe\u00ad]", "-", text).replace("\r\n", " ").strip()
        index = textpage.get_index(left + 1, (bottom + top) / 2, 6, 6)
        size = pdfium.FPDFText_GetFontSize(textpage, index) if index is not None else 0.0
        size = round(_scaled(pdfium, textpage, index, size) if index is not None else top - bottom, 1)
        if text:
            found.append(Line(text, left, bottom, right, max(top, bottom + 0.7 * size), size or top - bottom))
    textpage.close()
    joined: list[Line] = []
    for line in found:
        before = joined[-1] if joined else None
        if before is not None and _on_one_line(before, line) and 0 <= line.left - before.right < 1.2 * line.size:
            gap = " " if line.left - before.right > 0.15 * line.size else ""
            size = before.size if len(before.text) > len(line.text) else line.size
            joined[-1] = replace(before, text=before.text + gap + line.text, right=line.right, size=size)
        elif before is None or line != before:
            joined.append(line)
    return joined


def _scaled(pdfium: object, textpage: object, index: int, size: float) -> float:
    """The font size as it stands on the page, where the text is scaled by its matrix."""
    matrix = pdfium.FS_MATRIX()  # type: ignore[attr-defined]
    if pdfium.FPDFText_GetMatrix(textpage, index, ctypes.byref(matrix)):  # type: ignore[attr-defined]
        scale = abs(float(matrix.d)) or abs(float(matrix.b))
        return size * scale if scale else size
    return size


def _on_one_line(a: Line, b: Line) -> bool:
    return min(a.top, b.top) - max(a.bottom, b.bottom) > 0.5 * min(a.top - a.bottom, b.top - b.bottom)


def _without_margins(pages: Sequence[tuple[float, list[Line]]]) -> tuple[list[list[Line]], int]:
    """The pages' lines without running headers, footers and page numbers; and how many lines that were."""

    body = _body_size([line for _, lines in pages for line in lines])

    def key(line: Line) -> str:
        return re.sub(r"\d+", "#", line.text)

    def at_margin(line: Line, height: float) -> bool:
        outside = line.bottom > (1 - MARGIN) * height or line.top < MARGIN * height
        return outside and not _is_heading(line, body)

    seen: Counter[str] = Counter()
    for height, lines in pages:
        seen.update({key(line) for line in lines if at_margin(line, height)})
    often = 2 if len(pages) == 2 else max(3, len(pages) / 2)
    kept, dropped = [], 0
    for height, lines in pages:
        own = [
            line
            for line in lines
            if not at_margin(line, height) or (seen[key(line)] < often and not _PAGE_NUMBER.fullmatch(line.text))
        ]
        dropped += len(lines) - len(own)
        kept.append(own)
    return kept, dropped


# ---------------------------------------------------------------- columns


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """The lines as one reads them: columns one after the other, what spans them between."""
    gutter = _gutter(lines)
    if gutter is None:
        return _by_rows(lines)
    crossing = sorted((line for line in lines if line.left < gutter < line.right), key=lambda line: -line.top)
    rest = [line for line in lines if not line.left < gutter < line.right]
    ordered: list[Line] = []
    for spanning in (*crossing, None):
        floor = -math.inf if spanning is None else spanning.top - 1
        band = [line for line in rest if line.bottom >= floor]
        rest = [line for line in rest if line.bottom < floor]
        left = [line for line in band if line.right <= gutter]
        ordered += in_reading_order(left) if left else []
        right = [line for line in band if line.right > gutter]
        ordered += in_reading_order(right) if right else []
        if spanning is not None:
            ordered.append(spanning)
    return ordered


def _gutter(lines: Sequence[Line]) -> float | None:
    """Where a column ends and the next one begins; None where there is one column."""
    best: tuple[int, float] | None = None
    for x in sorted({line.left - 1 for line in lines}):
        left = [line for line in lines if line.right <= x]
        right = [line for line in lines if line.left >= x]
        crossing = len(lines) - len(left) - len(right)
        if min(len(left), len(right)) < 4 or crossing > 0.25 * len(lines):
            continue
        if not (_is_prose(left) and _is_prose(right) and _side_by_side(left, right)):
            continue
        if best is None or crossing < best[0]:
            best = crossing, x
    return best[1] if best else None


def _is_prose(lines: Sequence[Line]) -> bool:
    """Whether the lines are long enough to be a column of text, and not of a table."""
    return statistics.median(len(line.text.split()) + len(_HAN.findall(line.text)) / 3 for line in lines) >= 4


def _side_by_side(left: Sequence[Line], right: Sequence[Line]) -> bool:
    heights = [(min(line.bottom for line in side), max(line.top for line in side)) for side in (left, right)]
    shared = min(top for _, top in heights) - max(bottom for bottom, _ in heights)
    return shared > 0.5 * min(top - bottom for bottom, top in heights)


def _by_rows(lines: Sequence[Line]) -> list[Line]:
    """One column: from the top down, what stands on one base line joined as the cells of a row."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (-line.top, line.left)):
        if rows and _on_one_line(rows[-1][0], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [_row(sorted(row, key=lambda line: line.left)) for row in rows]


def _row(row: Sequence[Line]) -> Line:
    text = " | ".join(line.text for line in row)
    return replace(row[0], text=text, right=row[-1].right, cells=len(row)) if len(row) > 1 else row[0]


# ---------------------------------------------------------------- paragraphs and headings


def _parts(pages: Sequence[Sequence[Line]]) -> list[Part]:
    ordered = [in_reading_order(lines) for lines in pages]
    everything = [line for lines in ordered for line in lines]
    if not everything:
        return []
    body = _body_size(everything)
    sizes = sorted({line.size for line in everything if _is_heading(line, body)}, reverse=True)
    words = Counter(re.findall(r"[A-Za-z]+(?:-[A-Za-z]+)*", " ".join(line.text for line in everything)))
    parts: list[Part] = []
    for lines in ordered:
        for number, paragraph in enumerate(_paragraphs(lines, body)):
            first = paragraph[0]
            text = _join([line.text for line in paragraph], words)
            if _is_heading(first, body):
                parts.append(("heading", min(6, sizes.index(first.size) + 1), text))
            elif first.cells > 1 and len(paragraph) > 1:
                parts.append(("table", 0, "\n".join(f"| {line.text} |" for line in paragraph)))
            elif number == 0 and _goes_on(parts, text):
                parts[-1] = ("paragraph", 0, _join([parts[-1][2], text], words))
            else:
                parts.append(("paragraph", 0, text))
    return parts


def _body_size(lines: Sequence[Line]) -> float:
    """The font size that most of the text has."""
    letters: Counter[float] = Counter()
    for line in lines:
        letters[line.size] += len(line.text)
    return letters.most_common(1)[0][0]


def _is_heading(line: Line, body: float) -> bool:
    return line.size >= 1.15 * body and line.cells == 1 and len(line.text) <= 120 and line.text[-1] not in ",;，；"


def _paragraphs(lines: Sequence[Line], body: float) -> list[list[Line]]:
    """Lines that belong together: no wider gap than usual, no indent after a stop, one size, table rows apart."""
    pitches = [a.bottom - b.bottom for a, b in pairwise(lines) if a.bottom > b.bottom]
    pitch = statistics.median(pitches) if pitches else 1.2 * body
    numbers, number = [0] * len(lines), 0
    for at in range(1, len(lines)):
        before, line = lines[at - 1], lines[at]
        fall = before.bottom - line.bottom
        ended = _ends(before.text)
        other_kind = _is_heading(before, body) != _is_heading(line, body) or (before.cells > 1) != (line.cells > 1)
        heading_of_other_size = _is_heading(line, body) and before.size != line.size
        next_column = fall < 0 and ended
        indented = ended and line.left > before.left + 0.8 * line.size and fall > 0
        number += bool(other_kind or heading_of_other_size or fall > 1.4 * pitch or next_column or indented)
        numbers[at] = number
    return [[line for _, line in group] for _, group in groupby(zip(numbers, lines, strict=True), lambda pair: pair[0])]


def _ends(text: str) -> bool:
    """Whether a sentence ends here."""
    return bool(_STOP.search(text[-4:]))


def _goes_on(parts: Sequence[Part], text: str) -> bool:
    """Whether a page's first paragraph is the rest of the last one of the page before."""
    if not parts or parts[-1][0] != "paragraph" or _ends(parts[-1][2]):
        return False
    return text[0].islower() or bool(_HAN.match(text))


def _join(lines: Sequence[str], words: Counter[str]) -> str:
    """Lines as one text: blanks between words, none between Han characters, hyphens at a line's end resolved."""
    text = lines[0]
    for line in lines[1:]:
        broken = re.search(r"([A-Za-z]+)-$", text)
        rest = re.match(r"[a-z]+", line)
        if broken and rest:
            with_hyphen, without = f"{broken.group(1)}-{rest.group()}", broken.group(1) + rest.group()
            text = (text if words[with_hyphen] > words[without] else text[:-1]) + line
        elif text and line and _HAN.match(text[-1]) and _HAN.match(line[0]):
            text += line
        else:
            text = f"{text} {line}"
    return text
