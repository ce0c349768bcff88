"""Whole runs against a server that misbehaves: what they end with, what they count, and what they never ask again."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FolderBusy, StorageError
from pipeline.records import PromptSource, make_record
from pipeline.run_folder import DerivedFiles, locked
from tests.conftest import summary, wait_for, write_lines
from tests.fake_server import FakeServer
from tests.forked import Forked

KEY = "sk-CANARY-b7f3d1c9"
PASSWORD = "pass-CANARY-5e2a"
DERIVED = ("records.jsonl", "rejected.jsonl")


def serve(tmp_path: Path, *plan: Mapping[str, Any], **options: Any) -> FakeServer:
    return FakeServer(ledger=tmp_path / "ledger.jsonl", plan=plan, **options)


def command(folder: Path, server: FakeServer, *more: str, target: int = 12) -> list[str]:
    return ["--model", "fake", "--target", str(target), "--out", str(folder), "--base-url", server.base_url, *more]


def derived(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in DERIVED}


def statuses(server: FakeServer) -> list[int]:
    return [line["status"] for line in server.ledger()]


# ---------------------------------------------------------------- faults that pass


@pytest.mark.slow
def test_passing_faults_change_nothing_and_are_counted(tmp_path: Path, forked: Forked) -> None:
    """One of each kind on the way; the records are those of a run without them."""
    with serve(tmp_path) as server:
        assert forked.run(command(tmp_path / "clean", server, target=40)) == 0, forked.output
    kinds = ["server_error", "reset", "cut_body", "garbage_json", "html_page", "empty_choices", "hang_after_headers"]
    plan: list[dict[str, Any]] = [{"fault": kind, "nth": [3 + 2 * number]} for number, kind in enumerate(kinds)]
    plan.append({"fault": "rate_limit", "nth": [20], "retry_after": 0.05, "form": "ms"})
    (tmp_path / "ledger.jsonl").unlink()
    with serve(tmp_path, *plan) as server:
        assert forked.run(command(tmp_path / "out", server, "--deadline", "10", target=40)) == 0, forked.output
        faults = [line["fault"] for line in server.ledger() if line["fault"]]
    assert derived(tmp_path / "out") == derived(tmp_path / "clean")
    assert sorted(faults) == sorted([*kinds, "rate_limit"])
    assert summary(tmp_path / "out")["faults"] == {
        "malformed_reply": 3, "connection": 2, "server_error": 1, "timeout": 1, "rate_limit": 1
    }  # fmt: skip
    assert summary(tmp_path / "out")["possibly_paid"] == 6


def test_odd_replies_are_rejections_with_a_reason_and_counted_once(tmp_path: Path, forked: Forked) -> None:
    odd = ["refusal", "content_filter", "length", "null_content", "reasoning_only", "tool_calls", "missing_usage",
           "negative_usage", "duplicate_keys", "nan"]  # fmt: skip
    plan = [{"fault": fault, "nth": [4 + 2 * number]} for number, fault in enumerate(odd)]
    with serve(tmp_path, *plan) as server:
        assert forked.run(command(tmp_path / "out", server, target=30)) == 0, forked.output
        asked = len(server.ledger())
        first = summary(tmp_path / "out")
        assert forked.run(command(tmp_path / "out", server, target=30)) == 0, forked.output
        assert len(server.ledger()) == asked
    assert first["faults"] == {
        "no_usage": 3, "empty_reply": 3, "refusal": 1, "content_filter": 1, "length": 1, "reasoning_only": 1,
        "tool_calls": 1, "duplicate_keys": 1, "nan": 1,
    }  # fmt: skip
    assert summary(tmp_path / "out")["faults"] == first["faults"]
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {rejection["value"] for rejection in rejected if rejection["stage"] == "reply"}
    assert {"refusal", "content_filter", "empty_reply"} <= reasons
    assert all(rejection["reason"] for rejection in rejected)


def test_a_failure_for_good_is_an_outcome_and_asked_again_only_when_told_to(tmp_path: Path, forked: Forked) -> None:
    fresh = tmp_path / "fresh"
    with serve(tmp_path) as server:
        assert forked.run(command(fresh, server)) == 0
        kept_first = json.loads((fresh / "records.jsonl").read_text().splitlines()[0])["instruction"]
        about_it = (line for line in server.ledger() if kept_first in line["body"]["messages"][-1]["content"])
        spoiled = next(about_it)["body"]["messages"][-1]["content"]
    (tmp_path / "ledger.jsonl").unlink()
    spoil = {"match": re.escape(json.dumps(spoiled, ensure_ascii=False)), "attempts": [1]}
    with serve(tmp_path, {"fault": "bad_request", **spoil}) as server:
        assert forked.run(command(tmp_path / "out", server)) == 3, forked.output
        assert "--retry-failed" in forked.output
        asked = len(server.ledger())
        (bad,) = (line["key"] for line in server.ledger() if line["status"] == 400)
        assert forked.run(command(tmp_path / "out", server)) == 3
        assert len(server.ledger()) == asked
        assert forked.run(command(tmp_path / "out", server, "--retry-failed")) == 0, forked.output
        assert [line["key"] for line in server.ledger()[asked:]][:1] == [bad]
        answered = {line["key"] for line in server.ledger()[:asked] if line["status"] == 200}
        assert not answered & {line["key"] for line in server.ledger()[asked:]}
    assert derived(tmp_path / "out") == derived(fresh)


def test_a_prompt_for_instructions_that_failed_is_never_asked_again(tmp_path: Path, forked: Forked) -> None:
    """Its answer would change the pool, and with it all later prompts."""
    with serve(tmp_path) as server:
        assert forked.run(command(tmp_path / "fresh", server)) == 0
        first = max((message["content"] for message in server.ledger()[0]["body"]["messages"]), key=len)
    (tmp_path / "ledger.jsonl").unlink()
    spoil = {"match": re.escape(json.dumps(first, ensure_ascii=False)), "attempts": [1]}
    with serve(tmp_path, {"fault": "bad_request", **spoil}) as server:
        assert forked.run(command(tmp_path / "out", server)) == 3, forked.output
        assert [line["n"] for line in server.ledger() if line["status"] == 400] == [1]
        asked, before = len(server.ledger()), derived(tmp_path / "out")
        assert forked.run(command(tmp_path / "out", server, "--retry-failed")) == 3, forked.output
        assert len(server.ledger()) == asked
    assert derived(tmp_path / "out") == before


# ---------------------------------------------------------------- what stops a run


@pytest.mark.parametrize(
    ("fault", "nth"),
    [
        ("unauthorized", 1),
        ("quota", 8),
        *(
            pytest.param(fault, nth, marks=pytest.mark.slow)
            for fault, nth in itertools.product(("unauthorized", "forbidden", "model_not_found", "quota"), (1, 8))
            if (fault, nth) not in (("unauthorized", 1), ("quota", 8))
        ),
    ],
)
def test_a_refused_key_or_model_stops_the_run_at_once(tmp_path: Path, forked: Forked, fault: str, nth: int) -> None:
    with serve(tmp_path, {"fault": fault, "nth": list(range(nth, 99))}, latency_ms=20) as server:
        code = forked.run(command(tmp_path / "out", server, "--concurrency", "4"))
        refused = len(server.ledger()) - (nth - 1)
        assert (code, 1 <= refused <= 4) == (5, True), forked.output
        assert forked.output.strip().splitlines()[-1].count("Go on with: ") == 1
        server.plan = []
    with serve(tmp_path) as server:
        assert forked.run(command(tmp_path / "out", server)) == 0, forked.output


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["server_error", "reset"])
def test_an_outage_stops_the_run_and_is_no_outcome(tmp_path: Path, forked: Forked, fault: str) -> None:
    arguments = ["--concurrency", "2"]
    with serve(tmp_path, {"fault": fault, "nth": list(range(6, 500))}) as server:
        assert forked.run(command(tmp_path / "out", server, *arguments)) == 5, forked.output
        assert "does not answer" in forked.output
        assert max(line["attempt"] for line in server.ledger()) <= 5
        assert len(server.ledger()) <= 5 + 5 * 6 + 1  # two in flight, four waiting behind them, and a probe
    with serve(tmp_path) as server:
        assert forked.run(command(tmp_path / "out", server, *arguments)) == 0, forked.output
        assert forked.run(command(tmp_path / "clean", server, *arguments)) == 0
    assert derived(tmp_path / "out") == derived(tmp_path / "clean")


def test_a_server_that_is_not_there_stops_the_run(tmp_path: Path, forked: Forked) -> None:
    with serve(tmp_path) as server:
        pass
    assert forked.run(command(tmp_path / "out", server, "--concurrency", "1")) == 5
    assert summary(tmp_path / "out")["possibly_paid"] == 0


# ---------------------------------------------------------------- rate limits


@pytest.mark.slow
def test_over_a_socket_too_the_rate_is_learned_from_429s(tmp_path: Path, forked: Forked) -> None:
    """The promised shares (1.2 attempts a reply, 80 % of the limit) are held in virtual time, in test_pace.py: here
    the server's clock is real, and a busy machine moves it. Unpaced, this run needs more than ten attempts a reply."""
    with serve(tmp_path, rpm_bucket=(1800, 10)) as server:
        assert forked.run(command(tmp_path / "out", server, target=250)) == 0, forked.output
        found = statuses(server)
    assert found.count(429) > 0
    assert len(found) <= 2 * found.count(200)


def test_rpm_keeps_below_a_known_limit_from_the_start(tmp_path: Path, forked: Forked) -> None:
    """However slow the machine is: so many requests take at least so long."""
    with serve(tmp_path) as server:
        assert forked.run(command(tmp_path / "out", server, "--rpm", "1200", target=30)) == 0, forked.output
        asked = len(server.ledger())
    assert asked > 10
    assert summary(tmp_path / "out")["seconds"] >= (asked - 2) * 60 / 1200


# ---------------------------------------------------------------- storage


def test_a_full_disk_stops_the_run_within_one_commit_and_it_goes_on(tmp_path: Path, forked: Forked) -> None:
    """RLIMIT_FSIZE stands in for the full disk: every write beyond it fails, in SQLite and outside of it."""
    with serve(tmp_path, latency_ms=5) as server:
        arguments = command(tmp_path / "out", server, "--concurrency", "4", target=60)
        assert forked.run(arguments, largest_file=300_000) == 6, forked.output
        assert "could not be written" in forked.output
        assert "Go on with: " in forked.output
        asked = len(server.ledger())
        stored = sqlite3.connect(tmp_path / "out/journal.sqlite").execute("SELECT count(*) FROM outcomes").fetchone()[0]
        assert 5 < stored <= asked <= stored + 4
        assert forked.run(arguments) == 0, forked.output
        assert len(server.ledger()) == asked + len({line["key"] for line in server.ledger()}) - stored
        assert forked.run(command(tmp_path / "clean", server, target=60)) == 0
    assert derived(tmp_path / "out") == derived(tmp_path / "clean")


@pytest.mark.parametrize(
    "name",
    [
        ".records.part",
        ".summary.json.new",
        pytest.param(".records.jsonl.new", marks=pytest.mark.slow),
        pytest.param(".config.json.new", marks=pytest.mark.slow),
    ],
)
def test_a_full_device_for_the_derived_files_stops_the_run(tmp_path: Path, forked: Forked, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).symlink_to("/dev/full")
    with serve(tmp_path) as server:
        assert forked.run(command(folder, server)) == 6, forked.output
        assert "No space left on device" in forked.output
        assert "Go on with: " in forked.output
        (folder / name).unlink(missing_ok=True)
        assert forked.run(command(folder, server)) == 0, forked.output
        assert max(line["attempt"] for line in server.ledger()) == 1


def test_once_a_line_was_lost_nothing_is_published(tmp_path: Path) -> None:
    (tmp_path / ".records.part").symlink_to("/dev/full")
    record = make_record(
        instruction="x" * 2**20, output="y", task="generation", generator="g", model="m", language="en",
        source=PromptSource(prompt=0, seeds=(), pool=()), prompts={}, requests=[],
    )  # fmt: skip
    with DerivedFiles(tmp_path) as files:
        with pytest.raises(StorageError, match="No space left"):
            files.keep(record)
        (tmp_path / ".records.part").unlink()
        (tmp_path / ".records.part").touch()
        with pytest.raises(StorageError, match="No space left"):
            files.publish({})
    assert not (tmp_path / "records.jsonl").exists()


def test_a_full_disk_stops_a_tick_wherever_it_is_met(tmp_path: Path) -> None:
    """The list of what a source consists of is the largest file here: no writer of the line's own meets the limit."""
    (tmp_path / "facts.tsv").write_text("".join(f"Town {n}\tlies in\tCounty {n}\n" for n in range(4000)))
    project = tmp_path / "regenerate.toml"
    project.write_text('out = "out"\n[[source]]\ngenerator = "self_kg"\ngraphs = ["facts.tsv"]\ntemplate = true\n'
                       'target = 3\n[curate]\nnear_duplicates = "off"\nsemantic_duplicates = "off"\n')  # fmt: skip
    with Forked(tmp_path, "pipeline.regenerate") as forked:
        assert forked.run([str(project)], largest_file=200_000) == 6, forked.output
        assert "Traceback" not in forked.output
        assert "cannot be written (File too large). Go on with: python -m pipeline.regenerate" in forked.output
        assert list((tmp_path / "out/versions").iterdir()) == []
        assert not (tmp_path / "out/tick.json").exists()
        assert forked.run([str(project)]) == 0, forked.output


def test_a_full_disk_stops_a_curation(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say what {'x' * 40} number {n} is.", "output": "It is one."} for n in range(400)]
    write_lines(tmp_path / "rows.jsonl", rows)
    flags = [str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    flags += ["--semantic-duplicates", "off", "--near-duplicates", "off"]
    with Forked(tmp_path, "pipeline.curate") as forked:
        assert forked.run(flags, largest_file=50_000) == 6, forked.output
        assert "Traceback" not in forked.output
        assert forked.run(flags) == 0, forked.output


# ---------------------------------------------------------------- keys


def secrets_in(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("ledger.")]
    return [str(path) for path in found for secret in (KEY, PASSWORD) if secret.encode() in path.read_bytes()]


ERROR_PATHS: dict[str, list[dict[str, Any]]] = {
    "fine": [],
    "echoed in an error": [{"fault": "bad_request", "nth": [4], "message": f"You sent {KEY}, {PASSWORD}."}],
    "echoed in a reply": [{"fault": "content_filter", "nth": [4], "content": f"You sent {KEY}."}],
    "unauthorized": [{"fault": "unauthorized", "nth": [4]}],
    "model": [{"fault": "model_not_found"}],
    "reset": [{"fault": "reset", "nth": [4]}],
    "hang": [{"fault": "hang_before_headers", "nth": [4]}],
    "html": [{"fault": "html_page", "nth": [4]}],
    "bomb": [{"fault": "gzip_bomb", "nth": [4], "unpacked_mb": 32}],
    "outage": [{"fault": "server_error"}],
}


EXIT_CODES = {
    **dict.fromkeys(["fine", "echoed in a reply", "reset", "hang", "html", "bomb"], 0),
    **dict.fromkeys(["unauthorized", "model", "outage", "unreachable"], 5),
    "not http": 2,
    "interrupted": 130,
}


QUICK = ("fine", "echoed in an error", "echoed in a reply", "unauthorized", "unreachable", "not http", "interrupted")


@pytest.mark.parametrize(
    "path", [*QUICK, *(pytest.param(path, marks=pytest.mark.slow) for path in ERROR_PATHS if path not in QUICK)]
)
def test_the_key_is_in_no_file_and_no_stream(tmp_path: Path, forked: Forked, path: str) -> None:
    out = tmp_path / "out"
    env = {"OPENAI_API_KEY": KEY}
    with serve(tmp_path, *ERROR_PATHS.get(path, []), latency_ms=20) as server:
        port = 9 if path == "unreachable" else server.port
        scheme = "ftp" if path == "not http" else "http"
        url = f"{scheme}://user:{PASSWORD}@127.0.0.1:{port}/v1?key={KEY}"
        arguments = ["--model", "fake", "--target", "12", "--concurrency", "2", "--deadline", "1", "--out", str(out)]
        process = forked.start([*arguments, "--json", "--base-url", url], env=env)
        if path == "interrupted":
            wait_for(lambda: len(server.ledger()) > 3)
            os.kill(process, signal.SIGINT)
        code = forked.wait()
        assert code == EXIT_CODES.get(path, 3), forked.output
        assert KEY not in forked.output
        assert PASSWORD not in forked.output
    assert "Traceback" not in forked.output
    assert secrets_in(tmp_path) == []


# ---------------------------------------------------------------- signals, and a parent that dies


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_first_signal_finishes_what_is_in_flight(tmp_path: Path, forked: Forked, number: signal.Signals) -> None:
    with serve(tmp_path, latency_ms=150) as server:
        arguments = command(tmp_path / "out", server, "--concurrency", "4", target=60)
        process = forked.start(arguments)
        wait_for(lambda: len(server.ledger()) >= 6)
        os.kill(process, number)
        assert forked.wait() == 130, forked.output
        assert "Go on with: " in forked.output
        assert all(line["answered"] for line in server.ledger())
        journal = sqlite3.connect(tmp_path / "out/journal.sqlite")
        assert journal.execute("SELECT count(*) FROM outcomes").fetchone()[0] == len(server.ledger())
        assert summary(tmp_path / "out")["possibly_paid"] == 0


def test_the_second_signal_breaks_off_and_says_what_was_possibly_paid(tmp_path: Path, forked: Forked) -> None:
    with serve(tmp_path, {"fault": "hang_before_headers", "nth": list(range(3, 99))}) as server:
        process = forked.start(command(tmp_path / "out", server, "--concurrency", "2"))
        wait_for(lambda: len(server.ledger()) >= 3)
        os.kill(process, signal.SIGINT)
        wait_for(lambda: "Stopping" in forked.output)
        os.kill(process, signal.SIGINT)
        assert forked.wait() == 130, forked.output  # the server would have held them for ten minutes
        assert "Go on with: " in forked.output
        journal = sqlite3.connect(tmp_path / "out/journal.sqlite")
        hanging = len(server.ledger()) - 2
        assert journal.execute("SELECT count(*) FROM attempts WHERE outcome = 'cancelled'").fetchone()[0] == hanging


def test_a_run_outlives_the_reader_of_its_messages(tmp_path: Path) -> None:
    """Whoever read its stderr has died, and each message meets a broken pipe: the run ends as if nothing had been."""
    with serve(tmp_path, latency_ms=30) as server:
        arguments = command(tmp_path / "out", server, "--concurrency", "2", target=30)
        run = subprocess.Popen([sys.executable, "-m", "pipeline.self_instruct", *arguments], stderr=subprocess.PIPE)
        wait_for(lambda: len(server.ledger()) >= 3)
        assert run.stderr is not None
        run.stderr.close()
        assert run.wait(120) == 0
    assert summary(tmp_path / "out")["kept"] == 30


TERMINAL = "import pty, sys; pty.spawn(['/bin/sh', '-c', '\"$@\"; true', 'sh', *sys.argv[1:]])"  # a shell in a window
PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:], stderr=subprocess.PIPE)"


def is_free(folder: Path) -> bool:
    try:
        with locked(folder):
            return True
    except FolderBusy:
        return False


def killed_parent(parent: str, arguments: list[str], server: FakeServer, folder: Path) -> None:
    """Start the run as a grandchild, kill -9 what started it in the middle, and wait for the run's own end."""
    run = [sys.executable, "-m", "pipeline.self_instruct", *arguments]
    silent: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, "-c", parent, *run], **silent) as process:
        wait_for(lambda: len(server.ledger()) >= 6)
        assert not is_free(folder)
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: is_free(folder))


@pytest.mark.slow
def test_a_terminal_that_is_killed_ends_the_run_in_order(tmp_path: Path, forked: Forked) -> None:
    """Its shell and the run get SIGHUP from the kernel: what is in flight is finished and stored, and it goes on."""
    with serve(tmp_path, latency_ms=150) as server:
        arguments = command(tmp_path / "out", server, "--concurrency", "4", target=60)
        killed_parent(TERMINAL, arguments, server, tmp_path / "out")
        stored = len(server.ledger())
        assert all(line["answered"] for line in server.ledger())
        journal = sqlite3.connect(tmp_path / "out/journal.sqlite")
        assert journal.execute("SELECT count(*) FROM outcomes").fetchone()[0] == stored
        assert (summary(tmp_path / "out")["possibly_paid"], summary(tmp_path / "out")["sent_ever"]) == (0, stored)
        assert summary(tmp_path / "out")["kept"] < 60
    with serve(tmp_path) as server:
        assert forked.run([*arguments, "--base-url", server.base_url]) == 0, forked.output
        assert {line["attempt"] for line in server.ledger()} == {1}
        assert forked.run(command(tmp_path / "clean", server, target=60)) == 0
    assert derived(tmp_path / "out") == derived(tmp_path / "clean")


@pytest.mark.slow
def test_a_run_whose_parent_is_killed_goes_on_to_its_end(tmp_path: Path) -> None:
    with serve(tmp_path, latency_ms=30) as server:
        arguments = command(tmp_path / "out", server, "--concurrency", "2", target=30)
        killed_parent(PARENT, arguments, server, tmp_path / "out")
        assert all(line["answered"] for line in server.ledger())
    assert (summary(tmp_path / "out")["kept"], summary(tmp_path / "out")["possibly_paid"]) == (30, 0)


def test_two_processes_on_one_folder(tmp_path: Path, forked: Forked) -> None:
    with serve(tmp_path, {"fault": "hang_before_headers", "nth": [1]}) as server, Forked(tmp_path) as other:
        process = forked.start(command(tmp_path / "out", server))
        wait_for(lambda: server.ledger())
        assert other.run(command(tmp_path / "out", server)) == 75
        assert re.search(rf"in use by process {process} on \S+ since", other.output)
        os.kill(process, signal.SIGKILL)
        forked.wait()
        assert other.run(command(tmp_path / "out", server)) == 0, other.output
