"""The boots of this device whose clock became known, and the jumps of its wall clock.

A device without a battery clock starts at an old time and learns the right one later, or never.
``ClockWatch.look`` compares the clocks; once the kernel says that the wall clock is synchronised,
the offset of this boot's wall clock to its monotonic clock is known to be right. It is kept in the
buffer file, beside the sources' own states, so that a power cut before the next hello does not
forget it, and each hello tells it: with it the hub repairs what was stamped in that boot before.

Nothing that was accepted is changed here: a boot that never learned the time stays marked.
Not its job: stamping (``clock``), repairing (the hub).
"""

from __future__ import annotations

import json
from collections.abc import Callable

from scout_edge import clock
from scout_edge.buffer import Buffer, Offset
from scout_shared import logs
from scout_shared.messages import BootClock

JUMP_MS = 2_000
"""A change of the wall clock against the monotonic one that counts as a jump."""
LOOK_SECONDS = 5.0
BOOTS_KEPT = 32
"""Newest first to be kept. Each was online once to become known, so few wait for a hello."""
DRIFT_PARTS = 10_000
"""A crystal may be off by 1 part in 10,000 (100 ppm) while nobody corrects it."""
STATE = "@clock"
"""Under which they stand among the states of the sources: no source can have this name."""

log = logs.get("clock")


class ClockWatch:
    """Looks at the clocks of one device. Use from one thread.

    Args:
        jumped: is called at each jump.
    """

    def __init__(self, buffer: Buffer, jumped: Callable[[], None]) -> None:
        self._buffer = buffer
        self._jumped = jumped
        self._offset_ms: int | None = None
        self._boots = list(known(buffer))

    def look(self) -> None:
        """Count a jump since the last look; keep the offset once the clock is synchronised.

        Raises TransientError: the buffer cannot be written; look again.
        """
        # Asked first: a clock that is set right in between is seen as synchronised next time.
        is_synced, offset_ms = clock.synced(), clock.offset_ms()
        before, self._offset_ms = self._offset_ms, offset_ms
        if before is not None and abs(offset_ms - before) > JUMP_MS:
            log.warning("clock.jumped", jump_seconds=(offset_ms - before) / 1000, synced=is_synced)
            self._jumped()
        if is_synced:
            self._learn(offset_ms)

    def _learn(self, offset_ms: int) -> None:
        boot_id, up_ms = clock.boot_id(), clock.monotonic_ms()
        uncertainty_ms = max(1, up_ms // DRIFT_PARTS)
        for boot in self._boots:
            if boot.boot_id == boot_id and abs(boot.offset_ms - offset_ms) <= JUMP_MS:
                return
        found = BootClock(boot_id, offset_ms, uncertainty_ms, up_ms + offset_ms)
        others = [boot for boot in self._boots if boot.boot_id != boot_id]
        boots = [*others, found][-BOOTS_KEPT:]
        state = json.dumps([boot.fields() for boot in boots], separators=(",", ":"))
        self._buffer.append_readings((), offset=Offset(STATE, state))
        self._boots = boots
        log.info("clock.learned", boot_id=boot_id.hex(), uncertainty_seconds=uncertainty_ms / 1000)


def known(buffer: Buffer) -> tuple[BootClock, ...]:
    """What is kept in the file, oldest first. Raises TransientError."""
    return decode(buffer.offset(STATE))


def decode(state: str | None) -> tuple[BootClock, ...]:
    """Of what stands in the file under STATE."""
    return () if state is None else tuple(BootClock.of(row) for row in json.loads(state))
