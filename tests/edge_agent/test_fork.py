"""Copies of a buffer file, in any number and order: each record at the hub once, books that add up.

The hub here is the hub's own judgement (``scout_central.ingest.openings.judge``) over what it holds
in memory; the same judgement on PostgreSQL is in ``tests/central/test_ingest_openings.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from scout_central.ingest.openings import Line, judge
from scout_edge import extent, fork, recovery
from scout_edge.buffer import Buffer, StoredSegment
from scout_edge.room import Limits
from scout_shared import wire
from scout_shared.messages import Fork, Opening, Receipt
from scout_shared.wire import Reading
from tests.edge_agent.records import ZONE, contents, documents, readings, stored


class Hub:
    """Everything that was sent, by stream."""

    def __init__(self) -> None:
        self.lines: defaultdict[bytes, Line] = defaultdict(lambda: Line([], 1))
        self.held: defaultdict[bytes, dict[int, bytes]] = defaultdict(dict)
        self.produced: Counter[tuple[bytes, int, int]] = Counter()

    def hello(self, buffer: Buffer, lineage: tuple[Opening, ...]) -> Receipt:
        status = buffer.status()
        line = self.lines[status.epoch]
        if lineage and (left := judge(line, lineage, status.next_sequence)):
            return Receipt(status.epoch, 0, credit=0, fork=left)
        line.next_sequence = max(line.next_sequence, status.next_sequence)
        for entry in status.ledger:
            key = status.epoch, entry.kind, entry.day
            self.produced[key] = max(self.produced[key], entry.records)
        return self.receipt(status.epoch, status.ledger_version)

    def receipt(self, epoch: bytes, ledger_version: int = 0) -> Receipt:
        watermark, ranges = 0, []
        for first in sorted(self.held[epoch]):
            last = wire.decode_header(self.held[epoch][first]).last_sequence
            if first == watermark + 1:
                watermark = last
            else:
                ranges.append((first, last))
        openings = self.lines[epoch].openings
        writer = openings[-1].nonce if openings else b""
        return Receipt(
            epoch, watermark, tuple(ranges), ledger_version=ledger_version, writer=writer
        )

    def take(self, epoch: bytes, segment: StoredSegment) -> None:
        standing = self.held[epoch].setdefault(segment.first_sequence, segment.body)
        assert standing == segment.body, "two copies sent other bytes under one sequence"

    def found(self) -> tuple[Counter[Reading], Counter[bytes]]:
        segments = []
        received: Counter[tuple[bytes, int, int]] = Counter()
        for epoch, held in self.held.items():
            at = 1
            for first in sorted(held):
                header = wire.decode_header(held[first])
                assert first == at, "a stream has a hole"
                at += header.records
                segments.append(StoredSegment(first, header.records, header.kind, held[first]))
                meta, _ = wire.decode_body(header, held[first])
                for day, count in meta["days"]:
                    received[epoch, header.kind, day] += count
        assert received == self.produced, "produced is not received"
        found, bodies = contents(segments)
        return found, Counter(document.body for document in bodies)


def speak(buffer: Buffer, hub: Hub, sent: int | None = None) -> None:
    """One connection: hello, then up to ``sent`` segments, as the forwarder does it."""
    lineage = () if ".forked-" in buffer.path.name else buffer.lineage
    while (receipt := hub.hello(buffer, lineage)).fork is not None:
        assert buffer.leave(receipt)
        lineage = buffer.lineage
    buffer.apply_receipt(receipt)
    noted = extent.read(buffer.path)
    assert (noted and noted.epoch) == (buffer.epoch if lineage else None)
    if sent is None:
        buffer.seal()
    after = buffer.watermark
    while sent != 0 and (segments := buffer.segments_after(after, 1 << 20, 1)):
        hub.take(buffer.epoch, segments[0])
        after = segments[0].last_sequence
        sent = None if sent is None else sent - 1
    buffer.apply_receipt(hub.receipt(buffer.epoch))
    buffer.apply_receipt(hub.hello(buffer, lineage))


def opened(path: Path) -> Buffer:
    return recovery.open_buffer(path, zone=ZONE, limits=Limits(1 << 30))


def deliver(path: Path, hub: Hub) -> None:
    """All that a device holds, its files of old epochs too."""
    with opened(path) as buffer:
        speak(buffer, hub)
        assert buffer.status().backlog_records == 0
    for side in recovery.waiting(path):
        with Buffer(side, zone=recovery.zone_of(side)) as old:
            speak(old, hub)
            assert old.status().backlog_records == 0
        recovery.finish(side)
    assert recovery.waiting(path) == []


def copied(path: Path, target: Path) -> Path:
    """All files of a device that does not run: a cloned card, an image."""
    shutil.copytree(path.parent, target)
    return target / path.name


@pytest.mark.parametrize("seed", range(12))
def test_each_record_of_any_copies_is_at_the_hub_once(tmp_path: Path, seed: int) -> None:
    rng, hub = random.Random(seed), Hub()
    (tmp_path / "0").mkdir()
    paths = [tmp_path / "0" / "edge.db"]
    accepted: Counter[Reading] = Counter()
    sold: Counter[bytes] = Counter()
    number = 0
    for _ in range(rng.randint(5, 14)):
        path = rng.choice(paths)
        if path.exists() and len(paths) < 4 and rng.random() < 0.4:
            paths.append(copied(path, tmp_path / str(len(paths))))
        with opened(path) as buffer:
            for _ in range(rng.randint(0, 3)):
                count = rng.choice([1, 7, 1400])
                made = readings(count, number)
                buffer.append_readings(made)
                accepted.update(made)
                number += count
                if rng.random() < 0.5:
                    sales = documents(buffer, 5, number)
                    buffer.append_documents(sales, key=f"sale-{number}")
                    sold.update(document.body for document in sales)
                    number += 5
                if rng.random() < 0.5:
                    buffer.seal()
            if rng.random() < 0.5:
                speak(buffer, hub, rng.choice([0, 1, 2, None]))
    rng.shuffle(paths)
    for path in paths:
        deliver(path, hub)
    assert hub.found() == (accepted, sold)


def test_what_is_common_does_not_wait_for_what_another_copy_holds(tmp_path: Path) -> None:
    """The hub has later sequences of the old epoch, and a hole before them."""
    hub = Hub()
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "edge.db"
    with opened(path) as buffer:
        buffer.append_readings(readings(1400))
        buffer.seal()
        hub.hello(buffer, buffer.lineage)
    copy = copied(path, tmp_path / "1")
    with opened(path) as buffer:
        hub.hello(buffer, buffer.lineage)
        buffer.append_readings(readings(2000, 1400))
        buffer.seal()
        hub.take(buffer.epoch, stored(buffer)[-1])  # the newest went first, then the line was cut
    deliver(copy, hub)
    deliver(path, hub)
    assert hub.found() == (Counter(readings(3400)), Counter())


KILLED = """
import os, sys
from pathlib import Path
from scout_edge import database, fork
from scout_edge.buffer import Buffer
from scout_shared import wire
from scout_shared.messages import Receipt
from tests.edge_agent.records import ZONE
from tests.edge_agent.test_fork import Hub
path, at = Path(sys.argv[1]), sys.argv[2]
die = lambda *args: os._exit(9)
buffer = Buffer(path, zone=ZONE)
if at == "before the side file has its name":
    os.fsync = die
if at == "before the new epoch is committed":
    calls, renamed = [], wire.renamed
    wire.renamed = lambda *args: renamed(*args) if calls.append(1) or len(calls) < 2 else die()
from scout_shared.messages import Fork
left = Fork(buffer.nonce, int(sys.argv[3]), buffer.lineage[1].nonce)
buffer.leave(Receipt(buffer.epoch, 0, credit=0, fork=left))
die()
"""


@pytest.mark.parametrize(
    "moment",
    ["before the side file has its name", "before the new epoch is committed", "right after it"],
)
def test_a_kill_during_the_fork_loses_and_doubles_nothing(tmp_path: Path, moment: str) -> None:
    hub = Hub()
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "edge.db"
    with opened(path) as buffer:
        buffer.append_readings(readings(1500))
        buffer.append_documents(documents(buffer, 9))
        speak(buffer, hub, 0)
    copy = copied(path, tmp_path / "1")
    with opened(path) as buffer:
        buffer.append_readings(readings(20, 5000))
        speak(buffer, hub, 0)
    with opened(copy) as buffer:
        buffer.append_readings(readings(2300, 10_000))
        begun = buffer.lineage[-1].first_sequence
    with opened(copy) as buffer:
        assert buffer.lineage[-2].first_sequence == begun
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(copy), moment, str(begun)], env=os.environ, check=False
    )
    assert ended.returncode == 9
    if moment == "right after it":
        assert len(fork.files(copy)) == 1
    deliver(copy, hub)
    deliver(path, hub)
    expected = Counter(readings(1500) + readings(20, 5000) + readings(2300, 10_000))
    found, sold = hub.found()
    assert found == expected
    assert sum(sold.values()) == 9


def test_a_word_for_another_copy_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    with opened(path) as buffer:
        buffer.append_readings(readings(5))
        epoch = buffer.epoch
        other = Fork(bytes(8), 1, bytes(8))
        assert not buffer.leave(Receipt(epoch, 0, fork=other))
        mine = other._replace(writer=buffer.nonce)
        assert not buffer.leave(Receipt(bytes(16), 0, fork=mine))
        assert buffer.epoch == epoch
        assert buffer.leave(Receipt(epoch, 0, fork=mine))
        assert buffer.epoch == mine.epoch_after(epoch)
        assert not buffer.leave(Receipt(epoch, 0, fork=mine))


def test_requests_and_sources_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    with opened(path) as buffer:
        sales = documents(buffer, 3)
        buffer.append_documents(sales, key="sale")
        mine = Fork(buffer.nonce, 1, buffer.nonce)
        assert buffer.leave(Receipt(buffer.epoch, 0, fork=mine))
        assert buffer.append_documents(sales, key="sale").duplicate
        assert [(e.kind, e.records) for e in buffer.status().ledger if e.records]
        assert sum(e.records for e in buffer.status().ledger) == 3
        assert buffer.status().forks == 1
