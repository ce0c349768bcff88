"""The project file: what is wrong in it gets one plain sentence with the place, what is wanted, and what stands there.

A case is what is changed in a sound file, and what is said of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.regeneration.project import read_project
from tests.a_project import PROJECT

SOUND = PROJECT.format(
    base_url="http://127.0.0.1:1/v1", out="out", extra="", shared="", docs="", target=4, tables="#tables"
)

# (instead of, this) -> what is said behind the file's name
KEYS = {
    ("target = 4", "targte = 4"): ", [[source]] tasks: there is no setting 'targte'; the nearest is 'target'.",
    ("target = 4", "graphs = []"): ", [[source]] tasks: there is no setting 'graphs'; it is one of self_kg.",
    ("near_duplicates", "near_duplicate"): ", [curate]: there is no setting 'near_duplicate'; the nearest is 'near_d",
    ("concurrency", "concurency"): ", [shared]: there is no setting 'concurency'; the nearest is 'concurrency'.",
    ("concurrency", "pairs"): ", [shared]: there is no setting 'pairs'; the nearest is ",
    (
        "concurrency",
        "keep_versions",
    ): ", [shared]: there is no setting 'keep_versions'; it stands above the first table.",
    ("concurrency = 4", 'paths = ["docs"]'): ", [shared]: there is no setting 'paths'; it belongs into [[source]].",
    (
        "concurrency",
        "max_cost",
    ): ", [shared]: there is no setting 'max_cost'; [budget] has max_cost_per_tick and max_co",
    (
        "concurrency",
        "max-cost",
    ): ", [shared]: there is no setting 'max_cost'; [budget] has max_cost_per_tick and max_co",
    ("[curate]", "[curate]\njudge = true"): ", [curate]: there is no setting 'judge'; it belongs into [shared].",
    (
        "#tables",
        "[gate]\nleast_record = 4",
    ): ", [gate]: there is no setting 'least_record'; the nearest is 'least_records'.",
    ("#tables", "[budget]\nmax_cost_per_tik = 4"): ", [budget]: there is no setting 'max_cost_per_tik'; the nearest is",
    ("#tables", "[schedule]\ncorn = 5"): ", [schedule]: there is no setting 'corn'; the nearest is 'cron'.",
    ('name = "mill"', 'nmae = "mill"'): ": there is no setting 'nmae'; the nearest is 'name'.",
    ('name = "mill"', "target = 4"): ": there is no setting 'target'; it belongs into [shared].",
    ('generator = "self_kg"', ""): ", [[source]] 2: `generator` is one of self_instruct, self_qa, self_kg (missing).",
    (
        '"self_kg"',
        '"self_gk"',
    ): ", [[source]] 2: `generator` is one of self_instruct, self_qa, self_kg (given: 'self_gk'; the",
    ('name = "tasks"', 'name = "docs"'): ", [[source]] docs: the name stands there twice",
    ('name = "tasks"', "name = 3"): ", [[source]] 3: a name has letters",
}
TABLES = {
    ("[[source]]", "[source]"): ", [source]: write [[source]], in two brackets; there may be several.",
    ("[[source]]", "[source.docs]"): ", [source]: write [[source]], in two brackets; there may be several.",
    ("[[source]]", "[[sources]]"): ", [sources]: there is no such table; the nearest is '[[source]]'.",
    ("[curate]", "[[curate]]"): ", [[curate]]: write [curate], in single brackets; there is one.",
    ("[curate]", "[curat]"): ", [curat]: there is no such table; the nearest is '[curate]'.",
    ('name = "mill"', 'gate = "strict"'): ", gate: is a table, [gate] with its keys below (given: 'strict').",
    ('name = "mill"', "gate = []"): ", gate: is a table, [gate] with its keys below (given: []).",
    ('name = "mill"', 'name = "mill" nonsense'): ": not TOML (",
}
VALUES = {
    ("target = 4", "target = 0"): ", [[source]] tasks, target: takes a number above 0 (given: 0).",
    ("target = 4", 'target = "many"'): ", [[source]] tasks, target: takes a whole number (given: 'many').",
    ("target = 4", "target = true"): ", [[source]] tasks, target: takes a whole number (given: true).",
    ("target = 4", "target = [4]"): ", [[source]] tasks, target: takes a whole number (given: [4]).",
    ('["docs"]', '"docs/"'): ", [[source]] docs, paths: takes a list, such as [\"docs/\"] (given: 'docs/').",
    ('["docs"]', '["docs", 3]'): ", [[source]] docs, paths, item 2: takes a path in quotes (given: 3).",
    ("per_chunk = 2", 'strict = "perhaps"'): ", [[source]] docs, strict: takes true or false (given: 'perhaps').",
    ("per_chunk = 2", "temperature = true"): ", [[source]] docs, temperature: takes a number (given: true).",
    (
        "per_chunk = 2",
        "filters = {ecko = false}",
    ): ", [[source]] docs, filters: there is no filter 'ecko'; the nearest is",
    (
        "per_chunk = 2",
        "filters = {echo = [1]}",
    ): ", [[source]] docs, filters, echo: takes true or false or a number or a text",
    ("per_chunk = 2", "extra_body = 3"): ", [[source]] docs, extra_body: takes a table, NAME = VALUE (given: 3).",
    ('model = "fake"', "model = 3"): ", [[source]] docs, model: takes a text in quotes (given: 3).",
    ("#tables", '[gate]\nverdict = "good"'): ", [gate], verdict: takes 'better' or 'not worse' (given: 'good').",
    ("#tables", '[gate]\nverdict = "better"'): ", [gate] verdict: there is no [train] to give one.",
    (
        "#tables",
        '[budget]\nmax_cost_per_tick = "1 USD"',
    ): ", [budget], max_cost_per_tick: takes a number (given: '1 USD').",
    (
        "#tables",
        "[train]\nsteps = [3]",
    ): ", train, steps: takes a text in quotes or a whole number or a number or true or",
    ("#tables", "[schedule]\ncron = 5"): ", [schedule], cron: takes a text in quotes (given: 5).",
    ("#tables", '[schedule]\nevery = "90s"'): ", [schedule], every: takes a multiple of 60 (given: '90s').",
    (
        "#tables",
        "[schedule]\ncron = '@daily'\non_failure = 5",
    ): ", [schedule], on_failure: takes a text in quotes or a list in",
    ("#tables", "[schedule]\ncron = '@daily'\nevery = 60"): ", [schedule]: takes either cron or every (given: ",
    ('name = "mill"', 'name = "../mill"'): ", name: takes letters, digits",
    ('name = "mill"', 'name = ".."'): ", name: takes letters, digits",
    ('name = "mill"', "keep_versions = 1.5"): ", keep_versions: takes a whole number (given: 1.5).",
}


def said_of(text: str, folder: Path) -> str:
    """What is said of a project file of this text, behind its name."""
    path = folder / "regenerate.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_project(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert said.endswith((".", ")"))
    assert "\n" not in said
    assert "Input" not in said, "pydantic's words are not ours"
    return said.removeprefix(str(path))


def test_the_file_that_is_spoilt_below_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "regenerate.toml"
    path.write_text(SOUND, encoding="utf-8")
    assert [source.name for source in read_project(path).sources] == ["docs", "facts", "tasks"]


@pytest.mark.parametrize(("old", "new"), KEYS | TABLES | VALUES, ids=repr)
def test_each_mistake_gets_one_sentence(old: str, new: str, tmp_path: Path) -> None:
    assert old in SOUND
    assert said_of(SOUND.replace(old, new, 1), tmp_path).startswith((KEYS | TABLES | VALUES)[old, new])


@pytest.mark.parametrize("number", [1, 3])
def test_single_brackets_are_understood_however_many_there_are(number: int, tmp_path: Path) -> None:
    one = '[source]\ngenerator = "self_qa"\npaths = ["docs"]\n'
    assert said_of(one * number, tmp_path) == TABLES["[[source]]", "[source]"]
