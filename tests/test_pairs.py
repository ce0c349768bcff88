"""pairs.py: a pair only where verdicts agree or a filter's reason is about the answer; read by TRL and our trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import filters, self_qa
from pipeline.ask import Ask
from pipeline.backends.endpoint import parse_reply
from pipeline.filtering import Candidate, Found
from pipeline.journal import Journal
from pipeline.llm import Manner, Reply, Request
from pipeline.pairs import ABOUT_THE_ANSWER, BOUND_TO_SOURCE, UNFIT, Pairs, answer_request
from pipeline.prompts import Prompts
from pipeline.records import DocumentSource, Quote, Record
from pipeline.run_folder import DerivedFiles
from tests.conftest import Run, StartServer, a_record, against, read_lines

Json = dict[str, Any]
PROMPTS = {language: Prompts(language) for language in ("en", "zh")}
MANNER = Manner(max_tokens=64, temperature=None, top_p=None, extra={})
BETTER, WORSE = "Blue, the colour of a clear sky.", "Tuesday."


def record(output: str = BETTER, **fields: Any) -> Record:
    return a_record(**{"instruction": "Name a colour and where one sees it.", "output": output, **fields})


class Scripted:
    """Gives further answers by their number, and verdicts by a function of (first, second)."""

    reader = "openai"
    is_local = False
    address = identity = "scripted"

    def __init__(self, answers: Sequence[str | tuple[str, str]], verdict: Callable[[str, str], str] = lambda *_: "tie"):
        self.answers, self.verdict = answers, verdict
        self.requests: list[Request] = []

    def refuse(self, parameters: set[str]) -> None:
        raise AssertionError("nothing was refused")

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        answer: str | tuple[str, str]
        if request.schema is None:
            answer = self.answers[request.sample]
        else:
            shown = request.messages[-1][1]
            first, second = (shown.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0] for tag in ("first", "second"))
            better = self.verdict(first, second)
            answer = json.dumps({"reason": f"It is {better}.", "better": better}) if better else "Hard to say."
        text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
        choice = {"message": {"content": text}, "finish_reason": finish}
        return parse_reply(json.dumps({"choices": [choice]}).encode())

    async def close(self) -> None:
        pass


async def made(
    folder: Path,
    model: Scripted,
    kept: Sequence[Candidate],
    rejected: Sequence[tuple[Candidate, str]] = (),
    wanted: int | None = None,
) -> tuple[list[Json], Json]:
    """The pairs written, and the counts, after the fold has kept and turned away these."""
    asked_for = len(model.answers) if wanted is None else wanted
    pairs = Pairs(asked_for, filters.of_records({}, (), has_pool=True), PROMPTS, MANNER)
    for candidate, name in rejected:
        pairs.rejected(candidate, name, Found("said so"))
    for candidate in kept:
        pairs.kept(candidate, candidate.record)
    with Journal(folder / "journal.sqlite") as journal, DerivedFiles(folder, preferences=True) as files:
        ask = Ask(model, journal, concurrency=4)
        assert await pairs.make(ask, ask, files, 4) is None
        files.publish({})
    return read_lines(folder / "preferences.jsonl"), pairs.counts()


def texts(pair: Json) -> tuple[str, str]:
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("verdict", "expected", "ending"),
    [
        (lambda a, b: "first" if a == BETTER else "second", (BETTER, WORSE), "judge"),
        (lambda a, b: "second" if a == BETTER else "first", (WORSE, BETTER), "judge"),
        (lambda a, b: "first", None, "disagreed"),
        (lambda a, b: "second", None, "disagreed"),
        (lambda a, b: "tie" if a == BETTER else "first", None, "disagreed"),
        (lambda a, b: "tie", None, "tied"),
        (lambda a, b: "third", None, "unreadable"),
        (lambda a, b: "", None, "unreadable"),
    ],
)
async def test_only_verdicts_that_agree_in_both_orders_make_a_pair(
    tmp_path: Path, verdict: Callable[[str, str], str], expected: tuple[str, str] | None, ending: str
) -> None:
    model = Scripted([WORSE], verdict)
    pairs, counts = await made(tmp_path, model, [Candidate(record())])
    assert [texts(pair) for pair in pairs] == ([expected] if expected else [])
    assert (counts["by"] | counts["none"])[ending] == 1
    assert len(model.requests) == 3  # the answer, and a verdict for each order
    if expected:
        assert len(pairs[0]["requests"]) == 3
        assert pairs[0]["by"] == "judge"


async def test_the_judge_sees_the_source_and_neither_answer_is_marked(tmp_path: Path) -> None:
    model = Scripted([WORSE])
    source = DocumentSource(
        document="d", chunk="c", start=0, end=9, quotes=(Quote(text="The sky is blue.", start=0, end=9),)
    )
    await made(tmp_path, model, [Candidate(record(source=source, task="qa", input="", history=[("Hi", "Hello")]))])
    answer, *verdicts = model.requests
    assert "The sky is blue." not in json.dumps(answer.messages)
    assert answer.messages[1:3] == (("user", "Hi"), ("assistant", "Hello"))
    shown = [request.messages[-1][1] for request in verdicts]
    assert all("The sky is blue." in text and "user: Hi" in text for text in shown)
    assert shown[0] != shown[1]
    assert sorted(shown[0].split("\n")) == sorted(shown[1].split("\n"))


async def test_a_further_answer_that_a_filter_turns_away_has_lost_and_no_judge_is_asked(tmp_path: Path) -> None:
    model = Scripted(["As an AI language model, I see no colours.", ("Blue, which is", "length")])
    pairs, counts = await made(tmp_path, model, [Candidate(record())])
    assert [(pair["filter"], texts(pair)[0]) for pair in pairs] == [("refusal", BETTER), ("cut_off", BETTER)]
    assert counts["by"]["filter"] == 2
    assert len(model.requests) == 2


async def test_an_answer_nobody_should_train_on_is_in_no_pair(tmp_path: Path) -> None:
    answers = ["AKIAQ3EGRZ5TNPLDXW7K is my key.", "Blue <|im_end|>", " ", "blue,  the colour of a clear sky."]
    model = Scripted(answers, lambda a, b: "first" if a == BETTER else "second")
    pairs, counts = await made(tmp_path, model, [Candidate(record())])
    assert pairs == []
    assert counts["none"] == {"equal": 1, "unfit": 2, "disagreed": 0, "tied": 0, "unreadable": 1, "not_stored": 0}


async def test_personal_data_is_redacted_in_a_pair_too(tmp_path: Path) -> None:
    model = Scripted(["Blue, says jane.doe@gmail.com."], lambda a, b: "first" if a == BETTER else "second")
    pairs, _ = await made(tmp_path, model, [Candidate(record())])
    assert "jane.doe" not in json.dumps(pairs)
    assert texts(pairs[0])[1].startswith("Blue, says ")


def test_each_further_answer_is_a_request_of_its_own() -> None:
    keys = {answer_request(record(), number, PROMPTS["en"], MANNER).body("m") for number in range(4)}
    assert len(keys) == 4


# ---------------------------------------------------------------- for free


@pytest.mark.parametrize("name", sorted(filters.ALL))
async def test_a_rejected_answer_makes_a_pair_where_the_reason_is_about_the_answer(tmp_path: Path, name: str) -> None:
    lost = Candidate(record(WORSE))
    pairs, counts = await made(tmp_path, Scripted([]), [Candidate(record())], [(lost, name)])
    if name in ABOUT_THE_ANSWER:
        assert [(texts(pair), pair["filter"], pair["reason"]) for pair in pairs] == [((BETTER, WORSE), name, "said so")]
        assert counts["by"]["free"] == 1
    else:
        assert pairs == []


def test_what_compares_records_or_blames_a_document_is_no_reason_about_the_answer() -> None:
    assert set(filters.ALL) >= ABOUT_THE_ANSWER | UNFIT
    assert BOUND_TO_SOURCE <= ABOUT_THE_ANSWER
    assert not ABOUT_THE_ANSWER & (UNFIT | {"novelty", "contradiction", "repeated_output", "injection", "answerable"})


@pytest.mark.parametrize(
    ("lost", "name"),
    [
        (record(WORSE, instruction="Name a metal."), "refusal"),
        (record(WORSE, input="warm ones"), "refusal"),
        (record(WORSE, history=[("Hi", "Hello")]), "refusal"),
        (record(BETTER.upper()), "poor"),
        (record("AKIAQ3EGRZ5TNPLDXW7K is my key."), "poor"),
        (record(WORSE, task="classification"), "cut_off"),
    ],
    ids=["instruction", "input", "history", "same answer", "secret", "a label before a cut input"],
)
async def test_no_pair_from_another_question_an_equal_answer_or_a_secret(
    tmp_path: Path, lost: Record, name: str
) -> None:
    pairs, _ = await made(tmp_path, Scripted([]), [Candidate(record())], [(Candidate(lost), name)])
    assert pairs == []


async def test_what_holds_against_one_passage_only_makes_no_pair_with_an_answer_from_another(tmp_path: Path) -> None:
    lost = Candidate(record(WORSE), evidence="It rains.")
    kept = [Candidate(record(), evidence="The sky is blue."), Candidate(record("Red."), evidence="It rains.")]
    pairs, _ = await made(tmp_path, Scripted([]), kept, [(lost, "ungrounded")])
    assert [texts(pair) for pair in pairs] == [("Red.", WORSE)]


async def test_a_question_kept_twice_has_its_free_pairs_once(tmp_path: Path) -> None:
    kept = [Candidate(record()), Candidate(record("Red, on a rose."))]
    pairs, _ = await made(tmp_path, Scripted([]), kept, [(Candidate(record(WORSE)), "poor")] * 2)
    assert [texts(pair) for pair in pairs] == [(BETTER, WORSE)]


# ---------------------------------------------------------------- through a whole run


def flags(*more: object) -> list[object]:
    return ["--target", 12, "--pairs", 1, "--judge-model", "j", *more]


def test_pairs_come_after_the_records_and_replay_for_free(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(dirty=0.2), tmp_path / "out"
    assert run(*against(server, tmp_path / "plain", "--target", 12)).returncode == 0
    command = against(server, out, *flags())
    ran = run(*command)
    assert ran.returncode == 0, ran.stderr
    records = (out / "records.jsonl").read_bytes()
    assert records == (tmp_path / "plain/records.jsonl").read_bytes(), "pairs change nothing about the records"
    pairs, summary = read_lines(out / "preferences.jsonl"), json.loads((out / "summary.json").read_bytes())
    assert len(pairs) == summary["pairs"]["written"] > 0
    assert summary["pairs"]["none"]["disagreed"] > 0
    order = [line["id"] for line in read_lines(out / "records.jsonl")]
    places = [order.index(pair["record"]) for pair in pairs]
    assert places == sorted(places)

    sent, before = len(server.ledger()), (out / "preferences.jsonl").read_bytes()
    more = run(*against(server, out, *flags("--pairs", 2, "--offline")))
    assert more.returncode == 3, more.stderr
    [way_on] = [line for line in more.stderr.splitlines() if "Without --offline, go on with: " in line]
    assert "--offline" not in way_on.partition("go on with: ")[2]
    assert (out / "preferences.jsonl").read_bytes() == before, "pairs of what is stored; what is not is passed over"
    counts = json.loads((out / "summary.json").read_bytes())["pairs"]
    assert (counts["none"]["not_stored"], counts["answers"]) == (12, summary["pairs"]["answers"])
    assert run(*command, "--offline").returncode == 0
    assert len(server.ledger()) == sent
    assert (out / "preferences.jsonl").read_bytes() == before
    assert run(*against(server, out, "--target", 12, "--offline")).returncode == 0
    assert not (out / "preferences.jsonl").exists(), "a run without --pairs leaves none that fit nothing any more"
    assert len({line["body"]["model"] for line in server.ledger() if line["body"]}) == 2


def test_a_limit_is_spent_on_records_first_and_pairs_go_on_from_there(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, other, out, whole = start_server(), start_server(), tmp_path / "out", tmp_path / "whole"
    assert run(*against(other, whole, *flags())).returncode == 0
    assert run(*against(other, tmp_path / "plain", "--target", 12)).returncode == 0
    for_records = json.loads((tmp_path / "plain/summary.json").read_bytes())["sent_ever"]
    ran = run(*against(server, out, *flags("--max-requests", for_records + 10)))
    assert ran.returncode == 4, ran.stderr
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    some, all_ = (folder / "preferences.jsonl" for folder in (out, whole))
    assert all_.read_text().startswith(some.read_text())
    assert len(read_lines(some)) < len(read_lines(all_))
    assert run(*against(server, out, *flags("--offline"))).returncode == 3
    assert all_.read_text().startswith(some.read_text())
    assert run(*against(server, out, *flags())).returncode == 0
    assert some.read_bytes() == all_.read_bytes()
    assert {line["attempt"] for line in server.ledger()} == {1}, "nothing was asked twice"


def test_a_plan_prices_verdicts_by_the_judge_and_further_answers_by_the_model(
    tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(), tmp_path / "out"
    (tmp_path / "prices.toml").write_text("[fake]\ninput = 1\noutput = 1\n[j]\ninput = 100\noutput = 100\n")
    command = against(server, out, "--prices", tmp_path / "prices.toml", "--target", 12)
    judge = ("--judge-model", "j")

    def plan(*more: object) -> Json:
        ran = run(*command, *more, "--plan", "--json")
        assert ran.returncode == 0, ran.stderr
        found: Json = json.loads(ran.stdout)
        return found

    plain, judged, paired = plan(), plan("--judge", *judge), plan("--pairs", 2, *judge)
    assert (plain["answers"], plain["verdicts"]) == (0, 0)
    assert (judged["answers"], judged["verdicts"]) == (0, 12)
    assert (paired["answers"], paired["verdicts"]) == (24, 48)
    assert judged["requests"] == plain["requests"] + 12
    assert paired["requests"] == plain["requests"] + 72
    tokens = {
        name: plan_["prompt_tokens"] + plan_["completion_tokens"]
        for name, plan_ in {"plain": plain, "judged": judged}.items()
    }
    assert judged["cost"] - plain["cost"] == pytest.approx(100 * (tokens["judged"] - tokens["plain"]) / 1e6)
    assert server.ledger() == []
    assert not out.exists()

    assert run(*command, "--pairs", 2, *judge).returncode == 0
    done = plan("--pairs", 2, *judge)
    assert (done["answers"], done["verdicts"]) == (0, 0), "what the summary counts as done is taken off"
    more = plan("--pairs", 2, "--target", 20, *judge)
    assert (more["answers"], more["verdicts"]) == (16, 32)
    (tmp_path / "prices.toml").write_text("[fake]\ninput = 1\noutput = 1\n")
    assert plan("--judge", *judge)["cost"] is None, "an unknown price is unknown, never 0"


def test_a_judge_that_thinks_gets_the_room_it_needs(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server = start_server()
    flags = ("--target", 3, "--pairs", 1, "--judge-model", "j", "--judge-max-tokens", 4000)
    assert run(*against(server, tmp_path / "out", *flags)).returncode == 0
    assert {line["body"]["max_tokens"] for line in server.ledger() if line["body"]["model"] == "j"} == {4000}


def test_the_plan_of_a_run_that_is_complete_is_nothing(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many records the filters left: what is assumed of a run that is to come is known of this one."""
    (tmp_path / "mill.md").write_text("# Mill\n\nThe mill at Ash Brook was built in 1784 by Jonas Hale.\n" * 3)
    server = start_server(plant=0.9)  # most answers invent something, and go
    command = [str(tmp_path / "mill.md"), "--model", "fake", "--base-url", server.base_url, "--per-chunk", "5"]
    command += ["--out", str(tmp_path / "out"), "--judge", "--pairs", "1"]
    assert self_qa.main(command) in (0, 3)
    sent = len(server.ledger())
    capsys.readouterr()
    assert self_qa.main([*command, "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert self_qa.main(command) in (0, 3)
    assert (planned["requests"], len(server.ledger()) - sent) == (0, 0)


def test_templates_alone_have_no_further_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import self_kg

    command = ["kg/planets.ttl", "--template", "--out", str(tmp_path / "out"), "--target", "5"]
    assert self_kg.main([*command, "--pairs", "1"]) == 2
    assert "--pairs 0" in capsys.readouterr().err
    assert self_kg.main([*command, "--pairs", "0"]) == 0
    assert (tmp_path / "out/preferences.jsonl").read_bytes() == b""


# ---------------------------------------------------------------- who reads the file


async def test_our_trainer_reads_the_file(tmp_path: Path) -> None:
    from finetune import data

    model = Scripted([WORSE], lambda a, b: "first" if a == BETTER else "second")
    kept = Candidate(record(input="Bright ones.", history=[("Hi", "Hello")]))
    await made(tmp_path, model, [kept])
    for path in (tmp_path / "preferences.jsonl", tmp_path):
        example = data.read(path, "dpo").examples[0]
        assert (example.answer, example.rejected) == (BETTER, WORSE)
        assert example.messages[:-1] == data.example_of(kept.record).messages[:-1]


@pytest.mark.slow
async def test_trl_prepares_the_file_as_conversations(tmp_path: Path) -> None:
    """`datasets` infers one schema for the lines, and TRL's own preparation renders them."""
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.data_utils import apply_chat_template, is_conversational

    from tests.tiny_models import letters

    model = Scripted([WORSE], lambda a, b: "first" if a == BETTER else "second")
    kept = [Candidate(record(history=[("Hi", "Hello")])), Candidate(record(instruction="Name a second colour."))]
    pairs, _ = await made(tmp_path, model, kept)
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "preferences.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(pairs) == 2
    tokenizer = letters()
    for row, pair in zip(loaded, pairs, strict=True):
        assert is_conversational(row)
        shown = apply_chat_template({name: row[name] for name in ("prompt", "chosen", "rejected")}, tokenizer)
        turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in pair["prompt"]]
        assert shown["prompt"] == "".join(turns) + "<|im_start|>assistant\n"
        assert (shown["chosen"], shown["rejected"]) == (f"{BETTER}<|im_end|>\n", f"{WORSE}<|im_end|>\n")
