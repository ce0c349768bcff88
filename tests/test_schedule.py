"""A schedule against a clock that the tests set: outages, overlaps, other processes, kills, signals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import crash, schedule
from pipeline.errors import StorageError, UsageError
from pipeline.schedule import MEANING, Project, Scheduler
from pipeline.scheduling.process import Regenerate, SystemClock
from pipeline.scheduling.ticks import Ticks
from pipeline.scheduling.timing import Schedule, Times
from tests.fake_schedule import DAY, HOUR, REMEMBER, Case, FakeClock, FakeRun, at, ended, forked, shown
from tests.fake_server import ROOT

HOURLY = Schedule(cron="0 * * * *")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: every row is committed to the disk, and these are many rows."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture
def case(folder: Path) -> Case:
    return Case(folder)


# ---------------------------------------------------------------- a daemon


def test_a_daemon_runs_every_tick_when_it_comes(case: Case) -> None:
    case.scheduler(HOURLY, at("2026-11-22 10:20"), at("2026-11-22 14:30"), takes_s=60).daemon()
    assert shown(case.starts()) == ["11-22 11:00", "11-22 12:00", "11-22 13:00", "11-22 14:00"]
    assert {state for _, state in case.rows()} == {"settled"}


@pytest.mark.parametrize(
    ("start", "runs"),
    [
        ("2026-03-28 12:00", ["03-29 03:30", "03-30 02:30", "03-31 02:30"]),  # 02:30 does not exist on the 29th
        ("2026-10-24 12:00", ["10-25 02:30", "10-26 02:30", "10-27 02:30"]),  # and comes twice on the 25th
    ],
)
def test_a_nightly_job_runs_once_in_the_nights_when_clocks_are_changed(case: Case, start: str, runs: list[str]) -> None:
    nightly = Schedule(cron="30 2 * * *", timezone="Europe/Berlin")
    began = at(start, "Europe/Berlin")
    case.scheduler(nightly, began, began + 3 * DAY, takes_s=600).daemon()
    assert shown(case.starts(), "Europe/Berlin") == runs


OUTAGES: dict[str, tuple[list[str], dict[str, int]]] = {
    # down from the 22nd at noon to the 25th at noon, with a tick at 02:30 and a run of an hour
    "latest": (["11-25 12:00", "11-26 02:30"], {"missed": 2, "settled": 3}),
    "all": (["11-25 12:00", "11-25 13:00", "11-25 14:00", "11-26 02:30"], {"settled": 5}),
    "none": (["11-26 02:30"], {"missed": 3, "settled": 2}),
}


@pytest.mark.parametrize("missed", OUTAGES)
def test_three_days_of_outage(case: Case, missed: Any) -> None:
    nightly = Schedule(cron="30 2 * * *", missed=missed)
    case.scheduler(nightly, at("2026-11-21 20:00"), at("2026-11-22 12:00"), takes_s=HOUR).daemon()
    before = len(case.starts())
    case.scheduler(nightly, at("2026-11-25 12:00"), at("2026-11-26 12:00"), takes_s=HOUR).daemon()
    runs, states = OUTAGES[missed]
    assert before == 1
    assert shown(case.starts()[before:]) == runs
    assert Counter(state for _, state in case.rows()) == states
    assert shown([float(tick) for tick, _ in case.rows()]) == [f"11-{day} 02:30" for day in range(22, 27)]


OVERLAPS: dict[tuple[str, str], list[str]] = {
    # a tick an hour; the first run takes two hours and a half
    ("skip", "latest"): ["11:00", "14:00", "15:00"],
    ("queue", "latest"): ["11:00", "13:30", "14:00", "15:00"],
    ("queue", "all"): ["11:00", "13:30", "13:35", "14:00", "15:00"],
    ("queue", "none"): ["11:00", "13:30", "14:00", "15:00"],
}


@pytest.mark.parametrize(("overlap", "missed"), OVERLAPS)
def test_a_run_that_lasts_longer_than_its_period(case: Case, overlap: Any, missed: Any) -> None:
    hourly = Schedule(cron="0 * * * *", overlap=overlap, missed=missed)
    scheduler = case.scheduler(hourly, at("2026-11-22 10:20"), at("2026-11-22 15:30"), takes_s=300)
    run = scheduler.runner
    assert isinstance(run, FakeRun)

    class LongFirst(FakeRun):
        def __call__(self, lock: int, output: Path) -> int:
            self.takes_s = 300 if self.starts() else 2.5 * HOUR
            return super().__call__(lock, output)

    scheduler.runner = LongFirst(run.clock, run.ledger)
    scheduler.daemon()
    assert [text[6:] for text in shown(case.starts())] == OVERLAPS[overlap, missed]
    skipped = Counter(state for _, state in case.rows())
    assert skipped["overlap"] == 5 - len(OVERLAPS[overlap, missed])


def test_a_tick_waits_out_its_jitter_and_no_longer(case: Case) -> None:
    jittery = Schedule(cron="0 * * * *", jitter=1800)
    case.scheduler(jittery, at("2026-11-22 10:20"), at("2026-11-22 15:00")).daemon()
    times = Times(jittery)
    wanted = [times.due(tick) for tick, _ in case.rows()]
    assert len(wanted) == 4
    assert case.starts() == pytest.approx(wanted, abs=0.01)


def test_a_clock_that_is_set_back_starts_nothing_twice(case: Case) -> None:
    case.scheduler(HOURLY, at("2026-11-22 10:20"), at("2026-11-22 14:30")).daemon()
    case.scheduler(HOURLY, at("2026-11-22 11:30"), at("2026-11-22 15:30")).daemon()
    assert [text[6:] for text in shown(case.starts())] == ["11:00", "12:00", "13:00", "14:00", "15:00"]


def test_a_first_look_with_a_wrong_clock_is_mended(case: Case) -> None:
    case.scheduler(HOURLY, at("2036-01-01"), at("2036-01-01")).daemon()
    case.scheduler(HOURLY, at("2026-11-22 10:20"), at("2026-11-22 12:30")).daemon()
    assert len(case.starts()) == 2


def test_another_rule_has_missed_nothing(case: Case) -> None:
    case.scheduler(Schedule(cron="0 0 1 * *"), at("2026-11-01"), at("2026-11-20")).daemon()
    every = Schedule(cron="0 * * * *", missed="all")
    case.scheduler(every, at("2026-11-20 09:30"), at("2026-11-20 11:30")).daemon()
    assert shown(case.starts()) == ["11-20 10:00", "11-20 11:00"]


# ---------------------------------------------------------------- --once


def test_once_runs_what_its_caller_called_for(case: Case) -> None:
    for hour, runs in ((10, 1), (11, 2), (12, 3)):  # as cron calls; the first time nothing is known yet
        told = case.scheduler(HOURLY, at(f"2026-11-22 {hour}:00") + 2).once()
        assert (len(told), len(case.starts())) == (1, runs)
    assert case.scheduler(HOURLY, at("2026-11-22 12:15")).once() == []
    assert case.scheduler(HOURLY, at("2026-11-22 12:45")).once() == []


def test_once_waits_for_jitter(case: Case) -> None:
    jittery = Schedule(cron="0 * * * *", jitter=1800)
    assert len(case.scheduler(jittery, at("2026-11-22 10:00")).once()) == 1
    due = Times(jittery).due(int(at("2026-11-22 10:00")))
    assert due > at("2026-11-22 10:00") + 1
    assert case.starts() == pytest.approx([due], abs=0.01)


@pytest.mark.parametrize("code", [*MEANING, -9])
def test_every_exit_code_is_understood(case: Case, code: int) -> None:
    rule = HOURLY.model_copy(update={f"on_{event}": REMEMBER for event in ("success", "failure", "empty")})
    (told,) = case.scheduler(rule, at("2026-11-22 10:00"), codes=[code], versions=["v1"]).once()
    event = {0: "success", 3: "success", 75: "skipped"}.get(code, "failure")
    assert (told["event"], told["exit_code"], told["result"]) == (event, code, {"run": 0, "exit": code})
    assert told["meaning"] == MEANING.get(code, "killed by signal 9")
    assert case.told() == ([] if event == "skipped" else [told])
    assert case.rows() == [(at("2026-11-22 10:00"), "overlap" if event == "skipped" else "settled")]


def test_nothing_new_is_empty(case: Case) -> None:
    rule = HOURLY.model_copy(update={"on_success": REMEMBER, "on_empty": REMEMBER})
    case.scheduler(rule, at("2026-11-22 10:20"), at("2026-11-22 13:30"), versions=["v1", "v1", "v2"]).daemon()
    assert [(told["event"], told["version"]) for told in case.told()] == [
        ("success", "v1"), ("empty", "v1"), ("success", "v2"),
    ]  # fmt: skip
    assert case.told()[0]["text"] == "demo, 2026-11-22T11:00:00+00:00: new version v1 (exit code 0: done)."


def test_a_source_that_brought_nothing_is_named_with_its_reason(case: Case) -> None:
    scheduler = case.scheduler(HOURLY, at("2026-11-22 10:00"))
    runner = scheduler.runner

    def run(lock: int, output: Path) -> int:
        code = runner(lock, output)
        output.write_text('{"exit": 0, "empty": {"docs": "all of it was rejected."}}\n')
        return code

    scheduler.runner = run  # type: ignore[assignment]
    (told,) = scheduler.once()
    assert told["text"].endswith("(exit code 0: done). docs brings no record: all of it was rejected.")


@pytest.mark.parametrize(("overlap", "starts"), [("skip", 1), ("queue", 3)])
def test_a_project_that_somebody_regenerates_by_hand(case: Case, overlap: Any, starts: int) -> None:
    rule = Schedule(cron="0 * * * *", overlap=overlap)
    case.scheduler(rule, at("2026-11-22 10:00"), codes=[75, 75, 0]).once()
    assert len(case.starts()) == starts
    assert [state for _, state in case.rows()] == ["overlap" if overlap == "skip" else "settled"]


def test_a_tick_that_waits_when_we_are_stopped_goes_on_waiting(case: Case) -> None:
    rule, now = Schedule(cron="0 * * * *", overlap="queue"), at("2026-11-22 10:00")
    assert case.scheduler(rule, now, now + 100, codes=[75] * 99).once() == []
    assert case.rows() == [(now, "claimed")]
    assert [told["exit_code"] for told in case.scheduler(rule, now + 200).once()] == [0]


def test_a_hook_that_fails_changes_nothing_else(case: Case) -> None:
    rule = HOURLY.model_copy(update={"on_empty": ("false",)})
    (told,) = case.scheduler(rule, at("2026-11-22 10:00")).once()
    ticks = Ticks(case.folder / "demo/schedule/ticks.sqlite")
    row = ticks.row(rule.name, int(at("2026-11-22 10:00")))
    ticks.close()
    assert (told["event"], row.state, row.hook) == ("empty", "settled", "false: exit code 1.")
    assert any("the hook failed. false: exit code 1." in line for line in case.said)


# ---------------------------------------------------------------- every key of [schedule] acts

BASE: dict[str, Any] = {"cron": "0 * * * *"}
# key -> (what both have, what one of them has besides)
ACTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cron": ({}, {"cron": "30 * * * *"}),
    "every": ({}, {"cron": None, "every": 3 * HOUR}),
    "timezone": ({"cron": "0 12 * * *"}, {"timezone": "Asia/Tokyo"}),
    "jitter": ({}, {"jitter": 1000}),
    "missed": ({}, {"missed": "all"}),
    "grace": ({"missed": "none"}, {"grace": HOUR}),
    "overlap": ({}, {"overlap": "queue"}),
    "on_success": ({}, {"on_success": REMEMBER}),
    "on_failure": ({}, {"on_failure": REMEMBER}),
    "on_empty": ({}, {"on_empty": REMEMBER}),
}


@pytest.mark.parametrize("key", Schedule.model_fields)
def test_every_key_acts(folder: Path, key: str) -> None:
    seen = []
    both, one = ACTS[key]
    for number, given in enumerate((BASE | both, BASE | both | one)):
        (folder / str(number)).mkdir()
        case, rule = Case(folder / str(number)), Schedule.model_validate(given)
        plan: dict[str, Any] = {"takes_s": 1.6 * HOUR, "codes": [0, 5], "versions": ["v1"]}
        case.scheduler(rule, at("2026-11-22 09:20"), at("2026-11-22 16:00"), **plan).daemon()
        case.scheduler(rule, at("2026-11-23 03:40"), at("2026-11-23 09:00"), **plan).daemon()  # after an outage
        seen.append((case.starts(), [told["event"] for told in case.told()]))
    assert seen[0] != seen[1]


# ---------------------------------------------------------------- several processes


def test_two_daemons_and_a_cron_start_every_tick_once(case: Case) -> None:
    """All three look at each of forty ticks; whoever runs one writes down which it was, seen from outside."""
    rule = Schedule(cron="* * * * *", missed="all", overlap="queue")
    start, last = at("2026-11-22 10:00"), at("2026-11-22 10:40")
    case.scheduler(rule, start, start).daemon()  # first seen now
    ledger, (ready, go) = case.folder / "runs.txt", os.pipe()

    class Outside(FakeRun):
        def __call__(self, lock: int, output: Path) -> int:
            ticks = Ticks(case.folder / "demo/schedule/ticks.sqlite")
            running = [row.tick for row in ticks.unsettled()]
            ticks.close()
            with ledger.open("a") as lines:
                lines.write(f"{os.getpid()} {running}\n")
            return super().__call__(lock, output)

    def work(as_daemon: bool) -> None:
        os.read(ready, 1)  # until the others are there, too
        until = last + 30 if as_daemon else float("inf")
        scheduler = case.scheduler(rule, start, until)
        assert isinstance(scheduler.clock, FakeClock)
        scheduler.runner = Outside(scheduler.clock, case.folder / "ledger.txt")
        if as_daemon:
            scheduler.daemon()
        for minute in range(0 if as_daemon else 41):
            scheduler.clock.time = start + 60 * minute
            scheduler.once()

    children = [forked(partial(work, as_daemon)) for as_daemon in (True, True, False)]
    os.write(go, b"...")
    assert [ended(child) for child in children] == [0, 0, 0]
    os.close(ready)
    os.close(go)
    case.scheduler(rule, last + 20).once()  # what a daemon that gave way did not come back for
    wanted = [[int(start) + 60 * minute] for minute in range(1, 41)]
    ran = [line.partition(" ")[2] for line in ledger.read_text().splitlines()]
    late = len(case.starts()) - len(ran)  # by the last call above, which keeps no such ledger
    assert len(case.starts()) == 40
    assert len(set(ran)) == len(ran) == 40 - late
    assert set(ran) <= {str(tick) for tick in wanted}
    assert case.rows() == [(tick, "settled") for (tick,) in wanted]


# ---------------------------------------------------------------- kills and signals

WITH_HOOK = Schedule(cron="0 * * * *", missed="all", on_success=REMEMBER, on_empty=REMEMBER)


@pytest.mark.parametrize("point", crash.TICK_POINTS)
@pytest.mark.parametrize("passing", [1, 2])
def test_killed_at_a_marked_point_it_goes_on_correctly(case: Case, point: str, passing: int) -> None:
    start, until = at("2026-11-22 10:20"), at("2026-11-22 13:30")

    def work() -> None:
        scheduler = case.scheduler(WITH_HOOK, start, until, versions=["v1", "v1", "v2"])
        scheduler.clock.time += 60 * len(case.starts())  # type: ignore[attr-defined]  # a later life begins later
        run = scheduler.runner
        assert isinstance(run, FakeRun)

        class Marked(FakeRun):  # as Regenerate is
            def __call__(self, lock: int, output: Path) -> int:
                crash.point("tick.started")
                return super().__call__(lock, output)

        scheduler.runner = Marked(run.clock, run.ledger, versions=run.versions, latest=run.latest)
        scheduler.daemon()

    assert ended(forked(work, f"{point}:{passing}")) == -signal.SIGKILL
    assert ended(forked(work)) == 0
    assert case.rows() == [(int(at("2026-11-22 10:00")) + hour * HOUR, "settled") for hour in (1, 2, 3)]
    assert len(case.starts()) == 3
    told = [(told["tick"][11:13], told["event"]) for told in case.told()]
    assert len(told) == 3 + (point == "tick.told")  # told, and that not written down: told once more, of the same tick
    assert told[0] == ("11", "success")
    assert [hour for hour, _ in dict.fromkeys(told)] == ["11", "12", "13"]


class Running:
    """A run in a real process that lasts until the test lets it end, or a signal does."""

    SCRIPT = """
import os, signal, sys
def stopped(*_):
    open(sys.argv[2], "a").write("stopped\\n")
    os._exit(130)
signal.signal(signal.SIGTERM, stopped)
own_session = os.getsid(0) == os.getpid()   # a Ctrl-C at the terminal does not come to it by itself
open(sys.argv[2], "a").write("started\\n" if own_session else "not apart\\n")
if os.path.exists(sys.argv[1]):
    print(open(sys.argv[1]).read())   # what comes until the other end of the pipe is closed
"""

    def __init__(self, folder: Path) -> None:
        self.pipe, self.log = folder / "pipe", folder / "log.txt"
        os.mkfifo(self.pipe)
        self.command = [sys.executable, "-c", self.SCRIPT, str(self.pipe), str(self.log)]

    def lines(self) -> list[str]:
        return self.log.read_text().split()

    def scheduler(self, case: Case, now: float) -> Scheduler:
        scheduler = case.scheduler(WITH_HOOK, now)
        scheduler.runner = Regenerate(self.command, scheduler.clock)
        return scheduler


@pytest.mark.parametrize(
    ("printed", "event", "runs"),
    [
        ('{"reason": "too few", "exit": 7}', "failure", 1),  # it ended when its scheduler was gone: that counts
        ('{"reason": "interrupted", "exit": 130}', "empty", 2),  # that is no end
        ('{"reason": "too f', "empty", 2),
        ("", "empty", 2),
    ],
)
def test_a_run_whose_scheduler_was_killed_still_keeps_others_out(
    case: Case, tmp_path: Path, printed: str, event: str, runs: int
) -> None:
    running, now = Running(tmp_path), at("2026-11-22 10:00")
    child = forked(lambda: running.scheduler(case, now).once())
    with running.pipe.open("w") as pipe:  # opens once the run has opened its end
        pipe.write(printed)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        with (case.folder / "demo/schedule/.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert running.scheduler(case, now + HOUR).run_due() is None
        assert running.lines() == ["started"]
        running.pipe.unlink()  # the next run finds none, and ends at once
    with (case.folder / "demo/schedule/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the orphan has ended
    os.utime(case.folder / f"demo/schedule/{int(now)}.json", (now + 60, now + 60))  # a minute after it began
    told = running.scheduler(case, now + HOUR).once()
    assert [(body["tick"][11:13], body["event"]) for body in told] == [("10", event), ("11", "empty")]
    assert running.lines() == ["started"] * (runs + 1)
    assert sorted(path.name for path in (case.folder / "demo/schedule").iterdir()) == [
        ".lock", "ticks.sqlite", "ticks.sqlite-journal",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_in_order_and_the_next_start_goes_on(
    case: Case, tmp_path: Path, number: signal.Signals
) -> None:
    running, now = Running(tmp_path), at("2026-11-22 10:00")

    def work() -> None:
        scheduler = running.scheduler(case, now)
        clock = SystemClock()
        clock.now = lambda: now  # type: ignore[method-assign]
        scheduler.clock = clock
        runner = scheduler.runner = Regenerate(running.command, clock)
        with clock.stopped_by_signals(runner):
            assert scheduler.once() == []
        assert clock.stopping

    child = forked(work)
    with running.pipe.open("w"):
        os.kill(child, number)
        assert ended(child) == 0
    assert running.lines() == ["started", "stopped"]
    assert case.rows() == [(int(now), "claimed")]
    running.pipe.unlink()
    (told,) = running.scheduler(case, now + 60).once()
    assert (told["tick"], told["event"]) == ("2026-11-22T10:00:00+00:00", "empty")


def test_a_signal_that_came_before_the_run_stops_it_all_the_same(tmp_path: Path) -> None:
    clock = SystemClock()
    clock.stop()
    waits = "import signal; signal.alarm(60); signal.pause()"  # the alarm is only so that this fails and does not hang
    with (tmp_path / "lock").open("w") as lock:
        code = Regenerate([sys.executable, "-c", waits], clock)(lock.fileno(), tmp_path / "output")
    assert code == -signal.SIGTERM


# ---------------------------------------------------------------- the command

PROJECT = 'name = "demo"\n[schedule]\ncron = "0 0 29 2 *"\ntimezone = "Europe/Berlin"\n'


def test_a_waiting_daemon_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PROJECT)
    command = [sys.executable, "-m", "pipeline.schedule", str(tmp_path / "p.toml")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        assert "the next tick: 20" in daemon.stderr.readline()
        daemon.terminate()
        assert "Go on with: python -m pipeline.schedule" in daemon.stderr.read()
        assert daemon.wait(30) == 130


BAD: dict[str, tuple[str, str]] = {
    "no table": ('name = "demo"\n', "has no [schedule]"),
    "no TOML": ("[schedule\n", "not TOML"),
    "an unknown key": ('[schedule]\ncorn = "@daily"\n', "[schedule] has no 'corn'; the nearest is 'cron'"),
    "no cron": ('[schedule]\ncron = "often"\n', "[schedule] cron: has 1 fields"),
    "neither": ("[schedule]\n", "[schedule]: takes either cron or every"),
    "a name that climbs": ('name = "../up"\n[schedule]\ncron = "@daily"\n', "name or out"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_get_one_sentence(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = BAD[what]
    (tmp_path / "p.toml").write_text(text)
    assert schedule.main([str(tmp_path / "p.toml"), "--once"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["p.toml"]


def test_a_place_that_cannot_be_written_is_a_storage_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.toml").write_text(PROJECT)
    (tmp_path / "outputs").write_text("a file, and no folder")
    assert schedule.main([str(tmp_path / "p.toml"), "--once"]) == 6
    assert "outputs/demo/schedule: cannot be written (Not a directory)." in capsys.readouterr().err


def test_a_run_that_cannot_be_started_keeps_its_tick(case: Case, tmp_path: Path) -> None:
    scheduler = case.scheduler(HOURLY, at("2026-11-22 10:00"))
    scheduler.runner = Regenerate([str(tmp_path / "no python")], scheduler.clock)
    with pytest.raises(StorageError, match=r"no run could be started \(No such file or directory\)"):
        scheduler.once()
    assert len(case.scheduler(HOURLY, at("2026-11-22 10:05")).once()) == 1


def test_the_plan_says_when_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text(PROJECT)
    assert schedule.main([str(tmp_path / "p.toml"), "--plan"]) == 0
    assert capsys.readouterr().err.count("-02-29T00:00:00+01:00") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["p.toml"]


def test_the_project_s_folder_is_where_regenerate_puts_it(tmp_path: Path) -> None:
    for head, folder in (("", "outputs/project"), ('name = "a"\n', "outputs/a"), ('out = "b/c"\n', "b/c")):
        (tmp_path / "p.toml").write_text(f'{head}[schedule]\ncron = "@daily"\n')
        assert Project.read(tmp_path / "p.toml").folder == tmp_path.resolve() / folder


@pytest.mark.slow
def test_with_the_real_regeneration(tmp_path: Path) -> None:
    """A new version, nothing new, a gate that refuses: each under a rule of its own, so that each has a tick due."""

    def once(day: int, more: str = "", target: int = 5) -> tuple[int, list[dict[str, Any]]]:
        source = f"[[source]]\ngenerator = 'self_kg'\ngraphs = ['graph.ttl']\ntemplate = true\ntarget = {target}\n"
        rule = f"[schedule]\ncron = '0 0 {day} 1 *'\non_failure = ['sh', '-c', 'cat > told.json']\n"
        (tmp_path / "p.toml").write_text(f'name = "demo"\n{source}{rule}{more}')
        command = [sys.executable, "-m", "pipeline.schedule", str(tmp_path / "p.toml"), "--once", "--json"]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.stdout, ran.stderr
        return ran.returncode, json.loads(ran.stdout)["ran"]

    graph = (ROOT / "kg/planets.ttl").read_text(encoding="utf-8")
    (tmp_path / "graph.ttl").write_text(graph, encoding="utf-8")
    code, (told,) = once(1)
    assert (code, told["event"], told["result"]["records"]) == (0, "success", 5)
    assert told["version"] == (tmp_path / "outputs/demo/LATEST").readlink().name == told["result"]["version"]
    assert once(1) == (0, [])
    code, (told,) = once(2)
    assert (code, told["event"], told["result"]["new"]) == (0, "empty", False)
    code, (told,) = once(3, "[gate]\nleast_records = 1000\n", target=6)
    assert (code, told["event"], told["meaning"]) == (7, "failure", "a gate refused the new version")
    assert json.loads((tmp_path / "told.json").read_text()) == told


def test_the_guide_is_right(case: Case, tmp_path: Path) -> None:
    """Its table names every key with its default, its example is a schedule, its JSON has the keys that hooks get."""
    guide = (ROOT / "docs/schedule.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:`(\w+)` )?\|", guide, re.MULTILINE))
    defaults = {name: field.default for name, field in Schedule.model_fields.items()}
    assert {name: text or None for name, text in rows.items()} == {
        name: "5m" if name == "grace" else None if default is None else str(default)
        for name, default in defaults.items()
    }
    assert Schedule.model_fields["grace"].default == 300
    example, told = (re.findall(rf"```{kind}\n(.*?)```", guide, re.DOTALL)[0] for kind in ("toml", "json"))
    (tmp_path / "p.toml").write_text(example)
    assert Project.read(tmp_path / "p.toml").schedule.timezone == "Europe/Berlin"
    (body,) = case.scheduler(HOURLY, at("2026-11-22 10:00")).once()
    assert list(json.loads(told)) == list(body)


def test_one_file_is_named() -> None:
    work: Callable[..., Any] = schedule._work
    with pytest.raises(UsageError, match="Name one project file; 0 are named"):
        work(schedule.ScheduleFlags(), print)
