"""The device's clocks: wall, monotonic, boot id, and whether the kernel trusts the wall clock.

Readings are stamped by their source; a segment carries these three so that the hub can repair a
wrong wall clock within the same boot. Never used for order or dedup, and never guessed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from scout_shared import wire

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMEX_BYTES = 512  # struct timex is 208 bytes on 64-bit Linux; room for any layout
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def wall_ms() -> int:
    """Device wall clock, ms UTC. May be wrong and may jump."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds since boot; never jumps."""
    return time.monotonic_ns() // 1_000_000


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
    state = {None: wire.CLOCK_UNKNOWN, False: wire.CLOCK_UNSYNCED, True: wire.CLOCK_SYNCED}
    return wire.Sealing(epoch, boot_id(), zone, state[synced()], wall_ms(), monotonic_ms())
