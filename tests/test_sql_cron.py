"""Cron expressions: what they mean, beside croniter over random ones, and on the days on which clocks are set; what is refused, and how."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from croniter import CroniterBadDateError, croniter
from fix_effort import EFFORT
from fix_sql import Session
from hypothesis import HealthCheck, assume, example, given, reject, settings
from hypothesis import strategies as st

from bridge.errors import InvalidArgumentError
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

# Northern, southern and half-hour changes, at midnight, against the sun, without any, and a day that was left out.
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Africa/Cairo", "Europe/Dublin",
    "Asia/Kolkata", "America/Nuuk", "Pacific/Apia", "America/St_Johns", "Africa/Casablanca",
]  # fmt: skip
BOUNDS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
NAMES = {
    3: ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    4: ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}
local = datetime.fromisoformat  # a time by some clock on the wall
LONG_AGO = local("0001-01-01")
EXAMPLES = settings(max_examples=50 * EFFORT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sql(databases: Databases, template: str) -> Iterator[Session]:
    """A database for all these tests: they read only."""
    name = databases.create(template)
    session = Session(databases.server.dsn_of(name))
    yield session
    session.connection.close()
    databases.drop(name)


def runs(sql: Session, cron: str, zone: str, after: datetime, n: int = 12) -> list[datetime]:
    return [row[0].astimezone(UTC) for row in sql.rows("select bridge.next_runs(%s, %s, %s, %s)", cron, zone, n, after)]


def words(number: int, field: int) -> st.SearchStrategy[str]:
    return st.sampled_from([str(number), NAMES[field][number - BOUNDS[field][0]].upper()]) if field in NAMES else st.just(str(number))


@st.composite
def parts(draw: st.DrawFn, field: int) -> str:
    low, high = BOUNDS[field]
    kind = draw(st.sampled_from(["number", "range", "step", "from", "star"]))
    start = draw(st.integers(low, high))
    if kind == "number":
        return draw(words(start, field))
    step = draw(st.integers(1, max(1, (high - low) // 2)))
    if kind == "star":
        return f"*/{step}"
    if kind == "from":
        return f"{start}/{step}"
    end = draw(st.integers(start, high))
    span = f"{draw(words(start, field))}-{draw(words(end, field))}" if start < end else str(start)
    return f"{span}/{step}" if kind == "step" and start < end else span


def fields(field: int) -> st.SearchStrategy[str]:
    return st.one_of(st.just("*"), st.lists(parts(field), min_size=1, max_size=3).map(",".join))


days = st.one_of(fields(2), st.sampled_from(["L", "l", "1,L", "15,L"]))
crons = st.tuples(fields(0), fields(1), days, fields(3), fields(4)).map(" ".join)
moments = st.datetimes(local("2012-01-01"), local("2037-01-01")).map(lambda moment: moment.replace(tzinfo=UTC, microsecond=0))


def is_fixed(cron: str) -> bool:
    minute, hour, *_ = cron.split()
    return not minute.startswith("*") and not hour.startswith("*")


def is_comparable(cron: str) -> bool:
    """Whether croniter means the same: it takes a list of all days for a star; cron goes by the star as it is written."""
    days = croniter(cron).expanded[2], croniter(cron).expanded[4]
    return all(("*" in meant) == text.startswith("*") or meant != ["*"] for meant, text in zip(days, cron.split()[2::2], strict=True))


def by_croniter(cron: str, zone: str, after: datetime, n: int) -> list[datetime]:
    theirs = croniter(cron, after.astimezone(ZoneInfo(zone)), ret_type=datetime, implement_cron_bug=True, max_years_between_matches=45)
    found: list[datetime] = []
    while len(found) < n:
        moment = theirs.get_next()
        # Its one difference: it runs a fixed time twice when the clock passes it twice.
        if not (is_fixed(cron) and moment.fold):
            found.append(moment.astimezone(UTC))
    return found


def is_calm(zone: str, moment: datetime) -> bool:
    """Whether no clock is set within some hours of a moment."""
    hours = (moment + timedelta(hours=hour) for hour in (-4, 4))
    return len({hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours}) == 1


@EXAMPLES
@given(cron=crons, after=moments)
def test_the_next_runs_are_those_of_croniter(sql: Session, cron: str, after: datetime) -> None:
    assume(is_comparable(cron))
    try:
        expected = by_croniter(cron, "UTC", after, 12)
    except CroniterBadDateError:
        with pytest.raises(InvalidArgumentError, match="no such day"), translated():
            runs(sql, cron, "UTC", after)
        return
    assert runs(sql, cron, "UTC", after) == expected


def local_minutes(zone: str, day: datetime) -> Iterator[datetime]:
    """Every minute that passes from some hours before one local midnight to some hours after the next."""
    start = day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) - timedelta(hours=3)
    for minute in range(30 * 60):
        yield (start + timedelta(minutes=minute)).astimezone(ZoneInfo(zone))


def by_the_rules(cron: str, zone: str, day: datetime) -> list[datetime]:
    """The runs of one local day as the rules say: of a fixed time the first minute in which the clock has come to it or past it."""
    minutes, hours = (croniter(f"{' '.join(cron.split()[:2])} * * *").expanded[place] for place in (0, 1))
    minutes, hours = (list(range(60)) if minutes == ["*"] else minutes), (list(range(24)) if hours == ["*"] else hours)
    found, reached = [], LONG_AGO
    for at in local_minutes(zone, day):
        shown = at.replace(tzinfo=None)
        step = [shown] if not is_fixed(cron) else between(reached, shown)
        if any(time.date() == day.date() and time.hour in hours and time.minute in minutes for time in step):
            found.append(at.astimezone(UTC))
        reached = max(reached, shown)
    return found


def between(before: datetime, shown: datetime) -> list[datetime]:
    """The times that the clock comes to, or jumps over, in this minute; none that it shows again."""
    first = max(before + timedelta(minutes=1), shown - timedelta(days=1)) if before > LONG_AGO else shown
    return [first + timedelta(minutes=minute) for minute in range(int((shown - first) / timedelta(minutes=1)) + 1)]


CHANGE_DAYS = [
    ("Europe/Berlin", local("2026-03-29")), ("Europe/Berlin", local("2026-10-25")), ("America/New_York", local("2025-03-09")),
    ("America/New_York", local("2025-11-02")), ("Australia/Lord_Howe", local("2025-04-06")), ("Australia/Lord_Howe", local("2025-10-05")),
    ("America/Santiago", local("2025-04-05")), ("America/Santiago", local("2025-09-07")), ("Africa/Cairo", local("2025-04-25")),
    ("Africa/Cairo", local("2025-10-30")), ("America/Nuuk", local("2025-03-29")), ("America/Nuuk", local("2025-10-25")),
    ("Europe/Dublin", local("2025-10-26")), ("Africa/Casablanca", local("2025-02-23")),
]  # fmt: skip
times = st.tuples(fields(0), fields(1)).map(" ".join).map(lambda text: f"{text} * * *")


@settings(EXAMPLES, max_examples=25 * EFFORT)
@example(cron="1 23 * * *", change=("America/Nuuk", local("2025-03-29")), offset=1)
@given(cron=times, change=st.sampled_from(CHANGE_DAYS), offset=st.integers(-1, 1))
def test_on_days_on_which_the_clock_is_set_the_rules_hold(sql: Session, cron: str, change: tuple[str, datetime], offset: int) -> None:
    zone, day = change[0], change[1] + timedelta(days=offset)
    # What a gap at the end of the day before jumps over runs at this day's first minute.
    days = [day + timedelta(days=number) for number in (-1, 0, 1)]
    expected = sorted({moment for one in days for moment in by_the_rules(cron, zone, one)})
    after = by_the_rules("0 0 * * *", zone, day)[0] - timedelta(seconds=1)
    expected = [moment for moment in expected if moment > after][:150]
    assert runs(sql, cron, zone, after, max(1, len(expected)))[: len(expected)] == expected


@EXAMPLES
@given(cron=crons, zone=st.sampled_from(ZONES), after=moments)
def test_in_any_zone_the_next_runs_are_those_of_croniter(sql: Session, cron: str, zone: str, after: datetime) -> None:
    assume(is_comparable(cron))
    try:
        expected = by_croniter(cron, zone, after, 8)
    except CroniterBadDateError:
        with pytest.raises(InvalidArgumentError, match="no such day"), translated():
            runs(sql, cron, zone, after)
        return
    found = runs(sql, cron, zone, after, 8)
    # Patterns over hours follow the clock as it is; croniter lets only a bare * do so. That concerns the hours around a change alone.
    if not is_fixed(cron) and cron.split()[1] != "*":
        end = min(found[-1], expected[-1])
        found, expected = ([moment for moment in some if moment <= end and is_calm(zone, moment)] for some in (found, expected))
    assert found == expected


@EXAMPLES
@given(cron=crons, zone=st.sampled_from(ZONES), after=moments)
def test_the_last_slot_up_to_a_moment_is_the_one_whose_next_is_later(sql: Session, cron: str, zone: str, after: datetime) -> None:
    try:
        last = sql.one("select bridge.last_slot(bridge.parse_cron(%s), %s, %s)", cron, zone, after)
    except psycopg.Error:
        reject()  # a day that its months do not have
    assert last <= after
    (following,) = runs(sql, cron, zone, last, 1)
    assert following > after
    assert runs(sql, cron, zone, last - timedelta(microseconds=1), 1) == [last.astimezone(UTC)]


spaces = st.text(" \t", min_size=1, max_size=3)


@EXAMPLES
@given(cron=crons, gaps=st.tuples(spaces, spaces, spaces, spaces, spaces, spaces), after=moments)
def test_spaces_and_capitals_mean_nothing(sql: Session, cron: str, gaps: tuple[str, ...], after: datetime) -> None:
    written = "".join(gap + field for gap, field in zip(gaps, cron.swapcase().split(), strict=False)) + gaps[5]
    try:
        expected = runs(sql, cron, "UTC", after, 3)
    except psycopg.Error:
        reject()  # a day that its months do not have
    assert runs(sql, written, "UTC", after, 3) == expected


UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


@EXAMPLES
@given(number=st.integers(1, 500), unit=st.sampled_from([*UNITS]), every=st.sampled_from(["", "every "]), plural=st.booleans(),
       after=moments)  # fmt: skip
def test_intervals_are_counted_from_the_epoch(sql: Session, number: int, unit: str, every: str, *, plural: bool, after: datetime) -> None:
    seconds = number * UNITS[unit]
    first = (int(after.timestamp()) // seconds + 1) * seconds
    expected = [datetime.fromtimestamp(first + count * seconds, UTC) for count in range(3)]
    assert runs(sql, f"{every}{number} {unit}{'s' * plural}", "Asia/Kolkata", after, 3) == expected


ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * sun", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 jan *", "@annually": "0 0 1 1 *",
}  # fmt: skip


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_five_fields(sql: Session, alias: str) -> None:
    for zone in ZONES:
        after = datetime(2026, 3, 1, tzinfo=UTC)
        assert runs(sql, alias, zone, after, 40) == runs(sql, ALIASES[alias], zone, after, 40)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("30 2 * * *", local("2026-03-28 12:00"), ["03-29 03:00+02:00", "03-30 02:30+02:00"]),
        ("30 2 * * *", local("2026-10-24 12:00"), ["10-25 02:30+02:00", "10-26 02:30+01:00"]),
        ("*/30 * * * *", local("2026-03-29 01:15"), ["03-29 01:30+01:00", "03-29 03:00+02:00"]),
        ("*/30 * * * *", local("2026-10-25 02:15"), ["10-25 02:30+02:00", "10-25 02:00+01:00", "10-25 02:30+01:00"]),
        ("15,45 2 * * *", local("2026-03-29"), ["03-29 03:00+02:00", "03-30 02:15+02:00"]),
        ("0 0 L * *", local("2026-01-15"), ["01-31 00:00+01:00", "02-28 00:00+01:00", "03-31 00:00+02:00"]),
        ("0 9 1-7 * &mon", local("2026-01-01"), ["01-05 09:00+01:00", "02-02 09:00+01:00", "03-02 09:00+01:00"]),
        ("0 9 1 * fri-sun", local("2026-01-01"), ["01-01 09:00+01:00", "01-02 09:00+01:00", "01-03 09:00+01:00", "01-04 09:00+01:00"]),
        ("@weekly", local("2026-01-01"), ["01-04 00:00+01:00", "01-11 00:00+01:00"]),
        ("  @Monthly ", local("2026-01-01 01:00"), ["02-01 00:00+01:00", "03-01 00:00+01:00"]),
        ("every 12 hours", local("2026-03-29"), ["03-29 01:00+01:00", "03-29 14:00+02:00"]),
        ("90 seconds", local("2026-01-01"), ["01-01 00:01+01:00"]),
        ("every day", local("2026-01-01"), ["01-01 01:00+01:00", "01-02 01:00+01:00"]),
    ],
)  # fmt: skip
def test_what_an_expression_means_in_berlin(sql: Session, cron: str, after: datetime, expected: list[str]) -> None:
    found = runs(sql, cron, "Europe/Berlin", after.replace(tzinfo=BERLIN), len(expected))
    assert [moment.astimezone(BERLIN).isoformat(" ", "minutes")[5:] for moment in found] == expected


def test_a_leap_day_on_a_weekday_is_found_decades_ahead(sql: Session) -> None:
    after = datetime(2072, 3, 1, tzinfo=UTC)
    assert runs(sql, "0 0 29 2 &mon", "UTC", after, 1) == [datetime(2112, 2, 29, tzinfo=UTC)]


def refusal(sql: Session, cron: Any, zone: str = "UTC") -> str:
    with pytest.raises(InvalidArgumentError) as caught, translated():
        sql.rows("select bridge.next_runs(%s, %s)", cron, zone)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("61 * * * *", "cron '61 * * * *', character 1: minute 61 does not exist: give 0 to 59"),
        ("0 6 * * mom-fri", "cron '0 6 * * mom-fri', character 9: 'mom' is no day of the week: did you mean mon?"),
        ("0 6 * j *", "character 7: 'j' is no month: did you mean jan or jun or jul?"),
        ("0  22-4 * * *", "character 4: the range 22-4 runs backwards: write 22-23,0-4"),
        ("0 1,,3 * * *", "character 5: an element is empty"),
        ("*/0 * * * *", "character 3: steps of 0 lead nowhere"),
        ("0 0 ? * *", "character 5: '?' cannot be read: write * for any"),
        ("0 0 * * 5#2", "character 9: '5#2' cannot be read: only L, the last day of the month, is known"),
        ("0 0 31 2,4 *", "character 5: these months have no such day: write L for the last day of the month"),
        ("0 0 6 * * *", "there are 6 fields: give five: minute, hour, day, month, weekday; seconds are no field"),
        ("@reboot", "@reboot is not known: give @hourly"),
        ("every fortnight", 'character 7: no interval: write "every 15 minutes"'),
        ("every 0 minutes", "character 7: an interval of 0 never ends"),
        ("0 0 * * 8", "day of the week 8 does not exist: give 0 to 7"),
        ("  ", "cron is empty"),
        (None, "cron is null"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_character_with_a_suggestion(sql: Session, cron: Any, said: str) -> None:
    assert said in refusal(sql, cron)


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("Berlin", "timezone 'Berlin' is not known: did you mean Europe/Berlin?"),
        ("Europe/Berlni", "did you mean Europe/Berlin?"),
        ("America/New York", "did you mean America/New_York?"),
        ("UTC+3", "timezone 'UTC+3' is not known"),
        ("", "timezone '' is not known: give a name as Europe/Berlin or UTC"),
    ],
)
def test_a_zone_that_is_not_known_is_refused_with_one_that_is(sql: Session, zone: str, said: str) -> None:
    assert said in refusal(sql, "@daily", zone)


def test_a_preview_is_for_everyone_who_may_use_the_queue(sql: Session) -> None:
    for role in ("bridge_producer", "bridge_worker", "bridge_operator", "bridge_viewer"):
        with sql.connection.transaction(force_rollback=True):
            sql.do(f"set local role {role}")
            assert len(sql.rows("select bridge.next_runs('@hourly')")) == 5
