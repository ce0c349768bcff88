"""Decontamination: planted copies are found wherever they stand, chance is not, and the item is named.

Run: pytest tests/test_decontaminate.py
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from pathlib import Path

import pytest

from pipeline.curation.decontaminate import MOST_ITEMS, Benchmark, Hit, Item, load_items
from pipeline.curation.rows import LONGEST_LINE
from pipeline.errors import UsageError
from pipeline.records import Record
from tests.conftest import a_record

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))
HELD_OUT = DATA / "user_oriented_252.jsonl"
needs_data = pytest.mark.skipif(not HELD_OUT.exists(), reason=f"{HELD_OUT} is not here (INSTRUCTLOOP_DATA)")


def record(instruction: str, input: str = "", output: str = "Done.") -> Record:
    return a_record(instruction, output, input=input)


def item(asking: str, *others: str, id: str = "b:1") -> Item:
    return Item(id, (asking,), others)


def hit(benchmark: Benchmark, record_: Record) -> Hit | None:
    return next(benchmark.hits([record_]))[1]


ASKED = "Which of the two lighthouses on the northern cape was built before the harbour was moved further inland?"
ANSWER = "The western one, whose lamp was first lit in the spring of 1841, six years before the harbour moved."
ASKED_ZH = "请说明北方海角上的两座灯塔中哪一座建得更早，以及为什么港口后来被迁往内陆"
CHANGED = "Which of the two beacons on the northern cape was made before the harbour got moved further inland?"
SHORT = "Who lit the first lamp?"
BENCHMARK = Benchmark([item(ASKED, ANSWER), item(ASKED_ZH, id="b:2"), item(SHORT, id="b:3")])

ROWS = [
    ("a copy", record(ASKED), "b:1"),
    ("a copy in capitals and other marks", record(ASKED.upper().replace(" ", ", ")), "b:1"),
    ("a copy inside a longer input", record("Answer.", f"Here is my question. {ASKED} Please be brief."), "b:1"),
    ("a copy in the output", record("Write a quiz question.", output=f"Gladly: {ASKED}"), "b:1"),
    ("eight words of the question", record("Go on:", "the two lighthouses on the northern cape was"), "b:1"),
    ("seven words of the question", record("Go on:", "the two lighthouses on the northern cape were"), None),
    ("a few words changed, no eight in a row left",
     record(CHANGED), "b:1"),
    ("the answer", record("Say it again.", output=ANSWER), "b:1"),
    ("a phrase of the answer", record("Begin.", output="Six years before the harbour moved, the war came."), None),
    ("a short question as it is", record("who lit the first lamp"), "b:3"),
    ("a short question with one word changed", record("Who lit the first fire?"), None),
    ("the copy split into instruction and input", record(ASKED[:52], ASKED[53:]), "b:1"),
    ("Chinese, a copy inside a longer text", record("回答问题。", f"老师问：{ASKED_ZH}？谢谢"), "b:2"),
    ("Chinese, thirteen characters", record("继续：", ASKED_ZH[3:16]), "b:2"),
    ("Chinese, twelve characters", record("继续：", ASKED_ZH[3:15]), None),
    ("the same subject", record("When was the lighthouse on the cape built?", output="In 1841."), None),
    ("nothing at all", record("!!!", output=""), None),
]  # fmt: skip


@pytest.mark.parametrize(("planted", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_is_a_hit(planted: Record, expected: str | None) -> None:
    found = hit(BENCHMARK, planted)
    assert (found.item.id if found else None) == expected


def test_a_hit_says_what_was_shared() -> None:
    found = hit(BENCHMARK, record("Go on:", "but the two lighthouses on the northern cape was"))
    assert found is not None
    assert found.shared == "the two lighthouses on the northern cape was"
    found = hit(BENCHMARK, record("继续：", ASKED_ZH[3:16]))
    assert found is not None
    assert found.shared == ASKED_ZH[3:16]
    found = hit(BENCHMARK, record("Who lit the first lamp?"))
    assert found is not None
    assert found.similarity == 1.0


@pytest.mark.parametrize(("many", "expected"), [(MOST_ITEMS, True), (MOST_ITEMS + 1, False)])
def test_boilerplate_that_many_items_share_is_no_hit(many: int, expected: bool) -> None:
    boilerplate = "Choose the one right answer from the four that are given below and write its letter"
    benchmark = Benchmark([item(f"{boilerplate}. Number {n} of {n * n} is {n + 7}?", id=str(n)) for n in range(many)])
    assert (hit(benchmark, record(f"Listen. {boilerplate}, my friend, as soon as you can.")) is not None) is expected


def test_the_item_that_most_runs_point_to_is_named() -> None:
    other = "It was built before the harbour was moved further inland, they said."
    benchmark = Benchmark([item(other, id="other"), item(ASKED, id="asked")])
    found = hit(benchmark, record("Answer me this.", ASKED))
    assert found is not None
    assert found.item.id == "asked"


def test_settings_act() -> None:
    seven = record("Go on:", "the two lighthouses on the northern cape were")
    twelve = record("继续：", ASKED_ZH[3:15])
    changed = record(CHANGED)
    items = list(BENCHMARK.items)
    assert hit(Benchmark(items, words=7), seven) is not None
    assert hit(Benchmark(items, cjk=12), twelve) is not None
    assert hit(Benchmark(items, similarity=0.9), changed) is None


# ---------------------------------------------------------------- benchmark files


def test_every_format_gives_the_same_items(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [{"question": ASKED, "answer": ANSWER}, {"question": SHORT, "answer": "Ann, in\n1841"}]
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}), encoding="utf-8")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    with (tmp_path / "b.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    for name in ("b.jsonl", "b.json", "b.json.gz", "b.csv", "b.parquet"):
        items = load_items([tmp_path / name])
        assert [(one.asking, one.others) for one in items] == [((ASKED,), (ANSWER,)), ((SHORT,), ("Ann, in\n1841",))]
        assert hit(Benchmark(items), record(ASKED)) is not None
    assert len(load_items([tmp_path / "b.jsonl", tmp_path / "b.csv"])) == 2  # the same items again


def test_a_text_file_holds_an_item_a_line(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(f"{ASKED}\n\n{SHORT}\n", encoding="utf-8")
    assert [one.id for one in load_items([tmp_path / "b.txt"])] == ["b.txt:1", "b.txt:3"]


def test_unknown_columns_all_ask(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps({"stem": {"frage": ASKED}, "k": [1, None, ANSWER]}), encoding="utf-8")
    assert load_items([tmp_path / "b.jsonl"])[0].asking == (ASKED, ANSWER)


BAD = [
    ("b.jsonl", b'{"a": "x"}\n{"a": ', "line 2: not JSON"),
    ("b.jsonl", b"\xff\xfe", "not UTF-8"),
    ("b.jsonl", b'{"a": 1}', "holds no text"),
    ("b.jsonl", b"", "holds no text"),
    ("b.json", b'{"a": 1, "b": 2}', "holds no list of rows"),
    ("b.csv", b"a,b\n1,2,3\n", "line 2: more fields"),
    ("b.parquet", b"PAR", "not a parquet file"),
    ("b.jsonl.gz", b"no gzip", "not a whole gzip file"),
    ("b.jsonl.gz", gzip.compress(b'{"a": "x y"}' * 99)[:-9], "not a whole gzip file"),
    ("b.docx", b"", "is none of"),
    ("b.jsonl.gz", gzip.compress(b'{"a": "x"}\n"' + b" " * (LONGEST_LINE + 1)), "line 2: longer than"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[f"{row[0]}: {row[2]}" for row in BAD])
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as raised:
        load_items([path])
    assert str(path) in str(raised.value)


def test_a_missing_file() -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_items([Path("nowhere.jsonl")])


# ---------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def held_out() -> tuple[Benchmark, list[Item]]:
    items = load_items([HELD_OUT])
    assert len(items) == 252
    return Benchmark(items), items


def changed(text: str, every: int, random_: random.Random) -> str:
    """The text with one word in every `every` replaced."""
    words = text.split()
    for first in range(0, len(words) - every + 1, every):
        words[first + random_.randrange(every)] = random_.choice(["lantern", "ember", "quarry", "thistle"])
    return " ".join(words)


def asked_long_enough(items: list[Item]) -> list[Item]:
    """Questions of 16 words and more: of the rest too little is left when words change."""
    return [one for one in items if len(one.question.split()) >= 16]


@needs_data
def test_every_copy_is_found(held_out: tuple[Benchmark, list[Item]]) -> None:
    benchmark, items = held_out
    missed = [
        one.id
        for one in items
        for text in (record(one.asking[0], "\n".join(one.asking[1:])), record(one.question))
        if (found := hit(benchmark, text)) is None or found.item is not one
    ]
    assert missed == []


@needs_data
def test_copies_inside_longer_text_are_found(held_out: tuple[Benchmark, list[Item]]) -> None:
    benchmark, items = held_out
    wanted = asked_long_enough(items)
    around = "A colleague sent me this yesterday evening. {} I would like to hear what you make of it."
    found = sum(hit(benchmark, record("Help me.", around.format(one.question))) is not None for one in wanted)
    assert len(wanted) > 150
    assert found == len(wanted)


@needs_data
def test_paraphrases_with_a_few_words_changed_are_found(held_out: tuple[Benchmark, list[Item]]) -> None:
    benchmark, items = held_out
    wanted, random_ = asked_long_enough(items), random.Random(5)
    found = sum(hit(benchmark, record(changed(one.question, 8, random_))) is not None for one in wanted)
    assert found == len(wanted)


@needs_data
def test_a_clean_set_keeps_over_99_percent(held_out: tuple[Benchmark, list[Item]]) -> None:
    benchmark, _ = held_out
    for name in ("alpaca_4k.jsonl.gz", "self_instruct_5k.jsonl.gz"):
        with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        records = [record(row["instruction"], row["input"], row["output"]) for row in rows]
        kept = sum(found is None for _, found in benchmark.hits(records))
        assert kept > 0.999 * len(records)
