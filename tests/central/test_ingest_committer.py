"""Exactly once, poison isolated, books that balance: the committer on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from scout_central.ingest import Committed, Committer, Outcome, ingest_segments
from scout_central.ingest.arrivals import Arrival, Parsed, parse
from scout_central.ingest.isolation import POISON_ATTEMPTS
from scout_shared import topics, wire
from scout_shared.errors import ConfigError, TransientError
from scout_shared.zones import UNKNOWN_DAY
from tests.central.segments import (
    DAY,
    DEVICE,
    EPOCH,
    FAILING_COMMIT,
    LANDED,
    QUARANTINED,
    REDELIVERED,
    REFUSED,
    START_MS,
    damaged,
    data,
    documents,
    greeting,
    hello,
    raw_body,
    readings,
    reframed,
    sealing,
)

Row = tuple[object, ...]
Query = Callable[..., list[Row]]


@pytest.fixture
def committer(database: str) -> Iterator[Committer]:
    with closing(Committer(database)) as made:
        yield made


@pytest.fixture
def query(database: str) -> Iterator[Query]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda text, *values: connection.execute(text, values or None).fetchall()


def receipt(committed: Committed) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Watermark and ranges of the only receipt."""
    (only,) = committed.receipts
    return only.receipt.watermark, only.receipt.ranges


def sequences(query: Query) -> list[int]:
    return [s for (s,) in query("select sequence from bronze.device_readings order by 1")]  # type: ignore[misc]  # one int per row


def assert_books_balance(query: Query) -> None:
    """received = what the ranges hold = landed rows + what ingest quarantined."""
    assert (
        query(
            """
            select stream_id
            from metadata.streams
            where (select coalesce(sum(upper(r) - lower(r)), 0) from unnest(received) as r)
                is distinct from
                (select coalesce(sum(records), 0) from metadata.received_counts as c
                 where c.stream_id = streams.stream_id)
                or (select coalesce(sum(records), 0) from metadata.received_counts as c
                    where c.stream_id = streams.stream_id)
                is distinct from
                (select count(*) from bronze.device_readings as b
                 where b.stream_id = streams.stream_id)
                + (select count(*) from bronze.transaction_logs as b
                   where b.stream_id = streams.stream_id)
                + (select coalesce(sum(records), 0) from metadata.outcome_counts as o
                   where o.stream_id = streams.stream_id and outcome in ('quarantined', 'given_up'))
            """
        )
        == []
    )


# --- exactly once


def test_a_segment_lands_with_all_that_is_known_of_it(committer: Committer, query: Query) -> None:
    committed = committer.commit([data(readings(1, 50))])
    assert committed.outcomes == [LANDED]
    assert receipt(committed) == (50, ())
    assert query(
        """
        select count(*), min(sequence), max(sequence), bool_and(value = sequence),
            min(observed_at) = timestamptz 'epoch' + %s * interval '1 ms', min(store_id),
            min(name), bool_and(xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
        from bronze.device_readings inner join metadata.metrics using (metric_id)
        """,
        START_MS + 1,
    ) == [(50, 1, 50, True, True, "367", "fridge.1.celsius", True)]
    assert query(
        "select first_sequence, records, outcome, crc = %s, xid = (select min(xid) from "
        "bronze.device_readings) from metadata.segments",
        wire.decode_header(readings(1, 50)).body_crc,
    ) == [(1, 50, "landed", True, True)]
    assert query(
        "select kind, (business_date - date '1970-01-01'), records from metadata.received_counts"
    ) == [(wire.READINGS, DAY, 50)]


def test_a_redelivery_is_receipted_again_and_stores_nothing(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(readings(1, 50))])
    committed = committer.commit([data(readings(1, 50)), data(readings(51, 50))])
    assert committed.outcomes == [REDELIVERED, LANDED]
    assert receipt(committed) == (100, ())
    assert sequences(query) == list(range(1, 101))
    assert_books_balance(query)


def test_copies_in_one_batch_are_stored_once(committer: Committer, query: Query) -> None:
    segment = data(readings(1, 50))
    committed = committer.commit([data(damaged(readings(1, 50))), segment, segment])
    assert sorted(committed.outcomes) == [LANDED, REDELIVERED, REDELIVERED]
    assert sequences(query) == list(range(1, 51))


def test_segments_out_of_order_make_ranges_above_the_watermark(
    committer: Committer, query: Query
) -> None:
    assert receipt(committer.commit([data(readings(101, 50))])) == (0, ((101, 150),))
    assert receipt(committer.commit([data(readings(1, 50))])) == (50, ((101, 150),))
    assert receipt(committer.commit([data(readings(51, 50))])) == (150, ())
    assert sequences(query) == list(range(1, 151))


def test_the_ranges_of_a_receipt_are_bounded(committer: Committer) -> None:
    committed = committer.commit([data(readings(1 + 2 * i, 1)) for i in range(100)])
    watermark, ranges = receipt(committed)
    assert watermark == 1
    assert ranges == tuple((1 + 2 * i, 1 + 2 * i) for i in range(1, 65))


def test_two_committers_at_the_same_stream_store_each_segment_once(
    database: str, query: Query
) -> None:
    segments = [data(readings(1 + 20 * i, 20)) for i in range(40)]
    outcomes: list[Outcome] = []

    def work(order: Sequence[Parsed]) -> None:
        with closing(Committer(database)) as committer:
            for at in range(0, len(order), 4):
                outcomes.extend(committer.commit(order[at : at + 4]).outcomes)

    threads = [threading.Thread(target=work, args=(order,)) for order in (segments, segments[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [LANDED] * 40 + [REDELIVERED] * 40
    assert sequences(query) == list(range(1, 801))
    assert_books_balance(query)


def test_stored_segments_take_the_same_way(committer: Committer, query: Query) -> None:
    segments = [readings(1 + 2 * i, 2) for i in range(150)]
    total = ingest_segments(committer, "367", DEVICE, segments)
    assert total.outcomes == [LANDED] * 150
    assert receipt(total) == (300, ())
    assert ingest_segments(committer, "367", DEVICE, segments).rows == 0
    assert sequences(query) == list(range(1, 301))
    with pytest.raises(ConfigError):
        ingest_segments(committer, "a/b", DEVICE, segments)


class Fleet(RuleBasedStateMachine):
    """A device seals, and it and its clone send in any order, through two hubs; a plain model."""

    committers: tuple[Committer, Committer]
    query: Query
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        Fleet.examples += 1
        self.device = f"device-{Fleet.examples}"
        self.sealed: list[range] = []
        self.held: dict[int, range | None] = {}
        """Sequence → the segment whose rows stand in bronze; None: taken by the quarantine."""
        self.receipt: tuple[int, tuple[tuple[int, int], ...]] = (0, ())

    @rule(n=st.integers(1, 5))
    def seal(self, n: int) -> None:
        start = self.sealed[-1].stop if self.sealed else 1
        self.sealed.append(range(start, start + n))

    @rule(picks=st.lists(st.integers(0, 40), min_size=1, max_size=6), hub=st.integers(0, 1))
    def deliver(self, picks: list[int], hub: int) -> None:
        if not self.sealed:
            return
        chosen = [self.sealed[pick % len(self.sealed)] for pick in picks]
        committed = self.committers[hub].commit(
            [data(readings(s.start, len(s)), device=self.device) for s in chosen]
        )
        for segment, outcome in zip(chosen, committed.outcomes, strict=True):
            if not any(sequence in self.held for sequence in segment):
                assert outcome == LANDED
                self.held.update(dict.fromkeys(segment, segment))
            elif all(self.held.get(sequence) == segment for sequence in segment):
                assert outcome == REDELIVERED
            else:
                self._is_set_aside(segment, outcome)
        self.receipt = receipt(committed)

    @rule(pick=st.integers(0, 40), shift=st.integers(-3, 3), n=st.integers(1, 6))
    def deliver_of_a_clone(self, pick: int, shift: int, n: int) -> None:
        """A device with the same buffer file sends something else under taken sequences."""
        if not self.sealed:
            return
        start = max(1, self.sealed[pick % len(self.sealed)].start + shift)
        segment = range(start, start + n)
        if any(sequence in self.held for sequence in segment):
            committed = self.committers[0].commit(
                [data(readings(start, n, salt=0.5), device=self.device)]
            )
            self._is_set_aside(segment, committed.outcomes[0])
            self.receipt = receipt(committed)

    def _is_set_aside(self, segment: range, outcome: Outcome) -> None:
        assert outcome in (QUARANTINED, REDELIVERED)
        for sequence in segment:
            self.held.setdefault(sequence, None)

    @invariant()
    def the_receipt_says_what_is_held(self) -> None:
        watermark, ranges = self.receipt
        said = set(range(1, watermark + 1)).union(*(range(lo, hi + 1) for lo, hi in ranges))
        assert said == set(self.held)

    def teardown(self) -> None:
        rows = self.query(
            "select sequence, value from bronze.device_readings inner join metadata.streams "
            "using (stream_id) where device_id = %s order by 1",
            self.device,
        )
        landed = sorted(s for s, segment in self.held.items() if segment is not None)
        assert rows == [(sequence, float(sequence)) for sequence in landed]


def test_any_order_of_deliveries_through_two_hubs_follows_the_model(
    database: str, query: Query
) -> None:
    with closing(Committer(database)) as one, closing(Committer(database)) as other:
        machine = type("M", (Fleet,), {"committers": (one, other), "query": staticmethod(query)})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=80, stateful_step_count=20, deadline=None)
        )
    assert_books_balance(query)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.lists(
            st.tuples(
                st.integers(1, 30),
                st.integers(1, 8),
                st.sampled_from(["readings", "clone", "documents", "poison", "damaged", "junk"]),
            ),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=4,
    ),
    number=st.integers(0, 2**40),
)
def test_any_mixture_loses_nothing_doubles_nothing_and_balances(
    committer: Committer,
    query: Query,
    batches: list[list[tuple[int, int, str]]],
    number: int,
) -> None:
    device = f"mixed-{number}"
    sent: list[bytes] = []
    for batch in batches:
        made = [_mixed(*choice) for choice in batch]
        committed = committer.commit([data(segment, device=device) for segment in made])
        sent += [
            segment
            for segment, outcome in zip(made, committed.outcomes, strict=True)
            if outcome != REDELIVERED
        ]
    doubled = query(
        "select sequence from (select stream_id, sequence from bronze.device_readings union all "
        "select stream_id, sequence from bronze.transaction_logs) as rows group by stream_id, "
        "sequence having count(*) > 1"
    )
    assert doubled == []
    assert_books_balance(query)
    landed = {
        crc
        for (crc,) in query(
            "select crc from metadata.segments inner join metadata.streams using (stream_id) "
            "where device_id = %s and outcome = 'landed'",
            device,
        )
    }
    kept = {
        bytes(raw)  # type: ignore[call-overload]  # bytea
        for (raw,) in query("select raw from metadata.quarantine where sha256 is not null")
    }
    for segment in sent:
        assert segment in kept or wire.decode_header(segment).body_crc in landed


def _mixed(first: int, n: int, kind: str) -> bytes:
    if kind == "junk":
        return b"junk" * n
    if kind in ("documents", "poison"):
        body = b'{"sequence": 1}' if kind == "documents" else b'{"broken": '
        return documents(first, [body] * n)
    segment = readings(first, n, salt=0.5 if kind == "clone" else 0.0)
    return damaged(segment) if kind == "damaged" else segment


# --- poison


def test_a_bad_body_is_kept_and_receipted_only_at_the_third_attempt(
    committer: Committer, query: Query
) -> None:
    bad = damaged(readings(1, 50))
    for _ in range(POISON_ATTEMPTS - 1):
        committed = committer.commit([data(bad), data(readings(51, 10))])
        assert committed.outcomes[0] == REFUSED
        assert receipt(committed) == (0, ((51, 60),))
    committed = committer.commit([data(bad)])
    assert committed.outcomes == [QUARANTINED]
    assert receipt(committed) == (60, ())
    assert query("select reason, records, raw, attempts, state from metadata.quarantine") == [
        ("crc_mismatch", 50, bad, POISON_ATTEMPTS, "open")
    ]
    assert query(
        "select business_date, records, rule from metadata.outcome_counts where outcome = "
        "'quarantined'"
    ) == [(None, 50, "crc_mismatch")]
    assert committer.commit([data(bad)]).outcomes == [REDELIVERED]
    assert_books_balance(query)


def test_a_good_copy_lands_after_bad_ones_and_resolves_them(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(damaged(readings(1, 50)))])
    committer.commit([data(damaged(readings(1, 50), at=3))])
    committed = committer.commit([data(readings(1, 50))])
    assert committed.outcomes == [LANDED]
    assert receipt(committed) == (50, ())
    assert query("select state, count(*) from metadata.quarantine group by 1") == [("replayed", 2)]
    assert_books_balance(query)


def test_a_good_copy_that_comes_too_late_is_kept_for_a_replay(
    committer: Committer, query: Query
) -> None:
    for _ in range(POISON_ATTEMPTS):
        committer.commit([data(damaged(readings(1, 50)))])
    assert committer.commit([data(readings(1, 50))]).outcomes == [REDELIVERED]
    assert query("select count(*) from metadata.quarantine where raw = %s", readings(1, 50)) == [
        (1,)
    ]
    assert sequences(query) == []


def test_a_bad_header_is_kept_once_and_never_receipted(committer: Committer, query: Query) -> None:
    for _ in range(4):
        committed = committer.commit([data(b"junk"), data(b"junk"), data(readings(1, 5))])
        assert committed.outcomes[:2] == [REFUSED, REFUSED]
    assert query("select reason, device_id, attempts, raw from metadata.quarantine") == [
        ("truncated", DEVICE, 4, b"junk")
    ]
    assert sequences(query) == [1, 2, 3, 4, 5]


def test_an_overlap_is_kept_whole_and_receipted_at_once(committer: Committer, query: Query) -> None:
    committer.commit([data(readings(1, 50))])
    clone = readings(41, 20, salt=0.5)
    committed = committer.commit([data(clone), data(readings(61, 10))])
    assert committed.outcomes == [QUARANTINED, LANDED]
    assert receipt(committed) == (70, ())
    assert sequences(query) == [*range(1, 51), *range(61, 71)]
    assert query("select reason, raw from metadata.quarantine") == [("overlap", clone)]
    assert query("select severity, device_id from metadata.error_log where code = 'overlap'") == [
        ("critical", DEVICE)
    ]
    assert committer.commit([data(clone)]).outcomes == [REDELIVERED]
    assert_books_balance(query)


def test_other_data_under_taken_sequences_is_not_taken_for_a_redelivery(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(readings(1, 50))])
    clone = readings(1, 50, salt=0.5)
    assert committer.commit([data(clone)]).outcomes == [QUARANTINED]
    assert query("select raw from metadata.quarantine") == [(clone,)]
    assert_books_balance(query)


BAD_JSON = {
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b'"\xff"',
    "NUL": b'"\x00"',
    "escaped NUL": b'"\\u0000"',
    "half pair": b'"\\ud800"',
    "huge number": b"1e999999",
    "deep": b"[" * 20_000,
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=list(BAD_JSON))
def test_a_document_that_jsonb_refuses_is_isolated(
    committer: Committer, query: Query, body: bytes
) -> None:
    batch = [
        data(documents(1, [b'{"n": 1}', body, b'{"n": 3}'])),
        data(documents(4, [b'{"n": 4}'])),
        data(readings(5, 2)),
    ]
    committed = committer.commit(batch)
    assert committed.outcomes == [LANDED] * 3
    assert receipt(committed) == (6, ())
    assert query("select sequence, document from bronze.transaction_logs order by 1") == [
        (1, {"n": 1}),
        (3, {"n": 3}),
        (4, {"n": 4}),
    ]
    assert query(
        "select dataset, reason, sequence, raw, business_date - date '1970-01-01', "
        "message <> '' from metadata.quarantine"
    ) == [("bronze.transaction_logs", "invalid_json", 2, body, DAY, True)]
    assert query("select kind, outcome, rule, records from metadata.outcome_counts") == [
        (wire.DOCUMENTS, "quarantined", "invalid_json", 1)
    ]
    assert committer.commit(batch).outcomes == [REDELIVERED] * 3
    assert_books_balance(query)


def test_documents_of_an_unknown_type_are_kept_readable(committer: Committer, query: Query) -> None:
    committer.commit(
        [data(documents(1, [b'{"n": 1}', b"{"], kind="face")), data(documents(3, [b"{}"]))]
    )
    assert query("select reason, payload, raw from metadata.quarantine order by sequence") == [
        ("unknown_document_type", {"n": 1}, None),
        ("unknown_document_type", None, b"{"),
    ]
    assert query("select sequence from bronze.transaction_logs") == [(3,)]
    assert_books_balance(query)


def test_unknown_times_stay_unknown(committer: Committer, query: Query) -> None:
    made = [
        wire.Document("transaction", None, UNKNOWN_DAY, b"1"),
        wire.Document("transaction", START_MS, DAY, b"2"),
        wire.Document("transaction", None, DAY, b"3"),
        wire.Document("transaction", START_MS, UNKNOWN_DAY, b"4"),
        wire.Document("transaction", 2**62, UNKNOWN_DAY, b"5"),
    ]
    committer.commit([data(wire.encode_documents(sealing(), 1, made))])
    assert query(
        "select document, (extract(epoch from observed_at) * 1000)::bigint, "
        "business_date - date '1970-01-01' from bronze.transaction_logs order by sequence"
    ) == [
        (1, None, None),
        (2, START_MS, DAY),
        (3, None, DAY),
        (4, START_MS, None),
        (5, None, None),
    ]
    assert query("select records from metadata.received_counts where business_date is null") == [
        (3,)
    ]


def test_readings_outside_the_calendar_are_isolated(committer: Committer, query: Query) -> None:
    made = [
        wire.Reading("a", START_MS, 1.0),
        wire.Reading("a", 2**61, float("inf")),
        wire.Reading("a", START_MS, 3.0),
    ]
    segment = wire.encode_readings(sealing(), 1, made, {DAY: 2, UNKNOWN_DAY: 1})
    assert committer.commit([data(segment)]).rows == 2
    assert sequences(query) == [1, 3]
    assert query("select reason, sequence, payload from metadata.quarantine") == [
        ("time_out_of_range", 2, {"metric": "a", "observed_ms": 2**61, "value": "inf"})
    ]
    assert_books_balance(query)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=5),
    of_documents=st.booleans(),
)
def test_fuzzed_segments_never_stop_the_committer(
    committer: Committer, query: Query, changes: list[tuple[int, int]], *, of_documents: bool
) -> None:
    segment = documents(1, [b'{"n": 1}'] * 5) if of_documents else readings(1, 5)
    raw = bytearray(raw_body(segment))
    for at, value in changes:
        raw[at % len(raw)] = value
    good = readings(1000, 1)
    batch = [data(reframed(segment, bytes(raw)), device="fuzz"), data(good, device="good")]
    assert len(committer.commit(batch).outcomes) == 2
    assert query("select count(*) from bronze.device_readings where sequence = 1000") == [(1,)]


# --- hello, status, identity


def test_the_ledger_only_grows_whatever_the_order_of_hellos(
    committer: Committer, query: Query
) -> None:
    late = greeting(hello([(DAY, wire.READINGS, 80), (UNKNOWN_DAY, wire.DOCUMENTS, 2)], version=4))
    early = greeting(hello([(DAY, wire.READINGS, 50)], version=2))
    committed = committer.commit([late, early])
    assert committed.receipts[0].receipt.ledger_version == 4
    committed = committer.commit([early])
    assert committed.receipts[0].receipt.ledger_version == 4
    assert query(
        "select kind, business_date - date '1970-01-01', records from metadata.produced_counts "
        "order by 1"
    ) == [(wire.READINGS, DAY, 80), (wire.DOCUMENTS, None, 2)]


def test_a_hello_describes_device_and_stream(committer: Committer, query: Query) -> None:
    committer.commit([greeting(hello())])
    committer.commit([greeting(hello(zone="Mars/Olympus"))])
    assert query(
        "select device_id, store_id, zone, version, heartbeat_seconds, hello ->> 'boot', "
        "clock_skew_seconds < -10000 from metadata.devices"
    ) == [(DEVICE, "367", "America/New_York", "7.1.0", 15.0, "boot-1", True)]
    assert query("select epoch, zone, next_sequence from metadata.streams") == [
        (EPOCH, "America/New_York", 1)
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b"junk",
        hello(zone="a\0b"),
        hello([(2**31 - 1, 1, 1)]),
        hello([(DAY, 9, 1)]),
        hello([(DAY, 1, 2**63)]),
        hello(version=2**63),
    ],
)
def test_a_hello_that_cannot_be_stored_costs_only_itself(
    committer: Committer, query: Query, payload: bytes
) -> None:
    committed = committer.commit([greeting(payload), data(readings(1, 5))])
    assert committed.outcomes == [REFUSED, LANDED]
    assert query("select code from metadata.error_log") == [("bad_hello",)]


def test_status_says_who_is_online_and_the_last_word_counts(
    committer: Committer, query: Query
) -> None:
    def status(payload: bytes) -> Parsed:
        return parse(Arrival("367", DEVICE, topics.STATUS, payload))

    committer.commit([status(b'{"online": true}')])
    assert query("select online from metadata.devices") == [(True,)]
    committer.commit([status(b'{"online": true}'), status(b'{"online": false}'), status(b"{}")])
    assert query("select online from metadata.devices") == [(False,)]


def test_a_device_stays_with_its_store_and_its_data_is_kept(
    committer: Committer, query: Query
) -> None:
    committer.commit([data(readings(1, 5), store="367")])
    committed = committer.commit([data(readings(6, 5), store="999")])
    assert committed.outcomes == [LANDED]
    assert committed.receipts[0].store_id == "999", "the device listens where it speaks"
    assert query("select store_id, count(*) from bronze.device_readings group by 1") == [
        ("367", 10)
    ]
    assert query("select code, device_id from metadata.error_log") == [("store_mismatch", DEVICE)]


def test_devices_with_the_same_epoch_do_not_meet(committer: Committer, query: Query) -> None:
    committed = committer.commit(
        [
            data(readings(1, 5), device="a"),
            data(readings(1, 5), device="b"),
        ]
    )
    assert committed.outcomes == [LANDED, LANDED]
    assert sequences(query) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


# --- the commit


def test_a_commit_that_fails_gives_no_receipt_and_stores_nothing(
    committer: Committer, query: Query, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(FAILING_COMMIT)
        with pytest.raises(TransientError, match="disk is full"):
            committer.commit([data(readings(1, 5))])
        assert sequences(query) == []
        connection.execute("drop trigger fail on metadata.segments")
    assert committer.commit([data(readings(1, 5))]).outcomes == [LANDED]
    assert sequences(query) == [1, 2, 3, 4, 5]


def test_a_killed_connection_is_made_again(committer: Committer, query: Query) -> None:
    committer.commit([data(readings(1, 5))])
    query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = "
        "'scout-ingest' and datname = current_database()"
    )
    with pytest.raises(TransientError):
        committer.commit([data(readings(6, 5))])
    assert committer.commit([data(readings(6, 5))]).outcomes == [LANDED]


REFUSING_TABLE = """
alter table metadata.devices add constraint no_mallory check (device_id <> 'mallory');
"""


def test_what_postgresql_refuses_for_ever_costs_only_itself(
    committer: Committer, query: Query, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(REFUSING_TABLE)
    committed = committer.commit_isolating(
        [
            data(readings(1, 5)),
            data(readings(1, 5), device="mallory"),
            data(readings(6, 5)),
        ]
    )
    assert committed.outcomes == [LANDED, REFUSED, LANDED]
    assert [r.device_id for r in committed.receipts] == [DEVICE]
    assert receipt(committed) == (10, ())
    assert query("select reason, device_id, raw from metadata.quarantine") == [
        ("refused_by_database", "mallory", readings(1, 5))
    ]
