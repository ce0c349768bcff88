"""[train]: the set is trained on in a process of its own, the gate hears the verdict, a better adapter answers next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import regenerate
from tests.a_project import Folder
from tests.conftest import StartServer
from tests.tiny_models import little_rows, save_tiny, write_rows

pytestmark = pytest.mark.slow

TABLES = """
[gate]
verdict = "better"
[train]
base = "tiny"
tasks = "tasks.jsonl"
control = "none"
device = "cpu"
new_tokens = 2
steps = 1
"""


def test_only_a_better_adapter_passes_the_gate_and_answers_next(
    tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    folder = Folder(tmp_path / "project", start_server())
    save_tiny(folder.root / "tiny")
    write_rows(folder.root / "tasks.jsonl", little_rows(4))  # too few to tell
    path = str(folder.write(tables=TABLES))

    assert regenerate.main([path]) == 7
    refused = folder.versions.newest()
    assert refused is not None
    assert folder.versions.latest() is None
    assert refused.manifest["training"]["verdict"] == "cannot tell"
    assert refused.manifest["gate"]["reasons"] == ["training says 'cannot tell', and the gate wants 'better'"]
    adapter = folder.root / "out/adapters" / refused.manifest["training"]["adapter"]
    trained_at = (adapter / "trained.json").stat().st_mtime_ns

    verdict = json.loads((adapter / "verdict.json").read_text(encoding="utf-8"))
    (adapter / "verdict.json").write_text(json.dumps(verdict | {"verdict": "better"}), encoding="utf-8")
    assert regenerate.main([path]) == 0
    assert (adapter / "trained.json").stat().st_mtime_ns == trained_at, "an unchanged set is not trained on again"
    assert folder.latest.manifest["adapter"] == adapter.name

    sent = len(folder.server.ledger())
    capfd.readouterr()
    assert regenerate.main([path]) == 2, "another model answers now, and somebody has to want that"
    assert 'model: "fake" -> "local-' in capfd.readouterr().err
    assert regenerate.main([path, "--keep"]) == 0
    assert (adapter / "trained.json").stat().st_mtime_ns == trained_at
    assert len(folder.server.ledger()) == sent
