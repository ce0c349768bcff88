"""Self-QA as a user runs it: a folder with a file of every format, a second run, an edit; and planted refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.reading.extraction import READERS
from pipeline.records import DocumentSource
from pipeline.run_folder import read_records
from pipeline.self_qa import SelfQA, SelfQASettings
from tests.fake_server import FakeServer
from tests.make_documents import GRAPHS, PROSE, TABLES
from tests.test_self_qa import MEMORY_ZH, TIMEOUTS, check_quotes, documents_under, rejections_of, self_qa, summary_of


def every_format(folder: Path) -> Path:
    folder.mkdir()
    for suffix, make in {**PROSE, **TABLES, **GRAPHS}.items():
        make(folder / f"file{suffix}")
    return folder


def test_a_folder_of_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs, out = every_format(tmp_path / "docs"), tmp_path / "out"
    names = {path.name for path in docs.iterdir()}
    assert len(names) == 19
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        assert self_qa(server, out, docs, "--per-chunk", "3") == 0
        records, rows, sent = list(read_records(out)), summary_of(out)["documents"], len(server.ledger())
        assert rows.keys() == names
        assert all(row["asked"] == row["chunks"] > 0 for row in rows.values())
        assert check_quotes(records, documents_under(docs)) >= len(records) > 0
        asked = {
            source.document for record in records for source in record.source if isinstance(source, DocumentSource)
        }
        assert {Path(name).suffix for name in asked} >= {".pdf", ".docx", ".epub", ".html", ".ttl", ".csv"}
        first = (out / "records.jsonl").read_bytes()

        with monkeypatch.context() as patch:  # a child that reads a file would not start
            patch.setattr(sys, "executable", "/nowhere/python")
            assert self_qa(server, out, docs, "--per-chunk", "3") == 0
        assert (out / "records.jsonl").read_bytes() == first
        (out / "cache.sqlite").unlink()
        assert self_qa(server, out, docs, "--per-chunk", "3") == 0
        assert (out / "records.jsonl").read_bytes() == first
        assert (out / "cache.sqlite").exists()
        assert len(server.ledger()) == sent

        graph = docs / "file.ttl"
        graph.write_text(graph.read_text(encoding="utf-8").replace("1811", "1812"), encoding="utf-8")
        self_qa(server, out, docs, "--per-chunk", "3")
        later = [json.dumps(line["body"]) for line in server.ledger()[sent:]]
        assert later
        assert all("1812" in body for body in later)


def test_a_plan_leaves_no_folder_and_a_full_disk_no_half_cache(tmp_path: Path) -> None:
    docs, out = every_format(tmp_path / "docs"), tmp_path / "out"
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        assert self_qa(server, out, docs, "--plan") == 0
        assert not out.exists()
        out.mkdir()
        (out / "cache.sqlite").write_bytes(b"this is no database" * 99)
        assert self_qa(server, out, docs) == 6
        assert server.ledger() == []


def test_every_reader_is_among_the_formats() -> None:
    assert {*PROSE, *TABLES, *GRAPHS} >= READERS.keys() - {".htm", ".xhtml"}


PLANTED = {  # heading -> what the corpus answers, and what it does not
    "Timeouts": (
        ["Does a timeout of 5 seconds hold for every call?", "Can the timeout be changed for one client?"],
        ["How much does commercial support cost each year?", "Which firewall vendors certify browsers?"],
    ),
    "Pools": (
        ["How many connections does a client keep at most?", "How many idle connections stay open?"],
        ["How does Redis replicate across regions?", "Who designed the company logo?"],
    ),
    "显存": (
        ["全量微调一个七十亿参数的模型需要多少显存？"],
        ["沈教授毕业于哪所大学？"],
    ),
    "量化": (
        ["四比特量化把每个权重存成几位？"],
        ["电费账单由谁支付？"],
    ),
}


def test_planted_answerable_questions_are_caught_and_the_others_declined(tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "out"
    docs.mkdir()
    for name, text, more in (("a.md", TIMEOUTS, "Grey geese fly south. " * 40), ("b.md", MEMORY_ZH, "大雁南飞。" * 60)):
        (docs / name).write_text(text.replace("\n\n## ", f"\n\n{more}\n\n## ") + more, encoding="utf-8")
    generator = SelfQA(SelfQASettings(paths=(docs,), mode="refuse", model="fake"))
    answers = {}
    for chunk in generator._chunks:
        answerable, beyond = PLANTED.get(chunk.headings[-1], ([], ["Who founded the firm behind all of it?"]))
        request = generator._writer.questions(chunk, chunk.language)
        answers[request.messages[-1][1]] = json.dumps({"questions": [*answerable, *beyond]}, ensure_ascii=False)
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers), encoding="utf-8")
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=path) as server:
        assert self_qa(server, out, docs, "--mode", "refuse") == 0
    kept = {record.instruction for record in read_records(out)}
    caught = {entry.instruction for entry in rejections_of(out) if entry.filter == "answerable"}
    asked = {question for chunk in answers.values() for question in json.loads(chunk)["questions"]}
    planted = {question for answerable, _ in PLANTED.values() for question in answerable} & asked
    assert planted == {question for answerable, _ in PLANTED.values() for question in answerable}
    assert caught == planted
    assert kept == asked - planted
    assert all(entry.neighbour for entry in rejections_of(out) if entry.filter == "answerable")
    shutil.rmtree(out)
