"""How far a buffer file reaches, noted beside it: ``edge.db.extent``.

A file that is damaged or gone cannot say what was in it. With the note, what is missing is declared
up to the count that stands there, and that there was a file at all is known. It is written when
the file is opened and closed, and at most every ``[buffer] note_seconds`` in between.

Two slots are written in turn, each in place and synced: a torn one leaves the other, and a full
disk has room for both. A note is never ahead of what is committed.
Not its job: what is made of it (``recovery``).
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from scout_edge import database
from scout_shared import logs

SUFFIX = ".extent"
_SLOT = struct.Struct("<4sQ16sQQI")  # magic, turn, epoch, two counts, CRC-32 of what is before
_MAGIC = b"SCX1"
_SLOT_BYTES = 4096  # a page of flash: what tears one leaves the other

log = logs.get("database")


class Extent(NamedTuple):
    """What a file held when it was noted."""

    epoch: bytes
    next_sequence: int
    unsealed_records: int

    @property
    def records(self) -> int:
        """All that were accepted, or given up, in this epoch."""
        return self.next_sequence - 1 + self.unsealed_records


def was_made(path: Path) -> bool:
    """Whether a buffer has stood at ``path`` that was not set aside since."""
    return beside(path).exists()


def read(path: Path) -> Extent | None:
    """The newest note beside ``path``; None: there is none that can be read."""
    found = _newest(path)
    return None if found is None else found[1]


class Note:
    """Keeps the note of one open buffer; for its writer thread.

    Args:
        seconds: least time between two notes.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._due = 0.0
        newest = _newest(path)
        self._turn: int = 0 if newest is None else newest[0]
        self._noted: Extent | None = None if newest is None else newest[1]

    def keep(self, extent: Extent, *, at_once: bool = False) -> None:
        """Write it down, if it is another one and time for it; another epoch at once."""
        now = time.monotonic()
        if extent == self._noted:
            return
        same = self._noted is not None and self._noted.epoch == extent.epoch
        if same and now < self._due and not at_once:
            return
        self._due = now + self._seconds
        try:
            self._write(extent)
        except OSError as error:  # the records are safe; only less would be known of a lost file
            log.warning("extent.not_noted", file=str(self._path), reason=str(error))
        else:
            self._noted = extent

    def _write(self, extent: Extent) -> None:
        turn = self._turn + 1
        slot = _SLOT.pack(_MAGIC, turn, *extent, 0)
        slot = slot[:-4] + zlib.crc32(slot[:-4]).to_bytes(4, "little")
        made = not beside(self._path).exists()
        descriptor = os.open(beside(self._path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if made:
                os.write(descriptor, bytes(2 * _SLOT_BYTES))
            os.pwrite(descriptor, slot, turn % 2 * _SLOT_BYTES)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if made:
            database.sync_folder(self._path.parent)
        self._turn = turn


def beside(path: Path) -> Path:
    """The note of the file at ``path``."""
    return path.with_name(path.name + SUFFIX)


def _newest(path: Path) -> tuple[int, Extent] | None:
    try:
        content = beside(path).read_bytes()
    except OSError:
        return None
    found = []
    for at in (0, _SLOT_BYTES):
        slot = content[at : at + _SLOT.size]
        if len(slot) < _SLOT.size:
            continue
        magic, turn, epoch, next_sequence, unsealed_records, crc = _SLOT.unpack(slot)
        if magic == _MAGIC and crc == zlib.crc32(slot[:-4]):
            found.append((turn, Extent(epoch, next_sequence, unsealed_records)))
    return max(found, default=None)
