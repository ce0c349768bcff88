"""Files whose names are no UTF-8, or hold what a terminal would obey: read, named readably, and never the end of a run.

Archives made elsewhere bring such names: the bytes of "café" in Latin-1, of 测试 in GBK.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline import cli, curate, regenerate, self_instruct, self_kg, self_qa
from pipeline.run_folder import read_records, write_json
from pipeline.text import readable_name
from tests.a_project import DOCUMENT, Folder
from tests.conftest import StartServer, summary, write_lines

ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of such a name, in which such names are allowed."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    folder = tmp_path / ODD
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    return folder


def test_documents_are_read_under_names_that_stay_apart(odd: Path, start_server: StartServer) -> None:
    for name in (b"\xe9.md", b"\xe8.md", b"\xb0.xyz"):
        word = f"Wind{name[0]:02x}"
        (odd / os.fsdecode(name)).write_text(DOCUMENT.format(word=word, number=12), encoding="utf-8")
    asked = ["--model", "fake", "--base-url", start_server().base_url, "--out", str(odd / "out")]
    paths = [str(odd / os.fsdecode(name)) for name in (b"\xe9.md", b"\xe8.md", b"\xb0.xyz")]
    assert self_qa.main([*paths, *asked, "--json"]) == 0
    assert {source.document for record in read_records(odd / "out") for source in record.source} == {  # type: ignore[union-attr]
        r"\xe9.md", r"\xe8.md",
    }  # fmt: skip
    assert summary(odd / "out")["documents"].keys() == {r"\xe9.md", r"\xe8.md"}


def test_graphs_seeds_and_inputs_of_a_curation(odd: Path, start_server: StartServer) -> None:
    graph = odd / f"{ODD}.tsv"
    graph.write_text("Oslo\tlies in\tNorway\nbroken\n", encoding="utf-8")
    assert self_kg.main([str(graph), "--template", "--out", str(odd / "kg")]) == 0
    rows = write_lines(odd / f"{ODD}.jsonl", [{"instruction": "Name a river.", "output": "The Rhine."}])
    flags = [str(rows), str(odd / "kg"), "--against", str(rows), "--semantic-duplicates", "off"]
    assert curate.main([*flags, "--out", str(odd / "curated")]) == 0
    tasks = [
        {"id": f"s{n}", "instruction": f"Say what number {n} means.", "is_classification": False,
         "instances": [{"input": "", "output": "One."}]} for n in range(8)
    ]  # fmt: skip
    seeds = write_lines(odd / f"{ODD}-seeds.jsonl", tasks)
    asked = ["--model", "fake", "--base-url", start_server().base_url, "--target", "2", "--out", str(odd / "out")]
    assert self_instruct.main(["--seeds", str(seeds), *asked]) == 0


def test_a_project(odd: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(odd / "project", start_server())
    (folder.root / "docs/quillfern.md").rename(folder.root / "docs" / f"{ODD}.md")
    (folder.root / "facts.tsv").rename(folder.root / "docs/facts.tsv")
    file = folder.root / "regenerate.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('"facts.tsv", ', ""), encoding="utf-8")
    assert regenerate.main([str(file), "--json"]) == 0
    files = folder.latest.manifest["sources"]["docs"]["files"]
    assert r"caf\xe9.md" in files
    assert regenerate.main([str(file), "--revoke", str(folder.root / "docs" / f"{ODD}.md")]) == 0
    assert folder.traces("Quillfern") == []
    assert "Revoked caf\\xe9.md in docs" in capsys.readouterr().err


def test_names_stay_apart_and_are_text() -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"caf\xe8", "café".encode(), "测试".encode("gbk"))]
    shown = [readable_name(name) for name in names]
    assert shown == [r"caf\xe9", r"caf\xe8", "café", r"\xb2\xe2\xca\xd4"]


def test_a_path_in_a_json_file_is_the_same_when_it_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": ODD})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": ODD}


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cli.say("new \x1b]0;pwned\x07\x9b2J.md\nnext\tline")
    cli.say("\rkept 3", end="")
    assert capsys.readouterr().err == "new \\x1b]0;pwned\\x07\\x9b2J.md\nnext\tline\n\rkept 3"
    value = {"name": f"\x1b[2J\x9b2J{ODD}"}
    cli.show_json(value)
    said = capsys.readouterr().out
    assert said.isprintable() or said.rstrip("\n").isprintable()
    assert json.loads(said) == value
