"""What the ingest takes from whom: pending devices wait, retired ones lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from scout_central import database as databases
from scout_central.api.status import fleet_counts
from scout_central.fleet import lifecycle
from scout_central.ingest import Committer, Outcome
from scout_central.ingest.arrivals import Arrival, Parsed, parse
from scout_central.ingest.receipts import Receipts
from scout_shared import topics
from tests.central.segments import DEVICE, EPOCH, LANDED, STORE, data, greeting, hello, readings

Query = Callable[..., list[tuple[object, ...]]]


@pytest.fixture
def query(database: str) -> Query:
    def ask(text: str) -> list[tuple[object, ...]]:
        with psycopg.connect(database) as connection:
            return connection.execute(text.encode()).fetchall()

    return ask


def garbage(device: str = DEVICE) -> Parsed:
    return parse(Arrival(STORE, device, topics.DATA, b"garbage"))


def test_where_enrolment_is_required_a_stranger_stores_nothing_and_waits(
    database: str, query: Query
) -> None:
    with closing(Committer(database, enrolment="required")) as committer:
        batch = [greeting(hello()), data(readings(1, 5)), garbage()]
        committed = committer.commit(batch)
        assert committed.outcomes == [Outcome.HELD] * 3
        assert query("select device_id, store_id, state from metadata.devices") == [
            (DEVICE, STORE, "pending")
        ]
        for table in ("metadata.streams", "metadata.quarantine", "metadata.device_bindings"):
            assert query(f"select count(*) from {table}") == [(0,)], table

        sent: list[tuple[str, bytes]] = []

        def publish(topic: str, payload: bytes) -> bool:
            sent.append((topic, payload))
            return True

        receipts = Receipts(publish, lambda: (1 << 26, 1 << 26))
        receipts.send(committed.receipts)
        ((topic, payload),) = sent
        assert topic == topics.receipt(STORE, DEVICE, EPOCH)
        told = json.loads(payload)
        assert (told["a"], told["c"]) == (0, 0), "credit 0: it pauses, and keeps everything"

        with databases.connect(database, application="test") as connection:
            lifecycle.activate(connection, DEVICE, by="me", reason="seen", store_id="999")
        committed = committer.commit(batch)
        assert committed.outcomes[1] == LANDED
        assert query("select distinct store_id from bronze.device_readings") == [("999",)]


def test_a_stranger_costs_the_others_of_its_batch_nothing(database: str) -> None:
    with closing(Committer(database)) as committer:
        committer.commit([greeting(hello())])
    with closing(Committer(database, enrolment="required")) as committer:
        stranger = data(readings(1, 5), device="stranger")
        committed = committer.commit([stranger, data(readings(1, 5)), stranger, garbage()])
        assert committed.outcomes == [
            Outcome.HELD,
            LANDED,
            Outcome.HELD,
            Outcome.REFUSED,  # the known device's garbage: set aside, as ever
        ]
        assert {(r.device_id, r.held) for r in committed.receipts} == {
            (DEVICE, False),
            ("stranger", True),
        }


def test_where_it_is_open_a_device_is_bound_to_the_store_that_it_names(
    database: str, query: Query
) -> None:
    with closing(Committer(database)) as committer:
        committer.commit([data(readings(1, 5))])
        committer.commit([data(readings(6, 5))])
    assert query(
        "select device_id, store_id, bound_by, valid_to from metadata.device_bindings"
    ) == [(DEVICE, STORE, "ingest", None)]


def test_late_data_of_a_retired_device_lands_and_is_an_incident(
    database: str, query: Query
) -> None:
    with closing(Committer(database, enrolment="required")) as committer:
        committer.commit([greeting(hello())])
        with databases.connect(database, application="test") as connection:
            lifecycle.activate(connection, DEVICE, by="me", reason="seen")
            lifecycle.retire(connection, DEVICE, by="me", reason="lost")
        committed = committer.commit([data(readings(1, 5))])
    assert committed.outcomes == [LANDED]
    assert query("select count(*) from bronze.device_readings") == [(5,)]
    assert query("select code, device_id, affected_records from metadata.error_log") == [
        ("retired_device", DEVICE, 5)
    ]


def test_nobody_is_alarmed_by_the_silence_of_a_device_in_maintenance() -> None:
    rows = [
        {"status": "dark", "lifecycle": lifecycle}
        for lifecycle in ("active", "maintenance", "retired")
    ]
    counts = fleet_counts(rows)
    assert (counts.devices, counts.dark, counts.maintenance, counts.retired) == (1, 1, 1, 1)
