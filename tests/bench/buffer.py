"""The edge buffer against bare sqlite3 in the same run: records per second, bytes written and kept.

Both take the same readings in groups of the same size, one commit (and fsync) per group, with the
same pragmas. Bare: one row per reading by ``executemany``. Buffer: everything that accepting means:
checks, ledger, tail, encoding to sealed segments. Three parts:

    rate       durable readings per second as fast as each can; ours must be 0.6 of bare sqlite3
    steady     bytes that reach the disk per reading at 100 readings/s, for several sizes of commit:
               every 5 s what came is sealed (``seal_seconds``) and the receipt of what was sealed
               before is applied; bare deletes the same readings. The clock is not waited for
    backlog    bytes of the file per reading when a million wait: at most 2.5

The last line is ``buffer: <figure> ratio``, the rate. Exit code 1: a limit was missed.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scout_edge import database
from scout_edge.buffer import Buffer
from scout_shared.messages import Receipt
from scout_shared.wire import Reading
from tests.harness import proc

METRICS = 40
RATE_RATIO = 0.6
BACKLOG_BYTES = 2.5
"""Per reading."""
READINGS_A_SECOND = 100
SEAL_SECONDS = 5
"""The default of ``[buffer] seal_seconds``."""


def readings(count: int, seed: int = 7) -> list[Reading]:
    """Telemetry of a store: 40 metrics once a second with ms jitter, decimals as sensors give them.

    A quarter each of: slow one-decimal temperatures, two-decimal noisy voltages, counters, states.
    """
    rng = random.Random(seed)
    values = [rng.uniform(2, 30) for _ in range(METRICS)]
    made: list[Reading] = []
    second = 1_760_000_000_000
    while len(made) < count:
        second += 1000
        for i in range(METRICS):
            kind = i % 4
            if kind == 0:
                values[i] = round(values[i] + rng.gauss(0, 0.1), 1)
            elif kind == 1:
                values[i] = round(230 + rng.gauss(0, 1.5), 2)
            elif kind == 2:
                values[i] = float(int(values[i]) + rng.randint(0, 20))
            elif rng.random() < 0.02:
                values[i] = float(rng.randint(0, 3))
            else:
                values[i] = float(int(values[i]))
            observed_ms = second + 10 * i + rng.randint(-3, 3)
            made.append(Reading(f"store.sensor.{i}.value", observed_ms, values[i]))
    return made[:count]


SCHEMA = (
    "create table readings (id integer primary key, metric text, observed_ms integer, value real)"
)
INSERT = "insert into readings (metric, observed_ms, value) values (?, ?, ?)"


def bare(path: Path, groups: list[list[Reading]]) -> float:
    """Seconds for the groups with bare sqlite3."""
    with database.locked(path):
        db = database.open_writer(path)
        db.execute(SCHEMA)
        started = time.perf_counter()
        for group in groups:
            db.execute("begin immediate")
            db.executemany(INSERT, group)
            db.execute("commit")
        seconds = time.perf_counter() - started
        db.close()
    return seconds


def buffered(path: Path, groups: list[list[Reading]]) -> float:
    """Seconds for the groups with the buffer."""
    with Buffer(path, zone="Asia/Manila") as buffer:
        started = time.perf_counter()
        for group in groups:
            buffer.append_readings(group)
        return time.perf_counter() - started


def rate(made: list[Reading], size: int, repeats: int, parent: Path | None) -> float:
    """Median ratio of our rate to that of bare sqlite3, in turns."""
    groups = _groups(made, size)
    print(f"rate: {len(made):,} readings of {METRICS} metrics, {size} per commit")
    ratios, ours, theirs = [], [], []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            runs = [bare, buffered] if repeat % 2 else [buffered, bare]
            seconds = {run.__name__: run(Path(folder) / run.__name__, groups) for run in runs}
        ours.append(len(made) / seconds["buffered"])
        theirs.append(len(made) / seconds["bare"])
        ratios.append(ours[-1] / theirs[-1])
        print(f"repeat {repeat + 1}: buffer {ours[-1]:,.0f}/s, bare {theirs[-1]:,.0f}/s")
    print(f"median: {statistics.median(ours):,.0f}/s against {statistics.median(theirs):,.0f}/s")
    return statistics.median(ratios)


def steady(made: list[Reading], size: int, folder: Path) -> tuple[float, float]:
    """Bytes written per reading, (ours, bare), with commits of ``size`` readings."""
    groups = _groups(made, size)
    every = max(1, SEAL_SECONDS * READINGS_A_SECOND // size)
    with Buffer(folder / f"steady-{size}", zone="Asia/Manila") as buffer:
        before = proc.written_bytes(os.getpid())
        for number, group in enumerate(groups, 1):
            buffer.append_readings(group)
            if number % every == 0:
                sealed = buffer.next_sequence - 1
                buffer.seal()
                buffer.apply_receipt(Receipt(buffer.epoch, sealed))
        ours = proc.written_bytes(os.getpid()) - before
    path = folder / f"bare-{size}"
    with database.locked(path):
        db = database.open_writer(path)
        db.execute(SCHEMA)
        before, sealed = proc.written_bytes(os.getpid()), 0
        for number, group in enumerate(groups, 1):
            db.execute("begin immediate")
            db.executemany(INSERT, group)
            db.execute("commit")
            if number % every == 0:
                db.execute("delete from readings where id <= ?", (sealed,))
                sealed = number * size
        bare_bytes = proc.written_bytes(os.getpid()) - before
        db.close()
    return ours / len(made), bare_bytes / len(made)


def backlog(made: list[Reading], folder: Path) -> float:
    """Bytes of the file per reading, all of which wait."""
    path = folder / "backlog"
    with Buffer(path, zone="Asia/Manila") as buffer:
        for group in _groups(made, READINGS_A_SECOND):
            buffer.append_readings(group)
        in_use = buffer.status().buffer_bytes
    print(
        f"backlog: {len(made):,} readings in {path.stat().st_size:,} bytes;"
        f" {in_use:,} with the WAL before it was closed"
    )
    return path.stat().st_size / len(made)


def _groups(made: list[Reading], size: int) -> list[list[Reading]]:
    return [made[i : i + size] for i in range(0, len(made), size)]


def main() -> None:
    """Print the setting, the repeats, and as the last line the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--group", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steady-seconds", type=int, default=60)
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a real disk)")
    args = parser.parse_args()
    print(f"setting: SQLite {sqlite3.sqlite_version}, wal, synchronous full")
    made = readings(max(args.records, args.backlog))
    ratio = rate(made[: args.records], args.group, args.repeats, args.folder)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for size in (1, 10, READINGS_A_SECOND):
            ours, theirs = steady(made[: READINGS_A_SECOND * args.steady_seconds], size, Path(name))
            if not theirs:
                sys.exit(f"{name} is on a file system in memory: give --folder on a real disk")
            print(
                f"steady: {size} per commit: {ours:,.0f} bytes written per reading,"
                f" bare {theirs:,.0f}: {ours / theirs:.2f} ratio"
            )
        kept = backlog(made[: args.backlog], Path(name))
    missed = [
        *([f"rate {ratio:.2f} < {RATE_RATIO}"] if ratio < RATE_RATIO else []),
        *([f"backlog {kept:.2f} > {BACKLOG_BYTES} bytes"] if kept > BACKLOG_BYTES else []),
    ]
    print(f"backlog: {kept:.2f} bytes per reading (limit {BACKLOG_BYTES})")
    print(f"MISSED: {', '.join(missed)}" if missed else "no limit was missed")
    print(f"buffer: {ratio:.2f} ratio")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
