"""How fast 1,000 pages are read and cut, and in how much memory.

    python -m tests.benchmarks.bench_documents [--pages 1000]

The pages are made here: PDF with two columns, running headers and hyphens; Markdown, HTML, Chinese text and tables
of about as many words. Time is the wall clock of one process and its child; memory the peak of each.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.reading.blocks import Document
from pipeline.reading.chunks import chunk_document
from pipeline.reading.documents import read_documents
from tests.make_documents import flowing, make_pdf

WORDS = """pump valve heat water pressure seal lid fan motor sensor pipe flow litre minute second metal glass power
    when while because after before under over with from into moves holds opens closes turns cools warms needs takes
    every small large clean worn cheap heavy light""".split()
ZH = "热泵 阀门 压力 水流 密封 电机 传感器 管道 玻璃 功率 打开 关闭 搬运 冷却 加热 需要 因此 如果 每小时 轻便".split()
PAGES_A_FILE = 50


def sentence(random_: random.Random) -> str:
    words = random_.choices(WORDS, k=random_.randint(7, 18))
    return f"{words[0].capitalize()} {' '.join(words[1:])} {random_.randint(2, 900)}."


def prose(random_: random.Random, words: int = 450) -> str:
    """A page's worth of headings and paragraphs."""
    parts = []
    for section in range(2):
        parts.append(f"## Section {random_.randint(1, 999)} {random_.choice(WORDS)}")
        sentences = [sentence(random_) for _ in range(words // 26)]
        parts += [" ".join(sentences[at : at + 4]) for at in range(0, len(sentences), 4)]
        del section
    return "\n\n".join(parts)


def pdf_file(path: Path, random_: random.Random, pages: int) -> None:
    made = []
    for page in range(pages):
        lines = [" ".join(random_.choices(WORDS, k=8)) + (" pres-" if n % 6 == 0 else ".") for n in range(48)]
        made.append([
            (60, 815, f"Handbook, page {page}", 9), (290, 20, str(page + 1), 9), (60, 770, f"Part {page} of pumps", 16),
            *flowing(lines, 60, 740, 9), *flowing(lines[::-1], 310, 740, 9),
        ])  # fmt: skip
    make_pdf(path, made)


def markdown_file(path: Path, random_: random.Random, pages: int) -> None:
    path.write_text("\n\n".join(prose(random_) for _ in range(pages)), encoding="utf-8")


def html_file(path: Path, random_: random.Random, pages: int) -> None:
    body = "".join(
        f"<h2>{block[3:]}</h2>" if block.startswith("## ") else f"<p>{block}</p>"
        for _ in range(pages)
        for block in prose(random_).split("\n\n")
    )
    path.write_text(f"<html><body><nav><a href=/>Home</a></nav><main>{body}</main></body></html>", encoding="utf-8")


def chinese_file(path: Path, random_: random.Random, pages: int) -> None:
    paragraphs = []
    for page in range(pages):
        paragraphs.append(f"一、第{page}页的热泵")
        for _ in range(6):
            paragraphs.append("".join("".join(random_.choices(ZH, k=9)) + "。" for _ in range(4)))  # noqa: PERF401
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")


def table_file(path: Path, random_: random.Random, pages: int) -> None:
    rows = (",".join([str(random_.randint(1, 999)), *random_.choices(WORDS, k=8)]) for _ in range(40 * pages))
    path.write_text("id," + ",".join(f"part {n}" for n in range(8)) + "\n" + "\n".join(rows), encoding="utf-8")


KINDS: dict[str, Callable[[Path, random.Random, int], None]] = {
    ".pdf": pdf_file,
    ".md": markdown_file,
    ".html": html_file,
    ".txt": chinese_file,
    ".csv": table_file,
}


def measure(suffix: str, pages: int, folder: Path) -> str:
    random_ = random.Random(suffix)
    for number in range(0, pages, PAGES_A_FILE):
        KINDS[suffix](folder / f"{number}{suffix}", random_, min(PAGES_A_FILE, pages - number))
    started = time.perf_counter()
    documents = [entry for entry in read_documents([folder], generator="bench") if isinstance(entry, Document)]
    read_s = time.perf_counter() - started
    started = time.perf_counter()
    chunks = sum(len(chunk_document(document, tokens=400, overlap=40)) for document in documents)
    cut_s = time.perf_counter() - started
    characters = sum(len(document.text) for document in documents)
    return (
        f"| {suffix} | {len(documents)} | {characters / 1e6:.2f} | {read_s:.2f} | {pages / read_s:,.0f} | {chunks:,} |"
        f" {cut_s:.2f} | {pages / cut_s:,.0f} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=1000)
    pages = parser.parse_args(argv).pages
    print(f"{pages:,} pages of each kind, {PAGES_A_FILE} a file, chunks of 400 tokens with 40 of overlap\n")
    print("| kind | files | M characters | reading, s | pages/s | chunks | cutting, s | pages/s |")
    print("|---|---|---|---|---|---|---|---|")
    for suffix in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(suffix, pages, Path(folder)), flush=True)
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\nPeak memory: {own:.0f} MB, all five kinds one after the other; {child:.0f} MB in the child that reads.")


if __name__ == "__main__":
    main()
