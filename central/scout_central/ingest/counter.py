"""The ingest's second door: what comes by HTTP is committed as by MQTT, and receipted after it.

One connection and one ``Committer``, one request at a time: a few devices behind closed networks
need it, not the chain. More than MAX_WAITING at once are sent away. For many threads.
Not its job: HTTP (``scout_central.api.ingest``), what a batch becomes (``committer``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from scout_central import database
from scout_central.fleet import credentials
from scout_central.fleet.credentials import Admitted
from scout_central.ingest import meters
from scout_central.ingest.arrivals import Arrival, parse
from scout_central.ingest.committer import Committer
from scout_central.ingest.receipts import MAX_CREDIT
from scout_shared.errors import TransientError
from scout_shared.messages import Receipt

MAX_WAITING = 4
_CLOSE_SECONDS = 2.0


class BusyError(TransientError):
    """As many requests as may be are being committed."""


class Counter:
    """Where devices hand in what they have."""

    def __init__(self, dsn: str, *, enrolment: str = "open") -> None:
        """``enrolment``: as for ``Committer``."""
        self._dsn = dsn
        self._committer = Committer(dsn, enrolment=enrolment)
        self._committing = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_WAITING)
        self._asking = threading.Lock()
        self._connection: database.Connection | None = None

    def close(self) -> None:
        """Give both connections back. Safe to repeat."""
        # A thread that hangs with a lock in a system call must not hold the hub's stop up.
        if self._committing.acquire(timeout=_CLOSE_SECONDS):
            self._committer.close()
            self._committing.release()
        if self._asking.acquire(timeout=_CLOSE_SECONDS):
            self._drop()
            self._asking.release()

    def admit(self, device_id: str, password: str) -> Admitted | None:
        """The device with this password; None as ``credentials.check``. Raises TransientError."""
        with self._asking:
            try:
                with database.translated():
                    if self._connection is None or self._connection.closed:
                        self._connection = database.connect(
                            self._dsn,
                            application="scout-counter",
                            autocommit=True,
                            keepalives_idle=10,
                            tcp_user_timeout=10_000,
                        )
                    return credentials.check(self._connection, device_id, password)
            except TransientError:
                self._drop()
                raise

    def deliver(self, device: Admitted, parts: Sequence[tuple[str, bytes]]) -> list[Receipt]:
        """Commit (channel, payload) of ``device``; the receipts for it. Safe to repeat.

        Raises:
            BusyError: not taken in; later.
            TransientError, PermanentError: as ``Committer.commit_isolating``: no receipt.
        """
        batch = [
            parse(Arrival(device.store_id, device.device_id, channel, payload))
            for channel, payload in parts
        ]
        with self._place(), self._committing:
            started = time.monotonic()
            committed = self._committer.commit_isolating(batch)
        meters.count(committed, time.monotonic() - started)
        now_ms = time.time_ns() // 1_000_000
        # A device that waits for an operator is heard, and told to keep what it has.
        return [
            replace(r.receipt, credit=0 if r.held else MAX_CREDIT, hub_time_ms=now_ms)
            for r in committed.receipts
        ]

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{MAX_WAITING} requests are being committed already", "try again soon")
        try:
            yield
        finally:
            self._places.release()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
