"""From a reply's text to values: what is read, and under which word a reply that cannot be read is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.llm import Reply
from pipeline.parsing import Unreadable, read_items, read_value

DEEP = "[" * 100_000
OBJECT = '{"items": ["a", "b"]}'


def reply(text: str, finish_reason: str = "stop") -> Reply:
    return Reply(text, finish_reason, None, None, text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        pytest.param(OBJECT, ["a", "b"], id="plain"),
        pytest.param(f" \n{OBJECT}\n\n", ["a", "b"], id="white space"),
        pytest.param(f"```json\n{OBJECT}\n```", ["a", "b"], id="a fence"),
        pytest.param(f"Sure! Here it is:\n```\n{OBJECT}\n```\nI hope it helps {{:", ["a", "b"], id="chatter around"),
        pytest.param(f"Of course [as you wished]: {OBJECT}", ["a", "b"], id="a bracket in the chatter"),
        pytest.param(f"As in [1], for {{}}: {OBJECT} [2]", ["a", "b"], id="JSON in the chatter"),
        pytest.param('["a", {"b": 1}]', ["a", {"b": 1}], id="a bare list"),
        pytest.param('Here: ["a"] That is all.', ["a"], id="a bare list in chatter"),
        pytest.param('{"items": []}', [], id="an empty list"),
        pytest.param('{"other": [1], "items": ["中文"]}', ["中文"], id="further fields"),
        pytest.param('{"items": ["a\nb\tc", "d"]}', ["a\nb\tc", "d"], id="line breaks as such"),
        pytest.param('{"items": ["a", "b,]",],}', ["a", "b,]"], id="a comma behind the last item"),
        pytest.param('{"items": [{"a": "1\n2"}, {"a": "3"},]}', [{"a": "1\n2"}, {"a": "3"}], id="one item is JSON"),
        pytest.param(r'{"items": ["\(x\) \"\\y\" \u4e2d \n"]}', ['\\(x\\) "\\y" 中 \n'], id="LaTeX"),
        pytest.param(
            r'{"items": ["\frac{1}{2} \times \\beta\nabla, \nu \text{if}"]}',
            ["\\frac{1}{2} \\times \\beta\\nabla, \nu \\text{if}"],
            id="LaTeX that is JSON, too",
        ),
        pytest.param(
            r'{"items": ["a\nequal\tb\f\n\\f \bword\b"]}', ["a\nequal\tb\f\n\\f \\bword\b"], id="escapes that are some"
        ),
        pytest.param("{'items': ['a', \"it's\", True, None]}", ["a", "it's", True, None], id="Python's way"),
        pytest.param("Here:\n```python\n{'items': ['a\\(b\\)']}\n```", ["a\\(b\\)"], id="Python in a fence"),
        pytest.param(json.dumps({"items": ["汉\u2028字", "{]"]}), ["汉\u2028字", "{]"], id="escapes"),
    ],
)
def test_the_list_is_found(text: str, values: list[Any]) -> None:
    items = read_items(reply(text), "items")
    assert (items.values, items.cut) == (values, False)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        pytest.param('{"items": ["a", "b', ["a", "b"], id="inside a text"),
        pytest.param('{"items": ["a", ', ["a"], id="after a comma"),
        pytest.param('["a", "b', ["a", "b"], id="a bare list"),
        pytest.param('{"items": ["Sort [3, 1]", "b', ["Sort [3, 1]", "b"], id="brackets in a text"),
        pytest.param(
            '{"items": [{"label": "x", "input": "1"}, {"label": "y", "inp',
            [{"label": "x", "input": "1"}, {"label": "y"}],
            id="after a whole object",
        ),
        pytest.param('{"items": ["a\nb", "c\nd', ["a\nb", "c\nd"], id="line breaks as such"),
        pytest.param('Sure:\n```json\n{"items": [{"a": 1}, {"a": 2', [{"a": 1}, {"a": 2}], id="behind chatter"),
    ],
)
def test_what_came_before_the_cut_is_saved(text: str, values: list[Any]) -> None:
    items = read_items(reply(text, "length"), "items")
    assert (items.values, items.cut) == (values, True)
    with pytest.raises(Unreadable):
        read_items(reply(text, "stop"), "items")  # the same text, but no cut to explain it


def test_a_whole_reply_at_the_token_limit_is_not_cut() -> None:
    assert read_items(reply(OBJECT, "length"), "items").cut is False


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        pytest.param("", "failed", "request_failed", id="failed"),
        pytest.param("I cannot help with that.", "refusal", "refusal", id="refusal"),
        pytest.param(OBJECT, "content_filter", "content_filter", id="content filter"),
        pytest.param(" \n", "stop", "empty_reply", id="empty"),
        pytest.param("", "length", "empty_reply", id="empty at the limit"),
        pytest.param("1. Write a poem.", "stop", "not_json", id="prose"),
        pytest.param('{"items": [NaN]}', "stop", "not_json", id="NaN"),
        pytest.param('{"items": [-Infinity]}', "stop", "not_json", id="Infinity"),
        pytest.param(DEEP, "stop", "not_json", id="deep nesting"),
        pytest.param(DEEP, "length", "cut_off", id="deep nesting, cut"),
        pytest.param('{"items": ["a" "b"]}', "stop", "not_json", id="a missing comma"),
        pytest.param('{"ite', "length", "cut_off", id="cut at the start"),
        pytest.param("Let me think about that", "length", "not_json", id="cut before any JSON"),
        pytest.param("{'items': ['a' 'b']}", "stop", "not_json", id="a missing comma, Python's way"),
        pytest.param("{'items': ['a', {1, 2}]}", "stop", "not_json", id="Python that JSON does not hold"),
        pytest.param("{'items': ['a', " + "(" * 50_000, "stop", "not_json", id="deep Python"),
        pytest.param("{'items': [" + "-" * 50_000 + "1]}", "stop", "not_json", id="many signs"),
        pytest.param("{'items': ['a'", "stop", "not_json", id="cut Python"),
        pytest.param('{"other": ["a"]}', "stop", "wrong_shape", id="another list"),
        pytest.param('{"items": "a"}', "stop", "wrong_shape", id="no list"),
        pytest.param('{"items": {"a": ["b"]}}', "stop", "wrong_shape", id="a list inside"),
        pytest.param('{"items": null}', "stop", "wrong_shape", id="null"),
    ],
)
def test_what_cannot_be_read_has_a_reason(text: str, finish_reason: str, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_items(reply(text, finish_reason), "items")
    assert caught.value.reason == reason
    assert 0 < len(caught.value.detail) < 200


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        pytest.param('{"yes": true}', "stop", True, id="plain"),
        pytest.param('So: ```json\n{"yes": false}```', "stop", False, id="a fence"),
        pytest.param('[0] {} {"yes": null}', "stop", None, id="JSON in the chatter"),
        pytest.param('{"yes": true', "length", "cut_off", id="cut"),
        pytest.param('{"no": true}', "stop", "wrong_shape", id="another name"),
        pytest.param('["yes"]', "stop", "wrong_shape", id="a list"),
        pytest.param("yes", "stop", "not_json", id="a word"),
    ],
)
def test_a_single_value(text: str, finish_reason: str, expected: object) -> None:
    if isinstance(expected, str):
        with pytest.raises(Unreadable) as caught:
            read_value(reply(text, finish_reason), "yes")
        assert caught.value.reason == expected
    else:
        assert read_value(reply(text, finish_reason), "yes") is expected


# No backspace and no form feed: before a letter nobody means them, and TeX is read instead.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\b\f"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=4), st.sampled_from(["{}", "Sure:\n```json\n{}\n```\nBye.", "[1] {}\n"]))
def test_any_list_is_read_back(values: list[Any], around: str) -> None:
    text = around.replace("{}", json.dumps({"items": values}, ensure_ascii=False))
    assert read_items(reply(text), "items").values == values


@given(st.text(alphabet='{}[]",:ab1 \n', max_size=60), st.sampled_from(["stop", "length", "tool_calls"]))
def test_any_text_is_read_or_has_a_reason(text: str, finish_reason: str) -> None:
    try:
        found: list[Any] | str = read_items(reply(text, finish_reason), "items").values
    except Unreadable as unreadable:
        found = unreadable.reason
    assert isinstance(found, list) or found in {"empty_reply", "not_json", "wrong_shape", "cut_off"}


@given(st.lists(texts.map(lambda text: text[:8]), min_size=1, max_size=4), st.data())
def test_a_cut_anywhere_saves_a_beginning(values: list[str], data: st.DataObject) -> None:
    text = json.dumps({"items": values})
    cut = data.draw(st.integers(len('{"items": ['), len(text) - 1))
    items = read_items(reply(text[:cut], "length"), "items")
    assert items.cut
    assert items.values[:-1] == values[: max(0, len(items.values) - 1)]
