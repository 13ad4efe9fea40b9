"""Seconds to commit a backlog of a million readings, and how long live data waits meanwhile.

A real buffer file, its forwarder in a process of its own, a real broker (mosquitto where it is
installed, else the embedded one), the hub's ingest on a real PostgreSQL. During the drain the
device accepts a document and a reading each second; their delay is from the append's return to the
commit that shows them, looked at every 20 ms, with ``seal_seconds`` of 0.2. Twice in one
run: with ``live_share_ratio`` of 0.25, and with 0, oldest first, as most gateways send.

Limit: the median live delay with newest first is at most a quarter of that without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psycopg

from scout_central import database
from scout_central.config import Ingest, Mqtt
from scout_central.hub import Supervisor
from scout_central.ingest import Receiver
from scout_edge.buffer import Buffer
from scout_edge.config import DeviceSettings, MqttSettings
from scout_edge.forwarder import Forwarder, stopped
from scout_edge.metrics import AgentMetrics
from scout_shared import logs
from scout_shared.wire import DOCUMENTS, READINGS, Document, Reading
from tests.bench.ingest import START_MS, server
from tests.harness.waiting import free_port

ZONE = "Asia/Manila"
METRICS = 40
LIVE = "live.celsius"
LIMIT_RATIO = 0.25
SEAL_SECONDS = 0.2
_LOOK_SECONDS = 0.02
_MOST_SECONDS = 600.0
BROKER = "import sys; from scout_central.broker import run_broker; run_broker(int(sys.argv[1]))"
DEVICE = (
    "import sys; from tests.bench.drain import device;"
    " device(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))"
)

DRAINED = """
    select coalesce(bool_or(received @> int8range(1, %s, '[]')), false)
    from metadata.streams
    where device_id = %s"""
LIVE_SEGMENTS = """
    select kind, first_sequence, records
    from metadata.segments join metadata.streams using (stream_id)
    where device_id = %s and first_sequence > %s
    order by first_sequence"""


@dataclass(slots=True)
class Run:
    """What one drain showed."""

    seconds: float
    document_delays: list[float]
    reading_delays: list[float]


def main() -> None:
    """Print both drains and the ratio of their live delays; exit 1 beyond the limit."""
    options = _options()
    logs.configure(level="error")
    runs: dict[float, Run] = {}
    with tempfile.TemporaryDirectory(prefix="scout-bench-") as folder, server(options.dsn) as dsn:
        database.migrate(dsn)
        with _broker(Path(folder)) as (name, port):
            print(f"{options.readings:,} readings, {METRICS} metrics, through {name}")
            receiver = Receiver(dsn, Mqtt(port=port), Ingest())
            with Supervisor(receiver.tasks()):
                for share in (0.25, 0.0):
                    path = Path(folder) / f"edge-{share}.db"
                    _fill(path, options.readings)
                    runs[share] = run = _drain(dsn, path, port, share, options.readings)
                    print(
                        f"  live_share_ratio {share}: {run.seconds:.1f} s,"
                        f" {options.readings / run.seconds:,.0f} readings/s;"
                        f" {_delays('document', run.document_delays)};"
                        f" {_delays('reading', run.reading_delays)}"
                    )
    ratio = _median(runs[0.25]) / _median(runs[0.0])
    print(f"drain: {ratio:.3f} ratio of live delays (at most {LIMIT_RATIO})")
    if ratio > LIMIT_RATIO:
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", help="an empty database (default: an embedded server)")
    parser.add_argument("--readings", type=int, default=1_000_000)
    return parser.parse_args()


def _median(run: Run) -> float:
    return statistics.median(run.document_delays + run.reading_delays)


def _delays(kind: str, delays: list[float]) -> str:
    return (
        f"live {kind} of {len(delays)}: median {statistics.median(delays):.2f} s,"
        f" worst {max(delays):.2f} s"
    )


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    program = shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/usr/bin")
    if program is None:
        command = [sys.executable, "-c", BROKER, str(port)]
    else:
        conf = folder / "mosquitto.conf"
        conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        command = [program, "-c", str(conf)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield "mosquitto" if program else "the embedded broker", port
        finally:
            process.terminate()


def _fill(path: Path, count: int) -> None:
    with Buffer(path, zone=ZONE) as buffer:
        for first in range(0, count, 1000):
            buffer.append_readings(
                [
                    Reading(
                        f"sensor.{i % METRICS}.celsius",
                        START_MS + i * 25,
                        round(20 + (i // METRICS % 97) / 10, 1),
                    )
                    for i in range(first, min(first + 1000, count))
                ]
            )
        buffer.seal()


def device(path: str, name: str, port: int, share: float) -> None:
    """The device's process: forwards until stdin closes; says on stdout what it accepted when."""
    logs.configure(level="error")
    asyncio.run(_forward(Path(path), name, port, share))


async def _forward(path: Path, name: str, port: int, share: float) -> None:
    with Buffer(path, zone=ZONE) as buffer:
        forwarder = Forwarder(
            buffer,
            AgentMetrics(buffer),
            device=DeviceSettings(name, "367", ZONE),
            mqtt=MqttSettings(port=port, live_share_ratio=share),
            seal_seconds=SEAL_SECONDS,
        )
        task = asyncio.create_task(forwarder.run(), name="forwarder")
        live = threading.Event()
        thread = threading.Thread(target=_accept, args=(buffer, live), daemon=True)
        thread.start()
        try:
            await asyncio.to_thread(sys.stdin.read)
        finally:
            live.set()
            await asyncio.to_thread(thread.join)
            await stopped(task)


def _accept(buffer: Buffer, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(1.0):
        now_ms = time.time_ns() // 1_000_000
        body = json.dumps({"live": number, "transaction_id": f"live-{number}"}).encode()
        day = buffer.calendar.day(now_ms)
        buffer.append_documents([Document("transaction", now_ms, day, body)])
        buffer.append_readings([Reading(LIVE, now_ms, float(number))])
        print(time.time(), flush=True)
        number += 1


def _drain(dsn: str, path: Path, port: int, share: float, count: int) -> Run:
    name = f"drain-{int(share * 100)}"
    command = [sys.executable, "-c", DEVICE, str(path), name, str(port), str(share)]
    accepted: list[float] = []
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        database.connect(dsn, application="bench") as connection,
    ):
        connection.autocommit = True
        assert process.stdout is not None
        assert process.stdin is not None
        reader = threading.Thread(target=_note, args=(process.stdout, accepted))
        reader.start()
        try:
            return _watch(connection, name, count, accepted)
        finally:
            process.stdin.close()
            reader.join()


def _note(lines: IO[str], accepted: list[float]) -> None:
    accepted += map(float, lines)


def _watch(
    connection: psycopg.Connection[Any], name: str, count: int, accepted: list[float]
) -> Run:
    """Until the backlog is committed, and all that was accepted before that."""
    started = time.time()
    committed: dict[tuple[int, int], float] = {}  # (kind, which one of it) → when it was seen
    seconds, live = 0.0, 1
    pause = threading.Event()
    while not seconds or any((kind, live - 1) not in committed for kind in (DOCUMENTS, READINGS)):
        now = time.time()
        if now - started > _MOST_SECONDS:
            raise SystemExit(f"drain: not all is at the hub after {_MOST_SECONDS:.0f} s")
        numbers = {DOCUMENTS: 0, READINGS: 0}
        for kind, _, records in connection.execute(LIVE_SEGMENTS, (name, count)):
            for number in range(numbers[kind], numbers[kind] + records):
                committed.setdefault((kind, number), now)
            numbers[kind] += records
        row = connection.execute(DRAINED, (count, name)).fetchone()
        if not seconds and row is not None and row[0]:
            seconds, live = now - started, len(accepted)
            assert live, "the backlog was gone before there was any live data: use more readings"
        pause.wait(_LOOK_SECONDS)
    return Run(
        seconds,
        *(
            [committed[kind, number] - accepted[number] for number in range(live)]
            for kind in (DOCUMENTS, READINGS)
        ),
    )


if __name__ == "__main__":
    main()
