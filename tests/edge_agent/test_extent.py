"""The note of how far a buffer file reaches survives whatever its own writing meets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_edge import extent
from scout_edge.buffer import Buffer
from scout_edge.extent import Extent, Note
from tests.edge_agent.records import ZONE, documents, readings

EPOCH = b"\5" * 16


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".extent")


@given(
    notes=st.lists(st.tuples(st.integers(1, 2**62), st.integers(0, 2**40)), min_size=1, max_size=9),
    torn=st.integers(0, 2 * 4096 - 1),
    size=st.integers(1, 4096),
)
def test_a_torn_note_leaves_the_one_before(
    tmp_path_factory: pytest.TempPathFactory,
    notes: list[tuple[int, int]],
    torn: int,
    size: int,
) -> None:
    path = tmp_path_factory.mktemp("note") / "edge.db"
    written = [Extent(EPOCH, *one) for one in notes]
    for one in written:
        Note(path, 0).keep(one, at_once=True)
    assert extent.read(path) == written[-1]
    whole = beside(path).read_bytes()
    end = min(torn + size, (torn // 4096 + 1) * 4096)  # of one page
    beside(path).write_bytes(whole[:torn] + os.urandom(end - torn) + whole[end:])
    distinct = [one for i, one in enumerate(written) if not i or one != written[i - 1]]
    assert extent.read(path) in (distinct[-1], distinct[-2] if len(distinct) > 1 else None)
    Note(path, 0).keep(Extent(EPOCH, 7, 7), at_once=True)
    assert extent.read(path) == Extent(EPOCH, 7, 7)


@pytest.mark.parametrize("content", [b"", b"made\n", bytes(8192), b"\xff" * 8192, b"x" * 100_000])
def test_what_is_no_note_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edge.db"
    assert extent.read(path) is None
    beside(path).write_bytes(content)
    assert extent.read(path) is None
    assert extent.was_made(path)


def test_a_buffer_notes_what_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE, note_seconds=0) as buffer:
        buffer.append_readings(readings(1010))
        buffer.append_documents(documents(buffer, 3))
        buffer.seal(3600)  # the next job: what was before it is noted
        assert extent.read(path) == Extent(buffer.epoch, 1001, 13)
        buffer.seal()
        buffer.seal()
        assert extent.read(path) == Extent(buffer.epoch, 1014, 0)
        buffer.append_readings(readings(5))
    assert extent.read(path) == Extent(buffer.epoch, 1014, 5)


def test_between_two_notes_there_is_time(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE) as buffer:
        first = extent.read(path)
        for _ in range(5):
            buffer.append_readings(readings(10))
        assert extent.read(path) == first == Extent(buffer.epoch, 1, 0)


def test_a_disk_that_refuses_the_note_stops_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE, note_seconds=0) as buffer:
        monkeypatch.setattr(os, "pwrite", refused)
        assert buffer.append_readings(readings(5)).records == 5
        assert buffer.seal() == 5
        monkeypatch.undo()
    assert extent.read(path) == Extent(buffer.epoch, 6, 0)
