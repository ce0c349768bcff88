"""When the ticks of a schedule come, and which of those that are due will run.

A tick is a number of whole seconds since 1970: an instant, whatever the clocks on the wall say. Five cron fields are
read as crontab(5) reads them, in the schedule's time zone; APScheduler's triggers do the arithmetic. Two things are
ours. Its weekdays begin at Monday, cron's at Sunday. And on the two nights a year on which clocks are changed:

    02:30 does not exist     the tick comes once, as long after midnight as ever: at 03:30 of the new time
    02:30 comes twice        the tick comes once, the first time; only a schedule that runs in every hour runs in both
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.errors import UsageError
from pipeline.extras import need

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

DAY = 86400

# ---------------------------------------------------------------- the [schedule] table

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(value: object) -> object:
    """ "1h30m" as 5400; a number is seconds already."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(\d+[smhdw])+", value):
        raise ValueError("not a time such as 90s, 15m, 6h, 1d or 1h30m")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", value))


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError) as error:  # not there, no name at all, a folder of names
        raise ValueError("no time zone of that name; one is Europe/Berlin") from error
    return value


def _five_fields(value: str) -> str:
    Cron.parse(value)
    return " ".join(value.split())


def _words(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not (shlex.split(value) if isinstance(value, str) else value):
        raise ValueError("an empty command")
    return value


Seconds = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
# A command, as words or as one line for no shell; a URL; or $NAME, a variable that holds a URL.
Hook = Annotated[str | tuple[str, ...], AfterValidator(_words)]


class Schedule(BaseModel):
    """The [schedule] table of a project file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cron: Annotated[str, AfterValidator(_five_fields)] | None = None  # "30 2 * * mon-fri", or @daily and the like
    every: Annotated[int, BeforeValidator(_seconds), Field(ge=60, multiple_of=60)] | None = (
        None  # "6h", counted from 1970 in UTC
    )
    timezone: Annotated[str, AfterValidator(_known_zone)] = "UTC"  # of the cron fields
    jitter: Seconds = 0  # each tick starts up to this much later, always the same for the same tick
    missed: Literal["latest", "all", "none"] = "latest"  # which ticks run that came while nobody looked
    grace: Seconds = 300  # with missed = "none": how late a tick may start all the same
    overlap: Literal["skip", "queue"] = "skip"  # what becomes of a tick that comes while the last one still runs
    on_success: Hook | None = None  # a command or a webhook
    on_failure: Hook | None = None
    on_empty: Hook | None = None  # it ran, and there was nothing new

    @model_validator(mode="after")
    def _one_rule(self) -> Schedule:
        if (self.cron is None) == (self.every is None):
            raise ValueError("takes either cron or every")
        return self

    @property
    def name(self) -> str:
        """What its ticks are kept under. Another rule is another schedule: it has missed nothing yet."""
        return f"{self.cron} {self.timezone}" if self.cron is not None else f"every {self.every}s"


# ---------------------------------------------------------------- five fields

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")  # cron's 0 … 6; 7 is Sunday again
_WEEKDAYS = {name: number for number, name in enumerate(WEEKDAYS)}
_MONTHS = {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_NO_NAMES: Mapping[str, int] = {}


class Cron(NamedTuple):
    """Five fields, each as the numbers that it stands for."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]  # 0 is Sunday

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Raises ValueError for what is no cron expression, or one that never comes."""
        fields = _MACROS.get(text.strip(), text).lower().split()
        if len(fields) != 5:
            raise ValueError(f"has {len(fields)} fields; cron has five: minute, hour, day, month, weekday")
        minutes, hours, days, months, weekdays = fields
        cron = cls(
            _numbers(minutes, 0, 59),
            _numbers(hours, 0, 23),
            _numbers(days, 1, 31),
            _numbers(months, 1, 12, _MONTHS),
            tuple(sorted({number % 7 for number in _numbers(weekdays, 0, 7, _WEEKDAYS)})),
        )
        if not (cron.every_day or cron.every_weekday):
            raise ValueError("names days of the month and of the week: cron reads that as 'or', others as 'and'")
        longest = max(29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31 for month in cron.months)
        if cron.days[0] > longest:
            raise ValueError("never comes: no such month has such a day")
        return cron

    @property
    def every_hour(self) -> bool:
        return len(self.hours) == 24

    @property
    def every_day(self) -> bool:
        return len(self.days) == 31

    @property
    def every_weekday(self) -> bool:
        return len(self.weekdays) == 7


def _numbers(text: str, low: int, high: int, names: Mapping[str, int] = _NO_NAMES) -> tuple[int, ...]:
    """ "1-5,20-30/5" as (1, 2, 3, 4, 5, 20, 25, 30)."""
    found: set[int] = set()
    for part in text.split(","):
        read = re.fullmatch(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        if read is None:
            raise ValueError(f"{part!r} is no part of a cron field")
        star, first, last, step = read.groups()
        if star:
            start, end = low, min(high, 6) if names is _WEEKDAYS else high
        else:
            start = _number(first, names)
            end = _number(last, names) if last else high if step else start
            if names is _WEEKDAYS and end == 0 < start:  # fri-sun
                end = 7
        stride = int(step or 1)
        if not (low <= start <= end <= high and stride > 0):
            raise ValueError(f"{part!r} does not lie in {low}-{high}")
        found.update(range(start, end + 1, stride))
    return tuple(sorted(found))


def _number(text: str, names: Mapping[str, int]) -> int:
    if text in names:
        return names[text]
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no part of a cron field")
    return int(text)


# ---------------------------------------------------------------- when ticks come


class Times:
    """The ticks of one schedule. All moments are seconds since 1970."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.zone = ZoneInfo(schedule.timezone)
        self._cron = None if schedule.cron is None else Cron.parse(schedule.cron)
        self._trigger = _trigger(schedule, self._cron)

    def after(self, moment: float) -> int:
        """The first tick after a moment."""
        whole = math.floor(moment)
        while True:
            # what the trigger is told is the earliest it may answer, to the second
            found = self._trigger.get_next_fire_time(None, datetime.fromtimestamp(whole + 1, UTC))
            if found is None:
                raise UsageError(f"The schedule {self.schedule.name!r} has no tick after {self.shown(moment)}.")
            whole = int(found.timestamp())
            if not (found.fold and self._cron is not None and not self._cron.every_hour):
                return whole

    def between(self, after: float, until: float) -> Iterator[int]:
        """The ticks after one moment, up to and with another."""
        while (tick := self.after(after)) <= until:
            yield tick
            after = tick

    def last(self, until: float) -> int | None:
        """The latest tick up to a moment; None where none came in the last five years."""
        for days in (1 / 24, 1, 7, 31, 366, 5 * 366):
            if found := list(self.between(until - days * DAY, until)):
                return found[-1]
        return None

    def due(self, tick: int) -> float:
        """When a tick may start: up to the jitter after it, and before the next one, so that ticks stay in order.

        The delay is drawn from (schedule, tick): every process finds the same.
        """
        most = min(self.schedule.jitter, self.after(tick) - tick) if self.schedule.jitter else 0
        drawn = hashlib.sha256(f"{self.schedule.name} {tick}".encode()).digest()[:6]
        return tick + most * (int.from_bytes(drawn) / 2**48)

    def shown(self, moment: float) -> str:
        """A moment as people of the schedule's time zone write it."""
        return datetime.fromtimestamp(moment, self.zone).isoformat(timespec="seconds")


NO_SCHEDULE = 'has no [schedule]. A daily one holds: cron = "30 2 * * *".'  # of a project file


def _trigger(schedule: Schedule, cron: Cron | None) -> BaseTrigger:
    need("schedule", "A schedule", "apscheduler")
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.interval import IntervalTrigger

    if cron is None:
        return IntervalTrigger(seconds=schedule.every or 0, start_date=datetime.fromtimestamp(0, UTC), timezone=UTC)
    return CronTrigger(
        minute=_listed(cron.minutes),
        hour=_listed(cron.hours),
        day=_listed(cron.days),
        month=_listed(cron.months),
        day_of_week=",".join(WEEKDAYS[n] for n in cron.weekdays),
        second=0,
        timezone=ZoneInfo(schedule.timezone),
    )


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


# ---------------------------------------------------------------- which of the due ticks run


@dataclass(frozen=True)
class Decision:
    """Of the ticks that are due: the one to run now, and those that never will, each missed or an overlap."""

    run: int | None = None
    passed: Mapping[int, str] = field(default_factory=dict)


def decide(schedule: Schedule, due: Mapping[int, float], runs: Sequence[tuple[float, float]], now: float) -> Decision:
    """`due` are ticks without a row yet, in order, and when each was due; `runs` when runs began and ended.

    A tick that became due during a run overlapped it; any other that was not started at once was missed.
    """
    overlapped = {tick for tick, at in due.items() if any(began < at <= ended for began, ended in runs)}
    wanted = [tick for tick in due if schedule.overlap == "queue" or tick not in overlapped]
    if schedule.missed == "none":
        wanted = [tick for tick in wanted if tick in overlapped or now - due[tick] <= schedule.grace]
    if schedule.missed != "all":
        wanted = wanted[-1:]
    run = wanted[0] if wanted else None
    # What comes after the one that runs is decided when that has ended: so no tick is ever passed by unseen.
    passed = [tick for tick in due if run is None or tick < run]
    return Decision(run, {tick: "overlap" if tick in overlapped else "missed" for tick in passed})
