"""The bytes of a metered link that may be used in a day: ``[mqtt] budget_bytes_per_day``.

Counted is every message to the hub and from it with its topic, by either way; what TCP and TLS add
is not. When the budget is used up, readings wait; sales, hellos and what declares a loss go on, and
are counted.

Bytes are claimed in the buffer file before they are used, a hundredth of the budget at a time: a
power cut wastes at most that much, and nothing is spent twice. A day is one of the store's zone, by
a clock that the kernel vouches for; while it vouches for none, it is 24 hours of running, and a
boot begins them anew with what was used before.

Not its job: what is sent when it is used up (``schedule``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from scout_edge import clock
from scout_edge.buffer import Buffer, Offset
from scout_shared import logs
from scout_shared.errors import TransientError

STATE = "@budget"
"""Under which it stands among the states of the sources: no source can have this name."""
MESSAGE_BYTES = 16
"""What MQTT adds to a topic and a payload, with the PUBACK."""
_CLAIMS = 100  # of a budget: each is a commit
_DAY_MS = 24 * 3600 * 1000

log = logs.get("forwarder")


class Allowance:
    """The budget of one device; all its connections count in one. Use it in the event loop.

    Args:
        buffer: the device's own, where the count is kept.
        bytes_per_day: 0: no limit, and nothing is counted.
    """

    def __init__(self, buffer: Buffer, bytes_per_day: int) -> None:
        self.bytes_per_day = bytes_per_day
        self.used = 0
        """Bytes in the present day."""
        self._buffer = buffer
        self._claiming = asyncio.Lock()
        self._day: int | None = None
        """In the store's zone; None: it began by no known clock."""
        self._boot = clock.boot_id().hex()
        self._since_ms = clock.monotonic_ms()
        """Of this boot, when the count began in it."""
        if bytes_per_day and (state := buffer.offset(STATE)) is not None:
            kept = json.loads(state)
            self.used, self._day = kept["bytes"], kept["day"]
            if kept["boot"] == self._boot:
                self._since_ms = kept["since_ms"]
        self._claimed = self.used

    @property
    def used_up(self) -> bool:
        """Whether only what cannot wait may go."""
        return 0 < self.bytes_per_day <= self.used

    async def spend(self, size: int) -> None:
        """Before a message of so many bytes, topic included, is sent."""
        if not self.bytes_per_day:
            return
        self.took(size)
        async with self._claiming:
            if self.used > self._claimed:
                self._claimed = self.used + self.bytes_per_day // _CLAIMS
                await asyncio.to_thread(self._keep, self._state(self._claimed))

    def took(self, size: int) -> None:
        """A message of so many bytes has come."""
        if not self.bytes_per_day:
            return
        self._turn()
        before, self.used = self.used, self.used + size + MESSAGE_BYTES
        if before < self.bytes_per_day <= self.used:
            log.warning("budget.used_up", bytes_per_day=self.bytes_per_day)

    def look(self) -> bool:
        """Begin a new day if one has begun; whether the budget is used up."""
        if self.bytes_per_day:
            self._turn()
        return self.used_up

    def keep(self) -> None:
        """Write down what was used, at the end; what was claimed beyond it is free again."""
        if self.used != self._claimed:
            self._keep(self._state(self.used))

    def _turn(self) -> None:
        today = self._buffer.calendar.day(clock.wall_ms()) if clock.synced() else None
        up_ms = clock.monotonic_ms()
        if today is not None and self._day is None:
            self._day = today  # it has become known: the count goes on
        elif up_ms - self._since_ms >= _DAY_MS if today is None else today != self._day:
            if self.used_up:
                log.info("budget.renewed", used_bytes=self.used)
            self._day, self._since_ms = today, up_ms
            self.used = self._claimed = 0

    def _state(self, used: int) -> str:
        return json.dumps(
            {"day": self._day, "boot": self._boot, "since_ms": self._since_ms, "bytes": used}
        )

    def _keep(self, state: str) -> None:
        with contextlib.suppress(TransientError):  # a full disk: the count goes on in memory
            self._buffer.append_readings((), offset=Offset(STATE, state))
