"""Segments to numpy columns, and columns to the rows of a binary COPY, without per-row Python.

A decoded segment equals what ``scout_shared.wire.decode_*`` gives (pinned by a property test), and
every malformed input raises WireError and nothing else, also where the plain decoders are more
lenient: names that PostgreSQL cannot hold, times that wrap 64 bits, days outside the calendar.
All series of a segment are decoded together: a dozen numpy calls per block width, however many
series there are (measured: 0.1 ms for 1,000 readings of 40 metrics).
Not its job: identities (stream, metric and transaction numbers), which the committer brings.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from scout_shared import wire
from scout_shared.errors import WireError
from scout_shared.wire import SegmentHeader
from scout_shared.zones import UNKNOWN_DAY

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()
MIN_DAY = 1 - _EPOCH_ORDINAL
MAX_DAY = dt.date.max.toordinal() - _EPOCH_ORDINAL
"""Business days are those of the years 1 to 9999, as in ``scout_shared.zones``."""
MIN_MS = MIN_DAY * 86_400_000
MAX_MS = (MAX_DAY + 1) * 86_400_000 - 1

# PostgreSQL counts from 2000-01-01: microseconds in timestamptz, days in date.
_PG_EPOCH_MS = 946_684_800_000
_PG_EPOCH_DAY = 10_957

MAX_NAME_BYTES = 1000
"""A btree entry holds 2,704 bytes; a longer name would fail the whole transaction."""

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_TRAILER = struct.pack(">h", -1)

_POWERS = np.array([float(10**scale) for scale in range(10)] + [1.0] * 246)
_WIDTHS = frozenset((0, 1, 2, 4, 8))
# Below these no sum can wrap: a million steps of 32 bits stay under 2**52.
_SAFE = 2**62


@dataclass(frozen=True, slots=True)
class ReadingColumns:
    """The readings of one segment, in sequence order."""

    header: SegmentHeader
    zone: str
    days: dict[int, int]
    """Records per business day (days since 1970 or UNKNOWN_DAY), adding up to the records."""
    metrics: list[str]
    counts: Int64
    """Readings per metric, in the order of ``metrics``: records stand in series order."""
    observed_ms: Int64
    values: Float64
    span: wire.Span | None = None
    """In which the agent stamped all of them, by a clock that nobody vouched for."""

    def uncalendared(self) -> Mask | None:
        """Which readings have a time outside the years 1 to 9999; None: not one."""
        times = self.observed_ms
        if times.min() >= MIN_MS and times.max() <= MAX_MS:
            return None
        return (times < MIN_MS) | (times > MAX_MS)


@dataclass(frozen=True, slots=True)
class DocumentColumns:
    """The documents of one segment, in sequence order."""

    header: SegmentHeader
    zone: str
    days: dict[int, int]
    types: list[str]
    type_index: npt.NDArray[np.uint8]
    observed_ms: Int64
    """``wire.UNKNOWN_TIME`` where it is not known."""
    business_days: npt.NDArray[np.int32]
    bodies: list[bytes]


@dataclass(frozen=True, slots=True)
class GapColumns:
    """What a device declares that it gave up, in sequence order."""

    header: SegmentHeader
    zone: str
    days: dict[int, int]
    parts: list[wire.GivenUp]


@dataclass(frozen=True, slots=True)
class RowContext:
    """What the rows of one segment share, known only inside the transaction."""

    stream_id: int
    store_id: str
    received_ms: int
    xid: int


def decode(segment: bytes) -> ReadingColumns | DocumentColumns:
    """The columns of a segment of either kind. Raises WireError."""
    header = decode_header(segment)
    return (
        decode_readings(header, segment)
        if header.kind == wire.READINGS
        else decode_documents(header, segment)
    )


def decode_header(segment: bytes) -> SegmentHeader:
    """The header, with the last sequence inside what an int8range can hold. Raises WireError."""
    header = wire.decode_header(segment)
    if header.last_sequence >= 2**63 - 1:
        raise WireError("bad_header", f"sequence {header.last_sequence} is out of range")
    return header


def decode_gap(header: SegmentHeader, segment: bytes) -> GapColumns:
    """The declared gap of a segment whose header was decoded. Raises WireError."""
    parts = wire.decode_gap(segment)
    meta, _ = wire.decode_body(header, segment)
    for part in parts:
        if not is_text(part.reason) or not all(map(is_day, part.days)):
            raise WireError("bad_meta", f"{part} cannot be stored")
    if not is_text(meta["zone"]):
        raise WireError("bad_meta", "the zone is not text that can be stored")
    return GapColumns(header, meta["zone"], dict(meta["days"]), parts)


def decode_readings(header: SegmentHeader, segment: bytes) -> ReadingColumns:
    """The readings of a segment whose header was decoded. Raises WireError."""
    meta, body = wire.decode_body(header, segment)
    metrics = _names(meta, "metrics")
    n, k = header.records, len(metrics)
    fixed = 23 * k
    if len(body) < fixed:
        raise WireError("bad_columns", f"{len(body)} bytes cannot hold {k} series")
    counts = np.frombuffer(body, "<u4", k).astype(np.int64)
    first_times = np.frombuffer(body, "<i8", k, 4 * k).astype(np.int64)
    first_values = np.frombuffer(body, "<i8", k, 12 * k).astype(np.int64)
    small = np.frombuffer(body, np.uint8, 3 * k, 20 * k)
    time_widths, value_widths, scales = small[:k], small[k : 2 * k], small[2 * k :]
    if int(counts.sum()) != n:
        raise WireError("bad_columns", f"series add up to {int(counts.sum())}, not {n}")
    if not _WIDTHS.issuperset(small[: 2 * k].tolist()):
        raise WireError("bad_columns", "widths are not 0, 1, 2, 4 or 8")
    raw = scales == wire.RAW
    if ((scales > 9) & ~raw).any():
        raise WireError("bad_columns", "scales are not 0 to 9 or 255")
    has_raw = bool(raw.any())

    series = _Series(counts, n)
    observed_ms, at = series.accumulate(body, fixed, time_widths, first_times)
    if has_raw:
        # A series of raw values has no deltas whatever its width says.
        value_widths = np.where(raw, 0, value_widths).astype(np.uint8)
        first_values = np.where(raw, 0, first_values)
    scaled, at = series.accumulate(body, at, value_widths, first_values)
    values = scaled / np.repeat(_POWERS[scales], counts)
    if has_raw:
        rows = np.repeat(raw, counts)
        block, at = _block(body, at, int(rows.sum()), 8, "<f8")
        values[rows] = block
    if at != len(body):
        raise WireError("bad_columns", f"{len(body) - at} bytes too many")
    span = wire.span_of(meta)
    return ReadingColumns(
        header, meta["zone"], _days(meta), metrics, counts, observed_ms, values, span
    )


def decode_documents(header: SegmentHeader, segment: bytes) -> DocumentColumns:
    """The documents of a segment whose header was decoded. Raises WireError."""
    meta, body = wire.decode_body(header, segment)
    types = _names(meta, "types")
    n = header.records
    fixed = 17 * n
    if len(body) < fixed:
        raise WireError("bad_columns", f"{len(body)} bytes cannot hold {n} documents")
    type_index = np.frombuffer(body, np.uint8, n)
    observed_ms = np.frombuffer(body, "<i8", n, n).astype(np.int64)
    business_days = np.frombuffer(body, "<i4", n, 9 * n).astype(np.int32)
    lengths = np.frombuffer(body, "<u4", n, 13 * n).astype(np.int64)
    if int(type_index.max()) >= len(types):
        raise WireError("bad_columns", f"type {int(type_index.max())} of {len(types)}")
    ends = np.cumsum(lengths) + fixed
    if int(ends[-1]) != len(body):
        raise WireError("bad_columns", f"documents end at {int(ends[-1])}, body at {len(body)}")
    days = _days(meta)
    found, records = np.unique(business_days, return_counts=True)
    if dict(zip(found.tolist(), records.tolist(), strict=True)) != days:
        raise WireError("bad_meta", "days of the meta are not the days of the documents")
    whole = bytes(body)
    starts = [fixed, *ends.tolist()]
    bodies = [whole[a:b] for a, b in pairwise(starts)]
    return DocumentColumns(
        header, meta["zone"], days, types, type_index, observed_ms, business_days, bodies
    )


def reading_rows(
    columns: ReadingColumns,
    metric_ids: Sequence[int],
    context: RowContext,
    excluded: Mask | None = None,
) -> memoryview:
    """Rows of ``bronze.device_readings`` as ``statements.COPY_READINGS`` takes them.

    ``excluded``: rows to leave out; their sequences stay unused.
    """
    template, dtype = _reading_template(context.store_id.encode())
    n = columns.header.records
    rows = _repeat(template, dtype, n, context)
    rows["observed_at"] = (columns.observed_ms - _PG_EPOCH_MS) * 1000
    first = columns.header.first_sequence
    rows["sequence"] = np.arange(first, first + n, dtype=np.int64)
    rows["value"] = columns.values
    rows["metric_id"] = np.repeat(np.asarray(metric_ids, np.int32), columns.counts)
    if excluded is not None:
        rows = rows[~excluded]
    return memoryview(rows.view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers


def document_rows(
    columns: DocumentColumns, context: RowContext, excluded: Mask | None = None
) -> list[bytes]:
    """Pieces of rows of ``bronze.transaction_logs`` for ``statements.COPY_DOCUMENTS``.

    A time outside the years 1 to 9999 becomes NULL, as an unknown one does: the document itself
    still says what the source said. ``excluded``: documents to leave out.
    """
    n = columns.header.records
    first = columns.header.first_sequence
    lengths = np.fromiter(map(len, columns.bodies), np.int64, n)
    no_time = (columns.observed_ms < MIN_MS) | (columns.observed_ms > MAX_MS)
    no_day = columns.business_days == UNKNOWN_DAY
    sequences = np.arange(first, first + n, dtype=np.int64)
    heads: list[bytes] = [b""] * n
    # A NULL has no bytes, so there are four layouts of a row; mostly one of them occurs.
    layout = no_time.astype(np.uint8) | (no_day.astype(np.uint8) << 1)
    for shape in np.unique(layout).tolist():
        template, dtype = _document_template(context.store_id.encode(), shape)
        at = np.nonzero(layout == shape)[0]
        rows = _repeat(template, dtype, len(at), context)
        rows["sequence"] = sequences[at]
        rows["document_length"] = lengths[at] + 1
        if not shape & 1:
            rows["observed_at"] = (columns.observed_ms[at] - _PG_EPOCH_MS) * 1000
        if not shape & 2:
            rows["business_date"] = columns.business_days[at] - _PG_EPOCH_DAY
        packed, size = rows.tobytes(), dtype.itemsize
        for j, i in enumerate(at.tolist()):
            heads[i] = packed[j * size : (j + 1) * size]
    pieces: list[bytes] = [b""] * (2 * n)
    pieces[::2], pieces[1::2] = heads, columns.bodies
    if excluded is not None:
        for i in np.nonzero(excluded)[0].tolist():
            pieces[2 * i] = pieces[2 * i + 1] = b""
    return pieces


class _Series:
    """How the records of a segment fall into series, for sums that restart with each."""

    def __init__(self, counts: Int64, n: int) -> None:
        self._counts, self._n = counts, n
        self._filled = counts > 0
        self._starts = (np.cumsum(counts) - counts)[self._filled]

    def accumulate(
        self, body: memoryview, at: int, widths: npt.NDArray[np.uint8], firsts: Int64
    ) -> tuple[Int64, int]:
        """First values plus running sums of the deltas that begin at ``at``; and where they end."""
        n, counts, starts = self._n, self._counts, self._starts
        kinds = sorted(set(widths.tolist()))
        if len(kinds) == 1:
            deltas, at = _block(body, at, n, kinds[0], f"<i{kinds[0]}")
            deltas = deltas.astype(np.int64)
        else:
            deltas = np.zeros(n, np.int64)
            row_widths = np.repeat(widths, counts)
            for width in kinds:
                if width:
                    rows = row_widths == width
                    block, at = _block(body, at, int(np.count_nonzero(rows)), width, f"<i{width}")
                    deltas[rows] = block
        # One sum over all, less what had been summed where each series starts. Sums may wrap on
        # the way (modulo 2**64 the difference is right); what must not wrap is checked below.
        total = np.cumsum(deltas)
        offsets = firsts[self._filled] - (total[starts] - deltas[starts])
        result = total + np.repeat(offsets, counts[self._filled])
        if 8 in kinds or firsts.max() > _SAFE or firsts.min() < -_SAFE:
            before = result - deltas
            before[starts] = firsts[self._filled]
            if (((before ^ result) & (deltas ^ result)) < 0).any():
                raise WireError("bad_columns", "a column does not fit 64 bits")
        return result, at


def _block(
    body: memoryview, at: int, n: int, width: int, dtype: str
) -> tuple[npt.NDArray[Any], int]:
    """``n`` byte-shuffled numbers at ``at``, and where they end. Width 0 has no bytes: zeros."""
    if width == 0:
        return np.zeros(n, np.int64), at
    end = at + n * width
    if end > len(body):
        raise WireError("bad_columns", f"columns end at {len(body)}, {end} was needed")
    planes = np.frombuffer(body, np.uint8, n * width, at).reshape(width, n)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype), end


def _pg_microseconds(ms: int) -> int:
    return (ms - _PG_EPOCH_MS) * 1000


def _repeat(
    template: npt.NDArray[Any], dtype: np.dtype[Any], n: int, context: RowContext
) -> npt.NDArray[Any]:
    """``n`` rows that differ from the template by what the segment's rows share."""
    shared = template.copy()
    shared["received_at"] = _pg_microseconds(context.received_ms)
    shared["xid"] = context.xid
    shared["stream_id"] = context.stream_id
    # Repeating bytes is a memcpy; `rows[:] = shared` walks every field of every row.
    return np.frombuffer(bytearray(shared.tobytes() * n), dtype)


def _fill(template: npt.NDArray[Any], values: dict[str, int | bytes]) -> None:
    for name, value in values.items():
        template[name] = value


@lru_cache(maxsize=4096)
def _reading_template(store_id: bytes) -> tuple[npt.NDArray[Any], np.dtype[Any]]:
    dtype = np.dtype([
        ("fields", ">i2"),
        ("l0", ">i4"), ("received_at", ">i8"),
        ("l1", ">i4"), ("observed_at", ">i8"),
        ("l2", ">i4"), ("sequence", ">i8"),
        ("l3", ">i4"), ("value", ">f8"),
        ("l4", ">i4"), ("xid", ">i8"),
        ("l5", ">i4"), ("stream_id", ">i4"),
        ("l6", ">i4"), ("metric_id", ">i4"),
        ("l7", ">i4"), ("store_id", f"V{len(store_id)}"),
    ])  # fmt: skip  # one column of the table per line
    template = np.zeros((), dtype)
    lengths = (8, 8, 8, 8, 8, 4, 4, len(store_id))
    _fill(template, {"fields": 8, "store_id": store_id})
    _fill(template, {f"l{i}": length for i, length in enumerate(lengths)})
    return template, dtype


@lru_cache(maxsize=4096)
def _document_template(store_id: bytes, shape: int) -> tuple[npt.NDArray[Any], np.dtype[Any]]:
    """``shape``: bit 0: observed_at is NULL, bit 1: business_date is NULL."""
    time = [] if shape & 1 else [("observed_at", ">i8")]
    day = [] if shape & 2 else [("business_date", ">i4")]
    dtype = np.dtype([
        ("fields", ">i2"),
        ("l0", ">i4"), ("received_at", ">i8"),
        ("l1", ">i4"), *time,
        ("l2", ">i4"), ("sequence", ">i8"),
        ("l3", ">i4"), ("xid", ">i8"),
        ("l4", ">i4"), ("stream_id", ">i4"),
        ("l5", ">i4"), *day,
        ("l6", ">i4"), ("store_id", f"V{len(store_id)}"),
        ("document_length", ">i4"), ("jsonb_version", "u1"),
    ])  # fmt: skip  # one column of the table per line
    template = np.zeros((), dtype)
    lengths = (8, 8 if time else -1, 8, 8, 4, 4 if day else -1, len(store_id))
    _fill(template, {"fields": 8, "store_id": store_id, "jsonb_version": 1})
    _fill(template, {f"l{i}": length for i, length in enumerate(lengths)})
    return template, dtype


def is_text(value: str, limit: int = MAX_NAME_BYTES) -> bool:
    """Whether PostgreSQL can hold ``value``: no NUL, no half surrogate, ``limit`` bytes."""
    try:
        return "\0" not in value and len(value.encode()) <= limit
    except UnicodeEncodeError:
        return False


def is_day(day: int) -> bool:
    """Whether ``day`` is a business day or says that it is not known."""
    return day == UNKNOWN_DAY or MIN_DAY <= day <= MAX_DAY


def _names(meta: dict[str, Any], key: str) -> list[str]:
    names = meta.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WireError("bad_meta", f"meta has no list {key!r}")
    # Joined: one check for all of them. Each is short enough if its characters are few.
    everything = "".join([meta["zone"], *names])
    if not is_text(everything, len(everything) * 4) or max(map(len, names), default=0) > (
        MAX_NAME_BYTES // 4
    ):
        raise WireError(
            "bad_meta", f"a name of the meta is not text of {MAX_NAME_BYTES // 4} letters"
        )
    return names


def _days(meta: dict[str, Any]) -> dict[int, int]:
    days: dict[int, int] = {}
    for day, records in meta["days"]:
        if not is_day(day):
            raise WireError("bad_meta", f"day {day} is outside the years 1 to 9999")
        days[day] = days.get(day, 0) + records
    return days


def describe(metric: str, observed_ms: int, value: float) -> str:
    """A reading as JSON text for the quarantine; a number that JSON lacks becomes a string."""
    finite = value if np.isfinite(value) else str(value)
    return json.dumps({"metric": metric, "observed_ms": observed_ms, "value": finite})
