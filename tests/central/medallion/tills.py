"""Writes bronze as the hub would, counters included, and reads the tables that the runner makes."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from scout_central.database import Connection
from scout_central.medallion import Runner, RunResult
from scout_central.medallion.model import load
from scout_shared.zones import BusinessCalendar

ZONE = "Asia/Manila"
NOON = dt.datetime(2026, 3, 2, 4, 0, tzinfo=dt.UTC)  # a Monday, noon in Manila
DOCUMENTS = 2
TABLES = tuple(load())
_CALENDAR = BusinessCalendar(ZONE)
_EPOCH = dt.date(1970, 1, 1)


def line(product: Any = "p1", quantity: Any = 1, value: Any = 10.5, **more: Any) -> dict[str, Any]:
    """A line of a sale."""
    return {"product_id": product, "quantity": quantity, "sales_value": value, **more}


def sale(transaction: Any = "t1", *lines: Any, **more: Any) -> dict[str, Any]:
    """A document as a till posts it."""
    return {
        "transaction_id": transaction,
        "customer_id": "c1",
        "currency": "PHP",
        "lines": list(lines) or [line()],
        **more,
    }


class Tills:
    """Streams of one database, one per call of ``stream``."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._next: dict[int, int] = {}
        with psycopg.connect(dsn) as connection:
            connection.execute("select metadata.ensure_partitions(current_date - 1, 3)")

    def stream(self, store: str = "s1", zone: str | None = ZONE) -> int:
        """A device with a buffer file of its own."""
        with psycopg.connect(self.dsn) as connection:
            device = f"till-{len(self._next) + 1}"
            connection.execute(
                "insert into metadata.devices (device_id, store_id) values (%s, %s)",
                (device, store),
            )
            row = connection.execute(
                "insert into metadata.streams (device_id, epoch, store_id, zone)"
                " values (%s, substr(sha256(%s), 1, 16), %s, %s) returning stream_id",
                (device, device.encode(), store, zone),
            ).fetchone()
        assert row is not None
        self._next[row[0]] = 1
        return int(row[0])

    def add(
        self,
        connection: Connection,
        stream: int,
        documents: Iterable[Any],
        *,
        at: dt.datetime | None = NOON,
        received_at: dt.datetime | None = None,
        business_date: dt.date | str | None = "",
    ) -> None:
        """Insert in the caller's transaction, with what the hub counts."""
        day: Any = business_date
        if business_date == "":
            day = at and _EPOCH + dt.timedelta(days=_CALENDAR.day(int(at.timestamp() * 1000)))
        for document in documents:
            connection.execute(
                "insert into bronze.transaction_logs (received_at, observed_at, sequence,"
                " stream_id, business_date, store_id, document)"
                " select coalesce(%s, now()), %s, %s, stream_id, %s, store_id, %s"
                " from metadata.streams where stream_id = %s",
                (received_at, at, self._next[stream], day, Jsonb(document), stream),
            )
            connection.execute(
                "update metadata.streams set received = received + int8multirange(int8range("
                "%(n)s, %(n)s + 1)), next_sequence = %(n)s + 1, unsealed_records = 0"
                " where stream_id = %(stream)s",
                {"n": self._next[stream], "stream": stream},
            )
            for table in ("received_counts", "produced_counts"):
                connection.execute(
                    sql.SQL(
                        "insert into metadata.{} as counts"
                        " (stream_id, kind, business_date, records) values (%s, %s, %s, 1)"
                        " on conflict (stream_id, kind, business_date)"
                        " do update set records = counts.records + 1"
                    ).format(sql.Identifier(table)),
                    (stream, DOCUMENTS, day),
                )
            self._next[stream] += 1

    def post(self, stream: int, *documents: Any, **options: Any) -> None:
        """Insert and commit."""
        with psycopg.connect(self.dsn) as connection:
            self.add(connection, stream, documents, **options)

    def readings(
        self, stream: int, rows: Iterable[tuple[dt.datetime, float]], metric: str = "t_celsius"
    ) -> None:
        """Insert readings of one series and commit."""
        with psycopg.connect(self.dsn) as connection:
            for at, value in rows:
                connection.execute(
                    "with metric as (insert into metadata.metrics (name) values (%(metric)s)"
                    " on conflict (name) do update set name = excluded.name returning metric_id)"
                    " insert into bronze.device_readings (received_at, observed_at, sequence,"
                    " value, stream_id, metric_id, store_id)"
                    " select now(), %(at)s, %(n)s, %(value)s, stream_id, metric_id, store_id"
                    " from metadata.streams cross join metric where stream_id = %(stream)s",
                    {
                        "metric": metric,
                        "at": at,
                        "value": value,
                        "stream": stream,
                        "n": self._next[stream],
                    },
                )
                self._next[stream] += 1
                day = _EPOCH + dt.timedelta(days=_CALENDAR.day(int(at.timestamp() * 1000)))
                connection.execute(
                    "insert into metadata.received_counts as counts"
                    " (stream_id, kind, business_date, records) values (%s, 1, %s, 1)"
                    " on conflict (stream_id, kind, business_date)"
                    " do update set records = counts.records + 1",
                    (stream, day),
                )

    def upload(self, dataset: str, records: Iterable[Mapping[str, Any]], kind: str = "row") -> None:
        """A file with one record per line."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(
                "insert into metadata.files (dataset, name, sha256, bytes, rows, storage_key,"
                " uploaded_by) values (%s, 'f', uuid_send(gen_random_uuid()), 0, 0, '', 'test')"
                " returning file_id",
                (f"bronze.{dataset}",),
            ).fetchone()
            assert row is not None
            for number, record in enumerate(records, 1):
                connection.execute(
                    sql.SQL(
                        "insert into bronze.{} (file_id, line_number, record_type, record)"
                        " values (%s, %s, %s, %s)"
                    ).format(sql.Identifier(dataset)),
                    (row[0], number, kind, Jsonb(record)),
                )


def run(dsn: str, **options: Any) -> RunResult:
    """One run that must work."""
    result = Runner(dsn).run_once(**options)
    assert result.status == "completed", result
    return result


def rows(dsn: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        return connection.execute(query.encode(), values or None).fetchall()


def one(dsn: str, query: str, *values: Any) -> Any:
    """The only value of a query."""
    ((value,),) = rows(dsn, query, *values)
    return value


def execute(dsn: str, statement: str, *values: Any) -> None:
    """Change something and commit."""
    with psycopg.connect(dsn) as connection:
        connection.execute(statement.encode(), values or None)


def contents(dsn: str, tables: Iterable[str] = TABLES) -> dict[str, list[str]]:
    """What each table says, without when it was said; each row as text, sorted."""
    found = {}
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        for table in tables:
            texts = connection.execute(
                sql.SQL("select (to_jsonb(t) - 'loaded_at' - 'xid')::text from {} as t").format(
                    sql.Identifier(*table.split("."))
                )
            ).fetchall()
            found[table] = sorted(text for (text,) in texts)
        found["outcomes"] = sorted(
            json.dumps(row, default=str)
            for row in connection.execute(
                "select stream_id, kind, business_date, outcome, rule, records, lines"
                " from metadata.outcome_counts"
            ).fetchall()
        )
        found["quarantine"] = sorted(
            json.dumps(row, default=str)
            for row in connection.execute(
                "select stream_id, sequence, line_number, rules, records, payload"
                " from metadata.quarantine where stage = 'silver' and state = 'open'"
            ).fetchall()
        )
    return found


def forget(dsn: str) -> None:
    """Empty all that the runner ever wrote, so that the next run starts from bronze."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            sql.SQL("truncate {}, metadata.watermarks, metadata.deleted_keys").format(
                sql.SQL(", ").join(sql.Identifier(*table.split(".")) for table in TABLES)
            )
        )
        connection.execute("delete from metadata.outcome_counts")
        connection.execute("delete from metadata.quarantine where stage = 'silver'")
