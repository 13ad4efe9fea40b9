"""Decoding to columns equals the plain decoders of the wire, and never raises anything else."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_central.ingest import columns
from scout_central.ingest.columns import DocumentColumns, ReadingColumns
from scout_shared import wire
from scout_shared.errors import WireError
from scout_shared.zones import UNKNOWN_DAY
from tests.central.segments import DAY, START_MS, damaged, raw_body, readings, reframed, sealing

METRICS = st.sampled_from(["a", "b", "fridge.1.celsius", "ж", "d" * 250])
TIMES = st.one_of(
    st.integers(START_MS, START_MS + 10**7), st.integers(-(2**61), 2**61), st.just(START_MS)
)
VALUES = st.one_of(
    st.floats(allow_nan=True, width=64),
    st.integers(-(10**6), 10**6).map(lambda i: i / 100),
    st.integers(-(2**53), 2**53).map(float),
    st.just(0.1),
)
READINGS = st.lists(st.builds(wire.Reading, METRICS, TIMES, VALUES), min_size=1, max_size=60)
DAYS = st.one_of(st.just(UNKNOWN_DAY), st.integers(columns.MIN_DAY, columns.MAX_DAY))
DOCUMENTS = st.lists(
    st.builds(
        wire.Document,
        st.sampled_from(["transaction", "other"]),
        st.one_of(st.none(), st.integers(-(2**62), 2**62)),
        DAYS,
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=40,
)


def listed(decoded: ReadingColumns | DocumentColumns) -> list[tuple[object, ...]]:
    """Columns as the tuples of the plain decoders; NaN as a word, because NaN equals nothing."""
    if isinstance(decoded, ReadingColumns):
        names = [
            name
            for name, count in zip(decoded.metrics, decoded.counts.tolist(), strict=True)
            for _ in range(count)
        ]
        values = map(comparable, decoded.values.tolist())
        return list(zip(names, decoded.observed_ms.tolist(), values, strict=True))
    return [
        (decoded.types[t], None if ms == wire.UNKNOWN_TIME else ms, day, body)
        for t, ms, day, body in zip(
            decoded.type_index.tolist(),
            decoded.observed_ms.tolist(),
            decoded.business_days.tolist(),
            decoded.bodies,
            strict=True,
        )
    ]


def comparable(value: float) -> float | str:
    return "nan" if math.isnan(value) else value


def plain(segment: bytes) -> list[tuple[object, ...]]:
    if wire.decode_header(segment).kind == wire.DOCUMENTS:
        return [tuple(d) for d in wire.decode_documents(segment)]
    return [(m, t, comparable(v)) for m, t, v in wire.decode_readings(segment)]


@given(made=READINGS)
def test_readings_equal_the_plain_decoder(made: list[wire.Reading]) -> None:
    segment = wire.encode_readings(sealing(), 5, made, {DAY: len(made)})
    decoded = columns.decode(segment)
    assert listed(decoded) == plain(segment)
    assert decoded.days == {DAY: len(made)}


@given(made=DOCUMENTS)
def test_documents_equal_the_plain_decoder(made: list[wire.Document]) -> None:
    segment = wire.encode_documents(sealing(), 5, made)
    decoded = columns.decode(segment)
    assert listed(decoded) == plain(segment)
    assert decoded.days == wire.days_of(d.business_day for d in made)


@given(
    made=st.one_of(
        READINGS.map(lambda m: wire.encode_readings(sealing(), 5, m, {DAY: len(m)})),
        DOCUMENTS.map(lambda m: wire.encode_documents(sealing(), 5, m)),
    ),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(-3, 3),
)
def test_a_malformed_body_raises_wire_error_or_decodes_as_the_plain_decoder_does(
    made: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    raw = bytearray(raw_body(made))
    for at, value in changes:
        raw[at % len(raw)] = value
    if cut:
        raw = raw[:cut] if cut < 0 else raw + bytes(cut)
    segment = reframed(made, bytes(raw))
    try:
        decoded = columns.decode(segment)
    except WireError:
        return  # being stricter than the plain decoder is allowed, see the module
    assert listed(decoded) == plain(segment)


@given(noise=st.binary(max_size=300))
def test_noise_raises_wire_error(noise: bytes) -> None:
    with pytest.raises(WireError):
        columns.decode(noise)


@given(at=st.integers(0), value=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_noticed(at: int, value: int) -> None:
    segment = bytearray(readings(1, 50))
    segment[at % len(segment)] ^= value
    with pytest.raises(WireError):
        columns.decode(bytes(segment))


def with_meta(segment: bytes, **changes: object) -> bytes:
    """The segment with another meta and the same columns."""
    raw = raw_body(segment)
    (length,) = struct.unpack_from("<I", raw)
    meta = {**json.loads(raw[4 : 4 + length]), **changes}
    text = json.dumps(meta).encode()
    return reframed(segment, struct.pack("<I", len(text)) + text + raw[4 + length :])


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": ["a\0b"]},
        {"metrics": ["half \ud800 pair"]},
        {"metrics": ["x" * 1001]},
        {"zone": "UTC\0"},
        {"days": [[2**31 - 2, 50]]},
        {"days": [[columns.MAX_DAY + 1, 50]]},
        {"metrics": 7},
    ],
)
def test_what_postgresql_cannot_hold_is_refused_before_it_gets_there(
    changes: dict[str, object],
) -> None:
    with pytest.raises(WireError, match=r"meta|day"):
        columns.decode(with_meta(readings(1, 50), **changes))


def test_documents_whose_days_are_not_those_of_the_meta_are_refused() -> None:
    segment = wire.encode_documents(
        sealing(), 1, [wire.Document("transaction", START_MS, DAY, b"{}")] * 3
    )
    with pytest.raises(WireError, match="days"):
        columns.decode(with_meta(segment, days=[[DAY, 1], [DAY + 1, 2]]))


def test_a_column_that_wraps_64_bits_is_refused() -> None:
    made = [wire.Reading("a", t, 1.0) for t in (2**62, 2**62 + 2**61)]
    segment = wire.encode_readings(sealing(), 1, made, {UNKNOWN_DAY: 2})
    raw = bytearray(raw_body(segment))
    first = raw.index(struct.pack("<q", 2**62))
    raw[first : first + 8] = struct.pack("<q", 2**63 - 5)
    with pytest.raises(WireError, match="64 bits"):
        columns.decode(reframed(segment, bytes(raw)))


def test_a_damaged_body_is_a_crc_mismatch() -> None:
    with pytest.raises(WireError) as caught:
        columns.decode(damaged(readings(1, 50)))
    assert caught.value.reason == "crc_mismatch"
