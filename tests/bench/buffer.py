"""Durable records per second of the edge buffer, against bare sqlite3 in the same run.

Both take the same readings in groups of the same size, one commit (and fsync) per group, with the
same pragmas. Bare: one row per reading by ``executemany``. Buffer: everything that accepting means:
checks, ledger, tail, encoding to sealed segments.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from scout_edge import database
from scout_edge.buffer import Buffer
from scout_shared.wire import Reading

METRICS = 40


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


def bare(path: Path, groups: list[list[Reading]]) -> float:
    """Seconds for the groups with bare sqlite3."""
    with database.locked(path):
        db = database.open_writer(path)
        db.execute(
            "create table readings (id integer primary key, metric text, observed_ms integer,"
            " value real)"
        )
        started = time.perf_counter()
        for group in groups:
            db.execute("begin immediate")
            db.executemany(
                "insert into readings (metric, observed_ms, value) values (?, ?, ?)", group
            )
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


def main() -> None:
    """Print the setting, the repeats, and as the last line the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--group", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a real disk)")
    args = parser.parse_args()
    made = readings(args.records)
    groups = [made[i : i + args.group] for i in range(0, len(made), args.group)]
    print(
        f"setting: {args.records} readings of {METRICS} metrics, {args.group} per commit,"
        f" {args.repeats} repeats interleaved, SQLite {sqlite3.sqlite_version}, wal, synchronous"
        " full"
    )
    ratios, ours, theirs = [], [], []
    for repeat in range(args.repeats):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            runs = [bare, buffered] if repeat % 2 else [buffered, bare]
            seconds = {run.__name__: run(Path(folder) / run.__name__, groups) for run in runs}
        ours.append(args.records / seconds["buffered"])
        theirs.append(args.records / seconds["bare"])
        ratios.append(ours[-1] / theirs[-1])
        print(f"repeat {repeat + 1}: buffer {ours[-1]:,.0f}/s, bare {theirs[-1]:,.0f}/s")
    print(f"median: {statistics.median(ours):,.0f}/s against {statistics.median(theirs):,.0f}/s")
    print(f"buffer: {statistics.median(ratios):.2f} ratio")


if __name__ == "__main__":
    main()
