"""The durable buffer of a device: what it accepted survives a power cut.

One SQLite file. ``append_*`` return after the commit; ``segments_after`` gives sealed segments to
the forwarder; ``apply_receipt`` deletes what the hub holds.

    layer     may                                            may not
    Buffer    open the file, run the writer, translate errors  know what a transaction means
    Journal   change the tables inside a transaction           open, commit, be used by two threads
    wire      make and read bytes                              know that a file exists

Group commit: one writer thread takes all appends that wait, commits them together (one fsync) and
wakes their callers. A transaction that fails is done again one append at a time, so that a bad one
fails alone; this serves better than savepoints, because SQLite may roll back a whole transaction
by itself (disk full, I/O error), and because sealing mixes the records of all appends.

Not its job: what a record means, when to send, retries.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from scout_edge import acceptance, clock, database, fork, journal, tables
from scout_edge.acceptance import Accepted, Append, KeyReusedError, Offset
from scout_edge.buffer_status import BufferStatus, status_of
from scout_edge.extent import Extent, Note
from scout_edge.journal import Journal
from scout_edge.privacy import EXPIRED, Privacy
from scout_edge.room import REJECT, THIN, Limits, Room
from scout_edge.sealed import NOTHING, SealedSegments, StoredSegment
from scout_edge.tail import TAIL_KINDS
from scout_shared import logs
from scout_shared.errors import PermanentError, ScoutError, TransientError
from scout_shared.messages import NONCE_BYTES, Fork, Opening, Receipt
from scout_shared.wire import DOCUMENTS, READINGS, Document, Reading, Span
from scout_shared.zones import BusinessCalendar

__all__ = [
    "Accepted",
    "Buffer",
    "KeyReusedError",
    "Offset",
    "StoredSegment",
]

T = TypeVar("T")
log = logs.get("buffer")

_GROUP_APPENDS = 256  # per transaction: bounds its memory and the wait of the first caller
_READING_BYTES = 24  # in the tail; 2 when sealed
_RESERVED_PAGES = 16  # sealing frees the tail's pages first and needs about as many
_GIVE_UP_SEGMENTS = 8  # per transaction: possible on an almost full disk (measured)
_DAY_MS = 24 * 3600 * 1000
NOTE_SECONDS = 30.0
_VACUUM_PAGES = 256  # given back to the file system at once: 1 MB
_NO_LIMITS = Limits()


class Buffer:
    """The one writer of a buffer file. Thread-safe. Use as a context manager, or ``close``.

    Args:
        path: the file; made, with its folder, when it is not there. ``<path>.lock`` beside it keeps
            a second process out.
        zone: IANA zone in which business days are counted.
        limits: the file never grows beyond them; then appends are refused, or old readings given
            up and declared, as they say.
        group_commit_seconds: how long the first append of a group waits for others. 0: not at all;
            those that arrive during a commit form the next group anyway.
        note_seconds: least time between two notes, beside the file, of how far it reaches.
        privacy: what is done with personal data before it is durable. Default: nothing.

    Raises:
        ConfigError: the path cannot be used, or another process has it open.
        PermanentError: the file is damaged or is no buffer. It is kept as it is.
    """

    def __init__(
        self,
        path: Path,
        *,
        zone: str,
        limits: Limits = _NO_LIMITS,
        group_commit_seconds: float = 0.0,
        note_seconds: float = NOTE_SECONDS,
        privacy: Privacy | None = None,
    ) -> None:
        self._limits = limits
        self._room = Room(path, limits)
        self._given_up_to = 0
        self.path = path
        self.calendar = BusinessCalendar(zone)
        self.privacy = privacy or Privacy()
        self._max_pages = 0
        self._group_seconds = group_commit_seconds
        self._metrics_known: set[str] = set()
        self._damaged: set[int] = set()
        self._stale = False  # a transaction failed: the journal is ahead of the file
        self._freed = False  # segments were deleted since the last look at the file's size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.nonce = os.urandom(NONCE_BYTES)
        """Tells this writer from one of a copy of the file."""
        self._settled = False
        self._closing = threading.Lock()
        self._closed = False
        try:
            self._resources = self._acquired(zone)
        except TransientError:
            # Opening writes, too: a device that restarts with its disk full must come up.
            if not self._room.let_go():
                raise
            self._resources = self._acquired(zone)
        self._room.keep_ballast()
        self._publish()
        self._note = Note(path, note_seconds)
        self._note_extent(at_once=True)
        # A daemon, so that a program that forgot to close ends; what was promised is committed.
        self._thread = threading.Thread(target=self._write_jobs, name="buffer-writer", daemon=True)
        self._thread.start()

    def _acquired(self, zone: str) -> contextlib.ExitStack:
        """Lock and open the file; returns what must be closed."""
        path = self.path
        with contextlib.ExitStack() as stack:
            stack.enter_context(database.locked(path))
            self._writer = stack.enter_context(contextlib.closing(database.open_writer(path)))
            self._journal = Journal(self._writer, zone)
            with database.kept(path):
                self._load()
                self._open()
            self.sealed = stack.enter_context(contextlib.closing(SealedSegments(path)))
            """What the hub does not hold yet."""
            return stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was handed in, close the file. Appends after this are refused."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._note_extent(at_once=True)
        self._resources.close()

    # -- for sources ----------------------------------------------------------------------------

    def append_readings(
        self,
        readings: Sequence[Reading],
        *,
        offset: Offset | None = None,
        span: Span | None = None,
    ) -> Accepted:
        """Store readings, all or none; returns when they are durable.

        Args:
            readings: in the order in which they were observed.
            offset: where the source goes on; committed with the readings.
            span: the agent itself stamped them, by a clock that nobody vouched for
                (``clock.stamp``). The mark goes with them to the hub.

        Raises:
            PermanentError: a reading cannot be stored; none was.
            TransientError: the buffer or the disk is full or failing; none was stored.
        """
        times = acceptance.check_readings(readings, self._metrics_known) if readings else ()
        days = self.calendar.count(times)
        return self._submit(Append(READINGS, readings, days, offset=offset, span=span))

    def append_documents(
        self,
        documents: Sequence[Document],
        key: str | None = None,
        *,
        offset: Offset | None = None,
    ) -> Accepted:
        """Store documents, all or none; returns when they are durable.

        Args:
            documents: their ``business_day`` is that of ``calendar``.
            key: names this request. The same documents under the same key again are answered as
                ``duplicate`` and not stored again. The last ``journal.KEYS_KEPT`` keys of a week
                are remembered, at least ``journal.KEYS_KEPT_AT_ANY_AGE``.
            offset: where the source goes on; committed with the documents.

        Raises:
            PermanentError: a document cannot be stored; none was.
            PrivacyError: a document may not be stored; none was.
            KeyReusedError: ``key`` came with other documents before; none was stored.
            TransientError: the buffer or the disk is full or failing; none was stored.
        """
        documents = self.privacy.apply(documents)
        acceptance.check_documents(documents)
        days: dict[int, int] = {}
        for document in documents:
            days[document.business_day] = days.get(document.business_day, 0) + 1
        digest = acceptance.digest_of(documents) if key is not None else b""
        return self._submit(Append(DOCUMENTS, documents, days, key, offset, digest))

    def offset(self, source: str) -> str | None:
        """The state that was last committed for ``source``, or None."""
        row = self.sealed.row("select state from sources where name = ?", (source,))
        return None if row is None else str(row[0])

    def adopt(
        self, offsets: Sequence[tuple[str, str]], keys: Sequence[tuple[str, bytes, int, int]]
    ) -> None:
        """Take over what sources rely on from a damaged file. What is known here already stays.

        Args:
            offsets: (source, state).
            keys: (idempotency key, digest, records, accepted_ms), oldest first.
        """
        self._submit(partial(self._journal.adopt, offsets, keys))

    # -- for the forwarder ----------------------------------------------------------------------

    @property
    def epoch(self) -> bytes:
        """Identity of this file."""
        return self._journal.epoch

    @property
    def next_sequence(self) -> int:
        """Sequence that the next sealed record will get."""
        return self._next_sequence

    @property
    def watermark(self) -> int:
        """All sequences up to this are at the hub."""
        return self._watermark

    @property
    def lineage(self) -> tuple[Opening, ...]:
        """Who wrote this file, newest last; that is this writer, unless the disk is full."""
        return self._lineage

    def unsealed_seconds(self, kinds: Sequence[int] = TAIL_KINDS) -> float:
        """Age of the oldest unsealed record; 0 when there is none."""
        return max(0.0, time.monotonic() - min(self._unsealed_since[kind] for kind in kinds))

    def seal(self, min_age_seconds: float = 0.0, kinds: Sequence[int] = TAIL_KINDS) -> int:
        """Seal unsealed records that are this old; returns how many. Raises TransientError."""
        return self._submit(lambda: self._journal.seal(min_age_seconds, kinds))

    def segments_after(
        self,
        sequence: int,
        limit_bytes: int,
        limit: int = 16,
        sent: Mapping[int, int] = NOTHING,
    ) -> list[StoredSegment]:
        """The next sealed segments after ``sequence``, oldest first, without those at the hub.

        At least one, if there is one, then as many as fit ``limit_bytes`` and ``limit``. In the
        place of a segment whose bytes no longer match their checksum comes the gap that declares
        it given up: the hub is told, and the watermark moves on.

        Args:
            sent: first → last sequence of segments that are left out. One that has grown since (a
                gap) is not.

        Raises:
            TransientError: the disk fails.
        """
        while True:
            found, damaged = self.sealed.after(sequence, limit_bytes, limit, sent)
            if not damaged:
                return found
            self._damaged.add(damaged)
            records = self._submit(partial(self._journal.give_up_damaged, damaged))
            log.error("segment.damaged", first_sequence=damaged, given_up_records=records)

    def apply_receipt(self, receipt: Receipt) -> int:
        """Delete what the watermark covers; remember the ranges above it.

        Safe to repeat and to reorder; a receipt of another epoch changes nothing.

        Returns:
            by how many sequences the watermark moved.

        Raises:
            PermanentError: an incident: the hub holds sequences that this file never gave. Nothing
                is deleted, now or later.
            TransientError: the disk fails; the receipt comes again.
        """
        if receipt.epoch != self.epoch:
            return 0
        moved, deleted, fenced = self._submit(lambda: self._receive(receipt))
        if fenced:
            raise PermanentError(
                f"the hub holds sequences up to {receipt.watermark} of epoch {receipt.epoch.hex()},"
                f" this buffer gave only those up to {self.next_sequence - 1}",
                f"{self.path} is an older copy of itself or has a twin: nothing is deleted; keep"
                " the file, start with a new one, and tell the engineer on call",
            )
        self.sealed.committed(receipt.ranges, self._watermark)
        while deleted == journal.DELETE_SEGMENTS:
            # A transaction per chunk: short enough for the appends that wait beside it.
            deleted = self._submit(self._journal.delete_covered)
        return moved

    def leave(self, receipt: Receipt) -> bool:
        """Take the hub's word that another copy of this file goes on with its stream; see ``fork``.

        Safe to repeat. False: it is not meant for this writer, and nothing was changed.

        Raises:
            TransientError: no room, or the disk fails; nothing was changed.
        """
        meant = receipt.fork
        if meant is None or meant.writer != self.nonce or receipt.epoch != self.epoch:
            return False
        self._submit(partial(self._leave, meant))
        return True

    def _leave(self, meant: Fork) -> None:
        fork.leave(self._writer, self._journal, self.path, self.calendar.zone, meant)
        self.sealed.forget()
        self._given_up_to = 0

    def _receive(self, receipt: Receipt) -> tuple[int, int, bool]:
        before = self._journal.watermark
        self._journal.receive(receipt)
        moved = self._journal.watermark - before
        self._freed = self._freed or moved > 0
        deleted = self._journal.delete_covered() if moved else 0
        return moved, deleted, self._journal.fenced

    def give_up_expired(self, days: float) -> int:
        """Give up documents that wait for longer than ``days``; returns the records, declared.

        Only while the kernel vouches for the clock, and only what is known to be that old.
        Raises TransientError.
        """
        if not clock.synced():
            return 0
        until = self.sealed.documents_sealed_before(clock.wall_ms() - round(days * _DAY_MS))
        total = 0
        while until and (
            records := self._submit(
                partial(self._journal.give_up_documents, until, _GIVE_UP_SEGMENTS, EXPIRED)
            )
        ):
            total += records
        if total:
            log.warning("documents.expired", records=total, days=days)
        return total

    def status(self) -> BufferStatus:
        """Numbers for hello, status and metrics."""
        with self.sealed.reader() as reader:
            return status_of(reader, self.path, self._limits.max_bytes, len(self._damaged))

    # -- the writer -----------------------------------------------------------------------------

    @overload
    def _submit(self, work: Append) -> Accepted: ...

    @overload
    def _submit(self, work: Callable[[], T]) -> T: ...

    def _submit(self, work: Append | Callable[[], Any]) -> Any:
        job = _Job(work, Future())
        with self._closing:
            if self._closed:
                raise TransientError("the buffer is closed", "try again when the agent runs")
            self._jobs.put(job)
        return job.done.result()

    def _write_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            group, last = self._group(job)
            self._write(group)
            self._note_extent()
            if self._freed:
                self._freed = False
                self._shrink()
                self._room.keep_ballast()
            if last:
                return

    def _group(self, job: _Job) -> tuple[list[_Job], bool]:
        """All that wait now, or within the group's time; whether the end was among them."""
        group = [job]
        deadline = time.monotonic() + self._group_seconds
        while len(group) < _GROUP_APPENDS:
            try:
                more = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if more is None:
                return group, True
            group.append(more)
        return group, False

    def _write(self, group: list[_Job], *, last_room: bool = False) -> None:
        try:
            results = self._transaction(group)
        except Exception as error:  # noqa: BLE001 - a caller waits for every job: it gets the error
            if not last_room and self._is_urgent(group, error):
                self._take_last_room()
                self._write(group, last_room=True)
            elif len(group) > 1:
                for job in group:
                    self._write([job])
            else:
                group[0].done.set_exception(database.in_use(error, self.path))
        else:
            for job, result in zip(group, results, strict=True):
                if isinstance(result, ScoutError):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    def _transaction(self, group: list[_Job]) -> list[Any]:
        """Do a group's work and commit. Raises what SQLite raises; then nothing was done."""
        refused = self._make_room(group)
        self._settle()
        with self._committed():
            results = [self._work(job.work, refused) for job in group]
            self._journal.flush()
        self._publish()
        return results

    @contextlib.contextmanager
    def _committed(self) -> Iterator[None]:
        """One transaction; after one that failed the journal is loaded again from the file."""
        try:
            self._writer.execute("begin immediate")
            if self._stale:
                self._journal.load()
                self._stale = False
            yield
            self._writer.execute("commit")
        except BaseException:
            self._stale = True
            if self._writer.in_transaction:
                self._writer.execute("rollback")
            raise

    def _make_room(self, group: list[_Job]) -> TransientError | None:
        """Set the cap for a group; make room for its records if the policy allows it.

        At the cap SQLite refuses inserts cleanly, and deletes still work. Some pages are kept from
        appends, so that a full buffer can still be sealed and sent, and some from readings.

        Returns:
            why the readings of the group are refused, if they are.
        """
        appends = [job.work for job in group if isinstance(job.work, Append)]
        if not appends:
            # What makes room may use all of the disk: the floor is for growth.
            self._cap(self._limits.max_bytes // database.PAGE_BYTES)
            return None
        used, count = self._pages()
        most = self._room.pages(count)
        self._cap(most - _RESERVED_PAGES)
        needed = sum(map(_pages_needed, appends))
        wants_readings = any(work.kind == READINGS and work.records for work in appends)
        if not needed:
            return None
        top = most - _RESERVED_PAGES
        if wants_readings:
            top -= self._room.reserved_pages(most)
        if used + needed > top and self._limits.readings_at_cap != REJECT:
            used = self._give_up_readings(top - needed)
            self._cap(most - _RESERVED_PAGES)
        if used + needed <= top or not wants_readings:
            return None
        return database.full(self._room.is_disk_full())

    def _cap(self, pages: int) -> None:
        if pages != self._max_pages:
            self._writer.execute(f"pragma max_page_count = {pages}")
            self._max_pages = pages

    def _pages(self) -> tuple[int, int]:
        """Pages in use, and pages of the file."""
        (count,) = self._writer.execute("pragma page_count").fetchone()
        (free,) = self._writer.execute("pragma freelist_count").fetchone()
        return count - free, count

    def _give_up_readings(self, pages: int) -> int:
        """Give up old readings until no more than ``pages`` are in use; returns those that are.

        Each chunk and the gaps that declare it are one transaction. Thinning begins again at the
        oldest when it has come to the newest.
        """
        policy = self._limits.readings_at_cap
        every = 2 if policy == THIN else 1
        used, _ = self._pages()
        records, last_room = 0, False
        self._cap(self._limits.max_bytes // database.PAGE_BYTES)
        while used > pages:
            try:
                with self._committed():
                    given_up, reached = self._journal.give_up_readings(
                        self._given_up_to, _GIVE_UP_SEGMENTS, every=every, reason=policy
                    )
            except sqlite3.OperationalError:
                if last_room or not self._room.is_disk_full():
                    raise
                last_room = True
                self._take_last_room()
                continue
            last_room = False
            if not given_up and not self._given_up_to:
                break
            records += given_up
            self._given_up_to = reached
            used, _ = self._pages()
        if records:
            log.warning("readings.given_up", records=records, policy=policy)
        return used

    def _take_last_room(self) -> None:
        """On a full disk: the ballast, and what the WAL has grown to since it was last emptied.

        Appends may have used the ballast's bytes for the WAL: without emptying it, nothing that
        makes room could be written any more.
        """
        self._room.let_go()
        with contextlib.suppress(sqlite3.OperationalError):  # then the write says it
            self._writer.execute("pragma wal_checkpoint(truncate)").fetchone()

    def _is_urgent(self, group: list[_Job], error: Exception) -> bool:
        """Whether the disk is full and this is what makes room: never an append."""
        return (
            isinstance(error, sqlite3.OperationalError)
            and not any(isinstance(job.work, Append) for job in group)
            and self._room.is_disk_full()
        )

    def _work(self, work: Append | Callable[[], Any], refused: TransientError | None) -> Any:
        if not isinstance(work, Append):
            return work()
        if refused is not None and work.kind == READINGS and work.records:
            return refused
        try:
            return self._journal.append(work)
        except PermanentError as error:  # refused before anything was changed
            return error

    def _load(self) -> None:
        self._writer.execute("begin immediate")
        (version,) = self._writer.execute("pragma user_version").fetchone()
        if not version:
            self._journal.create()
        else:
            tables.upgrade(self._writer, version)
        self._journal.load()
        self._writer.execute("commit")

    def _open(self) -> None:
        """Begin this writer's part of the file, now or, on a full disk, before the first change."""
        try:
            self._settle()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise
            if self._room.let_go():
                self._open()
                return
            log.warning("opening.postponed", path=str(self.path), reason=str(error))

    def _settle(self) -> None:
        """Nothing of this writer stands in the file before its opening does."""
        if not self._settled:
            with self._committed():
                self._journal.open_as(self.nonce)
            self._settled = True

    def _publish(self) -> None:
        """What other threads may know of the journal: only what is committed."""
        self._next_sequence = self._journal.next_sequence
        self._extent = Extent(
            self._journal.epoch, self._next_sequence, self._journal.unsealed_records
        )
        self._watermark = self._journal.watermark
        self._lineage = self._journal.lineage
        self._unsealed_since = self._journal.unsealed_since()

    def _note_extent(self, *, at_once: bool = False) -> None:
        # What is made of a damaged or a forked file gives no sequences of its own.
        if not self._journal.recovered:
            self._note.keep(self._extent, at_once=at_once)

    def _shrink(self) -> None:
        """Give back a megabyte, when more than half of a grown file is free."""
        try:
            free = self._writer.execute("pragma freelist_count").fetchone()[0]
            pages = self._writer.execute("pragma page_count").fetchone()[0]
            if free > max(pages // 2, 4 * _VACUUM_PAGES):
                # Not execute: Python steps such a statement once, and each step frees one page.
                self._writer.executescript(f"pragma incremental_vacuum({_VACUUM_PAGES})")
        except sqlite3.Error as error:  # a matter of tidiness: what was accepted is not touched
            log.warning("buffer.shrink_failed", error=str(error))


@dataclass(slots=True)
class _Job:
    work: Append | Callable[[], Any]
    done: Future[Any]


def _pages_needed(work: Append) -> int:
    """About the pages that an append takes until it is sealed: a tail row, or segments."""
    if not work.records:
        return 0
    if work.kind == READINGS:
        size = _READING_BYTES * len(work.records)
    else:
        size = sum(
            len(document.body) for document in work.records if isinstance(document, Document)
        )
    return size // database.PAGE_BYTES + 2
