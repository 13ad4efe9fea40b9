"""A damaged buffer file never stops a device: it is set aside, and what is whole in it delivered.

    edge.db                what the agent works with
    edge.db.damaged-1      a damaged file, with its -wal and .extent; never written, never deleted
    edge.db.damaged-1.pending  the note, while the file is being set aside
    edge.db.damaged-1.json what was found in it; written when it has been searched
    edge.db.recovered-1    a buffer of the old epoch, made of what was found; deleted when the hub
                           has confirmed all of it

The new ``edge.db`` has a new epoch. In ``recovered-1`` each segment that holds by its own checksums
keeps its identity, so the hub takes none twice, and gaps declare what is missing among them; of a
gap the hub counts only what it does not hold itself. Idempotency keys and source offsets go to the
new file, so that a source that repeats a request or a line is not taken twice.

    damage                                  what is lost
    first page, schema                      nothing
    some pages                              the segments on them, declared in gaps
    the end cut off                         the segments on it, declared as far as the counts in the
                                            file, or the note in ``edge.db.extent``, say they go
    all of it, or the file itself           what was in it, except for what its WAL still has:
                                            declared as far as the note goes; the rest as below
    the pages of ``meta`` and ``ledger``    what was accepted last and is not found: the hub sees it
                                            in its own count of what the device produced

Each step may be cut off by a power failure and is done again at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scout_edge import database, extent, fork, journal, tables
from scout_edge.buffer import NOTE_SECONDS, Buffer
from scout_edge.database import DamagedError
from scout_edge.journal import Journal
from scout_edge.pages import Pages, Row
from scout_edge.privacy import Privacy
from scout_edge.room import Limits
from scout_edge.tail import TAIL_KINDS
from scout_shared import logs, wire
from scout_shared.errors import ConfigError, TransientError, WireError
from scout_shared.wire import GAP, GivenUp
from scout_shared.zones import UNKNOWN_DAY, BusinessCalendar

log = logs.get("recovery")

_PENDING = ".pending"
"""Of the name of a note whose file is being set aside."""
_NUMBER = re.compile(r"\.(?:damaged|recovered)-([0-9]+).*")
_SEGMENTS_AT_ONCE = 256  # per transaction: bounds the WAL of the file that is made


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a damaged file."""

    epoch: str
    """Hexadecimal; empty: nothing that could be delivered."""
    segments: int
    records: int
    """In the segments."""
    unsealed_records: int
    lost_records: int
    """Declared in gaps; the hub may hold some of them."""
    counts_agree: bool
    """The file's own counts agree with each other: nothing is missing that is not declared."""


def open_buffer(
    path: Path,
    *,
    zone: str,
    limits: Limits,
    group_commit_seconds: float = 0.0,
    note_seconds: float = NOTE_SECONDS,
    privacy: Privacy | None = None,
) -> Buffer:
    """The buffer at ``path``; a damaged one is set aside and searched first.

    Raises:
        ConfigError: the path cannot be used, or another process has it open.
        PermanentError: the file is none of ours; it is kept as it is.
    """

    def opened() -> Buffer:
        return Buffer(
            path,
            zone=zone,
            limits=limits,
            group_commit_seconds=group_commit_seconds,
            note_seconds=note_seconds,
            privacy=privacy,
        )

    with database.locked(path):
        _finish_setting_aside(path)
        if extent.was_made(path) and not (path.exists() and path.stat().st_size):
            log.error("buffer.lost", file=str(path), set_aside=str(_set_aside(path)))
    try:
        buffer = opened()
    except DamagedError as error:
        with database.locked(path):
            if not _is_ours(path):
                raise
            aside = _set_aside(path)
        log.error("buffer.set_aside", file=str(aside), reason=error.message)  # noqa: TRY400 - no defect
        buffer = opened()
    try:
        for damaged in damaged_files(path):
            _search(damaged, recovered_name(damaged), zone)
        for recovered in waiting(path):
            try:
                _hand_over(recovered, buffer)
            except DamagedError as error:
                search_again(recovered)
                log.error("recovery.damaged", reason=error.message)  # noqa: TRY400 - no defect
        for damaged in damaged_files(path):
            _search(damaged, recovered_name(damaged), zone)
    except BaseException:
        buffer.close()
        raise
    return buffer


def damaged_files(path: Path) -> list[Path]:
    """The damaged files that lie beside the buffer at ``path``, oldest first."""
    return _numbered(path, "damaged")


def waiting(path: Path) -> list[Path]:
    """Buffers of old epochs that the hub has not confirmed yet, oldest first."""
    return [
        *(
            recovered
            for damaged in damaged_files(path)
            if (recovered := recovered_name(damaged)).exists() and _report_name(damaged).exists()
        ),
        *fork.files(path),
    ]


def recovered_name(damaged: Path) -> Path:
    """Where the buffer stands that is made of ``damaged``."""
    return damaged.with_name(damaged.name.replace(".damaged-", ".recovered-"))


def zone_of(recovered: Path) -> str:
    """The zone in which the records of ``recovered`` were counted."""
    with (
        database.kept(recovered),
        contextlib.closing(database.open_reader(recovered)) as reader,
    ):
        return str(reader.execute("select value from meta where key = 'zone'").fetchone()[0])


def size(recovered: Path) -> int:
    """Bytes of a recovered buffer."""
    return recovered.stat().st_size


def search_again(recovered: Path) -> None:
    """``recovered`` is damaged too: at the next start it is made anew of the damaged file."""
    for damaged in damaged_files(recovered.with_name(recovered.name.rpartition(".recovered-")[0])):
        if recovered_name(damaged) == recovered:
            _report_name(damaged).unlink(missing_ok=True)


def finish(recovered: Path) -> None:
    """The hub has confirmed everything in ``recovered``: delete it; the damaged file stays."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        recovered.with_name(recovered.name + suffix).unlink(missing_ok=True)
    log.info("buffer.recovered", file=str(recovered))


# -- setting aside --------------------------------------------------------------------------------


def _numbered(path: Path, word: str, suffix: str = "") -> list[Path]:
    start = f"{path.name}.{word}-"
    if not path.parent.is_dir():
        return []
    found = [
        (int(number), entry)
        for entry in path.parent.iterdir()
        if entry.name.startswith(start)
        and entry.name.endswith(suffix)
        and (number := entry.name.removeprefix(start).removesuffix(suffix)).isdecimal()
    ]
    return [entry for _, entry in sorted(found)]


def _report_name(damaged: Path) -> Path:
    return damaged.with_name(damaged.name + ".json")


def _set_aside(path: Path) -> Path:
    # Also of what somebody has removed a part of: its report is not that of another file.
    numbers = (_NUMBER.fullmatch(e.name.removeprefix(path.name)) for e in path.parent.iterdir())
    taken = [int(number[1]) for number in numbers if number]
    aside = path.with_name(f"{path.name}.damaged-{max(taken, default=0) + 1}")
    # The note goes first: once it is away, the rest is made up for at the next start.
    pending = aside.with_name(aside.name + _PENDING)
    if extent.was_made(path):
        extent.beside(path).rename(pending)
    else:
        pending.touch()
    database.sync_folder(path.parent)
    _finish_setting_aside(path)
    return aside


def _finish_setting_aside(path: Path) -> None:
    """After the note the file, after the file its WAL: one left alone belongs to the last one."""
    for pending in _numbered(path, "damaged", _PENDING):
        aside = pending.with_name(pending.name.removesuffix(_PENDING))
        if not aside.exists():
            if path.exists():
                path.rename(aside)
            else:
                aside.touch()
            database.sync_folder(path.parent)
        pending.rename(extent.beside(aside))
        database.sync_folder(path.parent)
    wal = path.with_name(path.name + "-wal")
    if not path.exists():
        asides = damaged_files(path)
        if asides and wal.exists():
            wal.rename(asides[-1].with_name(asides[-1].name + "-wal"))
        for leftover in ("-shm", database.SUSPECT):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        database.sync_folder(path.parent)


def _is_ours(path: Path) -> bool:
    """Whether there is any sign that a buffer was in this file: nothing else may be moved."""
    with Pages(path) as pages:
        first = pages.page(1)
        if first[68:72] == tables.APPLICATION_ID.to_bytes(4, "big"):
            return True
        return any(True for _ in _segments(pages))


# -- searching ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Facts:
    """What stands in the small tables of a damaged file, as far as it can be."""

    epoch: bytes = b""
    zone: str = ""
    next_sequence: int = 0
    tail: list[tuple[int, int, int, int, bytes, bytes, int, int]] = field(default_factory=list)
    """(kind, accepted_ms, records, crc, body, boot_id, clock, mono_ms)"""
    ledger_stands: bool = False
    """Its page is there: nothing in a lost one and nothing accepted look the same."""
    ledger: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(day, kind, records, version)"""
    sources: list[tuple[str, str]] = field(default_factory=list)
    keys: list[tuple[str, bytes, int, int]] = field(default_factory=list)
    """(key, digest, records, accepted_ms)"""

    @property
    def agree(self) -> bool:
        """Sealed and unsealed records are as many as the ledger counts: three pages agree."""
        accepted = sum(records for _, _, records, _ in self.ledger)
        unsealed = sum(row[2] for row in self.tail)
        counted = self.ledger_stands and self.next_sequence > 0
        return counted and self.next_sequence - 1 + unsealed == accepted


def _search(damaged: Path, target: Path, zone: str) -> None:
    """Make ``target`` of what is whole in ``damaged``, unless that was done before."""
    if _report_name(damaged).exists():
        return
    part = target.with_name(target.name + ".part")
    for stale in (part, target):  # a search that was cut off, or must be done again
        for suffix in ("", "-wal", "-shm", database.SUSPECT):
            stale.with_name(stale.name + suffix).unlink(missing_ok=True)
    try:
        report = _rebuild(damaged, part, zone)
        if report.epoch:
            part.replace(target)
        else:
            part.unlink()
        database.sync_folder(target.parent)
        draft = _report_name(damaged).with_suffix(".draft")
        draft.write_text(json.dumps(asdict(report)) + "\n", "ascii")
        draft.replace(_report_name(damaged))
        database.sync_folder(target.parent)
    except (OSError, sqlite3.Error, TransientError) as error:
        # The device must go on accepting; the file stays and is searched at the next start.
        log.error("recovery.postponed", file=str(damaged), reason=str(error))  # noqa: TRY400
        return
    log.warning("recovery.searched", file=str(damaged), **asdict(report))


def _rebuild(damaged: Path, target: Path, zone: str) -> Report:
    with contextlib.closing(database.open_writer(target)) as made:
        made.execute("begin immediate")
        Journal(made, zone).create()
        roots = dict(made.execute("select name, rootpage from sqlite_schema where type = 'table'"))
        with Pages(damaged) as pages:
            facts = _facts(pages, roots)
            noted = extent.read(damaged)
            epoch = facts.epoch or _most_frequent_epoch(pages) or (noted.epoch if noted else b"")
            gaps = _copy_segments(made, pages, epoch)
        with Pages(damaged, use_wal=False) as pages:
            gaps |= _copy_segments(made, pages, epoch)
        (last,) = made.execute(
            "select coalesce(max(first_sequence + records - 1), 0) from segments"
        ).fetchone()
        last = max([last, *(first + part.records - 1 for first, part in gaps.items())])
        if noted is not None and noted.epoch == epoch:
            last = max(last, noted.records - sum(tail[2] for tail in facts.tail))
        agree = facts.agree and facts.next_sequence > last
        if agree:
            last = facts.next_sequence - 1
            made.executemany("insert or ignore into ledger values (?, ?, ?, ?)", facts.ledger)
        made.executemany(
            "insert into tail (kind, accepted_ms, records, crc, body, boot_id, clock, mono_ms)"
            " values (?, ?, ?, ?, ?, ?, ?, ?)",
            facts.tail,
        )
        made.executemany("insert or ignore into sources values (?, ?)", facts.sources)
        made.executemany(
            "insert or ignore into idempotency (key, digest, records, accepted_ms)"
            " values (?, ?, ?, ?)",
            facts.keys,
        )
        meta = {
            "epoch": epoch,
            "zone": _known(facts.zone) or zone,
            "next_sequence": last + 1,
            "recovered": 1,
        }
        made.executemany("insert or replace into meta values (?, ?)", meta.items())
        segments, records = made.execute(
            "select count(*), coalesce(sum(records), 0) from segments"
        ).fetchone()
        lost = 0
        if epoch:
            ours = Journal(made, str(meta["zone"]))
            ours.load()
            for first, parts in _missing(made, last, gaps):
                ours.insert_gap(first, parts)
                lost += sum(part.records for part in parts)
        made.execute("insert or replace into meta values ('given_up', ?)", (lost,))
        made.execute("commit")
        made.execute("pragma wal_checkpoint(truncate)")
    with target.open("rb") as file:
        os.fsync(file.fileno())
    unsealed = sum(tail[2] for tail in facts.tail)
    return Report(epoch.hex(), segments, records, unsealed, lost, agree)


def _segments(pages: Pages) -> Iterator[tuple[wire.SegmentHeader, Row]]:
    """Every row that is, by its own checksums, a segment under its first sequence."""
    for rowid, row in pages.leaf_rows():
        body = row[-1]
        if len(row) != 6 or not isinstance(body, bytes):
            continue
        try:
            header = wire.decode_header(body)
        except WireError:
            continue
        if journal.is_segment(header.epoch, rowid, header.records, body):
            yield header, row


def _most_frequent_epoch(pages: Pages) -> bytes:
    counted = Counter(header.epoch for header, _ in _segments(pages))
    return counted.most_common(1)[0][0] if counted else b""


def _copy_segments(made: sqlite3.Connection, pages: Pages, epoch: bytes) -> dict[int, GivenUp]:
    """Copy the segments of ``epoch``; returns what its gaps declare, by first sequence."""
    gaps: dict[int, GivenUp] = {}
    copied = 0
    for header, row in _segments(pages):
        body, first = row[5], header.first_sequence
        if header.epoch != epoch:
            continue
        if header.kind == GAP:
            for part in wire.decode_gap(body):
                gaps[first] = part
                first += part.records
            continue
        accepted_ms = row[3] if isinstance(row[3], int) else header.sealed_ms
        made.execute(
            "insert or ignore into segments values (?, ?, ?, ?, ?, ?)",
            (first, header.records, header.kind, accepted_ms, zlib.crc32(body), body),
        )
        copied += 1
        if copied % _SEGMENTS_AT_ONCE == 0:
            made.execute("commit")
            made.execute("begin immediate")
    return gaps


def _missing(
    made: sqlite3.Connection, last: int, gaps: dict[int, GivenUp]
) -> Iterator[tuple[int, list[GivenUp]]]:
    """Gaps for what no segment covers up to ``last``: as declared before, else of unknown kind."""
    stands = made.execute(
        "select first_sequence, records from segments order by first_sequence"
    ).fetchall()
    at = 1
    for first, records in [*stands, (last + 1, 0)]:
        while at < first:
            start, parts = at, list[GivenUp]()
            room = wire.MAX_RECORDS
            while at < first and room and len(parts) < journal.GAP_PARTS:
                known = gaps.get(at)
                if known is None or at + known.records > first or known.records > room:
                    upcoming = min((g for g in gaps if at < g < first), default=first)
                    n = min(upcoming - at, room)
                    known = GivenUp(n, wire.UNKNOWN_KIND, journal.DAMAGED, {UNKNOWN_DAY: n})
                parts.append(known)
                at += known.records
                room -= known.records
            yield start, parts
        at = max(at, first + records)


def _facts(pages: Pages, roots: dict[str, int]) -> _Facts:
    """The small tables; each row is believed only as far as its types go."""
    meta = {row[0]: row[1] for row in pages.index(roots["meta"]) if len(row) == 2}
    facts = _Facts()
    epoch, zone, following = meta.get("epoch"), meta.get("zone"), meta.get("next_sequence")
    if isinstance(epoch, bytes) and len(epoch) == 16:
        facts.epoch = epoch
    if isinstance(zone, str):
        facts.zone = zone
    if isinstance(following, int):
        facts.next_sequence = following
    for _, found in pages.table(roots["tail"]):
        # Version 1 of the file noted no clocks.
        row = found if len(found) != 6 else (*found, bytes(16), wire.CLOCK_UNKNOWN, 0)
        if (
            _shaped(row, (object, int, int, int, int, bytes, bytes, int, int))
            and row[1] in TAIL_KINDS
            and 1 <= row[3] <= wire.MAX_RECORDS
        ):
            facts.tail.append(row[1:])
    facts.ledger_stands = pages.holds_index(roots["ledger"])
    for row in pages.index(roots["ledger"]):
        if _shaped(row, (int, int, int, int)):
            facts.ledger.append(row)
    facts.sources = [row for row in pages.index(roots["sources"]) if _shaped(row, (str, str))]
    facts.keys = [
        row[1:]
        for _, row in pages.table(roots["idempotency"])
        if _shaped(row, (object, str, bytes, int, int))
    ]
    return facts


def _shaped(row: Row, types: tuple[type, ...]) -> bool:
    return len(row) == len(types) and all(map(isinstance, row, types))


def _known(zone: str) -> str:
    try:
        return BusinessCalendar(zone).zone if zone else ""
    except ConfigError:
        return ""


def _hand_over(recovered: Path, buffer: Buffer) -> None:
    """What the sources rely on: where they read, and which requests are known. Safe to repeat."""
    with (
        database.kept(recovered),
        contextlib.closing(database.open_reader(recovered)) as reader,
    ):
        offsets: list[Any] = reader.execute("select name, state from sources").fetchall()
        keys: list[Any] = reader.execute(
            "select key, digest, records, accepted_ms from idempotency order by id"
        ).fetchall()
    buffer.adopt(offsets, keys)
