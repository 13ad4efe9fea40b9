"""How large the buffer file may be now, and the ballast that is let go when the disk is full.

The file stays below its own cap, and stops growing when the file system has less than its floor of
free space: then only what receipts or gaps have freed inside the file is used again. The cap has a
reserve that only documents may use, so that telemetry never keeps a sale out.

    edge.db.ballast   really full all the same (another program): inserts, deletes and checkpoints
                      of SQLite all fail then. Letting go of 512 KB is enough to seal, to delete
                      what is receipted and to declare what is given up (128 KB was not).

Not its job: what is given up (``journal``), when (``buffer``).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from scout_edge.database import MIN_BYTES, PAGE_BYTES
from scout_shared import logs
from scout_shared.errors import ConfigError

REJECT, THIN, DROP_OLDEST = "reject", "thin", "drop_oldest"
POLICIES = (REJECT, THIN, DROP_OLDEST)

BALLAST_BYTES = 512 * 1024
_LOOK_SECONDS = 10.0  # between two looks whether there is room for ballast again

log = logs.get("room")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a buffer may take of the disk, and what it does when it may take no more.

    Raises:
        ConfigError: a value cannot be.
    """

    max_bytes: int = 1 << 30
    min_free_bytes: int = 0
    """Free space that is left to others; 0: all may be used, and no ballast is kept."""
    document_reserve_ratio: float = 0.1
    """Share of the room that only documents may use."""
    readings_at_cap: str = REJECT
    """``reject``: refuse the new ones; ``thin``: give up every second of the old segments,
    ``drop_oldest``: give up the oldest."""

    def __post_init__(self) -> None:
        if self.max_bytes < MIN_BYTES:
            raise ConfigError(
                f"max_bytes {self.max_bytes} is too small", f"give {MIN_BYTES} or more"
            )
        if self.readings_at_cap not in POLICIES:
            raise ConfigError(
                f"readings_at_cap {self.readings_at_cap!r} is not known",
                f"give one of {', '.join(POLICIES)}",
            )
        if not 0 <= self.document_reserve_ratio <= 0.9:
            raise ConfigError(
                f"document_reserve_ratio {self.document_reserve_ratio} cannot be",
                "give a share of 0 to 0.9",
            )
        if self.min_free_bytes < 0:
            raise ConfigError(f"min_free_bytes {self.min_free_bytes} cannot be", "give 0 or more")


class Room:
    """The room of one buffer file; for its one writer thread."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._limits = limits
        self._ballast = path.with_name(path.name + ".ballast")
        self._look_at = 0.0

    def pages(self, page_count: int) -> int:
        """Pages the file may have, when it has ``page_count``. It never has to shrink for this."""
        most = self._limits.max_bytes // PAGE_BYTES
        if not self._limits.min_free_bytes:
            return most
        growth = (self._free_bytes() - self._limits.min_free_bytes) // PAGE_BYTES
        return min(most, page_count + max(0, growth))

    def reserved_pages(self, pages: int) -> int:
        """Of ``pages``, those that only documents may use."""
        return int(pages * self._limits.document_reserve_ratio)

    def is_disk_full(self) -> bool:
        """Whether it is the disk that has no room, not the file."""
        return self._free_bytes() < max(self._limits.min_free_bytes, 64 * PAGE_BYTES)

    def keep_ballast(self) -> None:
        """Put ballast down, when there is none and room for it. Looks now and then."""
        now = time.monotonic()
        if not self._limits.min_free_bytes or now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        try:
            if self._ballast.exists() and self._ballast.stat().st_size == BALLAST_BYTES:
                return
            if self._free_bytes() < self._limits.min_free_bytes + 2 * BALLAST_BYTES:
                return
            # Not zeros, and synced: a file system that compresses or delays would keep no room.
            with self._ballast.open("wb") as file:
                file.write(os.urandom(BALLAST_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            log.warning("ballast.failed", error=str(error))

    def let_go(self) -> bool:
        """Give the ballast to what must be written now; False: there is none."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        self._look_at = time.monotonic() + _LOOK_SECONDS
        log.warning("ballast.released", bytes=BALLAST_BYTES, file=str(self._path))
        return True

    def _free_bytes(self) -> int:
        try:
            found = os.statvfs(self._path.parent)
        except OSError:  # then the write says what is the matter
            return 1 << 62
        return found.f_bavail * found.f_frsize
