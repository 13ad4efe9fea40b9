"""The edge buffer beside the storage classes of thingsboard-gateway, in one run, on one disk.

The gateway is installed from PyPI into an environment of its own, with what its storages import.
Each storage runs in a process of its own, driven in the same way (``_storages``), with the settings
that it ships. What its OK means differs, so each row says it:

    buffer    an fsync came before the OK
    sqlite    put in a queue in memory; a thread writes batches, WAL with synchronous=NORMAL
    file      written to the page cache, no fsync
    memory    never leaves memory

``told``: readings per second until the last OK. ``stored``: until nothing waits in memory. ``out``:
given out in packs, each confirmed. On disk (ours with WAL and 512 KB of ballast) and written: bytes
per reading. Then 20 times each:
``kill -9`` at a random moment while readings come one by one, opened again, and counted against
what was accepted. A kill leaves the page cache alone; a power cut would take more.

Their messages are ready JSON texts before the clock starts, our encoding is within our time.

The last line is ``peer: <figure> ratio``: our bytes on disk to those of their SQLite storage, 100
readings per message. Exit code 1: it is above 1, or ours lost or doubled a reading, or did not give
out exactly what it took. Rates are not judged: an OK after an fsync costs one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.buffer import readings
from tests.harness.waiting import eventually

PEER = ("thingsboard-gateway==3.8.5", "simplejson==4.3.0", "pybase64==1.5.1")
"""Without its other dependencies (grpcio and more): its storages do not import them."""

STORAGES = {
    "buffer": "fsync before the OK",
    "sqlite": "queue in memory, then WAL, synchronous=NORMAL",
    "file": "page cache, no fsync",
    "memory": "memory",
}
DRIVER = Path(__file__).with_name("_storages.py")
KILLED_AFTER_SECONDS = 0.2, 0.9
ACCEPTED_A_SECOND = 200


def main() -> None:
    """Print two tables and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readings", type=int, default=12_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a real disk)")
    args = parser.parse_args()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="scout-peer-") as name:
        folder = Path(name)
        python = installed(folder)
        print(f"{args.readings:,} readings one by one, ten times as many by 100; the OK means:")
        for kind, meaning in STORAGES.items():
            print(f"  {kind:7} {meaning}")
        size = rates(python, folder, args.readings, failures)
        kills(python, folder, args.kills, random.Random(args.seed), failures)
        print(f"seed {args.seed}")
    ratio = size["buffer", 100] / size["sqlite", 100]
    if ratio > 1:
        failures.append("the buffer takes more room on the disk")
    for failure in failures:
        print(f"MISSED: {failure}")
    print(f"peer: {ratio:.2f} ratio")
    sys.exit(bool(failures))


def installed(folder: Path) -> Path:
    """The interpreter of a new environment with the peer."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    pip: list[str | Path] = [python, "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", *PEER], check=True)
    print(f"installed: {', '.join(PEER)}")
    return python


def rates(
    python: Path, folder: Path, single: int, failures: list[str]
) -> dict[tuple[str, int], float]:
    """One table, and our figures to those of their SQLite storage; returns bytes on disk."""
    print("storage  per message     told/s   stored/s      out/s  on disk  written  given out")
    size = {}
    for each, count in ((1, single), (100, 10 * single)):
        made = json.dumps(readings(count))
        figures = {}
        for kind in STORAGES:
            place = folder / f"{kind}-{each}"
            place.mkdir()
            done = json.loads(run(python, ["fill", kind, place, count, each], made))
            # Ours counts readings, theirs messages.
            out = done["out"] * (1 if kind == "buffer" else each)
            figures[kind] = told, stored, given, kept, written = (
                count / done["told_seconds"],
                count / done["stored_seconds"],
                out / max(done["out_seconds"], 1e-9),
                done["size_bytes"] / count,
                done["written_bytes"] / count,
            )
            size[kind, each] = kept
            print(
                f"{kind:8} {each:11} {told:10,.0f} {stored:10,.0f} {given:10,.0f} {kept:8.1f}"
                f" {written:8,.0f} {out:>7,} of {done['accepted'] * each:,}",
                flush=True,
            )
            if kind == "buffer" and out != count:
                failures.append(f"the buffer gave out {out} of {count} readings")
        ratios = [
            a / b if b else 0 for a, b in zip(figures["buffer"], figures["sqlite"], strict=True)
        ]
        told, stored, given, kept, written = ratios
        print(
            f"{'ratio':8} {each:11} {told:10.4f} {stored:10.4f} {given:10.4f} {kept:8.3f}"
            f" {written:8.2f}  buffer to sqlite"
        )
    return size


def kills(python: Path, folder: Path, times: int, rng: random.Random, failures: list[str]) -> None:
    """The other table: what is left of what was accepted."""
    print(f"{times} kill -9 each, readings one by one, at most {ACCEPTED_A_SECOND}/s:")
    print("storage   accepted     lost  doubled  runs that lost  most in one")
    for kind in ("buffer", "sqlite", "file"):
        lost: list[int] = []
        doubled = accepted = 0
        for number in range(times):
            place = folder / f"kill-{kind}-{number}"
            told, found = killed(python, kind, place, rng.uniform(*KILLED_AFTER_SECONDS))
            accepted += told
            lost.append(told - len({n for n in found if n <= told}))
            doubled += len(found) - len(set(found))
        print(
            f"{kind:8} {accepted:9,} {sum(lost):8,} {doubled:8,} {len([n for n in lost if n]):15}"
            f" {max(lost):12,}",
            flush=True,
        )
        if kind == "buffer" and (any(lost) or doubled > 0):
            failures.append(f"the buffer lost {sum(lost)} and doubled {doubled} readings")


def killed(python: Path, kind: str, place: Path, seconds: float) -> tuple[int, list[float]]:
    """How many readings were accepted until the kill, and which are there afterwards."""
    (place / "data").mkdir(parents=True)
    told = place / "accepted"
    command = _command(python, ["accept", kind, place, ACCEPTED_A_SECOND])
    with subprocess.Popen(command, env=_environ(kind)) as process:
        try:
            eventually(lambda: any(told.read_bytes()), 30, f"{kind} accepts")
            threading.Event().wait(seconds)
            assert process.poll() is None, f"{kind} ended by itself"
        finally:
            process.kill()
    found = json.loads(run(python, ["count", kind, place]))
    return int.from_bytes(told.read_bytes(), "little"), found


def run(python: Path, task: Sequence[Any], given: str = "") -> str:
    """One task of the driver; its answer."""
    done = subprocess.run(
        _command(python, task),
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
        env=_environ(task[1]),
    )
    return done.stdout


def _command(python: Path, task: Sequence[Any]) -> list[str]:
    program = sys.executable if task[1] == "buffer" else str(python)
    return [program, str(DRIVER), *map(str, task)]


def _environ(kind: str) -> dict[str, str]:
    """Ours sees what this program sees; the peer only its own environment."""
    path = os.pathsep.join(filter(None, sys.path)) if kind == "buffer" else ""
    return {**os.environ, "PYTHONPATH": path}


if __name__ == "__main__":
    main()
