"""Self-QA from end to end on a real socket: every quote matches its source, nothing is skipped, an edit stays small."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.blocks import Document
from pipeline.chunks import Chunk, chunk_document
from pipeline.documents import read_documents
from pipeline.records import DocumentSource, Record, Rejection
from pipeline.run_folder import read_records
from pipeline.self_qa import main
from tests.fake_server import FakeServer

DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "docs_en").is_dir(), reason=f"real documents are not at {DATA}")

TIMEOUTS = """# Timeouts

A timeout of 5 seconds holds for every call. It can be changed for one call or for a client.

## Setting one

Pass `timeout=10.0` to wait for 10 seconds. A value of None waits for ever.

| kind | default |
|---|---|
| connect | 5 s |
| read | 5 s |

## Pools

A client keeps at most 100 connections. Twenty of them stay open while they are idle, and an idle one is closed after
five seconds.
"""
MEMORY_ZH = """# 显存

全量微调一个七十亿参数的模型需要大约一百二十吉字节显存。量化之后，同样的模型只要十六吉字节就能训练。

## 量化

四比特量化把每个权重存成四位，精度损失很小。双重量化再把缩放系数压缩一次，每个参数平均省下零点三七位。
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as running:
        yield running


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "zh").mkdir(parents=True)
    (folder / "timeouts.md").write_text(TIMEOUTS, encoding="utf-8")
    (folder / "zh" / "memory.md").write_text(MEMORY_ZH, encoding="utf-8")
    return folder


def self_qa(server: FakeServer, out: Path, *arguments: object) -> int:
    fixed = ["--out", str(out), "--model", "fake", "--base-url", server.base_url]
    return main([*map(str, arguments), *fixed])


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


def rejections_of(out: Path) -> list[Rejection]:
    lines = (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [Rejection.model_validate_json(line) for line in lines]


def documents_under(*paths: Path) -> dict[str, Document]:
    entries = read_documents(paths, generator="self_qa")
    return {entry.name: entry for entry in entries if isinstance(entry, Document)}


def check_quotes(records: list[Record], documents: dict[str, Document]) -> int:
    """Every quote is what its document holds at its offsets, inside its chunk; returns how many there were."""
    seen = 0
    for record in records:
        assert record.source
        for source in record.source:
            assert isinstance(source, DocumentSource)
            text = documents[source.document].text
            assert source.quotes
            for quote in source.quotes:
                seen += 1
                assert text[quote.start : quote.end] == quote.text
                assert source.start <= quote.start < quote.end <= source.end
    return seen


def test_documents_become_grounded_records_in_their_own_language(
    server: FakeServer, docs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert self_qa(server, out, docs) == 0
    records = list(read_records(out))
    assert {record.language for record in records} == {"en", "zh"}
    assert all(record.task == "qa" and record.input == "" and record.instruction for record in records)
    assert check_quotes(records, documents_under(docs)) >= len(records)
    rows = summary_of(out)["documents"]
    assert rows.keys() == {"timeouts.md", "zh/memory.md"}
    assert all(row["asked"] == row["chunks"] > 0 for row in rows.values())


def test_a_second_run_sends_nothing_and_gives_the_same_bytes(server: FakeServer, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    self_qa(server, out, docs)
    sent, first = len(server.ledger()), (out / "records.jsonl").read_bytes()
    assert self_qa(server, out, docs, "--concurrency", "1") == 0
    assert len(server.ledger()) == sent > 0
    assert (out / "records.jsonl").read_bytes() == first


def test_no_path_reaches_a_prompt(server: FakeServer, docs: Path, tmp_path: Path) -> None:
    self_qa(server, tmp_path / "out", docs)
    for line in server.ledger():
        sent = json.dumps(line["body"], ensure_ascii=False)
        assert "memory.md" not in sent
        assert str(tmp_path) not in sent


def test_an_edit_asks_for_its_own_chunk_alone(server: FakeServer, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    self_qa(server, out, docs)
    before = len(server.ledger())
    edited = TIMEOUTS.replace("at most 100 connections", "at most 250 connections")
    (docs / "timeouts.md").write_text(edited, encoding="utf-8")
    self_qa(server, out, docs)
    asked = [json.dumps(line["body"], ensure_ascii=False) for line in server.ledger()[before:]]
    assert asked
    assert all("250 connections" in body for body in asked)
    assert not any("100 connections" in record.output for record in read_records(out))


@needs_data
def test_real_documents_are_covered_and_their_quotes_match(server: FakeServer, tmp_path: Path) -> None:
    out, folders = tmp_path / "out", (DATA / "docs_en", DATA / "docs_zh")
    assert self_qa(server, out, *folders) == 0
    documents = documents_under(*folders)
    assert len(documents) == 18
    records = list(read_records(out))
    assert check_quotes(records, documents) >= len(records) > 300
    rows = summary_of(out)["documents"]
    assert sum(row["chunks"] for row in rows.values()) > 150
    assert all(row["asked"] == row["chunks"] for row in rows.values())
    assert rows["finetuning-theory.txt"]["left_out"]["menus"] == 3
    sent = len(server.ledger())
    self_qa(server, out, *folders)
    assert len(server.ledger()) == sent


def chunks_of(path: Path, tokens: int = 400) -> list[Chunk]:
    return [c for d in documents_under(path).values() for c in chunk_document(d, tokens=tokens, overlap=40)]
