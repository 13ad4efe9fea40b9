"""A real hub API: uvicorn on a free port, over a real database with two stores in it.

Everything of one store has its name in every text: whoever sees "south" without being allowed to,
sees something of the store south.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from scout_central.api.app import build_app
from scout_central.api.server import server_of
from scout_central.config import Api, Token
from scout_central.embedded import EmbeddedPostgres
from scout_central.uploads import Limits
from tests.harness.servers import TEMPLATE
from tests.harness.waiting import eventually

NORTH, SOUTH = "north", "south"
STORES = (NORTH, SOUTH)


def token(name: str, role: str, *stores: str) -> Token:
    """A token whose secret is its name."""
    return Token(name, hashlib.sha256(name.encode()).hexdigest(), role, stores)


TOKENS = (
    token("viewer-all", "viewer", "*"),
    token("viewer-north", "viewer", NORTH),
    token("viewer-nowhere", "viewer"),
    token("operator-all", "operator", "*"),
    token("operator-north", "operator", NORTH),
    token("admin-all", "admin", "*"),
    token("uploader-all", "uploader", "*"),
)


class LiveHub:
    """Where the server is, and a client per token."""

    def __init__(self, dsn: str, port: int, client: httpx.Client) -> None:
        self.dsn = dsn
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._client = client

    def get(self, path: str, bearer: str | None = "viewer-all", **options: Any) -> httpx.Response:
        return self.request("GET", path, bearer, **options)

    def request(
        self,
        method: str,
        path: str,
        bearer: str | None = "viewer-all",
        *,
        content_type: str | None = None,
        **options: Any,
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        if content_type is not None:
            headers["content-type"] = content_type
        return self._client.request(method, f"{self.url}{path}", headers=headers, **options)

    def upload(self, dataset: str, name: str, content: bytes, **params: Any) -> httpx.Response:
        return self.request(
            "POST",
            f"/v1/uploads/{dataset}",
            "uploader-all",
            files={"file": (name, content)},
            params=params or None,
        )


@contextmanager
def serving(
    dsn: str,
    storage: Path,
    *,
    tokens: Sequence[Token] = TOKENS,
    limits: Limits | None = None,
    proxies: Sequence[str] = Api().proxies,
) -> Iterator[LiveHub]:
    """The API, listening, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = server_of(build_app(dsn, tokens, storage, limits), proxies)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="api")
    thread.start()
    try:
        eventually(lambda: server.started, 20, "uvicorn starts")
        with httpx.Client(timeout=60, trust_env=False) as client:
            yield LiveHub(dsn, port, client)
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def new_database(template_dsn: str) -> Iterator[str]:
    """A copy of the migrated template, gone at the end."""
    name = sql.Identifier(f"api_{uuid.uuid4().hex}")
    with psycopg.connect(template_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(name, sql.Identifier(TEMPLATE))
        )
        try:
            yield f"{template_dsn.rpartition('/')[0]}/{name.as_string(None).strip(chr(34))}"
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture(scope="module")
def hub(
    postgres_server: EmbeddedPostgres,
    template_dsn: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveHub]:
    """A hub with two stores in it; tests that share it only read."""
    with new_database(template_dsn) as dsn:
        seed(dsn)
        with serving(dsn, tmp_path_factory.mktemp("storage")) as live:
            yield live


@pytest.fixture
def empty_hub(database: str, tmp_path: Path) -> Iterator[LiveHub]:
    """A hub of this test's own, with nothing in it."""
    with serving(database, tmp_path / "storage") as live:
        yield live


_DEVICE = """
with device as (
    insert into metadata.devices (
        device_id, store_id, zone, version, online, status_changed_at, hello, hello_received_at,
        heartbeat_seconds, clock_skew_seconds
    )
    values (
        'till-' || %(store)s, %(store)s, 'Asia/Manila', '7.1.0', true, now(),
        jsonb_build_object(
            'epoch', repeat('0', 32), 'acked', 4, 'next', 11, 'unsealed', 2,
            'buffer_bytes', 4096, 'oldest_unsent_ms', 1000, 'device_time_ms', 61000,
            'clock_synced', true, 'damaged_files', 1,
            'counters', jsonb_build_object('reconnects', 3)
        ),
        now(), 15, 0.25
    )
    returning device_id
)
insert into metadata.streams (
    device_id, epoch, store_id, zone, received, next_sequence, unsealed_records
)
select
    device_id, decode(repeat('00', 16), 'hex'), %(store)s, 'Asia/Manila',
    '{[1,5),[7,9)}', 11, 2
from device
returning stream_id
"""
_LEDGER = """
insert into metadata.segments (
    stream_id, first_sequence, records, kind, outcome, bytes, crc, boot_id, clock, sealed_at,
    sealed_mono_ms, received_at
)
values
    (%(stream)s, 1, 4, 2, 'landed', 100, 7, decode(repeat('ab', 16), 'hex'), 2, %(at)s, 1, %(at)s),
    (%(stream)s, 7, 2, 1, 'landed', 100, 8, decode(repeat('ab', 16), 'hex'), 2, %(at)s, 1, %(at)s);
insert into metadata.produced_counts (stream_id, kind, business_date, records)
values (%(stream)s, 2, '2026-01-05', 9), (%(stream)s, 1, '2026-01-05', 3);
insert into metadata.received_counts (stream_id, kind, business_date, records)
values (%(stream)s, 2, '2026-01-05', 4), (%(stream)s, 1, '2026-01-05', 2);
insert into metadata.outcome_counts (stream_id, kind, business_date, outcome, rule, records)
values
    (%(stream)s, 2, '2026-01-05', 'landed', '', 2),
    (%(stream)s, 2, '2026-01-05', 'duplicate', '', 1),
    (%(stream)s, 2, '2026-01-05', 'quarantined', 'product_id_present', 1),
    (%(stream)s, 1, '2026-01-05', 'landed', '', 2);
insert into bronze.transaction_logs (
    received_at, observed_at, sequence, stream_id, business_date, store_id, document
)
select
    %(at)s, %(at)s, i, %(stream)s, date '2026-01-05', %(store)s,
    jsonb_build_object('transaction_id', 't-' || %(store)s, 'n', i)
from generate_series(1, 4) as i;
insert into bronze.device_readings (
    received_at, observed_at, sequence, value, stream_id, metric_id, store_id
)
select %(at)s, %(at)s, 6 + i, 20 + i, %(stream)s, %(metric)s, %(store)s
from generate_series(1, 2) as i;
insert into metadata.quarantine (
    stage, dataset, reason, rules, message, store_id, device_id, stream_id, sequence, payload
)
values (
    'silver', 'silver.transactions_cleaned', 'product_id_present', '{product_id_present}',
    'of ' || %(store)s, %(store)s, 'till-' || %(store)s, %(stream)s, 4,
    jsonb_build_object('store', %(store)s::text)
);
insert into metadata.gaps (
    stream_id, first_sequence, sequences, records, kind, reason, days, device_id, store_id,
    declared_at, closed_at
)
values
    (%(stream)s, 100, 60, 60, 1, 'thin', '[]', 'till-' || %(store)s, %(store)s, %(at)s, null),
    (%(stream)s, 160, 9, 9, 0, 'damaged', '[]', 'till-' || %(store)s, %(store)s, now(), now());
insert into metadata.error_log (
    component, error_type, severity, code, message, store_id, device_id
)
values (
    'ingest', 'connection', 'medium', 'store_mismatch', 'of ' || %(store)s, %(store)s,
    'till-' || %(store)s
)
"""
_SHARED = """
insert into metadata.watermarks (dataset, input, xid, cluster_id, sql_sha256)
values
    ('silver.transactions_cleaned', 'bronze.transaction_logs', 1::bigint << 40, 'c', 'h'),
    ('silver.device_readings_hourly', 'bronze.device_readings', 1::bigint << 40, 'c', 'h');
with run as (
    insert into metadata.agent_orchestration (agent, task, trigger, status, worker, message)
    values ('aggregate', 'medallion', 'timer', 'completed', 'w', 'touched north and south')
    returning run_id
)
insert into metadata.agent_orchestration (
    parent_run_id, agent, task, trigger, status, worker, finished_at, rows_written
)
select run_id, 'aggregate', dataset, 'timer', 'completed', 'w', now(), 5
from run
cross join unnest(array['silver.transactions_cleaned', 'gold.product_store_day']) as dataset;
insert into metadata.sla_monitoring (
    sla_name, dataset, sla_type, target_value, target_operator, unit, actual_value, met
)
values
    ('freshness', 'silver.transactions_cleaned', 'freshness', 3600, '<=', 'seconds', 10, true),
    ('freshness', 'gold.product_store_day', 'freshness', 3600, '<=', 'seconds', 7200, false);
insert into metadata.quality_metrics (dataset, layer, dimension, metric, value, unit)
values
    ('silver.transactions_cleaned', 'silver', 'completeness', 'complete', 0.5, 'ratio'),
    ('silver.transactions_cleaned', 'silver', 'completeness', 'complete', 0.75, 'ratio'),
    ('gold.store_hour', 'gold', 'uniqueness', 'unique', 1, 'ratio');
insert into metadata.lineage_edges values
    ('bronze.transaction_logs', 'document', 'silver.transactions_cleaned', 'product_id',
     'transformation'),
    ('silver.transactions_cleaned', 'product_id', 'gold.product_store_day', 'product_id',
     'identity'),
    ('gold.product_store_day', 'product_id', 'gold.product_performance', 'product_id',
     'identity'),
    ('bronze.transaction_logs', '*', 'silver.transactions_cleaned', '*', 'table');
insert into metadata.files (dataset, name, sha256, bytes, rows, storage_key, uploaded_by)
values
    ('bronze.product_catalog', 'south.csv', sha256('x'), 10, 1, 'k', 'someone'),
    ('bronze.demographic_data', 'south.csv', sha256('x'), 10, 1, 'k', 'someone');
insert into bronze.product_catalog (file_id, line_number, record)
select min(file_id), 2, '{"product_id": "product_id-north"}' from metadata.files;
insert into bronze.demographic_data (file_id, line_number, record)
select max(file_id), 2, '{"household_id": "customer_id-north"}' from metadata.files;
insert into metadata.deleted_keys (dataset, key)
values ('gold.store_hour', '{"store_id": "south"}');
insert into metadata.data_lineage (run_id, event_type, job, event)
values (gen_random_uuid(), 'COMPLETE', 'j', '{"store": "south"}')
"""
_TABLES = """
select
    class.oid::regclass::text as name,
    array_agg(attribute.attname::text order by attribute.attnum) as columns,
    array_agg(format_type(attribute.atttypid, null) order by attribute.attnum) as types
from pg_class as class
inner join pg_attribute as attribute on attribute.attrelid = class.oid
where class.relnamespace = any(array['silver', 'gold', 'platinum']::regnamespace[])
    and class.relkind in ('r', 'p')
    and attribute.attnum > 0
    and not attribute.attisdropped
    and attribute.attname not in ('loaded_at', 'xid')
group by class.oid
"""
_LITERALS: dict[str, object] = {
    "date": "2026-01-05",
    "timestamp with time zone": "2026-01-05 04:00+00",
    "boolean": True,
    "text[]": [],
    "jsonb": "{}",
}


def seed(dsn: str) -> None:
    """Two stores, with a row of each in every table of silver, gold and platinum."""
    with psycopg.connect(dsn) as connection:
        connection.execute("select metadata.ensure_partitions(current_date - 1, 3)")
        metric = connection.execute(
            "insert into metadata.metrics (name) values ('fridge_celsius') returning metric_id"
        ).fetchone()
        assert metric is not None
        streams = {}
        for store in STORES:
            row = connection.execute(_DEVICE, {"store": store}).fetchone()
            assert row is not None
            streams[store] = row[0]
            at = connection.execute("select now()").fetchone()
            assert at is not None
            for statement in _LEDGER.split(";\n"):
                connection.execute(
                    statement.encode(),
                    {"store": store, "stream": row[0], "metric": metric[0], "at": at[0]},
                )
        connection.execute(_SHARED)
        for name, columns, types in connection.execute(_TABLES).fetchall():
            for store in STORES:
                values = [
                    _literal(c, t, store, streams[store], metric[0])
                    for c, t in zip(columns, types, strict=True)
                ]
                connection.execute(
                    sql.SQL("insert into {} ({}) values ({})").format(
                        sql.SQL(name),
                        sql.SQL(", ").join(map(sql.Identifier, columns)),
                        sql.SQL(", ").join(sql.Placeholder() * len(columns)),
                    ),
                    values,
                )


def _literal(column: str, kind: str, store: str, stream_id: int, metric_id: int) -> object:
    fixed = {
        "store_id": store,
        "stream_id": stream_id,
        "metric_id": metric_id,
        "currency": "USD",
        "sequence": 2,
        "hour": dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0),
    }
    if column in fixed:
        return fixed[column]
    if kind == "text":
        return f"{column}-{store}"
    return _LITERALS.get(kind, 0 if "ratio" in column else 1)
