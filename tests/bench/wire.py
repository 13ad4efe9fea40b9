"""Bytes per reading of sealed 1,000-record segments.

(a) seeded telemetry of 40 metrics with ms jitter; (b) this machine's own /proc, sampled quickly.
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from pathlib import Path

from scout_edge import clock
from scout_edge.sources.system import SystemSource
from scout_shared import wire
from scout_shared.wire import Reading
from scout_shared.zones import BusinessCalendar
from tests.bench.buffer import METRICS, readings

RECORDS = 1000


def sampled(count: int, interval_seconds: float) -> list[Reading]:
    """This machine's telemetry."""
    # Sampling touches no buffer.
    source = SystemSource(None, interval_seconds=1, disk=Path("/"))  # type: ignore[arg-type]
    made: list[Reading] = []
    while len(made) < count:
        made += source.sample(clock.wall_ms())
        time.sleep(interval_seconds)
    return made[:count]


def bytes_per_reading(made: list[Reading]) -> float:
    """Average over whole segments, header and meta included."""
    calendar = BusinessCalendar("Asia/Manila")
    sealing = clock.sealing(os.urandom(16), "Asia/Manila")
    total = 0
    for at in range(0, len(made), RECORDS):
        part = made[at : at + RECORDS]
        days = calendar.count([r.observed_ms for r in part])
        segment = wire.encode_readings(sealing, at + 1, part, days)
        assert len(wire.decode_readings(segment)) == len(part)
        total += len(segment)
    return total / len(made)


def main() -> None:
    """Print the setting, both figures, and as the last line the larger one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument(
        "--interval",
        type=float,
        default=1 / os.sysconf("SC_CLK_TCK"),
        help="seconds between samples of /proc (default: a tick of its CPU counters)",
    )
    args = parser.parse_args()
    count = args.segments * RECORDS
    print(
        f"setting: {args.segments} segments of {RECORDS} readings each, zlib {zlib.ZLIB_VERSION},"
        " header and meta included"
    )
    seeded = bytes_per_reading(readings(count))
    print(f"seeded, {METRICS} metrics with ms jitter: {seeded:.2f} bytes/reading")
    real = sampled(count, args.interval)
    metrics = len({r.metric for r in real})
    measured = bytes_per_reading(real)
    print(
        f"/proc of this machine, {metrics} metrics every {args.interval:g} s:"
        f" {measured:.2f} bytes/reading"
    )
    print(f"wire: {max(seeded, measured):.2f} bytes/reading")


if __name__ == "__main__":
    main()
