"""pipeline.curate from end to end: what stays, what is said about the rest, and that bad input writes nothing.

Run: pytest tests/test_curate.py    (the tests with the real embedding model are in test_semantic.py)
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import curate
from pipeline.curation.parents import open_parent, read_parent
from pipeline.errors import UsageError
from pipeline.records import PromptSource, Record, make_record
from pipeline.run_folder import DerivedFiles, read_records, write_json

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))

POEM = "The tide comes in at evening and carries every footprint of the afternoon back to the dark and patient sea."
SUBJECTS = (
    "granite bread violins tax harbours moss algebra kites glaciers soup typography bees iron sleep maps chess"
    " rivers glass onions courage clocks satin thunder postage ladders"
).split()


def record(
    instruction: str,
    output: str = "",
    input: str = "",
    generator: str = "self_instruct",
    seeds: Sequence[str] = ("s1",),
    **scores: float,
) -> Record:
    made = make_record(
        instruction=instruction, input=input, output=output or f"On {instruction}", task="generation",
        generator=generator, model="m", language="en", source=PromptSource(prompt=0, seeds=tuple(seeds), pool=()),
        prompts={"p": "h"}, requests=("r",),
    )  # fmt: skip
    return made.model_copy(update={"scores": scores})


def run_folder(folder: Path, records: Sequence[Record]) -> Path:
    folder.mkdir(parents=True)
    with DerivedFiles(folder) as files:
        for one in records:
            files.keep(one)
        files.publish({"kept": len(records)})
    write_json(folder / "config.json", {"generator": "self_instruct", "shaping": {}})
    return folder


def plain(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: object, code: int = 0) -> None:
    words = [str(argument) for argument in arguments]
    if "--semantic-duplicates" not in words:
        words += ["--semantic-duplicates", "off"]
    assert curate.main(words) == code


def rejected(folder: Path) -> dict[str, dict[str, Any]]:
    """instruction -> rejection"""
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {rejection["instruction"]: rejection for rejection in map(json.loads, lines)}


def kept(folder: Path) -> list[str]:
    return [one.instruction for one in read_records(folder)]


# ---------------------------------------------------------------- merging


def test_runs_are_merged_and_equal_records_list_all_sources(tmp_path: Path) -> None:
    twice = record("Name a river.", "The Elbe.", seeds=["s1"], judge=4.0)
    again = record("Name a river.", "The Elbe.", seeds=["s2"], other=1.0)
    a = run_folder(tmp_path / "a", [twice, record("Count to three.", "One, two, three.")])
    b = run_folder(tmp_path / "b", [again, record("Name a colour.", "Ochre.")])
    run(a, b, "--out", tmp_path / "c")
    records = list(read_records(tmp_path / "c"))
    assert [one.instruction for one in records] == ["Name a river.", "Count to three.", "Name a colour."]
    assert records[0].source == (*twice.source, *again.source)
    assert records[0].scores == {"judge": 4.0, "other": 1.0}
    assert records[1] == record("Count to three.", "One, two, three.")
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert (summary["read"], summary["merged"], summary["kept"]) == (4, 1, 3)


def test_the_config_names_parents_by_path_and_hash(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [record("Name a river.")])
    b = plain(tmp_path / "b.jsonl", [{"instruction": "Count.", "output": "1"}])
    against = plain(tmp_path / "held.jsonl", [{"question": POEM}])
    run(a, b, "--out", tmp_path / "c", "--against", against)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    sha = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (a / "records.jsonl", b, against)}
    assert config["generator"] == "curate"
    assert config["parents"] == [
        {"path": str(a), "sha256": sha[a / "records.jsonl"]},
        {"path": str(b), "sha256": sha[b]},
    ]
    assert config["against"] == [{"path": str(against), "sha256": sha[against]}]
    assert config["settings"]["near_duplicates"] == 0.7


def test_a_parent_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Its hash would stand in config.json beside records that it is not the hash of."""
    a = run_folder(tmp_path / "a", [record("Name a river."), record("Count to three.")])
    parent = open_parent(a)
    reading = read_parent(parent)
    assert next(reading).instruction == "Name a river."
    with DerivedFiles(a) as files:
        files.publish({})
    with pytest.raises(UsageError, match="changed while it was read"):
        list(reading)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz", "x.csv"])
def test_plain_files_become_records(tmp_path: Path, name: str) -> None:
    rows = [
        {"instruction": "Name a river.", "input": "", "output": "The Elbe."},
        {"instruction": "翻译成英文", "input": "你好", "output": "Hello\nthere\u2028all"},
    ]
    if ".csv" in name:
        text = 'instruction,input,output\nName a river.,,The Elbe.\n翻译成英文,你好,"Hello\nthere\u2028all"\n'
    elif ".jsonl" in name:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        text = json.dumps(rows)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    run(tmp_path / name, "--out", tmp_path / "c")
    records = list(read_records(tmp_path / "c"))
    assert [(one.instruction, one.input, one.output) for one in records] == [
        (row["instruction"], row["input"], row["output"]) for row in rows
    ]
    assert {(one.generator, one.task, one.model) for one in records} == {("imported", "generation", "")}
    assert [one.language for one in records] == ["en", "zh"]
    assert records[0].source[0].model_dump() == {"file": name, "line": 2 if ".csv" in name else 1}


def test_what_a_plain_row_may_bring_along(tmp_path: Path) -> None:
    row = {"instruction": "Go on.", "output": "Bye.", "history": [["Hi", "Hello"]], "scores": {"judge": 3},
           "task": "qa", "language": "fr", "extra": 1}  # fmt: skip
    run(plain(tmp_path / "x.jsonl", [row]), "--out", tmp_path / "c")
    (one,) = read_records(tmp_path / "c")
    assert (one.history, one.scores, one.task, one.language) == ((("Hi", "Hello"),), {"judge": 3.0}, "qa", "fr")


@pytest.mark.parametrize(
    ("text", "language"), [("Name a river.", "en"), ("说说大海", "zh"), ("Расскажи о море", "und"), ("1 + 1 = ?", "en")]
)
def test_the_language_of_a_plain_row_is_told_by_its_script(tmp_path: Path, text: str, language: str) -> None:
    run(plain(tmp_path / "x.jsonl", [{"instruction": text, "output": ""}]), "--out", tmp_path / "c")
    assert next(read_records(tmp_path / "c")).language == language


def test_a_curated_folder_can_be_curated(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [record("Name a river.")])
    run(a, "--out", tmp_path / "c")
    run(tmp_path / "c", "--out", tmp_path / "d")
    assert (tmp_path / "d" / "records.jsonl").read_bytes() == (a / "records.jsonl").read_bytes()


def test_a_record_edited_by_hand_gets_the_id_of_its_text(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [record("Name a river.", "The Elbe.")])
    path = a / "records.jsonl"
    path.write_text(path.read_text().replace("The Elbe.", "The Oder."))
    run(a, "--out", tmp_path / "c")
    assert next(read_records(tmp_path / "c")).id == record("Name a river.", "The Oder.").id


# ---------------------------------------------------------------- the steps


def test_of_near_duplicates_the_better_score_stays_then_the_earlier(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [record("Write about the sea.", POEM, judge=3.0), record("Sing.", POEM, judge=2.0)])
    b = run_folder(
        tmp_path / "b",
        [
            record("Write about the sea.", POEM + " Amen.", judge=5.0),
            record("Sing.", POEM + " Amen.", judge=2.0),
            record("Write about the sea.", POEM + " Ah."),  # no score ranks last
        ],
    )
    run(a, b, "--out", tmp_path / "c")
    records = list(read_records(tmp_path / "c"))
    assert [(one.instruction, one.scores.get("judge")) for one in records] == [
        ("Sing.", 2.0),
        ("Write about the sea.", 5.0),
    ]
    lines = [json.loads(line) for line in (tmp_path / "c" / "rejected.jsonl").read_text().splitlines()]
    for loser in lines:
        winner = next(one for one in records if one.instruction == loser["instruction"])
        assert loser["filter"] == "near_duplicate"
        assert loser["stage"] == "record"
        assert loser["neighbour"] == {"id": winner.id, "text": winner.instruction}
        assert winner.id in loser["reason"]
        assert 0.7 <= loser["value"] < 1
        assert loser["threshold"] == 0.7
    assert len(lines) == 3


def test_rank_by_names_another_score(tmp_path: Path) -> None:
    a = run_folder(
        tmp_path / "a",
        [record("Sing.", POEM, judge=1.0, fit=9.0), record("Sing.", POEM + " Amen.", judge=9.0, fit=1.0)],
    )
    run(a, "--out", tmp_path / "c")
    run(a, "--out", tmp_path / "d", "--rank-by", "fit")
    assert [one.scores["fit"] for one in read_records(tmp_path / "c")] == [1.0]
    assert [one.scores["fit"] for one in read_records(tmp_path / "d")] == [9.0]


def test_thresholds_on_scores(tmp_path: Path) -> None:
    a = run_folder(
        tmp_path / "a",
        [
            record("Sing.", judge=4.0, fit=0.5),
            record("Hum.", judge=3.9, fit=0.9),
            record("Whistle.", judge=5.0, fit=0.4),
            record("Clap.", fit=0.9),
        ],
    )
    run(a, "--out", tmp_path / "c", "--min-score", "judge=4,fit=0.5")
    assert kept(tmp_path / "c") == ["Sing."]
    said = {name: (one["filter"], one["value"], one["threshold"]) for name, one in rejected(tmp_path / "c").items()}
    assert said == {
        "Hum.": ("below_score", 3.9, 4.0),
        "Whistle.": ("below_score", 0.4, 0.5),
        "Clap.": ("below_score", None, 4.0),
    }


def test_contaminated_records_name_the_item(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [record("Read this.", input=f"Quote: {POEM} End."), record("Name a river.")])
    against = plain(tmp_path / "held.jsonl", [{"id": "h7", "question": POEM, "answer": "Evening."}])
    run(a, "--out", tmp_path / "c", "--against", against)
    assert kept(tmp_path / "c") == ["Name a river."]
    hit = rejected(tmp_path / "c")["Read this."]
    assert hit["filter"] == "contaminated"
    assert hit["neighbour"] == {"id": "held.jsonl:h7", "text": POEM}
    assert hit["value"] == "the tide comes in at evening and carries"
    run(a, "--out", tmp_path / "d", "--against", against, "--ngram-words", "40", "--near-benchmark", "0.99")
    assert len(kept(tmp_path / "d")) == 2


def test_a_contaminated_or_low_record_takes_no_clean_one_along(tmp_path: Path) -> None:
    """Duplicates are looked for among what is left, so that the better one of a pair cannot take both out."""
    a = run_folder(
        tmp_path / "a",
        [record("Sing.", POEM, judge=1.0, fit=1.0), record("Sing.", POEM + " Amen.", judge=9.0, fit=0.0)],
    )
    run(a, "--out", tmp_path / "c", "--min-score", "fit=0.5")
    assert [one.scores["judge"] for one in read_records(tmp_path / "c")] == [1.0]


def test_the_funnel_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", [record("Sing.", POEM, judge=1.0), record("Sing.", POEM + " Ah.", judge=2.0),
                                    record("Hum.", judge=0.5)])  # fmt: skip
    run(a, "--out", tmp_path / "c", "--min-score", "judge=1", "--select", "1", "--json")
    printed = capsys.readouterr()
    for line in ("3 records: 3 read, 0 merged", "2 left; 1 below_score", "1 left; 1 near_duplicate",
                 "1 left; 0 not_selected", "Next:"):  # fmt: skip
        assert line in printed.err
    summary = json.loads(printed.out)
    assert summary["funnel"] == {"below_score": 2, "near_duplicate": 1, "not_selected": 1}
    assert summary["rejected"] == {"below_score": 1, "near_duplicate": 1}
    written = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert written.pop("files").keys() == {"records.jsonl", "rejected.jsonl"}
    assert written == summary


# ---------------------------------------------------------------- selection


def subjects() -> list[Record]:
    """Records about 25 things, three each that differ in words but little; the first of each is the best."""
    return [
        record(f"Please write {copy} short and clear sentences about {subject} for a child of seven years",
               f"{subject} {copy}" * 9, judge=10.0 - copy - number / 100)
        for number, subject in enumerate(SUBJECTS)
        for copy in range(3)
    ]  # fmt: skip


def test_select_takes_the_best_first(tmp_path: Path) -> None:
    different = [record(" ".join(SUBJECTS[n : n + 3]), judge=float(n % 7)) for n in range(0, 24, 3)]
    a = run_folder(tmp_path / "a", different)
    run(a, "--out", tmp_path / "c", "--select", "3")
    best = sorted(different, key=lambda one: -one.scores["judge"])[:3]
    assert set(kept(tmp_path / "c")) == {one.instruction for one in best}
    assert kept(tmp_path / "c") == [one.instruction for one in different if one in best]  # in their old order


def test_select_prefers_a_new_subject_to_a_better_copy(tmp_path: Path) -> None:
    """All records of one template are alike; of the copies of a subject only the best is taken while others wait."""
    a = run_folder(tmp_path / "a", subjects())
    run(a, "--out", tmp_path / "c", "--select", "20", "--near-duplicates", "off")
    chosen = Counter(one.instruction.split()[8] for one in read_records(tmp_path / "c"))
    assert sum(chosen.values()) == 20
    losers = rejected(tmp_path / "c")
    assert len(losers) == 55
    assert {one["filter"] for one in losers.values()} == {"not_selected"}
    for loser in losers.values():
        assert loser["neighbour"]["text"] in kept(tmp_path / "c")
        assert 0.3 < loser["value"] <= 1


def test_select_more_than_there_is(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", subjects()[:5])
    run(a, "--out", tmp_path / "c", "--select", "9", "--near-duplicates", "off", code=3)
    assert len(kept(tmp_path / "c")) == 5


def test_without_scores_no_input_comes_first(tmp_path: Path) -> None:
    one = [
        record(f"{subject} in the {n}th year of the old calendar", seeds=["a"]) for n, subject in enumerate(SUBJECTS)
    ]
    two = [record(f"How would {subject} look from number {n}?", seeds=["b"]) for n, subject in enumerate(SUBJECTS)]
    a, b = run_folder(tmp_path / "a", one), run_folder(tmp_path / "b", two)
    run(a, b, "--out", tmp_path / "c", "--select", "20")
    run(b, a, "--out", tmp_path / "d", "--select", "20")
    from_each = Counter(kept_one.source[0].seeds[0] for kept_one in read_records(tmp_path / "c"))  # type: ignore[union-attr]
    assert min(from_each["a"], from_each["b"]) >= 5
    assert set(kept(tmp_path / "c")) == set(kept(tmp_path / "d"))


QUOTAS = [
    ("generator:self_qa=2", {"self_qa": 2}, None, 15),
    ("generator:self_qa=10%", {"self_qa": 2}, None, 15),
    ("source=1", {}, 1, 5),
    ("source=15%", {}, 3, 13),
    ("generator=3,task:generation=5", {"self_qa": 3, "self_kg": 3}, None, 5),
]


@pytest.mark.parametrize(("quota", "generators", "a_source", "expected"), QUOTAS, ids=[row[0] for row in QUOTAS])
def test_quotas(tmp_path: Path, quota: str, generators: dict[str, int], a_source: int | None, expected: int) -> None:
    """13 records of self_kg and 12 of self_qa, from 5 seeds: six each, one of the last."""
    records = [
        record(f"{subject} {number * number} {SUBJECTS[number - 7]}", generator="self_qa" if number % 2 else "self_kg",
               seeds=[f"seed {number // 6}"])
        for number, subject in enumerate(SUBJECTS)
    ]  # fmt: skip
    a = run_folder(tmp_path / "a", records)
    run(a, "--out", tmp_path / "c", "--select", "20", "--quota", quota, code=3)
    chosen = list(read_records(tmp_path / "c"))
    assert len(chosen) == expected
    made_by = Counter(one.generator for one in chosen)
    assert all(made_by[generator] <= limit for generator, limit in generators.items())
    from_seed = Counter(one.source[0].seeds[0] for one in chosen)  # type: ignore[union-attr]
    assert a_source is None or max(from_seed.values()) == a_source
    losers = rejected(tmp_path / "c").values()
    assert all(one["filter"] == "not_selected" and "quota" in one["reason"] for one in losers)
    assert len(losers) == 25 - expected


# ---------------------------------------------------------------- the same again


def test_the_same_twice_and_a_rerun_replaces(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", subjects())
    arguments = (a, "--select", "20")
    run(*arguments, "--out", tmp_path / "c")
    run(*arguments, "--out", tmp_path / "d")
    for name in ("records.jsonl", "rejected.jsonl"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    run(a, "--out", tmp_path / "d", "--select", "3", "--near-duplicates", "off")
    assert len(kept(tmp_path / "d")) == 3
    assert {path.name for path in (tmp_path / "d").iterdir()} == {
        ".lock", "config.json", "records.jsonl", "rejected.jsonl", "summary.json",
    }  # fmt: skip


def test_a_config_file_gives_the_same_settings(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [record("Sing.", judge=1.0), record("Hum.", judge=2.0)])
    toml = tmp_path / "curate.toml"
    toml.write_text(f"inputs = ['{a}']\nselect = 1\nmin-score = {{judge = 2}}\nquota = ['task=1']\n")
    run("--config", toml, "--out", tmp_path / "c")
    assert kept(tmp_path / "c") == ["Hum."]
    toml.write_text("selct = 1\n")
    run("--config", toml, "--out", tmp_path / "d", code=2)


# ---------------------------------------------------------------- bad input


GOOD = '{"instruction": "Sing.", "output": "La."}\n'
BAD = [
    ("x.jsonl", GOOD + '{"instruction": "Sing."}\n', [], "x.jsonl, line 2: the field 'output' is missing"),
    ("x.jsonl", GOOD + '{"instruction": 7, "output": ""}\n', [], "line 2: the field 'instruction' must be text, not 7"),
    ("x.jsonl", GOOD + '{"instruction": " ", "output": "x"}', [], "line 2: instruction and input are both empty"),
    ("x.jsonl", GOOD + "[1]\n", [], "line 2: a record is an object"),
    ("x.jsonl", GOOD + "{\n", [], "line 2: not JSON"),
    ("x.jsonl", GOOD[:-2] + ', "scores": {"judge": "4"}}', [], "'scores' must be an object of finite numbers"),
    ("x.jsonl", GOOD[:-2] + ', "scores": {"judge": NaN}}', [], "'scores' must be an object of finite numbers"),
    ("x.jsonl", record("Sing.", x=1.5).model_dump_json().replace("1.5", "NaN"), [], "line 1: the field 'scores' must"),
    ("x.jsonl", GOOD[:-2] + ', "history": [["a"]]}', [], "'history' must be a list of [user, assistant] texts"),
    ("x.jsonl", GOOD[:-2] + ', "id": "a", "generator": "g", "source": [], "requests": []}', [], "field 'task'"),
    ("x.jsonl", "", [], "holds no record"),
    ("x.json", '{"a": 1}', [], "holds no list of rows"),
    ("x.txt", "hello\n", [], "plain text has no instruction"),
    ("x.xlsx", "", [], "is none of .jsonl"),
    ("x.jsonl", GOOD, ["--min-score", "judge=3"], "no record has a score 'judge'; they have no scores at all"),
    ("x.jsonl", GOOD[:-2] + ', "scores": {"judge": 4}}', ["--min-score", "jugde=3"], "the nearest is 'judge'"),
    ("x.jsonl", GOOD, ["--min-score", "judge"], "'judge' is not NAME=X"),
    ("x.jsonl", GOOD, ["--rank-by", "fit"], "no record has a score 'fit'"),
    ("x.jsonl", GOOD, ["--against", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ("x.jsonl", GOOD, ["--select", "0"], "--select: takes a number above 0"),
    ("x.jsonl", GOOD, ["--quota", "task=1"], "give --select N too"),
    ("x.jsonl", GOOD, ["--select", "1", "--quota", "model=1"], "with a kind of generator, task, source"),
    ("x.jsonl", GOOD, ["--select", "1", "--quota", "task:clasification=1"], "no record has the task 'clasification'"),
    ("x.jsonl", GOOD, ["--near-duplicates", "2"], "--near-duplicates: takes a number up to 1"),
    ("x.jsonl", GOOD, ["--semantic-duplicates", "1", "--embedding-model", "/nowhere"], "the hub gave none"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "more", "said"), BAD, ids=[row[3] for row in BAD])
def test_bad_input_is_one_sentence_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / name).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    run(tmp_path / name, "--out", tmp_path / "new" / "c", *more, code=2)
    message = capsys.readouterr().err
    assert said in message
    assert len(message.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_inputs_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", [record("Sing.")])
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ((tmp_path / "nowhere", "--out", tmp_path / "c"), "there is no such folder or file"),
        ((empty, "--out", tmp_path / "c"), "no run folder; it has no records.jsonl"),
        ((a, "--out", a), "holds one of the inputs"),
        ((a / "records.jsonl", "--out", a), "holds one of the inputs"),
        (("--out", tmp_path / "c"), "Name at least one run folder or file"),
    ]
    project = tmp_path / "project"
    (project / "versions" / "one").mkdir(parents=True)
    (project / "LATEST").symlink_to("versions/one")
    cases.append(((project, "--out", tmp_path / "c"), f"its newest version is {project / 'LATEST'}"))
    before = (a / "records.jsonl").read_bytes()
    for arguments, said in cases:
        run(*arguments, code=2)
        assert said in capsys.readouterr().err
    b = run_folder(tmp_path / "b", [record("Hum.")])
    run(a, "--out", b, code=2)
    assert "was made by self_instruct; use another --out" in capsys.readouterr().err
    assert (a / "records.jsonl").read_bytes() == before
    assert kept(b) == ["Hum."]
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_things_as_they_were(tmp_path: Path, number: signal.Signals) -> None:
    """The input is a pipe that stays open, so that the command is in the middle of its work when the signal comes."""
    pipe = tmp_path / "x.jsonl"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "pipeline.curate", str(pipe), "--out", str(tmp_path / "c")]
    process = subprocess.Popen([*command, "--semantic-duplicates", "off"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with process, pipe.open("w"):  # opens once the command reads
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "Interrupted; what was there before is as it was.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_nothing_kept_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", [record("Sing.", judge=1.0)])
    run(a, "--out", tmp_path / "c", "--min-score", "judge=2", code=3)
    assert "Nothing was kept" in capsys.readouterr().err


def test_help_is_quick_to_import() -> None:
    """No heavy library is loaded before there is work for it."""
    code = "import sys, pipeline.curate; print([m for m in ('torch', 'numpy', 'faiss', 'pyarrow') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ---------------------------------------------------------------- real data


@pytest.mark.skipif(not (DATA / "alpaca_4k.jsonl.gz").exists(), reason=f"{DATA} is not here (INSTRUCTLOOP_DATA)")
@pytest.mark.slow
def test_data_made_elsewhere(tmp_path: Path) -> None:
    files = [DATA / "alpaca_4k.jsonl.gz", DATA / "self_instruct_5k.jsonl.gz"]
    run(*files, "--out", tmp_path / "c", "--against", DATA / "user_oriented_252.jsonl", "--select", "500")
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert (summary["read"], summary["kept"]) == (9000, 500)
    assert summary["funnel"]["contaminated"] >= 8990
    assert 0 < summary["rejected"]["near_duplicate"] < 20
    from_each = Counter(one.source[0].file for one in read_records(tmp_path / "c"))  # type: ignore[union-attr]
    assert min(from_each.values()) > 100
