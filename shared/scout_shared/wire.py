"""Sealed segments, wire format 1: the unit of transfer, dedup, acknowledgement and lineage.

A segment is immutable: its bytes never change, however often it is sent. All numbers are
little-endian.

    header (84 bytes)                              body (compressed by `codec`)
    0   2s  magic "SC"                             u32  length of meta
    2   u8  version 1                              JSON meta
    3   u8  kind: 1 readings, 2 documents, 3 gap   columns of the kind
    4   u8  codec: 0 none, 1 zlib
    5   u8  clock: 0 unknown, 1 unsynced, 2 synced
    6   u16 zero
    8   16s epoch           identity of the device's buffer file
    24  16s boot id
    40  u64 first sequence  records have first .. first + records - 1, in the order they stand here
    48  u32 records
    52  u32 length of the body before compression
    56  i64 sealed at, device wall clock, ms UTC
    64  i64 sealed at, device monotonic clock, ms
    72  u32 length of the body as it stands
    76  u32 CRC-32 of the body as it stands
    80  u32 CRC-32 of bytes 0..79

Meta of both kinds: ``zone`` (IANA) and ``days`` ([[business day, records], ...]). Readings whose
times the agent took from a clock that nobody vouched for stand in segments of their own, whose meta
adds ``stamped``: [boot id, clock state, wall minus monotonic clock in ms], one for all of them.

Readings (meta adds ``metrics``, the name of each series): records stand in series order, within a
series in the order of acceptance. Columns: counts u32[k], first time i64[k] (ms UTC), first value
i64[k], time width u8[k], value width u8[k], scale u8[k]; then time deltas and value deltas, each
as one byte-shuffled block for width 1, 2, 4, 8 (each series has a leading zero delta; width 0 has
no bytes: all deltas are zero); then the byte-shuffled float64 block of the series whose scale is
RAW. A scaled value is integer / 10**scale, exactly (one correctly rounded division); only the sign
of a negative zero is not kept.

Documents (meta adds ``types``, a dictionary): type index u8[n], observed i64[n] (ms UTC or
UNKNOWN_TIME), business day i32[n], length u32[n], then the bodies: JSON in UTF-8.

A gap stands where records stood that the device gave up: it has their sequences and not their
contents, travels, is receipted and is deduplicated like them. Meta adds ``parts``, [[records, kind,
reason, days], ...]: what stood there, in the order of sequence, each part a segment that was given
up or a range that was lost (kind 0: what it held is not known). No columns.

Sizes measured in ``tests/bench/wire.py``. Decoding to columns is the hub's
(``scout_central.ingest.columns``); the decoders here are the plain reference.
The packing of numbers is ``packing``.
Not its job: storing or sending segments, or deciding when to seal.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scout_shared.errors import WireError
from scout_shared.packing import (
    MAX_SCALE,
    RAW,
    TYPECODES,
    ColumnReader,
    accumulate,
    append_deltas,
    column_bytes,
    read_blocks,
    scale_of,
    shuffle,
)
from scout_shared.zones import UNKNOWN_DAY

READINGS, DOCUMENTS, GAP = 1, 2, 3
KIND_NAMES = {READINGS: "readings", DOCUMENTS: "documents"}
"""Kinds of records."""
UNKNOWN_KIND = 0
"""Of given-up records that nobody can tell the kind of any more."""
CODEC_NONE, CODEC_ZLIB = 0, 1
CLOCK_UNKNOWN, CLOCK_UNSYNCED, CLOCK_SYNCED = 0, 1, 2
UNKNOWN_TIME = -(2**63)
MAX_OFFSET_MS = 253_402_300_800_000
"""Of a wall clock to the monotonic one: the end of the year 9999."""

HEADER = struct.Struct("<2sBBBBH16s16sQIIqqIII")
MAX_RAW_BYTES = 16 * 1024 * 1024
"""A body that unpacks to more is refused before it is unpacked."""
MAX_RECORDS = 1_000_000
MAX_TYPES = 256
"""Types of documents in one segment: their index is one byte."""

_MAGIC, _VERSION = b"SC", 1
_MAX_REASON_CHARACTERS = 64


class Reading(NamedTuple):
    """One observed number."""

    metric: str
    """Name with its unit, e.g. ``fridge.1.temperature_celsius``."""
    observed_ms: int
    """Device clock, ms UTC."""
    value: float


class Document(NamedTuple):
    """One observed event, kept as the JSON text that the source sent."""

    type: str
    """Names the bronze table, e.g. ``transaction``."""
    observed_ms: int | None
    """When it happened, ms UTC; None: not known, and it stays so."""
    business_day: int
    """Day of ``observed_ms`` in the store's zone, or ``zones.UNKNOWN_DAY``."""
    body: bytes


class GivenUp(NamedTuple):
    """A part of a gap: records that the device accepted and can no longer deliver."""

    records: int
    kind: int
    """READINGS, DOCUMENTS or UNKNOWN_KIND."""
    reason: str
    """Why, e.g. ``damaged`` or ``drop_oldest``."""
    days: Mapping[int, int]
    """Records per business day, adding up to ``records``."""


class Span(NamedTuple):
    """A stretch of one boot in which a doubtful wall clock ran without a jump.

    A time stamped in it was the monotonic clock plus ``offset_ms``: once the right offset of the
    boot is known, so is the right time.
    """

    boot_id: bytes
    clock: int
    """CLOCK_UNSYNCED, or CLOCK_UNKNOWN where the kernel cannot be asked."""
    offset_ms: int
    """Wall clock minus monotonic clock."""

    def encode(self) -> list[Any]:
        """As JSON values."""
        return [self.boot_id.hex(), self.clock, self.offset_ms]

    @classmethod
    def decode(cls, fields: Any) -> Span:
        """Raises WireError (``bad_meta``)."""
        try:
            boot, state, offset_ms = fields
            span = cls(bytes.fromhex(boot), state, offset_ms)
        except (ValueError, TypeError) as error:
            raise WireError("bad_meta", f"stamped {str(fields)[:80]} cannot be read") from error
        if (
            len(span.boot_id) != 16
            or state not in (CLOCK_UNKNOWN, CLOCK_UNSYNCED)
            or not isinstance(offset_ms, int)
            or abs(offset_ms) > MAX_OFFSET_MS
        ):
            raise WireError("bad_meta", f"stamped {str(fields)[:80]} cannot be")
        return span


@dataclass(frozen=True, slots=True)
class Sealing:
    """What a segment says about the device and the moment it was sealed."""

    epoch: bytes
    boot_id: bytes
    zone: str
    clock: int
    sealed_ms: int
    sealed_mono_ms: int


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Identity and sizes of a segment; trustworthy, its own CRC was checked."""

    kind: int
    codec: int
    clock: int
    epoch: bytes
    boot_id: bytes
    first_sequence: int
    records: int
    raw_bytes: int
    sealed_ms: int
    sealed_mono_ms: int
    body_bytes: int
    body_crc: int

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record."""
        return self.first_sequence + self.records - 1


def encode_readings(
    sealing: Sealing,
    first_sequence: int,
    readings: Iterable[Reading],
    days: Mapping[int, int],
    span: Span | None = None,
) -> bytes:
    """Seal readings. ``days``: records per business day, adding up to the number of readings.

    ``span``: all were stamped in it by the agent. None: their times are their source's own, or of
    a clock that was synchronised.

    Raises:
        WireError: no record or too many, a time or a step between two that 64 bits do not hold, or
            a name that is not text.
    """
    series: defaultdict[str, list[Reading]] = defaultdict(list)
    for reading in readings:
        series[reading[0]].append(reading)
    counts, first_times, first_values = array("I"), array("q"), array("q")
    time_widths, value_widths, scales = bytearray(), bytearray(), bytearray()
    time_blocks = {w: array(code) for w, code in TYPECODES.items()}
    value_blocks = {w: array(code) for w, code in TYPECODES.items()}
    raw_block = array("d")
    for group in series.values():
        _, times, values = zip(*group, strict=True)
        counts.append(len(times))
        try:
            first_times.append(times[0])
        except OverflowError as error:
            raise WireError("bad_columns", f"time {times[0]} does not fit 64 bits") from error
        time_widths.append(append_deltas(time_blocks, times))
        scale, scaled = scale_of(values)
        scales.append(scale)
        if scale == RAW:
            first_values.append(0)
            value_widths.append(0)
            raw_block.extend(values)
        else:
            first_values.append(scaled[0])
            value_widths.append(append_deltas(value_blocks, scaled))
    columns_bytes = [
        column_bytes(counts),
        column_bytes(first_times),
        column_bytes(first_values),
        bytes(time_widths),
        bytes(value_widths),
        bytes(scales),
        *(shuffle(column_bytes(block), width) for width, block in time_blocks.items()),
        *(shuffle(column_bytes(block), width) for width, block in value_blocks.items()),
        shuffle(column_bytes(raw_block), 8),
    ]
    meta = {"zone": sealing.zone, "days": sorted(days.items()), "metrics": list(series)}
    if span is not None:
        meta["stamped"] = span.encode()
    return _frame(READINGS, sealing, first_sequence, sum(counts), meta, columns_bytes)


def encode_documents(sealing: Sealing, first_sequence: int, documents: Sequence[Document]) -> bytes:
    """Seal documents.

    Raises:
        WireError: no document or too many, more than 256 types, more bytes than MAX_RAW_BYTES, or
            a type that is not text.
    """
    types: dict[str, int] = {}
    days: dict[int, int] = {}
    type_column = bytearray()
    observed, business_days, lengths = array("q"), array("i"), array("I")
    for document in documents:
        index = types.setdefault(document.type, len(types))
        if index >= MAX_TYPES:
            raise WireError("too_many_types", f"a segment holds at most {MAX_TYPES} types")
        type_column.append(index)
        observed.append(UNKNOWN_TIME if document.observed_ms is None else document.observed_ms)
        business_days.append(document.business_day)
        lengths.append(len(document.body))
        days[document.business_day] = days.get(document.business_day, 0) + 1
    columns = [
        bytes(type_column),
        column_bytes(observed),
        column_bytes(business_days),
        column_bytes(lengths),
        *(document.body for document in documents),
    ]
    meta = {"zone": sealing.zone, "days": sorted(days.items()), "types": list(types)}
    return _frame(DOCUMENTS, sealing, first_sequence, len(documents), meta, columns)


def encode_gap(sealing: Sealing, first_sequence: int, parts: Sequence[GivenUp]) -> bytes:
    """Seal the declaration that records are given up; ``parts`` follow each other without a hole.

    Raises:
        WireError: no part, or more records than MAX_RECORDS.
    """
    days: dict[int, int] = {}
    for part in parts:
        for day, records in part.days.items():
            days[day] = days.get(day, 0) + records
    meta = {
        "zone": sealing.zone,
        "days": sorted(days.items()),
        "parts": [[p.records, p.kind, p.reason, sorted(p.days.items())] for p in parts],
    }
    return _frame(GAP, sealing, first_sequence, sum(p.records for p in parts), meta, [])


def renamed(segment: bytes, epoch: bytes, first_sequence: int) -> bytes:
    """The same records under another identity; the body keeps its bytes. Raises WireError."""
    decode_header(segment)
    fields = list(HEADER.unpack_from(segment))
    fields[6], fields[8], fields[-1] = epoch, first_sequence, 0
    header = HEADER.pack(*fields)[:-4]
    return header + struct.pack("<I", zlib.crc32(header)) + segment[HEADER.size :]


def decode_header(segment: bytes) -> SegmentHeader:
    """The header of a segment whose body need not be intact.

    Raises:
        WireError: ``truncated``, ``bad_magic``, ``unknown_version``, ``header_crc_mismatch``,
            ``bad_header`` (counts that cannot be).
    """
    if len(segment) < HEADER.size:
        raise WireError(
            "truncated", f"{len(segment)} bytes are less than a header of {HEADER.size}"
        )
    (
        magic,
        version,
        kind,
        codec,
        clock,
        _zero,
        epoch,
        boot_id,
        first,
        records,
        raw_bytes,
        sealed_ms,
        sealed_mono_ms,
        body_bytes,
        body_crc,
        header_crc,
    ) = HEADER.unpack_from(segment)
    if magic != _MAGIC:
        raise WireError("bad_magic", f"segment starts with {magic!r}, not {_MAGIC!r}")
    if version != _VERSION:
        raise WireError("unknown_version", f"segment has version {version}, this program knows 1")
    if zlib.crc32(segment[: HEADER.size - 4]) != header_crc:
        raise WireError("header_crc_mismatch", "the header's checksum does not match its bytes")
    if (
        kind not in (READINGS, DOCUMENTS, GAP)
        or not 1 <= records <= MAX_RECORDS
        or first < 1
        or first + records > 2**63
        or raw_bytes > MAX_RAW_BYTES
    ):
        raise WireError(
            "bad_header",
            f"kind {kind}, first sequence {first}, {records} records, {raw_bytes} bytes cannot be",
        )
    return SegmentHeader(
        kind,
        codec,
        clock,
        epoch,
        boot_id,
        first,
        records,
        raw_bytes,
        sealed_ms,
        sealed_mono_ms,
        body_bytes,
        body_crc,
    )


def decode_body(header: SegmentHeader, segment: bytes) -> tuple[dict[str, Any], memoryview]:
    """Meta and columns of a segment.

    Returns:
        the parsed meta with ``days`` checked to add up to the records, and the column bytes.

    Raises:
        WireError: ``truncated``, ``crc_mismatch``, ``unknown_codec``, ``bad_compression``,
            ``bad_meta``.
    """
    body = memoryview(segment)[HEADER.size :]
    if len(body) != header.body_bytes:
        raise WireError(
            "truncated", f"body has {len(body)} bytes, its header says {header.body_bytes}"
        )
    if zlib.crc32(body) != header.body_crc:
        raise WireError("crc_mismatch", "the body's checksum does not match its bytes")
    if header.codec == CODEC_ZLIB:
        unpacker = zlib.decompressobj()
        try:
            raw = unpacker.decompress(body, header.raw_bytes + 1)
        except zlib.error as error:
            raise WireError("bad_compression", f"body cannot be unpacked: {error}") from error
        if len(raw) == header.raw_bytes and (not unpacker.eof or unpacker.unused_data):
            raise WireError("bad_compression", "body is not one whole zlib stream")
    elif header.codec == CODEC_NONE:
        raw = bytes(body)
    else:
        raise WireError("unknown_codec", f"codec {header.codec} is not known to this program")
    if len(raw) != header.raw_bytes:
        raise WireError(
            "bad_compression",
            f"body unpacks to {len(raw)} bytes, its header says {header.raw_bytes}",
        )
    try:
        (meta_bytes,) = struct.unpack_from("<I", raw)
        meta = json.loads(raw[4 : 4 + meta_bytes])
        meta["zone"] = str(meta["zone"])
        meta["days"] = [(int(day), int(count)) for day, count in meta["days"]]
    # RecursionError: a hostile meta of many brackets; OverflowError: Infinity is a number to json.
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise WireError("bad_meta", f"meta of the segment cannot be read: {error}") from error
    if any(count < 1 or not UNKNOWN_DAY <= day < 2**31 for day, count in meta["days"]):
        raise WireError("bad_meta", f"days {meta['days'][:10]} cannot be")
    total = sum(count for _, count in meta["days"])
    if total != header.records:
        raise WireError("bad_meta", f"days add up to {total}, the segment has {header.records}")
    return meta, memoryview(raw)[4 + meta_bytes :]


def span_of(meta: Mapping[str, Any]) -> Span | None:
    """Of a segment's meta: in which span its readings were stamped, if any. Raises WireError."""
    return Span.decode(meta["stamped"]) if "stamped" in meta else None


def decode_readings(segment: bytes) -> list[Reading]:
    """The readings of a segment in sequence order. Raises WireError."""
    header = decode_header(segment)
    meta, columns = decode_body(header, segment)
    metrics = _names(meta, "metrics")
    k = len(metrics)
    reader = ColumnReader(columns)
    counts = reader.take("I", k)
    first_times, first_values = reader.take("q", k), reader.take("q", k)
    time_widths, value_widths = reader.take("B", k), reader.take("B", k)
    scales = reader.take("B", k)
    if sum(counts) != header.records:
        raise WireError("bad_columns", f"series add up to {sum(counts)}, not {header.records}")
    if any(scale > MAX_SCALE and scale != RAW for scale in scales):
        raise WireError("bad_columns", f"scales {sorted(set(scales))} are not 0 to 9 or 255")
    time_deltas = read_blocks(reader, counts, time_widths)
    value_deltas = read_blocks(
        reader, [0 if s == RAW else c for c, s in zip(counts, scales, strict=True)], value_widths
    )
    raw_values = iter(
        reader.take_shuffled("d", sum(c for c, s in zip(counts, scales, strict=True) if s == RAW))
    )
    reader.finish()
    readings = []
    for i, metric in enumerate(metrics):
        times = accumulate(first_times[i], time_deltas[i])
        if scales[i] == RAW:
            values = [next(raw_values) for _ in range(counts[i])]
        else:
            divisor = float(10 ** scales[i])
            values = [v / divisor for v in accumulate(first_values[i], value_deltas[i])]
        readings += [Reading(metric, t, v) for t, v in zip(times, values, strict=True)]
    return readings


def decode_documents(segment: bytes) -> list[Document]:
    """The documents of a segment in sequence order. Raises WireError."""
    header = decode_header(segment)
    meta, columns = decode_body(header, segment)
    types = _names(meta, "types")
    n = header.records
    reader = ColumnReader(columns)
    type_column, observed = reader.take("B", n), reader.take("q", n)
    business_days, lengths = reader.take("i", n), reader.take("I", n)
    documents = []
    for index, ms, day, length in zip(type_column, observed, business_days, lengths, strict=True):
        if index >= len(types):
            raise WireError("bad_columns", f"type {index} of {len(types)}")
        documents.append(
            Document(
                types[index], None if ms == UNKNOWN_TIME else ms, day, reader.take_bytes(length)
            )
        )
    reader.finish()
    return documents


def decode_gap(segment: bytes) -> list[GivenUp]:
    """The parts of a gap in sequence order. Raises WireError."""
    header = decode_header(segment)
    meta, columns = decode_body(header, segment)
    try:
        parts = [
            GivenUp(int(n), int(kind), str(reason), {int(d): int(c) for d, c in days})
            for n, kind, reason, days in meta["parts"]
        ]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise WireError("bad_meta", f"parts of the gap cannot be read: {error}") from error
    for part in parts:
        if (
            part.records < 1
            or part.kind not in (UNKNOWN_KIND, READINGS, DOCUMENTS)
            or not 0 < len(part.reason) <= _MAX_REASON_CHARACTERS
            or any(n < 1 or not UNKNOWN_DAY <= day < 2**31 for day, n in part.days.items())
            or sum(part.days.values()) != part.records
        ):
            raise WireError("bad_meta", f"{part} cannot be")
    if sum(part.records for part in parts) != header.records:
        raise WireError("bad_meta", f"the parts do not add up to {header.records}")
    if len(columns):
        raise WireError("bad_columns", f"a gap has no columns, {len(columns)} bytes are there")
    return parts


def days_of(days: Iterable[int]) -> dict[int, int]:
    """Count records per business day, for ``encode_readings``."""
    counted: dict[int, int] = {}
    for day in days:
        counted[day] = counted.get(day, 0) + 1
    return counted


def _frame(  # noqa: PLR0917 - the parts of a frame, in their order on the wire
    kind: int,
    sealing: Sealing,
    first_sequence: int,
    records: int,
    meta: dict[str, Any],
    columns: list[bytes],
) -> bytes:
    if not 1 <= records <= MAX_RECORDS:
        raise WireError("bad_header", f"a segment holds 1 to {MAX_RECORDS} records, not {records}")
    try:
        meta_bytes = json.dumps(meta, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise WireError("bad_meta", f"a name is not text: {error}") from error
    raw = b"".join([struct.pack("<I", len(meta_bytes)), meta_bytes, *columns])
    if len(raw) > MAX_RAW_BYTES:
        raise WireError("too_large", f"{len(raw)} bytes are more than a segment may hold")
    # Level 6: level 9 gains 1 % for twice the time on a Raspberry Pi; 1 loses 12 %.
    body, codec = zlib.compress(raw, 6), CODEC_ZLIB
    if len(body) >= len(raw):
        body, codec = raw, CODEC_NONE
    header = HEADER.pack(
        _MAGIC,
        _VERSION,
        kind,
        codec,
        sealing.clock,
        0,
        sealing.epoch,
        sealing.boot_id,
        first_sequence,
        records,
        len(raw),
        sealing.sealed_ms,
        sealing.sealed_mono_ms,
        len(body),
        zlib.crc32(body),
        0,
    )[:-4]
    return b"".join([header, struct.pack("<I", zlib.crc32(header)), body])


def _names(meta: dict[str, Any], key: str) -> list[str]:
    names = meta.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WireError("bad_meta", f"meta has no list {key!r}")
    return names


__all__ = [
    "CLOCK_SYNCED",
    "CLOCK_UNKNOWN",
    "CLOCK_UNSYNCED",
    "CODEC_NONE",
    "CODEC_ZLIB",
    "DOCUMENTS",
    "GAP",
    "HEADER",
    "KIND_NAMES",
    "MAX_OFFSET_MS",
    "MAX_RAW_BYTES",
    "MAX_RECORDS",
    "MAX_TYPES",
    "RAW",
    "READINGS",
    "UNKNOWN_DAY",
    "UNKNOWN_KIND",
    "UNKNOWN_TIME",
    "Document",
    "GivenUp",
    "Reading",
    "Sealing",
    "SegmentHeader",
    "Span",
    "days_of",
    "decode_body",
    "decode_documents",
    "decode_gap",
    "decode_header",
    "decode_readings",
    "encode_documents",
    "encode_gap",
    "encode_readings",
    "span_of",
]
