"""Resident memory of the hub's ingest before and after three million readings.

This process is the hub: intake, parse, committers, receipts, on a real PostgreSQL. Another process
seals the segments and writes them to a pipe, so that the encoder's memory is not measured. "Before"
is after a tenth of the readings: libraries loaded, caches and buffers at their size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from scout_central import database
from scout_central.config import Ingest, Mqtt
from scout_central.hub import Supervisor
from scout_central.ingest import Receiver
from scout_central.ingest.arrivals import Arrival
from scout_shared import logs, topics
from tests.bench.ingest import READINGS, sealed_segment, server

DEVICES = 25
SEAL = "import sys; from tests.bench.memory import seal; seal(int(sys.argv[1]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", help="an empty database (default: an embedded server)")
    parser.add_argument("--readings", type=int, default=3_000_000)
    options = parser.parse_args()
    logs.configure(level="warning")
    segments = options.readings // READINGS
    with server(options.dsn) as dsn:
        database.migrate(dsn)
        receiver = Receiver(dsn, Mqtt(), Ingest(), publish=lambda *_: True)
        tasks = receiver.tasks()
        del tasks["ingest-mqtt"]
        command = [sys.executable, "-c", SEAL, str(segments)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as sealer,
            Supervisor(tasks),
        ):
            assert sealer.stdout is not None
            _take_in(receiver, sealer.stdout, segments // 10)
            before = _resident_bytes()
            _take_in(receiver, sealer.stdout, segments - segments // 10)
            after = _resident_bytes()
        _check(dsn, segments * READINGS)
    print(f"{options.readings:,} readings of {DEVICES} devices; queue of {2**26:,} bytes")
    print(f"resident before {before / 1e6:.1f} MB, after {after / 1e6:.1f} MB")
    print(f"memory: {after / before:.3f} ratio")


def seal(segments: int) -> None:
    """Write segments to stdout, each after its device and its length."""
    for number in range(segments):
        segment = sealed_segment(number % DEVICES, number // DEVICES)
        sys.stdout.buffer.write((number % DEVICES).to_bytes(4, "big"))
        sys.stdout.buffer.write(len(segment).to_bytes(4, "big") + segment)


def _take_in(receiver: Receiver, source: IO[bytes], segments: int) -> None:
    pause = threading.Event()
    for _ in range(segments):
        device, length = (int.from_bytes(source.read(4), "big") for _ in range(2))
        arrival = Arrival("367", f"device-{device}", topics.DATA, source.read(length))
        while not receiver.offer(arrival):
            pause.wait(0.01)
    while receiver.intake.used_bytes:
        pause.wait(0.01)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _check(dsn: str, rows: int) -> None:
    with database.connect(dsn, application="bench") as connection:
        found = connection.execute("select count(*) from bronze.device_readings").fetchone()
    assert found == (rows,), found


if __name__ == "__main__":
    main()
