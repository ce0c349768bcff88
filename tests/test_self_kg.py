"""pipeline.self_kg, whole: templates without a model, a model that tells the truth and one that lies, and replay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kg.questions import Question
from pipeline.phrasing.speaker import Draft
from pipeline.self_kg import SelfKG, SelfKGSettings, main
from pipeline.self_kg_requests import read_phrases, tidy
from tests.conftest import read_lines, summary
from tests.fake_kg import Teller, reply
from tests.fake_server import FakeServer

PLANETS = Path(__file__).parent.parent / "kg" / "planets.ttl"

SMALL = "Io\torbits\tJupiter\nEuropa\torbits\tJupiter\nJupiter\torbits\tSun\nIo\tfilm film genre\tRock\n"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "g.tsv"
    path.write_text(SMALL, encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_lines(folder / name)


def records(folder: Path) -> list[dict[str, Any]]:
    return read(folder, "records.jsonl")


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=pytest.mark.slow)])
def test_templates_need_no_model_and_replay_to_the_byte(language: str, tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    out = tmp_path / "out"
    command = (PLANETS, "--template", "--language", language, "--out", out)
    assert run(*command) == 0
    first = (out / "records.jsonl").read_bytes()
    assert run(*command, "--concurrency", 1) == 0
    assert (out / "records.jsonl").read_bytes() == first
    kept, told = records(out), summary(out)
    assert read(out, "rejected.jsonl") == []
    assert len(kept) == told["kept"] > 700
    assert (told["asked"], told["sent_ever"]) == (0, 0)
    assert {record["model"] for record in kept} == {"template"}
    assert {record["language"] for record in kept} == {language}
    without = {"does not say", "没有给出"}  # a refusal rests on no triple
    assert all(r["source"][0]["triples"] or any(w in r["output"] for w in without) for r in kept)
    assert told["graph"]["facts_covered"] == told["graph"]["facts"] == 434
    assert told["graph"]["relations_covered"] == told["graph"]["relations"]


def test_a_target_spreads_over_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    out = tmp_path / "out"
    assert run(PLANETS, "--template", "--target", 60, "--out", out) == 0
    assert len(records(out)) == 60
    assert summary(out)["graph"]["relations_covered"] >= 12
    short = [record["id"] for record in records(out)]
    assert run(PLANETS, "--template", "--target", 90, "--out", out) == 0
    assert [record["id"] for record in records(out)][:60] == short


def test_an_awkward_relation_is_left_out_with_a_reason_and_can_be_named(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(graph, "--template", "--out", out) == 0
    rejected = read(out, "rejected.jsonl")
    assert [(r["filter"], r["value"]) for r in rejected] == [("awkward_relation", "film film genre")]
    assert "relations.json" in rejected[0]["reason"]
    assert not [r for r in records(out) if "Rock" in r["instruction"] + r["output"]]
    said = json.loads((out / "relations.json").read_text(encoding="utf-8"))
    said["film film genre"]["en"] = {"label": "genre", "statement": "{s} plays {o}", "tail": "", "head": "", "ref": ""}
    edited = tmp_path / "mine.json"
    edited.write_text(json.dumps(said), encoding="utf-8")
    assert run(graph, "--template", "--labels", edited, "--out", tmp_path / "named") == 0
    assert read(tmp_path / "named", "rejected.jsonl") == []
    assert [r for r in records(tmp_path / "named") if "Io plays" in r["output"] + r["instruction"]]


def test_a_relation_without_a_name_in_the_language_is_left_out_and_counted(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.tsv"
    english = "Marie Curie\tworked in\tParis\nParis\tcapital of\tFrance\n"
    mixed.write_text(english + "偏头痛\t相关症状\t恶心\n偏头痛\t病因\t压力\n感冒\t病因\t病毒\n", encoding="utf-8")
    sets = {"zh": {"worked in", "capital of"}, "en": {"相关症状", "病因"}}
    for language, foreign in sets.items():
        out = tmp_path / language
        assert run(mixed, "--template", "--language", language, "--out", out) == 0
        assert {r["value"] for r in read(out, "rejected.jsonl")} == foreign
        assert all("has no name in" in r["reason"] for r in read(out, "rejected.jsonl"))
        asked = {fact[1] for r in records(out) for fact in r["source"][0]["triples"]}
        assert asked == set().union(*sets.values()) - foreign
    labels = tmp_path / "labels.tsv"
    labels.write_text("worked in\t工作地\tzh\ncapital of\t所属国\tzh\n", encoding="utf-8")
    assert run(mixed, "--template", "--language", "zh", "--labels", labels, "--out", tmp_path / "named") == 0
    assert read(tmp_path / "named", "rejected.jsonl") == []
    assert [r for r in records(tmp_path / "named") if "工作地" in r["instruction"]]


def test_broken_lines_are_rejections_and_broken_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.tsv"
    path.write_text(SMALL + "broken\n", encoding="utf-8")
    assert run(path, "--template", "--out", tmp_path / "out") == 0
    assert [r["reason"] for r in read(tmp_path / "out", "rejected.jsonl") if r["filter"] == "load"] == [
        "g.tsv, line 5: 1 columns, needs 3"
    ]
    path.with_suffix(".json").write_text("{", encoding="utf-8")
    for arguments, why in [
        ((path.with_suffix(".json"),), "not JSON"),
        ((), "Which graph?"),
        ((path, "--kinds", "tale"), "tale"),
    ]:
        assert run(*arguments, "--template", "--out", tmp_path / "none") == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--kinds", "tail"), ("--per-fact", "1"), ("--seed", "1"), ("--style", "scenario"), ("--language", "zh")],
)
def test_every_setting_acts(flag: str, value: str, graph: Path, tmp_path: Path) -> None:
    run(graph, "--template", "--out", tmp_path / "a")
    run(graph, "--template", "--out", tmp_path / "b", flag, value)
    assert records(tmp_path / "a") != records(tmp_path / "b")
    assert run(graph, "--template", "--out", tmp_path / "a", flag, value) == 2, "a shaping setting"


@pytest.mark.parametrize("kinds", [["true,false"], ["true", "false"], ["true,", "false"]])
def test_kinds_are_divided_by_commas_or_spaces(kinds: list[str], graph: Path, tmp_path: Path) -> None:
    assert run(graph, "--template", "--kinds", *kinds, "--out", tmp_path / "a") == 0
    config = json.loads((tmp_path / "a/config.json").read_text(encoding="utf-8"))
    assert config["settings"]["kinds"] == ["true", "false"]


def test_hops_act(tmp_path: Path) -> None:
    path = tmp_path / "g.tsv"
    path.write_text("".join(f"n{i}\tleads to\tn{i + 1}\n" for i in range(9)), encoding="utf-8")
    for hops in (2, 4):
        run(path, "--template", "--kinds", "path", "--hops", hops, "--out", tmp_path / str(hops))
    lengths = {hops: {len(r["source"][0]["triples"]) for r in records(tmp_path / str(hops))} for hops in (2, 4)}
    assert lengths == {2: {2}, 4: {2, 3, 4}}


# ---------------------------------------------------------------- with an endpoint that knows the graph


class Prepared:
    """A generator's requests, and a file of answers to them, true or false, for the fake server."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.generator = SelfKG(SelfKGSettings(graphs=(PLANETS,), model="fake", **settings))
        self.teller = Teller(self.generator._speaker, 1)
        self.path = folder / "answers.json"
        self.answers: dict[str, str] = {}
        self.lies = self.truths = 0

    def questions(self, number: int) -> Iterator[tuple[Question, str]]:
        for question, _ in zip(self.generator._sampler.questions(), range(number), strict=False):
            draft = self.generator._speaker.draft(question)
            yield question, self.generator._writer.questions([question], [draft]).messages[-1][1]

    def every_second_a_lie(self, number: int) -> None:
        self.lies_among_ten(5, number)

    def lies_among_ten(self, share: int, number: int) -> None:
        for question, asked in self.questions(number):
            lies = list(self.teller.lies(question))
            lying = (len(self.answers) + 1) * share // 10 > len(self.answers) * share // 10 and lies
            draft = self.teller.random.choice(lies)[1] if lying else self.teller.true_pair(question)
            marked = Draft(draft.instruction, draft.output)
            self.answers[asked] = reply(marked)
            self.lies += bool(lying)
            self.truths += not lying
        self.path.write_text(json.dumps(self.answers, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=pytest.mark.slow)])
def test_a_lying_server_gets_nothing_past_the_graph(language: str, tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    prepared = Prepared(tmp_path, language=language, seed=3)
    prepared.every_second_a_lie(400)
    lies = {text for number, text in enumerate(prepared.answers.values()) if number % 2}
    out = tmp_path / "out"
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=prepared.path) as server:
        command = (PLANETS, "--model", "fake", "--base-url", server.base_url, "--language", language, "--seed", 3)
        limit = ("--max-requests", 400, "--out", out, "--concurrency", 8)
        assert run(*command, *limit) == 4
        kept = records(out)
        assert not [r for r in kept if reply(Draft(r["instruction"], r["output"])) in lies]
        assert len(kept) >= 0.95 * prepared.truths
        rejected = [r for r in read(out, "rejected.jsonl") if r["filter"] == "graph"]
        assert len(rejected) >= prepared.lies
        assert all(" — " in r["value"] for r in rejected if r["source"][0]["triples"])
        sent = len(server.ledger())
        again = records(out)
        assert run(*command, *limit, "--offline") == 3
        assert len(server.ledger()) == sent == 400
        assert records(out) == again
        keys = [r["requests"] for r in kept]
        assert len({key for several in keys for key in several}) == len(kept)


def test_scenario_pairs_are_matched_by_id(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    prepared = Prepared(tmp_path, style="scenario")
    groups = [group for group, _ in zip(prepared.generator._sampler.groups(5), range(4), strict=False)]
    for number, group in enumerate(groups):
        drafts = [prepared.generator._speaker.draft(question) for question in group]
        pairs = [
            {"id": f"q{at}", **json.loads(reply(prepared.generator._speaker.draft(question, scenario=True)))}
            for at, question in enumerate(group, 1)
        ]
        pairs.reverse()  # ids, not places
        if number == 1:
            pairs[0]["id"] = "q77"
        if number == 2:
            pairs.pop()
        asked = prepared.generator._writer.questions(group, drafts).messages[-1][1]
        prepared.answers[asked] = json.dumps({"pairs": pairs}, ensure_ascii=False)
    prepared.path.write_text(json.dumps(prepared.answers), encoding="utf-8")
    out = tmp_path / "out"
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=prepared.path) as server:
        arguments = ("--style", "scenario", "--max-requests", 4, "--concurrency", 1, "--out", out)
        assert run(PLANETS, "--model", "fake", "--base-url", server.base_url, *arguments) == 4
    sizes = list(map(len, groups))
    assert max(sizes) <= 5
    assert len(records(out)) == sum(sizes) - 2
    reasons = [r["reason"] for r in read(out, "rejected.jsonl")]
    assert sorted(reasons) == sorted(
        ["a pair with the id 'q77', which is unknown or comes twice", *["the reply holds no pair for it"] * 2]
    )


def test_an_awkward_relation_is_asked_about_once_and_kept(graph: Path, tmp_path: Path) -> None:
    generator = SelfKG(SelfKGSettings(graphs=(graph,), model="fake", out=tmp_path / "unused"))
    phrases = {
        "label": "style",
        "statement": "{s} is in the style {o}",
        "tail": "In which style is {s}?",
        "head": "What is in the style {o}?",
    }
    answers = {"Relation: film film genre\nFacts: Io — Rock": json.dumps(phrases)}
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers), encoding="utf-8")
    out = tmp_path / "out"
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=path) as server:
        command = (graph, "--model", "fake", "--base-url", server.base_url)
        run(*command, "--out", out)
        first = [line["body"] for line in server.ledger()]
        assert sum("Relation: film" in str(body) for body in first) == 1
        said = json.loads((out / "relations.json").read_text(encoding="utf-8"))
        assert said["film film genre"]["en"]["statement"] == phrases["statement"]
        assert summary(out)["graph"]["relations_verbalised"] == 1
        assert any("In which style is Io?" in str(body) for body in first)
        run(*command, "--labels", out / "relations.json", "--out", tmp_path / "second")
        later = [line["body"] for line in server.ledger()][len(first) :]
        assert later
        assert not any("Relation: film" in str(body) for body in later), "what the file says is not asked again"
    assert generator.name == "self_kg"


def test_one_triple_more_asks_little_anew(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    text = PLANETS.read_text(encoding="utf-8")
    grown = tmp_path / "grown.ttl"
    grown.write_text(text + ":Nereid :radius 170 .\n", encoding="utf-8")

    async def asked(path: Path) -> set[str]:
        generator = SelfKG(SelfKGSettings(graphs=(path,), model="fake"))
        questions = list(generator._sampler.questions())
        return {str(generator._writer.questions([q], [generator._speaker.draft(q)]).messages) for q in questions}

    before, after = asyncio.run(asked(PLANETS)), asyncio.run(asked(grown))
    assert after - before
    assert len(after - before) <= 0.03 * len(after)


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": "x", "statement": "{s} is", "tail": "{s}?", "head": "{o}?"},
        {"label": "x", "statement": "{s} is {o}", "tail": "{o}?", "head": "{o}?"},
        {"label": "", "statement": "{s} is {o}", "tail": "{s}?", "head": "{o}?"},
        {"statement": 7},
    ],
)
def test_phrases_that_lose_a_name_are_not_taken(wrong: dict[str, Any]) -> None:
    from pipeline.parsing import Unreadable

    with pytest.raises(Unreadable):
        read_phrases(wrong)
    right = read_phrases({"label": "x", "statement": "{s} is {o}.", "tail": "{s}?", "head": "{o}?"})
    assert right.statement == "{s} is {o}"
    assert tidy("film film genre") == "film genre"


def test_a_plan_counts_what_a_run_then_sends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdflib")
    prepared = Prepared(tmp_path)
    prepared.every_second_a_lie(10)
    out = tmp_path / "out"
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=prepared.path) as server:
        command = (PLANETS, "--model", "fake", "--base-url", server.base_url, "--out", out)
        plans = []
        for _ in range(2):
            assert run(*command, "--plan", "--json") == 0
            plans.append(json.loads(capsys.readouterr().out)["requests"])
            if len(plans) == 1:
                assert server.ledger() == []
                run(*command, "--max-requests", 10)
        assert plans[0] - plans[1] == len(server.ledger()) == 10
    assert run(PLANETS, "--template", "--plan", "--json", "--out", out) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 0


def test_a_small_model_words_the_question_alone_and_the_template_stands_in(tmp_path: Path) -> None:
    """Every question brings one record: in the model's words where the graph vouches for them, else the template's."""
    pytest.importorskip("rdflib")
    settings = SelfKGSettings(graphs=(PLANETS,), model="fake", rephrase="question", fallback="on")
    generator = SelfKG(settings)
    drafts = [generator._speaker.draft(question) for question in generator._sampler.questions()][:60]
    spoiled = (
        lambda text: text.rstrip("?.") + " in 1957?",  # a number of its own
        lambda text: "Who was that?",
        lambda text: "It is known.",
        lambda text: text.rstrip("?.") + ", or is it larger than a whale?",
    )
    answers, bad = {}, set()
    for number, draft in enumerate(drafts):
        said = f"Please tell me: {draft.instruction}"
        if number % 3 == 0:
            said = spoiled[number // 3 % 4](draft.instruction)
            bad.add(draft.instruction)
        answers[f"Question: {draft.instruction}"] = json.dumps({"instruction": said})
    path, out = tmp_path / "answers.json", tmp_path / "out"
    path.write_text(json.dumps(answers), encoding="utf-8")
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=path) as server:
        command = (PLANETS, "--model", "fake", "--base-url", server.base_url, "--rephrase", "question", "--out", out)
        assert run(*command, "--max-requests", 60, "--concurrency", 1, "--fallback", "on") == 4
        kept = records(out)
        assert len(kept) == 60
        by_template = {r["instruction"]: r for r in kept if r["model"] == "template"}
        assert by_template.keys() == bad
        assert all(r["requests"] == [] and r["prompts"] == {} for r in by_template.values())
        assert all(r["instruction"].startswith("Please tell me: ") for r in kept if r["model"] == "fake")
        assert sum(r["filter"] == "graph" for r in read(out, "rejected.jsonl")) == len(bad)
        assert all(r["output"] == draft.output for r, draft in zip(kept, drafts, strict=True))
        run(*command, "--max-requests", 60, "--concurrency", 1, "--fallback", "off")  # free
        assert len(records(out)) == 60 - len(bad)
        assert len(server.ledger()) == 60
        assert run(PLANETS, "--model", "fake", "--base-url", server.base_url, "--out", out) == 2, "a shaping setting"


HUATUO = Path(__file__).parent / "huatuo_style.jsonl"


@pytest.mark.parametrize("style", ["plain", "scenario"])
def test_entity_records_as_huatuo_has_them_go_the_whole_way(style: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(HUATUO, "--template", "--style", style, "--out", out) == 0
    kept, told = records(out), summary(out)["graph"]
    assert {r["language"] for r in kept} == {"zh"}
    assert read(out, "rejected.jsonl") == []
    assert told["facts_covered"] >= told["facts"] - 2 * (style == "scenario") >= 60  # a case is about a subject
    written = "".join(HUATUO.read_text(encoding="utf-8").split())
    for record in kept:
        for head, relation, tail in record["source"][0]["triples"]:
            assert all(part in written for part in ("".join(text.split()) for text in (head, relation, tail)))


def planned_and_sent(server: FakeServer, command: tuple[object, ...], capsys: Any) -> list[tuple[int, int]]:
    """Requests, and tokens to read, as --plan says them and as the server got them."""
    assert run(*command, "--plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert server.ledger() == []
    run(*command)
    sent = server.ledger()
    read_by_it = sum(line["prompt_tokens"] for line in sent)
    return [(plan["requests"], len(sent)), (plan["prompt_tokens"], read_by_it)]


def test_a_plan_is_within_a_fifth_of_what_a_whole_graph_takes(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        command = (graph, "--model", "fake", "--base-url", server.base_url, "--out", tmp_path / "out")
        for planned, real in planned_and_sent(server, command, capsys):
            assert 0.8 * real <= planned <= 1.2 * real


@pytest.mark.parametrize("target", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_a_plan_is_within_a_fifth_of_what_a_target_takes(
    target: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that is as good as the plan assumes it to be: seven pairs of ten are true."""
    pytest.importorskip("rdflib")
    prepared = Prepared(tmp_path)
    prepared.lies_among_ten(3, 2 * target)
    with FakeServer(ledger=tmp_path / "ledger.jsonl", answers=prepared.path) as server:
        command = (PLANETS, "--model", "fake", "--base-url", server.base_url, "--out", tmp_path / "out")
        for planned, real in planned_and_sent(server, (*command, "--target", target), capsys):
            assert 0.8 * real <= planned <= 1.2 * real
    assert summary(tmp_path / "out")["kept"] == target
