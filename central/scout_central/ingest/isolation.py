"""What cannot land: one bad record costs itself, one bad segment costs itself, nothing is lost.

Documents that no table or no jsonb takes and readings without a calendar time are quarantined one
by one, and what came with them lands. Segments with a bad body or with sequences that are taken
already are quarantined whole and raw.
"""

from __future__ import annotations

import numpy as np

from scout_central import database
from scout_central.ingest import columns as column
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import SegmentArrival, UnreadableArrival
from scout_central.ingest.columns import DocumentColumns, Mask, ReadingColumns
from scout_central.ingest.ledger import Accepted, Outcome, Record, Work, add_segments, note_error
from scout_shared import topics, wire
from scout_shared.zones import UNKNOWN_DAY

POISON_ATTEMPTS = 3
"""A segment with a bad body is receipted when it came so often: the device has no better copy."""
TRANSACTION = "transaction"
"""Type of the documents that ``bronze.transaction_logs`` holds."""
READINGS_TABLE, DOCUMENTS_TABLE = "bronze.device_readings", "bronze.transaction_logs"


def contest(connection: database.Connection, work: Work, segment: Accepted) -> None:
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
        _quarantine_segment(
            connection, work, segment.stream_id, item, reason=reason, message=message
        )
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
        add_segments(connection, work, [segment], Outcome.QUARANTINED)
        kind = wire.UNKNOWN_KIND if header.kind == wire.GAP else header.kind
        work.received[segment.stream_id, kind, UNKNOWN_DAY] += fresh
        work.quarantined[segment.stream_id, kind, UNKNOWN_DAY, reason] += fresh
    is_overlap = item.error is None
    note_error(
        work,
        item,
        code="overlap" if is_overlap else "segment_quarantined",
        severity="critical" if is_overlap else "high",
        message=f"segment {header.first_sequence} of device {item.arrival.device_id}: {message}",
        hint="two boxes wrote one buffer (see buffer_copied): one was copied while its agent ran, "
        "or is too old to say so; look for the second box, then replay the quarantine"
        if is_overlap
        else "look at the segment in metadata.quarantine; check the device's storage",
        records=header.records,
    )


def set_aside(
    connection: database.Connection, work: Work, position: int, item: UnreadableArrival
) -> None:
    """Something without a usable header: a segment is kept raw, once; a hello comes again."""
    work.outcomes[position] = Outcome.REFUSED
    arrival = item.arrival
    if arrival.channel == topics.DATA:
        key = (None, None, arrival.payload)
        if key not in work.contested:
            work.contested.add(key)
            _quarantine_segment(
                connection,
                work,
                None,
                item,
                reason=item.error.reason,
                message=item.error.message,
            )
    note_error(
        work,
        item,
        code="segment_unreadable" if arrival.channel == topics.DATA else item.error.reason,
        severity="high",
        message=f"device {arrival.device_id}: {item.error.message}",
        hint="check that agent and hub speak the same protocol version",
    )


def _quarantine_segment(
    connection: database.Connection,
    work: Work,
    stream_id: int | None,
    item: SegmentArrival | UnreadableArrival,
    *,
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


def exclude_unknown_types(work: Work, accepted: Accepted, columns: DocumentColumns) -> Mask:
    """Which documents no bronze table holds; they go to the quarantine one by one."""
    unknown = np.array([name != TRANSACTION for name in columns.types], np.bool_)
    excluded: Mask = unknown[columns.type_index]
    for i in np.nonzero(excluded)[0].tolist():
        name = columns.types[int(columns.type_index[i])]
        _exclude_document(
            work,
            accepted,
            columns,
            i,
            reason="unknown_document_type",
            message=f"no table holds {name!r}",
        )
    return excluded


def exclude_bad_documents(
    connection: database.Connection,
    work: Work,
    documents: list[tuple[Accepted, DocumentColumns, Mask]],
) -> None:
    """Slow path, once per batch with a bad document: ask PostgreSQL which ones it refuses."""
    for accepted, columns, excluded in documents:
        kept = np.nonzero(~excluded)[0].tolist()
        for (ordinal,) in connection.execute(
            sql.FIND_BAD_DOCUMENTS, {"documents": [columns.bodies[i] for i in kept]}
        ):
            i = kept[ordinal - 1]
            excluded[i] = True
            _exclude_document(work, accepted, columns, i, reason="invalid_json", message=None)


def _exclude_document(
    work: Work,
    accepted: Accepted,
    columns: DocumentColumns,
    i: int,
    *,
    reason: str,
    message: str | None,
) -> None:
    day = int(columns.business_days[i])
    work.quarantined[accepted.stream_id, wire.DOCUMENTS, day, reason] += 1
    record = Record(
        DOCUMENTS_TABLE,
        reason,
        message,
        accepted.item.arrival.device_id,
        columns.header.first_sequence + i,
        day,
        columns.bodies[i],
    )
    work.records.append((accepted.stream_id, record))


def exclude_readings(
    work: Work, accepted: Accepted, columns: ReadingColumns, excluded: Mask
) -> None:
    """Readings whose time is in no calendar: kept one by one, their day is not known."""
    series = np.repeat(np.arange(len(columns.metrics)), columns.counts)
    for i in np.nonzero(excluded)[0].tolist():
        observed_ms = int(columns.observed_ms[i])
        work.quarantined[accepted.stream_id, wire.READINGS, UNKNOWN_DAY, "time_out_of_range"] += 1
        record = Record(
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
