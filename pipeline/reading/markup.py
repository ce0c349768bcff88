"""HTML, DOCX and EPUB as parts. Runs in the child process (extraction.py); the libraries are the extra `docs`.

Trafilatura finds the main content of a web page and drops menus, side bars and footers. Mammoth makes HTML of DOCX,
and an EPUB is HTML in a zip; those are read whole. All come out of one walk over the tree. What a page does not show
is left out and counted.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.reading.blocks import Part
from pipeline.reading.extraction import BadFile, Extracted, decode

LARGEST_UNPACKED = 512 * 2**20  # bytes of a zip's contents
SKIPPED = set("script style template noscript svg math iframe object button select textarea input form".split())
AROUND = set("nav header footer aside".split())  # of a page; inside an article they may hold its title
AROUND_ROLES = {"navigation", "banner", "contentinfo", "search", "complementary"}
HEADINGS = {f"h{level}": level for level in range(1, 7)}
BLOCKS = set(
    "p div section article main ul ol li dl dt dd blockquote figure figcaption address details summary body html"
    " list item quote td th tr thead tbody tfoot caption center hr fieldset".split()
)
CODE = {"pre", "listing", "xmp"}
_HIDDEN = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d]*[1-9])|opacity\s*:\s*0(?![.\d])"
)


def read_html(data: bytes) -> Extracted:
    """A web page: its main content."""
    import trafilatura

    tree = _parse(decode(data))
    dropped = _drop_hidden(tree)
    title = " ".join((tree.findtext(".//title") or "").split())
    page = trafilatura.bare_extraction(
        tree, include_tables=True, include_formatting=True, include_comments=False, favor_recall=True
    )
    body = getattr(page, "body", None)
    parts = list(_walk(body)) if body is not None else []
    if not parts:  # too short for its rules: all of the page but what stands around
        for element in list(tree.iter(*AROUND)):
            element.drop_tree()
        parts = list(_walk(tree))
    if title and not any(kind == "heading" and level == 1 for kind, level, _ in parts):
        parts.insert(0, ("heading", 1, title))
    return Extracted(parts, [], dropped)


def read_docx(data: bytes) -> Extracted:
    """A Word document: headings, paragraphs, lists, tables; pictures are left out."""
    import mammoth

    check_zip(data)
    html = mammoth.convert_to_html(io.BytesIO(data), convert_image=lambda image: []).value
    return Extracted(list(_walk(_parse(html or "<p></p>"))), [], Counter())


def read_epub(data: bytes) -> Extracted:
    """A book: its chapters in reading order."""
    archive = check_zip(data)
    parts: list[Part] = []
    remarks: list[tuple[str, str]] = []
    dropped: Counter[str] = Counter()
    for name in _spine(archive):
        try:
            tree = _parse(decode(archive.read(name)))
        except (KeyError, BadFile) as error:
            remarks.append(("damaged_chapter", f"the chapter {name} cannot be read ({error})."))
            continue
        dropped += _drop_hidden(tree)
        parts += _walk(tree)
    if not parts and remarks:
        raise BadFile("damaged", remarks[0][1])
    return Extracted(parts, remarks, dropped)


# ---------------------------------------------------------------- trees


def _parse(text: str) -> Any:
    from lxml import etree, html

    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)  # lxml refuses a declared encoding in text that is decoded already
    try:
        return html.document_fromstring(text, parser=html.HTMLParser(no_network=True, remove_comments=True))
    except (etree.ParserError, ValueError) as error:
        raise BadFile("no_text", f"no HTML in it ({error}).") from error


def _drop_hidden(tree: Any) -> Counter[str]:
    """Take out what a reader of the page does not see, and what stands around its content."""
    dropped: Counter[str] = Counter()
    for element in list(tree.iter()):
        if not isinstance(element.tag, str) or element.getparent() is None:
            continue
        style = (element.get("style") or "").lower()
        if _HIDDEN.search(style) or element.get("hidden") is not None or element.get("aria-hidden") == "true":
            kind = "hidden"
        elif element.get("role") in AROUND_ROLES or element.tag == "nav":
            kind = "navigation"
        else:
            continue
        dropped[kind] += bool(element.text_content().strip())
        element.drop_tree()
    return +dropped


def _walk(element: Any) -> Iterator[Part]:
    """The parts under an element. Text between blocks gathers until the next block begins."""
    gathered: list[str] = []
    for kind, level, text in _events(element):
        if kind == "text":
            gathered.append(text)
            continue
        yield from _paragraph(gathered)
        gathered = []
        if kind in ("heading", "code", "table") and text.strip():
            yield kind, level, text
    yield from _paragraph(gathered)


def _paragraph(gathered: list[str]) -> Iterator[Part]:
    text = " ".join("".join(gathered).split())
    if text:
        yield "paragraph", 0, text


def _events(element: Any) -> Iterator[tuple[Any, int, str]]:
    """In document order: ("text", 0, inline text), a whole heading, code or table, or ("break", 0, "")."""
    tag = element.tag
    if not isinstance(tag, str) or tag in SKIPPED or (tag == "head" and not element.get("rend")):
        pass
    elif tag in HEADINGS or tag == "head":  # "head" with "rend" is trafilatura's
        level = HEADINGS.get(tag) or int(re.sub(r"\D", "", element.get("rend")) or 2)
        yield "heading", level, " ".join(_text_of(element).split())
    elif tag in CODE or (tag == "code" and ("\n" in _text_of(element) or element.find("code") is not None)):
        yield "code", 0, _text_of(element).strip("\n")
    elif tag == "table":
        yield "table", 0, _table(element)
    elif tag in ("br", "lb"):
        yield "text", 0, " "
    else:
        block = tag in BLOCKS
        if block:
            yield "break", 0, ""
        yield "text", 0, element.text or ""
        for child in element:
            yield from _events(child)
            yield "text", 0, child.tail or ""
        if block:
            yield "break", 0, ""


def _text_of(element: Any) -> str:
    return "".join(element.itertext())


def _table(table: Any) -> str:
    """A table as Markdown writes it, one line a row."""
    rows = []
    for row in table.iter("tr", "row"):
        cells = [" ".join(_text_of(cell).split()).replace("|", "/") for cell in row if cell.tag in ("td", "th", "cell")]
        if any(cells):
            rows.append(f"| {' | '.join(cells)} |")
    if len(rows) > 1:
        rows.insert(1, "|" + "---|" * (rows[0].count("|") - 1))
    return "\n".join(rows)


# ---------------------------------------------------------------- zips


def check_zip(data: bytes) -> zipfile.ZipFile:
    """The archive, if what it says it unpacks to is of a bearable size. Nothing is ever unpacked to disk."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST_UNPACKED:
        raise BadFile("too_large", f"it unpacks to {size >> 20} MB, above {LARGEST_UNPACKED >> 20} MB.")
    return archive


def _spine(archive: zipfile.ZipFile) -> list[str]:
    """The names of an EPUB's chapters in reading order, its table of contents left out."""
    from defusedxml.ElementTree import fromstring

    container = fromstring(archive.read("META-INF/container.xml"))
    package_name = next(e.get("full-path") for e in container.iter() if e.tag.endswith("}rootfile"))
    package = fromstring(archive.read(package_name))
    items = {e.get("id"): e for e in package.iter() if e.tag.endswith("}item")}
    chapters = []
    for reference in (e for e in package.iter() if e.tag.endswith("}itemref")):
        item = items.get(reference.get("idref"))
        if item is not None and "nav" not in (item.get("properties") or "").split():
            chapters.append(posixpath.normpath(posixpath.join(posixpath.dirname(package_name), item.get("href"))))
    return chapters
