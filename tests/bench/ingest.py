"""Rows per second from encoded segments to committed bronze, against a bare COPY of the same rows.

Both in one run, in turns, on the same table: ours is the hub's own path (intake, parse, commits of
up to 100 segments with books and receipts); the bare one is a single ``COPY … (format binary)`` of
rows built before, in one transaction. Every repeat brings new sequences of the same streams.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scout_central import database
from scout_central.config import Ingest, Mqtt
from scout_central.embedded import EmbeddedPostgres
from scout_central.hub import Supervisor
from scout_central.ingest import Receiver
from scout_central.ingest import columns as column
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import Arrival
from scout_shared import logs, topics, wire

READINGS, METRICS = 1000, 40
START_MS = 1_480_000_000_000
DAY = START_MS // 86_400_000


def main() -> None:
    options = _options()
    logs.configure(level="warning")
    with server(options.dsn) as dsn:
        database.migrate(dsn)
        arrivals = [
            _segments(repeat, options.segments, options.devices)
            for repeat in range(options.repeats + 1)
        ]
        rows = options.segments * READINGS
        print(
            f"{options.repeats} repeats of {rows:,} readings: {options.segments} segments of "
            f"{READINGS}, {METRICS} metrics, {options.devices} devices"
        )
        _ours(dsn, arrivals[0])  # streams, metrics, partitions: once in the life of a hub
        ratios = []
        for repeat in range(1, options.repeats + 1):
            blocks = _blocks(dsn, arrivals[repeat])
            bare = rows / _bare(dsn, blocks)
            del blocks
            ours = rows / _ours(dsn, arrivals[repeat])
            ratios.append(ours / bare)
            print(f"  bare COPY {bare:,.0f} rows/s, ingest {ours:,.0f} rows/s: {ratios[-1]:.2f}")
        _check(dsn, rows, options.repeats)
    print(f"ingest: {statistics.median(ratios):.2f} ratio")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", help="an empty database (default: an embedded server)")
    parser.add_argument("--segments", type=int, default=500)
    parser.add_argument("--devices", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    if dsn:
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="scout-bench-") as folder:
        Path(folder).chmod(0o755)  # the server runs as another user than root
        with EmbeddedPostgres(Path(folder) / "database") as server:
            yield server.dsn


def _segments(repeat: int, segments: int, devices: int) -> list[Arrival]:
    each = segments // devices
    return [
        Arrival("367", f"device-{d}", topics.DATA, sealed_segment(d, repeat * each + i))
        for i in range(each)
        for d in range(devices)
    ]


def sealed_segment(device: int, number: int) -> bytes:
    """A thousand readings of forty sensors: steps, drifts, counters; one value in ten is raw."""
    readings = []
    for i in range(READINGS):
        metric, step = i % METRICS, i // METRICS
        at = START_MS + number * 25_000 + step * 1000 + (7 * i + device) % 5
        wave = math.sin((number * 25 + step) / 50 + metric)
        value = wave * 20 if metric % 10 == 0 else round(20 + wave * metric, metric % 3)
        readings.append(wire.Reading(f"sensor.{metric}.celsius", at, value))
    sealing = wire.Sealing(
        device.to_bytes(16, "big"), bytes(16), "UTC", wire.CLOCK_SYNCED, START_MS, 0
    )
    return wire.encode_readings(sealing, 1 + number * READINGS, readings, {DAY: READINGS})


def _ours(dsn: str, arrivals: list[Arrival]) -> float:
    """Seconds until all is committed."""
    receiver = Receiver(dsn, Mqtt(), Ingest(queue_bytes=2**30))
    tasks = receiver.tasks()
    del tasks["ingest-mqtt"]
    with Supervisor(tasks):
        idle = threading.Event()
        started = time.perf_counter()
        for arrival in arrivals:
            assert receiver.offer(arrival)
        while receiver.intake.used_bytes:
            idle.wait(0.001)
        return time.perf_counter() - started


def _blocks(dsn: str, arrivals: list[Arrival]) -> list[memoryview]:
    with database.connect(dsn, application="bench") as connection:
        metrics: dict[str, int] = dict(
            connection.execute("select name, metric_id from metadata.metrics")
        )
        streams: dict[str, int] = dict(
            connection.execute("select device_id, stream_id from metadata.streams")
        )
        xid = connection.execute(sql.CURRENT_XID).fetchone()
    assert xid is not None
    blocks = []
    for arrival in arrivals:
        columns = column.decode(arrival.payload)
        assert isinstance(columns, column.ReadingColumns)
        context = column.RowContext(
            streams[arrival.device_id], "367", time.time_ns() // 1_000_000, xid[0]
        )
        blocks.append(column.reading_rows(columns, [metrics[n] for n in columns.metrics], context))
    return blocks


def _bare(dsn: str, blocks: list[memoryview]) -> float:
    """Seconds of one COPY and its commit."""
    with database.connect(dsn, application="bench") as connection:
        started = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy(sql.COPY_READINGS) as copy:
            copy.write(column.COPY_HEADER)
            for block in blocks:
                copy.write(block)
            copy.write(column.COPY_TRAILER)
        connection.commit()
        return time.perf_counter() - started


def _check(dsn: str, rows: int, repeats: int) -> None:
    with database.connect(dsn, application="bench") as connection:
        found = connection.execute("select count(*) from bronze.device_readings").fetchone()
    assert found == (rows * (2 * repeats + 1),), found


if __name__ == "__main__":
    main()
