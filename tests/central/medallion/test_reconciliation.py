"""Everything adds up, and when it does not, the screen says so."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest

from tests.central.medallion.tills import NOON, Tills, execute, line, one, rows, run, sale

EQUATION = """
select kind, business_date::text, produced, received, landed, duplicate, quarantined, excluded,
       undated, in_transit, pending, remainder
from metadata.reconciliation
order by kind, business_date
"""
DAY = "2026-03-02"


@pytest.fixture
def till(database: str) -> int:
    tills = Tills(database)
    stream = tills.stream()
    tills.post(
        stream,
        sale("t1"),
        sale("t1"),
        sale("t2", training=True),
        sale("t3", line(quantity="x")),
        sale("t4"),
    )
    run(database)
    return stream


def test_each_record_ends_as_exactly_one_of_four(database: str, till: int) -> None:
    assert rows(database, EQUATION) == [("documents", DAY, 5, 5, 2, 1, 1, 1, 0, 0, 0, 0)]
    assert rows(database, "select * from metadata.verify_landed()") == []


def test_what_waits_for_silver_is_pending_and_no_remainder(database: str, till: int) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into bronze.transaction_logs (received_at, observed_at, sequence, stream_id,"
            " business_date, store_id, document) select now(), observed_at, 6, stream_id,"
            " business_date, store_id, '{}' from bronze.transaction_logs limit 1"
        )
        connection.execute("update metadata.received_counts set records = records + 1")
        connection.execute("update metadata.produced_counts set records = records + 1")
        connection.execute("update metadata.streams set received = '{[1,7)}', next_sequence = 7")
    ((*_, pending, remainder),) = rows(database, EQUATION)
    assert (pending, remainder) == (1, 0)


def test_what_the_device_still_holds_is_in_transit_and_no_remainder(
    database: str, till: int
) -> None:
    execute(database, "update metadata.produced_counts set records = records + 3")
    execute(database, "update metadata.streams set unsealed_records = 3")
    assert rows(database, EQUATION)[0][-3:] == (3, 0, 0)
    execute(database, "update metadata.streams set unsealed_records = 0, next_sequence = 9")
    assert rows(database, EQUATION)[0][-3:] == (3, 0, 0)


@pytest.mark.parametrize(
    "crime, remainder",
    [
        # the device sealed five and all arrived, yet its ledger counts six
        ("update metadata.produced_counts set records = records + 1", 1),
        # a record vanished between the door and silver
        ("update metadata.received_counts set records = records + 1", 2),
        ("delete from metadata.outcome_counts where outcome = 'duplicate'", 1),
        # silver counted one twice
        ("update metadata.outcome_counts set records = 3 where outcome = 'landed'", 1),
        # another day than the device said
        ("update metadata.received_counts set business_date = business_date + 1", 20),
    ],
)
def test_a_difference_that_nothing_explains_is_a_remainder(
    database: str, till: int, crime: str, remainder: int
) -> None:
    execute(database, crime)
    assert sum(row[-1] for row in rows(database, EQUATION)) == remainder


def test_rows_that_somebody_deletes_behind_our_back_are_found(database: str, till: int) -> None:
    execute(database, "delete from silver.transactions_cleaned where transaction_id = 't4'")
    assert [row[3:] for row in rows(database, "select * from metadata.verify_landed()")] == [
        ("landed documents are in silver", 2, 1),
        ("landed lines are in silver", 2, 1),
    ]
    execute(database, "delete from bronze.transaction_logs where sequence = 1")
    assert "received records are in bronze or in quarantine" in [
        row[3] for row in rows(database, "select * from metadata.verify_landed()")
    ]


def test_records_of_a_segment_nobody_can_read_are_put_against_the_days_that_lack_them(
    database: str, till: int
) -> None:
    """Its body would have said which days: 4 records are received and quarantined on no day."""
    for statement in (
        "insert into metadata.received_counts values (%s, 2, null, 4)",
        "insert into metadata.outcome_counts values (%s, 2, null, 'quarantined', 'crc', 4)",
        "insert into metadata.produced_counts values (%s, 2, '2026-03-03', 3)",
    ):
        execute(database, statement, till)
    execute(database, "update metadata.produced_counts set records = 6 where records = 5")
    execute(database, "update metadata.streams set received = '{[1,10)}', next_sequence = 10")
    assert [(row[1], *row[-4:]) for row in rows(database, EQUATION)] == [
        (DAY, 1, 0, 0, 0),
        ("2026-03-03", 3, 0, 0, 0),
        (None, -4, 0, 0, 0),
    ]
    execute(database, "update metadata.produced_counts set records = 4 where records = 3")
    assert sum(row[-1] for row in rows(database, EQUATION)) == 1


def test_readings_count_as_landed_on_the_day_of_their_store(database: str) -> None:
    tills = Tills(database)
    stream = tills.stream()
    evening = dt.datetime(2026, 3, 2, 15, 59, tzinfo=dt.UTC)  # 23:59 in Manila
    tills.readings(stream, [(evening, 1.5), (evening + dt.timedelta(minutes=1), 2.5)])
    waiting = rows(database, EQUATION)
    assert [(row[1], row[4], row[-2], row[-1]) for row in waiting] == [
        (DAY, 0, 1, 0),
        ("2026-03-03", 0, 1, 0),
    ]
    run(database)
    assert [(row[1], row[4], row[-2], row[-1]) for row in rows(database, EQUATION)] == [
        (DAY, 1, 0, 0),
        ("2026-03-03", 1, 0, 0),
    ]


def test_freshness_is_per_table_against_its_own_target(database: str, till: int) -> None:
    run(database)
    status = {
        row[0]: row[1:]
        for row in rows(
            database,
            "select dataset, rows, rows_exact, freshness_seconds < 60, sla_met, last_status"
            " from metadata.dataset_status",
        )
    }
    assert status["silver.transactions_cleaned"] == (2, True, True, True, "completed")
    assert status["platinum.demand_forecasting"] == (0, True, None, None, "completed")
    assert status["bronze.product_catalog"][1] is False
    execute(database, "update gold.customer_360 set loaded_at = now() - interval '2 hours'")
    run(database)
    met = dict(rows(database, "select dataset, met from metadata.sla_monitoring"))
    assert met["gold.customer_360"] is False
    assert met["gold.store_hour"] is True
    assert met["platinum.demand_forecasting"] is None
    since = "select breached_since from metadata.sla_monitoring where dataset = 'gold.customer_360'"
    breached = one(database, since)
    run(database)
    assert one(database, since) == breached


def test_lines_add_up_through_all_levels(database: str) -> None:
    tills = Tills(database)
    for store in ("s1", "s2"):
        stream = tills.stream(store)
        for day in range(30):
            at = NOON - dt.timedelta(days=day)
            tills.post(stream, sale(f"{store}-{day}", line("p1"), line(f"p{day % 5}")), at=at)
    run(database)
    totals = {
        table: one(database, f"select sum(lines)::int from {table}")  # ours
        for table in (
            "gold.product_store_day",
            "gold.customer_store_day",
            "gold.store_hour",
            "gold.department_store_day",
            "gold.product_month",
            "gold.customer_360",
            "gold.product_performance",
            "gold.seasonal_patterns",
        )
    }
    assert set(totals.values()) == {120}
