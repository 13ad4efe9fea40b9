"""Order, failure, races and the ledger of runs."""

from __future__ import annotations

import threading
from dataclasses import replace

import psycopg
import pytest

from scout_central import medallion
from scout_central.database import connect
from scout_central.medallion import Runner, lineage, model
from scout_shared.errors import ConfigError
from tests.central.medallion.tills import Tills, contents, execute, line, one, rows, run, sale

MODELS = model.load()


def changed(dataset: str, old: str, new: str) -> dict[str, model.Model]:
    """All models, one with another text."""
    found = MODELS[dataset]
    assert old in found.sql
    return {
        **MODELS,
        dataset: replace(found, sql=found.sql.replace(old, new), sha256=f"{found.sha256}+"),
    }


@pytest.fixture
def sold(database: str) -> str:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line("p1"), line("p2")), sale("t2", line("p2"), customer_id="c2"))
    tills.upload(
        "product_catalog",
        [{"product_id": "p1", "department": "A"}, {"product_id": "p2", "department": "A"}],
    )
    return database


def test_a_join_that_fans_out_fails_before_anything_is_published(sold: str) -> None:
    run(sold)
    before = contents(sold)
    # joined by department instead of the key: each product meets both
    fanning = changed(
        "gold.department_store_day",
        "on sold.product_id = product.product_id",
        "on sold.product_id = product.product_id or product.department = 'A'",
    )
    result = Runner(sold, models=fanning).run_once()
    statuses = {step.dataset: step.status for step in result.steps}
    assert statuses == {
        "gold.department_store_day": "failed",
        "platinum.demand_forecasting": "blocked",
    }
    assert "lines adds up to 6, its inputs to 3" in result.steps[0].message
    assert contents(sold) == before
    assert one(sold, "select error_type from metadata.error_log where state = 'open'") == "data"


def test_a_select_that_gives_a_key_twice_fails_before_anything_is_published(sold: str) -> None:
    doubled = changed("silver.product_hierarchy", "limit 1", "limit 2")
    tills = Tills(sold)
    tills.upload("product_catalog", [{"product_id": "p1", "department": "B"}])
    result = Runner(sold, models=doubled).run_once()
    failed = next(step for step in result.steps if step.status == "failed")
    assert failed.dataset == "silver.product_hierarchy"
    assert "more than once" in failed.message
    assert one(sold, "select count(*) from silver.product_hierarchy") == 0


def test_a_step_that_fails_is_rolled_back_and_blocks_what_follows_only(sold: str) -> None:
    broken = changed("gold.product_store_day", "count(*) as lines", "count(*) / 0 as lines")
    result = Runner(sold, models=broken).run_once()
    assert result.status == "failed"
    statuses = {step.dataset: step.status for step in result.steps}
    assert statuses["gold.product_store_day"] == "failed"
    assert statuses["gold.product_performance"] == "blocked"
    assert statuses["platinum.demand_forecasting"] == "blocked"
    assert statuses["gold.customer_360"] == "completed"
    assert one(sold, "select count(*) from gold.product_store_day") == 0
    assert one(sold, "select count(*) from gold.customer_360") == 2
    assert rows(
        sold, "select code, dataset, occurrences from metadata.error_log where state = 'open'"
    ) == [("PermanentError", "gold.product_store_day", 1)]
    assert one(
        sold,
        "select event #>> '{run,facets,errorMessage,message}' from metadata.data_lineage"
        " where event_type = 'FAIL'",
    ).startswith("PostgreSQL refused the statement (22012)")
    assert (
        one(sold, "select status from metadata.agent_orchestration where task = 'medallion'")
        == "failed"
    )
    assert (
        one(
            sold,
            "select last_status from metadata.datasets where dataset = 'gold.product_performance'",
        )
        == "blocked"
    )
    run(sold)
    assert one(sold, "select count(*) from gold.product_performance") == 2
    assert one(sold, "select state from metadata.error_log") == "resolved"


def test_when_two_runners_race_one_is_skipped_and_nothing_is_written_twice(sold: str) -> None:
    barrier = threading.Barrier(4)
    statuses: list[str] = []

    def race() -> None:
        runner = Runner(sold)
        barrier.wait()
        statuses.append(runner.run_once().status)

    racers = [threading.Thread(target=race) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert "completed" in statuses
    run(sold)
    assert one(sold, "select count(*) from silver.transactions_cleaned") == 3
    assert one(sold, "select sum(records)::int from metadata.outcome_counts") == 2
    assert (
        one(
            sold,
            "select count(*) from metadata.agent_orchestration"
            " where task = 'silver.transactions_cleaned'",
        )
        == 1
    )


def test_a_run_is_skipped_while_another_holds_the_lock(sold: str) -> None:
    from scout_central.medallion import runner

    with psycopg.connect(sold) as other:
        other.execute("select pg_advisory_xact_lock(%s)", (runner._RUN_LOCK,))
        assert Runner(sold).run_once().status == "skipped"
    assert Runner(sold).run_once().status == "completed"


def test_a_run_that_died_is_called_so_by_the_next(sold: str) -> None:
    execute(
        sold,
        "insert into metadata.agent_orchestration (agent, task, trigger, status, worker)"
        " values ('aggregate', 'medallion', 'micro-batch', 'running', 'gone:1')",
    )
    run(sold)
    assert (
        one(sold, "select status from metadata.agent_orchestration where worker = 'gone:1'")
        == "failed"
    )


def test_plan_says_what_would_run_and_why(sold: str) -> None:
    assert {(s.mode, s.reason) for s in medallion.plan(sold)} == {("full", "first time")}
    run(sold)
    assert medallion.plan(sold) == []
    tills = Tills(sold)
    tills.upload("demographic_data", [{"household_id": "c1", "age": "65+"}])
    assert [(s.dataset, s.mode, s.reason) for s in medallion.plan(sold)] == [
        ("silver.customer_profiles", "incremental", "new rows in bronze.demographic_data"),
        ("gold.customer_360", "incremental", "follows silver.customer_profiles"),
    ]


def test_only_the_datasets_asked_for_run(sold: str) -> None:
    result = run(sold, datasets=["silver.transactions_cleaned"])
    assert [step.dataset for step in result.steps] == ["silver.transactions_cleaned"]
    with pytest.raises(ConfigError, match="no dataset") as caught:
        Runner(sold).run_once(datasets=["silver.transactions_cleand"])
    assert "silver.transactions_cleaned" in caught.value.hint


def test_another_sql_text_means_a_full_rebuild_of_that_dataset_alone(sold: str) -> None:
    run(sold)
    newer = changed("gold.seasonal_patterns", "count(*) as days_sold", "1 * count(*) as days_sold")
    result = Runner(sold, models=newer).run_once()
    assert [(s.dataset, s.mode, s.reason) for s in result.steps] == [
        ("gold.seasonal_patterns", "full", "SQL or contract changed")
    ]


def test_the_ledger_and_the_lineage_event_say_what_a_step_did(sold: str) -> None:
    result = run(sold)
    step = result.steps[0]
    assert rows(
        sold,
        "select status, mode, rows_read, rows_written, rows_deleted, parent_run_id::text"
        " from metadata.agent_orchestration where run_id = %s",
        step.run_id,
    ) == [("completed", "full", 2, 3, 0, result.run_id)]
    event = one(sold, "select event from metadata.data_lineage where run_id = %s", step.run_id)
    assert event["eventType"] == "COMPLETE"
    assert event["run"]["runId"] == step.run_id
    (output,) = event["outputs"]
    assert output["name"].endswith(".silver.transactions_cleaned")
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 3
    sources = output["facets"]["columnLineage"]["fields"]["sales_value"]["inputFields"]
    assert [(s["name"].split(".", 1)[1], s["field"]) for s in sources] == [
        ("bronze.transaction_logs", "document")
    ]
    assert {f["name"] for f in output["facets"]["schema"]["fields"]} >= {"quantity", "xid"}
    metrics = dict(
        rows(
            sold, "select metric, met from metadata.quality_metrics where run_id = %s", step.run_id
        )
    )
    assert metrics["completeness_ratio.product_id"] is True


def test_gold_customers_walk_back_to_bronze(sold: str) -> None:
    run(sold)
    walked = rows(
        sold,
        "with recursive walk as ("
        " select target_column as column, source_dataset, source_column"
        " from metadata.lineage_edges where target_dataset = 'gold.customer_360'"
        " union select walk.column, edge.source_dataset, edge.source_column from walk"
        " inner join metadata.lineage_edges as edge on edge.target_dataset = walk.source_dataset"
        " and edge.target_column = walk.source_column)"
        " select walk.column, source_dataset, source_column from walk"
        " where source_dataset like 'bronze.%%' and walk.column <> '*'",
    )
    origins: dict[str, set[tuple[str, str]]] = {}
    for column, dataset, source in walked:
        origins.setdefault(column, set()).add((dataset, source))
    document = ("bronze.transaction_logs", "document")
    assert origins["lifetime_sales_value"] == {document}
    assert origins["last_seen_on"] == {("bronze.transaction_logs", "business_date")}
    # the newest record decides: which one that is comes from the file and the line
    assert origins["age_band"] == {
        ("bronze.demographic_data", column) for column in ("record", "file_id", "line_number")
    }
    assert origins["main_store_id"] == {("bronze.transaction_logs", "store_id"), document}
    table = set(
        one_list(
            sold,
            "select attname from pg_attribute where attnum > 0"
            " and attrelid = 'gold.customer_360'::regclass",
        )
    )
    # a count of rows comes from no column
    assert set(origins) == table - {"loaded_at", "xid", "lines", "stores"}


def one_list(dsn: str, query: str) -> list[str]:
    return [value for (value,) in rows(dsn, query)]


def test_inputs_come_before_what_is_made_of_them(database: str) -> None:
    with connect(database, application="test") as connection:
        graph = lineage.build(MODELS, lineage.catalogue(connection))
    order = list(graph.nodes)
    for name, node in graph.nodes.items():
        for source in node.inputs:
            assert source.startswith("bronze.") or order.index(source) < order.index(name)
    assert graph.consumers("gold.store_hour") == ["gold.seasonal_patterns"]


@pytest.mark.parametrize(
    "dataset, old, new, message",
    [
        ("gold.customer_360", "silver.customer_profiles", "silver.customers", "no table"),
        ("gold.customer_360", "profile.age_band", "profile.age", "age"),
        ("gold.customer_360", "profile.children,", "", "does not give children"),
        (
            "gold.store_hour",
            "count(*) as lines,",
            "count(*) as lines, 1 as more,",
            "no column more",
        ),
        ("silver.device_readings_hourly", "log.xid >= %(from_xid)s", "true", "from_xid"),
        ("gold.store_hour", "from touched", "from from", "cannot be read"),
    ],
)
def test_sql_that_does_not_fit_the_tables_is_an_error_before_anything_runs(
    sold: str, dataset: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Runner(sold, models=changed(dataset, old, new)).run_once()
    assert dataset in caught.value.message
    assert one(sold, "select count(*) from metadata.agent_orchestration") == 0


def test_models_that_read_each_other_are_refused(database: str) -> None:
    circle = dict(MODELS)
    hours = circle["gold.store_hour"]
    circle["gold.store_hour"] = replace(
        hours,
        sql=hours.sql.replace(
            "from touched", "from touched inner join gold.seasonal_patterns as s on true"
        ),
        touched={
            **hours.touched,
            "gold.seasonal_patterns": "select changed.store_id, date '2026-01-01' as business_date,"
            " changed.local_hour from changed",
        },
    )
    with pytest.raises(ConfigError, match="circle"):
        Runner(database, models=circle).run_once()


def test_touched_keys_may_not_hang_on_what_an_update_can_change(database: str) -> None:
    sloppy = dict(MODELS)
    sloppy["gold.department_store_day"] = replace(
        MODELS["gold.department_store_day"],
        touched={
            **MODELS["gold.department_store_day"].touched,
            "silver.product_hierarchy": "select changed.department as store_id,"
            " date '2026-01-01' as business_date from changed",
        },
    )
    with pytest.raises(ConfigError, match="not in the key"):
        Runner(database, models=sloppy).run_once()


@pytest.mark.parametrize(
    "header, message",
    [
        ("-- dataset: gold.x\n-- key: [a]\n", "strategy None"),
        ("-- dataset: gold.x\n-- strategy: keyed\n", "lacks grain, key"),
        ("-- a: [\n", "not YAML"),
        ("select 1", "no header"),
    ],
)
def test_a_header_that_says_too_little_is_refused(header: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.parse(header, "x.sql")


def test_an_unknown_header_field_names_the_nearest() -> None:
    text = (
        "-- dataset: gold.x\n-- grain: g\n-- key: [a]\n-- strategy: keyed\n-- touched: {}\n"
        "-- sla_seconds: 1\n-- limits: none\n-- gaurds: {}\nselect 1 as a"
    )
    with pytest.raises(ConfigError) as caught:
        model.parse(text, "x.sql")
    assert caught.value.hint == "did you mean 'guards'?"
