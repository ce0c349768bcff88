"""A user's own filters: taken from a file, asked in their place, counted like ours; and every mistake said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import filtering, filters
from pipeline.filtering import Candidate
from pipeline.own_filters import load
from pipeline.records import PromptSource, Record, make_record
from pipeline.settings import GeneratorSettings
from tests.conftest import Run, StartServer, against, read_lines
from tests.fake_server import ROOT

TWO = '''
"""Filters of a small shop."""
import re
from collections import Counter

LIMIT = 2

def too_loud(record, above: float = 0.3):
    """An answer that shouts."""
    capitals = sum(map(str.isupper, record.output)) / max(1, len(record.output))
    return f"{capitals:.0%} capitals" if capitals > above else None

def _helper(record):
    return "never asked"

def names_us(record):
    return "names us" if re.search("Acme", record.output) else None
'''


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


def candidate(output: str) -> Candidate:
    record = make_record(
        instruction="Do it.", output=output, task="generation", generator="g", model="m", language="en",
        source=PromptSource(prompt=0, seeds=(), pool=()), prompts={}, requests=(),
    )  # fmt: skip
    return Candidate(record, [record])


def test_the_functions_of_the_file_are_filters_in_its_order(tmp_path: Path) -> None:
    own = load(write(tmp_path, TWO))
    assert [(f.name, f.threshold, f.source) for f in own.filters] == [
        ("too_loud", 0.3, "mine.py"),
        ("names_us", None, "mine.py"),
    ]
    found = filtering.first_objection(own.filters, candidate("It was made by Acme."))
    assert found is not None
    assert (found[0].name, found[1].reason) == ("names_us", "names us")
    assert filtering.first_objection(own.filters, candidate("All is quiet.")) is None


def test_they_stand_before_what_compares_and_are_set_like_ours(tmp_path: Path) -> None:
    own = load(write(tmp_path, TWO)).filters
    names = [f.name for f in filters.of_records({}, own)]
    assert names.index("graph") < names.index("too_loud") < names.index("names_us") < names.index("contradiction")
    chosen = filters.of_records({"names_us": False, "too_loud": 0.9}, own)
    assert "names_us" not in [f.name for f in chosen]
    assert isinstance(filtering.apply_filters(chosen, candidate("WELL, yes.")), Record)
    assert not isinstance(filtering.apply_filters(filters.of_records({}, own), candidate("WELL, yes.")), Record)


def test_the_file_is_known_by_its_content(tmp_path: Path) -> None:
    before = load(write(tmp_path, TWO))
    again = load(write(tmp_path, TWO))
    after = load(write(tmp_path, TWO.replace("0.3", "0.4")))
    assert before == again != after
    assert after.as_json()["sha256"] != before.as_json()["sha256"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LIMIT = 3\nfrom re import search\n", "defines no function"),
        ("def oops(:\n", "SyntaxError: invalid syntax (line 1)"),
        (
            "x = 1\nimport nothing_of_this_name\n",
            "ModuleNotFoundError: No module named 'nothing_of_this_name' (line 2)",
        ),
        ("raise SystemExit('no')\n", "SystemExit: no (line 1)"),
        ("def echo(record):\n    return None\n", "there is a filter 'echo' already"),
        ("def lone():\n    return None\n", "lone takes a record"),
        ("def two(record, other):\n    return None\n", "two takes a record"),
        ("def words(record, way='x'):\n    return None\n", "words takes a record"),
        ("def all_of(*records):\n    return None\n", "all_of takes a record"),
        ("async def later(record):\n    return None\n", "neither async nor with yield"),
        ("def some(record):\n    yield None\n", "neither async nor with yield"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=r"mine\.py: ") as caught:
        load(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_file_or_name_is_bad_usage(tmp_path: Path, run: Run) -> None:
    missing = run("--own-filters", tmp_path / "none.py", "--out", tmp_path / "out")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "cannot be read" in missing.stderr
    unknown = run("--own-filters", write(tmp_path, TWO), "--filters", "too_load=off", "--out", tmp_path / "out")
    assert unknown.returncode == 2
    assert "there is no filter 'too_load'; the nearest is 'too_loud'" in unknown.stderr
    no_number = run("--own-filters", write(tmp_path, TWO), "--filters", "names_us=3", "--out", tmp_path / "out")
    assert "the filter 'names_us' takes on or off" in no_number.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_counts_them_names_them_and_replays_for_nothing(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(), tmp_path / "out"
    path = write(tmp_path, "def odd(record):\n    return 'odd' if int(record.id, 16) % 2 else None\n")
    assert run(*against(server, out, "--target", 24, "--own-filters", path)).returncode == 0
    rejected, kept = read_lines(out / "rejected.jsonl"), read_lines(out / "records.jsonl")
    mine = [line for line in rejected if line["filter"] == "odd"]
    assert mine
    assert {line["reason"] for line in mine} == {"odd"}
    assert json.loads((out / "summary.json").read_bytes())["rejected"]["odd"] == len(mine)
    assert not any(int(record["id"], 16) % 2 for record in kept)
    config = json.loads((out / "config.json").read_bytes())
    assert config["settings"]["own_filters"] == load(path).as_json()

    sent = len(server.ledger())
    write(tmp_path, "def even(record):\n    return None if int(record.id, 16) % 2 else 'even'\n")
    assert run(*against(server, out, "--target", len(mine), "--own-filters", path, "--offline")).returncode == 0
    assert [r["id"] for r in read_lines(out / "records.jsonl")] == [line["id"] for line in mine]
    assert len(server.ledger()) == sent
    assert (
        json.loads((out / "config.json").read_bytes())["settings"]["own_filters"] != config["settings"]["own_filters"]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\ndef shaky(record):\n    sys.exit(0)\n", "SystemExit: 0 (line 3)"),
        ("def shaky(record):\n    return 1 / (0 * len(record.output))\n", "division by zero (line 2)"),
        ("def shaky(record):\n    return len(record.output) > 3\n", "returned True"),
        ("def shaky(record):\n    return ''\n", "returned ''"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("judge", [False, True], ids=["fold", "before the judge"])
def test_a_filter_that_fails_stops_the_run_and_leaves_the_files(
    tmp_path: Path, run: Run, start_server: StartServer, text: str, said: str, judge: bool
) -> None:
    server, out = start_server(), tmp_path / "out"
    more = ["--judge"] if judge else []
    assert run(*against(server, out, "--target", 6, *more)).returncode == 0
    before = {name: (out / name).read_bytes() for name in ("records.jsonl", "rejected.jsonl", "summary.json")}
    ran = run(*against(server, out, "--target", 6, *more, "--own-filters", write(tmp_path, text)))
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Mend it, or --filters shaky=off" in ran.stderr
    assert {name: (out / name).read_bytes() for name in before} == before
    ran = run(
        *against(server, out, "--target", 6, *more, "--own-filters", tmp_path / "mine.py", "--filters", "shaky=off")
    )
    assert ran.returncode == 0
    assert (out / "records.jsonl").read_bytes() == before["records.jsonl"]


def test_the_example_in_the_guide_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    own = load(write(tmp_path, text.split("```python\n")[1].split("```")[0]))
    assert [(f.name, f.threshold) for f in own.filters] == [("too_loud", 0.3)]
    found = filtering.first_objection(own.filters, candidate("YES, IT IS."))
    assert found is not None
    assert found[1].reason == "64% capitals, above 30%"


def test_every_generator_takes_them() -> None:
    assert "own_filters" in GeneratorSettings.model_fields
