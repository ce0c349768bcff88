"""The last lines of a run that fell short: which end it came to, what most likely did it, and what turns that off."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import filters, self_kg, self_qa
from pipeline.funnel import likeliest_cause, what_next, why_short
from pipeline.records import Rejection
from pipeline.run import Tally
from tests.a_project import DOCUMENT
from tests.conftest import Run, StartServer, against, read_lines
from tests.fake_server import ROOT

SWITCHES = filters.ALL


def rejection(filter_: str, **fields: Any) -> Rejection:
    return Rejection(
        **({"stage": "record", "filter": filter_, "reason": "a reason", "generator": "g", "model": "m"} | fields)
    )


def tally(firsts: dict[str, Rejection], ended: Any = "exhausted", **counts: int) -> Tally:
    return Tally(rejected=Counter(counts), firsts=firsts, ended=ended)


def test_the_end_is_named() -> None:
    assert why_short(Tally(ended="barren"), "all was asked") == "200 items in a row brought no record that was kept"
    assert why_short(Tally(ended="exhausted"), "all was asked") == "all was asked, and there is nothing more"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (
            tally({"language": rejection("language", instruction="Say it.", threshold=0.8)}, language=30, echo=10),
            "language took 30 of the 40 turned away (75%), the first because a reason ('Say it.'). If that is wrong:"
            " --filters language=off, or language=X for another threshold than 0.8.",
        ),
        (tally({"echo": rejection("echo")}, echo=1), "--filters echo=off."),
        (
            tally({"novelty": rejection("novelty", stage="instruction", threshold=0.7)}, novelty=2),
            "; it decides what later prompts show, so with a new --out.",
        ),
        (tally({"wrong_call": rejection("wrong_call")}, wrong_call=2), "No setting turns that off."),
        (tally({"cut_off": rejection("cut_off")}, cut_off=2), "more room with --max-tokens"),
        (Tally(merged=5), "5 candidates were exact duplicates"),
        (Tally(), "No candidate came at all"),
    ],
)  # fmt: skip
def test_the_likeliest_cause(seen: Tally, said: str) -> None:
    assert said in likeliest_cause(seen, SWITCHES)


def test_where_little_was_turned_away_the_sources_gave_no_more() -> None:
    seen = tally({"echo": rejection("echo")}, echo=5)
    seen.kept = 20
    said = likeliest_cause(seen, SWITCHES, 100, "self_qa")
    assert said.startswith("80 records are missing, and only 5 candidates were turned away or merged")
    assert said.endswith("What helps: a higher --per-chunk, or more documents.")
    assert "echo took 5 of the 5" in likeliest_cause(seen, SWITCHES, 30, "self_qa"), "half of what is missing"
    seen.ended = "barren"
    assert "echo took 5 of the 5" in likeliest_cause(seen, SWITCHES, 100, "self_qa")


@pytest.mark.parametrize(
    ("seen", "generator", "said"),
    [
        (Tally(ended="exhausted"), "self_qa", "a higher --per-chunk, or more documents"),
        (
            tally({"echo": rejection("echo")}, echo=5), "self_kg",
            "a higher --per-fact or --hops, or more facts; or looser --filters (they turned away 5)",
        ),
        (
            tally({"parse": rejection("parse", stage="reply")}, parse=3), "self_qa",
            "a higher --per-chunk, or more documents; or another --model (3 replies could not be read)",
        ),
        (Tally(ended="exhausted"), "self_instruct", "more seed tasks, or another --seed"),
        (tally({"echo": rejection("echo")}, "barren", echo=5), "self_qa",
         "looser --filters (they turned away 5); or another --seed"),
        (Tally(ended="barren", merged=3), "self_kg", "another --seed"),
        (tally({"parse": rejection("parse", stage="reply")}, "barren", parse=300), "self_qa",
         "another --model (300 replies could not be read); or other sources"),
    ],
)  # fmt: skip
def test_only_what_can_help_is_suggested(seen: Tally, generator: str, said: str) -> None:
    assert what_next(seen, SWITCHES, generator) == said


def test_where_the_documents_gave_no_more_nothing_is_left_and_no_filter_is_to_blame(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "mill.md").write_text(DOCUMENT.format(word="Quillfern", number=12), encoding="utf-8")
    asked = ["--model", "fake", "--base-url", start_server().base_url, "--target", "90", "--out", str(tmp_path / "out")]
    assert self_qa.main([str(tmp_path / "mill.md"), *asked]) == 3
    said = capsys.readouterr().err
    progress = next(line for line in said.split("\n") if line.startswith("kept "))
    assert not progress.startswith("kept 0")
    assert " left" not in progress, "there is nothing more"
    *_, last = said.rstrip().split("\n")
    assert "a higher --per-chunk, or more documents" in last
    assert "--seed" not in last


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("request_failed", "--retry-failed"),
        ("cut_off", "--max-tokens"),
        ("not_json", "JSON"),
        ("reasoning_only", "--extra-body"),
        ("reasoning_only", "--max-tokens"),
        ("other", "another --model"),
    ],
)
def test_replies_that_could_not_be_read(reason: str, said: str) -> None:
    seen = tally({"parse": rejection("parse", stage="reply", value=reason)}, parse=3)
    seen.reasons[reason] = 3
    assert said in likeliest_cause(seen, SWITCHES)


@pytest.mark.slow
def test_nothing_kept_names_the_filter_that_took_it_all(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    own = tmp_path / "mine.py"
    own.write_text("def nothing(record):\n    return 'nothing is good enough'\n", encoding="utf-8")
    ran = run(*against(server, out, "--target", 3, "--own-filters", own))
    assert ran.returncode == 3
    assert "Nothing was kept: 200 items in a row brought no record that was kept." in ran.stderr
    assert "nothing took " in ran.stderr
    assert "the first because nothing is good enough" in ran.stderr
    assert "--filters nothing=off" in ran.stderr
    assert read_lines(out / "records.jsonl") == []
    assert run(*against(server, out, "--target", 3, "--own-filters", own, "--filters", "nothing=off")).returncode == 0


def test_a_graph_that_is_too_small_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(ROOT / "kg/planets.ttl"), "--template", "--target", "100000", "--out", str(tmp_path / "out")]
    assert self_kg.main(flags) == 3
    said = capsys.readouterr().err
    assert (
        "Short of the target: every question that the graph allows has been asked, and there is nothing more." in said
    )


def test_instruction_filters_act_on_a_graphs_questions_where_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def questions(*more: str) -> tuple[list[str], Counter[str]]:
        out = tmp_path / "_".join(("out", *more))
        self_kg.main([str(ROOT / "kg/planets.ttl"), "--template", "--target", "60", "--out", str(out), *more])
        kept = [record["instruction"] for record in read_lines(out / "records.jsonl")]
        return kept, Counter(line["filter"] for line in read_lines(out / "rejected.jsonl"))

    plain, none = questions()
    assert not none.keys() & {"novelty", "too_short"}
    new, took = questions("--filters", "novelty=0.6,too_short=6")
    assert took["novelty"]
    assert took["too_short"]
    assert len(new) == len(plain) == 60
    assert set(new) != set(plain)
