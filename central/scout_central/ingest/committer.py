"""Stores a batch of arrivals in one transaction; what it returns may be receipted, nothing else.

Invariant: ``streams.received`` holds exactly the sequences that bronze or the quarantine holds, and
``received_counts`` of a stream add up to its size. Stream rows are locked in (device, epoch) order,
so any number of committers may work on any streams. A batch costs a fixed number of statements;
only contested segments (bad bodies, overlaps) and bad documents cost some of their own.
Not its job: taking messages, publishing receipts, retrying (see ``receiver.py``).
"""

from __future__ import annotations

import datetime as dt
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg

from scout_central import database
from scout_central.ingest import columns as column
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import Parsed, SegmentArrival, UnreadableArrival
from scout_central.ingest.columns import (
    DocumentColumns,
    GapColumns,
    Mask,
    ReadingColumns,
    RowContext,
)
from scout_central.ingest.gaps import close_gaps, declare
from scout_central.ingest.isolation import (
    contest,
    exclude_bad_documents,
    exclude_readings,
    exclude_unknown_types,
    set_aside,
)
from scout_central.ingest.ledger import (
    Accepted,
    Outcome,
    StreamReceipt,
    Work,
    add_segments,
    greet,
    note_error,
    read_receipts,
    set_online,
    stream_key,
    write_tallies,
)
from scout_central.ingest.openings import admit
from scout_central.ingest.speakers import compare_speakers
from scout_shared.errors import PermanentError, TransientError
from scout_shared.messages import Receipt
from scout_shared.wire import SegmentHeader

PARTITION_DAYS = 8
"""Bronze partitions exist for today and the week after, so that midnight waits for no lock."""

_CACHE_LIMIT = 100_000
_MISMATCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit made durable."""

    receipts: list[StreamReceipt]
    outcomes: list[Outcome]
    """One per arrival, in their order."""
    rows: int
    """Rows that landed in bronze."""
    quarantined_records: int


class Committer:
    """One connection and its caches; for one thread. Connects when first needed."""

    def __init__(self, dsn: str, *, enrolment: str = "open") -> None:
        """``enrolment``: as the setting of that name; "required" holds back unknown devices."""
        self._dsn = dsn
        self._required = enrolment == "required"
        self._connection: database.Connection | None = None
        self._streams: dict[tuple[str, bytes], int] = {}
        self._devices: set[str] = set()
        self._metrics: dict[str, int] = {}
        self._partitions_checked: dt.date | None = None
        self._partitions: set[dt.date] = set()
        self._mismatches: dict[str, float] = {}

    def close(self) -> None:
        """Give the connection back. Safe to repeat; the next commit connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def commit(self, batch: Sequence[Parsed]) -> Committed:
        """Store ``batch``, all or nothing. Safe to repeat: what is stored already is redelivered.

        Raises:
            TransientError: nothing is known to be stored; try the same batch again later.
            PermanentError: PostgreSQL refuses this batch for ever; see ``commit_isolating``.
        """
        try:
            with database.translated():
                connection = self._connect()
                received_ms = time.time_ns() // 1_000_000
                held = self._held(connection, batch) if self._required else frozenset()
                admitted = [item for item in batch if item.arrival.device_id not in held]
                self._prepare(connection, admitted, received_ms)
                with connection.transaction():
                    stored = self._store(connection, admitted, received_ms)
                return _with_held(stored, batch, held) if held else stored
        except TransientError:
            self.close()
            raise

    def commit_isolating(self, batch: Sequence[Parsed]) -> Committed:
        """``commit``, but an arrival that PostgreSQL refuses costs only itself.

        It is kept raw in the quarantine and not receipted: the device has it still.

        Raises:
            TransientError: as ``commit``; a part of the batch may be stored, which is safe.
            PermanentError: not even the quarantine takes it: the schema is not ours.
        """
        try:
            return self.commit(batch)
        except PermanentError as error:
            if len(batch) == 1:
                return self._refuse(batch[0], error)
        parts = [self.commit_isolating([item]) for item in batch]
        latest = {
            (r.store_id, r.device_id, r.receipt.epoch, r.receipt.fork): r
            for part in parts
            for r in part.receipts
        }
        return Committed(
            list(latest.values()),
            [outcome for part in parts for outcome in part.outcomes],
            sum(part.rows for part in parts),
            sum(part.quarantined_records for part in parts),
        )

    def _refuse(self, item: Parsed, error: PermanentError) -> Committed:
        arrival = item.arrival
        with database.translated():
            connection = self._connect()
            with connection.transaction():
                connection.execute(
                    sql.QUARANTINE_SEGMENT,
                    {
                        "reason": "refused_by_database",
                        "message": error.message[:2000].replace("\0", ""),
                        "store": arrival.store_id,
                        "device": arrival.device_id,
                        "stream": None,
                        "sequence": None,
                        "records": item.header.records if isinstance(item, SegmentArrival) else 1,
                        "raw": arrival.payload,
                    },
                )
        return Committed([], [Outcome.REFUSED], 0, 0)

    def _connect(self) -> database.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = database.connect(
                self._dsn,
                application="scout-ingest",
                autocommit=True,
                # A server that vanishes without a word must not hold the committer for hours.
                keepalives_idle=10,
                tcp_user_timeout=30_000,
            )
            self._connection.execute(sql.SET_SESSION)
            self._partitions_checked = None
        return self._connection

    # --- before the transaction: rows that others may share, each safe to make twice

    def _prepare(
        self, connection: database.Connection, batch: Sequence[Parsed], received_ms: int
    ) -> None:
        self._make_partitions(connection, received_ms)
        self._make_streams(connection, batch)
        names = {
            name
            for item in batch
            if isinstance(item, SegmentArrival) and isinstance(item.columns, ReadingColumns)
            for name in item.columns.metrics
            if name not in self._metrics
        }
        if names:
            if len(self._metrics) > _CACHE_LIMIT:
                self._metrics.clear()
                names = _metric_names(batch)
            self._find_metrics(connection, names)
            missing = names.difference(self._metrics)
            if missing:
                connection.execute(sql.MAKE_METRICS, {"names": sorted(missing)})
                self._find_metrics(connection, missing)

    def _find_metrics(self, connection: database.Connection, names: set[str]) -> None:
        self._metrics.update(connection.execute(sql.FIND_METRICS, {"names": list(names)}))

    def _make_partitions(self, connection: database.Connection, received_ms: int) -> None:
        today = dt.datetime.fromtimestamp(received_ms / 1000, dt.UTC).date()
        if today == self._partitions_checked:
            return
        try:
            with connection.transaction():
                connection.execute(
                    sql.ENSURE_PARTITIONS, {"from_day": today, "days": PARTITION_DAYS}
                )
        except psycopg.errors.LockNotAvailable:
            # Making a partition waits for every reader of the table. It can wait: today's exists.
            if today not in self._partitions:
                raise
        else:
            self._partitions = {today + dt.timedelta(i) for i in range(PARTITION_DAYS)}
        self._partitions_checked = today

    def _make_streams(self, connection: database.Connection, batch: Sequence[Parsed]) -> None:
        if len(self._streams) > _CACHE_LIMIT or len(self._devices) > _CACHE_LIMIT:
            self._streams.clear()
            self._devices.clear()
        stores = {
            item.arrival.device_id: item.arrival.store_id
            for item in reversed(batch)
            if not isinstance(item, UnreadableArrival)
            and item.arrival.device_id not in self._devices
        }
        streams = sorted(
            {key for key in map(stream_key, batch) if key and key not in self._streams}
        )
        if not stores and not streams:
            return
        seen = {"devices": [d for d, _ in streams], "epochs": [e for _, e in streams]}
        with connection.transaction():
            self._make_devices(connection, stores)
            connection.execute(sql.MAKE_STREAMS, seen)
            found = connection.execute(sql.FIND_STREAMS, seen).fetchall()
        self._devices.update(stores)
        for device_id, epoch, stream_id in found:
            self._streams[device_id, bytes(epoch)] = stream_id

    def _make_devices(self, connection: database.Connection, stores: dict[str, str]) -> None:
        connection.execute(
            sql.MAKE_DEVICES,
            {
                "devices": list(stores),
                "stores": list(stores.values()),
                "state": "pending" if self._required else "active",
            },
        )

    def _held(self, connection: database.Connection, batch: Sequence[Parsed]) -> frozenset[str]:
        """The devices in ``batch`` that wait for an operator; the unknown ones become pending."""
        stores = {
            item.arrival.device_id: item.arrival.store_id
            for item in batch
            if not isinstance(item, UnreadableArrival)
        }
        unknown = {d: s for d, s in stores.items() if d not in self._devices}
        if unknown:
            self._make_devices(connection, unknown)
        # Asked anew for each batch: who is let in must not wait for a cache.
        heard = {item.arrival.device_id for item in batch}
        rows = connection.execute(sql.ADMITTED_DEVICES, {"devices": list(heard)})
        return frozenset(heard.difference(device_id for (device_id,) in rows))

    # --- inside the transaction

    def _store(
        self, connection: database.Connection, batch: Sequence[Parsed], received_ms: int
    ) -> Committed:
        streams = [self._streams[key] if key else None for key in map(stream_key, batch)]
        work = self._begin(connection, streams, received_ms)
        self._check_stores(work, batch, streams)
        _report_retired(work, batch, streams)
        landed, contested, gaps, closing = _sort_out(connection, work, batch, streams)
        self._copy_readings(connection, work, landed)
        _copy_documents(connection, work, landed)
        if closing:
            close_gaps(connection, work, closing)
        if landed:
            add_segments(connection, work, landed, Outcome.LANDED)
        for accepted in contested:
            contest(connection, work, accepted)
        # Last: what came in the same batch is not given up.
        for accepted in gaps:
            declare(connection, work, accepted)
        for position, item in enumerate(batch):
            if isinstance(item, UnreadableArrival):
                set_aside(connection, work, position, item)
        admission = admit(connection, work, batch, streams)
        compare_speakers(connection, work, batch, admission.refused)
        greet(connection, work, batch, streams, admission.refused)
        set_online(connection, batch)
        write_tallies(connection, work)
        receipts = read_receipts(connection, batch, streams, received_ms)
        receipts = [*admission.receipts, *receipts]
        return Committed(receipts, work.outcomes, work.rows, sum(work.quarantined.values()))

    def _begin(
        self, connection: database.Connection, streams: list[int | None], received_ms: int
    ) -> Work:
        """Lock the streams and learn who this transaction is."""
        wanted = sorted({stream_id for stream_id in streams if stream_id is not None})
        work = Work(received_ms, 0, {}, set(), [Outcome.NOTED] * len(streams))
        if wanted:
            for stream_id, store_id, doubtful, retired in connection.execute(
                sql.LOCK_STREAMS, {"streams": wanted}
            ):
                work.stores[stream_id] = store_id
                if retired:
                    work.retired.add(stream_id)
                if doubtful:
                    work.doubtful.add(stream_id)
            if len(work.stores) != len(wanted):
                # Another database stands behind the DSN now, or someone deleted the device.
                self._streams.clear()
                self._devices.clear()
                self._metrics.clear()
                self._partitions_checked = None
                raise TransientError("streams that this hub knew are gone from the database")
            row = connection.execute(sql.CURRENT_XID).fetchone()
            assert row is not None
            work.xid = row[0]
        return work

    def _check_stores(self, work: Work, batch: Sequence[Parsed], streams: list[int | None]) -> None:
        now = time.monotonic()
        for item, stream_id in zip(batch, streams, strict=True):
            if stream_id is None or work.stores[stream_id] == item.arrival.store_id:
                continue
            device_id = item.arrival.device_id
            # Each message of the device says it; once a minute is enough to keep the row alive.
            if now - self._mismatches.get(device_id, -_MISMATCH_SECONDS) < _MISMATCH_SECONDS:
                continue
            if len(self._mismatches) > _CACHE_LIMIT:
                self._mismatches.clear()
            self._mismatches[device_id] = now
            note_error(
                work,
                item,
                code="store_mismatch",
                severity="high",
                message=f"device {device_id} belongs to store {work.stores[stream_id]} and speaks "
                f"as store {item.arrival.store_id}; its data is kept under the former",
                hint="correct the store in the device's settings, or move the device to the store",
            )

    def _copy_readings(
        self, connection: database.Connection, work: Work, landed: list[Accepted]
    ) -> None:
        readings = [a for a in landed if isinstance(a.item.columns, ReadingColumns)]
        if not readings:
            return
        with connection.cursor() as cursor, cursor.copy(sql.COPY_READINGS) as copy:
            copy.write(column.COPY_HEADER)
            for accepted in readings:
                columns = accepted.item.columns
                assert isinstance(columns, ReadingColumns)
                excluded = columns.uncalendared()
                if excluded is not None:
                    exclude_readings(work, accepted, columns, excluded)
                ids = [self._metrics[name] for name in columns.metrics]
                copy.write(column.reading_rows(columns, ids, _context(work, accepted), excluded))
                work.rows += columns.header.records - (
                    0 if excluded is None else int(excluded.sum())
                )
            copy.write(column.COPY_TRAILER)


def _report_retired(work: Work, batch: Sequence[Parsed], streams: list[int | None]) -> None:
    """Nothing of a retired device is lost, but somebody must know that it still works."""
    for item, stream_id in zip(batch, streams, strict=True):
        if stream_id in work.retired and isinstance(item, SegmentArrival):
            device_id = item.arrival.device_id
            note_error(
                work,
                item,
                code="retired_device",
                severity="high",
                message=f"device {device_id} is retired and still sends; its data is kept under "
                f"store {work.stores[stream_id]}",
                hint="fetch the device, or enrol it again: scout-hub device token --device",
                records=item.header.records,
            )


def _with_held(stored: Committed, batch: Sequence[Parsed], held: frozenset[str]) -> Committed:
    """``stored``, and for those that are held back a receipt that says: wait."""
    outcomes = iter(stored.outcomes)
    receipts = {
        key: StreamReceipt(
            item.arrival.store_id, item.arrival.device_id, Receipt(key[1], 0, credit=0), held=True
        )
        for item in batch
        if item.arrival.device_id in held and (key := stream_key(item)) is not None
    }
    return Committed(
        [*stored.receipts, *receipts.values()],
        [Outcome.HELD if i.arrival.device_id in held else next(outcomes) for i in batch],
        stored.rows,
        stored.quarantined_records,
    )


class _Intervals:
    """The segments of one stream that a batch accepted so far; they never overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._headers: list[SegmentHeader] = []

    def meets(self, header: SegmentHeader) -> SegmentHeader | None:
        """An accepted segment that shares a sequence with ``header``."""
        at = bisect_right(self._starts, header.last_sequence)
        if at and self._headers[at - 1].last_sequence >= header.first_sequence:
            return self._headers[at - 1]
        return None

    def add(self, header: SegmentHeader) -> None:
        at = bisect_right(self._starts, header.first_sequence)
        self._starts.insert(at, header.first_sequence)
        self._headers.insert(at, header)


def _sort_out(
    connection: database.Connection,
    work: Work,
    batch: Sequence[Parsed],
    streams: list[int | None],
) -> tuple[list[Accepted], list[Accepted], list[Accepted], list[Accepted]]:
    """New segments to land, contested ones, gaps, and of those that land the given-up ones.

    Redeliveries get their outcome here.
    """
    gaps = [
        Accepted(position, stream_id, item)
        for position, (item, stream_id) in enumerate(zip(batch, streams, strict=True))
        if isinstance(item, SegmentArrival)
        and isinstance(item.columns, GapColumns)
        and stream_id is not None
    ]
    segments = [
        Accepted(position, stream_id, item)
        for position, (item, stream_id) in enumerate(zip(batch, streams, strict=True))
        if isinstance(item, SegmentArrival)
        and not isinstance(item.columns, GapColumns)
        and stream_id is not None
    ]
    if not segments:
        return [], [], gaps, []
    headers = [s.item.header for s in segments]
    touched = {
        position: (is_redelivery, was_given_up)
        for position, is_redelivery, was_given_up in connection.execute(
            sql.TOUCHED,
            {
                "positions": [s.position for s in segments],
                "streams": [s.stream_id for s in segments],
                "firsts": [h.first_sequence for h in headers],
                "records": [h.records for h in headers],
                "crcs": [h.body_crc for h in headers],
                "kinds": [h.kind for h in headers],
            },
        )
    }
    landed: list[Accepted] = []
    closing: list[Accepted] = []
    contested: list[Accepted] = []
    taken: dict[int, _Intervals] = {}
    # Good copies first: a damaged copy of the same segment is then a redelivery.
    for segment in sorted(segments, key=lambda s: s.item.error is not None):
        header = segment.item.header
        intervals = taken.setdefault(segment.stream_id, _Intervals())
        other = intervals.meets(header)
        is_redelivery, was_given_up = touched.get(segment.position, (False, False))
        if is_redelivery or (other is not None and _same(header, other)):
            work.outcomes[segment.position] = Outcome.REDELIVERED
        elif (
            other is not None
            or segment.item.error is not None
            or (segment.position in touched and not was_given_up)
        ):
            contested.append(segment)
        else:
            intervals.add(header)
            landed.append(segment)
            work.outcomes[segment.position] = Outcome.LANDED
            if was_given_up:
                closing.append(segment)
    return landed, contested, gaps, closing


def _same(one: SegmentHeader, other: SegmentHeader) -> bool:
    """A segment never changes: equal identity, size and checksum is the same segment."""
    return (one.first_sequence, one.records, one.body_crc) == (
        other.first_sequence,
        other.records,
        other.body_crc,
    )


def _copy_documents(connection: database.Connection, work: Work, landed: list[Accepted]) -> None:
    documents = [
        (
            accepted,
            accepted.item.columns,
            exclude_unknown_types(work, accepted, accepted.item.columns),
        )
        for accepted in landed
        if isinstance(accepted.item.columns, DocumentColumns)
    ]
    if not documents:
        return
    try:
        with connection.transaction():
            _copy_document_rows(connection, work, documents)
    except psycopg.Error as error:
        # 22: not JSON, not UTF-8, a number that numeric lacks; 54: brackets too deep for the stack.
        if (error.sqlstate or "")[:2] not in ("22", "54"):
            raise
        exclude_bad_documents(connection, work, documents)
        _copy_document_rows(connection, work, documents)
    work.rows += sum(int((~excluded).sum()) for _, _, excluded in documents)


def _copy_document_rows(
    connection: database.Connection,
    work: Work,
    documents: list[tuple[Accepted, DocumentColumns, Mask]],
) -> None:
    with connection.cursor() as cursor, cursor.copy(sql.COPY_DOCUMENTS) as copy:
        copy.write(column.COPY_HEADER)
        for accepted, columns, excluded in documents:
            copy.write(b"".join(column.document_rows(columns, _context(work, accepted), excluded)))
        copy.write(column.COPY_TRAILER)


def _context(work: Work, accepted: Accepted) -> RowContext:
    return RowContext(
        accepted.stream_id, work.stores[accepted.stream_id], work.received_ms, work.xid
    )


def _metric_names(batch: Iterable[Parsed]) -> set[str]:
    return {
        name
        for item in batch
        if isinstance(item, SegmentArrival) and isinstance(item.columns, ReadingColumns)
        for name in item.columns.metrics
    }
