"""Gaps: records that a device accepted and declares that it gave up.

Invariant: of a gap only those sequences count as given up that the hub does not hold, each once; a
gap is receipted like a segment, so the device's watermark moves over it. What a gap stood for may
still come (an export, a late message): then it lands and the gap is closed.
"""

from __future__ import annotations

import json
from itertools import accumulate

from scout_central import database
from scout_central.ingest import statements as sql
from scout_central.ingest.columns import GapColumns
from scout_central.ingest.ledger import (
    Accepted,
    Outcome,
    Work,
    extend_streams,
    insert_given_up,
    note_error,
)
from scout_shared import wire
from scout_shared.zones import UNKNOWN_DAY


def declare(connection: database.Connection, work: Work, gap: Accepted) -> None:
    """Commit the gap's sequences and count what of them is lost. Safe to repeat.

    A part that the hub holds in part is counted under an unknown day: the days of the rest of a
    segment are not known.
    """
    columns, header = gap.item.columns, gap.item.header
    assert isinstance(columns, GapColumns)
    starts = accumulate((p.records for p in columns.parts[:-1]), initial=header.first_sequence)
    firsts = list(starts)
    held = connection.execute(
        sql.HELD,
        {
            "stream": gap.stream_id,
            "firsts": firsts,
            "records": [p.records for p in columns.parts],
        },
    ).fetchall()
    lost = [
        (first, part, part.records - stored, part.days if not stored else None)
        for first, part, (stored,) in zip(firsts, columns.parts, held, strict=True)
        if stored < part.records
    ]
    if not lost:
        work.outcomes[gap.position] = Outcome.REDELIVERED
        return
    work.outcomes[gap.position] = Outcome.GIVEN_UP
    counted = [days or {UNKNOWN_DAY: records} for _, _, records, days in lost]
    for (_, part, _, _), days in zip(lost, counted, strict=True):
        for day, records in days.items():
            work.received[gap.stream_id, part.kind, day] += records
            work.given_up[gap.stream_id, part.kind, day, part.reason] += records
    connection.execute(
        sql.INSERT_GAPS,
        {
            "stream": gap.stream_id,
            "device": gap.item.arrival.device_id,
            "store": work.stores[gap.stream_id],
            "firsts": [first for first, _, _, _ in lost],
            "sequences": [part.records for _, part, _, _ in lost],
            "records": [records for _, _, records, _ in lost],
            "kinds": [part.kind for _, part, _, _ in lost],
            "reasons": [part.reason for _, part, _, _ in lost],
            "days": [json.dumps(sorted(days.items())) for days in counted],
        },
    )
    insert_given_up(
        connection,
        work,
        gap,
        [(first, part) for first, part, records, _ in lost if records == part.records],
    )
    extend_streams(connection, [gap])
    total = sum(records for _, _, records, _ in lost)
    reasons = ", ".join(sorted({part.reason for _, part, _, _ in lost}))
    kinds = sorted({wire.KIND_NAMES.get(part.kind, "records") for _, part, _, _ in lost})
    note_error(
        work,
        gap.item,
        code="records_given_up",
        severity="high",
        message=f"device {gap.item.arrival.device_id} gave up {total} {' and '.join(kinds)} from "
        f"sequence {lost[0][0]}: {reasons}",
        hint="look at metadata.gaps; damaged: check or change the device's storage; drop_oldest or "
        "thin: the buffer was full, raise [buffer] max_bytes or restore the link; expired: they"
        " waited for longer than [privacy] retention_days",
        records=total,
    )


def close_gaps(connection: database.Connection, work: Work, closing: list[Accepted]) -> None:
    """Records that were given up have come: take back what was counted; they land as any others."""
    for stream_id, kind, reason, days in connection.execute(
        sql.CLOSE_GAPS,
        {
            "streams": [a.stream_id for a in closing],
            "firsts": [a.item.header.first_sequence for a in closing],
        },
    ):
        for day, records in days:
            work.received[stream_id, kind, day] -= records
            work.given_up[stream_id, kind, day, reason] -= records
