"""What a source could not read, kept for a person: JSON lines with the reason, flushed to disk.

    {"file": "sales.csv", "inode": 77, "offset": 1024, "reason": "...", "text": "..."}

``base64`` instead of ``text`` for bytes that are not UTF-8; ``bytes``, their number, where privacy
rules are set: what cannot be read may be personal, and the origin still has it.
Each is written before the place behind it is committed, so none is lost; after a crash the last
ones are looked up, so none stands twice.

The file has a limit, because bad lines must not fill the disk: at half of it the file becomes
``<path>.1``, and the older ``.1`` is dropped, its lines counted.
Not its job: cleaning up before that: a person deletes the files when the matter is settled.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scout_shared.errors import TransientError

_LOOK_BACK_BYTES = 2 << 20  # more than one batch of a source can reject
MIN_BYTES = 8 << 20
"""The least limit: half of it holds more than one batch."""


class Reject(NamedTuple):
    """A piece of a file that is no record."""

    file: str
    inode: int
    offset: int
    reason: str
    line: bytes

    def encoded(self, *, contents: bool = True) -> bytes:
        """One line of the reject file; without ``contents`` it says only where to look."""
        fields: dict[str, str | int] = {
            "file": self.file,
            "inode": self.inode,
            "offset": self.offset,
            "reason": self.reason,
        }
        if not contents:
            fields["reason"] = "not shown: privacy rules are set"
            fields["bytes"] = len(self.line)
            return json.dumps(fields).encode() + b"\n"
        try:
            fields["text"] = self.line.decode("utf-8")
        except UnicodeDecodeError:
            fields["base64"] = base64.b64encode(self.line).decode("ascii")
        return json.dumps(fields).encode() + b"\n"


class RejectFile:
    """One per source; made when there is something to keep.

    Args:
        max_bytes: of the file and the older one together.
        contents: whether what could not be read is kept, or only its size.
    """

    def __init__(self, path: Path, max_bytes: int, *, contents: bool = True) -> None:
        self.path = path
        self.older = path.with_name(path.name + ".1")
        self._half = max_bytes // 2
        self._contents = contents
        self._known: set[bytes] | None = None

    def keep(self, rejects: Iterable[Reject]) -> int:
        """Durable when this returns; safe to repeat.

        Returns:
            how many old ones were dropped to make room.

        Raises:
            TransientError: the disk fails.
        """
        lines = [reject.encoded(contents=self._contents) for reject in rejects]
        if not lines:
            return 0
        dropped = 0
        try:
            if self._known is None:
                self._known = self._last()
            fresh = [line for line in lines if line not in self._known]
            if fresh:
                dropped = self._make_room(sum(map(len, fresh)))
                with self.path.open("ab") as file:
                    if file.tell() and not self._ends():
                        file.write(b"\n")  # a crash cut the last one, which comes again whole
                    file.write(b"".join(fresh))
                    file.flush()
                    os.fsync(file.fileno())
                self._known.update(fresh)
        except OSError as error:
            raise TransientError(
                f"what cannot be read cannot be kept in {self.path}: {error.strerror}",
                "make room on the disk, or set reject_path to a file that can be written",
            ) from error
        return dropped

    def committed(self) -> None:
        """The place behind what was kept is committed: it does not come again."""
        if self._known:
            self._known = set()

    def _make_room(self, size: int) -> int:
        try:
            full = self.path.stat().st_size + size > self._half
        except FileNotFoundError:
            return 0
        if not full:
            return 0
        dropped = 0
        if self.older.exists():
            with self.older.open("rb") as file:
                dropped = sum(1 for _ in file)
        self.path.replace(self.older)
        return dropped

    def _last(self) -> set[bytes]:
        """The last ones of both files: a crash may have come just after one became the other."""
        found: set[bytes] = set()
        for path in (self.older, self.path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LOOK_BACK_BYTES))
                found.update(file.readlines())
        return found

    def _ends(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
