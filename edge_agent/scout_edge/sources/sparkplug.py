"""Sparkplug B payloads: protobuf bytes → metrics with their own times. Strict, and bounded.

Field numbers and types are those of Eclipse Tahu's ``sparkplug_b.proto``; the wire format is
Protocol Buffers' own. Decoding never recurses: what is not needed (data sets, templates, metadata)
is passed over by its length. Garbage raises PermanentError and nothing else.

    Payload        timestamp 1, metrics 2, seq 3
    Metric         name 1, alias 2, timestamp 3, datatype 4, is_historical 5, is_transient 6,
                   is_null 7, properties 9, int 10, long 11, float 12, double 13, boolean 14,
                   string 15, bytes 16, data set 17, template 18, extension 19
    PropertySet    keys 1, values 2
    PropertyValue  int 3, long 4

Not its job: births, aliases, sequences (``sparkplug_nodes``); topics; MQTT.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from scout_edge.sources.units import shortest_float32
from scout_shared.errors import PermanentError

MAX_PAYLOAD_BYTES = 1 << 20  # a birth of 10,000 metrics is about half of it
MAX_METRICS = 10_000
MAX_NAME_BYTES = 512
REBIRTH = "Node Control/Rebirth"
GOOD = 192
"""The Quality property of a value that may be used; 0 is bad, 500 stale."""

BOOLEAN = 11
# datatype → bits, signed
_INTEGERS = {
    1: (8, True),
    2: (16, True),
    3: (32, True),
    4: (64, True),
    5: (8, False),
    6: (16, False),
    7: (32, False),
    8: (64, False),
}
_FLOATS = (9, 10)
NUMERIC = frozenset({*_INTEGERS, *_FLOATS, BOOLEAN})
"""Data types whose values are readings: integers, floats, and booleans as 0 and 1."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SKIPPED_VALUES = (15, 16, 17, 18, 19)


@dataclass(frozen=True, slots=True)
class Raw:
    """A value as it stands on the wire, whose data type may stand in the birth only."""

    field: int
    """Of ``Metric``: 10 int, 11 long, 12 float, 13 double, 14 boolean."""
    number: int | float


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a payload. What is absent on the wire is None."""

    name: str | None = None
    alias: int | None = None
    timestamp_ms: int | None = None
    datatype: int | None = None
    historical: bool = False
    null: bool = False
    quality: int | None = None
    raw: Raw | None = None
    """None: there is no value, or none of a number's fields."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One message."""

    timestamp_ms: int | None
    seq: int | None
    metrics: tuple[Metric, ...]


def decode(data: bytes) -> Payload:
    """The payload. Raises PermanentError: it is no Sparkplug B payload, or larger than taken."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise PermanentError(f"{len(data)} bytes are more than {MAX_PAYLOAD_BYTES}")
    timestamp_ms = seq = None
    metrics: list[Metric] = []
    for field, wire, value in _fields(data):
        if field == 1:
            timestamp_ms = _integer(field, wire, value)
        elif field == 2:
            if len(metrics) == MAX_METRICS:
                raise PermanentError(f"more than {MAX_METRICS} metrics in a payload")
            metrics.append(_metric(_bytes(field, wire, value)))
        elif field == 3:
            seq = _integer(field, wire, value)
            if seq > 255:
                raise PermanentError(f"seq {seq} is not 0 to 255")
    return Payload(timestamp_ms, seq, tuple(metrics))


def number(raw: Raw, datatype: int) -> float:
    """The value as a number of its data type.

    Integers are two's complement of their width, in either integer field; a float is the shortest
    decimal that it can mean.

    Raises:
        PermanentError: the field does not fit the data type, or the value its width.
    """
    bits, signed = _INTEGERS.get(datatype, (0, False))
    if bits and raw.field in (10, 11) and (bits < 64 or raw.field == 11):
        found = int(raw.number)
        width = 32 if raw.field == 10 else 64
        if signed and found >> (width - 1):
            found -= 1 << width
        elif signed and bits < width and found >> (bits - 1) == 1:
            found -= 1 << bits  # some encoders cut a negative one to its width
        low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
        if not low <= found < high:
            raise PermanentError(f"value {found} is not within {bits} bits")
        return float(found)
    if datatype == 9 and raw.field == 12:
        return shortest_float32(float(raw.number))
    if (datatype, raw.field) in ((10, 13), (BOOLEAN, 14)):
        return float(raw.number)
    raise PermanentError(f"a value in field {raw.field} is none of data type {datatype}")


def encode_rebirth(now_ms: int) -> bytes:
    """The command by which a node is asked for its births; without ``seq``, as of all commands."""
    name = REBIRTH.encode()
    metric = (
        *(b"\x0a", _varint(len(name)), name),  # 1 name
        *(b"\x18", _varint(now_ms)),  # 3 timestamp
        *(b"\x20", _varint(BOOLEAN)),  # 4 datatype
        b"\x70\x01",  # 14 boolean_value
    )
    body = b"".join(metric)
    return b"".join((b"\x08", _varint(now_ms), b"\x12", _varint(len(body)), body))


def _metric(data: bytes) -> Metric:
    name = alias = timestamp_ms = datatype = quality = None
    historical = null = False
    raw: Raw | None = None
    for field, wire, value in _fields(data):
        if field == 1:
            name = _text(_bytes(field, wire, value))
        elif field == 2:
            alias = _integer(field, wire, value)
        elif field == 3:
            timestamp_ms = _integer(field, wire, value)
        elif field == 4:
            datatype = _integer(field, wire, value) & 0xFFFFFFFF
        elif field == 5:
            historical = bool(_integer(field, wire, value))
        elif field == 7:
            null = bool(_integer(field, wire, value))
        elif field == 9:
            quality = _quality(_bytes(field, wire, value))
        elif 10 <= field <= 14:
            raw = _raw(field, wire, value)
        elif field in _SKIPPED_VALUES:
            _bytes(field, wire, value)
            raw = None  # of a oneof the last one counts
    return Metric(name, alias, timestamp_ms, datatype, historical, null, quality, raw)


def _raw(field: int, wire: int, value: int | bytes) -> Raw:
    if field in (12, 13):
        kind, code = (_FIXED32, "<f") if field == 12 else (_FIXED64, "<d")
        if wire != kind or not isinstance(value, bytes):
            raise PermanentError(f"field {field} has wire type {wire}")
        (found,) = struct.unpack(code, value)
        return Raw(field, found)
    found = _integer(field, wire, value)
    if field == 10:
        found &= 0xFFFFFFFF  # as protobuf reads a uint32
    return Raw(field, int(bool(found)) if field == 14 else found)


def _quality(data: bytes) -> int | None:
    """The property 'Quality', if it is there."""
    keys: list[bytes] = []
    values: list[bytes] = []
    for field, wire, value in _fields(data):
        if field in (1, 2):
            (keys if field == 1 else values).append(_bytes(field, wire, value))
    if len(keys) != len(values):
        raise PermanentError(f"{len(keys)} property names stand for {len(values)} values")
    found: int | None = None
    for key, value in zip(keys, values, strict=True):
        if key.lower() == b"quality":
            for field, wire, inner in _fields(value):
                if field in (3, 4):
                    found = _integer(field, wire, inner)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type, value of each field: an int of a varint, else the bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise PermanentError(f"field number {field} cannot be")
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield field, wire, value
            continue
        if wire == _LENGTH:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise PermanentError(f"wire type {wire} is not used by Sparkplug")
        if size > end - at:
            raise PermanentError(f"field {field} is cut: {size} bytes announced, {end - at} left")
        yield field, wire, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise PermanentError("the payload ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise PermanentError("a number has more than 10 bytes")


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _integer(field: int, wire: int, value: int | bytes) -> int:
    if wire != _VARINT or not isinstance(value, int):
        raise PermanentError(f"field {field} has wire type {wire}")
    return value


def _bytes(field: int, wire: int, value: int | bytes) -> bytes:
    if wire != _LENGTH or not isinstance(value, bytes):
        raise PermanentError(f"field {field} has wire type {wire}")
    return value


def _text(data: bytes) -> str:
    if len(data) > MAX_NAME_BYTES:
        raise PermanentError(f"a name of {len(data)} bytes; at most {MAX_NAME_BYTES} are taken")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentError("a name is not UTF-8") from error
