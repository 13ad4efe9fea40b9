"""Receipts with their credit: how much each device may have in flight.

Invariant: a receipt says only what a commit made durable. While the database is away, the last
receipt of each active stream is repeated with credit 0; when it is back, with credit again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from scout_central.ingest import meters
from scout_central.ingest.ledger import StreamReceipt
from scout_shared import topics
from scout_shared.messages import Receipt

MAX_CREDIT = 16
"""More segments in flight gain nothing (measured: windows above 8 to 16)."""
SEGMENT_BYTES = 16 * 1024
"""What one segment in flight is counted as: devices seal at about this size."""
ACTIVE_SECONDS = 60.0
_MAX_ACTIVE = 20_000

Publish = Callable[[str, bytes], bool]
"""(topic, payload) → whether it was handed to a connected broker."""
_Address = tuple[str, str, bytes]


class Receipts:
    """Sends receipts through ``publish``; for many threads."""

    def __init__(self, publish: Publish, free_ratio: Callable[[], tuple[int, int]]) -> None:
        """``free_ratio``: free bytes and all bytes of the intake."""
        self._publish = publish
        self._room = free_ratio
        self._lock = threading.Lock()
        self._active: OrderedDict[_Address, tuple[float, Receipt]] = OrderedDict()
        self._away = False

    def send(self, receipts: Iterable[StreamReceipt]) -> None:
        """Publish what a commit made durable; call it after that commit, and only then."""
        now = time.monotonic()
        with self._lock:
            for r in receipts:
                address = (r.store_id, r.device_id, r.receipt.epoch)
                if r.held or r.receipt.fork is not None:  # a word to one copy is no state either
                    self._send(address, r.receipt, credit=0)
                    continue
                self._active.pop(address, None)
                self._active[address] = (now, r.receipt)
                self._forget(now)
                self._send(address, r.receipt)

    def pause(self) -> None:
        """The database is away: active devices get credit 0. Safe to repeat."""
        with self._lock:
            if not self._away:
                self._away = True
                self._repeat()

    def resume(self) -> None:
        """The database is back. Safe to repeat."""
        with self._lock:
            if self._away:
                self._away = False
                self._repeat()

    def credit(self) -> int:
        """Segments that each active device may have in flight now: 0 to MAX_CREDIT.

        The free room of the intake, shared by the active devices. With more devices than room for
        one segment each, one is still given while half the intake is free: not all send at once.
        """
        if self._away:
            return 0
        free_bytes, all_bytes = self._room()
        share = free_bytes // SEGMENT_BYTES // max(1, len(self._active))
        return min(MAX_CREDIT, max(share, 1 if 2 * free_bytes > all_bytes else 0))

    def _repeat(self) -> None:
        for address, (_, receipt) in self._active.items():
            self._send(address, receipt)

    def _send(self, address: _Address, receipt: Receipt, credit: int | None = None) -> None:
        store_id, device_id, epoch = address
        payload = replace(
            receipt,
            credit=self.credit() if credit is None else credit,
            hub_time_ms=time.time_ns() // 1_000_000,
        ).encode()
        if self._publish(topics.receipt(store_id, device_id, epoch), payload):
            meters.RECEIPTS.inc()

    def _forget(self, now: float) -> None:
        while self._active:
            seen, _ = next(iter(self._active.values()))
            # Silent streams need no credit; while the database is away nobody can be heard.
            if len(self._active) <= _MAX_ACTIVE and now - seen < ACTIVE_SECONDS:
                return
            self._active.popitem(last=False)
