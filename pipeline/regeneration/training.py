"""The training step: finetune.run as a process of its own, on what was just made, and its verdict.

The pipeline knows no trainer (import-linter holds it), so it is asked as a user would ask it. The folder is named
after the set and the settings: a killed tick goes on with it, and an unchanged set is not trained on again.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.curation.rows import file_hash
from pipeline.errors import StopRun, UsageError
from pipeline.llm import canonical_json
from pipeline.settings import nearest

NOT_OURS = {"out", "plan", "json", "help"}  # a project has a folder of its own, and reads the verdict itself


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


def check_flags(settings: dict[str, str | int | float | bool], path: Path) -> None:
    """Raise UsageError for what finetune.run would refuse, before anything is paid for; `path` is the project file."""
    command = [sys.executable, "-m", "finetune.run", *flags_of(settings), "--help"]
    asked = subprocess.run(command, capture_output=True, text=True)  # wrong values are told before the help is
    if asked.returncode:
        raise UsageError(f"{path}, [train]: {asked.stderr.strip().rpartition('error: ')[2]}.")
    known = {flag.replace("-", "_") for flag in re.findall(r"--(?:no-)?([a-z][a-z-]*)", asked.stdout)} - NOT_OURS
    for name in settings:
        if name.replace("-", "_") not in known:
            raise UsageError(f"{path}, [train]: there is no setting {name!r}; {nearest(name, known)}.")


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
