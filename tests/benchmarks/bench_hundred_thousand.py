"""A hundred thousand calls with five in a hundred faults: nothing lost, and memory that stays flat.

    python -m tests.benchmarks.bench_hundred_thousand [--calls 100000]

`ask` alone, on real sockets, with the journal; the requests are small, so that the calls are what is measured. Memory
is read each tenth of the way; after the first tenth it may grow by what the journal's keys take (about 120 bytes a
call) and no more. The oracle is the server's ledger: no reply that is stored was asked twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipeline.ask import Ask
from pipeline.backends.endpoint import Endpoint
from pipeline.journal import Journal
from pipeline.llm import Request
from tests.fake_server import FakeServer, read_ledger

FAULTS = ("server_error", "reset", "garbage_json", "cut_body", "empty_choices")
IN_FLIGHT = 64


def megabytes() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def run(folder: Path, server: FakeServer, calls: int) -> tuple[list[float], int, float]:
    memory: list[float] = []
    endpoint = Endpoint("fake", base_url=server.base_url, api_key="any")
    with Journal(folder / "journal.sqlite") as journal:
        ask = Ask(endpoint, journal, concurrency=IN_FLIGHT, pause_s=0.01)
        await ask.start()
        numbers = iter(range(calls))

        async def work() -> None:
            for number in numbers:
                await ask(Request((("user", f"question {number}"),), max_tokens=16))
                if number % (calls // 10) == calls // 10 - 1:
                    memory.append(megabytes())

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(2 * IN_FLIGHT)))
        seconds = time.perf_counter() - started
        totals = await journal.totals()
    await endpoint.close()
    return memory, totals.answered + totals.failed, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=100_000)
    calls = parser.parse_args().calls
    plan = [{"fault": fault, "share": 0.01} for fault in FAULTS]
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Path(scratch) / "ledger.jsonl"
        with FakeServer(ledger=ledger, plan=plan, ledger_keys_only=True, lifetime_s=3600) as server:
            memory, outcomes, seconds = asyncio.run(run(Path(scratch), server, calls))
        lines = read_ledger(ledger)
        whole = Counter(line["key"] for line in lines if line["answered"] and line["fault"] is None)
    print("| calls | attempts | faulty | outcomes | replies asked twice | MB after a tenth | MB at the end | calls/s |")
    print("|---|---|---|---|---|---|---|---|")
    faulty = sum(line["fault"] is not None for line in lines)
    twice = sum(number > 1 for number in whole.values())
    print(f"| {calls} | {len(lines)} | {faulty / len(lines):.1%} | {outcomes} | {twice} "
          f"| {memory[0]:.0f} | {memory[-1]:.0f} | {calls / seconds:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
