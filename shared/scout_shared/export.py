"""A file that carries segments by hand: from a device without a link to the hub, on a USB stick.

    line 1       JSON: {"scout_export": 1, "device_id", "store_id", "hellos": [hello, ...]}
    then         segments as they are sealed, one after the other; each says its length and has its
                 own checksums

Nothing in it is new: the same segments may also come by MQTT, before or after, and a file may be
imported twice; the hub knows them by their identity. A hello carries the count of what the device
accepted, so the hub's account balances without a link too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from scout_shared import topics, wire
from scout_shared.errors import ConfigError, WireError

_VERSION = 1
_MAX_HEAD_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExportHead:
    """Whose segments a file holds."""

    device_id: str
    store_id: str
    hellos: tuple[bytes, ...]
    """One per epoch, as it would go by MQTT."""


def write_export(file: BinaryIO, head: ExportHead, segments: Iterable[bytes]) -> int:
    """Write an export; returns the number of segments. Raises OSError."""
    line: dict[str, Any] = {
        "scout_export": _VERSION,
        "device_id": head.device_id,
        "store_id": head.store_id,
        "hellos": [json.loads(hello) for hello in head.hellos],
    }
    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    count = 0
    for segment in segments:
        file.write(segment)
        count += 1
    return count


def read_head(file: BinaryIO) -> ExportHead:
    """The first line of an export.

    Raises:
        WireError: ``bad_export``: not such a file, or of another version.
    """
    line = file.readline(_MAX_HEAD_BYTES)
    try:
        head = json.loads(line)
        version = head["scout_export"]
        store_id = topics.check_name("store", head["store_id"])
        device_id = topics.check_name("device", head["device_id"])
        hellos = tuple(json.dumps(hello).encode() for hello in head["hellos"])
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise WireError("bad_export", f"the file does not begin like an export: {error}") from error
    if version != _VERSION:
        raise WireError(
            "bad_export", f"export version {version!r} is not known, this is {_VERSION}"
        )
    return ExportHead(device_id, store_id, hellos)


def read_segments(file: BinaryIO) -> Iterator[bytes]:
    """The segments after the head, each whole; a damaged body comes as it is.

    Raises:
        WireError: the file is cut off, or damaged where a segment begins; those before were given.
    """
    number = 0
    while header_bytes := file.read(wire.HEADER.size):
        number += 1
        try:
            header = wire.decode_header(header_bytes)
        except WireError as error:
            raise WireError(error.reason, f"segment {number}: {error.message}") from error
        body = file.read(header.body_bytes)
        if len(body) < header.body_bytes:
            raise WireError("truncated", f"segment {number} is cut off: the copy is not whole")
        yield header_bytes + body
