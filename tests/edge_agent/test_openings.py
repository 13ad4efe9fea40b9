"""Two copies of a buffer file agree on what is common to them, byte for byte."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from scout_edge import clock, journal
from scout_edge.buffer import Buffer
from scout_shared import wire
from tests.edge_agent.records import ZONE, contents, documents, readings, stored


def copied(path: Path, name: str) -> Path:
    """A copy of a buffer file that nobody has open."""
    target = path.with_name(name)
    for suffix in ("", "-wal"):
        if path.with_name(path.name + suffix).exists():
            shutil.copy(path.with_name(path.name + suffix), target.with_name(name + suffix))
    return target


def left_by_a_killed_process(path: Path, wall_ms: int) -> None:
    """A buffer with unsealed records of both kinds, whose process was killed."""
    code = f"""
import os
from pathlib import Path
from scout_edge import clock
from scout_edge.buffer import Buffer
from tests.edge_agent.records import ZONE, documents, readings
clock.wall_ms = lambda: {wall_ms}
buffer = Buffer(Path({str(path)!r}), zone=ZONE)
buffer.append_readings(readings(1200))
buffer.append_readings(readings(30, 1200))
buffer.append_documents(documents(buffer, 7))
os._exit(9)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert ended.returncode == 9


def test_what_a_former_process_left_is_sealed_alike_in_every_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "edge.db"
    left_by_a_killed_process(path, 1_760_000_000_000)
    copy = copied(path, "copy.db")
    with Buffer(path, zone=ZONE) as buffer:
        original = stored(buffer)
        buffer.append_readings(readings(5, 5000))
    monkeypatch.setattr(clock, "wall_ms", lambda: 1_790_000_000_000)
    monkeypatch.setattr(clock, "monotonic_ms", lambda: 7)
    monkeypatch.setattr(clock, "boot_id", lambda: bytes(range(16)))
    with Buffer(copy, zone=ZONE) as buffer:
        assert stored(buffer) == original
        assert sum(contents(original)[0].values()) == 1230
        assert len(contents(original)[1]) == 7
        assert [opening.first_sequence for opening in buffer.lineage] == [1, 1238]


def test_what_was_left_keeps_the_clocks_of_its_acceptance(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    left_by_a_killed_process(path, 1_234_567_000_000)
    with Buffer(path, zone=ZONE) as buffer:
        headers = [wire.decode_header(s.body) for s in stored(buffer)]
    assert {h.boot_id for h in headers} == {clock.boot_id()}
    # The same kernel: the monotonic clock goes on, and the wall clock of then is not corrected.
    assert [h.sealed_ms for h in headers[-2:]] == [1_234_567_000_000] * 2
    assert all(0 < h.sealed_mono_ms <= clock.monotonic_ms() for h in headers)


def test_each_process_has_an_opening_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE) as buffer:
        buffer.append_readings(readings(3))
        first = buffer.lineage
        assert first == ((buffer.nonce, 1),)
    with Buffer(path, zone=ZONE) as buffer:
        assert buffer.lineage == (*first, (buffer.nonce, 4))
        assert buffer.next_sequence == 4
        buffer.append_documents(documents(buffer, 1))
        assert buffer.next_sequence == 4


def test_the_openings_are_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE):
        pass
    with closing(sqlite3.connect(path)) as file:
        file.executemany(
            "insert into openings (nonce, first_sequence) values (?, 1)",
            [(i.to_bytes(8, "big"),) for i in range(2 * journal.OPENINGS_KEPT)],
        )
        file.commit()
    with Buffer(path, zone=ZONE) as buffer:
        assert len(buffer.lineage) == journal.OPENINGS_KEPT
        assert buffer.lineage[-1].nonce == buffer.nonce


def test_a_file_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    left_by_a_killed_process(path, 1_760_000_000_000)
    with closing(sqlite3.connect(path)) as file:
        file.executescript(
            "drop table openings;"
            + "".join(
                f"alter table tail drop column {name};" for name in ("boot_id", "clock", "mono_ms")
            )
            + "pragma user_version = 1;"
        )
    with Buffer(path, zone=ZONE) as buffer:
        found = contents(stored(buffer))
        assert sum(found[0].values()) == 1230
        assert len(found[1]) == 7
        assert buffer.lineage == ((buffer.nonce, 1238),)
        header = wire.decode_header(stored(buffer)[-1].body)
        assert (header.boot_id, header.clock) == (bytes(16), wire.CLOCK_UNKNOWN)
