"""What arrives at the hub's door, parsed once: segment, hello, status, or what none of them is.

Parsing never raises: what cannot be read becomes a value that says why, so that one bad message
never costs the batch it came in. No I/O here; runs beside the COPY of the batch before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from scout_central.ingest import columns
from scout_central.ingest.columns import DocumentColumns, GapColumns, ReadingColumns
from scout_shared import topics, wire
from scout_shared.errors import WireError
from scout_shared.messages import Hello
from scout_shared.wire import SegmentHeader

_BIGINT = 2**63


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message of a device, as it came."""

    store_id: str
    """The store that the topic (or the uploader) claims; the device's binding decides."""
    device_id: str
    channel: str
    """``topics.DATA``, ``HELLO`` or ``STATUS``."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class SegmentArrival:
    """A segment whose header holds; exactly one of ``columns`` and ``error`` is set."""

    arrival: Arrival
    header: SegmentHeader
    columns: ReadingColumns | DocumentColumns | GapColumns | None
    error: WireError | None


@dataclass(frozen=True, slots=True)
class HelloArrival:
    """A hello whose numbers fit the database."""

    arrival: Arrival
    hello: Hello


@dataclass(frozen=True, slots=True)
class StatusArrival:
    """A device went online, or its will says that it is gone."""

    arrival: Arrival
    online: bool


@dataclass(frozen=True, slots=True)
class UnreadableArrival:
    """A segment without a usable header, or a hello or status that cannot be read."""

    arrival: Arrival
    error: WireError


Parsed = SegmentArrival | HelloArrival | StatusArrival | UnreadableArrival


def parse(arrival: Arrival) -> Parsed:
    """What ``arrival`` is. Never raises."""
    try:
        if arrival.channel == topics.HELLO:
            return HelloArrival(arrival, _hello(arrival.payload))
        if arrival.channel == topics.STATUS:
            return StatusArrival(arrival, _online(arrival.payload))
        header = columns.decode_header(arrival.payload)
    except WireError as error:
        return UnreadableArrival(arrival, error)
    try:
        if header.kind == wire.READINGS:
            return SegmentArrival(
                arrival, header, columns.decode_readings(header, arrival.payload), None
            )
        if header.kind == wire.GAP:
            return SegmentArrival(
                arrival, header, columns.decode_gap(header, arrival.payload), None
            )
        return SegmentArrival(
            arrival, header, columns.decode_documents(header, arrival.payload), None
        )
    except WireError as error:
        return SegmentArrival(arrival, header, None, error)


def _hello(payload: bytes) -> Hello:
    hello = Hello.decode(payload)
    numbers = [
        hello.acked,
        hello.next_sequence,
        hello.unsealed_records,
        hello.buffer_bytes,
        hello.ledger_version,
        abs(hello.device_time_ms),
        abs(hello.oldest_unsent_ms or 0),
        *(entry.records for entry in hello.ledger),
    ]
    if not all(0 <= number < _BIGINT for number in numbers):
        raise WireError("bad_hello", "a number of the hello does not fit 64 bits")
    if not all(map(columns.is_text, [hello.boot_id, hello.zone, hello.version, *hello.counters])):
        raise WireError("bad_hello", "a name of the hello is not text that can be stored")
    for entry in hello.ledger:
        if entry.kind not in wire.KIND_NAMES or not columns.is_day(entry.day):
            raise WireError("bad_hello", f"ledger entry {entry} cannot be")
    return hello


def _online(payload: bytes) -> bool:
    try:
        online = json.loads(payload)["online"]
    # RecursionError: very many brackets
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError("bad_status", f"status {payload[:80]!r} cannot be read") from error
    if not isinstance(online, bool):
        raise WireError("bad_status", f"status says online: {online!r}")
    return online
