"""The device's clocks: wall, monotonic, boot id, and whether the kernel trusts the wall clock.

A source that must stamp a reading itself does it with ``stamp``, which says how far the stamp can
be trusted: a wall clock that the kernel does not vouch for is told by its offset to the monotonic
clock of this boot, so that the hub can repair the time once the right offset is known (``boots``).
Never used for order or dedup, and never guessed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from scout_shared import wire

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMEX_BYTES = 512  # struct timex is 208 bytes on 64-bit Linux; room for any layout
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_SAME_SPAN_MS = 20  # two clocks read one after the other: a busy device may come between them
_STATES = {None: wire.CLOCK_UNKNOWN, False: wire.CLOCK_UNSYNCED, True: wire.CLOCK_SYNCED}


class Stamp(NamedTuple):
    """A moment by the device's wall clock."""

    wall_ms: int
    span: wire.Span | None
    """Which doubtful clock it is of; None: the kernel vouches for it."""


def wall_ms() -> int:
    """Device wall clock, ms UTC. May be wrong and may jump."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds since boot, time asleep included; never jumps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return time.monotonic_ns() // 1_000_000


def offset_ms() -> int:
    """Wall clock minus monotonic clock: changes when the wall clock jumps, and only then."""
    return wall_ms() - monotonic_ms()


_span: wire.Span | None = None


def stamp() -> Stamp:
    """Now, for what this agent observes itself. May be called by any thread."""
    global _span  # noqa: PLW0603 - one device, one clock: its present span
    # First: a clock that is set right in between then counts as doubtful, with its right offset.
    state = _STATES[synced()]
    now_ms = wall_ms()
    offset = now_ms - monotonic_ms()
    if state == wire.CLOCK_SYNCED:
        return Stamp(now_ms, None)
    # A span goes on while its offset does, so that what is stamped in it seals together.
    span = _span
    if (
        span is None
        or (span.boot_id, span.clock) != (boot_id(), state)
        or abs(span.offset_ms - offset) > _SAME_SPAN_MS
    ):
        span = _span = wire.Span(boot_id(), state, offset)
    return Stamp(now_ms, span)


@functools.cache
def boot_id() -> bytes:
    """16 bytes that change with each boot; where the kernel has none, with each process."""
    try:
        return uuid.UUID(_BOOT_ID.read_text("ascii").strip()).bytes
    except (OSError, ValueError):
        return os.urandom(16)


def synced() -> bool | None:
    """Whether the kernel says that the wall clock is synchronised; None: it cannot be asked."""
    adjtimex = _adjtimex()
    if adjtimex is None:
        return None
    # All zero, so `modes` is 0: only read, which needs no privilege.
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _TIME_ERROR


@functools.cache
def _adjtimex() -> Callable[[Any], int] | None:
    try:
        return cast(Callable[[Any], int], ctypes.CDLL(None).adjtimex)
    except (OSError, AttributeError):  # not Linux
        return None


def sealing(epoch: bytes, zone: str) -> wire.Sealing:
    """What a segment sealed now says about its device and moment."""
    return wire.Sealing(epoch, boot_id(), zone, _STATES[synced()], wall_ms(), monotonic_ms())
