"""The training step: finetune.run as a process of its own, on what was just made, and its verdict.

The pipeline knows no trainer (import-linter holds it), so it is asked as a user would ask it. The folder is named
after the set and the settings: a killed tick goes on with it, and an unchanged set is not trained on again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.curation.rows import file_hash
from pipeline.errors import StopRun
from pipeline.llm import canonical_json


def train(
    settings: dict[str, str | int | float | bool], data: Path, adapters: Path, say: Callable[[str], None], *, lock: int
) -> dict[str, Any]:
    """Train, unless the verdict on this very set is there; returns it with the adapter's folder.

    :param lock: the descriptor of the project's lock; a trainer whose tick was killed keeps other ticks out.
    """
    hashes = [file_hash(data / name) for name in ("records.jsonl", "rejected.jsonl")]  # the control is of both
    folder = adapters / hashlib.sha256(canonical_json([hashes, settings])).hexdigest()[:12]
    verdict = folder / "verdict.json"
    if not verdict.exists():
        say(f"Training on {data} into {folder}.")
        command = [sys.executable, "-m", "finetune.run", str(data), "--out", str(folder), *flags_of(settings)]
        to = sys.stderr.fileno() if _is_file(sys.stderr) else None
        code = subprocess.run(command, stdout=to, pass_fds=[lock]).returncode
        if code or not verdict.exists():
            stop = StopRun(f"The training step ended with exit code {code}; LATEST is as it was.")
            stop.exit_code = code if code > 0 else 1
            raise stop
    found = json.loads(verdict.read_text(encoding="utf-8"))
    return {"adapter": folder.name, "verdict": found["verdict"], "against": found["against"]}


def flags_of(settings: dict[str, str | int | float | bool]) -> list[str]:
    """[train] as the command's flags: steps = 20 is --steps 20, packing = false is --no-packing."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def _is_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True
