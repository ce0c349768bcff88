"""Reading seed tasks: what loads, and the sentence, with file and line, that each mistake gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.seed_tasks import SeedTask, fingerprint, load_seed_tasks

TASK: dict[str, Any] = {
    "id": "a",
    "name": "a_river",
    "instruction": "Name a river.",
    "instances": [{"input": "", "output": "The Po."}],
    "is_classification": False,
}


def line(**changes: Any) -> str:
    return json.dumps(TASK | changes, ensure_ascii=False)


def without(name: str) -> str:
    return json.dumps({key: value for key, value in TASK.items() if key != name})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("", ": holds no seed task.", id="empty"),
        pytest.param(" \n\n\t\n", ": holds no seed task.", id="blank lines"),
        pytest.param("no JSON", ", line 1: not JSON", id="not JSON"),
        pytest.param(line() + "\n\n{", ", line 3: not JSON", id="cut JSON"),
        pytest.param("[]", ", line 1: Input should be an object", id="a list"),
        pytest.param('"text"', ", line 1: Input should be an object", id="a text"),
        pytest.param(json.dumps([TASK], indent=1), ", line 1: not JSON", id="one JSON list over several lines"),
        *(
            pytest.param(without(name), f", line 1: the field '{name}' is missing.", id=f"no {name}")
            for name in ("id", "instruction", "instances", "is_classification")
        ),
        pytest.param(line(id=7), ", line 1: field 'id': Input should be a valid string", id="a number for a text"),
        pytest.param(line(id=""), ", line 1: field 'id': String should have at least 1 character", id="empty id"),
        pytest.param(line(instruction=""), ", line 1: field 'instruction': ", id="empty instruction"),
        pytest.param(line(instruction=" \n"), ", line 1: field 'instruction': ", id="blank instruction"),
        pytest.param(line(instances=[]), ", line 1: field 'instances': ", id="no instance"),
        pytest.param(line(instances={}), ", line 1: field 'instances': ", id="no list of instances"),
        pytest.param(line(instances=["x"]), ", line 1: field 'instances.0': ", id="an instance that is none"),
        pytest.param(
            line(instances=[*TASK["instances"], {"input": "x"}]),
            ", line 1: the field 'instances.1.output' is missing.",
            id="no output",
        ),
        pytest.param(line(instances=[{"output": ""}]), ", line 1: field 'instances.0.output': ", id="an empty output"),
        pytest.param(
            line(instances=[{"output": "x", "history": [["only the user"]]}]),
            ", line 1: ",
            id="half a turn",
        ),
        pytest.param(line(is_classification="no"), ", line 1: field 'is_classification': ", id="a text for yes or no"),
        pytest.param(line(is_classification=0), ", line 1: field 'is_classification': ", id="a number for yes or no"),
        pytest.param(
            line() + "\n" + line(id="b") + "\n\n" + line(), ", line 4: the id 'a' stands in line 1 already.", id="twice"
        ),
        pytest.param(
            (line() + "\n" + line(id="b", name="Fluß")).encode("latin-1"), ", line 2: not UTF-8", id="Latin-1"
        ),
        pytest.param(line().encode("utf-16"), ", line 1: not UTF-8", id="UTF-16"),
        pytest.param(line(name="中文").encode("gb18030"), ", line 1: not UTF-8", id="GB 18030"),
        pytest.param(line(instruction="\\ud800").replace("\\\\", "\\"), ", line 1: ", id="a lone surrogate"),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        load_seed_tasks(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}{said}")
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: cannot be read \(No such file or directory\)\."):
        load_seed_tasks(tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match="a folder; --seeds takes one JSON Lines file"):
        load_seed_tasks(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(line() + "\n" + line(id="b"), id="no newline at the end"),
        pytest.param("\ufeff" + line() + "\n" + line(id="b") + "\n", id="a byte order mark"),
        pytest.param(line() + "\r\n\r\n" + line(id="b") + "\r\n", id="Windows line ends, an empty line"),
        pytest.param(line(name="x\u2028y\u2029z\x85") + "\n" + line(id="b"), id="Unicode line ends inside a line"),
        pytest.param(
            line(difficulty=3, instances=[{"output": "Po", "by": "me"}]) + "\n" + line(id="b"), id="further fields"
        ),
        pytest.param(without("name") + "\n" + line(id="b"), id="no name"),
    ],
)
def test_what_loads(tmp_path: Path, content: str) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(content.encode())
    assert [task.id for task in load_seed_tasks(path)] == ["a", "b"]


texts = st.text(min_size=1).filter(str.strip)


@given(texts, texts, st.text(), st.lists(st.tuples(st.text(), st.text()), max_size=2))
def test_any_text_is_read_back(tmp_path_factory: Any, instruction: str, output: str, input_: str, history: Any) -> None:
    path = tmp_path_factory.mktemp("seeds") / "seeds.jsonl"
    instance = {"input": input_, "output": output, "history": history}
    path.write_text(line(instruction=instruction, instances=[instance]) + "\n", encoding="utf-8", newline="")
    task = load_seed_tasks(path)[0]
    read = task.instances[0]
    assert (task.instruction, read.input, read.output, list(read.history)) == (instruction, input_, output, history)


def test_the_upstream_file_loads(data_dir: Path) -> None:
    tasks = load_seed_tasks(data_dir / "seed_tasks_upstream.jsonl")
    assert (len(tasks), sum(task.is_classification for task in tasks)) == (175, 26)


@pytest.mark.parametrize(
    ("changes", "noticed"),
    [
        ({"instruction": "Name a lake."}, True),
        ({"id": "b"}, True),  # ids stand in the records' sources
        ({"is_classification": True}, True),
        ({"instances": [{"output": "The Rhine."}]}, True),
        ({"instances": [{"output": "The Po.", "input": ""}]}, False),
        ({"difficulty": 3}, False),
    ],
)
def test_the_fingerprint_sees_what_a_prompt_could(changes: dict[str, Any], noticed: bool) -> None:
    before, after = (SeedTask.model_validate_json(text) for text in (line(), line(**changes)))
    assert (fingerprint([before]) != fingerprint([after])) == noticed
    assert fingerprint([before, after]) != fingerprint([after, before]) or not noticed
