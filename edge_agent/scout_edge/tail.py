"""The tail: records that are accepted and do not fill a segment yet, in memory and as stored rows.

Not its job: when it is sealed, and what a row's transaction is (``journal``).
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from scout_edge.acceptance import Records
from scout_shared import wire
from scout_shared.wire import DOCUMENTS, READINGS, Document, Reading

SEGMENT_RECORDS = 1000
SEGMENT_RAW_BYTES = 64 * 1024  # of documents; about 16 KB once compressed

STAMPED = 0x100 | READINGS
"""Kind of tail rows: readings that the agent stamped while nobody vouched for its clock. They are
sealed as READINGS, in segments of their own, which say in which span of the clock they arose."""
TAIL_KINDS = (DOCUMENTS, READINGS, STAMPED)
"""In this order they are sealed, and so sent: sales before telemetry."""


class Stamp(NamedTuple):
    """What the device's clocks said when the records of a tail row were accepted."""

    boot_id: bytes
    clock: int
    wall_ms: int
    mono_ms: int


@dataclass(slots=True)
class Tail:
    """Accepted records of one kind, not sealed: fewer than a segment, kept in memory too."""

    records: list[Reading | Document] = field(default_factory=list)
    stored: int = 0
    """How many of ``records``, from the front, stand in tail rows."""
    raw_bytes: int = 0
    types: set[str] = field(default_factory=set)
    accepted_ms: int = 0
    """Wall clock when the oldest was accepted."""
    since: float = math.inf
    """Monotonic seconds when the oldest was accepted; -inf: in a former process."""
    stamp: Stamp | None = None
    """Of the newest tail row, when the row was read from the file."""
    span: wire.Span | None = None
    """Of STAMPED: that of all its records."""


def segment_end(kind: int, records: Records, at: int) -> int:
    """Where the full segment that starts at ``at`` ends; 0: the rest does not fill one."""
    end = at + SEGMENT_RECORDS
    if kind == DOCUMENTS:
        size, types = 0, set[str]()
        for i, document in enumerate(cast(Sequence[Document], records[at:end]), at):
            types.add(document.type)
            if len(types) > wire.MAX_TYPES:
                return i
            size += len(document.body)
            if size >= SEGMENT_RAW_BYTES:
                return i + 1
    return end if end <= len(records) else 0


def pack(kind: int, records: Records, span: wire.Span | None) -> bytes:
    """A tail row: the records as they came. Cheap, because most are sealed within seconds.

    Numbers in the machine's byte order: a tail never leaves the machine.
    """
    if kind != DOCUMENTS:
        names, times, values = zip(*records, strict=True)
        index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        known = list(index)
        head = json.dumps(known if span is None else [span.encode(), known]).encode()
        columns = [
            array("I", [index[name] for name in names]).tobytes(),
            array("q", times).tobytes(),
            array("d", values).tobytes(),
        ]
    else:
        documents = cast(Sequence[Document], records)
        fields = [(d.type, d.observed_ms, d.business_day, len(d.body)) for d in documents]
        head, columns = json.dumps(fields).encode(), [d.body for d in documents]
    return b"".join([struct.pack("=I", len(head)), head, *columns])


def unpack(kind: int, records: int, body: bytes) -> tuple[wire.Span | None, Records]:
    """The span and the records of a tail row."""
    (size,) = struct.unpack_from("=I", body)
    head, at = json.loads(body[4 : 4 + size]), 4 + size
    if kind != DOCUMENTS:
        span = None
        if kind == STAMPED:
            fields, head = head
            span = wire.Span.decode(fields)
        index, times, values = array("I"), array("q"), array("d")
        for column in (index, times, values):
            end = at + records * column.itemsize
            column.frombytes(body[at:end])
            at = end
        return span, [Reading(head[i], t, v) for i, t, v in zip(index, times, values, strict=True)]
    documents = []
    for name, observed_ms, day, length in head:
        documents.append(Document(name, observed_ms, day, body[at : at + length]))
        at += length
    return None, documents
