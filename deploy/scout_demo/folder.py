"""The demo's data directory: one demo at a time, its tokens, its logs.

demo.lock    held by the running demo; its text is the pid
tokens/      secrets of this installation, mode 0600
settings/    the settings files of the programs, written at each start
database/    PostgreSQL        devices/  buffers of the agents
uploads/     files as received tills/    what each till was told OK
logs/        stderr and stdout of each program
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from scout_shared.errors import ConfigError

_PARTS = ("tokens", "settings", "devices", "uploads", "tills", "logs")
_OURS = {*_PARTS, "database", "demo.lock"}


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the demo keeps its data when nobody says so: never inside the checkout.

    As root below /var/lib, because PostgreSQL then runs as another user, who must get there.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/scout/demo")
    base = environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    return Path(base) / "scout" / "demo"


class Folder:
    """The directory, locked until the ``with`` block ends. Made when it is not there.

    Raises:
        ConfigError: another demo runs on it, it holds other things, or it cannot be written.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path.absolute()
        self._fresh = fresh
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"the data directory {self.path} cannot be used: {error.strerror}",
                "choose another with --data-dir",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _open(self) -> None:
        # 0755 for root: the database's own user must be able to pass through.
        self.path.mkdir(parents=True, exist_ok=True, mode=0o755 if os.geteuid() == 0 else 0o700)
        foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name not in _OURS)
        if foreign:
            raise ConfigError(
                f"the data directory {self.path} holds other things: {foreign[0]}",
                "choose an empty or new directory with --data-dir",
            )
        lock = os.open(self.path / "demo.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(lock, 32, 0).decode().strip() or "unknown"
            os.close(lock)
            raise ConfigError(
                f"a demo is running on {self.path} (pid {pid})",
                "stop it with Ctrl-C there, or choose another directory with --data-dir",
            ) from error
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        if self._fresh:
            for entry in self.path.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
        for part in _PARTS:
            (self.path / part).mkdir(exist_ok=True, mode=0o700)

    def __truediv__(self, part: str) -> Path:
        return self.path / part

    def secret(self, name: str) -> str:
        """The secret of this name, made at its first use."""
        path = self.path / "tokens" / name
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(32).encode(), mode=0o600)
        return path.read_text("ascii").strip()


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """The file has the old or the new content, whenever the power fails; durable on return."""
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too
    finally:
        os.close(folder)
