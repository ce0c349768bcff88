"""When ticks come: five fields, periods, time zones, clocks that are changed, jitter; and which of them run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.scheduling.timing import Cron, Decision, Schedule, Times, decide
from tests.fake_schedule import DAY, HOUR, at, shown

BERLIN = "Europe/Berlin"


def ticks(schedule: Schedule, after: str, until: str, zone: str = "UTC") -> list[str]:
    times = Times(schedule)
    return shown(list(times.between(at(after, zone), at(until, zone))), zone)


# ---------------------------------------------------------------- five fields

HITS: dict[str, list[str]] = {  # of January 2027, which begins on a Friday
    "30 2 * * 1": ["01-04 02:30", "01-11 02:30", "01-18 02:30", "01-25 02:30"],  # 1 is Monday, as in cron
    "0 12 * * 0": ["01-03 12:00", "01-10 12:00", "01-17 12:00", "01-24 12:00", "01-31 12:00"],
    "0 12 * * 7": ["01-03 12:00", "01-10 12:00", "01-17 12:00", "01-24 12:00", "01-31 12:00"],
    "0 0 * * SUN": ["01-03 00:00", "01-10 00:00", "01-17 00:00", "01-24 00:00", "01-31 00:00"],
    "0 0 1,15 jan *": ["01-01 00:00", "01-15 00:00"],
    "59 23 31 * *": ["01-31 23:59"],
    "0 0 29 2 *": [],
    "0 */12 1-2 * *": ["01-01 00:00", "01-01 12:00", "01-02 00:00", "01-02 12:00"],
    "5/25 0 10 1 *": ["01-10 00:05", "01-10 00:30", "01-10 00:55"],
    "@monthly": ["01-01 00:00"],
    " 0  0 4-6/2 * * ": ["01-04 00:00", "01-06 00:00"],
    "0 0 * * fri-sun": [f"01-{day:02} 00:00" for day in (1, 2, 3, 8, 9, 10, 15, 16, 17, 22, 23, 24, 29, 30, 31)],
}


@pytest.mark.parametrize("cron", HITS)
def test_fields_are_read_as_crontab_reads_them(cron: str) -> None:
    assert ticks(Schedule(cron=cron), "2026-12-31 23:59", "2027-01-31 23:59") == HITS[cron]


numbers = st.integers(0, 59)
field = st.one_of(
    st.just("*"),
    st.integers(1, 23).map("*/{}".format),  # a larger step is one number; APScheduler refuses it
    numbers.map(str),
    st.lists(numbers, min_size=1, max_size=4).map(lambda found: ",".join(map(str, found))),
    st.tuples(numbers, numbers).map(lambda ends: f"{min(ends)}-{max(ends)}"),
)


@settings(max_examples=60, deadline=None)
@given(minute=field, hour=field, start=st.integers(0, 2**31))
def test_minutes_and_hours_mean_what_apscheduler_takes_them_for(minute: str, hour: str, start: int) -> None:
    text = f"{minute} {hour} * * *"
    try:
        theirs = CronTrigger.from_crontab(text, timezone=UTC)
    except ValueError:
        with pytest.raises(ValidationError):
            Schedule(cron=text)
        return
    first = theirs.get_next_fire_time(None, datetime.fromtimestamp(start + 1, UTC))
    assert Times(Schedule(cron=text)).after(start) == first.timestamp()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "four fields": ({"cron": "0 0 * *"}, "has 4 fields"),
    "a minute too many": ({"cron": "60 0 * * *"}, "'60' does not lie in 0-59"),
    "a range backwards": ({"cron": "0 5-3 * * *"}, "'5-3' does not lie in 0-23"),
    "no step": ({"cron": "*/0 * * * *"}, "'*/0' does not lie"),
    "words": ({"cron": "often * * * *"}, "'often' is no part of a cron field"),
    "holes": ({"cron": "1,,2 * * * *"}, "'' is no part of a cron field"),
    "30 February": ({"cron": "0 0 30 2 *"}, "never comes"),
    "31 April or June": ({"cron": "0 0 31 4,6 *"}, "never comes"),
    "days twice": ({"cron": "0 0 13 * fri"}, "cron reads that as 'or'"),
    "nothing": ({}, "either cron or every"),
    "both": ({"cron": "@daily", "every": "1d"}, "either cron or every"),
    "too often": ({"every": "30s"}, "greater than or equal to 60"),
    "half minutes": ({"every": "90s"}, "multiple of 60"),
    "no period": ({"every": "1 day"}, "not a time such as 90s"),
    "no zone": ({"cron": "@daily", "timezone": "Europe/Atlantis"}, "no time zone of that name"),
    "half a zone": ({"cron": "@daily", "timezone": "Europe"}, "no time zone of that name"),
    "a path": ({"cron": "@daily", "timezone": "../../etc/passwd"}, "no time zone of that name"),
    "negative": ({"cron": "@daily", "jitter": -1}, "greater than or equal to 0"),
    "an empty hook": ({"cron": "@daily", "on_empty": " "}, "an empty command"),
    "half a quotation": ({"cron": "@daily", "on_empty": "echo 'a"}, "No closing quotation"),
    "no policy": ({"cron": "@daily", "missed": "some"}, "'latest', 'all' or 'none'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_schedule_is_refused(case: str) -> None:
    given_, said = WRONG[case]
    with pytest.raises(ValidationError, match=re.escape(said)):
        Schedule.model_validate(given_)


def test_times_are_numbers_of_seconds_or_have_units() -> None:
    schedule = Schedule.model_validate({"every": "1d12h", "jitter": "90s", "grace": 7})
    assert (schedule.every, schedule.jitter, schedule.grace) == (36 * HOUR, 90, 7)


# ---------------------------------------------------------------- time zones, and the nights on which clocks change


def test_a_time_that_does_not_exist_comes_once_an_hour_later() -> None:
    found = ticks(Schedule(cron="30 2 * * *", timezone=BERLIN), "2026-03-28 12:00", "2026-03-31 12:00", BERLIN)
    assert found == ["03-29 03:30", "03-30 02:30", "03-31 02:30"]


def test_a_time_that_comes_twice_counts_once() -> None:
    schedule = Schedule(cron="30 2 * * *", timezone=BERLIN)
    assert ticks(schedule, "2026-10-24 12:00", "2026-10-27 12:00", BERLIN) == [
        "10-25 02:30", "10-26 02:30", "10-27 02:30"
    ]  # fmt: skip
    assert Times(schedule).after(at("2026-10-24 12:00")) == at("2026-10-25 02:30", BERLIN, fold=0)


def test_what_runs_every_hour_runs_every_hour_on_those_nights_too() -> None:
    times = Times(Schedule(cron="15 * * * *", timezone=BERLIN))
    for night in ("2026-03-28 20:00", "2026-10-24 20:00"):
        found = list(times.between(at(night), at(night) + 12 * HOUR))
        assert [later - earlier for earlier, later in itertools.pairwise(found)] == [HOUR] * 11


def test_half_an_hour_is_changed_in_some_places() -> None:
    schedule = Schedule(cron="15 2 * * *", timezone="Australia/Lord_Howe")
    assert len(ticks(schedule, "2026-09-30 12:00", "2026-10-10 12:00")) == 10
    assert len(ticks(schedule, "2026-03-30 12:00", "2026-04-09 12:00")) == 10


@pytest.mark.parametrize("zone", ["UTC", BERLIN, "America/New_York", "Asia/Kathmandu", "Africa/Casablanca"])
def test_a_daily_tick_comes_once_on_every_day_of_four_years(zone: str) -> None:
    times = Times(Schedule(cron="30 2 * * *", timezone=zone))
    found = list(times.between(at("2026-01-01", zone), at("2030-01-01", zone)))
    assert [text[:5] for text in shown([*found], zone)] == shown_days(zone)


def shown_days(zone: str) -> list[str]:
    noons = [at("2026-01-01 12:00") + day * DAY for day in range(1461)]
    return [text[:5] for text in shown(noons)]


def test_a_period_is_counted_from_1970_whatever_the_zone() -> None:
    for zone in ("UTC", BERLIN):
        found = list(Times(Schedule.model_validate({"every": "7h", "timezone": zone})).between(0, 3 * 7 * HOUR))
        assert found == [7 * HOUR, 14 * HOUR, 21 * HOUR]


def test_the_last_tick_is_found_however_long_ago() -> None:
    assert Times(Schedule(cron="0 0 29 2 *")).last(at("2027-06-01")) == at("2024-02-29")
    assert Times(Schedule(cron="* * * * *")).last(90) == 60
    assert Times(Schedule(cron="@daily")).last(DAY) == DAY


# ---------------------------------------------------------------- jitter


def test_jitter_is_bounded_and_the_same_for_the_same_tick() -> None:
    plain = Schedule(cron="0 * * * *")
    jittery = plain.model_copy(update={"jitter": 600})
    times, other = Times(jittery), Times(jittery)
    found = list(times.between(0, 200 * HOUR))
    delays = [times.due(tick) - tick for tick in found]
    assert delays == [other.due(tick) - tick for tick in found]
    assert all(0 <= delay < 600 for delay in delays)
    assert len(set(delays)) == len(delays)
    assert min(delays) < 60 < 540 < max(delays)  # spread over all of it
    assert [Times(plain).due(tick) for tick in found] == found


def test_another_schedule_draws_other_delays() -> None:
    one, other = (Times(Schedule(cron="0 0 * * *", timezone=zone, jitter=600)) for zone in ("UTC", "Etc/UTC"))
    assert one.due(DAY) != other.due(DAY)


def test_jitter_never_reaches_the_next_tick() -> None:
    times = Times(Schedule.model_validate({"every": "1m", "jitter": "1h"}))
    found = list(times.between(0, 100 * 60))
    assert all(tick <= times.due(tick) < tick + 60 for tick in found)


# ---------------------------------------------------------------- which of the due ticks run

H = HOUR
NO_RUNS: list[tuple[float, float]] = []
RULES: list[tuple[dict[str, Any], list[int], list[tuple[float, float]], float, Decision]] = [
    # missed, with no run in between: of 1, 2 and 3 o'clock at half past three
    ({"missed": "latest"}, [H, 2 * H, 3 * H], NO_RUNS, 3.5 * H, Decision(3 * H, {H: "missed", 2 * H: "missed"})),
    ({"missed": "all"}, [H, 2 * H, 3 * H], NO_RUNS, 3.5 * H, Decision(H)),
    ({"missed": "none"}, [H, 2 * H], NO_RUNS, 3.5 * H, Decision(None, {H: "missed", 2 * H: "missed"})),
    ({"missed": "none", "grace": 1800}, [2 * H, 3 * H], NO_RUNS, 3.5 * H, Decision(3 * H, {2 * H: "missed"})),
    ({"missed": "none"}, [3 * H], NO_RUNS, 3 * H + 300, Decision(3 * H)),
    ({"missed": "none"}, [3 * H], NO_RUNS, 3 * H + 301, Decision(None, {3 * H: "missed"})),
    # a run from one to half past three
    ({}, [2 * H, 3 * H], [(H, 3.5 * H)], 3.5 * H, Decision(None, {2 * H: "overlap", 3 * H: "overlap"})),
    ({"overlap": "queue"}, [2 * H, 3 * H], [(H, 3.5 * H)], 3.5 * H, Decision(3 * H, {2 * H: "overlap"})),
    ({"overlap": "queue", "missed": "all"}, [2 * H, 3 * H], [(H, 3.5 * H)], 3.5 * H, Decision(2 * H)),
    ({"overlap": "queue", "missed": "none"}, [2 * H, 3 * H], [(H, 4 * H)], 4 * H, Decision(3 * H, {2 * H: "overlap"})),
    # one was missed before the run began, one after it had ended
    ({}, [H, 2 * H], [(1.5 * H, 3.5 * H)], 3.5 * H, Decision(H)),
    ({"missed": "all"}, [H, 2 * H, 3 * H], [(1.5 * H, 2.5 * H)], 3.5 * H, Decision(H)),
    ({}, [2 * H, 3 * H], [(H, 2.5 * H)], 3.5 * H, Decision(3 * H, {2 * H: "overlap"})),
    ({}, [2 * H], [(H, 2 * H)], 2 * H, Decision(None, {2 * H: "overlap"})),
    ({}, [2 * H], [(2 * H, 3 * H)], 3 * H, Decision(2 * H)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "due", "runs", "now", "decision"), RULES)
def test_which_ticks_run(
    rule: Mapping[str, Any], due: list[int], runs: list[tuple[float, float]], now: float, decision: Decision
) -> None:
    schedule = Schedule(cron="@hourly", **rule)
    assert decide(schedule, {tick: float(tick) for tick in due}, runs, now) == decision


def test_cron_fields_are_numbers_and_sunday_is_nought() -> None:
    assert Cron.parse("0 0 * * 5-7") == Cron.parse("0 0 * * sun,sat,fri")
    assert Cron.parse("0 0 * * 5-7").weekdays == (0, 5, 6)
