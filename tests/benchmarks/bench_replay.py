"""Replaying a finished run from its journal: no request, the same records.

    python -m tests.benchmarks.bench_replay [--calls 10000]

A run of so many calls is made against the fake server first (minutes), then replayed in a process of its own, imports
and filters included, three times. Bar: 3 s for 10,000 calls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.bench_throughput import IN_FLIGHT
from tests.fake_server import FakeServer


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
        target = json.loads((folder / "summary.json").read_text())["kept"]
        before, seconds = (folder / "records.jsonl").read_bytes(), []
        for _ in range(3):
            started = time.perf_counter()
            replay = [*command, "--target", str(target), "--offline"]  # the later flag wins
            subprocess.run(replay, stderr=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - started)
        assert (folder / "records.jsonl").read_bytes() == before
    print(
        "| replay | calls stored | records | seconds, best of three | requests sent | bar |\n|---|---|---|---|---|---|"
    )
    print(
        f"| Self-Instruct, all filters | {sent} | {target} | {min(seconds):.2f} | 0 (offline) | 3 s for 10,000 calls |"
    )


if __name__ == "__main__":
    main()
