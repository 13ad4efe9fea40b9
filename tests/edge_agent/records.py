"""Records for the edge tests, and what a hub would find in the segments of a buffer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from scout_edge.buffer import Buffer, StoredSegment
from scout_edge.metrics import AgentMetrics
from scout_edge.sources.outlet import Outlet
from scout_shared import wire
from scout_shared.wire import DOCUMENTS, READINGS, Document, Reading

ZONE = "Asia/Manila"
START_MS = 1_760_000_000_000
DAY_MS = 24 * 3600 * 1000


def readings(count: int, first: int = 0) -> list[Reading]:
    """Readings that differ from each other: the value tells which one it is."""
    return [
        Reading(f"m{i % 7}", START_MS + 1000 * i, float(i)) for i in range(first, first + count)
    ]


def documents(buffer: Buffer, count: int, first: int = 0, size: int = 0) -> list[Document]:
    """Documents that differ from each other, some without a time, over several days."""
    made = []
    for i in range(first, first + count):
        observed_ms = None if i % 5 == 0 else START_MS + (i % 4) * DAY_MS
        body = b'{"i":%d,"pad":"%s"}' % (i, b"x" * size)
        made.append(Document("transaction", observed_ms, buffer.calendar.day(observed_ms), body))
    return made


def stored(buffer: Buffer, after: int = 0) -> list[StoredSegment]:
    """All sealed segments after a sequence, checked to be gap-free among themselves."""
    segments: list[StoredSegment] = []
    while more := buffer.segments_after(segments[-1].last_sequence if segments else after, 1 << 20):
        segments += more
    for a, b in itertools.pairwise(segments):
        assert b.first_sequence == a.last_sequence + 1
    return segments


def contents(segments: Iterable[StoredSegment]) -> tuple[Counter[Reading], list[Document]]:
    """What is in the segments, as the hub would decode it."""
    found: Counter[Reading] = Counter()
    bodies: list[Document] = []
    for segment in segments:
        header = wire.decode_header(segment.body)
        assert (header.first_sequence, header.records) == (segment.first_sequence, segment.records)
        assert header.kind == segment.kind
        if segment.kind == READINGS:
            found.update(wire.decode_readings(segment.body))
        else:
            assert segment.kind == DOCUMENTS
            bodies += wire.decode_documents(segment.body)
    return found, bodies


def outlet_of(buffer: Buffer, name: str = "source") -> Outlet:
    """The way into the buffer that a source of that name gets."""
    return Outlet(buffer, AgentMetrics(buffer), name)
