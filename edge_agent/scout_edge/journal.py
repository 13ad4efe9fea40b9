"""What one transaction does to the tables of a buffer file.

Invariants: one gap-free sequence over both kinds, given when sealing; a record stands in exactly
one tail row or segment; the ledger changes in the transaction that accepts the records; nothing is
deleted that the watermark of a receipt does not cover, or that a gap does not declare in the same
transaction.
Not its job: opening the file, transactions, threads (``buffer``); which tables
there are (``tables``); bytes (``scout_shared.wire``).
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import cast

from scout_edge import clock, tables
from scout_edge.acceptance import Accepted, Append, KeyReusedError, Records
from scout_edge.tail import (
    SEGMENT_RAW_BYTES,
    SEGMENT_RECORDS,
    STAMPED,
    TAIL_KINDS,
    Stamp,
    Tail,
    pack,
    segment_end,
    unpack,
)
from scout_shared import wire
from scout_shared.errors import PermanentError, WireError
from scout_shared.messages import Fork, LedgerEntry, Opening, Receipt
from scout_shared.wire import DOCUMENTS, GAP, READINGS, Document, GivenUp, Reading
from scout_shared.zones import UNKNOWN_DAY, BusinessCalendar

DELETE_SEGMENTS = 32  # per transaction: short, and possible on an almost full disk

GAP_PARTS = 512  # about 5 KB once compressed: what is rewritten when a gap grows

DAMAGED = "damaged"
"""Reason: the bytes changed on disk."""

OPENINGS_KEPT = 64
"""About 2 KB in a hello; the hub must know one of them to see that this file is no copy."""

KEYS_KEPT = 50_000
KEYS_KEPT_AT_ANY_AGE = 1_000  # the wall clock may jump by years; a retry comes within minutes
KEY_AGE_MS = 7 * 24 * 3600 * 1000
_PRUNE_EVERY_KEYS = 256


class Journal:
    """What stands in the file. Only within the caller's transaction, only in its one writer thread.

    After a transaction that failed, ``load`` again: the numbers here are ahead of the file.
    """

    def __init__(self, database: sqlite3.Connection, zone: str) -> None:
        self._db = database
        self._calendar = BusinessCalendar(zone)
        self._tails: dict[int, Tail] = {}
        self._meta: dict[str, int] = {}
        self._stored_meta: dict[str, int] = {}
        self._ledger: dict[tuple[int, int], int] = {}
        self._ledger_version = 0
        self._new_keys = 0
        self.epoch = b""
        self.lineage: tuple[Opening, ...] = ()
        """The openings of this file, newest last."""

    @property
    def next_sequence(self) -> int:
        """Sequence that the next sealed record will get."""
        return self._meta["next_sequence"]

    @property
    def watermark(self) -> int:
        """Highest watermark of any receipt."""
        return self._meta["watermark"]

    @property
    def recovered(self) -> bool:
        """Made of a damaged or a forked file: of an old epoch, and takes nothing new."""
        return bool(self._meta["recovered"])

    @property
    def ledger_version(self) -> int:
        """Version of the newest change of the ledger."""
        return self._ledger_version

    def create(self) -> None:
        """Make the tables and a new epoch in an empty file."""
        tables.create(self._db)
        meta = {
            "epoch": os.urandom(16),
            "zone": self._calendar.zone,
            "next_sequence": 1,
            "watermark": 0,
            "ledger_acked": 0,
            "fenced": 0,
            "given_up": 0,
            "recovered": 0,
        }
        self._db.executemany("insert into meta values (?, ?)", meta.items())

    def open_as(self, nonce: bytes) -> None:
        """Begin a new writer's part of the sequence; before it accepts anything.

        What a former process left unsealed is sealed here, of nothing but what stands in the file:
        two copies of a file make the same bytes of it. So everything below the new writer's first
        sequence is common to all copies, and everything from there on is its own.

        A recovered file gets no new writer, and what is unsealed in it waits: the hub may hold more
        of its sequence than it knows.
        """
        if self._meta["recovered"]:
            return
        for kind, tail in self._tails.items():
            if tail.records:
                self._seal(kind, tail, 0, len(tail.records))
                self._restart(kind, tail, [])
        self._db.execute(
            "insert into openings (nonce, first_sequence) values (?, ?)",
            (nonce, self.next_sequence),
        )
        self._db.execute(
            "delete from openings where id <= (select max(id) from openings) - ?",
            (OPENINGS_KEPT,),
        )
        self._read_lineage()
        self._store_meta()

    def _read_lineage(self) -> None:
        self.lineage = tuple(
            Opening(bytes(nonce), first)
            for nonce, first in self._db.execute(
                "select nonce, first_sequence from openings order by id"
            )
        )

    def load(self) -> None:
        """Read the numbers and the tail. A damaged tail row becomes a gap."""
        meta = dict(self._db.execute("select key, value from meta"))
        self.epoch = bytes(meta.pop("epoch"))
        zone = str(meta.pop("zone"))
        self._meta = {"given_up": 0, "recovered": 0} | {
            key: int(value) for key, value in meta.items()
        }
        self._meta.pop("ledger_version", None)  # of an older file
        self._stored_meta = dict(self._meta)
        self._ledger_version = _newest(self._db)
        self._ledger = {}
        self._tails = {kind: Tail() for kind in TAIL_KINDS}
        damaged: list[tuple[int, int, int]] = []
        for row_id, kind, accepted_ms, records, crc, body, *clocks in self._db.execute(
            "select id, kind, accepted_ms, records, crc, body, boot_id, clock, mono_ms from tail"
            " order by id"
        ):
            if zlib.crc32(body) != crc:
                damaged.append((row_id, kind, records))
                continue
            self._tails[kind].span, unpacked = unpack(kind, records, body)
            self._stage(kind, unpacked, accepted_ms, -math.inf)
            boot_id, state, mono_ms = clocks
            self._tails[kind].stamp = Stamp(boot_id, state, accepted_ms, mono_ms)
        for tail in self._tails.values():
            tail.stored = len(tail.records)
        for row_id, kind, records in damaged:
            self._give_up_tail(row_id, kind, records)
        self._read_lineage()
        if zone != self._calendar.zone:
            self._change_zone(zone)

    def _change_zone(self, old: str) -> None:
        """Seal under the zone in which the records were accepted and counted, then go on."""
        new, self._calendar = self._calendar, BusinessCalendar(old)
        self.seal(0)
        self._calendar = new
        self._db.execute("update meta set value = ? where key = 'zone'", (new.zone,))

    # -- accepting ------------------------------------------------------------------------------

    def append(self, append: Append) -> Accepted:
        """Take records into this transaction; ``flush`` writes them.

        Raises:
            KeyReusedError: the key was used for other records. Nothing was changed.
        """
        now_ms, records = clock.wall_ms(), len(append.records)
        if append.key is not None:
            known = self._db.execute(
                "select records, digest from idempotency where key = ?", (append.key,)
            ).fetchone()
            if known is not None:
                if known[1] != append.digest:
                    raise KeyReusedError(
                        f"idempotency key {append.key!r} was used for other records",
                        "use a new key for each request, the same key only to repeat it",
                    )
                return Accepted(known[0], duplicate=True)
            self._db.execute(
                "insert into idempotency (key, digest, records, accepted_ms) values (?, ?, ?, ?)",
                (append.key, append.digest, records, now_ms),
            )
            self._new_keys += 1
        if append.offset is not None:
            self._db.execute(
                "insert into sources values (?, ?)"
                " on conflict (name) do update set state = excluded.state",
                append.offset,
            )
        if records:
            kind = append.kind if append.span is None else STAMPED
            if append.span is not None:
                self._turn(append.span)
            self._stage(kind, append.records, now_ms, time.monotonic())
            self._tails[kind].stamp = None
            for day, count in append.days.items():
                entry = day, append.kind
                self._ledger[entry] = self._ledger.get(entry, 0) + count
        return Accepted(records, duplicate=False)

    def _turn(self, span: wire.Span) -> None:
        """What was stamped in another span is sealed before this one begins."""
        tail = self._tails[STAMPED]
        if tail.records and tail.span != span:
            self._seal(STAMPED, tail, 0, len(tail.records))
            self._restart(STAMPED, tail, [])
        tail.span = span

    def _stage(self, kind: int, records: Records, accepted_ms: int, since: float) -> None:
        tail = self._tails[kind]
        if not tail.records:
            tail.accepted_ms, tail.since = accepted_ms, since
        tail.records += records
        if kind == DOCUMENTS:
            for document in cast(Sequence[Document], records):
                tail.raw_bytes += len(document.body)
                tail.types.add(document.type)

    def flush(self) -> None:
        """Write what ``append`` took: whole segments sealed, the rest as one tail row per kind."""
        for kind, tail in self._tails.items():
            self._seal_full(kind, tail)
            fresh = tail.records[tail.stored :]
            if fresh:
                body = pack(kind, fresh, tail.span)
                now = clock.sealing(self.epoch, self._calendar.zone)
                self._db.execute(
                    "insert into tail (kind, accepted_ms, records, crc, body, boot_id, clock,"
                    " mono_ms) values (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        kind,
                        now.sealed_ms,
                        len(fresh),
                        zlib.crc32(body),
                        body,
                        now.boot_id,
                        now.clock,
                        now.sealed_mono_ms,
                    ),
                )
                tail.stored = len(tail.records)
        if self._ledger:
            # The newest version stands in the rows and nowhere else, and no index has it: each
            # would be one more page to write in every commit.
            self._ledger_version += 1
            self._db.executemany(
                "insert into ledger values (?, ?, ?, ?) on conflict (day, kind) do update"
                " set records = records + excluded.records, version = excluded.version",
                [(day, kind, n, self._ledger_version) for (day, kind), n in self._ledger.items()],
            )
            self._ledger = {}
        if self._new_keys >= _PRUNE_EVERY_KEYS:
            self._prune_keys()
        self._store_meta()

    def _store_meta(self) -> None:
        changed = self._meta.items() - self._stored_meta.items()
        if changed:
            self._db.executemany(
                "insert into meta values (?, ?)"
                " on conflict (key) do update set value = excluded.value",
                list(changed),
            )
            self._stored_meta = dict(self._meta)

    def _prune_keys(self) -> None:
        self._db.execute(
            "delete from idempotency where id <= (select max(id) from idempotency) - ?"
            " or (accepted_ms < ? and id <= (select max(id) from idempotency) - ?)",
            (KEYS_KEPT, clock.wall_ms() - KEY_AGE_MS, KEYS_KEPT_AT_ANY_AGE),
        )
        self._new_keys = 0

    def adopt(
        self, offsets: Sequence[tuple[str, str]], keys: Sequence[tuple[str, bytes, int, int]]
    ) -> None:
        """Offsets and idempotency keys of another file; what is known here already stays."""
        self._db.executemany("insert or ignore into sources values (?, ?)", offsets)
        self._db.executemany(
            "insert or ignore into idempotency (key, digest, records, accepted_ms)"
            " values (?, ?, ?, ?)",
            keys,
        )

    # -- sealing --------------------------------------------------------------------------------

    def seal(self, min_age_seconds: float, kinds: Sequence[int] = TAIL_KINDS) -> int:
        """Seal each tail whose oldest record is that old. Returns the number of records sealed."""
        before, now = self.next_sequence, time.monotonic()
        for kind in kinds:
            tail = self._tails[kind]
            if tail.records and now - tail.since >= min_age_seconds:
                self._seal(kind, tail, 0, len(tail.records))
                self._restart(kind, tail, [])
        self._store_meta()
        return self.next_sequence - before

    def _seal_full(self, kind: int, tail: Tail) -> None:
        if (
            len(tail.records) < SEGMENT_RECORDS
            and tail.raw_bytes < SEGMENT_RAW_BYTES
            and len(tail.types) <= wire.MAX_TYPES
        ):
            return
        at = 0
        while end := segment_end(kind, tail.records, at):
            self._seal(kind, tail, at, end)
            at = end
        self._restart(kind, tail, tail.records[at:])

    def _seal(self, kind: int, tail: Tail, at: int, end: int) -> None:
        """Seal the records ``at`` to ``end``; those in tail rows are all in the first segment."""
        assert at or end >= tail.stored
        if tail.stored and not at:
            # First, so that the segment can use these pages in a buffer that is full.
            self._db.execute("delete from tail where kind = ?", (kind,))
        first, records = self.next_sequence, tail.records[at:end]
        sealing = self._sealing(tail.stamp)
        if kind != DOCUMENTS:
            kind, readings = READINGS, cast(list[Reading], records)
            days = self._calendar.count([r[1] for r in readings])
            body = wire.encode_readings(sealing, first, readings, days, tail.span)
        else:
            body = wire.encode_documents(sealing, first, cast(list[Document], records))
        self._db.execute(
            "insert into segments values (?, ?, ?, ?, ?, ?)",
            (
                first,
                len(records),
                kind,
                sealing.sealed_ms if at else tail.accepted_ms,
                zlib.crc32(body),
                body,
            ),
        )
        self._meta["next_sequence"] = first + len(records)

    def _sealing(self, stamp: Stamp | None) -> wire.Sealing:
        """Now; or, of records that were read from the file, when the newest was accepted."""
        if stamp is None:
            return clock.sealing(self.epoch, self._calendar.zone)
        return wire.Sealing(
            self.epoch,
            stamp.boot_id,
            self._calendar.zone,
            stamp.clock,
            stamp.wall_ms,
            stamp.mono_ms,
        )

    def _restart(self, kind: int, tail: Tail, rest: Records) -> None:
        tail.stamp = None
        tail.records, tail.stored, tail.raw_bytes, tail.types = [], 0, 0, set()
        if rest:
            self._stage(kind, rest, clock.wall_ms(), time.monotonic())

    @property
    def unsealed_records(self) -> int:
        """Accepted, and without a sequence yet."""
        return sum(len(tail.records) for tail in self._tails.values())

    def unsealed_since(self) -> dict[int, float]:
        """Per kind of tail, monotonic seconds when its oldest record was accepted; inf: none."""
        return {kind: t.since if t.records else math.inf for kind, t in self._tails.items()}

    # -- giving up ------------------------------------------------------------------------------

    @property
    def given_up(self) -> int:
        """Records of this epoch that were given up, each in a gap."""
        return self._meta["given_up"]

    def give_up_damaged(self, first: int) -> int:
        """Put a gap in the place of the segment at ``first``, if it is damaged.

        A segment whose own checksums hold is kept: then only the number beside it changed.

        Returns:
            the records given up.
        """
        row = self._db.execute(
            "select records, kind, crc, body from segments where first_sequence = ?", (first,)
        ).fetchone()
        if row is None or zlib.crc32(row[3]) == row[2]:
            return 0
        records, kind, _, body = row
        if is_segment(self.epoch, first, records, body):
            self._db.execute(
                "update segments set crc = ? where first_sequence = ?", (zlib.crc32(body), first)
            )
            return 0
        return self._replace([(first, records, kind, None)], DAMAGED)

    def give_up_readings(
        self, after: int, segments: int, *, every: int, reason: str
    ) -> tuple[int, int]:
        """Give up old segments of readings to make room: of those after ``after`` each ``every``th.

        Documents stay. Returns the records given up and where to go on; (0, 0): there are none.
        """
        rows = self._db.execute(
            "select first_sequence, records, kind, crc, body from segments"
            " where first_sequence > max(?, ?) and kind = ? order by first_sequence limit ?",
            (after, self.watermark, READINGS, segments * every),
        ).fetchall()
        chosen = rows[every - 1 :: every]
        if not chosen:
            return 0, 0
        given_up = self._replace(
            [
                (f, n, kind, body if zlib.crc32(body) == crc else None)
                for f, n, kind, crc, body in chosen
            ],
            reason,
        )
        return given_up, rows[-1][0]

    def give_up_documents(self, until: int, segments: int, reason: str) -> int:
        """Give up segments of documents that begin up to ``until``; returns their records."""
        rows = self._db.execute(
            "select first_sequence, records, kind, crc, body from segments"
            " where first_sequence > ? and first_sequence <= ? and kind = ?"
            " order by first_sequence limit ?",
            (self.watermark, until, DOCUMENTS, segments),
        ).fetchall()
        return self._replace(
            [
                (f, n, kind, body if zlib.crc32(body) == crc else None)
                for f, n, kind, crc, body in rows
            ],
            reason,
        )

    def _give_up_tail(self, row_id: int, kind: int, records: int) -> None:
        """A tail row that cannot be read: its records get their sequences, in a gap."""
        kind = READINGS if kind == STAMPED else kind
        if kind not in wire.KIND_NAMES or not 1 <= records <= wire.MAX_RECORDS:
            raise PermanentError(f"tail row {row_id} with {records} records is damaged")
        self._db.execute("delete from tail where id = ?", (row_id,))
        first = self.next_sequence
        self._meta["next_sequence"] = first + records
        self._replace([(first, records, kind, None)], DAMAGED)
        self._store_meta()

    def _replace(self, rows: list[tuple[int, int, int, bytes | None]], reason: str) -> int:
        """Delete segments and declare them in gaps, in one transaction. Returns their records.

        ``rows``: (first, records, kind, body or None where it cannot be read), ascending. A gap
        that ends where one begins grows by it, up to GAP_PARTS.
        """
        total = 0
        for first, records, kind, body in rows:
            kept_kind = kind if kind in wire.KIND_NAMES else wire.UNKNOWN_KIND
            days = {UNKNOWN_DAY: records} if body is None else _days(body)
            parts = [GivenUp(records, kept_kind, reason, days)]
            start = first
            before = self._db.execute(
                "select first_sequence, records, kind, body from segments"
                " where first_sequence < ? order by first_sequence desc limit 1",
                (first,),
            ).fetchone()
            if before is not None and before[2] == GAP and sum(before[:2]) == first:
                grown = [*_parts(before[3]), *parts]
                fits = sum(part.records for part in grown) <= wire.MAX_RECORDS
                if grown[0] is not parts[0] and len(grown) <= GAP_PARTS and fits:
                    start, parts = before[0], grown
            self._db.execute("delete from segments where first_sequence in (?, ?)", (first, start))
            self.insert_gap(start, parts)
            total += records if kind != GAP else 0  # a damaged gap was counted before
        self._meta["given_up"] += total
        self._store_meta()
        return total

    def insert_gap(self, first: int, parts: Sequence[GivenUp]) -> None:
        """Declare that what stood at ``first`` is given up; counted by the caller."""
        sealing = clock.sealing(self.epoch, self._calendar.zone)
        body = wire.encode_gap(sealing, first, parts)
        records = sum(part.records for part in parts)
        self._db.execute(
            "insert into segments values (?, ?, ?, ?, ?, ?)",
            (first, records, GAP, sealing.sealed_ms, zlib.crc32(body), body),
        )

    # -- leaving a stream -----------------------------------------------------------------------

    def fork_point(self, fork: Fork) -> int:
        """First sequence that leaves the stream: all records from there on are in whole segments.

        Seals everything. What the watermark covers stays: the hub has it. A segment that began
        before stays, too: its records cannot be told apart any more.
        """
        self.flush()
        self.seal(0)
        first = max(fork.first_sequence, self.watermark + 1)
        (first,) = self._db.execute(
            "select coalesce(max(first_sequence + records), ?1) from segments"
            " where first_sequence < ?1 and first_sequence + records > ?1",
            (first,),
        ).fetchone()
        return int(first)

    def leave(self, fork: Fork, first: int) -> None:
        """Give what was accepted from ``first`` on the fork's epoch and sequences from 1.

        The records, their order, days and clocks stay; the ledger counts exactly them. Segments
        before ``first`` are deleted: the caller has put them elsewhere. Requests that were answered
        and places where sources read stay as they are: they are the sources' own.
        """
        epoch, shift = fork.epoch_after(self.epoch), first - 1
        self._db.execute("delete from segments where first_sequence < ?", (first,))
        rows = self._db.execute(
            "select first_sequence from segments order by first_sequence"
        ).fetchall()
        ledger: Counter[tuple[int, int]] = Counter()
        given_up = 0
        for (old,) in rows:
            self.give_up_damaged(old)
        for (old,) in self._db.execute(
            "select first_sequence from segments order by first_sequence"
        ).fetchall():
            kind, body = self._db.execute(
                "select kind, body from segments where first_sequence = ?", (old,)
            ).fetchone()
            parts = wire.decode_gap(body) if kind == GAP else []
            given_up += sum(part.records for part in parts)
            for stood, days in [(part.kind, part.days) for part in parts] or [(kind, _days(body))]:
                for day, count in days.items():
                    ledger[day, stood] += count
            body = wire.renamed(body, epoch, old - shift)
            self._db.execute(
                "update segments set first_sequence = ?, crc = ?, body = ?"
                " where first_sequence = ?",
                (old - shift, zlib.crc32(body), body, old),
            )
        self._db.execute("delete from ledger")
        self._db.executemany(
            "insert into ledger values (?, ?, ?, 1)",
            [(day, kind, n) for (day, kind), n in ledger.items() if kind in wire.KIND_NAMES],
        )
        openings = [*self.lineage]
        at = next((i for i, o in enumerate(openings) if o.nonce == fork.opening), -1)
        self._db.execute("delete from openings")
        self._db.executemany(
            "insert into openings (nonce, first_sequence) values (?, ?)",
            [(nonce, max(1, begun - shift)) for nonce, begun in openings[at:]],
        )
        self._db.execute("update meta set value = ? where key = 'epoch'", (epoch,))
        self._meta |= {
            "next_sequence": self.next_sequence - shift,
            "watermark": 0,
            "ledger_acked": 0,
            "given_up": given_up,
            "fenced": 0,
            "forks": self._meta.get("forks", 0) + 1,
        }
        self.epoch = epoch
        self._ledger_version = _newest(self._db)
        self._store_meta()
        self._read_lineage()

    # -- receipts -------------------------------------------------------------------------------

    def receive(self, receipt: Receipt) -> None:
        """Move the watermark and the ledger's mark up to a receipt of this epoch; delete nothing.

        A receipt of sequences that this file never gave sets ``fenced``, for good: from then on no
        receipt is believed, because new records get sequences that the hub takes for stored.
        """
        highest = max([receipt.watermark, *(high for _, high in receipt.ranges)])
        watermark = receipt.watermark
        if self._meta.get("forked"):
            # What copies have in common knows its own end: the rest is another one's to deliver.
            watermark = min(watermark, self.next_sequence - 1)
        elif highest >= self.next_sequence and self._meta["recovered"]:
            # Made of a damaged file: it may not know its own end, and gives no new sequences.
            self._meta["next_sequence"] = highest + 1
        elif highest >= self.next_sequence:
            self._meta["fenced"] = 1
            self._store_meta()
        if not self._meta["fenced"]:
            self._meta["watermark"] = max(self.watermark, watermark)
            version = min(receipt.ledger_version, self.ledger_version)
            self._meta["ledger_acked"] = max(self._meta["ledger_acked"], version)
            self._store_meta()

    @property
    def fenced(self) -> bool:
        """A receipt showed that this file is an older copy of itself, or that a twin sends too."""
        return bool(self._meta["fenced"])

    def delete_covered(self) -> int:
        """Delete at most DELETE_SEGMENTS that the watermark covers; returns how many."""
        return self._db.execute(
            "delete from segments where first_sequence in (select first_sequence from segments"
            " where first_sequence + records - 1 <= ? order by first_sequence limit ?)",
            (self.watermark, DELETE_SEGMENTS),
        ).rowcount


def is_segment(epoch: bytes, first: int, records: int, body: bytes) -> bool:
    """Whether ``body`` is, by its own checksums, the segment that should stand there."""
    try:
        header = wire.decode_header(body)
        wire.decode_body(header, body)
    except WireError:
        return False
    return (header.epoch, header.first_sequence, header.records) == (epoch, first, records)


def _days(segment: bytes) -> dict[int, int]:
    """Records per business day of an intact segment."""
    meta, _ = wire.decode_body(wire.decode_header(segment), segment)
    return dict(meta["days"])


def _parts(gap: bytes) -> list[GivenUp]:
    """The parts of a gap; none when it cannot be read: then it is left as it is."""
    try:
        return wire.decode_gap(gap)
    except WireError:
        return []


def _newest(database: sqlite3.Connection) -> int:
    """Version of the newest change of the ledger. Looks at all rows: one per day and kind."""
    (version,) = database.execute("select coalesce(max(version), 0) from ledger").fetchone()
    return int(version)


def ledger_after_acked(
    database: sqlite3.Connection, acked: int, limit: int = 2000
) -> tuple[int, tuple[LedgerEntry, ...]]:
    """Ledger rows changed after ``acked``, whole versions, oldest first, about ``limit`` at most.

    Returns:
        the version up to which they are complete, and the rows.
    """
    version = _newest(database)
    rows = database.execute(
        "select day, kind, records, version from ledger where version > ? order by version limit ?",
        (acked, limit + 1),
    ).fetchall()
    if len(rows) > limit:
        # The last version may be cut in the middle: take all of its rows.
        version = rows[-1][3]
        rows = database.execute(
            "select day, kind, records, version from ledger where version > ? and version <= ?"
            " order by version",
            (acked, version),
        ).fetchall()
    return version, tuple(LedgerEntry(day, kind, records) for day, kind, records, _ in rows)
