"""What stands in a buffer file at one moment: for hello, status, metrics, and a look from outside.

Not its job: changing anything (``buffer``).
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from scout_edge import database, journal
from scout_shared.errors import ConfigError
from scout_shared.messages import LedgerEntry


@dataclass(frozen=True, slots=True)
class BufferStatus:
    """The buffer at one moment; its numbers belong together (one read transaction)."""

    epoch: bytes
    watermark: int
    next_sequence: int
    unsealed_records: int
    buffer_bytes: int
    """File and WAL."""
    max_bytes: int
    oldest_unsent_ms: int | None
    """Device clock at acceptance of the oldest record without receipt."""
    ledger_version: int
    """Version up to which ``ledger`` completes what the hub acknowledged."""
    ledger: tuple[LedgerEntry, ...]
    fenced: bool
    damaged_segments: int
    """Segments whose bytes changed on disk, seen since the start."""
    forks: int
    """How often the hub found that another copy of this file goes on with its stream."""
    given_up_records: int
    """Records that were accepted and cannot be delivered; each is declared in a gap."""

    @property
    def backlog_records(self) -> int:
        """Records that the hub has not confirmed."""
        return self.next_sequence - 1 - self.watermark + self.unsealed_records


def peek(path: Path, max_bytes: int) -> BufferStatus:
    """Look at a buffer file, also while no agent has it open. Accepts and deletes nothing.

    Raises:
        ConfigError: there is no such file.
        PermanentError: it is damaged or no buffer.
    """
    if not path.is_file():
        raise ConfigError(f"there is no buffer file {path}", "it is made by 'scout-edge run'")
    with database.kept(path), contextlib.closing(database.open_reader(path)) as reader:
        database.check(reader, path)
        return status_of(reader, path, max_bytes, 0)


def status_of(reader: sqlite3.Connection, path: Path, max_bytes: int, damaged: int) -> BufferStatus:
    """What ``reader`` finds in one read transaction, and how large the file is."""
    reader.execute("begin")
    try:
        meta = dict(reader.execute("select key, value from meta"))
        unsealed, unsealed_ms = reader.execute(
            "select coalesce(sum(records), 0), min(accepted_ms) from tail"
        ).fetchone()
        # One row by the key: a count would read the whole backlog from the card at each hello.
        sealed_ms = reader.execute(
            "select accepted_ms from segments where first_sequence > ?"
            " order by first_sequence limit 1",
            (meta["watermark"],),
        ).fetchone()
        version, ledger = journal.ledger_after_acked(reader, meta["ledger_acked"])
    finally:
        reader.execute("commit")
    times = [ms for ms in (unsealed_ms, *(sealed_ms or ())) if ms is not None]
    wal = path.with_name(path.name + "-wal")
    return BufferStatus(
        epoch=bytes(meta["epoch"]),
        watermark=meta["watermark"],
        next_sequence=meta["next_sequence"],
        unsealed_records=unsealed,
        buffer_bytes=path.stat().st_size + (wal.stat().st_size if wal.exists() else 0),
        max_bytes=max_bytes,
        oldest_unsent_ms=min(times, default=None),
        ledger_version=version,
        ledger=ledger,
        fenced=bool(meta["fenced"]),
        damaged_segments=damaged,
        forks=meta.get("forks", 0),
        given_up_records=meta.get("given_up", 0),
    )
