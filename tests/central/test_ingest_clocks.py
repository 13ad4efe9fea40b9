"""Devices whose clock is wrong: marked, repaired when it becomes known, and told to a person."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import psycopg
import pytest

from scout_central.ingest import Committer
from scout_shared import wire
from scout_shared.messages import BootClock, Hello
from tests.central.segments import DAY, START_MS, data, greeting, hello, readings, sealing
from tests.central.test_ingest_committer import Query

BOOT, OTHER_BOOT = b"1" * 16, b"2" * 16
WRONG_MS, RIGHT_MS = START_MS - 7_000_000, START_MS - 5_000
"""Wall minus monotonic clock: as it was, and as it should have been."""
SPAN = wire.Span(BOOT, wire.CLOCK_UNSYNCED, WRONG_MS)


@pytest.fixture
def committer(database: str) -> Iterator[Committer]:
    with closing(Committer(database)) as made:
        yield made


@pytest.fixture
def query(database: str) -> Iterator[Query]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda text, *values: connection.execute(text, values or None).fetchall()


def stamped(first: int, n: int, span: wire.Span = SPAN) -> bytes:
    """Readings that the agent stamped, one each second after the monotonic clock's zero."""
    made = [
        wire.Reading("cpu", span.offset_ms + 1000 * i, float(i)) for i in range(first, first + n)
    ]
    return wire.encode_readings(sealing(), first, made, {DAY: n}, span)


def told(**fields: Any) -> bytes:
    return dataclasses.replace(Hello.decode(hello()), **fields).encode()


def boot_clock(
    offset_ms: int = RIGHT_MS, boot: bytes = BOOT, known_ms: int = START_MS
) -> BootClock:
    return BootClock(boot, offset_ms, 3, known_ms)


def timed(query: Query) -> Sequence[object]:
    return query(
        "select sequence, happened_at, time_provenance, time_rule, time_uncertainty_seconds::float8"
        " from bronze.device_readings_timed order by sequence"
    )


def at(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)


def test_a_doubtful_time_is_marked_until_the_clock_of_its_boot_is_known(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(readings(1, 1)), data(stamped(2, 2)), data(readings(4, 1))])
    observed = [(n, at(START_MS + n), "observed", None, None) for n in (1, 4)]
    assert timed(query) == [
        observed[0],
        (2, None, "unknown", None, None),
        (3, None, "unknown", None, None),
        observed[1],
    ]
    before = query("select observed_at from bronze.device_readings order by sequence")
    committer.commit([greeting(told(boots=(boot_clock(1, OTHER_BOOT), boot_clock())))])
    assert timed(query) == [
        observed[0],
        (2, at(RIGHT_MS + 2000), "recovered", "boot_clock", 0.003),
        (3, at(RIGHT_MS + 3000), "recovered", "boot_clock", 0.003),
        observed[1],
    ]
    assert query("select observed_at from bronze.device_readings order by sequence") == before


def test_each_span_of_a_boot_is_repaired_by_its_own_error(
    committer: Committer, query: Query
) -> None:
    jumped = SPAN._replace(offset_ms=WRONG_MS + 60_000)
    committer.commit([data(stamped(1, 1)), data(stamped(2, 1, jumped))])
    committer.commit([greeting(told(boots=(boot_clock(),)))])
    assert [row[1] for row in timed(query)] == [at(RIGHT_MS + 1000), at(RIGHT_MS + 2000)]  # type: ignore[index]  # rows are tuples


def test_the_word_of_another_device_repairs_nothing(committer: Committer, query: Query) -> None:
    committer.commit([data(stamped(1, 1))])
    committer.commit([greeting(told(boots=(boot_clock(),)), device="device-2")])
    assert timed(query) == [(1, None, "unknown", None, None)]


def test_the_later_word_about_a_boot_counts_whatever_comes_first(
    committer: Committer, query: Query
) -> None:
    later, earlier = boot_clock(RIGHT_MS, known_ms=2000), boot_clock(RIGHT_MS + 9, known_ms=1000)
    committer.commit([greeting(told(boots=(later,)))])
    committer.commit([greeting(told(boots=(earlier,)))])
    assert query("select offset_ms from metadata.boot_clocks") == [(RIGHT_MS,)]


def test_a_redelivered_segment_has_one_span(committer: Committer, query: Query) -> None:
    committer.commit([data(stamped(1, 3)), data(stamped(1, 3))])
    committer.commit([data(stamped(1, 3))])
    assert query("select first_sequence, records from metadata.stamped_spans") == [(1, 3)]


# -- skew -----------------------------------------------------------------------------------------


def greet(committer: Committer, skew_ms: int, boot: str = "boot-1", jumps: int = 0) -> None:
    """The hello of a device whose clock is so far from the hub's."""
    now_ms = time.time_ns() // 1_000_000
    counters = {"clock_jumps": jumps}
    payload = told(device_time_ms=now_ms + skew_ms, boot_id=boot, counters=counters)
    committer.commit([greeting(payload)])


def skew(query: Query) -> float:
    ((seconds,),) = query("select clock_skew_seconds from metadata.devices")
    assert isinstance(seconds, float)
    return seconds


def wrong(query: Query) -> list[Any]:
    return query("select message, hint from metadata.error_log where code = 'clock_wrong'")


def test_a_hello_that_waited_does_not_make_the_clock_look_slow(
    committer: Committer, query: Query
) -> None:
    greet(committer, 5_000)
    for waited_ms in (40_000, 300_000, 90_000):
        greet(committer, 5_000 - waited_ms)
    assert 3 < skew(query) <= 5
    assert wrong(query) == []


def test_the_skew_starts_anew_with_a_boot_or_a_jump(committer: Committer, query: Query) -> None:
    greet(committer, 5_000)
    greet(committer, -20_000, boot="boot-2")
    assert -25 < skew(query) <= -20
    greet(committer, -30_000, boot="boot-2", jumps=1)
    assert -35 < skew(query) <= -30


def test_only_the_last_hellos_count(committer: Committer, query: Query) -> None:
    greet(committer, 50_000)
    for _ in range(8):
        greet(committer, 0)
    assert -5 < skew(query) <= 0
    assert query("select cardinality(clock_samples) from metadata.devices") == [(8,)]


def test_a_clock_that_is_wrong_is_told_with_a_hint(committer: Committer, query: Query) -> None:
    greet(committer, 3_600_000)
    ((message, hint),) = wrong(query)
    assert "ahead of" in message
    assert "NTP" in hint


def test_a_slow_clock_is_told_once_it_cannot_be_a_delay(committer: Committer, query: Query) -> None:
    for _ in range(2):
        greet(committer, -3_600_000)
    assert wrong(query) == []
    greet(committer, -3_600_000)
    ((message, _),) = wrong(query)
    assert "behind" in message
