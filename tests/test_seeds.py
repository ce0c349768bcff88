"""What can be checked of the seed tasks that come with the project; that they are right and read well cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.filtering import NewInstruction, first_objection
from pipeline.instruction_filters import INSTRUCTION
from pipeline.novelty import NoveltyIndex, tokens
from pipeline.seed_tasks import SeedTask, load_seed_tasks
from pipeline.text import language_of
from tests.fake_server import ROOT

FILES = {"en": "175.jsonl", "zh": "175_zh.jsonl"}
SEEDS = {language: load_seed_tasks(ROOT / "seeds" / name) for language, name in FILES.items()}
TASKS = [pytest.param(task, id=task.id) for tasks in SEEDS.values() for task in tasks]
both = pytest.mark.parametrize("language", SEEDS)


def texts(task: SeedTask) -> list[str]:
    return [task.instruction, *(text for instance in task.instances for text in (instance.input, instance.output))]


@both
def test_there_are_175_with_enough_classification(language: str) -> None:
    tasks = SEEDS[language]
    assert len(tasks) == 175
    assert sum(task.is_classification for task in tasks) >= 26
    assert len({task.name for task in tasks}) == len({task.id for task in tasks}) == 175
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", task.name) for task in tasks)


def test_the_languages_share_no_id() -> None:
    assert not {task.id for task in SEEDS["en"]} & {task.id for task in SEEDS["zh"]}


@both
def test_they_are_in_their_language(language: str) -> None:
    assert {language_of(task.instruction) for task in SEEDS[language]} == {language}


@both
def test_no_two_are_alike_and_all_pass_our_own_filters(language: str) -> None:
    index, known = NoveltyIndex(0.7), dict[str, str]()
    for task in SEEDS[language]:
        objection = first_objection(INSTRUCTION, NewInstruction(task.instruction, index, known))
        assert objection is None, (task.id, objection and objection[1])
        index.add(task.instruction, task.id)
        known[task.id] = task.instruction


@pytest.mark.parametrize("task", TASKS)
def test_each_is_sound(task: SeedTask) -> None:
    inputs = [instance.input for instance in task.instances if instance.input]
    assert len(inputs) == len(set(inputs))
    for text in texts(task):
        assert text == text.strip()
        assert "\ufffd" not in text
    for instance in task.instances:
        output = " ".join(instance.output.split()).casefold()
        assert output not in ("", *(" ".join(text.split()).casefold() for text in (instance.input, task.instruction)))
        assert not task.is_classification or len(tokens(instance.output)) <= 12, "a label is short"


BEGINS_LIKE_PYTHON = re.compile(r"def \w+\(|class \w+[:(]|import \w+$|from \w+ import ", re.MULTILINE)
PYTHON = [
    (task.id, instance.output)
    for tasks in SEEDS.values()
    for task in tasks
    for instance in task.instances
    if BEGINS_LIKE_PYTHON.match(instance.output)
]


def test_some_outputs_are_python() -> None:
    assert len(PYTHON) >= 3


@pytest.mark.parametrize(("id_", "code"), PYTHON)
def test_python_compiles(id_: str, code: str) -> None:
    assert compile(code, id_, "exec").co_filename == id_, "a SyntaxError would have been raised"


def test_no_eight_words_of_the_upstream_seeds(data_dir: Path) -> None:
    def grams(task: SeedTask) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for text in texts(task):
            words = tokens(text)
            found |= set(zip(*(words[start:] for start in range(8)), strict=False))
        return found

    upstream = set().union(*map(grams, load_seed_tasks(data_dir / "seed_tasks_upstream.jsonl")))
    assert len(upstream) > 10_000
    assert [(task.id, shared) for task in SEEDS["en"] if (shared := grams(task) & upstream)] == []
