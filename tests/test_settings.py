"""Every setting acts: a row changes it and says what must be different. A setting without a row fails.

To add a setting, add a row to ROWS: its value as a flag and in TOML, and a check that sees the difference between a
run without it and one with it, in the requests sent, the records, or the run itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.self_instruct import SelfInstructSettings
from pipeline.settings import parse
from tests.conftest import Ran, Run, StartServer, against, read_lines, write_lines
from tests.fake_server import FakeServer


@dataclass(frozen=True)
class Seen:
    """What a run left to look at."""

    ran: Ran
    bodies: list[dict[str, Any]]  # as the server got them
    most_in_flight: int
    records: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    summary: dict[str, Any]
    tmp: Path

    def values(self, name: str) -> set[Any]:
        """A parameter's values over all requests."""
        return {body.get(name) for body in self.bodies}

    def at_most(self, list_name: str) -> set[int]:
        """How many values the schemas that ask for this list allow."""
        properties = [body["response_format"]["json_schema"]["schema"]["properties"] for body in self.bodies]
        return {wanted[list_name]["maxItems"] for wanted in properties if list_name in wanted}

    def tokens(self) -> int:
        return int(self.summary["prompt_tokens"] + self.summary["completion_tokens"])

    def tasks(self) -> set[str]:
        return {record["task"] for record in self.records}

    def turns(self) -> set[int]:
        return {len(record["history"]) for record in self.records}

    def pools(self) -> dict[int, list[str]]:
        """Which kept instructions a prompt showed, by its number."""
        return {record["source"][0]["prompt"]: record["source"][0]["pool"] for record in self.records}

    def prompts(self) -> set[str]:
        return {json.dumps(body["messages"]) for body in self.bodies}


Check = Callable[[Seen, Seen], bool]
BaseOf = Callable[["Row"], Seen]


@dataclass(frozen=True)
class Row:
    """`value` as on the command line (None: a switch), `toml` as in a file; TMP and OTHER stand for what a test makes.

    `same` are the flags of both runs, `server` the fake server's options. `shaping` is the name under which a change
    on an existing folder is refused, None where it is free. With it the run `waits` for hours after its first request,
    and is interrupted: so the check rests on what was sent, not on how long anything took.
    """

    value: str | None
    toml: str
    differs: Check
    shaping: str | None = None
    same: tuple[str, ...] = ("--target", "6")
    server: dict[str, Any] = field(default_factory=dict)
    waits: bool = False


OWN_TEMPLATE = "Is it one? $instruction"
OWN_FILTER = 'def every_third(record):\n    return "its turn" if int(record.id[:8], 16) % 3 == 0 else None\n'
PRICES = "[fake]\ninput = 1\noutput = 2\n"
OWN_SEEDS = [
    {"id": f"own_{n}", "instruction": text, "instances": [{"output": "Yes."}], "is_classification": n % 2 == 0}
    for n, text in enumerate(["Is moss a plant?", "How do bees sleep?", "May one eat snow?", "Why is rust red?"])
]

ROWS: dict[str, Row] = {
    "out": Row(
        "TMP/elsewhere", '"TMP/elsewhere"', lambda base, new: not new.records and bool(read_records(new.tmp, base))
    ),
    "model": Row(
        "other",
        '"other"',
        lambda base, new: (*base.values("model"), *new.values("model")) == ("fake", "other"),
        "model",
    ),
    "base_url": Row("OTHER", '"OTHER"', lambda base, new: bool(base.bodies) and not new.bodies and bool(new.records)),
    "api_key_env": Row(
        "MY_KEY",
        '"MY_KEY"',
        lambda base, new: (base.ran.returncode, new.ran.returncode) == (5, 0),
        server={"key": "secret"},
    ),
    "extra_body": Row(
        '{"think": false}',
        "{think = false}",
        lambda base, new: (base.values("think"), new.values("think")) == ({None}, {False}),
        "extra_body",
    ),
    "temperature": Row(
        "0.25", "0.25", lambda base, new: 0.25 in new.values("temperature") - base.values("temperature"), "temperature"
    ),
    "top_p": Row("0.5", "0.5", lambda base, new: 0.5 in new.values("top_p") - base.values("top_p"), "top_p"),
    "language": Row("zh", '"zh"', lambda base, new: {r["language"] for r in new.records} == {"zh"}, "language"),
    "prompts": Row(
        "TMP/own",
        '"TMP/own"',
        lambda base, new: any(OWN_TEMPLATE.split("$")[0] in p for p in new.prompts() - base.prompts()),
        "templates",
    ),
    "seed": Row("7", "7", lambda base, new: not base.prompts() & new.prompts(), "seed"),
    "target": Row("9", "9", lambda base, new: (len(base.records), len(new.records)) == (6, 9)),
    "filters": Row(
        "too_short=12, keywords=off",
        "{too_short = 12, keywords = false}",
        lambda base, new: (
            {(r["filter"], r["threshold"]) for r in new.rejected} >= {("too_short", 12.0)}
            and {r["filter"] for r in base.rejected} - {r["filter"] for r in new.rejected} >= {"keywords"}
        ),
        "pool_rules",
        server={"dirty": 0.3},
        same=("--target", "20"),
    ),
    "own_filters": Row(
        "TMP/own.py",
        '"TMP/own.py"',
        lambda base, new: (
            {r["filter"] for r in new.rejected} - {r["filter"] for r in base.rejected} == {"every_third"}
            and len(new.records) == 6
        ),
    ),
    "judge": Row(
        None,
        "true",
        lambda base, new: not any(r["scores"] for r in base.records) and all(r["scores"] for r in new.records),
    ),
    "judge_model": Row(
        "other",
        '"other"',
        lambda base, new: (base.values("model"), new.values("model")) == ({"fake"}, {"fake", "other"}),
        same=("--target", "6", "--judge"),
    ),
    "judge_base_url": Row(
        "OTHER",
        '"OTHER"',
        lambda base, new: (base.values("model"), new.values("model")) == ({"fake", "j"}, {"fake"}),
        same=("--target", "6", "--judge", "--judge-model", "j"),
    ),
    "judge_api_key_env": Row(
        "MY_KEY",
        '"MY_KEY"',
        lambda base, new: (base.ran.returncode, new.ran.returncode) == (5, 0),
        same=("--target", "6", "--judge", "--judge-model", "j", "--api-key-env", "MY_KEY"),
        server={"key": "secret"},
    ),
    "judge_max_tokens": Row(
        "600",
        "600",
        lambda base, new: (600 in base.values("max_tokens"), 600 in new.values("max_tokens")) == (False, True),
        same=("--target", "6", "--judge"),
    ),
    "pairs": Row(
        "1",
        "1",
        lambda base, new: base.summary["pairs"] is None and bool(new.summary["pairs"]),
    ),
    "concurrency": Row(
        "6",
        "6",
        lambda base, new: base.most_in_flight == 1 < new.most_in_flight <= 6,
        same=("--target", "6", "--concurrency", "1"),
        server={"latency_ms": 20},
    ),
    "deadline": Row(
        "0.3",
        "0.3",
        lambda base, new: not base.summary["faults"] and "timeout" in new.summary["faults"],
        server={"plan": [{"fault": "delay", "seconds": 0.6, "nth": [2]}]},
    ),
    "max_requests": Row("5", "5", lambda base, new: (len(new.bodies), new.ran.returncode) == (5, 4)),
    "max_total_tokens": Row(
        "3500",
        "3500",
        lambda base, new: new.ran.returncode == 4 and base.tokens() > 3500 >= new.tokens() > 0,
    ),
    "prices": Row(
        "TMP/prices.toml",
        '"TMP/prices.toml"',
        lambda base, new: base.summary["cost"] is None and (new.summary["cost"] or 0) > 0,
    ),
    "max_cost": Row(
        "0.02",
        "0.02",
        lambda base, new: new.ran.returncode == 4 and base.summary["cost"] > 0.02 >= new.summary["cost"] > 0,
        same=("--target", "80", "--prices", "TMP/prices.toml"),
    ),
    "rpm": Row(
        "0.001",
        "0.001",
        lambda base, new: (len(base.bodies) > 1, len(new.bodies), new.ran.returncode) == (True, 1, 130),
        waits=True,
    ),
    "tpm": Row(
        "0.5",
        "0.5",
        lambda base, new: (len(base.bodies) > 1, len(new.bodies), new.ran.returncode) == (True, 1, 130),
        waits=True,
    ),
    "seeds": Row(
        "TMP/own.jsonl",
        '"TMP/own.jsonl"',
        lambda base, new: {id_ for r in new.records for id_ in r["source"][0]["seeds"]} == {s["id"] for s in OWN_SEEDS},
        "seeds",
    ),
    "classification_only": Row(
        None,
        "true",
        lambda base, new: base.tasks() > new.tasks() == {"classification"},
        "classification_only",
        same=("--target", "20"),
    ),
    "turns": Row("3", "3", lambda base, new: (base.turns(), new.turns()) == ({0}, {2}), "turns"),
    "per_prompt": Row(
        "3",
        "3",
        lambda base, new: (base.at_most("instructions"), new.at_most("instructions")) == ({8}, {3}),
        "per_prompt",
    ),
    "per_task": Row(
        "2", "2", lambda base, new: (base.at_most("instances"), new.at_most("instances")) == ({5}, {2}), "per_task"
    ),
    "window": Row(
        "1",
        "1",
        lambda base, new: base.pools()[1] == new.pools()[1] and base.pools()[2] != new.pools()[2],
        "window",
        same=("--target", "80"),
    ),
    "max_tokens": Row(
        "99", "99", lambda base, new: 99 in new.values("max_tokens") - base.values("max_tokens"), "max_tokens"
    ),
}
every_setting = pytest.mark.parametrize("name", ROWS)


def read_records(tmp: Path, base: Seen) -> list[dict[str, Any]]:
    """What `--out TMP/elsewhere` holds, if it is what the run without it made."""
    records = read_lines(tmp / "elsewhere" / "records.jsonl")
    return records if records == base.records else []


def test_every_setting_has_a_row() -> None:
    assert set(ROWS) == set(SelfInstructSettings.model_fields)


def flags(name: str, fill: Callable[[str], str] = str) -> list[str]:
    value = ROWS[name].value
    return [f"--{name.replace('_', '-')}", *([] if value is None else [fill(value)])]


@pytest.fixture
def fill(tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes what the rows name, and puts it in the place of TMP and OTHER."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "self_instruct_identify.md").write_text(OWN_TEMPLATE, encoding="utf-8")
    write_lines(tmp_path / "own.jsonl", OWN_SEEDS)
    (tmp_path / "own.py").write_text(OWN_FILTER, encoding="utf-8")
    (tmp_path / "prices.toml").write_text(PRICES, encoding="utf-8")
    monkeypatch.setenv("MY_KEY", "secret")

    def filled(value: str) -> str:
        if "OTHER" in value:
            value = value.replace("OTHER", start_server().base_url)
        return value.replace("TMP", str(tmp_path))

    return filled


def seen(server: FakeServer, ran: Ran, out: Path) -> Seen:
    records, rejected, summary = out / "records.jsonl", out / "rejected.jsonl", out / "summary.json"
    return Seen(
        ran=ran,
        bodies=[line["body"] for line in server.ledger()],
        most_in_flight=server.stats()["most_in_flight"],
        records=read_lines(records) if records.exists() else [],
        rejected=read_lines(rejected) if rejected.exists() else [],
        summary=json.loads(summary.read_bytes()) if summary.exists() else {},
        tmp=out.parent,
    )


@pytest.fixture(scope="module")
def bases() -> dict[str, Seen]:
    return {}


@pytest.fixture
def base_of(
    bases: dict[str, Seen],
    tmp_path_factory: pytest.TempPathFactory,
    run: Run,
    start_server: StartServer,
    fill: Callable[[str], str],
) -> BaseOf:
    """The run without the setting; rows with the same flags and the same server share it."""

    def base_of_(row: Row) -> Seen:
        key = json.dumps([row.same, row.server])
        if key not in bases:
            server, out = start_server(**row.server), tmp_path_factory.mktemp("base") / "out"
            bases[key] = seen(server, run(*against(server, out, *map(fill, row.same))), out)
        return bases[key]

    return base_of_


@contextlib.contextmanager
def interrupted_after_an_answer(server: FakeServer) -> Iterator[None]:
    """Interrupts this process, as Ctrl-C does, a while after the server's first answer, unless all is over."""
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(0.01):
            if any(line["answered"] for line in server.ledger()) and not over.wait(0.3):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@every_setting
def test_a_changed_setting_makes_a_difference(
    name: str, tmp_path: Path, run: Run, start_server: StartServer, fill: Callable[[str], str], base_of: BaseOf
) -> None:
    row = ROWS[name]
    base = base_of(row)
    assert base.ran.returncode in (0, 5), base.ran.stderr
    server, out = start_server(**row.server), tmp_path / "new"
    with interrupted_after_an_answer(server) if row.waits else contextlib.nullcontext():
        new = seen(server, run(*against(server, out, *map(fill, row.same), *flags(name, fill))), out)
    assert row.differs(base, new), new.ran.stderr
    assert not row.differs(base, base), "the check sees a difference where there is none"


@every_setting
def test_a_change_on_an_existing_folder_is_refused_if_it_shapes_requests(
    name: str, tmp_path: Path, run: Run, start_server: StartServer, fill: Callable[[str], str], base_of: BaseOf
) -> None:
    row = ROWS[name]
    base = base_of(row)
    server, out = start_server(**row.server), tmp_path / "out"
    shutil.copytree(base.tmp / "out", out)
    same = [fill(flag) for flag in row.same]
    config, records = (out / "config.json").read_bytes(), (out / "records.jsonl").read_bytes()
    changed = against(server, out, *same, *flags(name, fill))
    ran = run(*changed)
    if row.shaping is None:
        assert ran.returncode != 2
        return
    assert ran.returncode == 2
    assert f"{out} was made with other settings (" in ran.stderr
    assert f"{row.shaping}: " in ran.stderr
    assert "--accept-changes" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert server.ledger() == []
    assert ((out / "config.json").read_bytes(), (out / "records.jsonl").read_bytes()) == (config, records)
    assert run(*changed, "--accept-changes").returncode == 0
    asked = [line["body"] for line in server.ledger()]
    assert asked
    assert not any(body in base.bodies for body in asked), "a stored reply was asked for again"
    assert run(*changed).returncode == 0, "what was accepted holds from then on"


# ---------------------------------------------------------------- flags and files


def settings(*arguments: object) -> SelfInstructSettings:
    argv = [str(argument) for argument in arguments]
    return parse(SelfInstructSettings, argv, command="pipeline.self_instruct", about="")[0]


@every_setting
@pytest.mark.parametrize("hyphens", [False, True], ids=["underscores", "hyphens"])
def test_flag_and_key_say_the_same(name: str, hyphens: bool, tmp_path: Path) -> None:
    def fill(value: str) -> str:
        return value.replace("TMP", str(tmp_path))

    (tmp_path / "own.py").write_text(OWN_FILTER, encoding="utf-8")  # this one is read with the settings
    path = tmp_path / "settings.toml"
    key = name.replace("_", "-") if hyphens else name
    path.write_text(f"{key} = {fill(ROWS[name].toml)}\n", encoding="utf-8")
    assert settings("--config", path) == settings(*flags(name, fill))
    assert settings("--config", path) != settings()


@pytest.mark.parametrize(
    ("toml", "argv", "name", "expected"),
    [
        ("target = 5", ["--target", "7"], "target", 7),
        ("classification_only = true", ["--no-classification-only"], "classification_only", False),
        ("filters = {echo = false}", ["--filters", "echo=on"], "filters", {"echo": True}),
        ("target = 5", ["--seed", "7"], "target", 5),
    ],
)
def test_flags_win_over_the_file(tmp_path: Path, toml: str, argv: list[str], name: str, expected: object) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(toml, encoding="utf-8")
    assert getattr(settings("--config", path, *argv), name) == expected


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        pytest.param("tempreature = 1", "no setting 'tempreature'; the nearest is 'temperature'", id="a typing error"),
        pytest.param("offline = true", "no setting 'offline'; the nearest is ", id="a switch"),
        pytest.param("[run]\ntarget = 1", "no setting 'run'; the nearest is ", id="a table"),
        pytest.param("target = ", "not TOML", id="no TOML"),
        pytest.param("target = '5", "not TOML", id="an open text"),
        pytest.param('target = "many"', ", target: takes a whole number", id="no number"),
        pytest.param("target = 0", ", target: takes a number above 0 (given: 0)", id="target 0"),
        pytest.param("filters = {ecko = false}", "there is no filter 'ecko'; the nearest is 'echo'", id="a filter"),
    ],
)
def test_a_wrong_file_gets_one_sentence(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        settings("--config", path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--target", "0"], "--target: takes a number above 0 (given: '0')"),
        (["--target", "many"], "--target: takes a whole number"),
        (["--temperature", "3"], "--temperature: takes a number up to 2"),
        (["--temperature", "nan"], "--temperature: "),
        (["--top-p", "0"], "--top-p: takes a number above 0"),
        (["--language", "de"], "--language: takes 'auto', 'en' or 'zh'"),
        (["--concurrency", "0"], "--concurrency: "),
        (["--extra-body", "{"], "--extra-body: not JSON"),
        (["--extra-body", '{"a": NaN}'], "--extra-body: not JSON (NaN is not JSON)"),
        (["--extra-body", '{"messages": []}'], "--extra-body: 'messages' is set by the command itself"),
        (["--extra-body", "[1]"], "--extra-body: takes a table, NAME = VALUE"),
        (["--filters", "echo"], "--filters: 'echo' is not NAME=on, NAME=off or NAME=SETTING"),
        (["--filters", "novelti=0.5"], "there is no filter 'novelti'; the nearest is 'novelty'"),
        (["--filters", "echo=0.5"], "the filter 'echo' takes on or off"),
        (["--filters", "novelty=1"], "the filter 'novelty' takes on, off or a number from 0 to below 1 (given: "),
        (["--filters", "looping=-1"], "the filter 'looping' takes on, off or a number from 0 to 1 (given: "),
        (["--filters", "too_short=inf"], "the filter 'too_short' takes on, off or a number from 0 (given: "),
        (["--filters", "too_long=lots"], "the filter 'too_long' takes on, off or a number"),
        (["--filters", "too_long=nan"], "--filters: "),
        (["--filters", "personal_data=0.5"], "the filter 'personal_data' takes on, off, redact or reject"),
        (["--config", "nowhere.toml"], "nowhere.toml: cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_flag_gets_one_sentence(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(*argv)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
