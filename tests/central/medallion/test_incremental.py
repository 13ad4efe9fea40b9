"""Incremental is the same as full: in any order, with anything in it, whenever it commits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from scout_central.medallion import Runner
from scout_central.medallion import contracts as contract_files
from tests.central.medallion.tills import (
    NOON,
    TABLES,
    Tills,
    contents,
    execute,
    forget,
    line,
    one,
    rows,
    run,
    sale,
)

lines = st.one_of(
    st.builds(
        line,
        product=st.sampled_from(["p1", "p2", "p3", "p4", None]),
        quantity=st.sampled_from([1, 2, "3", 0.5, 0, -1, "x", 2000]),
        value=st.sampled_from([1, 10.25, "7.5", None, 0.1 + 0.2, 99999999]),
        retail_disc=st.sampled_from([None, 0, 0.5, "1.25", "x"]),
        coupon_disc=st.sampled_from([0, 20]),
    ),
    st.sampled_from([None, "junk", [], 5]),
)
good_lines = st.builds(
    line, product=st.sampled_from(["p1", "p2", "p3"]), value=st.sampled_from([1, 2.5, 4.75])
)
documents = st.one_of(
    st.builds(
        lambda t, items, c, currency: {**sale(t, currency=currency, customer_id=c), "lines": items},
        st.sampled_from([f"t{i}" for i in range(8)]),
        st.one_of(st.lists(good_lines, min_size=1, max_size=3), st.lists(lines, max_size=3)),
        st.sampled_from(["c1", "c2", "c3", None, {"x": 1}]),
        st.sampled_from(["PHP", "PHP", "PHP", "USD"]),
    ),
    st.sampled_from([[], "junk", {"lines": 5}, {}, sale("t1", training=True)]),
)
instants = st.builds(
    lambda days, hours: NOON - dt.timedelta(days=days, hours=hours),
    st.integers(0, 40),
    st.integers(0, 15),
)
batches = st.lists(st.tuples(documents, instants), min_size=1, max_size=4)
products = st.lists(
    st.fixed_dictionaries(
        {
            "product_id": st.sampled_from(["p1", "p2", "p9", ""]),
            "department": st.sampled_from(["GROCERY", "DRINKS", ""]),
            "product_category": st.sampled_from(["a", "NA"]),
        }
    ),
    min_size=1,
    max_size=3,
)
people = st.lists(
    st.fixed_dictionaries(
        {
            "household_id": st.sampled_from(["c1", "c2", "c9"]),
            "age": st.sampled_from(["19-24", "65+", "Unknown"]),
        }
    ),
    min_size=1,
    max_size=2,
)
actions = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["s1", "s2"]), batches),
    st.tuples(st.just("open"), st.sampled_from(["s1", "s2"]), batches),
    st.tuples(st.just("end"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("end"), st.integers(0, 5), st.just(True)),
    st.tuples(st.just("products"), products, st.none()),
    st.tuples(st.just("people"), people, st.none()),
    st.tuples(st.just("run"), st.none(), st.none()),
)


@pytest.fixture
def two(database: str) -> Iterator[tuple[str, str]]:
    """A database that is kept up to date, and one that is built from nothing each time."""
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    other = f"{name}_full"
    admin = psycopg.conninfo.make_conninfo(database, dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(other), sql.Identifier(str(name))
            )
        )
        yield database, psycopg.conninfo.make_conninfo(database, dbname=other)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(other)))


class World:
    """Batches in transactions of their own, open until somebody ends them."""

    def __init__(self, kept: str, rebuilt: str) -> None:
        self.kept, self.rebuilt = Tills(kept), Tills(rebuilt)
        self.open: list[tuple[int, psycopg.Connection[Any]]] = []
        self.batches: list[tuple[int, list[tuple[Any, dt.datetime]], str]] = []
        self.loaded = 0
        self.runner, self.fuller = Runner(kept), Runner(rebuilt)

    def start(self, store: str, batch: list[tuple[Any, dt.datetime]]) -> None:
        stream = self.kept.stream(store)
        assert self.rebuilt.stream(store) == stream
        connection = psycopg.connect(self.kept.dsn)
        for document, at in batch:
            self.kept.add(connection, stream, [document], at=at)
        self.open.append((len(self.batches), connection))
        self.batches.append((stream, batch, "open"))

    def end(self, which: int, commit: bool) -> None:
        if not self.open:
            return
        number, connection = self.open.pop(which % len(self.open))
        if commit:
            connection.commit()
        else:
            connection.rollback()
        connection.close()
        stream, batch, _ = self.batches[number]
        self.batches[number] = (stream, batch, "committed" if commit else "gone")

    def check(self) -> None:
        """Run, and compare with a build from nothing of what stands below the horizon."""
        for stream, batch, state in self.batches[self.loaded :]:
            if state == "open":
                break
            if state == "committed":
                with psycopg.connect(self.rebuilt.dsn) as connection:
                    for document, at in batch:
                        self.rebuilt.add(connection, stream, [document], at=at)
            self.loaded += 1
        assert self.runner.run_once().status == "completed"
        forget(self.rebuilt.dsn)
        assert self.fuller.run_once().status == "completed"
        kept, rebuilt = contents(self.kept.dsn), contents(self.rebuilt.dsn)
        for name, texts in kept.items():
            assert texts == rebuilt[name], name
        assert self.runner.run_once().status == "completed"

    def finish(self) -> None:
        while self.open:
            self.end(0, commit=True)
        self.check()
        kept = self.kept.dsn
        assert self.runner.run_once().steps == ()
        assert rows(kept, "select * from metadata.verify_landed()") == []
        assert one(kept, "select count(*) from metadata.reconciliation where remainder <> 0") == 0
        counted = dict(rows(kept, "select dataset, rows from metadata.datasets"))
        for table in TABLES:
            assert one(kept, f"select count(*) from {table}") == counted[table]  # ours


def empty(dsn: str) -> None:
    forget(dsn)
    execute(
        dsn,
        "truncate bronze.transaction_logs, bronze.product_catalog, bronze.demographic_data,"
        " metadata.files, metadata.received_counts, metadata.produced_counts,"
        " metadata.outcome_counts, metadata.streams, metadata.devices restart identity cascade",
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # a full rebuild after each step of each story; minutes on a busy machine
def test_incremental_equals_full_whatever_happens(two: tuple[str, str]) -> None:
    kept, rebuilt = two

    @settings(
        max_examples=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(st.lists(actions, min_size=3, max_size=12))
    def property_holds(story: list[tuple[str, Any, Any]]) -> None:
        empty(kept)
        empty(rebuilt)
        world = World(kept, rebuilt)
        steps: dict[str, Callable[[Any, Any], None]] = {
            "open": world.start,
            "end": world.end,
            "products": lambda records, _: both(world, "product_catalog", records),
            "people": lambda records, _: both(world, "demographic_data", records),
            "run": lambda *_: world.check(),
        }
        try:
            for what, first, second in story:
                steps[what](first, second)
            world.finish()
        finally:
            for _, connection in world.open:
                connection.close()

    property_holds()


def both(world: World, dataset: str, records: list[dict[str, str]]) -> None:
    world.kept.upload(dataset, records)
    world.rebuilt.upload(dataset, records)


def test_a_row_that_commits_late_is_picked_up(database: str) -> None:
    """``id > max(id)`` loses it for ever: the later transaction commits first."""
    tills = Tills(database)
    early, late = tills.stream("s1"), tills.stream("s2")
    with psycopg.connect(database) as slow:
        tills.add(slow, early, [sale("slow")])
        tills.post(late, sale("fast"))
        run(database)
        # the fast one waits as well: its transaction is not below the horizon yet
        assert one(database, "select count(*) from silver.transactions_cleaned") == 0
        assert one(database, "select sum(pending)::int from metadata.reconciliation") == 1
    run(database)
    assert rows(database, "select transaction_id from silver.transactions_cleaned order by 1") == [
        ("fast",),
        ("slow",),
    ]
    assert one(database, "select sum(lines)::int from gold.product_store_day") == 2


def test_the_first_document_of_a_transaction_wins_within_a_batch_and_across(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line(value=1)), sale("t1", line(value=2)))
    run(database)
    tills.post(till, sale("t1", line(value=3), line("p2", value=4)))
    run(database)
    assert rows(
        database, "select line_number, sales_value::int from silver.transactions_cleaned"
    ) == [(1, 1)]
    assert sorted(rows(database, "select outcome, records from metadata.outcome_counts")) == [
        ("duplicate", 2),
        ("landed", 1),
    ]


def test_the_first_of_two_transactions_wins_even_when_it_commits_last(database: str) -> None:
    tills = Tills(database)
    early, late = tills.stream(), tills.stream()
    with psycopg.connect(database) as slow:
        tills.add(slow, early, [sale("t1", line(value=1))])
        tills.post(late, sale("t1", line(value=2)))
        run(database)
    run(database)
    assert rows(database, "select sales_value::int from silver.transactions_cleaned") == [(1,)]


def test_a_repaired_row_and_a_deleted_row_reach_gold(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line("p1"), line("p2")), sale("t2", line("p2"), customer_id="c2"))
    run(database)
    execute(
        database,
        "with gone as (delete from silver.transactions_cleaned where customer_id = 'c2'"
        " returning store_id, transaction_id, line_number, to_jsonb(transactions_cleaned) as row)"
        " insert into metadata.deleted_keys (dataset, key)"
        " select 'silver.transactions_cleaned', row from gone",
    )
    run(database)
    assert rows(database, "select customer_id from gold.customer_360") == [("c1",)]
    assert rows(database, "select product_id, lines from gold.product_performance order by 1") == [
        ("p1", 1),
        ("p2", 1),
    ]


def test_unchanged_rows_are_not_written_again(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line("p1")), sale("t2", line("p2")))
    tills.upload("product_catalog", [{"product_id": "p1", "department": "GROCERY"}])
    run(database)
    before = rows(database, "select product_id, xid from gold.product_performance order by 1")
    tills.upload("product_catalog", [{"product_id": "p1", "department": "GROCERY"}])
    result = run(database)
    assert [(s.dataset, s.rows_inserted, s.rows_updated) for s in result.steps] == [
        ("silver.product_hierarchy", 0, 0)
    ]
    run(database, full=True)
    assert before == rows(
        database, "select product_id, xid from gold.product_performance order by 1"
    )


def test_a_full_run_mends_whatever_somebody_broke(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line("p1")), sale("t2", line("p2")), sale("t2"))
    tills.readings(till, [(NOON, 4.5), (NOON, 5.0)])
    run(database)
    sound = contents(database)
    execute(database, "update gold.product_performance set lines = 99, xid = 1")
    execute(database, "delete from silver.transactions_cleaned where transaction_id = 't1'")
    execute(
        database,
        "insert into gold.store_hour select 'ghost', business_date, local_hour,"
        " weekday, 1, 1, 1, 'PHP', 1 from gold.store_hour limit 1",
    )
    execute(database, "update silver.device_readings_hourly set readings = 7")
    execute(database, "delete from metadata.outcome_counts")
    assert contents(database) != sound
    run(database, full=True)
    assert contents(database) == sound


def test_readings_merge_into_their_hours_in_any_order(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.readings(till, [(NOON, 0.1), (NOON + dt.timedelta(minutes=59), 0.3)])
    run(database)
    tills.readings(till, [(NOON + dt.timedelta(minutes=5), 0.2), (NOON - dt.timedelta(1), -7)])
    run(database)
    assert rows(
        database,
        "select hour, readings, minimum, maximum, total::text"
        " from silver.device_readings_hourly order by hour",
    ) == [
        (NOON - dt.timedelta(1), 1, -7, -7, "-7"),
        (NOON, 3, 0.1, 0.3, "0.6"),
    ]
    kept = contents(database)
    forget(database)
    run(database)
    assert contents(database) == kept


def test_rows_of_another_cluster_are_adopted_and_everything_is_rebuilt(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1"), sale("t2"))
    run(database)
    sound = contents(database)
    # as after dump and restore: numbers far ahead of this cluster's, and a foreign watermark
    execute(database, "update bronze.transaction_logs set xid = xid + 1000000000")
    execute(database, "update metadata.watermarks set cluster_id = '1', xid = xid + 1000000000")
    execute(database, "truncate silver.transactions_cleaned")
    result = run(database)
    assert {step.reason for step in result.steps} == {"another cluster"}
    assert contents(database) == sound
    tills.post(till, sale("t3"))
    run(database)
    assert one(database, "select count(*) from silver.transactions_cleaned") == 3


def test_a_run_with_nothing_to_do_writes_nothing_but_freshness(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1"))
    run(database)
    query = (
        "select (select count(*) from metadata.agent_orchestration),"
        " (select count(*) from metadata.data_lineage),"
        " (select count(*) from metadata.quality_metrics),"
        " (select max(updated_at) from metadata.watermarks),"
        " (select max(xid) from gold.customer_360)"
    )
    before = rows(database, query)
    measured = one(database, "select min(measured_at) from metadata.sla_monitoring")
    result = run(database)
    assert result.steps == ()
    assert result.run_id is None
    assert rows(database, query) == before
    assert one(database, "select min(measured_at) from metadata.sla_monitoring") > measured


def test_contracts_are_loaded_once_per_version(database: str) -> None:
    run(database)
    run(database)
    assert rows(database, "select contract_id, version from metadata.data_contracts") == [
        (c.contract_id, c.version) for c in contract_files.load().values()
    ]
