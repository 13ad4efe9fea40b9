"""Which way to the hub is taken next: MQTT, or HTTPS while MQTT brings no receipt.

    MQTT ── no receipt for fallback_after_seconds ──► HTTPS ── retry_mqtt_seconds ──► MQTT
      ▲                                                 ▲                              │
      └──────────── a receipt came ─────────────────────┼──────────────────────────────┤
                                                        └── none within the probe ◄────┘

One way at a time. Where HTTPS fails too, both are tried in turns. Times are those of the event
loop. Not its job: the connections (``forwarder``, ``link_https``).
"""

from __future__ import annotations

import asyncio
import math

from scout_edge.config import HubSettings

PROBE_SECONDS = 30.0
"""How long a connection by MQTT may bring no receipt, while HTTPS is the way."""


class Ways:
    """Make and use it in the event loop."""

    def __init__(self, hub: HubSettings) -> None:
        self.hub = hub
        self.fallback = False
        """The present connection, or the last one, is by HTTPS."""
        self._receipt_at: float | None = None
        """When MQTT brought the last receipt; first: when the first way was chosen."""
        self._started_at = -math.inf
        self._mqtt_at = -math.inf
        """When MQTT is tried again."""
        self._blocked = False

    def choose(self) -> None:
        """Decide the way of the next connection."""
        now = _now()
        self._started_at = now
        if self._receipt_at is None:
            self._receipt_at = now
        self.fallback = self._due(now) and now < self._mqtt_at

    def heard(self) -> None:
        """The present connection brought a receipt."""
        if not self.fallback:
            self._receipt_at, self._blocked = _now(), False

    def ended(self, *, heard: bool) -> bool:
        """The connection ended. True: MQTT has just come to count as blocked, so go on at once."""
        now = _now()
        if self.fallback:
            if not heard:
                self._mqtt_at = now
            return False
        if not self._due(now):
            return False
        self._mqtt_at = now + self.hub.retry_mqtt_seconds
        first, self._blocked = not self._blocked, True
        return first

    def over(self) -> str:
        """Why the present connection shall end, though it stands; empty: it shall not."""
        now = _now()
        if self.fallback:
            return "MQTT is tried again" if now >= self._mqtt_at else ""
        probe = min(PROBE_SECONDS, self.hub.fallback_after_seconds)
        if self._due(now) and now >= self._started_at + probe:
            return "no receipt came by MQTT"
        return ""

    def seconds_left(self) -> float:
        """Until MQTT counts as blocked; infinite when it does already, or never will."""
        if self._receipt_at is None or not self.hub.fallback or self._blocked:
            return math.inf
        return max(0.0, self._receipt_at + self.hub.fallback_after_seconds - _now())

    def _due(self, now: float) -> bool:
        assert self._receipt_at is not None
        return self.hub.fallback and now >= self._receipt_at + self.hub.fallback_after_seconds


def _now() -> float:
    return asyncio.get_running_loop().time()
