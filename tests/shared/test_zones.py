import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scout_shared.errors import ConfigError
from scout_shared.zones import UNKNOWN_DAY, BusinessCalendar, day_to_iso

ZONES = [
    "Asia/Manila",
    "Asia/Kathmandu",  # +05:45
    "Pacific/Chatham",  # +12:45 and daylight saving
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "America/St_Johns",  # changed its clocks one minute after midnight until 2011
    "America/Havana",  # changes its clocks at midnight
    "Africa/Monrovia",  # -00:44:30 until 1972
    "Pacific/Apia",  # had no 2011-12-30
    "UTC",
]
CALENDARS = {zone: BusinessCalendar(zone) for zone in ZONES}
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def plain_day(zone: str, instant_ms: int) -> int:
    local = (EPOCH + dt.timedelta(milliseconds=instant_ms)).astimezone(ZoneInfo(zone))
    return local.toordinal() - dt.date(1970, 1, 1).toordinal()


def ms(text: str) -> int:
    return int((dt.datetime.fromisoformat(text) - EPOCH) / dt.timedelta(milliseconds=1))


INSTANTS = st.one_of(
    st.integers(ms("1850-01-01T00:00:00Z"), ms("2100-01-01T00:00:00Z")),
    # around each change of the clocks in the last decades, where it is difficult
    st.builds(
        lambda hour, off: hour * 3_600_000 + off,
        st.integers(0, 60 * 366 * 24),
        st.sampled_from([-1, 0, 1, 59_999, 60_000]),
    ),
)


@given(st.sampled_from(ZONES), INSTANTS)
@example("America/St_Johns", ms("2010-11-07T02:30:30Z"))
@example("Africa/Monrovia", ms("1971-06-01T00:44:29.999+00:00"))
def test_the_business_day_is_that_of_the_zone(zone: str, instant_ms: int) -> None:
    assert CALENDARS[zone].day(instant_ms) == plain_day(zone, instant_ms)


@given(st.sampled_from(ZONES), st.lists(INSTANTS, max_size=30), INSTANTS)
def test_counting_days_is_asking_for_each(zone: str, instants: list[int], base: int) -> None:
    near = [base + i * 7_000 for i in range(len(instants))]
    for tried in (instants, near):
        expected: dict[int, int] = {}
        for instant in tried:
            day = plain_day(zone, instant)
            expected[day] = expected.get(day, 0) + 1
        assert CALENDARS[zone].count(tried) == expected


def test_midnight_in_manila_is_four_in_the_afternoon_before_in_utc() -> None:
    calendar = CALENDARS["Asia/Manila"]
    before, after = ms("2026-11-23T15:59:59.999Z"), ms("2026-11-23T16:00:00Z")
    assert day_to_iso(calendar.day(before)) == "2026-11-23"
    assert day_to_iso(calendar.day(after)) == "2026-11-24"


def test_the_unknown_has_no_day() -> None:
    calendar = CALENDARS["Asia/Manila"]
    for instant_ms in (None, 2**62, -(2**62), 253_402_300_800_000):
        assert calendar.day(instant_ms) == UNKNOWN_DAY
    assert calendar.count([2**62, 0]) == {UNKNOWN_DAY: 1, 0: 1}
    assert calendar.count([]) == {}
    assert day_to_iso(UNKNOWN_DAY) is None


@pytest.mark.parametrize("zone", ["Asia/Manilla", "", "../etc/passwd", "/etc/localtime", "\0"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match="time zone"):
        BusinessCalendar(zone)
