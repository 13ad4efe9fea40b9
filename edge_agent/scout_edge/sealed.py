"""The sealed segments of a buffer file that the hub is not known to hold: the file's read side.

One connection that only reads, shared by all threads. It knows which ranges above the watermark
the hub has said it committed, and leaves them out.
Not its job: what becomes of a damaged segment (``buffer``), which one is sent next (``schedule``).
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from scout_edge import database
from scout_shared.errors import TransientError, WireError
from scout_shared.wire import CLOCK_SYNCED, DOCUMENTS, HEADER, READINGS, decode_header

NOTHING: Mapping[int, int] = MappingProxyType({})
_AFTER = (
    # From the last one that starts at or before: a watermark in the middle of a segment does not
    # cover it.
    " from segments where first_sequence >= (select coalesce(max(first_sequence), 0) from segments"
    " where first_sequence <= ?1 + 1) and first_sequence + records - 1 > ?1 order by first_sequence"
)
_LOOK_SEGMENTS = 2000  # looked through at once for what is urgent: 10 ms, whatever the backlog


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A sealed segment as it stands in the file and as it is sent."""

    first_sequence: int
    records: int
    kind: int
    body: bytes

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record."""
        return self.first_sequence + self.records - 1


class SegmentOutline(NamedTuple):
    """Where a sealed segment stands, without its bytes."""

    first_sequence: int
    last_sequence: int
    kind: int


class SealedSegments:
    """Reads one open buffer file. Thread-safe.

    In each method ``sent`` maps the first to the last sequence of segments that are left out; one
    that has grown since (a gap) is not. Each raises TransientError when the disk fails or the
    buffer is closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = database.open_reader(path)
        self._reading = threading.Lock()
        self._closed = False
        self._ranges: tuple[tuple[int, int], ...] = ()
        self._undated = 0
        """Documents up to this sequence do not say how old they are."""

    def close(self) -> None:
        """Wait for the reader that is under way; then each call raises TransientError."""
        with self._reading:
            self._closed = True
            self._database.close()

    @contextlib.contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one caller at a time."""
        with self._reading:
            if self._closed:
                raise TransientError("the buffer is closed")
            try:
                yield self._database
            except sqlite3.Error as error:
                raise database.in_use(error, self._path) from error

    def row(self, query: str, parameters: tuple[Any, ...]) -> Any:
        """The first row that a query finds, or None."""
        with self.reader() as reader:
            return reader.execute(query, parameters).fetchone()

    # -- what the hub holds above the watermark -------------------------------------------------

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and last sequences, joined and ascending."""
        return self._ranges

    def committed(self, ranges: tuple[tuple[int, int], ...], watermark: int) -> None:
        """A receipt has said so."""
        self._ranges = _union(self._ranges, ranges, watermark)

    def forget(self) -> None:
        """The segments have other sequences now."""
        self._ranges, self._undated = (), 0

    def holes(self) -> list[tuple[int, int]]:
        """First and last sequence of what is missing between ranges, the smallest first."""
        holes = [
            (before[1] + 1, after[0] - 1) for before, after in itertools.pairwise(self._ranges)
        ]
        return sorted(holes, key=lambda hole: hole[1] - hole[0])

    def _committed_until(self, first: int, last: int) -> int:
        """End of the committed range that holds all of first..last, or 0."""
        return next((high for low, high in self._ranges if low <= first and last <= high), 0)

    # -- segments -------------------------------------------------------------------------------

    def after(
        self, sequence: int, limit_bytes: int, limit: int, sent: Mapping[int, int] = NOTHING
    ) -> tuple[list[StoredSegment], int]:
        """The next segments after ``sequence``, oldest first.

        At least one, if there is one, then as many as fit ``limit_bytes`` and ``limit``.

        Returns:
            them; and, when there is a damaged one among them, its first sequence alone, else 0.
        """
        found: list[StoredSegment] = []
        size = 0
        with self.reader() as reader:
            while row := reader.execute(
                f"select first_sequence, records, kind, crc, body {_AFTER} limit 1",
                (sequence,),
            ).fetchone():
                first, records, kind, crc, body = row
                sequence = first + records - 1
                if committed := self._committed_until(first, sequence):
                    sequence = committed
                elif sent.get(first, 0) >= sequence:
                    pass
                elif zlib.crc32(body) != crc:
                    return [], first
                elif len(found) == limit or (found and size + len(body) > limit_bytes):
                    break
                else:
                    found.append(StoredSegment(first, records, kind, body))
                    size += len(body)
        return found, 0

    def outlines_after(
        self, sequence: int, limit: int, sent: Mapping[int, int]
    ) -> list[SegmentOutline]:
        """What stands after ``sequence``, as ``after`` finds it, without the bytes.

        A look-up by key for each one found or in ``sent`` and each range at the hub, however long
        the backlog is.
        """
        found: list[SegmentOutline] = []
        with self.reader() as reader:
            while len(found) < limit and (
                row := reader.execute(
                    "select first_sequence, records, kind from segments"
                    " where first_sequence > ? order by first_sequence limit 1",
                    (sequence,),
                ).fetchone()
            ):
                first, records, kind = row
                sequence = first + records - 1
                if committed := self._committed_until(first, sequence):
                    sequence = committed
                elif sent.get(first, 0) < sequence:
                    found.append(SegmentOutline(first, sequence, kind))
        return found

    def urgent_after(
        self, sequence: int, limit: int, sent: Mapping[int, int]
    ) -> tuple[list[SegmentOutline], int]:
        """At most ``limit`` segments after ``sequence`` that are no readings: documents and gaps.

        Returns:
            them; and the sequence to go on from: up to there, there are no others.
        """
        found: list[SegmentOutline] = []
        with self.reader() as reader:
            for first, records, kind in reader.execute(
                f"select first_sequence, records, kind {_AFTER} limit ?2",
                (sequence, _LOOK_SEGMENTS),
            ):
                if kind != READINGS:
                    if len(found) == limit:
                        break
                    last = first + records - 1
                    if not self._committed_until(first, last) and sent.get(first, 0) < last:
                        found.append(SegmentOutline(first, last, kind))
                sequence = first + records - 1
        return found, sequence

    def documents_sealed_before(self, instant_ms: int) -> int:
        """Sequence up to which documents are older than ``instant_ms``; 0: none is known to be.

        Only what was sealed by a clock that the kernel vouched for says how old it is; what stands
        before it in the sequence is older still, whatever its own clock said.
        """
        until = 0
        with self.reader() as reader:
            for first, records, head in reader.execute(
                "select first_sequence, records, substr(body, 1, ?) from segments"
                " where first_sequence > ? and kind = ? order by first_sequence",
                (HEADER.size, self._undated, DOCUMENTS),
            ):
                try:
                    header = decode_header(head)
                except WireError:  # whoever sends it finds out
                    continue
                if header.clock != CLOCK_SYNCED:
                    self._undated = first
                    continue
                if header.sealed_ms >= instant_ms:
                    break
                until = first + records - 1
        return until

    def newest_start(self, segments: int) -> int:
        """First sequence of the newest that many segments; 0: there are none sealed.

        Reads that many keys from the end, whatever stands before.
        """
        row = self.row(
            "select min(first_sequence) from (select first_sequence from segments"
            " order by first_sequence desc limit ?)",
            (segments,),
        )
        return int(row[0] or 0)


def _union(
    old: tuple[tuple[int, int], ...], new: tuple[tuple[int, int], ...], watermark: int
) -> tuple[tuple[int, int], ...]:
    """Ranges above the watermark, joined and ascending."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted((*old, *new)):
        if high <= watermark:
            continue
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)
