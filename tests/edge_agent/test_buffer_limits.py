"""Explicit limits: what is refused, what is given up and declared, a disk that is really full."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scout_edge import clock
from scout_edge.buffer import Buffer
from scout_edge.privacy import EXPIRED
from scout_edge.room import BALLAST_BYTES, DROP_OLDEST, REJECT, THIN, Limits
from scout_shared import wire
from scout_shared.errors import ConfigError, TransientError
from scout_shared.messages import Receipt
from scout_shared.wire import DOCUMENTS, GAP, READINGS, UNKNOWN_DAY, Document, Reading
from tests.edge_agent.records import START_MS, ZONE, contents, stored

CAP = 1 << 20


def noise(rng: random.Random, count: int = 1000) -> list[Reading]:
    """Readings that hardly compress."""
    return [Reading("m", START_MS + i, rng.random()) for i in range(count)]


def sale(rng: random.Random, size: int = 4000) -> Document:
    return Document("transaction", None, UNKNOWN_DAY, rng.randbytes(size))


def fill(buffer: Buffer, rng: random.Random) -> int:
    """Readings until they are refused; returns how many were accepted."""
    accepted = 0
    with pytest.raises(TransientError, match="full"):  # noqa: PT012 - which one is not known
        while True:
            accepted += buffer.append_readings(noise(rng)).records
    return accepted


def account(buffer: Buffer) -> tuple[int, int]:
    """Records that can be delivered, and those declared; together all that was ever sealed."""
    segments = stored(buffer)
    declared = sum(s.records for s in segments if s.kind == GAP)
    return sum(s.records for s in segments if s.kind != GAP), declared


def test_readings_leave_a_reserve_to_documents(tmp_path: Path) -> None:
    rng = random.Random(1)
    with Buffer(tmp_path / "edge.db", zone=ZONE, limits=Limits(CAP)) as buffer:
        accepted = fill(buffer, rng)
        for _ in range(12):
            buffer.append_documents([sale(rng)])
        with pytest.raises(TransientError, match="full"):
            buffer.append_readings(noise(rng))
        buffer.seal()
        assert account(buffer) == (accepted + 12, 0)
        assert (tmp_path / "edge.db").stat().st_size <= CAP


@pytest.mark.parametrize("policy", [DROP_OLDEST, THIN])
def test_old_readings_are_given_up_and_declared_in_the_same_breath(
    tmp_path: Path, policy: str
) -> None:
    path, rng = tmp_path / "edge.db", random.Random(2)
    limits = Limits(CAP, readings_at_cap=policy)
    with Buffer(path, zone=ZONE, limits=limits) as buffer:
        sales = [sale(rng, 500) for _ in range(20)]
        for one in sales:
            buffer.append_documents([one])
        for _ in range(600):  # about five times what the file holds
            buffer.append_readings(noise(rng))
        assert path.stat().st_size <= CAP
        newest = noise(rng)
        buffer.append_readings(newest)
        buffer.seal()
        segments = stored(buffer)  # follow each other without a hole
        whole, declared = account(buffer)
        assert whole + declared == 601_000 + 20
        assert declared == buffer.status().given_up_records > 300_000
        parts = [p for s in segments if s.kind == GAP for p in wire.decode_gap(s.body)]
        assert {(p.kind, p.reason) for p in parts} == {(READINGS, policy)}
        assert all(UNKNOWN_DAY not in p.days for p in parts)
        readings, documents = contents(s for s in segments if s.kind != GAP)
        assert documents == sales, "documents are never given up"
        assert all(readings[r] for r in newest)
        assert sum(e.records for e in buffer.status().ledger) == 601_020
        kept = [s for s in segments if s.kind == READINGS]
        if policy == THIN:
            assert kept[0].first_sequence < 200_000, "of the old ones some are left"
        else:
            assert kept[0].first_sequence > 400_000
    with Buffer(path, zone=ZONE, limits=limits) as buffer:
        assert stored(buffer) == segments
        last = segments[-1].last_sequence
        assert buffer.apply_receipt(Receipt(buffer.epoch, last)) == last
        assert stored(buffer) == []


def test_a_sale_pushes_readings_out_never_the_other_way(tmp_path: Path) -> None:
    rng = random.Random(3)
    limits = Limits(CAP, readings_at_cap=DROP_OLDEST, document_reserve_ratio=0.0)
    with Buffer(tmp_path / "edge.db", zone=ZONE, limits=limits) as buffer:
        for _ in range(200):
            buffer.append_readings(noise(rng))
        accepted = 0
        with pytest.raises(TransientError, match="full"):  # noqa: PT012 - which one is not known
            while True:
                accepted += buffer.append_documents([sale(rng, 2000)]).records
        assert accepted * 2000 > CAP * 0.7
        with pytest.raises(TransientError, match="full"):
            buffer.append_readings(noise(rng))
        buffer.seal()
        kinds = [s for s in stored(buffer) if s.kind == DOCUMENTS]
        assert sum(s.records for s in kinds) == accepted


@pytest.mark.parametrize(
    "wrong",
    [
        {"readings_at_cap": "forget"},
        {"document_reserve_ratio": 1.0},
        {"min_free_bytes": -1},
    ],
)
def test_a_limit_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Limits(**wrong)  # type: ignore[arg-type]  # wrong on purpose


# -- a small disk ---------------------------------------------------------------------------------


def test_documents_that_waited_too_long_are_given_up_by_a_known_clock_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_ms = 24 * 3600 * 1000
    now_ms, vouched = 1_795_406_400_000, True
    monkeypatch.setattr(clock, "wall_ms", lambda: now_ms)
    monkeypatch.setattr(clock, "synced", lambda: vouched)
    rng = random.Random(1)
    sealed_on: list[tuple[int, bool, int]] = []
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:

        def seal(days_ago: int, known: bool) -> None:
            nonlocal now_ms, vouched
            before, vouched = now_ms, known
            now_ms -= days_ago * day_ms
            sealed_on.append((days_ago, known, buffer.next_sequence))
            buffer.append_documents([sale(rng, 100), sale(rng, 100)])
            buffer.seal()
            buffer.append_readings(noise(rng, 10))
            buffer.seal()
            now_ms, vouched = before, True

        for days_ago, known in [
            (20_000, False),  # a device whose clock began in 1970
            (40, True),
            (2, False),  # in truth between 40 and 31 days ago
            (31, True),
            (29, True),
            (20_000, False),  # nobody knows how old, but younger than the one before
        ]:
            seal(days_ago, known)
        vouched = False
        assert buffer.give_up_expired(30) == 0, "nobody vouches for the clock"
        vouched = True
        assert buffer.give_up_expired(30) == 8
        kinds = [(s.first_sequence, s.kind) for s in stored(buffer)]
        places = [place for _, _, place in sealed_on]
        assert [place for place, kind in kinds if kind == wire.GAP] == places[:4]
        assert [place for place, kind in kinds if kind == wire.DOCUMENTS] == places[4:]
        assert sum(kind == wire.READINGS for _, kind in kinds) == 6
        assert account(buffer) == (64, 8)
        gap = next(s for s in stored(buffer) if s.kind == wire.GAP)
        (part,) = wire.decode_gap(gap.body)
        assert (part.records, part.reason) == (2, EXPIRED)
        assert buffer.give_up_expired(30) == 0
        now_ms += 2 * day_ms
        assert buffer.give_up_expired(30) == 2, "the next one that says how old it is"
        assert buffer.status().given_up_records == 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def occupy(disk: Path) -> Path:
    """Another program takes all the space that is left."""
    other = disk / "other"
    with other.open("ab", buffering=0) as file:
        for size in (4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return other


FLOOR = 1 << 20


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("policy", [REJECT, THIN, DROP_OLDEST])
def test_the_file_stops_growing_at_the_floor(disk: Path, policy: str) -> None:
    rng = random.Random(4)
    limits = Limits(1 << 30, FLOOR, readings_at_cap=policy)
    with Buffer(disk / "edge.db", zone=ZONE, limits=limits) as buffer:
        if policy == REJECT:
            accepted = fill(buffer, rng)
        else:
            accepted = sum(buffer.append_readings(noise(rng)).records for _ in range(1500))
        assert free_bytes(disk) > FLOOR // 2
        buffer.seal()
        assert sum(account(buffer)) == accepted
        assert bool(account(buffer)[1]) == (policy != REJECT)


@pytest.mark.parametrize("policy", [REJECT, DROP_OLDEST])
@pytest.mark.parametrize("seed", [5, 17])
def test_a_disk_that_is_really_full_never_wedges(disk: Path, policy: str, seed: int) -> None:
    rng = random.Random(seed)
    path = disk / "edge.db"
    limits = Limits(1 << 30, FLOOR, readings_at_cap=policy)
    with Buffer(path, zone=ZONE, limits=limits) as buffer:
        ballast = disk / "edge.db.ballast"
        assert ballast.stat().st_size == BALLAST_BYTES
        accepted = sum(buffer.append_readings(noise(rng)).records for _ in range(60 + 8 * seed))
        accepted += buffer.append_documents([sale(rng) for _ in range(10)]).records
        other = occupy(disk)
        assert free_bytes(disk) == 0
        # Clear refusals (or old readings pushed out), nothing accepted is lost.
        for _ in range(50):
            with contextlib.suppress(TransientError):
                accepted += buffer.append_documents([sale(rng)]).records
                accepted += buffer.append_readings(noise(rng)).records
        # Sealing and receipts still work: what is urgent gets the ballast.
        buffer.seal()
        segments = stored(buffer)
        assert sum(account(buffer)) == accepted
        middle = segments[len(segments) // 2].last_sequence
        assert buffer.apply_receipt(Receipt(buffer.epoch, middle)) == middle
        assert stored(buffer, middle)
        # There is room in the file again, though the disk is as full as before.
        accepted += buffer.append_documents([sale(rng)]).records
        other.unlink()
        accepted += buffer.append_readings(noise(rng)).records
        buffer.seal()
        last = buffer.next_sequence - 1
        assert last == accepted
        assert buffer.apply_receipt(Receipt(buffer.epoch, last)) == last - middle
    with Buffer(path, zone=ZONE, limits=limits) as buffer:
        assert ballast.stat().st_size == BALLAST_BYTES, "there is ballast again"
        assert buffer.status().backlog_records == 0


def test_a_device_that_restarts_with_its_disk_full_comes_up(disk: Path) -> None:
    rng = random.Random(6)
    path = disk / "edge.db"
    limits = Limits(1 << 30, FLOOR)
    with Buffer(path, zone=ZONE, limits=limits) as buffer:
        accepted = buffer.append_readings(noise(rng)).records
    occupy(disk)
    with Buffer(path, zone=ZONE, limits=limits) as buffer:
        with contextlib.suppress(TransientError):
            accepted += buffer.append_documents([sale(rng)]).records
        buffer.seal()
        assert account(buffer) == (accepted, 0)
        assert buffer.apply_receipt(Receipt(buffer.epoch, accepted)) == accepted
