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
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
import psycopg
from scout_shared import topics, wire
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.messages import Receipt
from scout_shared.wire import SegmentHeader
from scout_shared.zones import UNKNOWN_DAY, BusinessCalendar

from scout_central import database
from scout_central.ingest import columns as column
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import (
    HelloArrival,
    Parsed,
    SegmentArrival,
    StatusArrival,
    UnreadableArrival,
)
from scout_central.ingest.columns import DocumentColumns, Mask, ReadingColumns, RowContext

POISON_ATTEMPTS = 3
"""A segment with a bad body is receipted when it came so often: the device has no better copy."""
MAX_RANGES = 64
"""Ranges above the watermark in one receipt; a device resends what lies beyond them."""
PARTITION_DAYS = 8
"""Bronze partitions exist for today and the week after, so that midnight waits for no lock."""
TRANSACTION = "transaction"
"""Type of the documents that ``bronze.transaction_logs`` holds."""
READINGS_TABLE, DOCUMENTS_TABLE = "bronze.device_readings", "bronze.transaction_logs"

_CACHE_LIMIT = 100_000
_MISMATCH_SECONDS = 60.0


class Outcome(StrEnum):
    """What became of one arrival. Only REFUSED leaves the device with something to send again."""

    LANDED = "landed"
    REDELIVERED = "redelivered"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    NOTED = "noted"


@dataclass(frozen=True, slots=True)
class StreamReceipt:
    """A receipt with its address; the credit is filled in by who sends it."""

    store_id: str
    """Store of the topic on which the device spoke, and listens."""
    device_id: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit made durable."""

    receipts: list[StreamReceipt]
    outcomes: list[Outcome]
    """One per arrival, in their order."""
    rows: int
    """Rows that landed in bronze."""
    quarantined_records: int


@dataclass(frozen=True, slots=True)
class _Accepted:
    position: int
    stream_id: int
    item: SegmentArrival


@dataclass(slots=True)
class _Record:
    """A single record for the quarantine."""

    dataset: str
    reason: str
    message: str | None
    device_id: str
    sequence: int
    day: int
    raw: bytes


@dataclass(slots=True)
class _Work:
    """The state of one transaction."""

    received_ms: int
    xid: int
    stores: dict[int, str]
    """Store of each stream's device: the binding decides, not the topic."""
    doubtful: set[int]
    """Streams with segments in quarantine that a good copy may resolve."""
    outcomes: list[Outcome]
    rows: int = 0
    received: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """(stream, kind, day) → records."""
    quarantined: Counter[tuple[int, int, int, str]] = field(default_factory=Counter)
    """(stream, kind, day, rule) → records."""
    records: list[tuple[int, _Record]] = field(default_factory=list)
    errors: dict[tuple[str, str], _Error] = field(default_factory=dict)
    contested: set[tuple[int | None, int | None, bytes]] = field(default_factory=set)


@dataclass(slots=True)
class _Error:
    severity: str
    message: str
    hint: str
    store_id: str
    records: int = 0
    occurrences: int = 0


class Committer:
    """One connection and its caches; for one thread. Connects when first needed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
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
                self._prepare(connection, batch, received_ms)
                with connection.transaction():
                    return self._store(connection, batch, received_ms)
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
            (r.store_id, r.device_id, r.receipt.epoch): r for part in parts for r in part.receipts
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
        self._metrics.update(connection.execute(sql.FIND_METRICS, {"names": list(names)}))  # type: ignore[arg-type]  # rows of two

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
        streams = sorted({key for key in map(_stream, batch) if key and key not in self._streams})
        if not stores and not streams:
            return
        seen = {"devices": [d for d, _ in streams], "epochs": [e for _, e in streams]}
        with connection.transaction():
            connection.execute(
                sql.MAKE_DEVICES, {"devices": list(stores), "stores": list(stores.values())}
            )
            connection.execute(sql.MAKE_STREAMS, seen)
            found = connection.execute(sql.FIND_STREAMS, seen).fetchall()
        self._devices.update(stores)
        for device_id, epoch, stream_id in found:
            self._streams[device_id, bytes(epoch)] = stream_id

    # --- inside the transaction

    def _store(
        self, connection: database.Connection, batch: Sequence[Parsed], received_ms: int
    ) -> Committed:
        streams = [self._streams[key] if key else None for key in map(_stream, batch)]
        work = self._begin(connection, streams, received_ms)
        self._check_stores(work, batch, streams)
        landed, contested = _sort_out(connection, work, batch, streams)
        self._copy_readings(connection, work, landed)
        _copy_documents(connection, work, landed)
        if landed:
            _add_segments(connection, work, landed, Outcome.LANDED)
        for accepted in contested:
            _contest(connection, work, accepted)
        for position, item in enumerate(batch):
            if isinstance(item, UnreadableArrival):
                _set_aside(connection, work, position, item)
        _greet(connection, batch, streams, received_ms)
        _set_online(connection, batch)
        _write_tallies(connection, work)
        receipts = _receipts(connection, batch, streams, received_ms)
        return Committed(receipts, work.outcomes, work.rows, sum(work.quarantined.values()))

    def _begin(
        self, connection: database.Connection, streams: list[int | None], received_ms: int
    ) -> _Work:
        """Lock the streams and learn who this transaction is."""
        wanted = sorted({stream_id for stream_id in streams if stream_id is not None})
        work = _Work(received_ms, 0, {}, set(), [Outcome.NOTED] * len(streams))
        if wanted:
            for stream_id, store_id, doubtful in connection.execute(
                sql.LOCK_STREAMS, {"streams": wanted}
            ):
                work.stores[stream_id] = store_id
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

    def _check_stores(
        self, work: _Work, batch: Sequence[Parsed], streams: list[int | None]
    ) -> None:
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
            _note_error(
                work,
                item,
                "store_mismatch",
                "high",
                f"device {device_id} belongs to store {work.stores[stream_id]} and speaks as store "
                f"{item.arrival.store_id}; its data is kept under {work.stores[stream_id]}",
                "correct the store in the device's settings, or move the device to the new store",
            )

    def _copy_readings(
        self, connection: database.Connection, work: _Work, landed: list[_Accepted]
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
                    _exclude_readings(work, accepted, columns, excluded)
                ids = [self._metrics[name] for name in columns.metrics]
                copy.write(
                    column.reading_rows(columns, ids, _context(work, accepted), excluded)
                )
                work.rows += columns.header.records - (0 if excluded is None else int(excluded.sum()))
            copy.write(column.COPY_TRAILER)


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
    work: _Work,
    batch: Sequence[Parsed],
    streams: list[int | None],
) -> tuple[list[_Accepted], list[_Accepted]]:
    """New segments to land, and contested ones; redeliveries get their outcome here."""
    segments = [
        _Accepted(position, stream_id, item)
        for position, (item, stream_id) in enumerate(zip(batch, streams, strict=True))
        if isinstance(item, SegmentArrival) and stream_id is not None
    ]
    if not segments:
        return [], []
    headers = [s.item.header for s in segments]
    touched: dict[int, bool] = dict(
        connection.execute(
            sql.TOUCHED,
            {
                "positions": [s.position for s in segments],
                "streams": [s.stream_id for s in segments],
                "firsts": [h.first_sequence for h in headers],
                "records": [h.records for h in headers],
                "crcs": [h.body_crc for h in headers],
            },
        )  # type: ignore[arg-type]  # rows of two
    )
    landed: list[_Accepted] = []
    contested: list[_Accepted] = []
    taken: dict[int, _Intervals] = {}
    # Good copies first: a damaged copy of the same segment is then a redelivery.
    for segment in sorted(segments, key=lambda s: s.item.error is not None):
        header = segment.item.header
        intervals = taken.setdefault(segment.stream_id, _Intervals())
        other = intervals.meets(header)
        if touched.get(segment.position) or (other is not None and _same(header, other)):
            work.outcomes[segment.position] = Outcome.REDELIVERED
        elif segment.position in touched or other is not None or segment.item.error is not None:
            contested.append(segment)
        else:
            intervals.add(header)
            landed.append(segment)
            work.outcomes[segment.position] = Outcome.LANDED
    return landed, contested


def _same(one: SegmentHeader, other: SegmentHeader) -> bool:
    """A segment never changes: equal identity, size and checksum is the same segment."""
    return (one.first_sequence, one.records, one.body_crc) == (
        other.first_sequence,
        other.records,
        other.body_crc,
    )


def _copy_documents(
    connection: database.Connection, work: _Work, landed: list[_Accepted]
) -> None:
    documents = [
        (accepted, accepted.item.columns, _unknown_types(work, accepted, accepted.item.columns))
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
        _exclude_bad_documents(connection, work, documents)
        _copy_document_rows(connection, work, documents)
    work.rows += sum(int((~excluded).sum()) for _, _, excluded in documents)


def _copy_document_rows(
    connection: database.Connection,
    work: _Work,
    documents: list[tuple[_Accepted, DocumentColumns, Mask]],
) -> None:
    with connection.cursor() as cursor, cursor.copy(sql.COPY_DOCUMENTS) as copy:
        copy.write(column.COPY_HEADER)
        for accepted, columns, excluded in documents:
            copy.write(
                b"".join(column.document_rows(columns, _context(work, accepted), excluded))
            )
        copy.write(column.COPY_TRAILER)


def _unknown_types(work: _Work, accepted: _Accepted, columns: DocumentColumns) -> Mask:
    """Which documents no bronze table holds; they go to the quarantine one by one."""
    unknown = np.array([name != TRANSACTION for name in columns.types], np.bool_)
    excluded: Mask = unknown[columns.type_index]
    for i in np.nonzero(excluded)[0].tolist():
        name = columns.types[int(columns.type_index[i])]
        _exclude_document(
            work, accepted, columns, i, "unknown_document_type", f"no table holds {name!r}"
        )
    return excluded


def _exclude_bad_documents(
    connection: database.Connection,
    work: _Work,
    documents: list[tuple[_Accepted, DocumentColumns, Mask]],
) -> None:
    """Slow path, once per batch with a bad document: ask PostgreSQL which ones it refuses."""
    for accepted, columns, excluded in documents:
        kept = np.nonzero(~excluded)[0].tolist()
        for (ordinal,) in connection.execute(
            sql.FIND_BAD_DOCUMENTS, {"documents": [columns.bodies[i] for i in kept]}
        ):
            i = kept[ordinal - 1]
            excluded[i] = True
            _exclude_document(work, accepted, columns, i, "invalid_json", None)


def _exclude_document(
    work: _Work,
    accepted: _Accepted,
    columns: DocumentColumns,
    i: int,
    reason: str,
    message: str | None,
) -> None:
    day = int(columns.business_days[i])
    work.quarantined[accepted.stream_id, wire.DOCUMENTS, day, reason] += 1
    record = _Record(
        DOCUMENTS_TABLE,
        reason,
        message,
        accepted.item.arrival.device_id,
        columns.header.first_sequence + i,
        day,
        columns.bodies[i],
    )
    work.records.append((accepted.stream_id, record))


def _exclude_readings(
    work: _Work, accepted: _Accepted, columns: ReadingColumns, excluded: Mask
) -> None:
    """Readings whose time is in no calendar: kept one by one, their day is not known."""
    series = np.repeat(np.arange(len(columns.metrics)), columns.counts)
    for i in np.nonzero(excluded)[0].tolist():
        observed_ms = int(columns.observed_ms[i])
        work.quarantined[
            accepted.stream_id, wire.READINGS, UNKNOWN_DAY, "time_out_of_range"
        ] += 1
        record = _Record(
            READINGS_TABLE,
            "time_out_of_range",
            f"{observed_ms} ms is outside the years 1 to 9999",
            accepted.item.arrival.device_id,
            columns.header.first_sequence + i,
            UNKNOWN_DAY,
            column.describe(
                columns.metrics[int(series[i])], observed_ms, float(columns.values[i])
            ).encode(),
        )
        work.records.append((accepted.stream_id, record))


def _add_segments(
    connection: database.Connection, work: _Work, added: list[_Accepted], outcome: Outcome
) -> None:
    """The ledger of what this transaction holds: segments, received ranges, counts by day."""
    headers = [a.item.header for a in added]
    streams = [a.stream_id for a in added]
    firsts = [h.first_sequence for h in headers]
    records = [h.records for h in headers]
    connection.execute(
        sql.INSERT_SEGMENTS,
        {
            "streams": streams,
            "firsts": firsts,
            "records": records,
            "kinds": [h.kind for h in headers],
            "outcomes": [str(outcome)] * len(added),
            "bytes": [len(a.item.arrival.payload) for a in added],
            "crcs": [h.body_crc for h in headers],
            "boots": [h.boot_id for h in headers],
            "clocks": [h.clock for h in headers],
            "sealed": [
                h.sealed_ms if column.MIN_MS <= h.sealed_ms <= column.MAX_MS else None
                for h in headers
            ],
            "mono": [h.sealed_mono_ms for h in headers],
            "received_ms": work.received_ms,
        },
    )
    connection.execute(
        sql.EXTEND_STREAMS,
        {
            "streams": streams,
            "firsts": firsts,
            "records": records,
            "zones": [a.item.columns and _known_zone(a.item.columns.zone) for a in added],
        },
    )
    if outcome is not Outcome.LANDED:
        return
    for accepted in added:
        assert accepted.item.columns is not None
        for day, count in accepted.item.columns.days.items():
            work.received[accepted.stream_id, accepted.item.header.kind, day] += count
    doubtful = [a for a in added if a.stream_id in work.doubtful]
    if doubtful:
        connection.execute(
            sql.RESOLVE_QUARANTINE,
            {
                "streams": [a.stream_id for a in doubtful],
                "firsts": [a.item.header.first_sequence for a in doubtful],
            },
        )


def _contest(connection: database.Connection, work: _Work, segment: _Accepted) -> None:
    """A segment that cannot simply land: its body is bad, or its sequences are taken.

    Nothing is lost: the whole segment is kept raw. Nothing is doubled: no row of it goes to bronze.
    Nothing wedges: its range counts as received at once (overlap: a cloned or restored device,
    which cannot send anything else) or at the third attempt (bad body: a good copy may come).
    The sequences that were free are counted under an unknown day, because the days of a part of a
    segment are not known.
    """
    item, header = segment.item, segment.item.header
    row = connection.execute(
        sql.CONTEST,
        {
            "stream": segment.stream_id,
            "first": header.first_sequence,
            "end": header.last_sequence + 1,
            "records": header.records,
            "crc": header.body_crc,
        },
    ).fetchone()
    assert row is not None
    held_records, standing, same = row
    if same and standing == Outcome.LANDED:
        work.outcomes[segment.position] = Outcome.REDELIVERED
        return
    reason = item.error.reason if item.error is not None else "overlap"
    message = (
        item.error.message
        if item.error is not None
        else f"{held_records} of {header.records} sequences from {header.first_sequence} are stored"
    )
    if same:
        reason, message = "quarantined_before", "another copy of a segment given up before"
    key = (segment.stream_id, header.first_sequence, item.arrival.payload)
    if key not in work.contested:
        work.contested.add(key)
        _quarantine_segment(connection, work, segment.stream_id, item, reason, message)
    if same:
        work.outcomes[segment.position] = Outcome.REDELIVERED
        return
    if item.error is not None and held_records < header.records:
        attempts = connection.execute(
            sql.COUNT_ATTEMPTS, {"stream": segment.stream_id, "sequence": header.first_sequence}
        ).fetchone()
        assert attempts is not None
        if attempts[0] < POISON_ATTEMPTS:
            work.outcomes[segment.position] = Outcome.REFUSED
            return
    work.outcomes[segment.position] = Outcome.QUARANTINED
    fresh = header.records - held_records
    if fresh:
        _add_segments(connection, work, [segment], Outcome.QUARANTINED)
        work.received[segment.stream_id, header.kind, UNKNOWN_DAY] += fresh
        work.quarantined[segment.stream_id, header.kind, UNKNOWN_DAY, reason] += fresh
    _note_error(
        work,
        item,
        "overlap" if item.error is None else "segment_quarantined",
        "critical" if item.error is None else "high",
        f"segment {header.first_sequence} of device {item.arrival.device_id}: {message}",
        "two devices share one buffer: give the clone a new buffer file, then replay the quarantine"
        if item.error is None
        else "look at the segment in metadata.quarantine; check the device's storage",
        header.records,
    )


def _set_aside(
    connection: database.Connection, work: _Work, position: int, item: UnreadableArrival
) -> None:
    """Something without a usable header: a segment is kept raw, once; a hello comes again."""
    work.outcomes[position] = Outcome.REFUSED
    arrival = item.arrival
    if arrival.channel == topics.DATA:
        key = (None, None, arrival.payload)
        if key not in work.contested:
            work.contested.add(key)
            _quarantine_segment(connection, work, None, item, item.error.reason, item.error.message)
    _note_error(
        work,
        item,
        "segment_unreadable" if arrival.channel == topics.DATA else item.error.reason,
        "high",
        f"device {arrival.device_id}: {item.error.message}",
        "check that agent and hub speak the same protocol version",
    )


def _quarantine_segment(
    connection: database.Connection,
    work: _Work,
    stream_id: int | None,
    item: SegmentArrival | UnreadableArrival,
    reason: str,
    message: str,
) -> None:
    header = item.header if isinstance(item, SegmentArrival) else None
    store_id = item.arrival.store_id if stream_id is None else work.stores[stream_id]
    connection.execute(
        sql.QUARANTINE_SEGMENT,
        {
            "reason": reason,
            "message": message,
            "store": store_id,
            "device": item.arrival.device_id,
            "stream": stream_id,
            "sequence": header.first_sequence if header else None,
            "records": header.records if header else 1,
            "raw": item.arrival.payload,
        },
    )


def _greet(
    connection: database.Connection,
    batch: Sequence[Parsed],
    streams: list[int | None],
    received_ms: int,
) -> None:
    """What devices say of themselves; counts and versions only ever grow."""
    latest: dict[int, HelloArrival] = {}
    by_device: dict[str, HelloArrival] = {}
    versions: dict[int, int] = {}
    produced: dict[tuple[int, int, int], int] = {}
    for item, stream_id in zip(batch, streams, strict=True):
        if not isinstance(item, HelloArrival) or stream_id is None:
            continue
        latest[stream_id] = by_device[item.arrival.device_id] = item
        versions[stream_id] = max(versions.get(stream_id, 0), item.hello.ledger_version)
        for entry in item.hello.ledger:
            key = (stream_id, entry.kind, entry.day)
            produced[key] = max(produced.get(key, 0), entry.records)
    if not latest:
        return
    hellos = [item.hello for item in by_device.values()]
    connection.execute(
        sql.GREET_DEVICES,
        {
            "devices": list(by_device),
            "zones": [_known_zone(hello.zone) for hello in hellos],
            "versions": [hello.version for hello in hellos],
            "hellos": [hello.encode().decode() for hello in hellos],
            "intervals": [hello.interval_seconds for hello in hellos],
            "device_ms": [hello.device_time_ms for hello in hellos],
            "hub_ms": received_ms,
        },
    )
    hellos = [item.hello for item in latest.values()]
    connection.execute(
        sql.GREET_STREAMS,
        {
            "streams": list(latest),
            "zones": [_known_zone(hello.zone) for hello in hellos],
            "nexts": [hello.next_sequence for hello in hellos],
            "unsealed": [hello.unsealed_records for hello in hellos],
            "ledgers": [versions[stream_id] for stream_id in latest],
        },
    )
    if produced:
        connection.execute(sql.RAISE_PRODUCED, _days_apart(produced))


def _set_online(connection: database.Connection, batch: Sequence[Parsed]) -> None:
    latest = {
        item.arrival.device_id: item.online for item in batch if isinstance(item, StatusArrival)
    }
    if latest:
        devices = sorted(latest)
        connection.execute(
            sql.SET_ONLINE, {"devices": devices, "online": [latest[d] for d in devices]}
        )


def _write_tallies(connection: database.Connection, work: _Work) -> None:
    if work.records:
        records = [record for _, record in work.records]
        connection.execute(
            sql.QUARANTINE_RECORDS,
            {
                "datasets": [r.dataset for r in records],
                "reasons": [r.reason for r in records],
                "messages": [r.message for r in records],
                "stores": [work.stores[stream_id] for stream_id, _ in work.records],
                "devices": [r.device_id for r in records],
                "streams": [stream_id for stream_id, _ in work.records],
                "sequences": [r.sequence for r in records],
                "days": [_day(r.day) for r in records],
                "raws": [r.raw for r in records],
            },
        )
    if work.received:
        connection.execute(sql.ADD_RECEIVED, _days_apart(work.received))
    if work.quarantined:
        keys = list(work.quarantined)
        connection.execute(
            sql.ADD_QUARANTINED,
            {
                "streams": [stream_id for stream_id, _, _, _ in keys],
                "kinds": [kind for _, kind, _, _ in keys],
                "days": [_day(day) for _, _, day, _ in keys],
                "rules": [rule for _, _, _, rule in keys],
                "records": list(work.quarantined.values()),
            },
        )
    if work.errors:
        codes = list(work.errors)
        errors = list(work.errors.values())
        connection.execute(
            sql.LOG_ERRORS,
            {
                "types": ["data"] * len(errors),
                "severities": [e.severity for e in errors],
                "codes": [code for code, _ in codes],
                "messages": [e.message for e in errors],
                "hints": [e.hint for e in errors],
                "stores": [e.store_id for e in errors],
                "devices": [device_id for _, device_id in codes],
                "records": [e.records for e in errors],
                "occurrences": [e.occurrences for e in errors],
            },
        )


def _receipts(
    connection: database.Connection,
    batch: Sequence[Parsed],
    streams: list[int | None],
    received_ms: int,
) -> list[StreamReceipt]:
    """What the device may be told once this transaction is committed."""
    wanted = {stream_id for stream_id in streams if stream_id is not None}
    if not wanted:
        return []
    state = {
        stream_id: (ledger_version, list(zip(firsts, ends, strict=True)))
        for stream_id, ledger_version, firsts, ends in connection.execute(
            sql.READ_RECEIPTS, {"streams": list(wanted), "ranges": MAX_RANGES + 1}
        )
    }
    receipts: dict[tuple[str, int], StreamReceipt] = {}
    for item, stream_id in zip(batch, streams, strict=True):
        address = _stream(item)
        if stream_id is None or address is None:
            continue
        ledger_version, held = state[stream_id]
        watermark = held[0][1] - 1 if held and held[0][0] <= 1 else 0
        above = held[1:] if watermark else held
        receipts[item.arrival.store_id, stream_id] = StreamReceipt(
            item.arrival.store_id,
            item.arrival.device_id,
            Receipt(
                epoch=address[1],
                watermark=watermark,
                ranges=tuple((first, end - 1) for first, end in above[:MAX_RANGES]),
                hub_time_ms=received_ms,
                ledger_version=ledger_version,
            ),
        )
    return list(receipts.values())


def _note_error(
    work: _Work,
    item: Parsed,
    code: str,
    severity: str,
    message: str,
    hint: str,
    records: int = 0,
) -> None:
    """A repeated error is one row with a count."""
    key = (code, item.arrival.device_id)
    error = work.errors.setdefault(key, _Error(severity, message, hint, item.arrival.store_id))
    error.message = message
    error.records += records
    error.occurrences += 1


def _context(work: _Work, accepted: _Accepted) -> RowContext:
    return RowContext(
        accepted.stream_id, work.stores[accepted.stream_id], work.received_ms, work.xid
    )


def _stream(item: Parsed) -> tuple[str, bytes] | None:
    """(device, epoch) that ``item`` speaks for, if any."""
    if isinstance(item, SegmentArrival):
        return item.arrival.device_id, item.header.epoch
    if isinstance(item, HelloArrival):
        return item.arrival.device_id, item.hello.epoch
    return None


def _metric_names(batch: Iterable[Parsed]) -> set[str]:
    return {
        name
        for item in batch
        if isinstance(item, SegmentArrival) and isinstance(item.columns, ReadingColumns)
        for name in item.columns.metrics
    }


def _days_apart(counted: dict[tuple[int, int, int], int]) -> dict[str, Any]:
    """(stream, kind, day) → records, as the parallel arrays that statements take."""
    return {
        "streams": [stream_id for stream_id, _, _ in counted],
        "kinds": [kind for _, kind, _ in counted],
        "days": [_day(day) for _, _, day in counted],
        "records": list(counted.values()),
    }


def _day(day: int) -> int | None:
    return None if day == UNKNOWN_DAY else day


@lru_cache(maxsize=1024)
def _known_zone(zone: str) -> str | None:
    """A zone that nobody knows would break every query that computes with it."""
    try:
        return BusinessCalendar(zone).zone
    except ConfigError:
        return None
