"""What the line makes of a model's replies, word for word: every filter acts in it, and no reply can break it.

The model is scripted: its answers are given by the name that a request's schema asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import filters, instruction_filters
from pipeline.ask import Ask
from pipeline.backends.endpoint import parse_reply
from pipeline.funnel import likeliest_cause
from pipeline.journal import Journal
from pipeline.llm import Reply, Request
from pipeline.run import Line, Tally
from pipeline.run_folder import DerivedFiles
from pipeline.self_instruct import SelfInstruct, SelfInstructSettings
from tests.conftest import read_lines, write_lines

Json = dict[str, Any]
SEED = "What is the capital of Mongolia?"
SEEDS = [
    {"id": "s1", "instruction": SEED, "instances": [{"output": "Ulaanbaatar."}], "is_classification": False},
    {"id": "s2", "instruction": "Is it warm?", "instances": [{"output": "yes"}], "is_classification": True},
]
GOOD = "Explain why leaves fall in autumn."


class Scripted:
    """A model that gives the answers it was handed: per name a reply, or a function of the last user message.

    A reply is a JSON value, a text, or (text, finish reason).
    """

    reader = "openai"
    is_local = False
    address = identity = "scripted"

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "instructions": {"instructions": [GOOD]},
            "classification": {"classification": False},
            "instances": {"instances": [{"input": "", "output": "They run out of sap."}]},
            "user": {"user": "Why?", "assistant": "It is cold."},
        } | answers

    def refuse(self, parameters: set[str]) -> None:
        raise AssertionError("nothing was refused")

    async def complete(self, request: Request) -> Reply:
        assert request.schema is not None
        answer = self.answers[next(iter(request.schema["properties"]))]
        if callable(answer):
            answer = answer(request.messages[-1][1])
        text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
        if not isinstance(text, str):
            text = json.dumps(text)
        json.dumps(request.messages, ensure_ascii=False).encode()  # what a client must be able to send
        choice = {"message": {"content": text}, "finish_reason": finish}
        return parse_reply(json.dumps({"choices": [choice]}).encode())

    async def close(self) -> None:
        pass


async def made(model: Scripted, folder: Path, **settings: Any) -> tuple[list[Json], list[Json], Tally]:
    """The records and rejections of a whole run, and its tally."""
    seeds = write_lines(folder / "seeds.jsonl", SEEDS)
    given: Json = {"target": 3, "filters": {}} | settings
    generator = SelfInstruct(SelfInstructSettings(out=folder, model="scripted", seeds=seeds, **given))

    async def summarize(_: Tally) -> Json:
        return {}

    with Journal(folder / "journal.sqlite") as journal, DerivedFiles(folder) as files:
        line = Line(
            generator,
            Ask(model, journal, concurrency=4),
            files,
            filters=filters.of_records(given["filters"]),
            target=given["target"],
            concurrency=4,
            summarize=summarize,
            progress=lambda _: None,
        )
        assert await line.run() is None
    return read_lines(folder / "records.jsonl"), read_lines(folder / "rejected.jsonl"), line.tally


# ---------------------------------------------------------------- every filter, through the whole line

BAD_INSTRUCTIONS = {
    "too_short": "Write it.",
    "too_long": "word " * 151,
    "keywords": "Describe the picture that you see.",
    "asks_for_program": "Write a program that counts bees.",
    "first_character": "? Explain why bees dance.",
    "novelty": SEED,
}
CHINESE = "海潮在黄昏涨起，带走沙滩上午后的每一个脚印，把它们送回深蓝的远方，明天又是一片崭新的沙滩。"


def answers(*pairs: tuple[str, str]) -> list[Json]:
    return [{"input": input_, "output": output} for input_, output in pairs]


BAD_INSTANCES: dict[str, tuple[str, list[Json] | tuple[str, str]]] = {
    "cut_off": ("Tell a tale about old lighthouses.", ('{"instances": [{"input": "x", "output": "Once', "length")),
    "unfinished": ("Explain how salt melts ice.", answers(("", "Salt melts ice. It lowers the point at which wat"))),
    "empty_output": ("Advise a baker on stale bread.", answers(("", " "))),
    "echo": ("Repeat after me, my dear parrot.", answers(("Hello", "Hello"))),
    "ends_with_colon": ("List some tools for every garden.", answers(("", "The tools:"))),
    "overlong": ("Count sheep until you are asleep.", answers(("", "sheep " * 4001))),
    "language": ("Paint the evening tide with words.", answers(("", CHINESE))),
    "looping": ("Laugh for as long as possible.", answers(("", "ha " * 60))),
    "refusal": ("Predict who wins next Sunday's match.", answers(("", "As an AI language model, I have no opinion."))),
    "leaked_prompt": ("Judge this soup from its smell.", answers(("", "### Response: salty"))),
    "control_tokens": ("Close our conversation with a wish.", answers(("", "Farewell <|im_end|>"))),
    "secrets": ("Show how a cloud login looks.", answers(("", "export AWS_ACCESS_KEY_ID=AKIAQ3EGRZ5TNPLDXW7K"))),
    "personal_data": ("Where may complaints be sent to?", answers(("", "Write to jane.doe@gmail.com today."))),
    "links": (
        "Which page explains last year's economy?",
        answers(("", "See https://www.nytimes.com/2020/economy.html.")),
    ),
    "contradiction": ("Add up both of these numbers.", answers(("1 1", "2"), ("1 1", "3"))),
    "repeated_output": ("Greet each guest in your style.", answers(("a", "Hi, you"), ("b", "Hi, you"))),
}


async def test_every_filter_acts_in_the_line(tmp_path: Path) -> None:
    assert list(BAD_INSTRUCTIONS) == [f.name for f in instruction_filters.INSTRUCTION]
    # These need a graph (tests/test_self_kg.py), a document (tests/test_self_qa.py) or a judge (tests/test_judge.py).
    elsewhere = {"graph", "injection", "points_at_text", "not_a_question", "off_topic", "leaks_text", "unanswered"}
    elsewhere |= {"ungrounded", "answerable", "poor"}
    assert list(BAD_INSTANCES) == [f.name for f in filters.RECORD if f.name not in elsewhere]
    script = dict(BAD_INSTANCES.values())

    def instances(question: str) -> Any:
        answer = next((answer for instruction, answer in script.items() if instruction in question), None)
        return answer if isinstance(answer, tuple) else {"instances": answer or [{"input": "", "output": "Cold."}]}

    model = Scripted(instructions={"instructions": [*BAD_INSTRUCTIONS.values(), *script, GOOD]}, instances=instances)
    records, rejected, _ = await made(model, tmp_path, target=2, per_prompt=30, filters={"personal_data": "reject"})
    by_instruction = {line["instruction"]: line["filter"] for line in rejected[: len(BAD_INSTRUCTIONS)]}
    assert by_instruction == {text.strip(): name for name, text in BAD_INSTRUCTIONS.items()}
    for name, (instruction, _) in BAD_INSTANCES.items():
        assert name in {line["filter"] for line in rejected if line["instruction"] == instruction}
    assert [record["instruction"] for record in records] == [BAD_INSTANCES["repeated_output"][0], GOOD]


# ---------------------------------------------------------------- odd replies

# reply -> the first rejection's (stage, filter, value)
ODD: list[tuple[str, Any, tuple[str, str, str | None]]] = [
    ("instructions", {"instructions": []}, ("reply", "parse", "no_instructions")),
    ("instructions", {"instructions": [7, GOOD]}, ("instruction", "parse", None)),
    ("instructions", {"instructions": [["\ud800"], GOOD]}, ("instruction", "parse", None)),
    ("instructions", {"tasks": [GOOD]}, ("reply", "parse", "wrong_shape")),
    ("instructions", "I would rather not.", ("reply", "parse", "not_json")),
    ("instructions", ("", "content_filter"), ("reply", "parse", "content_filter")),
    ("instructions", ('{"instructions": ["Explain why', "length"), ("instruction", "cut_off", None)),
    ("instructions", ('{"instructions": [', "length"), ("reply", "parse", "no_instructions")),
    ("classification", {"classification": "yes"}, ("reply", "parse", "wrong_shape")),
    ("classification", {"classification": "\ud800"}, ("reply", "parse", "wrong_shape")),
    ("classification", "No.", ("reply", "parse", "not_json")),
    ("instances", {"instances": []}, ("reply", "parse", "no_instances")),
    ("instances", {"instances": ["\ud800"]}, ("record", "parse", None)),
    ("instances", {"instances": [{"input": 1, "output": 2}]}, ("record", "parse", None)),
    ("instances", {"instances": [{"input": "x"}]}, ("record", "parse", None)),
    ("instances", {"instances": [{"output": None}]}, ("record", "parse", None)),
    ("user", {"user": "Why?"}, ("reply", "parse", "wrong_shape")),
    ("user", {"user": None, "assistant": "x"}, ("reply", "parse", "wrong_shape")),
    ("user", {"user": " ", "assistant": "x"}, ("reply", "parse", "wrong_shape")),
    ("user", ("", "stop"), ("reply", "parse", "empty_reply")),
    ("user", ('{"user": "a", "assistant": "b', "length"), ("reply", "parse", "cut_off")),
]


@pytest.mark.parametrize(("name", "answer", "expected"), ODD, ids=[f"{row[0]}-{n}" for n, row in enumerate(ODD)])
async def test_an_odd_reply_is_a_rejection(
    name: str, answer: Any, expected: tuple[str, str, str | None], tmp_path: Path
) -> None:
    odd_once = iter([answer])
    good = Scripted().answers[name]
    model = Scripted(**{name: lambda _: next(odd_once, good)})
    records, rejected, tally = await made(model, tmp_path, target=1, turns=2 if name == "user" else 1, window=1)
    first = rejected[0]
    assert (first["stage"], first["filter"], first["value"]) == expected
    assert first["reason"].strip()
    assert tally.rejected[first["filter"]] >= 1
    if name == "instructions":  # the next prompt brings the instruction
        assert [record["instruction"] for record in records] == [GOOD]


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_lone_surrogates_end_at_the_record(turns: int, tmp_path: Path) -> None:
    broken = "bro\ud83dken"
    model = Scripted(
        instructions={"instructions": [f"Explain this {broken} word here."]},
        instances={"instances": [{"input": broken, "output": f"It is {broken}"}]},
        user={"user": f"More {broken}?", "assistant": f"No, {broken}."},
    )
    records, _, _ = await made(model, tmp_path, target=1, turns=turns)
    texts = json.dumps(records[0], ensure_ascii=False)
    assert texts.count("bro\ufffdken") == 3 if turns == 1 else 2 * turns + 1


@pytest.mark.parametrize(("is_classification", "names"), [(True, ("label", "input")), (False, ("input", "output"))])
async def test_more_instances_than_asked_for_are_left_out(
    is_classification: bool, names: Sequence[str], tmp_path: Path
) -> None:
    instances = [{names[0]: f"first {n}", names[1]: f"second {n}"} for n in range(9)]
    model = Scripted(classification={"classification": is_classification}, instances={"instances": instances})
    records, _, _ = await made(model, tmp_path, target=9)
    numbers = [(record["input"][-1], record["output"][-1]) for record in records]
    assert numbers == [(str(n), str(n)) for n in range(5)]
    fields = {"label": "output"}
    assert all(record[fields.get(names[0], names[0])].startswith("first") for record in records)
    assert {record["task"] for record in records} == {"classification" if is_classification else "generation"}


class Thinking(Scripted):
    """Needs 500 tokens to think, and ends before it has said anything where it gets fewer."""

    async def complete(self, request: Request) -> Reply:
        reply = await super().complete(request)
        room = request.max_tokens >= 500
        text = f"They want {{}} of me.\n</think>\n{reply.text}" if room else "<think>They want"
        choice = {"message": {"content": text}, "finish_reason": "stop" if room else "length"}
        return parse_reply(json.dumps({"choices": [choice]}).encode())


async def test_a_model_that_thinks_needs_room_in_every_request(tmp_path: Path) -> None:
    """Also where a word is asked for; without it the rejection names what took the tokens."""
    for name in ("room", "none"):
        (tmp_path / name).mkdir()
    records, _, _ = await made(Thinking(), tmp_path / "room", target=1, max_tokens=600)
    assert [record["output"] for record in records] == ["They run out of sap."]
    _, rejected, tally = await made(Thinking(), tmp_path / "none", target=1, max_tokens=400)
    assert {line["value"] for line in rejected} == {"reasoning_only"}
    assert "thought, to the end of its tokens" in rejected[0]["reason"]
    assert "--extra-body" in likeliest_cause(tally, ())


async def test_equal_instances_become_one_record_with_every_source(tmp_path: Path) -> None:
    twice: Callable[[str], Json] = lambda _: {"instances": [{"input": "a", "output": "b"}] * 2}  # noqa: E731
    records, rejected, tally = await made(Scripted(instances=twice), tmp_path, target=2)
    assert len(records) == 1
    assert len(records[0]["source"]) == 2
    assert tally.merged == 1
    assert {line["filter"] for line in rejected} <= {"novelty"}


async def test_conversations_that_begin_by_contradicting_each_other_go(tmp_path: Path) -> None:
    pairs = answers(("1 1", "2"), ("1 1", "3"), ("2 2", "4"))
    model = Scripted(instructions={"instructions": ["Add up both of these numbers."]}, instances={"instances": pairs})
    records, rejected, tally = await made(model, tmp_path, target=1, turns=2)
    assert records == []
    assert tally.ended == "exhausted"
    gone = [line for line in rejected if line["filter"] == "contradiction"]
    assert [line["history"][0][1] for line in gone] == ["2", "3", "4"]
