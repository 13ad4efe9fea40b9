"""Segments that come as bytes (HTTP body, file on a USB stick) take the same way as by MQTT."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from scout_central.ingest.arrivals import Arrival, parse
from scout_central.ingest.committer import Committed, Committer
from scout_central.ingest.ledger import StreamReceipt
from scout_shared import topics

BATCH_SEGMENTS = 100


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
