"""pipeline.regenerate: what a plan says, what a changed setting needs, what a gate refuses, what a month may cost."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline import curate, regenerate, self_kg, self_qa
from pipeline.errors import UsageError
from pipeline.regeneration.gate import Measured, objections
from pipeline.regeneration.project import Gate, read_project
from pipeline.regeneration.sources import UNREADABLE, difference
from pipeline.regeneration.training import flags_of
from pipeline.run_folder import locked, read_records
from tests.a_project import Folder, damaged, said
from tests.conftest import StartServer
from tests.fake_server import ROOT

Tick = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def folder(tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return Folder(tmp_path / "project", start_server())


@pytest.fixture
def tick(folder: Folder, capsys: pytest.CaptureFixture[str]) -> Tick:
    """`tick("--plan")`: the command on the folder's project; its exit code and its --json."""

    def tick_(*arguments: object) -> tuple[int, dict[str, Any]]:
        code = regenerate.main([str(folder.root / "regenerate.toml"), "--json", *map(str, arguments)])
        tick_.said = capsys.readouterr()  # type: ignore[attr-defined]
        lines = tick_.said.out.splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 1
        found: dict[str, Any] = json.loads(lines[0])
        assert found["exit"] == code
        return code, found

    return tick_


def below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# ---------------------------------------------------------------- a folder is a project's or a run's


@pytest.mark.parametrize("command", ["self_qa", "self_qa --plan", "self_kg", "curate"])
def test_no_run_goes_into_a_projects_folder(
    command: str, folder: Folder, tick: Tick, capsys: pytest.CaptureFixture[str]
) -> None:
    tick()
    before, sent = below(folder.root), len(folder.server.ledger())
    name, *flags = command.split()
    source = {"self_qa": "docs", "self_kg": "facts.tsv", "curate": "out/LATEST"}[name]
    main = {"self_qa": self_qa.main, "self_kg": self_kg.main, "curate": curate.main}[name]
    asked = [] if name == "curate" else ["--model", "fake", "--base-url", folder.server.base_url]
    assert main([str(folder.root / source), "--out", str(folder.root / "out"), *asked, *flags]) == 2
    assert "is a project of pipeline.regenerate; use another --out." in capsys.readouterr().err
    assert below(folder.root) == before
    assert len(folder.server.ledger()) == sent


@pytest.mark.parametrize("flags", [(), ("--plan",), ("--gc", 1)], ids=str)
def test_no_project_goes_into_a_runs_folder(flags: tuple[object, ...], folder: Folder, tick: Tick) -> None:
    asked = ["--model", "fake", "--base-url", folder.server.base_url]
    self_qa.main([str(folder.root / "docs"), "--out", str(folder.root / "out"), *asked])
    before, sent = below(folder.root), len(folder.server.ledger())
    code, found = tick(*flags)
    assert code == 2
    assert "was made by self_qa; give" in found["reason"]
    assert "another `out`" in found["reason"]
    assert (below(folder.root), len(folder.server.ledger())) == (before, sent)


def test_a_folder_of_old_that_holds_both_says_what_to_move_and_why(folder: Folder, tick: Tick) -> None:
    tick()
    asked = ["--model", "fake", "--base-url", folder.server.base_url, "--out", str(folder.root / "run")]
    self_qa.main([str(folder.root / "docs"), *asked])
    for name in ("config.json", "records.jsonl", "summary.json"):
        shutil.copy(folder.root / "run" / name, folder.root / "out" / name)
    code, found = tick()
    assert code == 2
    assert "holds a project and also a run of self_qa" in found["reason"]
    assert "--gc would delete the run's replies" in found["reason"]
    subprocess.run(found["reason"].rpartition("goes on: ")[2], shell=True, check=True)
    assert {path.name for path in (folder.root / "out-self_qa").iterdir()} == {
        "config.json", "records.jsonl", "summary.json",
    }  # fmt: skip
    code, found = tick()
    assert (code, found["sent"]) == (0, 0)


@pytest.mark.parametrize("every", ["tick", "month"])
def test_an_unknown_price_names_what_else_the_file_may_limit(every: str, folder: Folder, tick: Tick) -> None:
    folder.write(tables=f"[budget]\nmax_cost_per_{every} = 1.0")
    code, found = tick()
    assert code == 2
    assert f"[budget] max_cost_per_{every}: the price of 'fake' is unknown" in found["reason"]
    assert "limit the run by [budget] max_total_tokens_per_tick or [budget] max_requests_per_tick" in found["reason"]


# ---------------------------------------------------------------- plans, and changed settings


def test_a_plan_sends_and_writes_nothing_and_names_what_changed(folder: Folder, tick: Tick) -> None:
    code, plan = tick("--plan")
    assert (code, plan["requests"] > 10) == (0, True)
    assert not (folder.root / "out").exists()
    tick()
    sent, there = len(folder.server.ledger()), below(folder.root)
    assert tick("--plan")[1]["requests"] == 0
    folder.document("Marrowick", 31)
    folder.document("Hobbleside")
    (folder.root / "docs/quillfern.md").rename(folder.root / "docs/moved.md")
    (folder.root / "docs/tansyvole.md").unlink()
    code, plan = tick("--plan")
    assert code == 0
    docs = plan["sources"]["docs"]
    assert (docs["new"], docs["changed"], docs["gone"]) == (["hobbleside.md"], ["marrowick.md"], ["tansyvole.md"])
    assert docs["renamed"] == [["quillfern.md", "moved.md"]]
    assert docs["items"] == [2, 2]
    assert plan["sources"]["facts"]["requests"] == plan["sources"]["tasks"]["requests"] == 0
    assert len(folder.server.ledger()) == sent
    assert {path.name for path in below(folder.root) ^ there} == {
        "hobbleside.md",
        "moved.md",
        "quillfern.md",
        "tansyvole.md",
    }
    tick()
    assert len(folder.server.ledger()) - sent == docs["requests"], "the plan was right"


def test_a_changed_chain_that_is_stored_in_part_is_priced_by_what_is_missing(folder: Folder, tick: Tick) -> None:
    tick()
    folder.seeds["seed_Anvil"] = "Anvil"
    folder.write_seeds()
    folder.write(target=8)
    whole = tick("--plan")[1]["sources"]["tasks"]
    assert "0 records come of what is stored" in whole["assumes"]
    tick()
    assert tick("--plan")[1]["sources"]["tasks"]["requests"] == 0
    del folder.seeds["seed_Anvil"]  # the chain of the beginning, of which four records and more are stored
    folder.write_seeds()
    sent = len(folder.server.ledger())
    part = tick("--plan")[1]["sources"]["tasks"]
    stored = int(re.search(r"(\d+) records come of what is stored", part["assumes"])[1])  # type: ignore[index]
    assert 4 <= stored <= 8
    assert part["requests"] < whole["requests"]
    assert len(folder.server.ledger()) == sent, "a plan sends nothing"
    tick()
    assert tick("--plan")[1]["sources"]["tasks"]["requests"] == 0


def test_a_changed_setting_needs_a_word_and_says_what_it_would_cost(folder: Folder, tick: Tick) -> None:
    tick()
    before, sent = folder.data(), len(folder.server.ledger())
    folder.write(docs="temperature = 0.3")
    code, found = tick()
    assert code == 2
    assert "docs was made with other settings (temperature: null -> 0.3)" in found["reason"]
    assert "its 3 records would go, and about 6 requests be asked anew" in found["reason"]
    assert "accept_changes" in found["reason"]
    assert tick("--plan")[1]["refusal"] == found["reason"]
    assert (folder.data(), len(folder.server.ledger())) == (before, sent)
    code, found = tick("--accept-changes")
    assert (code, found["sent"]) == (0, 6)
    assert {line["body"]["temperature"] for line in folder.server.ledger()[sent:]} == {0.3}
    assert tick()[0] == 0, "what was accepted holds from then on"
    folder.write(docs="temperature = 0.4", extra="accept_changes = true")
    assert tick()[1]["sent"] == 6


def test_with_keep_only_what_is_new_is_asked_and_the_rest_is_copied(folder: Folder, tick: Tick) -> None:
    tick()
    before, sent = folder.records(), len(folder.server.ledger())
    folder.write(shared="temperature = 0.3")
    folder.document("Hobbleside")
    (folder.root / "docs/quillfern.md").rename(folder.root / "docs/moved.md")
    (folder.root / "docs/tansyvole.md").unlink()
    assert tick("--keep")[0] == 0
    new = folder.server.ledger()[sent:]
    assert new
    assert all("Hobbleside" in said(line) for line in new)
    after = {record["id"]: record for record in folder.records()}
    kept = [record for record in before if "tansyvole.md" not in json.dumps(record["source"])]
    assert {record["id"] for record in kept} < set(after)
    moved = [after[r["id"]]["source"][0] for r in kept if "quillfern.md" in json.dumps(r["source"])]
    assert moved
    assert {source["document"] for source in moved} == {"moved.md"}
    assert tick()[1]["sent"] == 0, "what was kept stays kept"
    folder.document("Hobbleside", 31)
    sent = len(folder.server.ledger())
    assert tick()[1]["sent"] == 2
    assert all("Hobbleside" in said(line) for line in folder.server.ledger()[sent:])
    assert tick("--accept-changes")[1]["sent"] > 10, "an accepted change asks the kept ones too"
    assert {r["id"] for r in kept} - {r["id"] for r in folder.records()}


def test_paths_shape_nothing(folder: Folder, tick: Tick) -> None:
    tick()
    before = {record["id"] for record in folder.records()}
    (folder.root / "docs").rename(folder.root / "papers")
    (folder.root / "papers/sub").mkdir()
    (folder.root / "papers/marrowick.md").rename(folder.root / "papers/sub/m.md")
    path = folder.root / "regenerate.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('"docs"]', '"papers"]'), encoding="utf-8")
    code, found = tick()
    assert (code, found["sent"]) == (0, 0)
    assert {record["id"] for record in folder.records()} == before
    assert not [line for line in folder.server.ledger() if "docs/" in said(line) or ".md" in said(line)]


# ---------------------------------------------------------------- a source that brings nothing


def only_an_unsupported_file(folder: Folder) -> None:
    for path in (folder.root / "docs").iterdir():
        path.unlink()
    (folder.root / "docs/photo.jpeg").write_bytes(b"\xff\xd8")


EMPTY: dict[str, tuple[Callable[[Folder], object], int, str, str]] = {
    "no file can be read": (
        only_an_unsupported_file, 3, "docs", "nothing in its files could be read (1 complaints). The first: photo.jpeg"
    ),
    "a filter takes all": (
        lambda folder: folder.write(docs="filters = {too_short = 50}"), 0, "docs",
        "every passage has been asked about, and there is nothing more. The likeliest cause: too_short took",
    ),
    "curation takes all": (
        lambda folder: folder.write(tables='select = 5\nquota = "task=0"'), 7, "[curate]",
        "it turned away all that the sources brought: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EMPTY)
def test_a_source_that_brings_nothing_says_why(what: str, folder: Folder, tick: Tick) -> None:
    edit, wanted, name, why = EMPTY[what]
    edit(folder)
    code, found = tick()
    assert (code, list(found["empty"])) == (wanted, [name])
    assert found["empty"][name].startswith(why)
    assert found["empty"][name] in tick.said.err  # type: ignore[attr-defined]
    _, again = tick()
    assert (again["empty"], again["sent"]) == (found["empty"], 0), "also where nothing has changed since"


def test_a_source_that_brings_something_is_not_explained(folder: Folder, tick: Tick) -> None:
    assert tick()[1]["empty"] == {}
    assert "brings no record" not in tick.said.err  # type: ignore[attr-defined]


@pytest.mark.parametrize(("paths", "why"), [('"docs/*.pdf"', "no such file, folder or glob"), ('"."', "no file")])
def test_paths_that_match_nothing_name_their_source(paths: str, why: str, folder: Folder, tick: Tick) -> None:
    (folder.root / "empty").mkdir()
    path = folder.root / "regenerate.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('"docs"]', f"{paths}]".replace('"."', '"empty"'), 1))
    code, found = tick()
    assert code == 2
    assert found["reason"].startswith(f"{path}, [[source]] docs: ")
    assert why in found["reason"]


# ---------------------------------------------------------------- versions


def test_a_version_is_whole_and_names_its_parent(folder: Folder, tick: Tick) -> None:
    tick()
    first = folder.latest
    folder.document("Marrowick", 31)
    tick()
    second = folder.latest
    assert second.manifest["parent"] == first.name
    assert second.manifest["sources"]["docs"]["files"].keys() == {"marrowick.md", "quillfern.md", "tansyvole.md"}
    assert second.manifest["sent"] == 2
    for version in (first, second):
        assert damaged(version) == []
        there = {p.relative_to(version.folder).as_posix() for p in version.folder.rglob("*") if p.is_file()}
        assert set(version.manifest["files"]) == there - {"manifest.json"}
    code, found = tick("--diff", first.name, "LATEST")
    ids = [{record.id for record in read_records(version.folder)} for version in (first, second)]
    assert code == 0
    assert set(found["added"]) | {new for _, new in found["changed"]} == ids[1] - ids[0]
    assert set(found["removed"]) | {old for old, _ in found["changed"]} == ids[0] - ids[1]
    assert found["added"] or found["changed"]
    assert tick("--diff", "nothing", "LATEST")[0] == 2


@pytest.mark.slow
def test_keep_versions_collects_after_each_new_version(folder: Folder, tick: Tick) -> None:
    folder.write(extra="keep_versions = 2")
    for number in (12, 31, 32, 33):
        folder.document("Marrowick", number)
        tick()
    assert len(folder.versions.all()) == 2
    assert folder.versions.newest() == folder.latest
    assert (folder.in_journal("31 hens"), folder.in_journal("32 hens") != []) == ([], True)


def test_gc_keeps_the_replies_that_the_kept_versions_read(folder: Folder, tick: Tick) -> None:
    tick()
    folder.document("Marrowick", 31)
    tick()
    assert folder.in_journal("12 hens") != []
    code, found = tick("--gc", "1")
    assert (code, len(found["removed"]), found["replies"]) == (0, 1, 2)
    assert [version.name for version in folder.versions.all()] == [folder.latest.name]
    sent = len(folder.server.ledger())
    assert tick()[1]["sent"] == 0, "what the kept version was made from is there"
    with sqlite3.connect(folder.root / "out/journal.sqlite") as connection:
        usage = connection.execute("SELECT count(*), sum(prompt_tokens) FROM attempts").fetchone()
    connection.close()
    assert usage[0] == sent
    assert usage[1] > 0
    folder.document("Marrowick", 12)
    assert tick()[1]["sent"] == 2, "what was collected is asked again"


# ---------------------------------------------------------------- the gate


def test_a_refused_version_stays_with_its_reason_and_latest_stays_where_it_is(folder: Folder, tick: Tick) -> None:
    folder.write(tables="[gate]\nlargest_drop = 0.05")
    tick()
    first = folder.latest
    (folder.root / "docs/tansyvole.md").unlink()
    for _ in range(2):  # the second time there is nothing new to refuse
        code, found = tick()
        assert (code, found["published"]) == (7, False)
        assert "above largest_drop = 0.05" in found["reasons"][0]
        assert folder.latest.name == first.name
        assert len(folder.versions.all()) == 2
    refused = folder.versions.newest()
    assert refused is not None
    assert refused.manifest["gate"]["reasons"] == found["reasons"]
    folder.write(tables="[gate]\nlargest_drop = 0.5")
    assert tick()[0] == 0
    assert folder.latest.manifest["content"] == refused.manifest["content"]


@pytest.mark.parametrize(
    ("rules", "found", "said"),
    [
        ({"least_records": 11}, {}, "10 records, fewer than least_records = 11"),
        ({"least_records": 10}, {}, None),
        ({"largest_drop": 0.5}, {"before": 21}, "above largest_drop"),
        ({"largest_drop": 0.5}, {"before": 20}, None),
        ({"largest_drop": 0.0}, {"before": None}, None),
        ({"kept_ratio": 0.51}, {}, "10 of 20 candidates kept"),
        ({"kept_ratio": 0.5}, {}, None),
        ({"judge_score": 4.0}, {"judge_score": 3.99}, "below judge_score = 4"),
        ({"judge_score": 4.0}, {}, "no record has a judge score"),
        ({"judge_score": 4.0}, {"judge_score": 4.0}, None),
        ({"verdict": "better"}, {"verdict": "cannot tell"}, "training says 'cannot tell'"),
        ({"verdict": "not worse"}, {"verdict": "cannot tell"}, None),
        ({"verdict": "not worse"}, {"verdict": "worse"}, "training says 'worse'"),
        ({"verdict": "better"}, {"verdict": "better"}, None),
    ],
)
def test_each_rule_of_the_gate(rules: dict[str, Any], found: dict[str, Any], said: str | None) -> None:
    measured = {"records": 10, "before": None, "candidates": 20, "judge_score": None, "verdict": None} | found
    why = objections(Gate(**rules), Measured(**measured))
    assert len(why) == (said is not None)
    assert said is None or said in why[0]


# ---------------------------------------------------------------- budgets


def test_a_tick_keeps_to_its_budget_and_the_next_goes_on(folder: Folder, tick: Tick) -> None:
    folder.write(tables="[budget]\nmax_requests_per_tick = 7")
    code, found = tick()
    assert code == 4
    assert "[budget] max_requests_per_tick 7 is reached" in found["reason"]
    assert len(folder.server.ledger()) == 7
    assert folder.versions.latest() is None
    codes = [tick()[0] for _ in range(3)]
    assert 0 in codes
    assert {line["attempt"] for line in folder.server.ledger()} == {1}


@pytest.mark.slow
def test_a_month_keeps_to_its_budget_over_ticks_and_the_next_month_is_a_new_one(folder: Folder, tick: Tick) -> None:
    folder.write(tables="[budget]\nmax_requests_per_month = 7\nmax_requests_per_tick = 100")
    for _ in range(2):
        code, found = tick()
        assert code == 4
        assert "max_requests_per_month = 7" in found["reason"]
        assert len(folder.server.ledger()) == 7
    with sqlite3.connect(folder.root / "out/journal.sqlite") as connection:
        connection.execute("UPDATE attempts SET started = started - 40 * 86400")
    connection.close()
    assert tick()[0] == 4
    assert len(folder.server.ledger()) == 14


@pytest.mark.slow
@pytest.mark.parametrize("span", ["tick", "month"])
def test_a_limit_in_dollars_needs_a_price_and_holds(span: str, folder: Folder, tick: Tick) -> None:
    folder.write(tables=f"[budget]\nmax_cost_per_{span} = 0.08")
    assert tick()[0] == 2
    assert folder.server.ledger() == []
    (folder.root / "prices.toml").write_text("[fake]\ninput = 10\noutput = 20\n", encoding="utf-8")
    code, found = tick()
    assert code == 4
    assert f"[budget] max_cost_per_{span}" in found["reason"]
    folder.write(tables="[budget]\nmax_total_tokens_per_tick = 3000")
    assert "max_total_tokens_per_tick" in tick()[1]["reason"]


@pytest.mark.parametrize("damage", [b"", b"[1]"])
def test_damaged_notes_of_our_own_are_named_or_done_without(damage: bytes, folder: Folder, tick: Tick) -> None:
    (folder.root / "docs/broken.pdf").write_bytes(b"%PDF-1.7 broken")
    assert tick()[0] == 3
    (folder.root / "out/reported.json").write_bytes(damage)
    code, found = tick()
    assert (code, len(found["bad_files"])) == (3, 1), "it is told once more"
    assert tick()[0] == 0
    (folder.root / "out/tick.json").write_bytes(damage)
    code, found = tick()
    assert code == 6
    assert "tick.json: is damaged" in found["reason"]
    assert tick()[0] == 0, "it was said once"


# ---------------------------------------------------------------- revocation


def test_revoking_is_planned_and_what_others_support_stays(folder: Folder, tick: Tick) -> None:
    (folder.root / "docs/copy.md").write_bytes((folder.root / "docs/marrowick.md").read_bytes())
    tick()
    sent, there = len(folder.server.ledger()), below(folder.root)
    code, planned = tick("--revoke", "quillfern.md", "--plan")
    assert (code, planned["records"], planned["replies"]) == (0, 1, 2)
    assert below(folder.root) == there
    assert tick("--revoke", "quillfren.md")[0] == 2
    assert "nearest is 'quillfern.md'" in tick.said.err  # type: ignore[attr-defined]
    assert tick("--revoke", "quillfern.md")[0] == 0
    assert folder.traces("Quillfern") == folder.in_journal("Quillfern") == []
    assert folder.in_journal("Marrowick") != []
    held = {r["id"] for r in folder.records() if len(r["source"]) == 2}
    assert held
    assert tick("--revoke", folder.root / "docs/marrowick.md")[0] == 0
    left = {r["id"]: r["source"] for r in folder.records()}
    assert all([source["document"] for source in left[id_]] == ["copy.md"] for id_ in held)
    assert tick("--revoke", "more.tsv")[0] == 0
    assert folder.in_journal("Carrow") == []
    assert folder.in_journal("Pellwick") != []
    assert len(folder.server.ledger()) == sent, "revoking sends nothing"
    assert tick()[1]["sent"] == 0, "and leaves nothing to ask, where no chain is touched"


def test_what_is_revoked_stands_in_no_other_documents_input_either(folder: Folder, tick: Tick) -> None:
    for number in range(6):
        folder.document(f"Hamlet{number}", 20 + number)
    folder.write(docs='mode = "open"\ndistractors = 2\nwithout_passage = 0.0')
    tick()
    before = {r["id"]: r for r in folder.records() if r["generator"] == "self_qa"}
    shown = [r for r in before.values() if "Quillfern" in r["input"] and r["source"][0]["document"] != "quillfern.md"]
    assert shown, "it is a distractor of others"
    sent = len(folder.server.ledger())
    assert tick("--revoke", "quillfern.md")[0] == 0
    assert folder.traces("Quillfern") == folder.in_journal("Quillfern") == []
    left = {record["id"] for record in folder.records()}
    elsewhere = {id_ for id_, record in before.items() if "Quillfern" not in json.dumps(record)}
    assert elsewhere
    assert elsewhere <= left, "what shows nothing of it stays"
    assert tick()[1]["sent"] == 0
    assert len(folder.server.ledger()) == sent
    assert {r["source"][0]["document"] for r in shown} <= {
        r["source"][0]["document"] for r in folder.records() if r["generator"] == "self_qa"
    }, "the next tick puts other passages beside the same questions"
    assert folder.traces("Quillfern") == []


@pytest.mark.slow
def test_what_vanished_long_ago_or_was_renamed_can_be_revoked(folder: Folder, tick: Tick) -> None:
    folder.document("Hobbleside")
    tick()
    (folder.root / "docs/hobbleside.md").unlink()
    (folder.root / "docs/marrowick.md").rename(folder.root / "docs/moved.md")
    tick()
    folder.document("Quillfern", 31)
    tick()
    assert folder.in_journal("Hobbleside") != []
    assert tick("--revoke", "hobbleside.md")[0] == 0
    assert folder.in_journal("Hobbleside") == []
    assert tick("--revoke", "docs/moved.md")[0] == 0
    assert folder.in_journal("Marrowick") == folder.traces("Marrowick") == []
    assert tick()[1]["sent"] == 0
    assert folder.in_journal("31 hens") != []


def test_a_plan_counts_the_judge(folder: Folder, tick: Tick) -> None:
    """Its verdicts are sent and paid like all else: about as many as planned, none again, all anew by another judge."""
    plain = tick("--plan")[1]["requests"]
    folder.write(shared="judge = true\njudge_model = 'j'")
    assert tick("--plan")[1]["requests"] > 1.2 * plain
    assert tick()[0] in (0, 3)
    documents = ("docs", "facts")  # what a chain is assumed to ask is another matter
    planned = tick("--plan")[1]["sources"]
    assert [planned[name]["requests"] for name in documents] == [0, 0]
    folder.write(shared="judge = true\njudge_model = 'k'")
    planned = tick("--plan")[1]["sources"]
    sent = len(folder.server.ledger())
    assert tick()[0] in (0, 3)
    verdicts = [line["body"] for line in folder.server.ledger()[sent:] if line["body"]["model"] == "k"]
    grounded = sum("grounding" in json.dumps(body["response_format"]) for body in verdicts)
    assert sum(planned[name]["requests"] for name in documents) == grounded
    judged = [line for line in tick.said.err.splitlines() if ": Judged " in line]  # type: ignore[attr-defined]
    assert [line.partition(":")[0] for line in judged] == ["docs", "facts", "tasks"]
    assert all(line.endswith("0 gave no verdict.") for line in judged)


@pytest.mark.slow
def test_a_judge_scores_for_the_gate_and_forgets_what_is_revoked(folder: Folder, tick: Tick) -> None:
    folder.write(shared="judge = true\nfilters = {poor = false}", tables="[gate]\njudge_score = 5.5")
    code, found = tick()
    assert code == 7
    assert ", below judge_score = 5.5" in found["reasons"][0]
    folder.write(tables="[gate]\njudge_score = 1")
    assert tick()[0] == 0
    assert all("judge" in record["scores"] for record in folder.records())
    assert tick("--revoke", "marrowick.md")[0] == 0
    assert folder.in_journal("Marrowick") == []


@pytest.mark.slow
def test_revoking_a_seed_takes_what_descends_from_it(folder: Folder, tick: Tick) -> None:
    folder.write(target=8)
    tick()
    before = [record for record in folder.records() if record["generator"] == "self_instruct"]
    assert tick("--revoke", "seed_Abacus", "--plan")[0] == 0
    assert "tasks is a chain and would be asked anew: about" in tick.said.err  # type: ignore[attr-defined]
    code, found = tick("--revoke", "seed_Abacus")
    assert code == 0
    left = {record["id"] for record in folder.records()}
    drew = [record for record in before if any("seed_Abacus" in source["seeds"] for source in record["source"])]
    assert drew
    assert not left & {record["id"] for record in drew}
    assert found["replies"] > 0
    assert folder.in_journal("Abacus") == []
    assert folder.traces("seed_Abacus") == []
    code, found = tick()
    assert (code, found["sent"] > 0) == (0, True), "the chain is asked anew without it"
    assert folder.traces("Abacus") == []


# ---------------------------------------------------------------- the file, and small parts


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("target = 4", "targte = 4", "[[source]] tasks: there is no setting 'targte'; the nearest is 'target'."),
        ('["docs"]', "[]", "[[source]] docs: no documents: name a folder"),
    ],
)
def test_a_wrong_file_gets_one_sentence(old: str, new: str, said: str, folder: Folder, tick: Tick) -> None:
    path = folder.root / "regenerate.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    code, found = tick()
    assert code == 2
    assert found["reason"].startswith(f"{path}, {said}")
    assert folder.server.ledger() == []


def test_the_shipped_project_is_sound() -> None:
    project = read_project(ROOT / "regenerate.toml")
    assert {source.generator for source in project.sources} == {"self_qa", "self_kg", "self_instruct"}
    assert project.out == ROOT / "outputs/example"
    assert all(source.settings.model is None for source in project.sources)


def test_a_project_that_is_busy_is_left_alone(folder: Folder, tick: Tick) -> None:
    with locked(folder.root / "out"):
        assert tick()[0] == 75
    assert folder.server.ledger() == []


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_project(tmp_path / "regenerate.toml")


def test_a_file_that_moved_is_renamed_and_an_unreadable_one_is_not() -> None:
    found = difference({"a": "1", "b": "2", "c": UNREADABLE}, {"d": "1", "b": "3", "e": UNREADABLE})
    assert (found.renamed, found.changed, found.new, found.gone) == ([("a", "d")], ["b"], ["e"], ["c"])


@pytest.mark.skipif(not (find_spec("peft") and find_spec("trl")), reason="[train] needs the extra train")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learnin_rate = 0.1", "there is no setting 'learnin_rate'; the nearest is 'learning_rate'."),
        ('steps = "many"', "argument --steps: invalid int value: 'many'."),
        ('out = "elsewhere"', "there is no setting 'out'; the nearest is "),
    ],
)
def test_a_wrong_training_setting_is_told_before_anything_is_asked(
    setting: str, said: str, folder: Folder, tick: Tick
) -> None:
    folder.write(tables=f"[train]\n{setting}")
    code, found = tick()
    assert code == 2
    assert found["reason"].startswith(f"{folder.root / 'regenerate.toml'}, [train]: {said}")
    assert folder.server.ledger() == []


def test_training_settings_become_flags() -> None:
    flags = flags_of({"steps": 20, "learning_rate": 1e-4, "packing": False, "rslora": True})
    assert flags == ["--steps", "20", "--learning-rate", "0.0001", "--no-packing", "--rslora"]
