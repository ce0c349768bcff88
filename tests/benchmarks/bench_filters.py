"""What the filters take of real records and of spoilt ones, and how fast.  python -m tests.benchmarks.bench_filters

Prints the tables of docs/quality.md: counts and row numbers, never the data's text. Needs ../shared/data.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

from pipeline.filtering import Candidate, Mended, NewInstruction, apply_filters, first_objection
from pipeline.instruction_filters import INSTRUCTION
from pipeline.novelty import NoveltyIndex
from pipeline.records import Record
from tests.conftest import DATA
from tests.planted import FILTERS, cut_by_the_limit, is_kept, kept_of, not_new, sources, tally

SHOWN = 10  # row numbers a filter


def funnel(name: str, records: list[Record]) -> None:
    """One line a filter: how many of the records it takes first, and where they stand."""
    took: dict[str, list[int]] = defaultdict(list)
    mended: dict[str, list[int]] = defaultdict(list)
    pool, texts = NoveltyIndex(0.7), dict[str, str]()
    for number, one in enumerate(records):
        objection = first_objection(INSTRUCTION, NewInstruction(one.instruction, pool, texts))
        if objection is None:
            pool.add(one.instruction, str(number))
            texts[str(number)] = one.instruction
        else:
            took[f"{objection[0].name} (of new instructions)"].append(number)
        judged = apply_filters(FILTERS, Candidate(one, [one]))
        if not isinstance(judged, Record):
            took[judged[1].name].append(number)
        elif judged is not one:
            seen = Candidate(one, [one])
            by = next(f.name for f in FILTERS if isinstance(f.check(seen, f.threshold), Mended))
            mended[f"{by} (mended)"].append(number)
    print(f"\n{name}, {len(records)} records\n\n| filter | takes | rows |\n|---|---|---|")
    order = [f"{f.name} (of new instructions)" for f in INSTRUCTION] + [f.name for f in FILTERS]
    for filter_ in [*order, *mended]:
        numbers = took.get(filter_) or mended.get(filter_)
        if numbers:
            more = ", …" if len(numbers) > SHOWN else ""
            print(f"| `{filter_}` | {len(numbers)} | {', '.join(map(str, numbers[:SHOWN]))}{more} |")


def lost(found: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """Print what good records lose; returns those that are kept, by language."""
    print("\n| records as they are | number | turned away by record filters | its instructions that are no news |")
    print("|---|---|---|---|")
    good: dict[str, list[Record]] = {"en": [], "zh": []}
    for name, records in found.items():
        kept = kept_of(records)
        number = len(records) - len(kept)
        print(f"| {name} | {len(records)} | {number} ({number / len(records):.1%}) | {not_new(records)} |")
        for one in kept:
            good[one.language].append(one)
    return good


def planted(good: dict[str, list[Record]], found: dict[str, list[Record]], scratch: Path) -> None:
    """Print what is caught of each kind, tuned and held-out templates apart."""
    counts = tally(good, found, scratch)
    print("\n| defect | tuned: caught of planted | held out: caught of planted |\n|---|---|---|")
    for kind in dict.fromkeys(kind for kind, _, _ in counts):
        cells = []
        for held_out in (False, True):
            caught = counts[kind, held_out, True]
            number = caught + counts[kind, held_out, False]
            cells.append(f"{caught} of {number} ({caught / number:.1%})")
        print(f"| {kind} | {' | '.join(cells)} |")
    flagged = [cut_by_the_limit(one) for one in good["en"][:500]]
    print(f"| cut off, and the endpoint says so | {sum(not is_kept(c) for c in flagged)} of {len(flagged)} | |")


def speed(found: dict[str, list[Record]]) -> None:
    """Print records a second, on one core, through all record filters."""
    print("\n| record filters, all | records | records/s, best of three | bar |\n|---|---|---|---|")
    for name in ("alpaca_4k", "self_instruct_5k"):
        seen = [Candidate(one, [one]) for one in found[name]]
        is_kept(seen[0])
        seconds = []
        for _ in range(3):
            started = time.process_time()
            for candidate in seen:
                apply_filters(FILTERS, candidate)
            seconds.append(time.process_time() - started)
        print(f"| {name} | {len(seen)} | {len(seen) / min(seconds):,.0f} | 5,000 |")


def main() -> None:
    """Print all tables."""
    import tempfile

    found = sources(DATA)
    for name in ("alpaca_4k", "self_instruct_5k"):
        funnel(name, found[name])
    good = lost(found)
    with tempfile.TemporaryDirectory() as scratch:
        planted(good, found, Path(scratch))
    speed(found)


if __name__ == "__main__":
    main()
