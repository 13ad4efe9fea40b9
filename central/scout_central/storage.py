"""Raw files, kept as they came, by the SHA-256 of their content, never by a name that is given.

A file is written beside its place, synced and renamed into it, so that what has a key is whole and
survives a power cut. The same bytes have one place, however often they come.
Not its job: what is in a file, or who may have it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scout_shared.errors import PermanentError, TransientError

_CHUNK = 1024 * 1024


class TooLargeError(PermanentError):
    """A file is larger than what is taken."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file that is on disk, and gone at the end of ``FileStore.receive`` unless kept."""

    path: Path
    sha256: bytes
    bytes: int
    _store: FileStore

    def keep(self) -> str:
        """Move it to its place and sync that; returns its key. Safe to repeat.

        Call it before the commit that names the key: a file without a row is harmless, a row
        without a file is not.
        """
        return self._store.keep(self)


class FileStore:
    """Files below one directory, which is made when it is needed."""

    def __init__(self, directory: Path) -> None:
        self._root = directory

    @contextmanager
    def receive(self, content: IO[bytes], *, at_most_bytes: int) -> Iterator[Incoming]:
        """Write ``content`` to disk and hash it.

        Raises:
            TooLargeError: there are more bytes than ``at_most_bytes``.
            TransientError: the disk is full or fails.
        """
        path = self._temporary()
        try:
            sha256, size = _spool(content, path, at_most_bytes)
            yield Incoming(path, sha256, size, self)
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    @contextmanager
    def scratch(self) -> Iterator[IO[bytes]]:
        """A nameless file on the same disk, for what is made of an incoming one."""
        self._make_folder(self._root / "incoming")
        with tempfile.TemporaryFile(dir=self._root / "incoming") as file:
            yield file

    def keep(self, incoming: Incoming) -> str:
        """See ``Incoming.keep``."""
        key = key_of(incoming.sha256)
        place = self._root / key
        if place.exists():
            return key
        self._make_folder(place.parent)
        try:
            incoming.path.replace(place)
            _sync_folder(place.parent)
        except OSError as error:
            raise _failed(place, error) from error
        return key

    def open(self, key: str) -> IO[bytes]:
        """The file with this key.

        Raises:
            PermanentError: there is none.
        """
        place = self._root / key
        # A key is from the database; should it ever be from elsewhere, it still cannot climb out.
        if not place.resolve().is_relative_to(self._root.resolve()) or not place.is_file():
            raise PermanentError(
                f"the file {key!r} is not in {self._root}",
                "restore the storage directory from its backup",
            )
        return place.open("rb")

    def _temporary(self) -> Path:
        folder = self._root / "incoming"
        self._make_folder(folder)
        try:
            descriptor, name = tempfile.mkstemp(dir=folder)
        except OSError as error:
            raise _failed(folder, error) from error
        os.close(descriptor)
        return Path(name)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(folder, error) from error


def key_of(sha256: bytes) -> str:
    """``sha256/ab/abcdef…``: 256 folders keep each small enough for any file system."""
    name = sha256.hex()
    return f"sha256/{name[:2]}/{name}"


def _spool(content: IO[bytes], path: Path, at_most_bytes: int) -> tuple[bytes, int]:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("wb") as file:
            while chunk := content.read(_CHUNK):
                size += len(chunk)
                if size > at_most_bytes:
                    raise TooLargeError(
                        f"the file has more than {at_most_bytes:,} bytes", "split it"
                    )
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _failed(path, error) from error
    return digest.digest(), size


def _sync_folder(folder: Path) -> None:
    """A rename is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError) -> TransientError:
    return TransientError(
        f"{path} cannot be written: {error.strerror}",
        "free or repair the disk of [storage] directory",
    )
