"""A queue bounded in bytes between the network and the committers; what does not fit is dropped.

The bytes of an arrival count until its batch is committed, so the bound covers all that the ingest
holds of them. Dropping is safe: nothing was receipted, the device sends it again.
"""

from __future__ import annotations

import threading
from collections import deque

from scout_central.ingest.arrivals import Arrival

_OVERHEAD_BYTES = 500
"""What an arrival costs beside its payload: object, strings, queue (sys.getsizeof)."""


class Intake:
    """Holds arrivals of at most ``limit_bytes``; for many threads."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._arrivals: deque[Arrival] = deque()
        self._used = 0
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """Bytes of what waits and of what was taken and not released."""
        return self._used

    def offer(self, arrival: Arrival) -> bool:
        """Take in ``arrival``, or answer False when there is no room: it is dropped."""
        cost = cost_bytes(arrival)
        with self._changed:
            if self._used + cost > self.limit_bytes:
                return False
            self._used += cost
            self._arrivals.append(arrival)
            self._changed.notify()
            return True

    def take(self, timeout_seconds: float) -> Arrival | None:
        """The oldest arrival, None if none came in time. Release its cost when it is done with."""
        with self._changed:
            if not self._arrivals:
                self._changed.wait(timeout_seconds)
            return self._arrivals.popleft() if self._arrivals else None

    def release(self, taken_bytes: int) -> None:
        """Give back the cost of what was taken."""
        with self._changed:
            self._used -= taken_bytes


def cost_bytes(arrival: Arrival) -> int:
    """What ``arrival`` counts against the limit."""
    return len(arrival.payload) + _OVERHEAD_BYTES
