"""Ten kinds of defects planted on good records: at least 95 % are caught, and at most 2 % of good records are lost.

Templates that were held out while the filters were made are counted apart; tests/planted.py says how they are made.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.records import Record
from tests.planted import cut_by_the_limit, is_kept, kept_of, sources, tally, ways

KINDS = {"cut off", "empty or echo", "looping", "refusal", "wrong language", "leaked prompt", "control token",
         "secret or address", "near copy", "benchmark item"}  # fmt: skip


@pytest.mark.slow
def test_defects_are_caught_and_good_records_are_not(data_dir: Path, tmp_path: Path) -> None:
    found = sources(data_dir)
    good: dict[str, list[Record]] = {"en": [], "zh": []}
    for name, records in found.items():
        kept = kept_of(records)
        assert len(records) - len(kept) <= 0.02 * len(records), name
        for one in kept:
            good[one.language].append(one)
    counts = tally(good, found, tmp_path)
    assert {kind for kind, _, _ in counts} == KINDS
    for kind in KINDS:
        for held_out in (False, True):
            caught, missed = counts[kind, held_out, True], counts[kind, held_out, False]
            assert caught + missed >= 150, f"{kind}: too few were planted"
            assert caught >= 0.95 * (caught + missed), f"{kind}, held out: {held_out}"
    assert not any(is_kept(cut_by_the_limit(one)) for one in good["en"][:200])


def test_every_kind_has_templates_in_both_languages_and_halves() -> None:
    made = [(way.kind, way.language) for way in ways()]
    assert {kind for kind, _ in made} == KINDS - {"near copy", "benchmark item"}
    assert all(made.count((kind, language)) >= 4 for kind, _ in made for language in ("en", "zh"))
