"""Self-Instruct against the fake server: what its prompts hold, what comes of them, and that it never asks twice."""

from __future__ import annotations

import json
import random
import sqlite3
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from pipeline import filters
from pipeline.prompts import Prompts
from pipeline.seed_tasks import load_seed_tasks
from pipeline.self_instruct import clean_instruction
from tests.conftest import Run, StartServer, against, read_lines, write_lines
from tests.fake_server import ROOT, FakeServer

Json = dict[str, Any]
SEEDS = {task.id: task for task in load_seed_tasks(ROOT / "seeds/175.jsonl")}


def wanted(body: Json) -> list[str]:
    """The names that the request's schema asks for, in their order; of a list of objects, those of the objects."""
    schema = body["response_format"]["json_schema"]["schema"]
    first = next(iter(schema["properties"].values()))
    names: list[str] = first.get("items", {}).get("required") or schema["required"]
    return names


def bodies(server: FakeServer, *names: str) -> list[Json]:
    """The bodies of all requests that ask for exactly these names."""
    return [line["body"] for line in server.ledger() if wanted(line["body"]) == list(names)]


def shown(body: Json) -> list[str]:
    """The tasks that an instruction prompt shows."""
    tasks: list[str] = json.loads(body["messages"][2]["content"])["instructions"]
    return tasks


def last_user_text(body: Json) -> str:
    text: str = body["messages"][-1]["content"]
    return text


def all_lines(folder: Path) -> list[Json]:
    return [*read_lines(folder / "records.jsonl"), *read_lines(folder / "rejected.jsonl")]


# ---------------------------------------------------------------- first line: prompts -> instructions


def replies(folder: Path) -> list[tuple[Json, Json]]:
    """All (request as asked, JSON of the answer) of a clean run, out of the journal."""
    query = "SELECT r.body, a.raw FROM requests r JOIN outcomes o USING (key) JOIN attempts a ON a.id = o.attempt"
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        rows = [(json.loads(zlib.decompress(body)), json.loads(raw)) for body, raw in connection.execute(query)]
    connection.close()
    return [(asked, json.loads(reply["choices"][0]["message"]["content"])) for asked, reply in rows]


def instruction_prompts(folder: Path) -> dict[int, tuple[Json, list[str]]]:
    """Prompt number -> (the request as asked, the instructions that came back)."""
    return {
        asked["sample"]: (asked, reply["instructions"]) for asked, reply in replies(folder) if "instructions" in reply
    }


def brought(folder: Path) -> dict[int, list[str]]:
    """Prompt number -> the instructions that it brought into the pool, for prompts that were folded to their end."""
    rejected: dict[int, list[str]] = defaultdict(list)
    folded = -1
    for line in all_lines(folder):
        prompt = line["source"][0]["prompt"]
        folded = max(folded, prompt)
        if line.get("stage") == "instruction":
            rejected[prompt].append(line["instruction"])
    kept: dict[int, list[str]] = {}
    for number, (_, instructions) in sorted(instruction_prompts(folder).items()):
        if number < folded:
            kept[number] = [clean_instruction(text) for text in instructions]
            for text in rejected[number]:
                kept[number].reverse()
                kept[number].remove(text)  # of equal ones the first was kept
                kept[number].reverse()
    return kept


@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_prompt_draws_from_what_the_prompts_up_to_its_lag_brought(
    window: int, tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(), tmp_path / "out"
    ran = run(*against(server, out, "--target", 150, "--per-prompt", 4, "--window", window))
    assert ran.returncode == 0, ran.stderr
    kept, asked = brought(out), instruction_prompts(out)
    sent = {json.dumps(body["messages"], sort_keys=True) for body in bodies(server, "instructions")}
    checked = 0
    for number, (request, _) in sorted(asked.items()):
        lag = min(window, 1 + number // 2)
        if number - lag >= len(kept):
            continue  # what it saw was not folded to its end any more
        pool = [text for prompt in range(number - lag + 1) for text in kept[prompt]]
        body = {"messages": [{"role": role, "content": content} for role, content in request["messages"]]}
        assert json.dumps(body["messages"], sort_keys=True) in sent
        draw = random.Random(f"0:{number}")
        expected = draw.sample(range(len(pool)), min(2, len(pool)))
        ours = [pool[at] for at in expected]
        seeds = [SEEDS[id_].instruction for id_ in draw.sample(list(SEEDS), 8 - len(ours))]
        assert Counter(shown(body)) == Counter(" ".join(text.split()) for text in ours + seeds), number
        assert len(ours) == (2 if number - lag >= 0 else 0)
        checked += number >= lag
    assert checked > 4


def test_prompts_are_shuffled(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server = start_server()
    run(*against(server, tmp_path / "out", "--target", 100, "--per-prompt", 4))
    seeds = {" ".join(task.instruction.split()) for task in SEEDS.values()}
    places = {at for body in bodies(server, "instructions") for at, text in enumerate(shown(body)) if text not in seeds}
    assert len(places) > 4, "kept instructions always stand in the same places"


def test_a_pool_of_few_seeds_is_used_whole(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    rows = read_lines(ROOT / "seeds/175.jsonl")[:3]
    server = start_server()
    seeds = write_lines(tmp_path / "three.jsonl", rows)
    assert run(*against(server, tmp_path / "out", "--seeds", seeds, "--target", 30)).returncode == 0
    sizes = {len(shown(body)) for body in bodies(server, "instructions")}
    assert sizes == {3, 5}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("1. Name a river.", "Name a river."),
        ("12) Name a river.", "Name a river."),
        ("Task 3: Name a river.", "Name a river."),
        ("- Name\n\ta  river.", "Name a river."),
        ("1、 写一首诗。", "写一首诗。"),
        ("2024 was a leap year: true?", "2024 was a leap year: true?"),
        ("3.5 litres in gallons?", "3.5 litres in gallons?"),
        ("NASA and eBay: who came first?", "NASA and eBay: who came first?"),  # case is left alone
        ("a\ud800b", "a\ufffdb"),
    ],
)
def test_what_a_model_puts_before_an_instruction_is_taken_off(text: str, cleaned: str) -> None:
    assert clean_instruction(text) == cleaned


# ---------------------------------------------------------------- second line: instruction -> instances


def test_classification_goes_output_first_and_generation_input_first(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(), tmp_path / "out"
    assert run(*against(server, out, "--target", 60)).returncode == 0
    by_kind = {"classification": bodies(server, "label", "input"), "generation": bodies(server, "input", "output")}
    records = read_lines(out / "records.jsonl")
    assert {record["task"] for record in records} == set(by_kind)
    for record in records:
        asking = [b for b in by_kind[record["task"]] if f": {record['instruction']}\n" in last_user_text(b)]
        assert len(asking) == 1
        others = [body for kind, found in by_kind.items() if kind != record["task"] for body in found]
        assert not [b for b in others if f": {record['instruction']}\n" in last_user_text(b)]
    written = {tuple(instance) for _, reply in replies(out) for instance in reply.get("instances", ())}
    assert written == {("label", "input"), ("input", "output")}, "the fake writes in the order that the wire has"
    for kind, names in (("classification", ["label", "input"]), ("generation", ["input", "output"])):
        examples = by_kind[kind][0]["messages"][2:-1:2]
        assert len(examples) >= 3
        assert all(list(i) == names for turn in examples for i in json.loads(turn["content"])["instances"])
    assert any(record["input"] == "" for record in records)
    assert all(body["temperature"] == 0 for body in bodies(server, "classification"))


def test_a_task_has_up_to_five_instances(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    out = tmp_path / "out"
    run(*against(start_server(), out, "--target", 60))
    instances = Counter(record["instruction"] for record in read_lines(out / "records.jsonl"))
    assert max(instances.values()) == 5


def test_classification_only(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    assert run(*against(server, out, "--target", 30, "--classification-only")).returncode == 0
    assert {record["task"] for record in read_lines(out / "records.jsonl")} == {"classification"}
    system = Prompts("en").text("self_instruct_classification_tasks").split("\n")[1]
    assert {body["messages"][0]["content"] for body in bodies(server, "instructions")} == {system}
    assert bodies(server, "input", "output") == []
    used = {id_ for line in all_lines(out) for id_ in line["source"][0]["seeds"]}
    assert used <= {id_ for id_, task in SEEDS.items() if task.is_classification}
    turned_away = [line for line in read_lines(out / "rejected.jsonl") if line["filter"] == "classification_only"]
    assert turned_away
    assert {line["stage"] for line in turned_away} == {"instruction"}


def multi_turn_seeds() -> list[Json]:
    rows = read_lines(ROOT / "seeds/175.jsonl")[:12]
    for number, row in enumerate(rows[:3]):
        row["instances"][0] |= {"history": [[f"Hello {number}", "Good day."], ["A question", "An answer."]]}
    return rows


@pytest.mark.parametrize("multi", [False, True], ids=["single-turn seeds", "multi-turn seeds"])
def test_turns_make_a_history(multi: bool, tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    seeds = write_lines(tmp_path / "seeds.jsonl", multi_turn_seeds()) if multi else ROOT / "seeds/175.jsonl"
    assert run(*against(server, out, "--seeds", seeds, "--target", 10, "--turns", 3)).returncode == 0
    asked = bodies(server, "user", "assistant")
    for record in read_lines(out / "records.jsonl"):
        (first, answer), second = record["history"]
        said = f"User: {first}\nAssistant: {answer}"
        assert len([b for b in asked if last_user_text(b).endswith(f"\n\n{said}")]) == 1
        said += f"\nUser: {second[0]}\nAssistant: {second[1]}"
        assert len([b for b in asked if last_user_text(b).endswith(f"\n\n{said}")]) == 1
        assert record["instruction"]
        assert record["input"] == ""
        assert len(record["requests"]) == 5  # the prompt, its kind, its instances, two turns
    examples = {len(body["messages"][1:-1]) // 2 for body in asked}
    assert examples == ({2} if multi else {0})
    if multi:
        assert "User: Hello 0\nAssistant: Good day.\nUser: A question" in asked[0]["messages"][1]["content"]


def test_chinese_seeds_speak_chinese(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    ran = run(*against(server, out, "--seeds", ROOT / "seeds/175_zh.jsonl", "--target", 20, "--turns", 2))
    assert ran.returncode == 0, ran.stderr
    templates = [path.read_text(encoding="utf-8") for path in (ROOT / "prompts/zh").glob("*.md")]
    systems = {line["body"]["messages"][0]["content"] for line in server.ledger()}
    assert len(systems) == 5
    assert all(any(system in template for template in templates) for system in systems)
    for record in read_lines(out / "records.jsonl"):
        assert record["language"] == "zh"
        assert any("\u4e00" <= letter <= "\u9fff" for letter in record["instruction"])
        assert set(record["prompts"]) >= {"self_instruct_tasks", "self_instruct_identify", "self_instruct_next_turn"}


# ---------------------------------------------------------------- the same records, whatever the way


@pytest.mark.parametrize("dirty", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_records_do_not_depend_on_concurrency_or_latency(
    dirty: float, tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    jitter = [
        {"fault": "delay", "seconds": 0.03, "share": 0.3},
        {"fault": "delay", "seconds": 0.01, "every": 5},
    ]
    made = []
    for concurrency, plan in ((1, []), (3, jitter), (64, []), (64, jitter)):
        out = tmp_path / f"{concurrency}-{len(plan)}"
        flags = ("--target", 40, "--concurrency", concurrency)
        assert run(*against(start_server(dirty=dirty, plan=plan), out, *flags)).returncode == 0
        made.append(((out / "records.jsonl").read_bytes(), (out / "rejected.jsonl").read_bytes()))
    assert made == [made[0]] * 4
    assert made[0][0].count(b"\n") == 40


def keys(server: FakeServer) -> Counter[str]:
    return Counter(line["key"] for line in server.ledger())


def test_a_larger_target_goes_on_and_repeats_nothing(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, fresh = start_server(dirty=0.1), start_server(dirty=0.1)
    for target in (10, 25, 60):
        assert run(*against(server, tmp_path / "grown", "--target", target)).returncode == 0
        assert len(read_lines(tmp_path / "grown" / "records.jsonl")) == target
    run(*against(fresh, tmp_path / "fresh", "--target", 60))
    for name in ("records.jsonl", "rejected.jsonl"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert set(keys(server).values()) == {1}


def test_the_same_command_again_sends_nothing(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(dirty=0.1), tmp_path / "out"
    first = run(*against(server, out, "--target", 30))
    sent, before = len(server.ledger()), (out / "records.jsonl").read_bytes()
    again = run(*against(server, out, "--target", 30))
    assert (first.returncode, again.returncode, len(server.ledger())) == (0, 0, sent)
    assert (out / "records.jsonl").read_bytes() == before


# ---------------------------------------------------------------- filters on a folder that is there


def test_a_looser_record_filter_sends_nothing(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(dirty=0.2), tmp_path / "out"
    run(*against(server, out, "--target", 40))
    sent, before = len(server.ledger()), read_lines(out / "records.jsonl")
    assert run(*against(server, out, "--target", 40, "--filters", "empty_output=off,echo=off")).returncode == 0
    after = read_lines(out / "records.jsonl")
    assert len(server.ledger()) == sent
    assert {record["output"] for record in before}.isdisjoint({""})
    assert any(record["output"] == "" for record in after)
    assert [record for record in after if record in before] == before[: len([r for r in after if r in before])]


def test_a_stricter_record_filter_asks_on_but_never_offline(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(dirty=0.4), tmp_path / "out"
    loose = "empty_output=off,echo=off,contradiction=off"
    run(*against(server, out, "--target", 40, "--filters", loose, "--concurrency", 2))
    sent = keys(server)
    offline = run(*against(server, out, "--target", 40, "--offline"))
    assert offline.returncode == 3
    assert "--offline" in offline.stderr
    assert keys(server) == sent
    fewer = read_lines(out / "records.jsonl")
    assert 0 < len(fewer) < 40
    assert run(*against(server, out, "--target", 40)).returncode == 0
    assert read_lines(out / "records.jsonl")[: len(fewer)] == fewer
    assert keys(server).total() > sent.total()
    assert set(keys(server).values()) == {1}


def test_a_dirty_server_every_rejection_has_a_reason(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    out = tmp_path / "out"
    ran = run(*against(start_server(dirty=0.3), out, "--target", 150, "--filters", "too_long=14"))
    assert ran.returncode == 0, ran.stderr
    rejected = read_lines(out / "rejected.jsonl")
    for line in rejected:
        assert line["reason"].strip()
        assert line["filter"] == "parse" or line["filter"] in filters.ALL
        assert (line["neighbour"] is not None) == (line["filter"] == "novelty")
        assert line["requests"]
        assert line["prompts"]
        assert line["source"]
        if line["stage"] == "record" and line["filter"] != "parse":
            assert line["id"]
            assert line["instruction"]
    fired = Counter(line["filter"] for line in rejected)
    # What Self-Instruct published; the fake writes no colon at an end, and none of what our own filters are for.
    published = {f.name for f in filters.ALL.values() if f.source.startswith("Self-Instruct")} - {"ends_with_colon"}
    assert set(fired) == published | {"parse"}
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["rejected"] == dict(fired.most_common())
    assert summary["parsed"] == summary["answered"] - sum(summary["unreadable"].values())
    for name, number in fired.items():
        assert f"{number:6} {name}\n" in ran.stderr
