"""A damaged file is set aside, what is whole in it keeps its identity, the rest is declared."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from scout_edge import agent, database, extent, recovery
from scout_edge.buffer import Buffer, Offset, StoredSegment
from scout_edge.config import load
from scout_edge.database import DamagedError
from scout_edge.extent import Extent, Note
from scout_edge.pages import PAGE_BYTES
from scout_edge.room import Limits
from scout_shared import wire
from scout_shared.errors import PermanentError
from scout_shared.messages import Receipt
from scout_shared.wire import GAP, UNKNOWN_KIND, Document
from tests.edge_agent.hub import Hub
from tests.edge_agent.records import ZONE, contents, documents, readings, stored
from tests.edge_agent.test_cli import write
from tests.harness.servers import Address
from tests.harness.waiting import eventually

READINGS_SEALED, DOCUMENTS_SEALED, UNSEALED = 5000, 300, 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


def opened(path: Path) -> Buffer:
    return recovery.open_buffer(path, zone=ZONE, limits=Limits())


def sales(buffer: Buffer, count: int, first: int = 0) -> list[Document]:
    """Documents that do not compress, some larger than a page."""
    rng = random.Random(first)
    return [
        d._replace(body=b'{"r":"%s"}' % rng.randbytes(100 + 3 * first).hex().encode())
        for d in documents(buffer, count, first=first)
    ]


def fill(buffer: Buffer) -> list[StoredSegment]:
    """Large and small segments, and a tail."""
    for first in range(0, DOCUMENTS_SEALED, 30):
        buffer.append_documents(
            sales(buffer, 30, first=first), key=f"sale-{first}", offset=Offset("folder", str(first))
        )
        buffer.append_readings(readings(500, first=first // 30 * 500))
        buffer.seal()
    buffer.append_readings(readings(UNSEALED, first=READINGS_SEALED))
    return stored(buffer)


def filled(path: Path) -> tuple[bytes, list[StoredSegment]]:
    with Buffer(path, zone=ZONE) as buffer:
        return buffer.epoch, fill(buffer)


def recovered(path: Path) -> Buffer:
    (found,) = recovery.waiting(path)
    return Buffer(found, zone=recovery.zone_of(found))


def test_a_healthy_file_is_opened_as_ever(path: Path) -> None:
    epoch, segments = filled(path)
    with opened(path) as buffer:
        assert (buffer.epoch, stored(buffer)[: len(segments)]) == (epoch, segments)
        assert stored(buffer)[-1].last_sequence == READINGS_SEALED + DOCUMENTS_SEALED + UNSEALED
    assert recovery.damaged_files(path) == []


@pytest.mark.parametrize("with_wal", [False, True])
def test_behind_a_lost_first_page_everything_is_whole(path: Path, with_wal: bool) -> None:
    if with_wal:
        epoch, segments = copy_while_open(path)
    else:
        epoch, segments = filled(path)
    damage = path.read_bytes()
    path.write_bytes(bytes(PAGE_BYTES) + damage[PAGE_BYTES:])
    wal = path.with_name("edge.db-wal")
    wal_bytes = wal.read_bytes() if with_wal else b""
    path.with_name("edge.db" + database.SUSPECT).touch()  # the WAL has a good first page
    with opened(path) as buffer:
        assert buffer.epoch != epoch
        assert buffer.status().backlog_records == 0
        # What sources rely on goes on in the new file.
        assert buffer.offset("folder") == "270"
        assert buffer.append_documents(sales(buffer, 30), key="sale-0").duplicate
    (aside,) = recovery.damaged_files(path)
    assert aside.read_bytes() == path_after(damage)
    if with_wal:
        assert aside.with_name(aside.name + "-wal").read_bytes() == wal_bytes
    with recovered(path) as old:
        assert old.epoch == epoch
        assert old.status().unsealed_records == UNSEALED
        assert stored(old) == segments
        assert sum(e.records for e in old.status().ledger) == 5340
        old.seal()
        found = contents(stored(old))
        assert found[0] == Counter(readings(READINGS_SEALED + UNSEALED))
        assert old.apply_receipt(Receipt(epoch, 5340)) == 5340
        assert old.status().backlog_records == 0


def path_after(damage: bytes) -> bytes:
    return bytes(PAGE_BYTES) + damage[PAGE_BYTES:]


def copy_while_open(path: Path) -> tuple[bytes, list[StoredSegment]]:
    """As ``filled``, but with the last commits in the WAL only, as after a power cut."""
    live = path.with_name("live.db")
    with Buffer(live, zone=ZONE) as buffer:
        segments = fill(buffer)
        for suffix in ("", "-wal"):
            shutil.copy(live.with_name("live.db" + suffix), path.with_name("edge.db" + suffix))
        return buffer.epoch, segments


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) * 2 // 3],
        lambda b: bytes(8 * PAGE_BYTES) + b[8 * PAGE_BYTES :],
        lambda b: b[: 30 * PAGE_BYTES] + b"\xff" * (20 * PAGE_BYTES) + b[50 * PAGE_BYTES :],
    ],
    ids=["cut", "small tables lost", "pages lost"],
)
def test_what_is_whole_is_delivered_and_what_is_not_declared(
    path: Path, damage: Callable[[bytes], bytes], noted: bool, request: pytest.FixtureRequest
) -> None:
    # Without a note nobody can tell what else there was: only the hub, by its own count.
    declared = noted or "small tables lost" not in request.node.name
    epoch, segments = filled(path)
    path.write_bytes(damage(path.read_bytes()))
    path.with_name("edge.db" + database.SUSPECT).touch()
    if not noted:
        extent.beside(path).unlink()
    with opened(path) as buffer:
        assert buffer.epoch != epoch
        buffer.append_readings(readings(3))
    with recovered(path) as old:
        assert old.epoch == epoch
        found = stored(old)  # checks that they follow each other without a hole
        whole = [s for s in found if s.kind != GAP]
        assert set(whole) <= set(segments)
        assert len(whole) > len(segments) // 3
        gaps = [s for s in found if s.kind == GAP]
        assert bool(gaps) == declared
        assert found[0].first_sequence == 1
        assert {p.kind for g in gaps for p in wire.decode_gap(g.body)} <= {UNKNOWN_KIND}
        assert old.status().given_up_records == sum(g.records for g in gaps)
        # The hub may hold more than is found: this file is no twin, it only lost its end.
        last = found[-1].last_sequence + 50
        if noted:
            assert last >= READINGS_SEALED + DOCUMENTS_SEALED + 50
        assert old.apply_receipt(Receipt(epoch, last)) == last
        assert stored(old) == []
        if old.status().unsealed_records:
            old.seal()
            assert stored(old)[0].first_sequence == last + 1


def test_random_damage_never_stops_the_start_and_invents_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    epoch, segments = filled(source)
    content = source.read_bytes()
    rng = random.Random(7)
    for round_ in range(25):
        path = tmp_path / f"{round_}.db"
        changed = bytearray(content)
        for _ in range(rng.randint(1, 30)):
            at, n = rng.randrange(len(changed)), rng.choice([1, 64, 4096])
            changed[at : at + n] = rng.randbytes(n)
        path.write_bytes(changed[: rng.choice([len(content), rng.randrange(5000, len(content))])])
        path.with_name(path.name + database.SUSPECT).touch()
        with opened(path) as buffer:
            assert buffer.epoch != epoch
        for found in recovery.waiting(path):
            with Buffer(found, zone=recovery.zone_of(found)) as old:
                delivered = stored(old)
                assert {s for s in delivered if s.kind != GAP} <= set(segments)
                assert not delivered or delivered[0].first_sequence == 1


def test_a_crash_between_the_steps_is_made_up_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch, segments = copy_while_open(path)
    path.write_bytes(path_after(path.read_bytes()))
    wal_bytes = path.with_name("edge.db-wal").read_bytes()
    path.rename(path.with_name("edge.db.damaged-1"))  # and then the power went
    with opened(path) as buffer:
        assert buffer.epoch != epoch
    assert path.with_name("edge.db.damaged-1-wal").read_bytes() == wal_bytes
    with recovered(path) as old:
        assert stored(old) == segments
    # Searched, but the report not written: it is done again.
    path.with_name("edge.db.damaged-1.json").unlink()
    assert recovery.waiting(path) == []
    opened(path).close()
    with recovered(path) as old:
        assert stored(old) == segments
    # Delivered: the file stays, and is not searched again.
    recovery.finish(*recovery.waiting(path))
    opened(path).close()
    assert recovery.waiting(path) == []
    assert len(recovery.damaged_files(path)) == 1


def test_a_disk_without_room_for_the_search_does_not_stop_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    path.write_bytes(path_after(path.read_bytes()))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "_rebuild", full)
        with opened(path) as buffer:
            buffer.append_readings(readings(3))
    assert recovery.waiting(path) == []
    opened(path).close()
    assert len(recovery.waiting(path)) == 1


def test_a_recovered_file_that_is_damaged_too_is_made_anew(path: Path) -> None:
    _, segments = filled(path)
    path.write_bytes(path_after(path.read_bytes()))
    opened(path).close()
    (found,) = recovery.waiting(path)
    found.write_bytes(b"\xff" * 100_000)
    with pytest.raises(DamagedError):
        recovered(path)
    opened(path).close()
    with recovered(path) as old:
        assert stored(old) == segments


def test_a_file_of_somebody_else_is_not_touched(path: Path) -> None:
    content = b"this is no database at all, but something of the operator's own " * 100
    path.write_bytes(content)
    with pytest.raises(PermanentError, match="kept as it is"):
        opened(path)
    assert path.read_bytes() == content
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["edge.db", "edge.db.lock"]


def test_damage_that_is_found_while_running_is_believed_at_the_next_start(path: Path) -> None:
    """The check at the start is short and may miss it."""
    epoch, segments = filled(path)
    with Buffer(path, zone=ZONE) as buffer:
        buffer.sealed.row("pragma cache_size = 0", ())
        content = path.read_bytes()
        (root,) = buffer.sealed.row(
            "select rootpage from sqlite_schema where name = ?", ("segments",)
        )
        at = (root - 1) * PAGE_BYTES
        path.write_bytes(content[:at] + b"\xff" * PAGE_BYTES + content[at + PAGE_BYTES :])
        with pytest.raises(DamagedError, match="restart the agent"):
            buffer.segments_after(0, 1 << 20)
    with pytest.raises(DamagedError):
        Buffer(path, zone=ZONE)
    with opened(path) as buffer:
        assert buffer.epoch != epoch
    with recovered(path) as old:
        assert set(stored(old)[:-1]) == set(segments)  # and what the last start sealed


@pytest.mark.parametrize("command", ["run", "drain"])
async def test_the_agent_delivers_what_was_recovered_beside_new_data(
    tmp_path: Path, broker: Address, command: str
) -> None:
    settings = load(write(tmp_path, broker.port), {})
    path = settings.buffer.path
    path.parent.mkdir()
    epoch, segments = filled(path)
    path.write_bytes(path_after(path.read_bytes()))
    hub = Hub()
    async with hub.running(*broker):
        async with asyncio.timeout(30):
            if command == "drain":
                assert await agent.drain(settings, 20) == 0
            else:
                running = agent.Agent(settings)
                stop = asyncio.Event()
                task = asyncio.create_task(running.run(stop))
                await asyncio.to_thread(
                    eventually, lambda: not recovery.waiting(path), 20, "the hub has all"
                )
                stop.set()
                await task
    sent = [s.body for s in segments]
    assert [hub.segments[first] for first in sorted(hub.segments)][: len(sent)] == sent
    found = contents(
        StoredSegment(h.first_sequence, h.records, h.kind, body)
        for body in hub.segments.values()
        for h in [wire.decode_header(body)]
    )
    assert found[0] == Counter(readings(READINGS_SEALED + UNSEALED))
    assert {h.epoch for h in map(wire.decode_header, hub.segments.values())} == {epoch}
    assert {h.damaged_files for h in hub.hellos} == {1}
    assert {h.epoch for h in hub.hellos if h.recovered} == {epoch}
    assert all(status["online"] for status in hub.statuses[:1])
    assert recovery.damaged_files(path)[0].exists()


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_was_emptied_or_is_gone_is_not_taken_for_a_new_device(
    path: Path, gone: bool
) -> None:
    epoch, _ = filled(path)
    path.write_bytes(b"")
    if gone:
        path.unlink()
    with opened(path) as buffer:
        assert buffer.epoch != epoch
        buffer.append_documents(documents(buffer, 1))
    (lost,) = recovery.damaged_files(path)
    assert lost.stat().st_size == 0
    assert len(recovery.waiting(path)) == 1, "what declares it"
    with opened(path) as buffer:
        assert buffer.status().backlog_records == 1
    assert recovery.damaged_files(path) == [lost]


def test_a_file_that_lost_all_it_counted_does_not_say_that_nothing_was_there(path: Path) -> None:
    with Buffer(path, zone=ZONE) as buffer:
        buffer.append_readings(readings(100))
    os.truncate(path, 3 * PAGE_BYTES)  # only meta is left, and says that nothing was sealed
    opened(path).close()
    (lost,) = recovery.damaged_files(path)
    report = json.loads(lost.with_name(lost.name + ".json").read_text("ascii"))
    assert not report["counts_agree"]


@pytest.mark.parametrize("how", ["gone", "empty", "noise", "cut"])
def test_a_lost_file_is_declared_as_far_as_the_note_goes(path: Path, how: str) -> None:
    epoch, _ = filled(path)
    total = READINGS_SEALED + DOCUMENTS_SEALED + UNSEALED
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        head = path.read_bytes()[:PAGE_BYTES]
        path.write_bytes(head + os.urandom(20 * PAGE_BYTES))
    else:
        os.truncate(path, path.stat().st_size * 2 // 3)
    with opened(path) as buffer:
        assert buffer.epoch != epoch
        with recovered(path) as old:
            assert old.epoch == epoch
            old.seal()
            assert sum(s.records for s in stored(old)) == total
            declared = sum(s.records for s in stored(old) if s.kind == GAP)
            assert old.status().given_up_records == declared
            assert declared == total if how != "cut" else 0 < declared < total
            # The hub says what it has; of the rest it hears that it is lost.
            assert old.apply_receipt(Receipt(epoch, total)) == total
    (aside,) = recovery.damaged_files(path)
    assert extent.read(aside) == Extent(epoch, total - UNSEALED + 1, UNSEALED)


def test_what_somebody_removed_a_part_of_is_not_taken_for_another(path: Path) -> None:
    """A technician has looked at the damaged file and deleted it, and not what lies beside it."""
    filled(path)
    path.write_bytes(bytes(PAGE_BYTES) + path.read_bytes()[PAGE_BYTES:])
    with opened(path) as buffer:
        fill(buffer)
        epoch = buffer.epoch
    (aside,) = recovery.damaged_files(path)
    recovery.finish(recovery.recovered_name(aside))
    aside.unlink()
    with opened(path) as buffer:
        assert buffer.epoch == epoch, "a healthy file stays where it is"
    assert recovery.damaged_files(path) == []
    path.write_bytes(bytes(PAGE_BYTES) + path.read_bytes()[PAGE_BYTES:])
    with opened(path), recovered(path) as old:
        assert old.epoch == epoch
        # The sales came again under keys that were known.
        assert sum(s.records for s in stored(old)) == READINGS_SEALED + UNSEALED
    assert [found.name for found in recovery.damaged_files(path)] == ["edge.db.damaged-2"]


def test_a_note_of_another_file_declares_nothing(path: Path) -> None:
    epoch, segments = filled(path)
    Note(path, 0).keep(Extent(b"\7" * 16, 1_000_000, 0), at_once=True)
    path.write_bytes(bytes(PAGE_BYTES) + path.read_bytes()[PAGE_BYTES:])
    with opened(path), recovered(path) as old:
        assert (old.epoch, stored(old)) == (epoch, segments)


def test_of_an_emptied_file_the_wal_is_searched(path: Path) -> None:
    epoch, segments = copy_while_open(path)
    Note(path, 0).keep(Extent(epoch, 1, 0), at_once=True)  # long ago
    path.write_bytes(b"")
    with opened(path) as buffer:
        assert buffer.epoch != epoch
        with recovered(path) as old:
            assert old.epoch == epoch
            found = [s for s in stored(old) if s.kind != GAP]
    assert found
    assert {s.body for s in found} <= {s.body for s in segments}


@pytest.mark.parametrize("what", ["damaged", "gone"])
@pytest.mark.parametrize("after", ["the note", "the file"])
def test_a_power_cut_while_a_file_is_set_aside_makes_no_second_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str, after: str
) -> None:
    epoch, _ = filled(path)
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\0" * PAGE_BYTES + path.read_bytes()[PAGE_BYTES:])
    whole, calls = recovery._finish_setting_aside, iter([True, False])

    def cut(path: Path) -> None:
        if not next(calls):
            if after == "the file" and path.exists():
                path.rename(path.with_name("edge.db.damaged-1"))
            raise KeyboardInterrupt
        whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "_finish_setting_aside", cut)
        with pytest.raises(KeyboardInterrupt):
            opened(path)
    with opened(path), recovered(path) as old:
        assert old.epoch == epoch
        old.seal()
        assert stored(old)[-1].last_sequence == READINGS_SEALED + DOCUMENTS_SEALED + UNSEALED
    assert len(recovery.damaged_files(path)) == 1
