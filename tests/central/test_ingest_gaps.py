"""Declared gaps on a real PostgreSQL: the watermark moves over them, and the books balance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from scout_central.ingest import Committer, Outcome
from scout_shared import wire
from scout_shared.messages import Hello
from scout_shared.zones import UNKNOWN_DAY
from tests.central.segments import (
    DAY,
    LANDED,
    QUARANTINED,
    REDELIVERED,
    REFUSED,
    damaged,
    data,
    gap,
    given_up,
    greeting,
    hello,
    readings,
)
from tests.central.test_ingest_committer import Query, assert_books_balance, receipt, sequences

GIVEN_UP = Outcome.GIVEN_UP
EQUATION = """
select kind, business_date - date '1970-01-01', produced, received, given_up, undated, in_transit,
    remainder
from metadata.reconciliation
order by kind, business_date nulls last
"""


@pytest.fixture
def committer(database: str) -> Iterator[Committer]:
    with closing(Committer(database)) as made:
        yield made


@pytest.fixture
def query(database: str) -> Iterator[Query]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda text, *values: connection.execute(text, values or None).fetchall()


def test_a_gap_is_receipted_counted_and_told(committer: Committer, query: Query) -> None:
    committer.commit([greeting(hello([(DAY, wire.READINGS, 150)], version=1))])
    committed = committer.commit(
        [
            data(readings(1, 50)),
            data(gap(51, given_up(60), given_up(10, reason="drop_oldest"))),
            data(readings(121, 30)),
        ]
    )
    assert committed.outcomes == [LANDED, GIVEN_UP, LANDED]
    assert receipt(committed) == (150, ())
    assert_books_balance(query)
    assert query(EQUATION) == [("readings", DAY, 150, 150, 70, 0, 0, 0)]
    assert query(
        "select first_sequence, records, kind, reason from metadata.gaps order by first_sequence"
    ) == [(51, 60, wire.READINGS, "damaged"), (111, 10, wire.READINGS, "drop_oldest")]
    assert query("select code, severity, affected_records from metadata.error_log") == [
        ("records_given_up", "high", 70)
    ]


def test_a_gap_that_comes_again_changes_nothing(committer: Committer, query: Query) -> None:
    committer.commit([data(gap(1, given_up(60)))])
    committed = committer.commit([data(gap(1, given_up(60))), data(gap(1, given_up(60)))])
    assert committed.outcomes == [REDELIVERED, REDELIVERED]
    assert receipt(committed) == (60, ())
    assert query("select records from metadata.received_counts") == [(60,)]


@pytest.mark.parametrize("together", [True, False])
def test_what_the_hub_holds_is_not_given_up(
    committer: Committer, query: Query, together: bool
) -> None:
    """The receipt was lost, then the device lost its copy too."""
    batch = [data(gap(1, given_up(60), given_up(40))), data(readings(61, 40))]
    if not together:
        committer.commit(batch[1:])
    committer.commit(batch)
    assert sequences(query) == list(range(61, 101))
    assert query("select first_sequence, records from metadata.gaps") == [(1, 60)]
    assert_books_balance(query)


def test_a_part_that_is_held_in_part_counts_on_no_known_day(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(readings(31, 10))])
    committer.commit([data(gap(1, given_up(50)))])
    assert query(
        "select sequences, records, days from metadata.gaps",
    ) == [(50, 40, [[UNKNOWN_DAY, 40]])]
    assert_books_balance(query)


def test_records_that_come_after_all_land_and_close_their_gap(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(gap(1, given_up(60), given_up(40)))])
    committed = committer.commit([data(readings(1, 60))])
    assert committed.outcomes == [LANDED]
    assert receipt(committed) == (100, ())
    assert sequences(query) == list(range(1, 61))
    assert query("select first_sequence from metadata.gaps where closed_at is null") == [(61,)]
    assert query(
        "select first_sequence, outcome from metadata.segments order by first_sequence"
    ) == [(1, "landed"), (61, "given_up")]
    assert_books_balance(query)
    assert committer.commit([data(readings(1, 60))]).outcomes == [REDELIVERED]
    assert committer.commit([data(gap(1, given_up(60)))]).outcomes == [REDELIVERED]
    assert_books_balance(query)


def test_records_of_which_nobody_knows_the_kind_are_put_against_what_both_kinds_lack(
    committer: Committer, query: Query
) -> None:
    ledger = [(DAY, wire.READINGS, 55), (DAY, wire.DOCUMENTS, 3), (UNKNOWN_DAY, wire.DOCUMENTS, 2)]
    committer.commit([greeting(hello(ledger, version=1)), data(readings(1, 50))])
    lost = wire.GivenUp(10, wire.UNKNOWN_KIND, "damaged", {UNKNOWN_DAY: 10})
    assert receipt(committer.commit([data(gap(51, lost))])) == (60, ())
    assert query(EQUATION) == [
        ("documents", DAY, 3, 0, 0, 3, 0, 0),
        ("documents", None, 2, 0, 0, 2, 0, 0),
        ("readings", DAY, 55, 50, 0, 5, 0, 0),
        ("unknown", None, 0, 10, 10, -10, 0, 0),
    ]


def test_a_gap_whose_body_is_bad_is_poison_like_any_other(
    committer: Committer, query: Query
) -> None:
    bad = damaged(gap(1, given_up(60)))
    outcomes = [committer.commit([data(bad)]).outcomes for _ in range(3)]
    assert outcomes == [[REFUSED], [REFUSED], [QUARANTINED]]
    assert query("select kind, records from metadata.received_counts") == [(wire.UNKNOWN_KIND, 60)]


def test_damaged_files_on_a_device_are_an_incident(committer: Committer, query: Query) -> None:
    said = dataclasses.replace(Hello.decode(hello()), damaged_files=2)
    committer.commit([greeting(said.encode())])
    committer.commit([greeting(said.encode())])
    assert query("select code, severity, occurrences from metadata.error_log") == [
        ("buffer_damaged", "critical", 2)
    ]


def test_what_a_damaged_file_held_does_not_speak_for_the_device(
    committer: Committer, query: Query
) -> None:
    committer.commit([greeting(hello())])
    old = dataclasses.replace(
        Hello.decode(hello([(DAY, wire.READINGS, 5)], version=1, epoch=b"O" * 16)),
        recovered=True,
        buffer_bytes=7,
    )
    committer.commit([greeting(old.encode())])
    assert query("select hello ->> 'buffer_bytes' from metadata.devices") == [("4096",)]
    assert query("select records from metadata.produced_counts") == [(5,)]
