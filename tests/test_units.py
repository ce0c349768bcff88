"""Printed units: what each scheduler reads out of them, and that none of them ever misses a tick."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
import yaml
from apscheduler.triggers.cron import CronTrigger

from pipeline import regenerate, schedule
from pipeline.scheduling.timing import Schedule, Times
from pipeline.scheduling.units import Kind, unit
from tests.fake_schedule import DAY, HOUR, at

FILE, PYTHON = Path("/srv/100% my data/planets.toml"), "/opt/a b/bin/python"
SCHEDULES: dict[str, Schedule] = {
    "nightly in Berlin": Schedule(cron="30 2 * * *", timezone="Europe/Berlin"),
    "nightly in UTC": Schedule(cron="30 2 * * *"),
    "early on Mondays, still Sunday in UTC": Schedule(cron="20 7 * * mon", timezone="Australia/Sydney"),
    "late on Fridays, Saturday in UTC": Schedule(cron="5 22 * * fri", timezone="America/Los_Angeles"),
    "the first of a month, the last in UTC": Schedule(cron="0 0 1 * *", timezone="Europe/Berlin"),
    "the last of a year, the first in UTC": Schedule(cron="30 23 31 12 *", timezone="America/St_Johns"),
    "a quarter of an hour off": Schedule(cron="*/20 6-8 * 2-3 *", timezone="Asia/Kathmandu"),
    "half an hour of summer time": Schedule(cron="0 2 * * *", timezone="Australia/Lord_Howe"),
    "a month of winter time": Schedule(cron="30 2 * * *", timezone="Africa/Casablanca"),
    "every hour": Schedule(cron="@hourly", timezone="Asia/Tokyo"),
    "a leap day": Schedule(cron="0 0 29 2 *", timezone="Asia/Tokyo"),
    "every seven hours": Schedule.model_validate({"every": "7h"}),
    "every seven minutes": Schedule.model_validate({"every": "7m"}),
    "every five days": Schedule.model_validate({"every": "5d"}),
}


IN_ENGLISH = {"TZ": "UTC", "LC_ALL": "C", "PATH": "/usr/bin:/bin"}


def printed(kind: Kind, rule: Schedule, file: Path = FILE) -> str:
    return unit(kind, file, rule, python=PYTHON)


def fields_in(kind: Kind, text: str) -> str:
    """The five fields that a unit holds."""
    if kind == "cron":
        return " ".join(text.splitlines()[-1].split()[:5])
    document: dict[Any, Any] = yaml.safe_load(text)
    # to YAML 1.1 the word `on` is true
    fields = document["spec"]["schedule"] if kind == "k8s" else document[True]["schedule"][0]["cron"]
    return str(fields)


def sections(text: str) -> dict[str, configparser.ConfigParser]:
    """The files of a systemd unit, by name."""
    files = {}
    for name, content in re.findall(r"# ---- (\S+)\n(.*?)(?=# ----|\Z)", text, re.DOTALL):
        files[name] = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        files[name].optionxform = str  # type: ignore[assignment,method-assign]
        files[name].read_string(content)
    return files


def some_ticks(schedule: Schedule) -> list[int]:
    """The ticks of two years, or the first 150."""
    times, found = Times(schedule), []
    for tick in times.between(at("2026-01-01"), at("2028-06-01")):
        found.append(tick)
        if len(found) == 150:
            break
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["k8s", "github"])
def test_in_utc_every_tick_is_hit(kind: Kind, name: str) -> None:
    ticks = some_ticks(SCHEDULES[name])
    calls = Times(Schedule(cron=fields_in(kind, printed(kind, SCHEDULES[name]))))
    assert ticks
    assert [tick for tick in ticks if calls.after(tick - 1) != tick] == []


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("machine", ["UTC", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_a_crontab_hits_every_tick_in_whatever_zone_the_machine_is(machine: str, name: str) -> None:
    line = fields_in("cron", printed("cron", SCHEDULES[name]))
    calls = CronTrigger.from_crontab(line, timezone=ZoneInfo(machine))
    for tick in some_ticks(SCHEDULES[name]):
        found = calls.get_next_fire_time(None, datetime.fromtimestamp(tick, UTC))
        assert found.timestamp() == tick


def test_units_call_little_more_often_than_they_must() -> None:
    per_year = {}
    for name in ("nightly in UTC", "nightly in Berlin", "early on Mondays, still Sunday in UTC", "every five days"):
        calls = Times(Schedule(cron=fields_in("k8s", printed("k8s", SCHEDULES[name]))))
        per_year[name] = len(list(calls.between(at("2026-01-01") - 1, at("2027-01-01") - 1)))
    assert per_year == {
        "nightly in UTC": 365,
        "nightly in Berlin": 2 * 365,  # for summer and for winter time
        "early on Mondays, still Sunday in UTC": 2 * 52,
        "every five days": 365,
    }


def test_a_crontab_line_runs_the_command_in_the_folder() -> None:
    line = printed("cron", SCHEDULES["nightly in UTC"]).splitlines()[-1]
    shell = line.split(" ", 5)[5].replace("\\%", "%")
    assert "\\%" in line  # a bare one is a new line to cron
    assert shlex.split(shell) == [
        "cd", str(FILE.parent), "&&", PYTHON, "-m", "pipeline.schedule", "planets.toml", "--once",
    ]  # fmt: skip


def test_systemd_reads_two_files() -> None:
    files = sections(printed("systemd", SCHEDULES["early on Mondays, still Sunday in UTC"]))
    service, timer = files["instructloop-planets.service"], files["instructloop-planets.timer"]
    assert service["Service"]["ExecStart"] == '"/opt/a b/bin/python" -m pipeline.schedule planets.toml --once'
    assert service["Service"]["WorkingDirectory"] == "/srv/100%% my data"
    assert service["Service"]["SuccessExitStatus"] == "3"
    assert timer["Timer"]["OnCalendar"] == "Sun *-*-* 20,21:20:00 UTC"
    assert timer["Timer"]["Persistent"] == "true"
    never = Schedule(cron="@daily", missed="none")
    assert sections(printed("systemd", never))["instructloop-planets.timer"]["Timer"]["Persistent"] == "false"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", SCHEDULES)
def test_systemd_itself_hits_the_next_ticks(name: str) -> None:
    timer = sections(printed("systemd", SCHEDULES[name]))["instructloop-planets.timer"]
    calendar, ticks = timer["Timer"]["OnCalendar"], some_ticks(SCHEDULES[name])[:3]
    for tick in ticks:
        base = datetime.fromtimestamp(tick - 1, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        words = ["systemd-analyze", "calendar", f"--base-time={base}", calendar]
        said = subprocess.run(words, capture_output=True, text=True, check=True, env=IN_ENGLISH).stdout
        assert datetime.fromtimestamp(tick, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_itself_accepts_the_files(tmp_path: Path) -> None:
    project = tmp_path / "100% mine" / "planets.toml"
    project.parent.mkdir()
    text = unit("systemd", project, SCHEDULES["nightly in Berlin"])
    for name, content in re.findall(r"# ---- (\S+)\n(.*?)(?=# ----|\Z)", text, re.DOTALL):
        (tmp_path / name).write_text(content)
    units = [str(tmp_path / f"instructloop-planets.{kind}") for kind in ("service", "timer")]
    said = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert [line for line in said.stderr.splitlines() if "instructloop-planets" in line] == []
    assert said.returncode == 0


def test_kubernetes_reads_a_cronjob() -> None:
    job = yaml.safe_load(printed("k8s", SCHEDULES["nightly in Berlin"]))
    spec = job["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("30 0,1 * * *", "Etc/UTC", "Forbid")
    assert container["command"] == ["python", "-m", "pipeline.schedule", "planets.toml", "--once"]
    assert (container["workingDir"], container["volumeMounts"][0]["mountPath"]) == ("/app", "/app/outputs")
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert spec["startingDeadlineSeconds"] == 3600
    strict = Schedule(cron="@daily", missed="none", grace=2 * HOUR)
    assert yaml.safe_load(printed("k8s", strict))["spec"]["startingDeadlineSeconds"] == 2 * HOUR


def test_github_reads_a_workflow() -> None:
    workflow = yaml.safe_load(printed("github", SCHEDULES["nightly in Berlin"]))
    steps = workflow["jobs"]["regenerate"]["steps"]
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is False
    runs = [step["run"] for step in steps if "run" in step]
    assert runs[-1] == "python -m pipeline.schedule planets.toml --once || [ $? -eq 3 ]"
    uses = [step["uses"].partition("@")[0] for step in steps if "uses" in step]
    assert uses.index("actions/cache/restore") < uses.index("actions/cache/save")
    assert {step["with"]["path"] for step in steps if "cache" in step.get("uses", "")} == {"outputs"}


def test_another_folder_for_versions_is_kept(tmp_path: Path) -> None:
    text = unit("k8s", tmp_path / "p.toml", SCHEDULES["every hour"], out=tmp_path / "data/p")
    pod = yaml.safe_load(text)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/app/data/p"


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("main", [schedule.main, regenerate.main])
def test_both_commands_print_it(
    main: Callable[[list[str]], int], kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "p.toml"
    source = '[[source]]\ngenerator = "self_kg"\ngraphs = ["planets.ttl"]\n'
    project.write_text(f'name = "demo"\n{source}[schedule]\nevery = "6h"\n')
    assert main([str(project), "--print", kind]) == 0
    expected = unit(kind, project, Schedule.model_validate({"every": "6h"}), out=tmp_path / "outputs/demo")
    assert capsys.readouterr().out == expected
    assert [path.name for path in tmp_path.iterdir()] == ["p.toml"]


def test_names_are_ones_that_schedulers_take() -> None:
    for stem in ("regenerate", "Ein Größeres_Projekt", "x" * 90):
        name = yaml.safe_load(printed("k8s", SCHEDULES["every hour"], Path(f"/srv/{stem}.toml")))["metadata"]["name"]
        assert re.fullmatch(r"instructloop-[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 52


def test_days_are_counted_over_the_end_of_every_month() -> None:
    """Daily at midnight in a zone ahead of UTC and one behind: each day of four years is hit, whatever its month."""
    for zone in ("Pacific/Auckland", "Pacific/Honolulu"):
        for day in (1, 28, 31):
            schedule = Schedule(cron=f"15 0,23 {day} * *", timezone=zone)
            calls = Times(Schedule(cron=fields_in("k8s", printed("k8s", schedule))))
            ticks = list(Times(schedule).between(at("2027-12-15"), at("2027-12-15") + 4 * 366 * DAY))
            assert [tick for tick in ticks if calls.after(tick - 1) != tick] == []
