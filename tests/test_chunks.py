"""Chunks: they hold everything, keep to their size, know their place; an edit changes its own and hardly another."""

from __future__ import annotations

import os
import random
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reading.blocks import Document, read_markdown, read_plain
from pipeline.reading.chunks import Chunk, chunk_document, sentences
from pipeline.reading.documents import read_documents
from pipeline.text import estimate_tokens

DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "docs_en").is_dir(), reason=f"real documents are not at {DATA}")


def markdown(text: str) -> Document:
    text, blocks, dropped = read_markdown(text)
    return Document("a.md", text, tuple(blocks), "en", dropped)


def plain(text: str) -> Document:
    text, blocks, dropped = read_plain(text)
    return Document("a.txt", text, tuple(blocks), "zh", dropped)


def real_documents() -> list[Document]:
    folders = [DATA / "docs_en", DATA / "docs_zh"]
    return [entry for entry in read_documents(folders, generator="self_qa") if isinstance(entry, Document)]


def check(document: Document, chunks: list[Chunk], tokens: int, overlap: int) -> None:
    """What holds for the chunks of any document."""
    covered = bytearray(len(document.text))
    for chunk in chunks:
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip()
        assert estimate_tokens(chunk.text) <= tokens + overlap
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    for block in document.blocks:
        if block.kind != "heading":
            lost = [at for at in range(block.start, block.end) if not covered[at] and not document.text[at].isspace()]
            assert not lost, document.text[lost[0] : lost[0] + 60]


# ---------------------------------------------------------------- a title that is no heading


BODY = "The pump runs at night, when power is cheap, and it rests by day. " * 3


@pytest.mark.parametrize(
    ("text", "begins", "headings"),
    [
        (f"Travel policy\n\n# Trains\n\n{BODY}", "Travel policy\n\n", ("Trains",)),
        (f"Travel policy\n\nEdition 3\n\n{BODY}", "Travel policy\n\nEdition 3\n\nThe pump", ()),
        (f"Travel policy\n\n# All\n\n## Trains\n\n{BODY}", "Travel policy\n\n", ("All", "Trains")),
        (f"# Price\n\n5 USD\n\n# Trains\n\n{BODY}", "5 USD", ("Price",)),
        ("Travel policy\n\n# Trains\n", "Travel policy", ("Trains",)),
        ("Travel policy\n", "Travel policy", ()),
    ],
)
@pytest.mark.parametrize("tokens", [40, 400])
def test_a_few_words_before_anything_else_go_with_what_comes_next(
    text: str, begins: str, headings: tuple[str, ...], tokens: int
) -> None:
    document = markdown(text)
    chunks = chunk_document(document, tokens=tokens, overlap=0)
    check(document, chunks, tokens, 0)
    assert chunks[0].text.startswith(begins)
    assert chunks[0].headings == headings
    if BODY in text and "5 USD" not in text:
        assert "The pump runs" in chunks[0].text


# ---------------------------------------------------------------- what holds for all


@needs_data
@pytest.mark.parametrize(("tokens", "overlap"), [(400, 40), (120, 0), (60, 30), (2000, 200)])
def test_real_documents_are_cut_without_a_loss(tokens: int, overlap: int) -> None:
    for document in real_documents():
        check(document, chunk_document(document, tokens=tokens, overlap=overlap), tokens, overlap)


WORDS = st.sampled_from(
    ["pump", "valve.", "heat,", "x" * 40, "热泵。", "省电，", "1,200", "|", "# H", "```", "- a", "\n", "\n\n", "  "]
)


@given(st.lists(WORDS, max_size=120).map(" ".join), st.integers(5, 60), st.integers(0, 20))
def test_any_text_is_cut_without_a_loss(text: str, tokens: int, overlap: int) -> None:
    for document in (markdown(text), plain(text)):
        check(document, chunk_document(document, tokens=tokens, overlap=overlap), tokens, overlap)


# ---------------------------------------------------------------- structure

MANUAL = """# Pump

Intro to the pump.

## Parts

| part | mass |
|---|---|
| lid | 2 kg |
| fan | 3 kg |

## Use

Start it like this:

```
pump --start

pump --stop
```

### Care

Oil it.

# Valve

Close it."""


def test_chunks_begin_at_headings_and_know_their_path() -> None:
    chunks = chunk_document(markdown(MANUAL), tokens=400, overlap=40)
    assert [chunk.headings for chunk in chunks] == [
        ("Pump",), ("Pump", "Parts"), ("Pump", "Use"), ("Pump", "Use", "Care"), ("Valve",),
    ]  # fmt: skip


def test_tables_and_code_stay_whole_where_they_fit() -> None:
    filler = " ".join(f"Sentence number {n} speaks of something." for n in range(12))
    code, rows = "run --all\n\n" * 8, "| 1 | 2 |\n" * 8
    text = f"# A\n\n{filler}\n\n```\n{code}```\n\n{filler}\n\n| a | b |\n|---|---|\n{rows}"
    chunks = chunk_document(markdown(text), tokens=110, overlap=0)
    assert len(chunks) > 3
    assert sum("run --all" in chunk.text for chunk in chunks) == 1
    assert sum("| 1 | 2 |" in chunk.text for chunk in chunks) == 1


def test_the_overlap_acts_and_stays_in_its_section() -> None:
    body = " ".join(f"Fact {n} is that pump {n} moves {n} litres." for n in range(60))
    document = markdown(f"# A\n\n{body}\n\n# B\n\n{body}")
    without = chunk_document(document, tokens=100, overlap=0)
    with_it = chunk_document(document, tokens=100, overlap=30)
    assert [chunk.end for chunk in with_it] == [chunk.end for chunk in without]
    for before, chunk, bare in zip(with_it, with_it[1:], without[1:], strict=False):
        if chunk.headings != before.headings:
            assert chunk.start == bare.start
        else:
            taken = document.text[chunk.start : bare.start]
            assert 0 < estimate_tokens(taken) <= 30
            assert taken.startswith("Fact ")
            assert chunk.start < before.end


def test_chinese_is_cut_at_its_sentences() -> None:
    body = "".join(f"第{n}台热泵每小时搬运{n}度热量，比电暖器省电。" for n in range(80))
    chunks = chunk_document(plain(f"一、热泵\n\n{body}\n\n二、阀门\n\n关闭阀门需要九十秒。"), tokens=200, overlap=0)
    assert [chunk.headings for chunk in chunks][-1] == ("二、阀门",)
    assert all(chunk.text.endswith("。") for chunk in chunks)
    assert len(chunks) > 5


@needs_data
def test_a_menu_at_the_top_of_a_page_is_no_text() -> None:
    [document] = [d for d in real_documents() if d.name == "finetuning-theory.txt"]
    assert document.dropped["menus"] == 3
    assert "Linux2.1.13" in (DATA / "docs_zh" / "finetuning-theory.txt").read_text(encoding="utf-8")
    assert "Linux2.1.13" not in document.text


def test_two_stops_in_a_row_end_one_sentence() -> None:
    text = "他又来了……真的吗？！“是的！！”他说。"
    found = [text[a:b] for a, b in sentences(text, 0, len(text))]
    assert found == ["他又来了……", "真的吗？！", "“是的！！”", "他说。"]


def test_sentences_end_where_they_end() -> None:
    text = 'It costs 3.5 EUR. "Really?" Yes! See a.b.c for more…  热泵省电。“真的吗？”是的'
    assert [text[a:b] for a, b in sentences(text, 0, len(text))] == [
        "It costs 3.5 EUR.", '"Really?"', "Yes!", "See a.b.c for more…", "热泵省电。", "“真的吗？”", "是的",
    ]  # fmt: skip


# ---------------------------------------------------------------- an edit stays where it was made


def edited(document: Document, random_: random.Random) -> Document:
    """The document with one sentence somewhere taken out, put in twice, or with a word put in."""
    blocks = [block for block in document.blocks if block.kind == "paragraph"]
    block = random_.choice(blocks)
    start, end = random_.choice(sentences(document.text, block.start, block.end))
    old = document.text[start:end]
    new = random_.choice(
        ["", f"{old} Another sentence was put in here.", f"{old[: len(old) // 2]} 新词 {old[len(old) // 2 :]}"]
    )
    text = document.text[:start] + new + document.text[end:]
    read = read_markdown if document.name.endswith(".md") else read_plain
    text, again, _ = read(text)
    return Document(document.name, text, tuple(again), document.language)


@needs_data
@pytest.mark.parametrize(("tokens", "own_alone"), [(400, 0.9), (120, 0.65)])
def test_an_edit_changes_its_own_chunk_and_at_most_the_neighbours(tokens: int, own_alone: float) -> None:
    """Counts the chunks that the old document had not, which would be asked anew; measured in docs/self-qa.md.

    Edits that make or unmake one of the headings guessed in plain text are left out: they rename a whole section.
    """
    random_ = random.Random(99)
    changed: Counter[int] = Counter()
    for document in real_documents():
        before = chunk_document(document, tokens=tokens, overlap=tokens // 10)
        for _ in range(40):
            after = chunk_document(edited(document, random_), tokens=tokens, overlap=tokens // 10)
            if {chunk.headings for chunk in after} == {chunk.headings for chunk in before}:
                changed[len({chunk.id for chunk in after} - {chunk.id for chunk in before})] += 1
    total = changed.total()
    assert total > 600
    assert changed[0] + changed[1] >= own_alone * total
    assert sum(count for number, count in changed.items() if number <= 3) >= 0.98 * total


def test_text_put_in_at_the_top_moves_no_later_chunk() -> None:
    random_ = random.Random(1)
    facts = [
        f"Pump {n} moves {random_.randrange(1000)} litres and weighs {random_.randrange(100)} kg." for n in range(400)
    ]
    before = chunk_document(markdown("\n\n".join(facts)), tokens=200, overlap=0)
    after = chunk_document(markdown("\n\n".join(["A new first line.", *facts])), tokens=200, overlap=0)
    assert len(before) > 20
    assert len({chunk.id for chunk in after} - {chunk.id for chunk in before}) <= 3


@needs_data
def test_chunks_are_well_filled() -> None:
    long = [d for d in real_documents() if d.name in ("finetuning-theory.txt", "quickstart.md")]
    sizes = [estimate_tokens(c.text) for d in long for c in chunk_document(d, tokens=200, overlap=0)]
    assert statistics.mean(sizes) > 0.5 * 200


class Counted(str):
    """A text that counts how many of its characters were copied out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> str:
        found = super().__getitem__(key)
        Counted.copied += len(found)
        return found


def test_a_long_text_is_cut_in_time_that_grows_with_its_length() -> None:
    """Of each paragraph its own text is looked at, and never all that stands before it."""
    paragraph = "The crane at berth four lifts forty tonnes, and was last tested in May. "
    document = plain("\n\n".join(paragraph * 3 + str(number) for number in range(2000)))
    Counted.copied = 0
    chunk_document(replace(document, text=Counted(document.text)), tokens=400, overlap=40)
    assert Counted.copied < 30 * len(document.text)
