"""A schedule as a unit for cron, systemd, Kubernetes or GitHub, which calls `pipeline.schedule FILE --once`.

`--once` knows which ticks are due, so a unit may call too often, but never too late. That is what makes these right in
every time zone: a machine's cron reads its lines in the machine's own, and Kubernetes and systemd leave out what falls
into the hour that a change of clocks skips. So the units are in UTC, for summer time and winter time both, and the
crontab line, which knows no UTC, looks at each of the four minutes that may be meant.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from pipeline.scheduling.timing import WEEKDAYS, Cron, Schedule

Kind = Literal["cron", "systemd", "k8s", "github"]

# Time zones differ from UTC by whole quarters of an hour; each week of these years is looked at.
QUARTER = 15
FIRST_WEEK, WEEKS = datetime(2025, 1, 1, tzinfo=UTC), 52 * 13


def unit(kind: Kind, project_file: Path, schedule: Schedule, *, out: Path | None = None, python: str = "") -> str:
    """The text of a unit that works in the file's folder, with `python` (this one); `out` outlives a container."""
    calls = calls_anywhere(schedule) if kind == "cron" else calls_in_utc(schedule)
    file = project_file.resolve()
    kept = os.path.relpath(out or file.parent / "outputs", file.parent)
    place = _Place(file.name, file.parent, kept, python or sys.executable, schedule.name)
    if kind == "cron":
        return _cron(place, calls)
    if kind == "systemd":
        return _systemd(place, calls, catches_up=schedule.missed != "none")
    if kind == "k8s":
        # later than that and it is left to the next call; without a limit Kubernetes gives up after 100 missed calls
        return _k8s(place, calls, deadline_s=3600 if schedule.missed != "none" else max(schedule.grace, 30))
    return _github(place, calls)


class _Place(NamedTuple):
    """Where and what is called, and for which schedule."""

    file: str
    folder: Path
    kept: str  # relative to the folder
    python: str
    schedule: str

    @property
    def name(self) -> str:
        """A name that every scheduler takes."""
        slug = re.sub(r"[^a-z0-9]+", "-", Path(self.file).stem.lower()).strip("-")
        return f"instructloop-{slug}"[:50].rstrip("-")

    @property
    def words(self) -> list[str]:
        return [self.python, "-m", "pipeline.schedule", self.file, "--once"]


# ---------------------------------------------------------------- when to call


def calls_in_utc(schedule: Schedule) -> Cron:
    """Fields in UTC that hit every tick, and little else."""
    if schedule.every is not None:
        return _calls_every(schedule.every)
    assert schedule.cron is not None
    cron = Cron.parse(schedule.cron)
    minutes, hours, days_off = set(), set(), set()
    for offset in _offsets(schedule.timezone):
        for hour in cron.hours:
            for minute in cron.minutes:
                day_off, of_day = divmod(hour * 60 + minute - offset, 24 * 60)
                minutes.add(of_day % 60)
                hours.add(of_day // 60)
                days_off.add(day_off)
    return Cron(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        tuple(sorted(_shifted_days(cron.days, days_off))),
        tuple(sorted({(month + step - 1) % 12 + 1 for month in cron.months for step in {0, *days_off}})),
        tuple(sorted({(weekday + step) % 7 for weekday in cron.weekdays for step in days_off})),
    )


def calls_anywhere(schedule: Schedule) -> Cron:
    """Fields that hit every tick whatever the time zone they are read in."""
    calls = _calls_every(schedule.every) if schedule.every is not None else Cron.parse(schedule.cron or "")
    quarters = {(minute + step) % 60 for minute in calls.minutes for step in range(0, 60, QUARTER)}
    return Cron.parse("* * * * *")._replace(minutes=tuple(sorted(quarters)))


def _calls_every(seconds: int) -> Cron:
    """Fields that hit every multiple of so many seconds since 1970, in UTC."""
    day_s = 24 * 3600
    step = math.gcd(seconds, day_s)  # the ticks of all days are among the multiples of it
    moments = range(0, day_s, step)
    minutes, hours = {moment // 60 % 60 for moment in moments}, {moment // 3600 for moment in moments}
    return Cron.parse("* * * * *")._replace(minutes=tuple(sorted(minutes)), hours=tuple(sorted(hours)))


def _offsets(zone: str) -> set[int]:
    """Minutes that a zone's clocks are ahead of UTC."""
    weeks = (FIRST_WEEK + timedelta(weeks=week) for week in range(WEEKS))
    offsets = (week.astimezone(ZoneInfo(zone)).utcoffset() or timedelta() for week in weeks)
    return {int(offset.total_seconds() // 60) for offset in offsets}


def _shifted_days(days: Iterable[int], steps: Iterable[int]) -> set[int]:
    """Days of the month, each moved by so many; over the end of a month, whichever its length."""
    found: set[int] = set()
    for day in days:
        for step in steps:
            if day + step < 1:
                found |= {28, 29, 30, 31}
            elif step > 0 and day >= 28:
                found |= {1, min(day + step, 31)}
            else:
                found.add(day + step)
    return found


# ---------------------------------------------------------------- how each of them writes it


def _five_fields(calls: Cron) -> str:
    ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    return " ".join(
        "*" if len(numbers) == high - low + 1 else ",".join(map(str, numbers))
        for numbers, (low, high) in zip(calls, ranges, strict=True)
    )


def _cron(place: _Place, calls: Cron) -> str:
    command = f"cd {shlex.quote(str(place.folder))} && {shlex.join(place.words)}"
    escaped = command.replace("%", "\\%")  # to cron a bare % is a new line
    return (
        f"# {place.name}: {place.schedule}. Add these lines with: crontab -e\n"
        "# It looks often, for cron reads this in the machine's own time zone. What is not due is not run, and where\n"
        "# nothing is run nothing is said, so cron mails you of runs alone. A key goes on a line above this one.\n"
        f"{_five_fields(calls)} {escaped}\n"
    )


def _systemd(place: _Place, calls: Cron, *, catches_up: bool) -> str:
    def listed(numbers: tuple[int, ...], all_of_them: int) -> str:
        return "*" if len(numbers) == all_of_them else ",".join(f"{number:02}" for number in numbers)

    weekdays = "" if calls.every_weekday else ",".join(WEEKDAYS[n].capitalize() for n in calls.weekdays) + " "
    date = f"*-{listed(calls.months, 12)}-{listed(calls.days, 31)}"
    at = f"{listed(calls.hours, 24)}:{listed(calls.minutes, 60)}:00"
    command = " ".join(map(_systemd_word, place.words))
    return f"""\
# {place.name}: {place.schedule}. Two files below ~/.config/systemd/user/; then:
#   systemctl --user daemon-reload && systemctl --user enable --now {place.name}.timer
# ---- {place.name}.service
[Unit]
Description=instructloop: regenerate {_specifiers(place.file)}
[Service]
Type=oneshot
WorkingDirectory={_specifiers(str(place.folder))}
ExecStart={command}
# OPENAI_API_KEY=… for a run that needs it, readable by you alone
EnvironmentFile=-%h/.config/instructloop.env
# 3: finished, but short of its target
SuccessExitStatus=3
# the signal to stop goes to the schedule, which hands it to the run
KillMode=mixed
TimeoutStopSec=10min
# ---- {place.name}.timer
[Unit]
Description=instructloop: {_specifiers(place.schedule)}
[Timer]
OnCalendar={weekdays}{date} {at} UTC
AccuracySec=1s
Persistent={"true" if catches_up else "false"}
[Install]
WantedBy=timers.target
"""


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _systemd_word(word: str) -> str:
    escaped = _specifiers(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return escaped if re.fullmatch(r"[\w./:=+,@%-]+", word) else f'"{escaped}"'


def _k8s(place: _Place, calls: Cron, *, deadline_s: int) -> str:
    words = json.dumps(["python", *place.words[1:]])  # JSON is YAML
    return f"""\
# {place.name}: {place.schedule}
# Yours to fill in: the image (the repository in /app, installed), the volume, and the secret with OPENAI_API_KEY.
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {place.name}
spec:
  schedule: {json.dumps(_five_fields(calls))}
  timeZone: Etc/UTC
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: {deadline_s}
  jobTemplate:
    spec:
      backoffLimit: 0 # what was not finished is gone on with by the next call
      template:
        spec:
          restartPolicy: Never
          terminationGracePeriodSeconds: 600
          containers:
            - name: schedule
              image: instructloop:latest
              workingDir: /app
              command: {words}
              envFrom:
                - secretRef: {{name: {place.name}, optional: true}}
              volumeMounts:
                - {{name: kept, mountPath: {json.dumps(str(Path("/app") / place.kept))}}}
          volumes:
            - name: kept # the journal and the versions: they have to outlive the pod
              persistentVolumeClaim: {{claimName: {place.name}}}
"""


def _github(place: _Place, calls: Cron) -> str:
    words = shlex.join(["python", *place.words[1:]])
    key = f"{place.name}-${{{{ github.run_id }}}}-${{{{ github.run_attempt }}}}"
    return f"""\
# {place.name}: {place.schedule}
# Save as .github/workflows/{place.name}.yml; the key goes into the secret OPENAI_API_KEY.
# GitHub may start late or leave out a call; what was missed is caught up by the next. It deletes a cache that nobody
# used for a week, and with it the journal: for anything rarer, or dear, take a runner of your own with a disk.
name: {place.name}
on:
  schedule:
    - cron: {json.dumps(_five_fields(calls))}
  workflow_dispatch:
permissions:
  contents: read
concurrency:
  group: {place.name}
  cancel-in-progress: false
jobs:
  regenerate:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install -c constraints.txt -e ".[docs,kg,dedup,schedule]"
      - uses: actions/cache/restore@v4
        with:
          path: {json.dumps(place.kept)}
          key: {key}
          restore-keys: {place.name}-
      - run: {json.dumps(words + " || [ $? -eq 3 ]")}
        env:
          OPENAI_API_KEY: ${{{{ secrets.OPENAI_API_KEY }}}}
      - uses: actions/cache/save@v4
        if: always()
        with:
          path: {json.dumps(place.kept)}
          key: {key}
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: {place.name}
          path: {json.dumps(place.kept + "/versions")} # whoever may read the repository may read these
"""
