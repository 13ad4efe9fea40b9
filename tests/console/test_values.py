from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_console import values
from scout_console.values import Clock, Nothing, Said, Tone
from scout_shared.errors import ConfigError
from tests.console.answers import NOW

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def _seconds(text: str) -> int:
    parts = text.replace(",", "").split(" ")
    return sum(
        int(number) * _UNITS[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True)
    )


@given(st.integers(min_value=0, max_value=10**9))
def test_an_age_is_never_rounded_up_and_loses_less_than_its_smallest_unit(seconds: int) -> None:
    told = _seconds(values.age(seconds))
    assert told <= seconds
    smallest = 1 if seconds < 60 else 60 if seconds < 86_400 else 3600
    assert seconds - told < smallest


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (725, "12 min"),
        (3600, "1 h"),
        (11_100, "3 h 05 min"),
        (86_400, "1 d"),
        (100_000 * 86_400, "100,000 d"),
        (-0.4, "0 s"),
        (-300, "5 min ahead"),
    ],
)
def test_ages_read_well(seconds: float, text: str) -> None:
    assert values.age(seconds) == text


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_a_count_keeps_its_digits(number: int) -> None:
    assert int(values.count(number).replace(",", "").replace("−", "-")) == number


def test_one_of_something_is_singular() -> None:
    assert values.count(1, "records") == "1 record"
    assert values.count(0, "records") == "0 records"
    assert values.count(15_212, "records") == "15,212 records"
    assert values.count(1, "entries") == "1 entry"


@given(st.integers(min_value=0, max_value=10**17))
def test_a_size_has_three_digits_and_is_within_half_a_step(number: int) -> None:
    text = values.size(number).text
    figure, unit = text.split(" ")
    scale = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit)
    assert len(figure.replace(",", "").replace(".", "")) <= 3
    assert abs(float(figure.replace(",", "")) * scale - number) <= scale * 0.5


def test_the_six_kinds_of_nothing_are_said_in_six_ways() -> None:
    said = [
        values.EMPTY,
        values.counted(0),
        values.counted(None),
        values.NO_PERMISSION,
        values.SOURCE_DOWN,
        values.aged(Said("88"), 725, stale=True),
    ]
    assert [s.nothing for s in said] == [
        Nothing.EMPTY,
        Nothing.ZERO,
        Nothing.UNKNOWN,
        Nothing.NO_PERMISSION,
        Nothing.SOURCE_DOWN,
        Nothing.STALE,
    ]
    assert len({s.text for s in said}) == 6


@given(st.integers(min_value=0), st.floats(min_value=0, max_value=1e9) | st.none())
def test_a_stale_value_is_grey_and_never_a_bare_number(number: int, seconds: float | None) -> None:
    said = values.aged(values.counted(number), seconds, stale=True)
    assert said.tone is Tone.QUIET
    assert said.text != values.counted(number).text
    assert "old" in said.text or "age unknown" in said.text


def test_what_was_never_known_does_not_get_an_age() -> None:
    assert values.aged(values.UNKNOWN, 725, stale=True) == values.UNKNOWN
    assert values.aged(Said("88"), 725, stale=False) == Said("88")


@given(st.text())
def test_nothing_from_outside_moves_the_cursor(text: str) -> None:
    assert not any(ord(c) < 32 or ord(c) == 127 for c in values.printable(text))
    assert "\u202e" not in values.printable(text + "\u202e")


def test_times_are_in_one_zone_with_its_offset_beside_them() -> None:
    clock = Clock("Asia/Manila")
    assert clock.label(NOW) == "Asia/Manila, UTC+08:00"
    assert clock.moment(NOW, NOW) == "14:03"
    assert clock.moment(NOW - dt.timedelta(hours=15), NOW) == "22 Nov 23:03"
    assert clock.moment(NOW - dt.timedelta(days=366), NOW) == "22 Nov 2025 14:03"
    assert clock.full(NOW) == "2026-11-23 14:03:07 UTC+08:00"


@pytest.mark.parametrize(
    "zone, offset",
    [("Asia/Kathmandu", "UTC+05:45"), ("America/St_Johns", "UTC-03:30"), ("UTC", "UTC+00:00")],
)
def test_offsets_of_parts_of_an_hour_are_told(zone: str, offset: str) -> None:
    assert Clock(zone).offset(NOW) == offset


def test_a_coarse_clock_does_not_change_every_second() -> None:
    clock = Clock("UTC", coarse=True)
    told = {clock.ago(NOW - dt.timedelta(seconds=s), NOW) for s in range(60)}
    assert told == {"<1 min ago"}
    assert clock.ago(NOW - dt.timedelta(minutes=3), NOW) == "3 min ago"


@pytest.mark.parametrize("zone", ["Manila", "", ".", "../etc/passwd"])
def test_an_unknown_zone_is_refused_with_a_hint(zone: str) -> None:
    with pytest.raises(ConfigError, match="not known"):
        Clock(zone)
