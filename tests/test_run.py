"""run.py: the loop folds in item order, stops at the target, and ends where nothing new comes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import filters
from pipeline.ask import Ask
from pipeline.errors import Offline, StopRun
from pipeline.filtering import Candidate
from pipeline.journal import Journal
from pipeline.llm import Reply, Request
from pipeline.records import PromptSource, Rejection, make_record
from pipeline.run import GIVE_UP_AFTER, Line, Made, Outlook, Tally
from pipeline.run_folder import DerivedFiles


class Echo:
    """A model that answers with the request's last words, after a random while."""

    reader, is_local, identity, address = "local", False, "echo", "here"

    def __init__(self) -> None:
        self.answered = 0

    def refuse(self, parameters: set[str]) -> None:
        assert not parameters

    async def complete(self, request: Request) -> Reply:
        await asyncio.sleep(random.random() / 1000)
        self.answered += 1
        text = request.messages[-1][1]
        raw = {"text": text, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
        return Reply(text, "stop", 1, 1, json.dumps(raw).encode())

    async def close(self) -> None: ...


class Numbers:
    """Items 0, 1, 2 …; each third is rejected at its source, the others make `each` records after one request."""

    name = "numbers"

    def __init__(self, *, items: int, each: int = 2, output: str = "") -> None:
        self.shaping: dict[str, Any] = {}
        self._items, self._each, self._output = items, each, output
        self.pulled = 0

    async def items(self, ask: Ask, outlook: Outlook) -> AsyncIterator[int | Rejection]:
        for number in range(self._items):
            self.pulled = number + 1
            if number % 3 == 2:
                yield Rejection(
                    stage="instruction", filter="third", reason="a third", generator=self.name, model="echo"
                )
            else:
                yield number

    async def make(self, item: int, ask: Ask) -> Made:
        request = Request((("user", f"item {item}"),), max_tokens=8)
        reply = await ask(request)
        return [
            Candidate(
                make_record(
                    instruction=f"{reply.text}, record {number}",
                    output=self._output or f"answer {number}",
                    task="generation",
                    generator=self.name,
                    model="echo",
                    language="en",
                    source=PromptSource(prompt=item, seeds=(), pool=()),
                    prompts={},
                    requests=[ask.key(request)],
                )
            )
            for number in range(self._each)
        ]


async def run(
    folder: Path, generator: Any, *, target: int | None = None, concurrency: int = 4, offline: bool = False
) -> tuple[Tally, StopRun | None, Echo]:
    folder.mkdir(exist_ok=True)
    model = Echo()

    async def summarize(tally: Tally) -> dict[str, Any]:
        return {"kept": tally.kept}

    with Journal(folder / "journal.sqlite") as journal, DerivedFiles(folder) as files:
        ask = Ask(model, journal, concurrency=concurrency)
        await ask.start()
        if offline:
            ask.stop(Offline("offline"))
        line = Line(
            generator, ask, files, filters=filters.of_records({}), target=target, concurrency=concurrency,
            summarize=summarize, progress=lambda tally: None,
        )  # fmt: skip
        stopped = await line.run()
    return line.tally, stopped, model


def kept(folder: Path) -> list[str]:
    return [json.loads(line)["instruction"] for line in (folder / "records.jsonl").read_text().splitlines()]


async def test_records_are_in_item_order_whatever_the_concurrency(tmp_path: Path) -> None:
    for concurrency in (1, 3, 50):
        await run(tmp_path / str(concurrency), Numbers(items=40), concurrency=concurrency)
    expected = [f"item {i}, record {r}" for i in range(40) if i % 3 != 2 for r in range(2)]
    assert kept(tmp_path / "1") == kept(tmp_path / "3") == kept(tmp_path / "50") == expected
    rejected = [(tmp_path / name / "rejected.jsonl").read_bytes() for name in ("1", "3", "50")]
    assert rejected[0] == rejected[1] == rejected[2]
    assert rejected[0].count(b"\n") == 13


async def test_the_target_is_met_exactly_even_inside_an_item(tmp_path: Path) -> None:
    tally, stopped, _ = await run(tmp_path, Numbers(items=1000, each=4), target=6)
    assert (tally.kept, stopped) == (6, None)
    assert kept(tmp_path)[-1] == "item 1, record 1"


async def test_a_target_asks_for_little_more_than_it_needs(tmp_path: Path) -> None:
    generator = Numbers(items=100_000)
    _, _, model = await run(tmp_path, generator, target=20, concurrency=4)
    assert model.answered <= 20 + 2 * 4
    assert generator.pulled < 100


async def test_a_grown_target_gives_what_a_fresh_run_gives_and_asks_the_rest_only(tmp_path: Path) -> None:
    await run(tmp_path / "grown", Numbers(items=100), target=10)
    _, _, more = await run(tmp_path / "grown", Numbers(items=100), target=60)
    _, _, fresh = await run(tmp_path / "fresh", Numbers(items=100), target=60)
    assert (tmp_path / "grown/records.jsonl").read_bytes() == (tmp_path / "fresh/records.jsonl").read_bytes()
    assert more.answered < fresh.answered


async def test_offline_folds_what_is_stored_and_says_why_it_stops(tmp_path: Path) -> None:
    await run(tmp_path, Numbers(items=100), target=10)
    before = kept(tmp_path)
    tally, stopped, model = await run(tmp_path, Numbers(items=100), target=90, offline=True)
    assert isinstance(stopped, Offline)
    assert model.answered == 0
    assert kept(tmp_path)[:10] == before
    assert tally.kept >= 10


async def test_it_gives_up_where_nothing_is_kept(tmp_path: Path) -> None:
    tally, stopped, _ = await run(tmp_path, Numbers(items=100_000, each=1, output=" "), target=5)
    assert (tally.kept, stopped) == (0, None)
    assert tally.rejected["empty_output"] == GIVE_UP_AFTER


async def test_exact_duplicates_are_one_record_with_every_source(tmp_path: Path) -> None:
    class Same(Numbers):
        async def make(self, item: int, ask: Ask) -> Made:
            made = await super().make(0, ask)
            source = (PromptSource(prompt=item, seeds=(), pool=()),)
            return [Candidate(c.record.model_copy(update={"source": source})) for c in made if isinstance(c, Candidate)]

    tally, _, model = await run(tmp_path, Same(items=6, each=1))
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert (tally.kept, tally.merged, model.answered) == (1, 3, 1)
    assert [source["prompt"] for source in records[0]["source"]] == [0, 1, 3, 4]


async def test_a_bug_in_a_generator_is_no_stop_but_an_error(tmp_path: Path) -> None:
    class Broken(Numbers):
        async def make(self, item: int, ask: Ask) -> Made:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run(tmp_path, Broken(items=3))
