"""The command as a user meets it: bad input gets one sentence and writes nothing, help is quick, Ctrl-C drains."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as overview
from tests.conftest import Run, StartServer, against, command, read_lines, wait_for, write_lines
from tests.fake_server import ROOT, FakeServer

SEEDS = ROOT / "seeds/175.jsonl"
TASK = {"id": "a", "instruction": "Name a river.", "instances": [{"output": "Po"}], "is_classification": False}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ---------------------------------------------------------------- bad input

# what is wrong -> (the files there are, the flags, what the one sentence holds)
BAD_INPUT: dict[str, tuple[dict[str, str | bytes], list[str], str]] = {
    "seeds missing": ({}, ["--seeds", "nowhere.jsonl"], "nowhere.jsonl: cannot be read (No such file or directory)."),
    "seeds empty": ({"s.jsonl": ""}, ["--seeds", "s.jsonl"], "s.jsonl: holds no seed task."),
    "seeds not JSON": (
        {"s.jsonl": json.dumps(TASK) + "\nid: b\n"}, ["--seeds", "s.jsonl"], "s.jsonl, line 2: not JSON (",
    ),
    "seeds with a field missing": (
        {"s.jsonl": '{"id": "a", "instruction": "x"}'}, ["--seeds", "s.jsonl"],
        "s.jsonl, line 1: the field 'instances' is missing.",
    ),
    "seeds with a wrong field": (
        {"s.jsonl": json.dumps(TASK | {"is_classification": "no"})}, ["--seeds", "s.jsonl"],
        "s.jsonl, line 1: field 'is_classification': ",
    ),
    "seeds with an id twice": (
        {"s.jsonl": f"{json.dumps(TASK)}\n\n{json.dumps(TASK)}"}, ["--seeds", "s.jsonl"],
        "s.jsonl, line 3: the id 'a' stands in line 1 already.",
    ),
    "seeds in another encoding": (
        {"s.jsonl": json.dumps(TASK | {"name": "Fluß"}, ensure_ascii=False).encode("latin-1")}, ["--seeds", "s.jsonl"],
        "s.jsonl, line 1: not UTF-8",
    ),
    "seeds a folder": (
        {"seeds/s.jsonl": ""}, ["--seeds", "seeds"], "seeds: a folder; --seeds takes one JSON Lines file.",
    ),
    "seeds without classification": (
        {"s.jsonl": json.dumps(TASK)}, ["--seeds", "s.jsonl", "--classification-only"],
        "s.jsonl: --classification-only, but no seed has is_classification true.",
    ),
    "target 0": ({}, ["--target", "0"], "--target: takes a number above 0 (given: '0')."),
    "config with an unknown key": (
        {"c.toml": "tagret = 5"}, ["--config", "c.toml"],
        "c.toml: there is no setting 'tagret'; the nearest is 'target'",
    ),
    "config missing": ({}, ["--config", "c.toml"], "c.toml: cannot be read (No such file or directory)."),
    "config a folder": ({"c/x": ""}, ["--config", "c"], "c: cannot be read (Is a directory)."),
    "prices that are none": (
        {"p.toml": "[m]\ninput = 1"}, ["--prices", "p.toml"], 'p.toml: ["m"] must hold `input` and `output`',
    ),
    "prompts missing": ({}, ["--prompts", "mine"], "--prompts mine: not a folder."),
    "prompts with an unknown $name": (
        {"mine/self_instruct_next_turn.md": "$conversation $topic"}, ["--prompts", "mine"],
        "mine/self_instruct_next_turn.md: $topic is unknown.",
    ),
    "model directory missing": ({}, ["--model", "./adapter"], "adapter"),
    "model directory empty": ({"adapter/notes.txt": ""}, ["--model", "./adapter"], "adapter"),
    "model a file": ({"weights.txt": "x"}, ["--model", "./weights.txt"], "weights.txt"),
    "address without a model": ({}, ["--base-url", "http://127.0.0.1:9/v1"], "--base-url needs --model NAME"),
    "address that is none": ({}, ["--model", "m", "--base-url", "localhost:9"], "not an http:// or https:// address"),
    "address with a broken host": (
        {}, ["--model", "m", "--base-url", "http://[::1/v1"], "--base-url: not an address (",
    ),
    "address with a broken port": (
        {}, ["--model", "m", "--base-url", "http://127.0.0.1:99999/v1"], "--base-url: not an address (",
    ),
    "address without a host": ({}, ["--model", "m", "--base-url", "http:///v1"], "not an http:// or https:// address"),
    "a file in the place of the run folder": (
        {"file": "x"}, ["--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--out", "file"],
        "file: a file stands there",
    ),
    "no key": ({}, ["--model", "m"], "which needs a key: set OPENAI_API_KEY"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    what: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, flags, said = BAD_INPUT[what]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    ran = run("--seeds", SEEDS, *flags)
    assert ran.returncode == 2, ran.stderr
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""
    assert tree(tmp_path) == before


def test_an_unknown_flag(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("--seeds", SEEDS, "--taget", "5")
    assert ran.returncode == 2
    assert "unrecognized arguments: --taget" in ran.stderr
    assert tree(tmp_path) == {}


def test_a_folder_made_with_other_seeds(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    run(*against(server, out, "--target", 5))
    before, sent = tree(out), len(server.ledger())
    seeds = write_lines(tmp_path / "other.jsonl", read_lines(SEEDS)[1:])
    ran = run(*against(server, out, "--target", 5, "--seeds", seeds))
    assert ran.returncode == 2
    assert re.search(r'made with other settings \(seeds: "\w+" -> "\w+"\)\. Its \d+ stored replies', ran.stderr)
    assert "Use another --out, the old settings, or --accept-changes.\n" in ran.stderr
    assert len(server.ledger()) == sent
    after = tree(out)
    for name in ("config.json", "records.jsonl", "rejected.jsonl", "summary.json"):
        assert after[name] == before[name]


def test_the_same_seeds_elsewhere_are_the_same(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(), tmp_path / "out"
    run(*against(server, out, "--target", 5))
    sent = len(server.ledger())
    copy = write_lines(tmp_path / "copy.jsonl", read_lines(SEEDS))
    assert run(*against(server, out, "--target", 5, "--seeds", copy)).returncode == 0
    assert len(server.ledger()) == sent


# ---------------------------------------------------------------- what it prints and leaves


def test_a_run_says_what_it_did_and_what_to_do_next(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    out = tmp_path / "out"
    ran = run(*against(start_server(dirty=0.2), out, "--target", 12, "--json"))
    assert ran.returncode == 0
    summary = json.loads(ran.stdout)
    stored = json.loads((out / "summary.json").read_bytes())
    assert stored.pop("files").keys() == {"records.jsonl", "rejected.jsonl"}
    assert summary | {"seconds": 0} == stored | {"seconds": 0}
    assert summary["kept"] == len(read_lines(out / "records.jsonl")) == 12
    assert sum(summary["rejected"].values()) == len(read_lines(out / "rejected.jsonl"))
    *_, last = ran.stderr.rstrip().split("\n")
    assert last.startswith("Next: ")
    assert f"python -m pipeline.self_instruct --seeds {SEEDS}" in last
    assert {path.name for path in out.iterdir() if path.name[0] != "."} >= {
        "config.json", "journal.sqlite", "records.jsonl", "rejected.jsonl", "summary.json",
    }  # fmt: skip
    assert {path.name for path in out.iterdir() if path.name[0] == "."} == {".lock"}


def test_help_has_every_flag_and_an_example(run: Run) -> None:
    ran = run("--help")
    assert ran.returncode == 0
    assert "python -m pipeline.self_instruct --seeds seeds/175.jsonl --target 100" in ran.stdout
    for flag in ("--out DIR", "--model", "--base-url URL", "--target N", "--turns N", "--accept-changes", "--json"):
        assert flag in ran.stdout
    assert "None" not in ran.stdout


def test_help_imports_nothing_heavy() -> None:
    """What makes it slow to say; how quick it is, bench_start_up measures."""
    script = (
        "import contextlib, importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        importlib.import_module(f'pipeline.{name}').main(['--help'])\n"
        "heavy = set('torch transformers openai aiohttp numpy datasets rdflib faiss apscheduler'.split())\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    help_ = [sys.executable, "-c", script, *overview.COMMANDS]
    said = subprocess.run(help_, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.endswith("HEAVY []\n")


def test_the_package_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert overview.main([]) == 0
    said = capsys.readouterr().out
    commands = {path.stem for path in (ROOT / "pipeline").glob("*.py") if "\ndef main(" in path.read_text()}
    for name in commands - {"__main__"}:
        assert f"python -m pipeline.{name} " in said
    assert overview.COMMANDS.keys() == commands - {"__main__"}


@pytest.mark.parametrize(
    ("words", "said"),
    [(["self_qa", "docs/"], "run it as: python -m pipeline.self_qa"), (["self_qqa"], "there is no command 'self_qqa'")],
)
def test_a_command_after_the_package_is_pointed_to(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        overview.main(words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_the_version_is_said_by_the_package_and_by_each_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    version = f"instructloop {importlib.metadata.version('instructloop')}\n"
    ran = run("--version")
    assert (ran.returncode, ran.stdout) == (0, version)
    with pytest.raises(SystemExit):
        overview.main(["--version"])
    assert capsys.readouterr().out == version


# ---------------------------------------------------------------- signals


def start(server: FakeServer, out: Path, *more: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.Popen(
        command(*against(server, out, *more)), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line on stderr that says something, waited for at most two minutes."""
    assert process.stderr is not None
    ready, _, _ = select.select([process.stderr], [], [], 120)
    assert ready, "nothing was said"
    return process.stderr.readline().strip() or process.stderr.readline().strip()


@pytest.mark.slow  # test_faults has a quick one
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, run: Run, start_server: StartServer
) -> None:
    server, out = start_server(latency_ms=150), tmp_path / "out"
    flags = ("--target", 60, "--concurrency", 4)
    with start(server, out, *flags) as process:
        wait_for(lambda: len(server.ledger()) >= 12)
        process.send_signal(number)
        assert next_line(process).startswith("Stopping: finishing what is in flight")
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(120) == 130
    assert (
        rest.rstrip().split("\n")[-1].startswith("Interrupted. Go on with: python -m pipeline.self_instruct --seeds ")
    )
    assert "Traceback" not in rest
    ledger = server.ledger()
    assert all(line["answered"] for line in ledger), "what was in flight was not waited for"
    summary = json.loads((out / "summary.json").read_bytes())
    assert (summary["sent_ever"], summary["possibly_paid"]) == (len(ledger), 0)
    before = read_lines(out / "records.jsonl")
    assert len(before) < 60
    server.stop()  # the same answers without the latency
    quick = start_server()
    assert run(*against(quick, out, *flags)).returncode == 0
    assert read_lines(out / "records.jsonl")[: len(before)] == before
    assert not {line["key"] for line in ledger} & {line["key"] for line in quick.ledger()}
    server.start()


def test_the_second_signal_stops_at_once(tmp_path: Path, run: Run, start_server: StartServer) -> None:
    server, out = start_server(plan=[{"fault": "hang_before_headers", "nth": list(range(6, 200))}]), tmp_path / "out"
    with start(server, out, "--target", 60, "--concurrency", 4) as process:
        wait_for(lambda: len(server.ledger()) >= 9)
        process.send_signal(signal.SIGINT)
        assert next_line(process).startswith("Stopping: ")
        assert process.poll() is None, "it does not wait for what hangs"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(120) == 130
    assert "Stopped at once. Go on with: python -m pipeline.self_instruct --seeds " in rest
    assert "Traceback" not in rest
    answered = {line["key"] for line in server.ledger() if line["answered"]}
    quick = start_server()
    assert run(*against(quick, out, "--target", 20)).returncode == 0
    assert not answered & {line["key"] for line in quick.ledger()}
