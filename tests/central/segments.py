"""Segments for the ingest tests: sealed by the wire's own encoder, damaged on purpose."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from scout_central.ingest import Outcome
from scout_central.ingest.arrivals import Arrival, Parsed, parse
from scout_shared import topics, wire
from scout_shared.messages import Hello, LedgerEntry

START_MS = 1_483_271_606_000
DAY = START_MS // 86_400_000
EPOCH, STORE, DEVICE = b"E" * 16, "367", "device-1"
LANDED, REDELIVERED = Outcome.LANDED, Outcome.REDELIVERED
QUARANTINED, REFUSED = Outcome.QUARANTINED, Outcome.REFUSED

FAILING_COMMIT = """
create function fail() returns trigger language plpgsql as
$$ begin raise exception 'the disk is full' using errcode = '53100'; end $$;
create constraint trigger fail after insert on metadata.segments
deferrable initially deferred for each row execute function fail();
"""
"""Everything in the transaction works; only its commit does not."""


def sealing(epoch: bytes = EPOCH) -> wire.Sealing:
    return wire.Sealing(epoch, b"b" * 16, "America/New_York", wire.CLOCK_SYNCED, START_MS, 7)


def readings(first: int, n: int, *, epoch: bytes = EPOCH, salt: float = 0.0) -> bytes:
    """``n`` readings whose value tells their sequence."""
    made = [
        wire.Reading("fridge.1.celsius", START_MS + i, i + salt) for i in range(first, first + n)
    ]
    return wire.encode_readings(sealing(epoch), first, made, {DAY: n})


def documents(first: int, bodies: Sequence[bytes], *, kind: str = "transaction") -> bytes:
    made = [wire.Document(kind, START_MS, DAY, body) for body in bodies]
    return wire.encode_documents(sealing(), first, made)


def gap(first: int, *parts: wire.GivenUp, epoch: bytes = EPOCH) -> bytes:
    """A declaration that the device gave up ``parts``, one after the other."""
    return wire.encode_gap(sealing(epoch), first, parts)


def given_up(n: int, *, kind: int = wire.READINGS, reason: str = "damaged") -> wire.GivenUp:
    return wire.GivenUp(n, kind, reason, {DAY: n})


def hello(
    ledger: Sequence[tuple[int, int, int]] = (),
    *,
    version: int = 0,
    epoch: bytes = EPOCH,
    zone: str = "America/New_York",
) -> bytes:
    return Hello(
        epoch=epoch,
        boot_id="boot-1",
        zone=zone,
        version="7.1.0",
        acked=0,
        next_sequence=1,
        unsealed_records=0,
        buffer_bytes=4096,
        oldest_unsent_ms=None,
        device_time_ms=START_MS,
        interval_seconds=15.0,
        ledger_version=version,
        ledger=tuple(LedgerEntry(*entry) for entry in ledger),
    ).encode()


def damaged(segment: bytes, at: int = -1) -> bytes:
    """One byte of the body flipped: the header still holds, the body's CRC does not."""
    at = wire.HEADER.size + at % (len(segment) - wire.HEADER.size)
    return segment[:at] + bytes([segment[at] ^ 0x40]) + segment[at + 1 :]


def reframed(segment: bytes, raw: bytes) -> bytes:
    """The segment with another body and right checksums, as a buggy or hostile device seals it."""
    fields = list(wire.HEADER.unpack_from(segment))
    fields[3] = wire.CODEC_NONE
    fields[10] = len(raw)
    # the fields end with: body bytes, body CRC, header CRC
    fields[-3:] = [len(raw), zlib.crc32(raw), 0]
    header = wire.HEADER.pack(*fields)[:-4]
    return header + struct.pack("<I", zlib.crc32(header)) + raw


def raw_body(segment: bytes) -> bytes:
    body = segment[wire.HEADER.size :]
    return zlib.decompress(body) if segment[4] == wire.CODEC_ZLIB else body


def data(segment: bytes, *, device: str = DEVICE, store: str = STORE) -> Parsed:
    return parse(Arrival(store, device, topics.DATA, segment))


def greeting(payload: bytes, *, device: str = DEVICE, store: str = STORE) -> Parsed:
    return parse(Arrival(store, device, topics.HELLO, payload))
