"""Telling somebody what came of a tick: a command that gets JSON on its stdin, or a webhook that is posted it.

A hook never changes what became of the tick: one that fails or hangs is written down beside it, and that is all. It is
told at least once: a process that is killed right after telling tells again, with the same schedule and tick.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.scheduling.timing import Hook

LONGEST_S = 30.0
ADDRESS = ("http://", "https://")


def tell(hook: Hook | None, body: dict[str, Any], folder: Path, *, longest_s: float = LONGEST_S) -> str:
    """Run the hook in a folder; "" if all went well, else one sentence."""
    if hook is None:
        return ""
    text = json.dumps(body, ensure_ascii=False)
    if isinstance(hook, str) and hook.startswith("$"):  # an address with a secret in it stands in no file
        url = os.environ.get(hook[1:], "")
        return _post(url, text, longest_s) if url.startswith(ADDRESS) else f"{hook}: holds no address."
    if isinstance(hook, str) and hook.startswith(ADDRESS):
        return _post(hook, text, longest_s)
    return _run(shlex.split(hook) if isinstance(hook, str) else list(hook), text, folder, longest_s)


def _post(url: str, text: str, longest_s: float) -> str:
    import httpx2

    try:
        # streamed: the answer's body, however long, is not read
        headers = {"Content-Type": "application/json"}
        with httpx2.stream("POST", url, content=text.encode(), headers=headers, timeout=longest_s) as response:
            status = response.status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        return f"{_host(url)}: {type(error).__name__}."
    return "" if 200 <= status < 300 else f"{_host(url)}: answered {status}."


def _host(url: str) -> str:
    """All of a webhook's address that may be shown: its path is often the key."""
    try:
        return urlsplit(url).hostname or "(no address)"
    except ValueError:
        return "(no address)"


def _run(words: list[str], text: str, folder: Path, longest_s: float) -> str:
    try:
        # its own output is its own affair; ours is JSON
        ran = subprocess.run(
            words, input=text.encode(), cwd=folder, stdout=subprocess.DEVNULL, timeout=longest_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{words[0]}: took longer than {longest_s:.0f} s, and was stopped."
    except OSError as error:
        return f"{words[0]}: cannot be run ({error.strerror})."
    return "" if ran.returncode == 0 else f"{words[0]}: exit code {ran.returncode}."
