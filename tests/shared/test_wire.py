import json
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scout_shared import packing, wire
from scout_shared.errors import WireError
from scout_shared.wire import UNKNOWN_DAY, Document, Reading, Sealing
from scout_shared.zones import BusinessCalendar

GOLDEN = Path(__file__).parent / "golden"
SEALING = Sealing(
    epoch=bytes(range(16)),
    boot_id=bytes(range(16, 32)),
    zone="Asia/Manila",
    clock=wire.CLOCK_SYNCED,
    sealed_ms=1_760_000_000_123,
    sealed_mono_ms=987_654,
)
CALENDAR = BusinessCalendar("Asia/Manila")

INT64 = st.integers(-(2**62) + 1, 2**62)  # no step between two is above 2**63 - 1
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**60), 2**60).map(float),
    st.builds(lambda i, d: i / 10**d, st.integers(-(10**15), 10**15), st.integers(0, 9)),
)
READINGS = st.lists(
    st.builds(Reading, st.sampled_from(["a", "b.celsius", "ünïcode", ""]) | NAMES, INT64, VALUES),
    min_size=1,
    max_size=60,
)
DOCUMENTS = st.lists(
    st.builds(
        Document,
        NAMES,
        st.none() | INT64,
        st.integers(UNKNOWN_DAY, 2**31 - 1),
        st.binary(max_size=60),
    ),
    min_size=1,
    max_size=40,
)


def encode(readings: list[Reading], first: int = 1) -> bytes:
    return wire.encode_readings(SEALING, first, readings, CALENDAR.count([r[1] for r in readings]))


def in_series_order(readings: list[Reading]) -> list[Reading]:
    order = list(dict.fromkeys(r.metric for r in readings))
    return sorted(readings, key=lambda r: order.index(r.metric))


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@given(READINGS, st.integers(1, 2**62))
@example([Reading("a", 0, v) for v in (math.nan, math.inf, -math.inf, 1e308, -5e-324)], 1)
@example([Reading("a", t, 0.1) for t in (2**62, -(2**62), 0, -1)], 1)
@settings(deadline=None)
def test_readings_come_back_as_they_were_within_each_series(
    readings: list[Reading], first: int
) -> None:
    segment = encode(readings, first)
    header = wire.decode_header(segment)
    assert (header.first_sequence, header.records) == (first, len(readings))
    assert header.last_sequence == first + len(readings) - 1
    assert (header.epoch, header.boot_id) == (SEALING.epoch, SEALING.boot_id)
    assert (header.sealed_ms, header.sealed_mono_ms) == (SEALING.sealed_ms, SEALING.sealed_mono_ms)
    back = wire.decode_readings(segment)
    expected = in_series_order(readings)
    assert [r[:2] for r in back] == [r[:2] for r in expected]
    assert all(same(a.value, b.value) for a, b in zip(back, expected, strict=True))
    meta, _ = wire.decode_body(header, segment)
    assert meta["zone"] == "Asia/Manila"
    assert sum(count for _, count in meta["days"]) == len(readings)


@given(DOCUMENTS)
@settings(deadline=None)
def test_documents_come_back_as_they_were_in_their_order(documents: list[Document]) -> None:
    segment = wire.encode_documents(SEALING, 7, documents)
    assert wire.decode_documents(segment) == documents
    meta, _ = wire.decode_body(wire.decode_header(segment), segment)
    assert dict(meta["days"]) == wire.days_of(d.business_day for d in documents)


@given(st.lists(VALUES, min_size=1, max_size=30))
def test_the_scale_is_the_smallest_at_which_every_value_is_exact(values: list[float]) -> None:
    scale, scaled = packing.scale_of(values)

    def exact(at: int) -> bool:
        try:
            return all(round(v * float(10**at)) / float(10**at) == v for v in values)
        except (OverflowError, ValueError):
            return False

    smallest = next((at for at in range(10) if exact(at)), wire.RAW)
    if scale == wire.RAW:
        assert smallest == wire.RAW or any(abs(v) * 10**smallest >= 2**52 for v in values)
    else:
        assert scale == smallest
        assert [i / 10**scale for i in scaled] == values


# -- golden bytes: version 1 must be readable for ever, and devices must go on writing it ---------


def golden_readings() -> list[Reading]:
    rng = random.Random(1)
    made = []
    for second in range(50):
        at = 1_760_000_000_000 + 1000 * second + rng.randint(-3, 3)
        made += [
            Reading("fridge.1.temperature_celsius", at, round(rng.gauss(4, 1), 1)),
            Reading("mains_volts", at + 1, round(rng.gauss(230, 2), 2)),
            Reading("door.opened_total", at + 2, float(second // 10)),
            Reading("odd_ratio", at + 3, rng.random()),
        ]
    made += [Reading("gap", 0, math.nan), Reading("gap", 1, math.inf), Reading("ñ", -1, -0.5)]
    return made


def golden_documents() -> list[Document]:
    at = 1_760_000_000_000
    return [
        Document("transaction", at, CALENDAR.day(at), '{"total":1.10,"store":"ñ"}'.encode()),
        Document("transaction", None, UNKNOWN_DAY, b'{"total":2.50}'),
        Document("void", at + 1, CALENDAR.day(at), b"{}"),
    ]


GOLDEN_SEGMENTS = {
    "readings_v1.hex": lambda: encode(golden_readings(), 1000),
    "documents_v1.hex": lambda: wire.encode_documents(SEALING, 2000, golden_documents()),
}


def unpacked(segment: bytes) -> tuple[bytes, bytes]:
    """Header fields that do not depend on the zlib build, and the body before compression."""
    header = wire.decode_header(segment)
    raw = segment[wire.HEADER.size :]
    return segment[3:72], zlib.decompress(raw) if header.codec == wire.CODEC_ZLIB else raw


@pytest.mark.parametrize("name", GOLDEN_SEGMENTS)
def test_golden_bytes_of_version_1_are_read_and_written(name: str) -> None:
    golden = bytes.fromhex((GOLDEN / name).read_text("ascii"))
    if name.startswith("readings"):
        back = wire.decode_readings(golden)
        for a, b in zip(back, in_series_order(golden_readings()), strict=True):
            assert a[:2] == b[:2]
            assert same(a.value, b.value)
    else:
        assert wire.decode_documents(golden) == golden_documents()
    assert unpacked(GOLDEN_SEGMENTS[name]()) == unpacked(golden)


# -- hostile bytes --------------------------------------------------------------------------------

SAMPLES = [encode(golden_readings()), wire.encode_documents(SEALING, 1, golden_documents())]


def decode_any(segment: bytes) -> None:
    """Decode like a hub: whatever comes, either it decodes or WireError says why."""
    records: Any
    try:
        header = wire.decode_header(segment)
        if header.kind == wire.READINGS:
            records = wire.decode_readings(segment)
        else:
            records = wire.decode_documents(segment)
    except WireError:
        return
    assert len(records) == header.records


@given(st.sampled_from(SAMPLES), st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_decode(sample: bytes, data: st.DataObject) -> None:
    changed = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    decode_any(bytes(changed))
    decode_any(bytes(changed[:cut]))
    decode_any(bytes(changed) + b"x")


def framed(
    kind: int, raw: bytes, records: int, codec: int = 1, raw_bytes: int | None = None
) -> bytes:
    """A segment with right checksums around any body, as a hostile device would make it."""
    body = zlib.compress(raw) if codec == 1 else raw
    size = len(raw) if raw_bytes is None else raw_bytes
    head = wire.HEADER.pack(
        b"SC", 1, kind, codec, 0, 0, SEALING.epoch, SEALING.boot_id, 1, records, size, 0, 0,
        len(body), zlib.crc32(body), 0,
    )[:-4]  # fmt: skip
    return head + struct.pack("<I", zlib.crc32(head)) + body


@given(st.sampled_from(SAMPLES), st.integers(0, 3), st.integers(1, 10**6), st.data())
@settings(max_examples=300, deadline=None)
def test_a_hostile_body_with_right_checksums_is_refused_or_decodes(
    sample: bytes, codec: int, records: int, data: st.DataObject
) -> None:
    header = wire.decode_header(sample)
    raw = bytearray(unpacked(sample)[1])
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    n = data.draw(st.sampled_from([header.records, records]))
    decode_any(framed(header.kind, bytes(raw), n, codec))


def with_meta(meta: str, rest: bytes = b"", records: int = 1) -> bytes:
    return framed(
        wire.DOCUMENTS, struct.pack("<I", len(meta.encode())) + meta.encode() + rest, records
    )


@pytest.mark.parametrize(
    "meta",
    [
        "[" * 100_000,
        '{"zone": "x", "days": [[0, Infinity]]}',
        '{"zone": "x", "days": [[0, NaN]]}',
        '{"zone": "x", "days": [[0, -1], [1, 2]]}',
        '{"zone": "x", "days": [[4294967296, 1]]}',
        '{"zone": "x", "days": 5}',
        '{"days": [[0, 1]]}',
        '[["zone", "days"]]',
        '"zone"',
        "5",
        '{"zone": "x", "days": [[0, 1]], "types": "abc"}',
        '{"zone": "x", "days": [[0, 1]], "types": [1]}',
        '{"zone": "x", "days": [[0, 1]], "types": []}',
        '{"zone": "x", "days": [[0, 2]], "types": ["a"]}',
    ],
)
def test_a_hostile_meta_is_refused(meta: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_documents(with_meta(meta, b"\0" * 17))
    assert caught.value.reason in ("bad_meta", "bad_columns")


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = framed(wire.DOCUMENTS, b"\0" * (64 << 20), 1, raw_bytes=1000)
    assert len(bomb) < 100_000
    with pytest.raises(WireError, match="unpacks to 1001 bytes"):
        wire.decode_documents(bomb)
    with pytest.raises(WireError, match="cannot be"):
        wire.decode_header(framed(wire.DOCUMENTS, b"", 1, raw_bytes=wire.MAX_RAW_BYTES + 1))


def test_a_stream_that_does_not_end_is_refused() -> None:
    raw = struct.pack("<I", 2) + b"{}" + random.Random(1).randbytes(500)
    body = zlib.compress(raw)
    for wrong in (body[:-2], body + b"more"):
        head = wire.HEADER.pack(
            b"SC", 1, 2, 1, 0, 0, SEALING.epoch, SEALING.boot_id, 1, 1, len(raw), 0, 0,
            len(wrong), zlib.crc32(wrong), 0,
        )[:-4]  # fmt: skip
        with pytest.raises(WireError) as caught:
            wire.decode_documents(head + struct.pack("<I", zlib.crc32(head)) + wrong)
        assert caught.value.reason == "bad_compression"


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda s: s[:50], "truncated"),
        (lambda s: b"XX" + s[2:], "bad_magic"),
        (lambda s: s[:2] + b"\x02" + s[3:], "unknown_version"),
        (lambda s: s[:30] + b"\xff" + s[31:], "header_crc_mismatch"),
        (lambda s: s[:-1], "truncated"),
        (lambda s: s[:-1] + bytes([s[-1] ^ 1]), "crc_mismatch"),
    ],
)
def test_each_damage_has_its_reason(change: Any, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_readings(change(SAMPLES[0]))
    assert caught.value.reason == reason


def test_what_does_not_fit_a_segment_is_refused_with_a_reason() -> None:
    with pytest.raises(WireError):
        wire.encode_readings(SEALING, 1, [], {})
    with pytest.raises(WireError):
        wire.encode_documents(SEALING, 1, [])
    with pytest.raises(WireError):  # a step of 2**64
        encode([Reading("a", -(2**63), 0.0), Reading("a", 2**63 - 1, 0.0)])
    with pytest.raises(WireError):
        encode([Reading("a", 2**63, 0.0)])
    with pytest.raises(WireError, match="not text"):
        encode([Reading("\ud800", 0, 0.0)])
    many = [Document(f"t{i}", None, UNKNOWN_DAY, b"{}") for i in range(257)]
    with pytest.raises(WireError) as caught:
        wire.encode_documents(SEALING, 1, many)
    assert caught.value.reason == "too_many_types"
    assert len(wire.decode_documents(wire.encode_documents(SEALING, 1, many[:256]))) == 256


def test_meta_names_are_json_in_utf8() -> None:
    segment = encode([Reading("temperatura.ñ", 0, 1.0)])
    meta, _ = wire.decode_body(wire.decode_header(segment), segment)
    assert meta["metrics"] == ["temperatura.ñ"]
    assert json.dumps(meta["days"]) == "[[0, 1]]"


def test_a_gap_says_what_stood_there() -> None:
    parts = [
        wire.GivenUp(60, wire.READINGS, "drop_oldest", {17000: 50, 17001: 10}),
        wire.GivenUp(5, wire.UNKNOWN_KIND, "damaged", {wire.UNKNOWN_DAY: 5}),
    ]
    segment = wire.encode_gap(SEALING, 7, parts)
    header = wire.decode_header(segment)
    assert (header.kind, header.first_sequence, header.records) == (wire.GAP, 7, 65)
    assert wire.decode_gap(segment) == parts


@pytest.mark.parametrize(
    "part",
    [
        wire.GivenUp(60, 9, "damaged", {1: 60}),
        wire.GivenUp(60, wire.READINGS, "", {1: 60}),
        wire.GivenUp(60, wire.READINGS, "r" * 65, {1: 60}),
        wire.GivenUp(61, wire.READINGS, "damaged", {1: 60}),
    ],
)
def test_a_gap_that_cannot_be_is_refused(part: wire.GivenUp) -> None:
    with pytest.raises(WireError):
        wire.decode_gap(wire.encode_gap(SEALING, 1, [part]))
