"""How long a command takes before it does anything: `--help`, and `import pipeline` with all that a command needs.

    python -m tests.benchmarks.bench_start_up

Best of seven, each in a process of its own. Bars: 0.5 s for --help, 0.3 s for the import.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("self_instruct", "self_qa", "self_kg", "curate", "regenerate", "schedule")


def best_of_seven(*arguments: str) -> float:
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Print the table."""
    print("| start | seconds, best of seven | bar |\n|---|---|---|")
    print(f"| the bare interpreter | {best_of_seven('-c', ''):.2f} | |")
    print(f"| `import pipeline` | {best_of_seven('-c', 'import pipeline'):.2f} | 0.3 |")
    for name in COMMANDS:
        if (ROOT / "pipeline" / f"{name}.py").exists():
            print(f"| `pipeline.{name} --help` | {best_of_seven('-m', f'pipeline.{name}', '--help'):.2f} | 0.5 |")


if __name__ == "__main__":
    main()
