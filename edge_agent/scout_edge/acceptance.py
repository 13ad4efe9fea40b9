"""What a buffer takes: records that a segment can hold, checked before their transaction.

Not its job: storing them (``journal``), what a record means (``scout_shared.contracts``).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scout_shared import wire
from scout_shared.errors import PermanentError
from scout_shared.wire import Document, Reading

MAX_DOCUMENT_BYTES = 256 * 1024  # a segment must pass brokers that take 1 MB
MAX_METRIC_CHARACTERS = 128
MAX_TYPE_CHARACTERS = 64

_FIRST_MS, _END_MS = -62_135_596_800_000, 253_402_300_800_000  # the years 1 to 9999

Records = Sequence[Reading | Document]
"""Records of one kind."""


class KeyReusedError(PermanentError):
    """An idempotency key came again, with other records."""


class Accepted(NamedTuple):
    """What an append did."""

    records: int
    """Records that are now durable, or were already when ``duplicate``."""
    duplicate: bool
    """The key was known: these records were stored before, nothing was stored now."""


class Offset(NamedTuple):
    """Where a source goes on reading after the records it is committed with."""

    source: str
    state: str


@dataclass(frozen=True, slots=True)
class Append:
    """Checked records waiting for their transaction."""

    kind: int
    records: Records
    days: dict[int, int]
    key: str | None = None
    offset: Offset | None = None
    digest: bytes = b""
    span: wire.Span | None = None
    """Readings that were stamped in it. None: their times need no repair."""


def check_readings(readings: Sequence[Reading], known: set[str]) -> tuple[int, ...]:
    """The times of the readings, when a segment can hold each of them.

    Args:
        readings: one or more.
        known: metric names found good before; grows.

    Raises:
        PermanentError: names the first reading that no segment could hold.
    """
    try:
        names, times, values = zip(*readings, strict=True)
        array("q", times)
        array("d", values)
    except (TypeError, OverflowError) as error:
        raise PermanentError(f"a reading has a time or value that is no number: {error}") from error
    if min(times) < _FIRST_MS or max(times) >= _END_MS:
        i, bad = next((i, t) for i, t in enumerate(times) if not _FIRST_MS <= t < _END_MS)
        raise PermanentError(f"reading {i}: observed_ms {bad} is outside the years 1 to 9999")
    for name in set(names) - known:
        if not 0 < len(name) <= MAX_METRIC_CHARACTERS or not name.isprintable():
            raise PermanentError(
                f"metric {name[:80]!r} is not a name",
                f"use 1 to {MAX_METRIC_CHARACTERS} printable characters",
            )
        if len(known) < 10_000:
            known.add(name)
    return times


def check_documents(documents: Sequence[Document]) -> None:
    """Raise PermanentError naming the first document that no segment could hold."""
    for i, document in enumerate(documents):
        kind, observed_ms, day, body = document
        if not 0 < len(kind) <= MAX_TYPE_CHARACTERS or not kind.isprintable():
            raise PermanentError(f"document {i}: type {kind[:80]!r} is not a name")
        if observed_ms is not None and not _FIRST_MS <= observed_ms < _END_MS:
            raise PermanentError(
                f"document {i}: observed_ms {observed_ms} is outside the years 1 to 9999"
            )
        if not wire.UNKNOWN_DAY <= day < 2**31:
            raise PermanentError(f"document {i}: business day {day} cannot be")
        if len(body) > MAX_DOCUMENT_BYTES:
            raise PermanentError(
                f"document {i}: {len(body)} bytes are more than the {MAX_DOCUMENT_BYTES} of one",
                "split the document, or store what is large elsewhere and send its reference",
            )


def digest_of(documents: Sequence[Document]) -> bytes:
    """Tells a retry (same content) from another request under the same key."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        head = f"{document.type}\0{document.observed_ms}\0{len(document.body)}\0"
        digest.update(head.encode("utf-8", "surrogatepass") + document.body)
    return digest.digest()
