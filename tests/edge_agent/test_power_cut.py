"""A power cut at any moment: what a source was told is stored is there, once.

SCOUT_POWER_CUTS says how many cuts (``make chaos CUTS=1000``), SCOUT_POWER_SEED repeats a run.
"""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from scout_edge.buffer import Buffer, StoredSegment
from scout_shared import wire
from tests.edge_agent.power import Disk, Event
from tests.edge_agent.records import ZONE, contents, readings, stored

CUTS = int(os.environ.get("SCOUT_POWER_CUTS") or 40)
SEED = int(os.environ.get("SCOUT_POWER_SEED") or 20261123)
CUTS_PER_RUN = 40


def record(folder: Path, seed: int, *weaker: str) -> list[Event]:
    log = folder / f"{seed}.log"
    subprocess.run(
        [sys.executable, "-m", "tests.edge_agent.power", str(log), str(seed), *weaker],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    events: list[Event] = pickle.loads(log.read_bytes())
    log.unlink()
    return events


def cut_and_check(events: list[Event], seed: int, cuts: int, folder: Path) -> None:
    """Cut one recorded run at seeded moments; each image must hold what was told before."""
    rng = random.Random(seed)
    moments = Counter(rng.randrange(1, len(events) + 1) for _ in range(cuts))
    disk = Disk()
    number = 0
    for at, event in enumerate(events, 1):
        disk.apply(event)
        for _ in range(moments[at]):
            number += 1
            image = folder / f"{seed}-{number}"
            image.mkdir()
            disk.cut(rng, image)
            try:
                check(image / "edge.db", events[:at])
            except Exception as error:
                raise AssertionError(
                    f"SCOUT_POWER_SEED={seed}, cut {number} at event {at} of {len(events)}"
                    f" (files kept in {image}): {error!r}"
                ) from error
            for left in image.iterdir():
                left.unlink()
            image.rmdir()


def check(path: Path, before: Iterable[Event]) -> None:
    told: dict[str, set[int]] = {"r": set(), "d": set()}
    held: dict[int, StoredSegment] = {}
    epochs = set()
    for kind, *rest in before:
        if kind == "told":
            told[rest[0]].update(range(rest[1], rest[1] + rest[2]))
        elif kind == "epoch":
            epochs.add(rest[0])
        elif kind == "hub":
            header = wire.decode_header(rest[0])
            held[header.first_sequence] = StoredSegment(
                header.first_sequence, header.records, header.kind, rest[0]
            )
    with Buffer(path, zone=ZONE) as buffer:
        assert {buffer.epoch} == epochs or not epochs, "the buffer is another one"
        buffer.append_readings(readings(1, 10**9))  # it goes on
        buffer.seal()
        for segment in stored(buffer, after=buffer.watermark):
            assert held.setdefault(segment.first_sequence, segment) == segment
        expected = 1
        for first in sorted(held):
            assert first == expected, f"gap or overlap before sequence {first}"
            expected += held[first].records
        assert expected == buffer.next_sequence
        found, bodies = contents(held[first] for first in sorted(held))
        numbers = Counter(int(reading.value) for reading in found.elements())
        sales = Counter(int(d.body.split(b":")[1].split(b",")[0]) for d in bodies)
        for name, what in (("r", numbers), ("d", sales)):
            lost = told[name] - what.keys()
            assert not lost, f"{len(lost)} records told stored are gone"
            assert set(what.values()) <= {1}, "records are doubled"
        records = sum(entry.records for entry in buffer.status().ledger)
        assert records == numbers.total() + sales.total()


@pytest.mark.slow
def test_what_was_told_stored_survives_a_power_cut(tmp_path: Path) -> None:
    done, seed = 0, SEED
    while done < CUTS:
        cuts = min(CUTS_PER_RUN, CUTS - done)
        cut_and_check(record(tmp_path, seed), seed, cuts, tmp_path)
        done, seed = done + cuts, seed + 1
    sys.stdout.write(f"seed {SEED}: {done} power cuts, 0 records lost, 0 doubled\n")


@pytest.mark.parametrize("weaker", ["normal", "off"])
def test_a_weaker_sync_is_caught(tmp_path: Path, weaker: str) -> None:
    """The simulation can fail: without a sync at each commit, records that were told are gone."""
    with pytest.raises(AssertionError, match=rf"SCOUT_POWER_SEED={SEED}, cut") as caught:
        cut_and_check(record(tmp_path, SEED, weaker), SEED, CUTS_PER_RUN, tmp_path)
    sys.stdout.write(f"synchronous {weaker}: {caught.value}\n")
