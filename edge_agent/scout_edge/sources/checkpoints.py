"""How far each file was read, and how a file is known again: inode, offset, print.

The print is a hash of the file's head and of what stands just before the offset. It tells a file
that was truncated and written anew, even to a greater length, and an inode that another file got.
Not its job: reading records.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass

_PRINT_BYTES = 1024  # of the head, and as many before the offset
ORPHANS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in a file."""

    offset: int = 0
    print: str = ""
    """Of the file up to ``offset``."""
    lines: int = 0
    """Lines taken so far, without the header."""
    skipping: bool = False
    """In the middle of a line that is too long."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Of all files of a source; what is committed with the records."""

    files: dict[int, Checkpoint]
    """By inode."""
    orphans: tuple[Checkpoint, ...] = ()
    """Of files that were truncated or went away: a copy of one goes on there."""

    @classmethod
    def decode(cls, state: str | None) -> Checkpoints:
        """From its text; none from None."""
        if state is None:
            return cls({})
        found = json.loads(state)
        return cls(
            {int(inode): Checkpoint(*fields) for inode, fields in found["files"].items()},
            tuple(Checkpoint(*fields) for fields in found["orphans"]),
        )

    def encode(self) -> str:
        """As a text."""

        def fields(c: Checkpoint) -> list[int | str | bool]:
            return [c.offset, c.print, c.lines, c.skipping]

        return json.dumps(
            {
                "files": {str(inode): fields(c) for inode, c in self.files.items()},
                "orphans": [fields(c) for c in self.orphans],
            },
            separators=(",", ":"),
        )

    def moved(self, inode: int, to: Checkpoint) -> Checkpoints:
        """With another place for one file."""
        return Checkpoints({**self.files, inode: to}, self.orphans)

    def without(self, inode: int, *, orphan: bool) -> Checkpoints:
        """Without a file; ``orphan``: its copy may turn up."""
        files = dict(self.files)
        gone = files.pop(inode)
        orphans = self.orphans
        if orphan and gone.lines:
            orphans = (*orphans, gone)[-ORPHANS_KEPT:]
        return Checkpoints(files, orphans)

    def adopted(self, inode: int, orphan: Checkpoint) -> Checkpoints:
        """A file that goes on where an orphan ended."""
        orphans = tuple(o for o in self.orphans if o is not orphan)
        return Checkpoints({**self.files, inode: orphan}, orphans)


def print_of(file: int, offset: int) -> str:
    """The print of an open file up to ``offset``; another one when the file is shorter."""
    head = os.pread(file, min(_PRINT_BYTES, offset), 0)
    start = max(0, offset - _PRINT_BYTES)
    before = os.pread(file, offset - start, start)
    digest = hashlib.blake2b(b"%d:%d:" % (len(head), len(before)), digest_size=12)
    digest.update(head + before)
    return digest.hexdigest()


def holds(file: int, place: Checkpoint) -> bool:
    """Whether an open file is the one that was read up to ``place``."""
    if not place.offset:
        return True
    return os.fstat(file).st_size >= place.offset and print_of(file, place.offset) == place.print
