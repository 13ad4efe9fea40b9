"""Copies of a buffer are told apart: one line of writers per stream, the others leave it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_central.ingest import Committed, Committer
from scout_central.ingest.openings import Line, judge
from scout_shared.messages import Fork, Hello, Opening, Receipt
from tests.central.segments import EPOCH, data, greeting, hello, readings

A, B, C = (letter * 8 for letter in (b"a", b"b", b"c"))


@dataclass
class File:
    """A buffer file: the epoch it writes, who wrote it, and which record has which sequence."""

    epoch: bytes
    is_open: bool = False
    lineage: list[Opening] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    older: list[tuple[bytes, list[int]]] = field(default_factory=list)
    """What went on under an old epoch when the file left it."""

    def copy(self) -> File:
        return File(self.epoch, False, [*self.lineage], [*self.records], [*self.older])


class World:
    """Files that are opened, filled, copied while closed; and the hub's judgement of them."""

    def __init__(self) -> None:
        self.files = [File(EPOCH)]
        self.lines: dict[bytes, Line] = {}
        self.held: dict[tuple[bytes, int], int] = {}
        self.accepted = 0
        self.drawn = 0

    def do(self, step: tuple[str, int, int]) -> None:
        name, which, count = step
        file = self.files[which % len(self.files)]
        if name == "copy" and len(self.files) < 5:
            self.files.append(file.copy())
            file.is_open = False  # a file is copied while no process has it
        if name == "open" or not file.is_open:
            self.open(file)
        if name == "accept":
            for _ in range(count):
                file.records.append(self.accepted)
                self.accepted += 1
        if name == "hello":
            self.hello(file)

    def open(self, file: File) -> None:
        self.drawn += 1
        nonce = self.drawn.to_bytes(8, "big")
        file.is_open = True
        file.lineage.append(Opening(nonce, len(file.records) + 1))

    def hello(self, file: File) -> None:
        line = self.lines.setdefault(file.epoch, Line([], 1))
        fork = judge(line, file.lineage, len(file.records) + 1)
        # A hello repeated is answered alike.
        assert judge(line, file.lineage, len(file.records) + 1) == fork
        if fork is not None:
            common = fork.first_sequence - 1
            file.older.append((file.epoch, file.records[:common]))
            file.epoch, file.records = fork.epoch_after(file.epoch), file.records[common:]
            at = [opening.nonce for opening in file.lineage].index(fork.opening)
            file.lineage = [Opening(n, first - common) for n, first in file.lineage[at:]]
            self.hello(file)
            return
        line.next_sequence = max(line.next_sequence, len(file.records) + 1)
        for epoch, records in [(file.epoch, file.records), *file.older]:
            for sequence, record in enumerate(records, 1):
                standing = self.held.setdefault((epoch, sequence), record)
                assert standing == record, "two records have one sequence"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["copy", "open", "accept", "accept", "hello", "hello"]),
        st.integers(0, 4),
        st.integers(1, 3),
    ),
    max_size=40,
)


@given(STEPS)
def test_any_copies_in_any_order_give_each_record_a_place_of_its_own(
    steps: list[tuple[str, int, int]],
) -> None:
    world = World()
    for step in steps:
        world.do(step)
    for file in world.files:
        if not file.is_open:
            world.open(file)
        world.hello(file)
    assert Counter(world.held.values()) == Counter(range(world.accepted))


# --- the same on PostgreSQL


@pytest.fixture
def committer(database: str) -> Iterator[Committer]:
    with closing(Committer(database)) as made:
        yield made


def speech(
    *lineage: tuple[bytes, int], next_sequence: int = 1, boot: str = "boot-1", epoch: bytes = EPOCH
) -> Hello:
    return replace(
        Hello.decode(hello(epoch=epoch)),
        lineage=tuple(Opening(*opening) for opening in lineage),
        next_sequence=next_sequence,
        boot_id=boot,
    )


def said(committer: Committer, *hellos: Hello) -> Committed:
    return committer.commit([greeting(h.encode()) for h in hellos])


def receipts(committed: Committed) -> list[Receipt]:
    return [r.receipt for r in committed.receipts]


def errors(database: str) -> list[tuple[str, int]]:
    with psycopg.connect(database) as connection:
        return connection.execute(
            "select code, occurrences from metadata.error_log order by 1"
        ).fetchall()


def test_a_copy_is_told_where_it_left_and_the_writer_goes_on(
    committer: Committer, database: str
) -> None:
    (receipt,) = receipts(said(committer, speech((A, 1), next_sequence=51)))
    assert (receipt.writer, receipt.fork) == (A, None)
    committer.commit([data(readings(1, 50))])
    (receipt,) = receipts(said(committer, speech((A, 1), (B, 51), next_sequence=61)))
    assert (receipt.writer, receipt.watermark, receipt.fork) == (B, 50, None)
    copy = speech((A, 1), (C, 51), next_sequence=91)
    for _ in range(2):  # repeated: the same answer, and the stream's receipt last
        told, after = receipts(said(committer, copy))
        assert (told.fork, told.watermark, told.credit) == (Fork(C, 51, C), 0, 0)
        assert (after.fork, after.writer, after.watermark) == (None, B, 50)
    (receipt,) = receipts(committer.commit([data(readings(51, 10))]))
    assert (receipt.writer, receipt.watermark) == (B, 60)
    with psycopg.connect(database) as connection:
        # What the copy says of itself is not believed.
        assert connection.execute("select next_sequence from metadata.streams").fetchone() == (61,)
    assert errors(database) == [("buffer_copied", 2)]


def test_copies_in_one_batch_are_judged_one_after_the_other(committer: Committer) -> None:
    made = receipts(said(committer, speech((A, 1)), speech((A, 1), (B, 8)), speech((A, 1), (C, 8))))
    assert [r.fork for r in made] == [Fork(C, 8, C), None]
    assert made[-1].writer == B


def test_an_image_from_before_the_last_opening_is_a_copy(committer: Committer) -> None:
    said(committer, speech((A, 1), next_sequence=200))
    made = receipts(said(committer, speech((A, 1), (B, 101), next_sequence=101)))
    assert [r.fork for r in made] == [Fork(B, 101, B), None]


def test_a_device_without_lineage_is_taken_as_before(committer: Committer, database: str) -> None:
    said(committer, speech((A, 1)))
    (receipt,) = receipts(said(committer, speech(next_sequence=9)))
    assert (receipt.writer, receipt.fork) == (A, None)
    assert errors(database) == []


def test_what_came_by_hand_before_the_first_hello_makes_no_copy(committer: Committer) -> None:
    committer.commit([data(readings(1, 50))])
    (receipt,) = receipts(said(committer, speech((A, 1), next_sequence=51)))
    assert (receipt.writer, receipt.watermark, receipt.fork) == (A, 50, None)


def test_two_boxes_with_one_id_are_told_and_a_new_card_is_not(
    committer: Committer, database: str
) -> None:
    one = speech((A, 1), boot="boot-1")
    other = speech((B, 1), boot="boot-2", epoch=b"F" * 16)
    for greeted in (one, one, other, other):  # a new card: the old one does not come back
        said(committer, greeted)
    assert errors(database) == []
    said(committer, one)
    assert errors(database) == [("device_id_used_twice", 1)]
    with psycopg.connect(database) as connection:
        (message,) = connection.execute("select message from metadata.error_log").fetchone() or ()
    assert "boot-1" in message
    assert "boot-2" in message
