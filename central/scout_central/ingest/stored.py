"""Segments that come as bytes (HTTP body, file on a USB stick) take the same way as by MQTT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from scout_central.ingest.arrivals import Arrival, parse
from scout_central.ingest.committer import Committed, Committer
from scout_central.ingest.ledger import StreamReceipt
from scout_shared import topics
from scout_shared.errors import WireError
from scout_shared.export import read_head, read_segments

BATCH_SEGMENTS = 100


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an export file."""

    device_id: str
    store_id: str
    outcomes: dict[str, int]
    """Segments by outcome."""
    rows: int
    damage: str
    """Why the rest of the file cannot be read; empty: all of it was."""


def import_export(committer: Committer, file: BinaryIO) -> Imported:
    """Commit what ``scout-edge buffer export`` wrote; safe to repeat, before or after MQTT.

    Raises:
        WireError: it is no export; nothing was stored.
        TransientError, PermanentError: as ``ingest_segments``.
    """
    head = read_head(file)
    damage: list[str] = []

    def segments() -> Iterator[bytes]:
        try:
            yield from read_segments(file)
        except WireError as error:
            damage.append(error.message)

    # First: the account then says at once what is still missing.
    committer.commit_isolating(
        [parse(Arrival(head.store_id, head.device_id, topics.HELLO, h)) for h in head.hellos]
    )
    done = ingest_segments(committer, head.store_id, head.device_id, segments())
    outcomes = Counter(str(outcome) for outcome in done.outcomes)
    return Imported(head.device_id, head.store_id, dict(outcomes), done.rows, "".join(damage))


def ingest_segments(
    committer: Committer, store_id: str, device_id: str, segments: Iterable[bytes]
) -> Committed:
    """Commit ``segments`` in transactions of 100; safe to repeat, as by any other way.

    Returns:
        the outcomes in order, and the last receipt of each stream, for the caller to pass on.

    Raises:
        ConfigError: a name that cannot stand in a topic.
        TransientError, PermanentError: as ``Committer.commit_isolating``; earlier hundreds stand.
    """
    topics.check_name("store", store_id)
    topics.check_name("device", device_id)
    receipts: dict[bytes, StreamReceipt] = {}
    total = Committed([], [], 0, 0)
    remaining = iter(segments)
    while chunk := list(islice(remaining, BATCH_SEGMENTS)):
        part = committer.commit_isolating(
            [parse(Arrival(store_id, device_id, topics.DATA, segment)) for segment in chunk]
        )
        receipts.update({r.receipt.epoch: r for r in part.receipts})
        total = Committed(
            list(receipts.values()),
            total.outcomes + part.outcomes,
            total.rows + part.rows,
            total.quarantined_records + part.quarantined_records,
        )
    return total
