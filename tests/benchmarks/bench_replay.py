"""Replaying a finished run from its journal: no request, the same records.

    python -m tests.benchmarks.bench_replay [--calls 10000]

A run of so many calls is made against the fake server first (minutes), then replayed in a process of its own, imports
and filters included, three times with all free filters (bar for 10,000 calls: 8 s), and three times with those that
Self-Instruct published alone (bar: 3 s).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.filters import RECORD
from tests.benchmarks.bench_throughput import IN_FLIGHT
from tests.fake_server import FakeServer

NOT_PUBLISHED = [filter_.name for filter_ in RECORD if not filter_.source.startswith("Self-Instruct")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as scratch:
        folder, ledger = Path(scratch) / "out", Path(scratch) / "ledger.jsonl"
        with FakeServer(ledger=ledger, ledger_keys_only=True, lifetime_s=3600) as server:
            command = [sys.executable, "-m", "pipeline.self_instruct", "--model", "fake", "--out", str(folder)]
            command += ["--base-url", server.base_url, "--concurrency", str(IN_FLIGHT), "--target", "1000000"]
            subprocess.run([*command, "--max-requests", str(calls)], stderr=subprocess.DEVNULL, check=False)
            sent = server.stats()["requests"]
        before = (folder / "records.jsonl").read_bytes()
        replay = [*command, "--offline"]  # ends short of its target, once nothing more is stored
        all_s, kept = best_of_three(replay, folder)
        assert (folder / "records.jsonl").read_bytes() == before
        own = [*replay, "--filters", ",".join(f"{name}=off" for name in NOT_PUBLISHED)]
        own_s, kept_by_own = best_of_three(own, folder)
    print("| replay | calls stored | records | seconds, best of three | requests sent | bar for 10,000 calls |")
    print("|---|---|---|---|---|---|")
    print(f"| Self-Instruct, all free filters | {sent} | {kept} | {all_s:.2f} | 0 (offline) | 8 s |")
    print(f"| its own filters alone | {sent} | {kept_by_own} | {own_s:.2f} | 0 (offline) | 3 s |")


def best_of_three(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds of the whole command, and the records it kept."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
        seconds.append(time.perf_counter() - started)
    return min(seconds), json.loads((folder / "summary.json").read_text())["kept"]


if __name__ == "__main__":
    main()
