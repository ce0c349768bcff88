"""Calls a second through the whole line, journal included, beside a bare loop over the same SDK, in the same run.

    python -m tests.benchmarks.bench_throughput [--window 16]

The fake server answers at once (bar: 65 % of the bare loop), then after 200 ms with 64 in flight (bar: 95 % of the
320 calls a second that Little's law allows). It runs in a process of its own, so an idle second core matters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from pipeline.self_instruct import main as self_instruct
from tests.fake_server import FakeServer

CALLS = 3000
SLOW_CALLS = 12_800
IN_FLIGHT = 64


async def bare(server: FakeServer, bodies: list[dict[str, Any]]) -> tuple[float, float]:
    """The same requests through the SDK alone, as many in flight; seconds, and those of the processor."""
    client = openai.AsyncOpenAI(
        api_key="any", base_url=server.base_url, max_retries=0, http_client=openai.DefaultAioHttpClient()
    )
    queue = iter(bodies)

    async def work() -> None:
        for body in queue:
            await client.chat.completions.create(**body)

    started, worked = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    seconds = time.perf_counter() - started, time.process_time() - worked
    await client.close()
    return seconds


def line(folder: Path, server: FakeServer, calls: int, window: int) -> tuple[float, float, int]:
    """Self-Instruct until that many calls are sent; seconds, those of the processor, and calls."""
    arguments = ["--model", "fake", "--base-url", server.base_url, "--out", str(folder / "out")]
    arguments += ["--target", "1000000", "--max-requests", str(calls), "--concurrency", str(IN_FLIGHT)]
    arguments += ["--window", str(window)]
    with contextlib.redirect_stderr(io.StringIO()):
        started, worked = time.perf_counter(), time.process_time()
        self_instruct(arguments)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return seconds, worked, json.loads((folder / "out/summary.json").read_text())["sent_ever"]


def measure(latency_ms: float, calls: int, window: int) -> tuple[float, float, str]:
    """Calls a second: of the line, and of the bare loop over the bodies that the line sent; then a note."""
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeServer(ledger=Path(folder) / "ledger.jsonl", latency_ms=latency_ms) as server,
    ):
        seconds, worked, sent = line(Path(folder), server, calls, window)
        bodies = [entry["body"] for entry in server.ledger()]
        bare_seconds, bare_worked = asyncio.run(bare(server, bodies))
    note = f"{1000 * worked / sent:.2f} ms, {1000 * bare_worked / len(bodies):.2f} ms"
    return sent / seconds, len(bodies) / bare_seconds, note


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--window", type=int, default=8, help="prompts that Self-Instruct's chain may run ahead")
    window = parser.parse_args().window
    print("| server | whole line, calls/s | bare SDK loop, calls/s | share | processor a call: line, loop | bar |")
    print("|---|---|---|---|---|---|")
    where = f"{IN_FLIGHT} in flight"
    ours, theirs, note = measure(0, CALLS, window)
    print(f"| no latency, {where} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.0%} | {note} | 65 % of the loop |")
    ours, theirs, note = measure(200, SLOW_CALLS, window)
    most = IN_FLIGHT / 0.2
    print(f"| 200 ms, {where} | {ours:.0f} | {theirs:.0f} | {ours / most:.0%} of {most:.0f} | {note} | 95 % |")


if __name__ == "__main__":
    main()
