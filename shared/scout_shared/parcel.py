"""What one HTTPS request carries up, and its answer down, where MQTT is blocked: both ends use it.

    request    parts, one after the other: kind (u8), length (u32, little endian), so many bytes;
               kind 1: a hello, kind 2: a sealed segment, each as it would go by MQTT
    answer     receipts, a line of JSON each, as by MQTT; one per stream that the parts speak of

No part names a device: who speaks is whoever's password came with the request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from scout_shared import topics
from scout_shared.errors import WireError
from scout_shared.messages import Receipt

PATH = "/v1/ingest"
MEDIA_TYPE = "application/vnd.scout.parcel"
MAX_BYTES = 1 << 20
"""Of a request: four of the largest segments, or the whole window of usual ones."""
MAX_PARTS = 64

_HEAD = struct.Struct("<BI")
_KINDS = {topics.HELLO: 1, topics.DATA: 2}
_CHANNELS = {kind: channel for channel, kind in _KINDS.items()}


def cost_bytes(payload: bytes) -> int:
    """What ``payload`` takes in a request."""
    return _HEAD.size + len(payload)


def encode(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """A request of (channel, payload); channels are ``topics.HELLO`` and ``topics.DATA``."""
    return b"".join(
        _HEAD.pack(_KINDS[channel], len(payload)) + payload for channel, payload in parts
    )


def decode(body: bytes) -> list[tuple[str, bytes]]:
    """The (channel, payload) of a request; payloads are not looked at.

    Raises:
        WireError: ``bad_parcel``: nothing in it, cut off, an unknown kind, or too many parts.
    """
    parts: list[tuple[str, bytes]] = []
    place = 0
    while place < len(body):
        if len(parts) == MAX_PARTS:
            raise WireError("bad_parcel", f"a request carries at most {MAX_PARTS} parts")
        if place + _HEAD.size > len(body):
            raise WireError("bad_parcel", f"part {len(parts) + 1} is cut off in its head")
        kind, size = _HEAD.unpack_from(body, place)
        place += _HEAD.size
        if kind not in _CHANNELS:
            raise WireError("bad_parcel", f"part {len(parts) + 1} is of kind {kind}, not 1 or 2")
        if place + size > len(body):
            raise WireError(
                "bad_parcel",
                f"part {len(parts) + 1} says {size} bytes, and {len(body) - place} follow",
            )
        parts.append((_CHANNELS[kind], body[place : place + size]))
        place += size
    if not parts:
        raise WireError("bad_parcel", "the request carries nothing")
    return parts


def encode_answer(receipts: Iterable[Receipt]) -> bytes:
    """The answer with these receipts."""
    return b"".join(receipt.encode() + b"\n" for receipt in receipts)


def decode_answer(body: bytes) -> list[bytes]:
    """The receipts of an answer, each as by MQTT, to be read by ``Receipt.decode``."""
    return body.splitlines()
