"""Opens a buffer's SQLite file: lock, pragmas with their reasons, checks; translates its errors.

A file that is damaged or not ours is refused and kept as it is, never replaced.
Not its job: what stands in the tables (``tables``), threads (``buffer``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from scout_edge import tables
from scout_shared import logs
from scout_shared.errors import ConfigError, PermanentError, TransientError

log = logs.get("database")

PAGE_BYTES = 4096
MIN_BYTES = 256 * 1024  # less cannot hold the tables and one full segment
SUSPECT = ".suspect"
"""Beside the file: SQLite found it damaged while it was in use; the short check may not."""
_QUICK_CHECK_SECONDS = 2.0  # a check of a 1 GB file takes minutes on an SD card

_CACHE_KILOBYTES = 512  # the hot pages are few, and a Raspberry Pi has other uses for memory

_PRAGMAS = f"""
-- 4 KB is the sector of flash and the default; set, so that max_page_count means bytes.
pragma page_size = {PAGE_BYTES};
-- Freed pages are reused first; what a long outage left over can be given back in small steps.
pragma auto_vacuum = incremental;
-- Readers do not block the writer, and one commit is one sequential write.
pragma journal_mode = wal;
-- fsync at every commit. In 200 simulated power cuts FULL lost nothing, NORMAL lost commits in 175.
pragma synchronous = full;
-- Checkpoint each MB, so that the WAL stays small and a restart replays little.
pragma wal_autocheckpoint = 256;
-- The WAL shrinks again after a burst.
pragma journal_size_limit = 2097152;
-- Nothing temporary is worth a write to flash.
pragma temp_store = memory;
-- The readers are ours and quick.
pragma busy_timeout = 5000;
"""


class DamagedError(PermanentError):
    """The buffer file is damaged; it was kept as it is. See ``recovery``."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``<path>.lock``: two writers would each keep their own tail in memory."""
    try:
        _make_folder(path.parent)
        lock = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"buffer file {path} cannot be used: {error.strerror}",
            "set [buffer] path to a file in a folder that the agent may write to",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"buffer file {path} is in use by another process",
                "stop the other agent first; each device needs a buffer file of its own",
            ) from error
        yield


def _make_folder(folder: Path) -> None:
    """Make it and what leads to it; each new entry is on the disk before anything is in it."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """The names in ``folder`` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection that writes; the file is made when it is not there, checked when it is.

    Raises:
        ConfigError: the path cannot be used.
        PermanentError: the file is damaged or is no buffer.
    """
    with kept(path):
        if path.with_name(path.name + SUSPECT).exists():
            raise PermanentError("SQLite found damage while it was in use")
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            # Before the check, which reads the whole file: 2 MB are SQLite's default.
            database.execute(f"pragma cache_size = -{_CACHE_KILOBYTES}")
            check(database, path)
            database.executescript(_PRAGMAS)
        except BaseException:
            database.close()
            raise
    return database


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, to an existing file."""
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.executescript(
        f"pragma query_only = on; pragma busy_timeout = 5000;"
        f" pragma cache_size = -{_CACHE_KILOBYTES};"
    )
    return reader


def check(database: sqlite3.Connection, path: Path) -> None:
    """Raise PermanentError when the file is no buffer of ours or SQLite finds it damaged."""
    (application,) = database.execute("pragma application_id").fetchone()
    (version,) = database.execute("pragma user_version").fetchone()
    (entries,) = database.execute("select count(*) from sqlite_schema").fetchone()
    if not entries and not application:
        return
    known = 1 <= version <= tables.SCHEMA_VERSION
    if application != tables.APPLICATION_ID or not known:
        raise PermanentError(
            f"{path} is not a buffer of this program (application {application:#x}, version"
            f" {version})",
            "set [buffer] path to another file; this one was kept as it is",
        )
    deadline = time.monotonic() + _QUICK_CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        (found,) = database.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        log.info("check.shortened", seconds=_QUICK_CHECK_SECONDS)
    else:
        if found != "ok":
            raise PermanentError(found)
    finally:
        database.set_progress_handler(None, 0)


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """Say of damage found while opening that the file was kept, and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        ours = translated(error, path)
        if not isinstance(ours, PermanentError):
            raise ours from error
        raise _damaged(path, str(error)) from error
    except PermanentError as error:
        if error.hint:
            raise
        raise _damaged(path, error.message) from error


def _damaged(path: Path, detail: str) -> DamagedError:
    return DamagedError(
        f"buffer file {path} is damaged: {detail}. It was kept as it is",
        f"move {path.name}, {path.name}-wal and {path.name}.extent aside together and start again"
        " with a new buffer; keep them: most records in them can be recovered",
    )


def full(disk: bool | None = None) -> TransientError:
    """The refusal of records for which there is no room, in the file or on the disk."""
    what = {
        None: "the buffer is full or the disk is",
        True: "the disk is full",
        False: "the buffer is full",
    }
    return TransientError(
        f"{what[disk]}: nothing was accepted, nothing was lost",
        "it empties when the hub is reachable; else raise [buffer] max_bytes or free the disk",
    )


def in_use(error: BaseException, path: Path) -> BaseException:
    """As ``translated``, of a file in use: damage is noted beside it.

    So that the next start does not trust it, whatever a short check finds.
    """
    ours = translated(error, path)
    if isinstance(ours, DamagedError):
        with contextlib.suppress(OSError):
            path.with_name(path.name + SUSPECT).touch()
    return ours


def translated(error: BaseException, path: Path) -> BaseException:
    """What an error of SQLite means for the caller."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return full()
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedError(
            f"buffer file {path} is damaged: {error}",
            "restart the agent: it sets the file aside and delivers what is whole in it",
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
        return ConfigError(
            f"buffer file {path} cannot be used: {error}",
            "set [buffer] path to a file in a folder that the agent may write to",
        )
    return TransientError(f"buffer file {path}: {error}", "look at the disk with dmesg")
