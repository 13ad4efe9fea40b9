"""The API over real HTTP: who gets in, what they see, what happens without a database."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scout_central.api import failures
from scout_central.database import migrate
from scout_central.embedded import EmbeddedPostgres
from tests.central.api.living import (
    NORTH,
    SOUTH,
    LiveHub,
    empty_hub,
    hub,
    new_database,
    seed,
    serving,
)
from tests.harness.waiting import eventually, free_port

__all__ = ["empty_hub", "hub"]

WALK = (
    "/v1/lineage/row?dataset=silver.transactions_cleaned"
    "&key=store_id:{0}&key=line_number:1&key=transaction_id:transaction_id-{0}"
)
VIEWER_PATHS = [
    "/v1/overview",
    "/v1/fleet",
    "/v1/fleet/till-north",
    "/v1/devices/till-north/life",
    "/v1/runs",
    "/v1/tables",
    "/v1/reconciliation",
    "/v1/tables/gold.store_hour/rows",
    "/v1/quarantine",
    "/v1/errors",
    "/v1/quality",
    "/v1/lineage/gold.product_store_day",
    WALK.format(NORTH),
]


def get_paths(openapi: dict[str, Any]) -> set[str]:
    return {path for path, item in openapi["paths"].items() if "get" in item}


def test_openapi_describes_every_endpoint_and_field(hub: LiveHub) -> None:
    answer = hub.get("/v1/openapi.json", None)
    assert answer.status_code == 200
    described = answer.json()
    for path, item in described["paths"].items():
        for method, operation in item.items():
            assert operation.get("description"), f"{method} {path}"
            for parameter in operation.get("parameters", ()):
                named = parameter["name"] in ("device_id", "dataset")
                assert parameter.get("description") or named, (path, parameter["name"])
    assert "/v1/overview" in described["paths"]
    assert "UploadResult" in described["components"]["schemas"]


def test_the_matrix_of_roles_covers_every_get_endpoint(hub: LiveHub) -> None:
    known = {path.partition("?")[0] for path in VIEWER_PATHS}
    known |= {"/v1/health", "/v1/me", "/v1/uploads"}
    generic = {
        p.replace("{device_id}", "till-north")
        .replace("/tables/{dataset}", "/tables/gold.store_hour")
        .replace("{dataset}", "gold.product_store_day")
        for p in get_paths(hub.get("/v1/openapi.json", None).json())
    }
    assert generic == known


@pytest.mark.parametrize("path", [*VIEWER_PATHS, "/v1/me", "/v1/uploads", "/metrics"])
def test_nobody_reads_without_a_known_token(hub: LiveHub, path: str) -> None:
    for bearer in (None, "unknown", "viewer-al"):
        answer = hub.get(path, bearer)
        assert answer.status_code == 401, (path, bearer)
        assert answer.json()["hint"]
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", VIEWER_PATHS)
def test_viewer_paths_by_role(hub: LiveHub, path: str) -> None:
    for bearer in ("viewer-all", "viewer-north", "operator-all", "operator-north", "admin-all"):
        assert hub.get(path, bearer).status_code == 200, (path, bearer)
    answer = hub.get(path, "uploader-all")
    assert answer.status_code == 403
    assert "viewer" in answer.json()["message"]


def test_uploads_by_role(hub: LiveHub) -> None:
    for bearer, status in (
        ("viewer-all", 403),
        ("viewer-north", 403),
        ("operator-north", 403),
        ("operator-all", 422),
        ("admin-all", 422),
        ("uploader-all", 422),
        (None, 401),
    ):
        answer = hub.request("POST", "/v1/uploads/product_catalog", bearer, files={"nothing": b"x"})
        assert answer.status_code == status, (bearer, answer.text)
        assert set(answer.json()) == {"error", "message", "hint"}
    assert hub.get("/v1/uploads", "uploader-all").status_code == 200
    assert hub.get("/metrics", "viewer-north").status_code == 403


def test_an_upload_is_refused_before_its_body_is_read(hub: LiveHub) -> None:
    with socket.create_connection(("127.0.0.1", hub.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/uploads/product_catalog HTTP/1.1\r\nhost: x\r\n"
            b"authorization: Bearer viewer-all\r\ncontent-length: 100000000\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n\r\n"
        )
        assert connection.recv(12) == b"HTTP/1.1 403"


DATASETS = [
    "silver.transactions_cleaned",
    "silver.product_hierarchy",
    "silver.customer_profiles",
    "silver.device_readings_hourly",
    "gold.product_store_day",
    "gold.customer_store_day",
    "gold.store_hour",
    "gold.department_store_day",
    "gold.customer_360",
    "gold.product_performance",
    "gold.seasonal_patterns",
    "platinum.demand_forecasting",
]


def test_no_endpoint_returns_anything_of_another_store(hub: LiveHub) -> None:
    paths = [
        *VIEWER_PATHS,
        "/v1/uploads",
        "/v1/me",
        "/v1/health",
        "/v1/quarantine?state=all",
        "/v1/reconciliation?by=device",
        "/v1/reconciliation?by=day",
        "/v1/tables?exact=true",
        "/v1/lineage/row?dataset=silver.product_hierarchy&key=product_id:product_id-north",
        *(f"/v1/tables/{dataset}/rows?limit=1000" for dataset in DATASETS),
        *(f"/v1/lineage/{dataset}" for dataset in DATASETS),
    ]
    told = 0
    for path in paths:
        answer = hub.get(path, "viewer-north")
        assert answer.status_code in (200, 404), (path, answer.text)
        assert SOUTH not in answer.text, f"{path}: {answer.text}"
        told += SOUTH in hub.get(path, "viewer-all").text
        nowhere = hub.get(path, "viewer-nowhere")
        if nowhere.status_code == 200 and "north" not in path:
            assert '"north' not in nowhere.text, f"{path}: {nowhere.text}"
    assert told > 15, "the seed must have something to hide behind most endpoints"


def test_counts_are_of_the_callers_stores(hub: LiveHub) -> None:
    both = hub.get("/v1/overview", "viewer-all").json()
    one = hub.get("/v1/overview", "viewer-north").json()
    assert (both["fleet"]["devices"], one["fleet"]["devices"]) == (2, 1)
    assert (both["quarantine_open"], one["quarantine_open"]) == (2, 1)
    assert (both["errors_open"], one["errors_open"]) == (2, 1)
    documents = {row["kind"]: row for row in one["reconciliation"]}["documents"]
    assert documents["received"] == 4
    rows = {t["dataset"]: t["rows"] for t in hub.get("/v1/tables", "viewer-north").json()["tables"]}
    assert rows["silver.transactions_cleaned"] == 1
    assert rows["gold.customer_360"] == 0
    assert rows["bronze.transaction_logs"] == 4


def test_another_stores_device_and_row_do_not_exist(hub: LiveHub) -> None:
    for path in ("/v1/fleet/till-south", WALK.format(SOUTH)):
        assert hub.get(path, "viewer-all").status_code == 200
        answer = hub.get(path, "viewer-north")
        assert answer.status_code == 404
        assert answer.json()["error"] == "not_found"


def test_the_reconciliation_equation_holds_in_each_row(hub: LiveHub) -> None:
    for by in ("total", "device", "day"):
        answer = hub.get(f"/v1/reconciliation?by={by}").json()
        assert answer["adds_up"] is True
        assert len(answer["rows"]) == (0 if by == "total" else 4)
        for row in answer["totals"] + answer["rows"]:
            assert row["produced"] + row["unreported"] == (
                row["received"] + row["undated"] + row["in_transit"]
            )
            assert row["received"] == (
                row["landed"]
                + row["duplicate"]
                + row["quarantined"]
                + row["excluded"]
                + row["given_up"]
                + row["pending"]
            )


def test_a_device_says_how_it_is(hub: LiveHub) -> None:
    answer = hub.get("/v1/fleet/till-north").json()
    device = answer["device"]
    assert device["status"] == "online"
    # sealed up to 10, of which 1-4 and 7-8 are here, and 2 not sealed yet
    assert device["backlog_records"] == 10 - 6 + 2
    assert device["oldest_unsent_seconds"] >= 60
    assert (device["buffer_bytes"], device["clock_synced"]) == (4096, True)
    (stream,) = answer["streams"]
    assert (stream["watermark"], stream["held_records"], stream["gaps"]) == (4, 6, 1)
    (reading,) = answer["readings"]
    assert (reading["metric"], reading["value"]) == ("fridge_celsius", 22.0)
    assert answer["counters"] == {"reconnects": 3}
    # what came after all is told, and counted no more
    assert [(g["records"], g["kind"], g["closed_at"] is None) for g in answer["gaps"]] == [
        (9, "unknown", False),
        (60, "readings", True),
    ]
    assert (device["given_up_records"], device["damaged_files"]) == (60, 1)


@pytest.mark.parametrize(
    "change,status",
    [
        ("online = false, status_changed_at = now()", "dark"),
        ("online = null, hello_received_at = null, status_changed_at = null", "unknown"),
        ("hello_received_at = now() - interval '2 minutes', status_changed_at = null", "late"),
        ("hello_received_at = now() - interval '1 day', status_changed_at = null", "dark"),
        ("hello = hello || jsonb_build_object('buffer_bytes', 1e30, 'counters', 5)", "online"),
    ],
)
def test_states_of_a_device(database: str, tmp_path: Path, change: str, status: str) -> None:
    seed(database)
    with psycopg.connect(database) as connection:
        if "unknown" not in status:
            connection.execute(
                "update metadata.streams set last_seen_at = now() - interval '1 day'"
            )
        else:
            for table in (
                "segments",
                "produced_counts",
                "received_counts",
                "outcome_counts",
                "gaps",
            ):
                connection.execute(f"delete from metadata.{table}".encode())
            connection.execute("delete from metadata.streams")
        connection.execute(
            f"update metadata.devices set {change} where store_id = 'north'".encode()
        )
    with serving(database, tmp_path) as live:
        device = live.get("/v1/fleet/till-north").json()["device"]
        assert device["status"] == status, device
        listed = live.get(f"/v1/fleet?status={status}").json()["devices"]
        assert "till-north" in [d["device_id"] for d in listed]


def test_pages_give_each_row_once_in_any_order(hub: LiveHub) -> None:
    for sort in (None, "store_id", "-sales_value", "-loaded_at", "currency"):
        found: list[str] = []
        cursor = None
        while True:
            params = {"limit": "1", "sort": sort, "cursor": cursor}
            page = hub.get(
                "/v1/tables/gold.product_store_day/rows",
                params={k: v for k, v in params.items() if v},
            ).json()
            found += [row["store_id"] for row in page["rows"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert sorted(found) == [NORTH, SOUTH], sort


def test_pages_pass_over_nulls_once(database: str, tmp_path: Path) -> None:
    seed(database)
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into gold.product_store_day (store_id, product_id, business_date,"
            " transactions, lines, quantity, sales_value, warned_lines)"
            " select 's', 'p' || i, '2026-01-01', 1, 1, 1,"
            " case when i % 3 > 0 then i / 2 end, 0 from generate_series(1, 20) as i"
        )
    with serving(database, tmp_path) as live:
        for sort in ("sales_value", "-sales_value"):
            keys: list[str] = []
            values: list[Any] = []
            cursor: str | None = ""
            while cursor is not None:
                page = live.get(
                    "/v1/tables/gold.product_store_day/rows",
                    params={
                        "sort": sort,
                        "limit": "3",
                        "filter": "store_id:eq:s",
                        **({"cursor": cursor} if cursor else {}),
                    },
                ).json()
                keys += [row["product_id"] for row in page["rows"]]
                values += [row["sales_value"] for row in page["rows"]]
                cursor = page["next_cursor"]
            assert sorted(keys) == sorted(f"p{i}" for i in range(1, 21))
            known = [float(v) for v in values if v is not None]
            assert known == sorted(known, reverse=sort.startswith("-"))
            assert values[len(known) :] == [None] * (20 - len(known))


@pytest.mark.parametrize(
    "query,status",
    [
        ("filter=store_id:eq:north", 200),
        ("filter=store_id:in:north,south&filter=lines:ge:1", 200),
        ("filter=currency:null:false&sort=-business_date", 200),
        ("filter=store_id:eq:x' or true --", 200),
        ("filter=nope:eq:1", 422),
        ("filter=lines:eq:many", 422),
        ("filter=lines:about:1", 422),
        ("filter=lines", 422),
        ("sort=nope", 422),
        ('sort=store_id" desc; drop table gold.store_hour; --', 422),
        ("cursor=nonsense", 422),
        ("cursor=WyJhIl0", 422),
        ("limit=0", 422),
        ("limit=100000", 422),
    ],
)
def test_questions_about_rows(hub: LiveHub, query: str, status: int) -> None:
    answer = hub.get(f"/v1/tables/gold.store_hour/rows?{query}")
    assert answer.status_code == status, answer.text
    if status != 200:
        assert set(answer.json()) == {"error", "message", "hint"}
    elif "--" in query:
        assert answer.json()["rows"] == []


@pytest.mark.parametrize(
    "dataset", ["metadata.devices", "bronze.transaction_logs", "pg_catalog.pg_authid", "x", "gold."]
)
def test_only_silver_and_above_can_be_paged(hub: LiveHub, dataset: str) -> None:
    assert hub.get(f"/v1/tables/{dataset}/rows").status_code == 404


def test_times_are_utc_and_decimals_exact(hub: LiveHub) -> None:
    (row,) = hub.get("/v1/tables/gold.customer_360/rows?limit=1").json()["rows"]
    assert row["lifetime_sales_value"] == "1.00"
    assert dt.datetime.fromisoformat(row["loaded_at"]).utcoffset() == dt.timedelta(0)
    assert "xid" not in row


def test_a_row_is_walked_back_to_its_segment_device_and_boot(hub: LiveHub) -> None:
    answer = hub.get(WALK.format(NORTH)).json()
    assert answer["row"]["product_id"] == "product_id-north"
    (origin,) = answer["origins"]
    assert origin["record"] == {"transaction_id": "t-north", "n": 2}
    assert origin["device_id"] == "till-north"
    assert origin["boot_id"] == "ab" * 16
    assert (origin["segment_first_sequence"], origin["segment_records"]) == (1, 4)
    assert origin["sequence"] == 2
    assert origin["received_at"]


def test_an_hour_of_telemetry_and_a_product_are_walked_back(hub: LiveHub) -> None:
    (hour,) = hub.get(
        "/v1/tables/silver.device_readings_hourly/rows?filter=store_id:eq:north"
    ).json()["rows"]
    key = [f"{n}:{hour[n]}" for n in ("store_id", "stream_id", "metric_id", "hour")]
    answer = hub.get(
        "/v1/lineage/row", params={"dataset": "silver.device_readings_hourly", "key": key}
    ).json()
    assert [o["record"]["value"] for o in answer["origins"]] == [21, 22]
    assert {o["segment_first_sequence"] for o in answer["origins"]} == {7}
    (origin,) = hub.get(
        "/v1/lineage/row?dataset=silver.product_hierarchy&key=product_id:product_id-north"
    ).json()["origins"]
    assert (origin["file_name"], origin["line_number"]) == ("south.csv", 2)


@pytest.mark.parametrize(
    "query,status",
    [
        ("dataset=gold.store_hour&key=store_id:north", 422),
        ("dataset=silver.product_hierarchy&key=product_id", 422),
        ("dataset=silver.product_hierarchy&key=brand:x", 422),
        ("dataset=silver.product_hierarchy&key=product_id:nope", 404),
        ("dataset=silver.transactions_cleaned&key=store_id:north", 422),
    ],
)
def test_walks_that_lead_nowhere(hub: LiveHub, query: str, status: int) -> None:
    answer = hub.get(f"/v1/lineage/row?{query}")
    assert answer.status_code == status
    assert answer.json()["hint"]


def test_lineage_goes_both_ways_all_the_way(hub: LiveHub) -> None:
    answer = hub.get("/v1/lineage/gold.product_store_day").json()
    assert [(e["source_dataset"], e["depth"]) for e in answer["upstream"]] == [
        ("silver.transactions_cleaned", 1),
        ("bronze.transaction_logs", 2),
    ]
    assert [e["target_dataset"] for e in answer["downstream"]] == ["gold.product_performance"]
    assert hub.get("/v1/lineage/gold.nope").status_code == 404


def test_the_overview_says_why_it_is_not_ok(hub: LiveHub) -> None:
    answer = hub.get("/v1/overview").json()
    assert answer["status"] == "degraded"
    assert answer["reasons"] == ["gold misses its SLA"]
    tiles = {t["layer"]: t for t in answer["layers"]}
    assert list(tiles) == ["bronze", "silver", "gold", "platinum"]
    assert tiles["gold"]["worst_sla"]["dataset"] == "gold.product_store_day"
    assert tiles["bronze"]["rows"] > 0
    assert tiles["bronze"]["status"] == "ok"
    assert tiles["bronze"]["age_seconds"] is not None
    assert answer["forecast"]["status"] == "baseline"
    assert "Baseline" in answer["forecast"]["label"]
    assert answer["adds_up"] is True


def test_runs_come_with_their_steps(hub: LiveHub) -> None:
    (run,) = hub.get("/v1/runs").json()["runs"]
    assert len(run["steps"]) == 2
    (by_step,) = hub.get("/v1/runs?task=gold.product_store_day").json()["runs"]
    assert by_step["run_id"] == run["run_id"]
    assert hub.get("/v1/runs?task=nope").json()["runs"] == []
    assert hub.get("/v1/runs", "viewer-north").json()["runs"] == []


def test_quality_gives_the_newest_value_of_each_metric(hub: LiveHub) -> None:
    metrics = hub.get("/v1/quality").json()["metrics"]
    assert {(m["dataset"], m["metric"]): m["value"] for m in metrics} == {
        ("silver.transactions_cleaned", "complete"): "0.75",
        ("gold.store_hour", "unique"): "1",
    }


def test_an_empty_hub_answers_everything(empty_hub: LiveHub) -> None:
    for path in ("health", "overview", "fleet", "runs", "tables", "reconciliation", "quarantine"):
        answer = empty_hub.get(f"/v1/{path}")
        assert answer.status_code == 200, answer.text
    overview = empty_hub.get("/v1/overview").json()
    assert overview["forecast"]["status"] == "none"
    assert {t["status"] for t in overview["layers"]} == {"empty"}
    assert overview["status"] == "ok"


def test_a_stopped_database_is_503_fast_and_health_says_so(folder: Path, tmp_path: Path) -> None:
    with EmbeddedPostgres(
        folder / "stopping", port=free_port(), settings={"fsync": "off"}
    ) as server:
        migrate(server.dsn)
        with serving(server.dsn, tmp_path) as live:
            assert live.get("/v1/overview").status_code == 200
            server.stop()
            for path in ("/v1/overview", "/v1/fleet", "/v1/tables"):
                started = time.monotonic()
                answer = live.get(path)
                assert time.monotonic() - started < 5
                assert answer.status_code == 503
                assert answer.json()["error"] == "database_away"
                assert float(answer.headers["retry-after"]) > 0
            health = live.get("/v1/health", None)
            assert health.status_code == 503
            assert health.json()["status"] == "down"
            upload = live.upload("product_catalog", "p.csv", b"product_id\n1\n")
            assert upload.status_code == 503
            server.start()
            eventually(lambda: live.get("/v1/overview").status_code == 200, 20, "it is back")


def test_a_frozen_database_makes_nobody_wait(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in mid-air, its sockets open: no time-out of PostgreSQL itself can fire."""
    monkeypatch.setattr(failures, "REQUEST_SECONDS", 1.0)
    with EmbeddedPostgres(folder / "freezing", settings={"fsync": "off"}) as server:
        migrate(server.dsn)
        with serving(server.dsn, tmp_path) as live:
            assert live.get("/v1/overview").status_code == 200
            with psycopg.connect(server.dsn) as connection:
                rows = connection.execute("select pid from pg_stat_activity").fetchall()
            pids = [pid for (pid,) in rows]
            try:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                started = time.monotonic()
                answer = live.get("/v1/overview")
                assert answer.status_code == 503
                assert answer.json()["error"] == "database_away"
                assert time.monotonic() - started < 4
                assert live.get("/v1/me").status_code == 200
            finally:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
            eventually(lambda: live.get("/v1/overview").status_code == 200, 20, "it is back")


def test_a_hub_that_starts_before_its_database_answers_503(tmp_path: Path) -> None:
    with serving("host=127.0.0.1 port=1 dbname=nothing", tmp_path) as live:
        assert live.get("/v1/overview").status_code == 503
        assert live.get("/v1/me").status_code == 200


def test_a_defect_is_500_without_a_word_about_the_inside(template_dsn: str, tmp_path: Path) -> None:
    with new_database(template_dsn) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("drop view metadata.reconciliation cascade")
        with serving(dsn, tmp_path) as live:
            answer = live.get("/v1/reconciliation")
            assert answer.status_code == 500
            assert answer.json()["error"] == "hub_failed"
            assert "metadata" not in answer.text
