from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scout_edge import sealed
from scout_edge.buffer import Buffer, StoredSegment
from scout_edge.schedule import AHEAD, MANY_RANGES, NEWEST, Schedule
from scout_shared.messages import Receipt
from scout_shared.wire import DOCUMENTS, GAP
from tests.edge_agent.records import ZONE, documents, readings

RANGES = 64  # of a receipt, above the watermark

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("seal"), st.integers(1, 20)),
        st.tuples(st.just("take"), st.integers(1, 16)),
        st.tuples(st.just("save"), st.integers(1, 16)),
        st.tuples(st.just("receive"), st.lists(st.booleans(), min_size=1, max_size=7)),
        st.tuples(st.just("go back"), st.none()),
        st.tuples(st.just("reconnect"), st.sampled_from([0.0, 0.25, 1.0])),
    ),
    min_size=5,
    max_size=25,
)


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


def seal(buffer: Buffer, segments: int, *, kind: str = "mixed") -> None:
    """Seal small segments; of mixed ones every third is of documents."""
    for _ in range(segments):
        first = buffer.next_sequence
        if kind == "documents" or (kind == "mixed" and first % 3 == 0):
            buffer.append_documents(documents(buffer, 1, first))
        else:
            buffer.append_readings(readings(1, first))
        buffer.seal()


class Line:
    """A connection, and a hub that commits what ``receive`` lets through."""

    def __init__(self, buffer: Buffer, share: float) -> None:
        self.buffer = buffer
        self.schedule = Schedule(buffer, share)
        self.held: set[int] = set()
        self.most_ranges = 0

    def take(self, room: int, now: float = 0.0, *, saving: bool = False) -> list[StoredSegment]:
        """Checks that nothing is given out that is on its way or known to be at the hub."""
        before = set(self.schedule.flights)
        taken = self.schedule.take(room, now, saving=saving)
        assert len(taken) <= room
        for segment in taken:
            assert segment.first_sequence not in before, "sent twice without a cause"
            assert segment.first_sequence > self.buffer.watermark
            before.add(segment.first_sequence)
        return taken

    def receive(self, arrived: list[bool]) -> None:
        """Of the flights those arrive that the pattern, repeated, says; then a receipt."""
        for i, (first, flight) in enumerate(self.schedule.flights.items()):
            if arrived[i % len(arrived)]:
                self.held.update(range(first, flight.last_sequence + 1))
        self.receipt()

    def receipt(self) -> None:
        watermark = self.buffer.watermark
        while watermark + 1 in self.held:
            watermark += 1
        ranges: list[tuple[int, int]] = []
        for sequence in sorted(s for s in self.held if s > watermark):
            if ranges and ranges[-1][1] == sequence - 1:
                ranges[-1] = ranges[-1][0], sequence
            else:
                ranges.append((sequence, sequence))
        self.most_ranges = max(self.most_ranges, len(ranges))
        told = tuple(ranges[:RANGES])
        self.buffer.apply_receipt(Receipt(self.buffer.epoch, watermark, told))
        for first, flight in list(self.schedule.flights.items()):
            known = any(low <= first and flight.last_sequence <= high for low, high in told)
            if known or flight.last_sequence <= watermark:
                del self.schedule.flights[first]


@settings(max_examples=20, deadline=None)
@given(steps=STEPS, share=st.sampled_from([0.0, 0.25, 0.9]))
def test_whatever_happens_each_segment_is_sent_until_it_is_receipted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]], share: float
) -> None:
    with Buffer(tmp_path_factory.mktemp("buffer") / "edge.db", zone=ZONE) as buffer:
        line = Line(buffer, share)
        for name, value in steps:
            if name == "seal":
                assert isinstance(value, int)
                seal(buffer, value)
            elif name == "take":
                assert isinstance(value, int)
                line.take(value)
            elif name == "save":
                assert isinstance(value, int)
                line.take(value, saving=True)
            elif name == "receive":
                assert isinstance(value, list)
                line.receive(value)
            elif name == "go back":
                line.schedule.go_back()
            else:
                assert isinstance(value, float)
                line.schedule = Schedule(buffer, value)
        line.schedule.go_back()
        for _ in range(2 * buffer.next_sequence + 4):
            if buffer.watermark == buffer.next_sequence - 1:
                break
            line.take(16)
            line.receive([True])
        assert buffer.watermark == buffer.next_sequence - 1


def test_a_sale_takes_the_next_slot_however_long_the_backlog(buffer: Buffer) -> None:
    seal(buffer, 400, kind="readings")
    line = Line(buffer, 0.25)
    line.take(16)
    line.receive([True])
    while line.take(4)[0].first_sequence > 300:  # the newest of the backlog go first
        line.receive([True])
    for _ in range(20):
        line.receive([True])
        seal(buffer, 1, kind="readings")
        seal(buffer, 1, kind="documents")
        taken = line.take(4) + line.take(4)
        new = [buffer.next_sequence - 1, buffer.next_sequence - 2]
        assert [s.first_sequence for s in taken if s.first_sequence > 400] == new
        assert taken[0].kind == DOCUMENTS
        assert len(taken) == 8, "the rest is for the backlog"
    assert buffer.watermark < 300


def test_without_a_live_share_it_is_oldest_first(buffer: Buffer) -> None:
    seal(buffer, 100)
    line = Line(buffer, 0.0)
    sent: list[int] = []
    while taken := line.take(7):
        sent += [s.first_sequence for s in taken]
        line.receive([True])
    assert sent == list(range(1, 101))


def test_a_busy_live_lane_leaves_the_backlog_its_share_and_few_holes(buffer: Buffer) -> None:
    """More is sealed than the live share carries: the newest still goes ahead, now and then."""
    seal(buffer, 200)
    line = Line(buffer, 0.25)
    backlog = 0
    for _ in range(70):
        seal(buffer, 3)
        taken = line.take(4)
        backlog += sum(s.first_sequence <= 200 for s in taken)
        line.receive([True, True, False])
        if not line.schedule.flights:
            continue
        line.schedule.go_back()
    assert backlog >= 3 * 70 // 2, "three of four slots belong to the backlog"
    assert line.most_ranges < RANGES


def test_while_the_backlog_is_held_only_what_is_new_flows(buffer: Buffer) -> None:
    seal(buffer, 200)
    line = Line(buffer, 0.0)
    line.schedule.backlog_from = 10.0
    sent = [s.first_sequence for s in line.take(16, now=1.0)]
    line.receive([True])
    assert sorted(sent) == list(range(201 - NEWEST, 201))
    assert line.take(16, now=2.0) == []
    seal(buffer, 1)
    assert [s.first_sequence for s in line.take(16, now=3.0)] == [201]
    line.receive([True])
    assert [s.first_sequence for s in line.take(16, now=11.0)] == list(range(1, 17))


def test_while_saving_documents_go_alone_until_the_day_ends(buffer: Buffer) -> None:
    seal(buffer, 100, kind="readings")
    line = Line(buffer, 0.25)
    for place in range(101, 120, 2):
        seal(buffer, 1, kind="documents")
        seal(buffer, 1, kind="readings")
        assert [s.first_sequence for s in line.take(16, saving=True)] == [place]
        line.receive([True])
        assert line.take(16, saving=True) == []
    assert buffer.watermark == 0
    rest: list[int] = []
    while taken := line.take(16):
        rest += [s.first_sequence for s in taken]
        line.receive([True])
    assert sorted(rest) == [*range(1, 101), *range(102, 121, 2)]


def test_while_saving_a_loss_is_declared(buffer: Buffer) -> None:
    seal(buffer, 9, kind="readings")
    with closing(sqlite3.connect(buffer.path)) as file, file:
        file.execute("update segments set body = x'00' where first_sequence = 4")
    buffer.segments_after(0, 1 << 20)
    assert [(s.first_sequence, s.kind) for s in Line(buffer, 0.25).take(16, saving=True)] == [
        (4, GAP)
    ]


def test_while_saving_what_was_not_received_is_sent_again(buffer: Buffer) -> None:
    seal(buffer, 9)
    line = Line(buffer, 0.25)
    assert len(line.take(16, saving=True)) == 3
    line.receive([False, True])
    assert line.take(16, saving=True) == []
    line.schedule.go_back()
    assert [s.first_sequence for s in line.take(16, saving=True)] == [3, 9]


@pytest.mark.parametrize("room", [1, 2, 16])
def test_while_saving_receipts_can_name_every_document(buffer: Buffer, room: int) -> None:
    """A receipt has 64 ranges: documents pay for those between them, and are sent once."""
    seal(buffer, 50, kind="readings")
    line = Line(buffer, 0.25)
    sent: list[StoredSegment] = []
    for burst in range(1, 60):
        for _ in range(1 + burst % 3):
            seal(buffer, 1, kind="documents")
            seal(buffer, 2, kind="readings")
        while (taken := line.take(room, saving=True)) and len(sent) < 1000:
            sent += taken
            if burst % 5:
                line.receive([True])
            elif len(line.schedule.flights) >= 16:
                break
    for _ in range(300):
        sent += line.take(room, saving=True)
        line.receive([True])
    assert not line.schedule.flights, "no receipt could name them"
    assert line.most_ranges < RANGES
    made = [s for s in sent if s.kind == DOCUMENTS]
    assert len({s.first_sequence for s in made}) == len(made) == 119, "each once"
    assert len(sent) - len(made) <= 2 * (len(made) - MANY_RANGES), "the first ones cost nothing"


def test_a_long_backlog_is_looked_through_in_parts(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "_LOOK_SEGMENTS", 30)
    seal(buffer, 100, kind="readings")
    seal(buffer, 1, kind="documents")
    line = Line(buffer, 0.25)
    looks = 1
    while not line.take(16, saving=True):
        looks += 1
    assert looks == 4


def test_a_segment_that_grew_into_a_longer_gap_is_sent_again(buffer: Buffer) -> None:
    seal(buffer, 3)
    assert buffer.segments_after(0, 1 << 20, 16, {1: 1, 2: 1})[0].first_sequence == 2
    outlines = buffer.sealed.outlines_after(0, AHEAD, {1: 1})
    assert [s.first_sequence for s in outlines] == [2, 3]


def test_what_is_neither_on_its_way_nor_at_the_hub_is_searched_again(buffer: Buffer) -> None:
    seal(buffer, 5)
    line = Line(buffer, 0.25)
    line.take(16)
    line.schedule.flights.clear()
    line.take(16)
    assert len(line.take(16)) == 5
