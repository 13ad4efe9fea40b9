"""A copy of a buffer file leaves the stream that another copy goes on with.

    edge.db                      from here on of a new epoch: what only this copy holds
    edge.db.forked-<16 hex>      a buffer of the old epoch: what is common to the copies and not yet
                                 confirmed; sent beside the new data, deleted when the hub has it

The hub tells where (``messages.Fork``). The old epoch's file is whole on the disk before the
transaction that changes ``edge.db``; a power cut before that transaction leaves both, which say the
same, and the hub's next word begins again. The new epoch follows from the old one and the place, so
that copies of a copy come to the same one. Nothing is sent meanwhile: no receipt names this writer.
A fork rewrites the backlog in one transaction, and needs that much room on the disk; without it the
buffer stays as it is, takes records, and tries again at the hub's next word.
Not its job: who is the copy (the hub's ``openings``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from pathlib import Path

from scout_edge import database
from scout_edge.journal import Journal
from scout_shared.messages import Fork

_WORD = ".forked-"


def files(path: Path) -> list[Path]:
    """The buffers of epochs that the one at ``path`` has left and the hub has not confirmed."""
    if not path.parent.is_dir():
        return []
    start = path.name + _WORD
    return sorted(
        entry
        for entry in path.parent.iterdir()
        if entry.name.startswith(start) and _is_name(entry.name.removeprefix(start))
    )


def _is_name(text: str) -> bool:
    return len(text) == 16 and set(text) <= set("0123456789abcdef")


def leave(writer: sqlite3.Connection, ours: Journal, path: Path, zone: str, fork: Fork) -> None:
    """Do it, inside the caller's transaction. Raises what SQLite and the disk raise."""
    first = ours.fork_point(fork)
    name = fork.epoch_after(ours.epoch).hex()[:16]
    _put_aside(writer, ours, path.with_name(f"{path.name}{_WORD}{name}"), zone, first)
    ours.leave(fork, first)


def _put_aside(
    writer: sqlite3.Connection, ours: Journal, target: Path, zone: str, first: int
) -> None:
    """Make ``target`` of what is common and not confirmed, if there is anything."""
    common = writer.execute(
        "select * from segments where first_sequence + records - 1 > ? and first_sequence < ?"
        " order by first_sequence",
        (ours.watermark, first),
    )
    oldest = common.fetchone()
    if oldest is None or target.exists():
        return
    part = target.with_name(target.name + ".part")
    for suffix in ("", "-wal", "-shm"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
    with contextlib.closing(database.open_writer(part)) as made:
        made.execute("begin immediate")
        Journal(made, zone).create()
        made.executemany(
            "insert into segments values (?, ?, ?, ?, ?, ?)", itertools.chain([oldest], common)
        )
        meta = {
            "epoch": ours.epoch,
            "next_sequence": first,
            "watermark": ours.watermark,
            "recovered": 1,  # the other copy may have gone on with this epoch,
            "forked": 1,  # and what follows is that one's to give
        }
        made.executemany("insert or replace into meta values (?, ?)", meta.items())
        made.execute("commit")
        made.execute("pragma wal_checkpoint(truncate)")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    database.sync_folder(target.parent)
