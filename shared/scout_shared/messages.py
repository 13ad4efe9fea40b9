"""The small JSON messages beside the segments: receipt (to the device), hello and status (from it).

Unknown fields are ignored, so that either end may be newer. Receipts flow back; nothing else does.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scout_shared.errors import WireError
from scout_shared.wire import MAX_OFFSET_MS

NONCE_BYTES = 8
"""Of an opening."""
MAX_BOOTS = 64
"""More in one hello are not read."""
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What decoding foreign JSON may raise; the last two: Infinity, and very many brackets."""


class Opening(NamedTuple):
    """One process that wrote a buffer file."""

    nonce: bytes
    """8 random bytes, drawn when it opened the file."""
    first_sequence: int
    """All below stood in the file before; all from here on is its own."""


class Fork(NamedTuple):
    """The hub's word to one copy of a buffer file: another copy goes on with this stream."""

    writer: bytes
    """Nonce of the copy that is meant; the others take no notice."""
    first_sequence: int
    """What it holds from here on is not common to the copies: it needs an epoch of its own."""
    opening: bytes
    """Nonce of its first opening that is not common; names the new epoch together with the old one,
    so that copies of this copy come to the same."""

    def epoch_after(self, epoch: bytes) -> bytes:
        """The epoch of its own, the same wherever it is computed."""
        place = epoch + self.opening + self.first_sequence.to_bytes(8, "big")
        return hashlib.blake2b(place, digest_size=16, person=b"scout fork").digest()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the hub holds for one stream, committed: published only after the commit.

    The device may delete what it covers and nothing else. Safe to repeat and to reorder: a device
    keeps the highest watermark it has seen.
    """

    epoch: bytes
    """128-bit identity of the device's buffer file."""
    watermark: int
    """All sequences 1..watermark are committed."""
    ranges: tuple[tuple[int, int], ...] = ()
    """Committed ranges above the watermark, inclusive, ascending."""
    credit: int = 8
    """Segments the device may have in flight; 0 means: pause, ask again by hello."""
    hub_time_ms: int = 0
    """Hub's wall clock, ms UTC."""
    ledger_version: int = 0
    """Newest ledger version that the hub has stored."""
    writer: bytes = b""
    """Nonce of the opening that the hub takes this stream from; empty: it does not tell copies
    apart. A receipt that names another one says nothing about what this copy accepted."""
    fork: Fork | None = None
    """Then the rest of the receipt covers nothing."""

    def encode(self) -> bytes:
        """JSON for ``dn/ack/{epoch}``."""
        message: dict[str, Any] = {
            "v": 1,
            "e": self.epoch.hex(),
            "a": self.watermark,
            "r": [list(r) for r in self.ranges],
            "c": self.credit,
            "t": self.hub_time_ms,
            "l": self.ledger_version,
        }
        if self.writer:
            message["w"] = self.writer.hex()
        if self.fork is not None:
            writer, first, opening = self.fork
            message["f"] = [writer.hex(), first, opening.hex()]
        return json.dumps(message, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Receipt:
        """Raises WireError (``bad_receipt``)."""
        try:
            m = json.loads(payload)
            return cls(
                epoch=_epoch(m["e"]),
                watermark=_count(m["a"]),
                ranges=tuple(_range(lo, hi) for lo, hi in m.get("r", ())),
                credit=_count(m.get("c", 1)),
                hub_time_ms=int(m.get("t", 0)),
                ledger_version=_count(m.get("l", 0)),
                writer=bytes.fromhex(m.get("w", "")),
                fork=None if m.get("f") is None else _fork(m["f"]),
            )
        except _UNREADABLE as error:
            raise WireError("bad_receipt", f"receipt {payload[:80]!r} cannot be read") from error


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """How many records of a kind the device accepted for one business day, in all, so far."""

    day: int
    """Days since 1970-01-01 in the store's zone, or ``zones.UNKNOWN_DAY``."""
    kind: int
    """``wire.READINGS`` or ``wire.DOCUMENTS``."""
    records: int
    """Cumulative within the epoch, so that storing it twice changes nothing."""


@dataclass(frozen=True, slots=True)
class BootClock:
    """A boot in which the wall clock became known: how far it is from the monotonic one."""

    boot_id: bytes
    offset_ms: int
    """Right wall clock (UTC) minus monotonic clock."""
    uncertainty_ms: int
    """By how much a time from the start of the boot may be off: the monotonic clock drifts."""
    known_ms: int
    """Wall clock when it became known."""

    def fields(self) -> list[Any]:
        """As JSON values."""
        return [self.boot_id.hex(), self.offset_ms, self.uncertainty_ms, self.known_ms]

    @classmethod
    def of(cls, fields: Any) -> BootClock:
        """From JSON values. Raises ValueError or TypeError."""
        boot, offset_ms, uncertainty_ms, known_ms = fields
        if abs(int(offset_ms)) > MAX_OFFSET_MS or not 0 <= int(known_ms) < MAX_OFFSET_MS:
            raise ValueError(f"boot clock {str(fields)[:80]} cannot be")
        return cls(_epoch(boot), int(offset_ms), _count(uncertainty_ms), int(known_ms))


@dataclass(frozen=True, slots=True)
class Hello:
    """A device introduces itself on connect and then every heartbeat.

    Asks for a receipt; carries the ledger (produced counts) that the reconciliation starts from.
    """

    epoch: bytes
    boot_id: str
    zone: str
    """IANA zone of the store: business days are days in it."""
    version: str
    acked: int
    """Highest watermark the device has seen in a receipt of this epoch."""
    next_sequence: int
    """Sequence that the next sealed record will get."""
    unsealed_records: int
    """Records accepted and not sealed yet: they have no sequence."""
    buffer_bytes: int
    """Size of the buffer file with its WAL."""
    oldest_unsent_ms: int | None
    """Wall clock (device, ms UTC) of acceptance of the oldest record without receipt."""
    device_time_ms: int
    interval_seconds: float
    """The next hello follows within this time; three missed ones make a device late."""
    ledger_version: int = 0
    """Version up to which ``ledger`` completes what the hub has acknowledged."""
    ledger: tuple[LedgerEntry, ...] = ()
    clock_synced: bool | None = None
    """Whether the kernel says that the clock is synchronised; None where it cannot be asked."""
    counters: dict[str, int] = field(default_factory=dict)
    """Counted events since start, e.g. ``refused_records``, ``reconnects``."""
    recovered: bool = False
    """Beside the device's own hello: of what a damaged buffer file held, or of an export."""
    damaged_files: int = 0
    """Damaged buffer files that lie on the device: someone must look at its storage."""
    python: str = ""
    """Version of Python; empty: an older agent."""
    system: str = ""
    """Operating system and machine, e.g. ``Linux 6.1.0 armv7l``."""
    config_version: int = 0
    """Of the hub's configuration that is in force; 0: none, the settings file alone."""
    lineage: tuple[Opening, ...] = ()
    """The openings of the buffer file, newest last: tells copies of a file apart. Empty: the
    device does not say, or speaks of what nobody writes to any more."""
    boots: tuple[BootClock, ...] = ()
    """Boots whose clock became known, oldest first: what was stamped in them can be repaired."""

    def encode(self) -> bytes:
        """JSON for ``up/h``."""
        message = {
            "v": 1,
            "epoch": self.epoch.hex(),
            "boot": self.boot_id,
            "zone": self.zone,
            "version": self.version,
            "acked": self.acked,
            "next": self.next_sequence,
            "unsealed": self.unsealed_records,
            "buffer_bytes": self.buffer_bytes,
            "oldest_unsent_ms": self.oldest_unsent_ms,
            "device_time_ms": self.device_time_ms,
            "interval_seconds": self.interval_seconds,
            "ledger_version": self.ledger_version,
            "ledger": [[e.day, e.kind, e.records] for e in self.ledger],
            "clock_synced": self.clock_synced,
            "counters": self.counters,
            "recovered": self.recovered,
            "damaged_files": self.damaged_files,
            "python": self.python,
            "system": self.system,
            "config_version": self.config_version,
            "lineage": [[nonce.hex(), first] for nonce, first in self.lineage],
            "boots": [boot.fields() for boot in self.boots],
        }
        return json.dumps(message, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        """Raises WireError (``bad_hello``)."""
        try:
            m = json.loads(payload)
            oldest = m.get("oldest_unsent_ms")
            return cls(
                epoch=_epoch(m["epoch"]),
                boot_id=str(m["boot"]),
                zone=str(m["zone"]),
                version=str(m["version"]),
                acked=_count(m["acked"]),
                next_sequence=_count(m["next"]),
                unsealed_records=_count(m["unsealed"]),
                buffer_bytes=_count(m["buffer_bytes"]),
                oldest_unsent_ms=None if oldest is None else int(oldest),
                device_time_ms=int(m["device_time_ms"]),
                interval_seconds=_duration(m["interval_seconds"]),
                ledger_version=_count(m.get("ledger_version", 0)),
                ledger=tuple(
                    LedgerEntry(int(d), int(k), int(n)) for d, k, n in m.get("ledger", ())
                ),
                clock_synced=None if m.get("clock_synced") is None else bool(m["clock_synced"]),
                counters={str(k): int(v) for k, v in m.get("counters", {}).items()},
                recovered=bool(m.get("recovered", False)),
                damaged_files=_count(m.get("damaged_files", 0)),
                python=str(m.get("python", ""))[:100],
                system=str(m.get("system", ""))[:200],
                config_version=_count(m.get("config_version", 0)),
                lineage=tuple(map(_opening, m.get("lineage", ()))),
                boots=tuple(BootClock.of(fields) for fields in m.get("boots", ())[:MAX_BOOTS]),
            )
        except _UNREADABLE as error:
            raise WireError("bad_hello", f"hello {payload[:80]!r} cannot be read") from error


def status_message(online: bool, boot_id: str, time_ms: int | None) -> bytes:
    """Payload of ``up/s``. The will carries no time: when it will be sent is not known then."""
    message: dict[str, Any] = {"v": 1, "online": online, "boot": boot_id, "time_ms": time_ms}
    return json.dumps(message, separators=(",", ":")).encode()


def _count(value: Any) -> int:
    """A whole number of 0 or more: a watermark of 1.5 must not become 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _fork(parts: Any) -> Fork:
    writer, first, opening = parts
    return Fork(*_opening((writer, first)), _opening((opening, first)).nonce)


def _opening(pair: Any) -> Opening:
    nonce, first = pair
    if len(opening := bytes.fromhex(nonce)) != NONCE_BYTES or _count(first) < 1:
        raise ValueError(f"{pair!r} is no opening of a buffer file")
    return Opening(opening, first)


def _range(low: Any, high: Any) -> tuple[int, int]:
    if not 1 <= _count(low) <= _count(high):
        raise ValueError(f"{low} to {high} is not a range of sequences")
    return low, high


def _duration(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{value!r} is not a duration")
    return seconds


def _epoch(text: str) -> bytes:
    epoch = bytes.fromhex(text)
    if len(epoch) != 16:
        raise ValueError(f"an epoch has 16 bytes, not {len(epoch)}")
    return epoch
