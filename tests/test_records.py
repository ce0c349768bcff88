"""A record survives its line of JSON whatever its text, and its id says what it holds and nothing else."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.records import PromptSource, Record, Rejection, content_id, make_record

SOURCE = PromptSource(prompt=0, seeds=("seed_1",), pool=())
FIELDS: dict[str, Any] = {
    "instruction": "Name a river.",
    "input": "in Asia",
    "output": "The Mekong.",
    "history": [("Hello", "Good day.")],
    "task": "generation",
    "generator": "self_instruct",
    "model": "some-model",
    "language": "en",
    "source": SOURCE,
    "prompts": {"tasks": "0123"},
    "requests": ["ab", "cd"],
}
# Another value for each parameter, and whether the id is to notice it.
OTHERS: dict[str, tuple[Any, bool]] = {
    "instruction": ("Name a lake.", True),
    "input": ("", True),
    "output": ("The Yangtze.", True),
    "history": ([], True),
    "task": ("classification", False),
    "generator": ("self_qa", True),
    "model": ("another", False),
    "language": ("zh", False),
    "source": (SOURCE.model_copy(update={"prompt": 7}), False),
    "prompts": ({}, False),
    "requests": ([], False),
}

anything = st.text(st.characters(exclude_categories=()))  # surrogates and control characters too
turns = st.lists(st.tuples(anything, anything), max_size=3)


def test_every_parameter_of_make_record_has_a_row() -> None:
    assert set(OTHERS) == set(FIELDS) == set(inspect.signature(make_record).parameters)


@pytest.mark.parametrize("name", OTHERS)
def test_the_id_depends_on_exactly_five_fields(name: str) -> None:
    value, noticed = OTHERS[name]
    assert (make_record(**FIELDS | {name: value}).id != make_record(**FIELDS).id) == noticed


@given(anything, anything, anything, turns)
@example("\ud800", "a\udfffb", "\r\n\u2028\x85", [("\ud83d", "\ude00")])
def test_any_text_survives_a_line_of_json(instruction: str, input_: str, output: str, history: Any) -> None:
    texts = {"instruction": instruction, "input": input_, "output": output, "history": history}
    record = make_record(**FIELDS | texts)
    line = record.model_dump_json()
    assert "\n" not in line
    assert Record.model_validate_json(line.encode("utf-8")) == record
    for given_, kept in zip(
        (instruction, input_, output), (record.instruction, record.input, record.output), strict=True
    ):
        assert kept == "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in given_)
    rejection = Rejection(stage="record", filter="echo", reason="because", **record.model_dump())
    assert Rejection.model_validate_json(rejection.model_dump_json()) == rejection


@given(st.lists(anything.map(lambda text: text.encode("utf-8", "replace").decode())), st.lists(st.text()))
@example(["ab", "c"], ["a", "bc"])
@example(["1:a"], ["1", "a"])
@example([""], [])
def test_different_texts_have_different_ids(left: list[str], right: list[str]) -> None:
    assert (content_id(*left) == content_id(*right)) == (left == right)


@pytest.mark.parametrize(
    ("model", "fields"), [(Record, {"id": "x", "stage": "record"}), (Rejection, {"stage": "record", "why": "x"})]
)
def test_an_unknown_field_is_refused(model: type[Record] | type[Rejection], fields: dict[str, str]) -> None:
    known = make_record(**FIELDS).model_dump()
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        model.model_validate(known | {"filter": "f", "reason": "r"} | fields)
