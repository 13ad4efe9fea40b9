"""A small chain of stores in a real database, and the real API before it.

Eight stores with one device each; the figures add up. Heartbeats are slow, so that a slow
machine makes no device late. Each method of ``World`` breaks one thing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import uvicorn

from scout_central.api.app import build_app
from scout_central.config import Token
from scout_console.client import HubClient
from scout_console.feed import Feed
from tests.harness.waiting import eventually, free_port

STORES = ("292", "300", "321", "343", "356", "367", "381", "406")
TOKEN = "console-test-token"
NARROW_TOKEN = "narrow-test-token"

_SEED: LiteralString = """
select metadata.ensure_partitions(current_date - 1, 3);

insert into metadata.devices (
    device_id, store_id, zone, version, online, status_changed_at, hello, hello_received_at,
    heartbeat_seconds, clock_skew_seconds, first_seen_at, last_seen_at
)
select
    'till-' || store_id, store_id, 'America/New_York', '0.1.0', true,
    now() - interval '3 days' + place * interval '7 minutes',
    jsonb_build_object(
        'device_time_ms', extract(epoch from now()) * 1000, 'oldest_unsent_ms', null,
        'buffer_bytes', 1800000 + place * 131072, 'clock_synced', true,
        'counters', jsonb_build_object('reconnects', place)
    ),
    now() - interval '4 seconds', 300, 0.1 * place - 0.3, now() - interval '40 days', now()
from unnest(%(stores)s::text[]) with ordinality as chain (store_id, place);

insert into metadata.streams (
    device_id, epoch, store_id, zone, received, next_sequence, unsealed_records, last_seen_at
)
select
    device_id, decode(md5(device_id), 'hex'), store_id, zone,
    int8multirange(int8range(1, 14 * 1000 + 14 * 200 + 1)), 14 * 1000 + 14 * 200 + 1, 0, now()
from metadata.devices order by device_id;

insert into metadata.produced_counts (stream_id, kind, business_date, records)
select stream_id, kind, current_date - day, case kind when 2 then 1000 else 200 end
from metadata.streams
cross join unnest(array[1, 2]) as kind
cross join generate_series(0, 13) as day;

insert into metadata.received_counts (stream_id, kind, business_date, records)
select stream_id, kind, business_date, records from metadata.produced_counts;

insert into metadata.outcome_counts (stream_id, kind, business_date, outcome, records)
select stream_id, kind, business_date, 'landed', records from metadata.produced_counts;

insert into metadata.segments (
    stream_id, first_sequence, records, kind, outcome, bytes, crc, boot_id, clock, sealed_at,
    sealed_mono_ms, received_at
)
select
    stream_id, 1, 14 * 1000, 2, 'landed', 16000, 1, decode(repeat('00', 16), 'hex'), 1,
    now() - interval '9 seconds', 1000, now() - interval '8 seconds'
from metadata.streams
union all
select
    stream_id, 14 * 1000 + 1, 14 * 200, 1, 'landed', 7000, 1, decode(repeat('00', 16), 'hex'), 1,
    now() - interval '9 seconds', 1000, now() - interval '8 seconds'
from metadata.streams;

insert into metadata.metrics (name)
values ('cpu_ratio'), ('memory_used_bytes'), ('disk_free_bytes'), ('temperature_celsius');

insert into bronze.device_readings (
    received_at, observed_at, sequence, value, stream_id, metric_id, store_id
)
select
    now() - interval '8 seconds', now() - interval '9 seconds', 14000 + metric_id,
    (array[0.0423, 412876800, 21474836480, 46.5])[metric_id], stream_id, metric_id, store_id
from metadata.streams
cross join metadata.metrics;

insert into metadata.watermarks (dataset, input, xid, cluster_id, sql_sha256)
select dataset, input, metadata.current_xid() + 1, 'test', ''
from (
    values
    ('silver.transactions_cleaned', 'bronze.transaction_logs'),
    ('silver.device_readings_hourly', 'bronze.device_readings')
) as marks (dataset, input);

insert into silver.transactions_cleaned (
    store_id, transaction_id, line_number, product_id, observed_at, business_date, local_hour,
    quantity, sales_value, currency, stream_id, sequence, contract_version
)
select
    store_id, (100000 + number)::text, 1, '1095275', now() - interval '1 hour', current_date, 11,
    1, 0.50, 'USD', stream_id, number, '1.0.0'
from metadata.streams
cross join generate_series(1, 40) as number;

insert into silver.product_hierarchy (product_id, known_from, completeness_ratio)
values ('1095275', '{sales}', 0);

insert into gold.product_store_day (
    store_id, product_id, business_date, transactions, lines, quantity, currency, sales_value,
    warned_lines
)
select store_id, '1095275', current_date, 40, 40, 40, 'USD', 20, 0 from metadata.devices;

insert into platinum.demand_forecasting (
    store_id, department, forecast_date, as_of, currency, predicted_sales_value, lower_sales_value,
    upper_sales_value, interval_ratio, backend, method, is_baseline, model_version, training_from,
    training_to, backtest_origins, backtest_days, backtest_wape_ratio, backtest_bias_ratio,
    backtest_coverage_ratio
)
select
    store_id, 'GROCERY', current_date + day, current_date, 'USD', 100, 80, 120, 0.8, 'hub',
    'seasonal_naive', true, '1', current_date - 56, current_date - 1, 4, 28, 0.21, 0.01, 0.79
from metadata.devices
cross join generate_series(1, 7) as day;

insert into metadata.datasets (
    dataset, layer, grain, strategy, position, rows, sla_seconds, last_run_at, last_status,
    checked_at
)
values
('silver.transactions_cleaned', 'silver', 'line', 'touched', 1, 320, 900, now(), 'completed',
    now()),
('silver.product_hierarchy', 'silver', 'product', 'touched', 2, 1, 86400, now(), 'completed',
    now()),
('gold.product_store_day', 'gold', 'product, store, day', 'touched', 3, 8, 1800, now(), 'completed',
    now()),
('platinum.demand_forecasting', 'platinum', 'store, department, day', 'full', 4, 56, 86400, now(),
    'completed', now());

insert into metadata.agent_orchestration (
    run_id, agent, task, trigger, status, worker, started_at, heartbeat_at, finished_at, rows_read,
    rows_written, rows_deleted, touched_keys, mode
)
select
    gen_random_uuid(), 'aggregate', 'micro_batch', 'schedule', 'completed', 'hub-1',
    now() - number * interval '70 seconds' - interval '6 seconds',
    now() - number * interval '70 seconds' - interval '4 seconds',
    now() - number * interval '70 seconds' - interval '4 seconds', 1200 + number, 340, 0, 120,
    'incremental'
from generate_series(0, 9) as number;

insert into metadata.agent_orchestration (
    parent_run_id, agent, task, trigger, status, worker, started_at, heartbeat_at, finished_at,
    rows_read, rows_written, mode
)
select
    run_id, 'quality', dataset, 'schedule', 'completed', 'hub-1',
    started_at + position * interval '300 ms', started_at + (position + 1) * interval '300 ms',
    started_at + (position + 1) * interval '300 ms', 400, 100, 'incremental'
from metadata.agent_orchestration
cross join metadata.datasets
where parent_run_id is null;

select metadata.refresh_freshness();
"""

_DARK: LiteralString = """
update metadata.devices set
    online = false,
    status_changed_at = now() - make_interval(mins => %(minutes)s),
    hello_received_at = now() - make_interval(mins => %(minutes)s, secs => 3),
    clock_skew_seconds = -4.2
where store_id = %(store_id)s;
update metadata.streams set
    last_seen_at = now() - make_interval(mins => %(minutes)s, secs => 2),
    next_sequence = next_sequence + 88
where store_id = %(store_id)s;
update metadata.produced_counts set records = records + 88
where kind = 2 and business_date = current_date
    and stream_id = (select stream_id from metadata.streams where store_id = %(store_id)s);
"""

_LOSE: LiteralString = """
update metadata.received_counts set records = records - %(records)s
where kind = 2 and business_date = current_date
    and stream_id = (select stream_id from metadata.streams where store_id = %(store_id)s);
update metadata.outcome_counts set records = records - %(records)s
where kind = 2 and business_date = current_date
    and stream_id = (select stream_id from metadata.streams where store_id = %(store_id)s);
"""

_GIVE_UP: LiteralString = """
insert into metadata.gaps (
    stream_id, first_sequence, sequences, records, kind, reason, days, device_id, store_id
)
select stream_id, 7, %(records)s, %(records)s, 1, 'thin', '[]', device_id, store_id
from metadata.streams
where store_id = %(store_id)s
"""

_QUARANTINE: LiteralString = """
insert into metadata.quarantine (
    stage, dataset, reason, rules, message, store_id, device_id, stream_id, sequence, business_date,
    payload
)
select
    'silver', 'silver.transactions_cleaned', 'missing_product', '{product_id_present}',
    'line 1 has no product_id', store_id, device_id, stream_id, number, current_date, '{}'::jsonb
from metadata.streams
cross join generate_series(1, %(records)s) as number
where store_id = %(store_id)s;
update metadata.outcome_counts set records = records - %(records)s
where kind = 2 and business_date = current_date and outcome = 'landed'
    and stream_id = (select stream_id from metadata.streams where store_id = %(store_id)s);
insert into metadata.outcome_counts (stream_id, kind, business_date, outcome, rule, records)
select stream_id, 2, current_date, 'quarantined', 'missing_product', %(records)s
from metadata.streams
where store_id = %(store_id)s;
"""

_FAIL: LiteralString = """
with run as (
    insert into metadata.agent_orchestration (
        agent, task, trigger, status, worker, started_at, heartbeat_at, finished_at, message
    )
    values (
        'aggregate', 'micro_batch', 'schedule', 'failed', 'hub-1', now() - interval '3 seconds',
        now(), now(), 'gold.product_store_day: join fans out'
    )
    returning run_id
)

insert into metadata.agent_orchestration (
    parent_run_id, agent, task, trigger, status, worker, started_at, heartbeat_at, finished_at,
    message
)
select
    run_id, 'aggregate', 'gold.product_store_day', 'schedule', 'failed', 'hub-1',
    now() - interval '2 seconds', now(), now(), 'join fans out: 12,192 rows became 33,362'
from run;
insert into metadata.error_log (
    component, error_type, severity, code, message, hint, dataset, occurrences, first_at
)
values (
    'runner', 'business_rule', 'high', 'join_fan_out', '12,192 rows became 33,362',
    'look at the keys of gold.product_store_day', 'gold.product_store_day', 4,
    now() - interval '11 minutes'
);
"""


@dataclass
class World:
    """The chain, and the ways to break it."""

    dsn: str
    url: str
    server: uvicorn.Server
    clients: list[HubClient] = field(default_factory=list)

    def client(self, token: str = TOKEN) -> HubClient:
        client = HubClient(self.url, token, timeout=5.0)
        self.clients.append(client)
        return client

    def feed(self, token: str = TOKEN) -> Feed:
        return Feed(self.client(token), hold_seconds=0.0)

    def dark(self, store_id: str, minutes: int) -> None:
        """The store's device went away with 88 records that it had announced."""
        self._run(_DARK, store_id=store_id, minutes=minutes)

    def lose(self, store_id: str, records: int) -> None:
        """Records that are said to be here are not: a remainder."""
        self._run(_LOSE, store_id=store_id, records=records)

    def give_up(self, store_id: str, records: int) -> None:
        """The device had no more room for readings, and declares what it gave up."""
        self._run(_GIVE_UP, store_id=store_id, records=records)

    def quarantine(self, store_id: str, records: int) -> None:
        """Records that broke their contract."""
        self._run(_QUARANTINE, store_id=store_id, records=records)

    def fail(self) -> None:
        """The last run failed in gold."""
        self._run(_FAIL)

    def close_hub(self) -> None:
        """The hub goes away."""
        self.server.should_exit = True
        eventually(lambda: not self.server.started or not _serving(self.server), 10, "hub stops")

    def _run(self, query: LiteralString, **values: Any) -> None:
        with psycopg.ClientCursor(psycopg.connect(self.dsn)) as cursor, cursor.connection:
            cursor.execute(query, values)


def _serving(server: uvicorn.Server) -> bool:
    return any(listener.is_serving() for listener in server.servers)


@contextlib.contextmanager
def hub(dsn: str, storage: Path, *, seed: bool = True) -> Iterator[World]:
    """The API on the database at ``dsn``; seeded with the chain."""
    tokens = (
        Token(name="console", sha256=sha256(TOKEN.encode()).hexdigest(), stores=("*",)),
        Token(name="one", sha256=sha256(NARROW_TOKEN.encode()).hexdigest(), stores=("343",)),
    )
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(dsn, tokens, storage),
            host="127.0.0.1",
            port=port,
            log_level="warning",
            ws="none",
        )
    )
    world = World(dsn, f"http://127.0.0.1:{port}", server)
    if seed:
        world._run(_SEED, stores=list(STORES))
    thread = threading.Thread(target=server.run, name="hub-api", daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started, 20, "the API listens")
        yield world
    finally:
        for client in world.clients:
            client.close()
        server.should_exit = True
        thread.join(20)
