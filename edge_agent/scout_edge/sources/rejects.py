"""What a source could not read, kept for a person: JSON lines with the reason, flushed to disk.

    {"file": "sales.csv", "inode": 77, "offset": 1024, "reason": "...", "text": "..."}

``base64`` instead of ``text`` for bytes that are not UTF-8; ``bytes``, their number, where privacy
rules are set: what cannot be read may be personal, and the origin still has it.
Each is written before the place behind it is committed, so none is lost; after a crash the last
ones are looked up, so none stands twice.
Not its job: counting; cleaning up: a person deletes the file when the matter is settled.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scout_shared.errors import TransientError

_LOOK_BACK_BYTES = 2 << 20  # more than one batch of a source can reject


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
    """One per source; made when there is something to keep."""

    def __init__(self, path: Path, *, contents: bool = True) -> None:
        self.path = path
        self._contents = contents
        self._known: set[bytes] | None = None

    def keep(self, rejects: Iterable[Reject]) -> None:
        """Durable when this returns; safe to repeat. Raises TransientError: the disk fails."""
        lines = [reject.encoded(contents=self._contents) for reject in rejects]
        if not lines:
            return
        try:
            if self._known is None:
                self._known = self._last()
            fresh = [line for line in lines if line not in self._known]
            if fresh:
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

    def committed(self) -> None:
        """The place behind what was kept is committed: it does not come again."""
        if self._known:
            self._known = set()

    def _last(self) -> set[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - _LOOK_BACK_BYTES))
                return set(file.readlines())
        except FileNotFoundError:
            return set()

    def _ends(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
