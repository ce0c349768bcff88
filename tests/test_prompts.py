"""Templates: what is filled in, what is refused, what a user's own folder replaces, and that the words are ours."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.novelty import tokens
from pipeline.prompts import SHIPPED, Prompts

NAMES = sorted(path.stem for path in (SHIPPED / "en").glob("*.md"))
IDENTIFY = "self_instruct_identify"  # its one name is $instruction


def names_in(text: str) -> set[str]:
    return set(Template(text).get_identifiers())


def own(folder: Path, text: str, name: str = IDENTIFY) -> Prompts:
    (folder / f"{name}.md").parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return Prompts("en", folder)


# ---------------------------------------------------------------- the shipped ones


def test_both_languages_have_the_same_templates() -> None:
    assert sorted(path.stem for path in (SHIPPED / "zh").glob("*.md")) == NAMES
    assert len(NAMES) > 4


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_names_and_json_keys(name: str) -> None:
    english, chinese = (Prompts(language).text(name) for language in ("en", "zh"))
    assert names_in(english) == names_in(chinese)
    assert set(re.findall(r'"(\w+)"', english)) == set(re.findall(r'"(\w+)"', chinese))
    assert len(re.findall("[\u4e00-\u9fff]", chinese)) > 40
    assert not re.search("[\u4e00-\u9fff]", english)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_template_is_filled(name: str, language: str) -> None:
    prompts = Prompts(language)
    values = {found: f"<{found}>" for found in names_in(prompts.text(name))}
    (system, instructions), (user, question) = prompts.chat(name, values)
    assert (system, user) == ("system", "user")
    assert ("JSON" in instructions) == (name != "pair_answer")  # its answer is a text
    assert all(value in question for value in values.values())
    assert "$" not in question


def grams(text: str, n: int = 8) -> set[tuple[str, ...]]:
    words = tokens(text)
    return set(zip(*(words[start:] for start in range(n)), strict=False))


@pytest.mark.parametrize("name", NAMES)
def test_no_template_shares_eight_words_with_the_published_prompts(name: str, data_dir: Path) -> None:
    methods = data_dir.parent / "METHODS.md"
    if not methods.exists():
        pytest.skip(f"needs the page that quotes the published prompts: {methods}")
    section = methods.read_text(encoding="utf-8").split("### 4.1 ")[1].split("\n### ")[0]
    published = grams(section)
    assert grams("Come up with examples for the following tasks. Try to generate multiple") <= published
    assert not grams(Prompts("en").text(name)) & published


# ---------------------------------------------------------------- filling in


def test_examples_are_earlier_turns() -> None:
    system, *turns = Prompts("en").chat(IDENTIFY, {"instruction": "C"}, [({"instruction": "A"}, "yes")])
    assert system[0] == "system"
    assert [role for role, _ in turns] == ["user", "assistant", "user"]
    assert (turns[0][1][-1], turns[1][1], turns[2][1][-1]) == ("A", "yes", "C")
    assert turns[0][1][:-1] == turns[2][1][:-1]


@given(st.text(st.characters(exclude_categories=())))
@pytest.mark.parametrize("data", ["$instruction $$ ${x} {y} {{z}} %s \\1 # user", ""])
def test_data_passes_through_untouched(data: str, more: str) -> None:
    text = data + more
    *_, (_, question) = Prompts("en").chat(IDENTIFY, {"instruction": text}, [({"instruction": text}, text)])
    assert question.endswith(text)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "$instruction is unknown"),
        ({"instruction": "a", "count": 3, "at": 1}, "$at is missing, $count is missing"),
        ({"count": 3}, "$instruction is unknown, $count is missing"),
    ],
)
def test_values_and_names_must_agree(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Prompts("en").chat(IDENTIFY, values)
    assert str(caught.value) == f"{SHIPPED / 'en' / IDENTIFY}.md: {said}."


# ---------------------------------------------------------------- a user's own


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("Is it one? $instruction", [("user", "Is it one? X")]),
        ("# user\n$instruction costs 5 $$", [("user", "X costs 5 $")]),
        ("# system\nBe {brief}.\n\n# user\n$instruction", [("system", "Be {brief}."), ("user", "X")]),
        ("\ufeff# system \nBe brief.\n# user\t\n$instruction", [("system", "Be brief."), ("user", "X")]),
        ("# system\r\nBe brief.\r\n# user\r\n${instruction}s\r\n", [("system", "Be brief."), ("user", "Xs")]),
        ("## users\n$instruction", [("user", "## users\nX")]),
    ],
)
def test_own_templates_replace_the_shipped_ones(tmp_path: Path, text: str, messages: list[tuple[str, str]]) -> None:
    prompts = own(tmp_path, text)
    assert list(prompts.chat(IDENTIFY, {"instruction": "X"})) == messages
    others = [name for name in NAMES if name != IDENTIFY]
    assert prompts.hashes(*others) == Prompts("en").hashes(*others)
    assert prompts.hashes(IDENTIFY) != Prompts("en").hashes(IDENTIFY)


def test_the_languages_folder_comes_before_the_plain_one(tmp_path: Path) -> None:
    own(tmp_path, "plain $instruction")
    prompts = own(tmp_path / "en", "english $instruction")
    assert Prompts("en", tmp_path).text(IDENTIFY) == prompts.text(IDENTIFY) == "english $instruction"
    assert Prompts("zh", tmp_path).text(IDENTIFY) == "plain $instruction"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("self_instruct_identfy", "x", "the nearest is 'self_instruct_identify'", id="unknown template"),
        pytest.param(IDENTIFY, "Is it one?", "$instruction is missing", id="missing name"),
        pytest.param(IDENTIFY, "$instruction $count", "$count is unknown", id="unknown name"),
        pytest.param(IDENTIFY, "$instruction for 5 $", "a $ that starts no name; write $$", id="lone dollar"),
        pytest.param(IDENTIFY, "$instruction for $5", "a $ that starts no name; write $$", id="a price"),
        pytest.param(IDENTIFY, "# system\n$instruction", "holds one `# user` section", id="no user section"),
        pytest.param(IDENTIFY, "Hi\n# user\n$instruction", "holds one `# user` section", id="text before the sections"),
        pytest.param(IDENTIFY, "# user\na\n# user\n$instruction", "holds one `# user` section", id="two of a kind"),
    ],
)
def test_a_wrong_template_is_refused_when_it_is_opened(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        own(tmp_path, text, name)
    assert str(tmp_path / f"{name}.md") in str(caught.value)
    assert said in str(caught.value)


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        Prompts("en", tmp_path / "missing")
    with pytest.raises(UsageError, match=f"holds no template; they are named .*{IDENTIFY}"):
        Prompts("en", tmp_path)
    (tmp_path / f"{IDENTIFY}.md").write_bytes("$instruction für".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        Prompts("en", tmp_path)
