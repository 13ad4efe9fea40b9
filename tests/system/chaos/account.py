"""What bronze holds and what was declared, and the judgement over what was told OK.

``judge`` is pure: it is given all facts of one device and says what is wrong. A record that is not
in bronze is right only where devices declared a gap: between the sequences of its neighbours, the
records that were accepted before and after it.
"""

from __future__ import annotations

import bisect
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from scout_edge.tail import TAIL_KINDS
from tests.system.chaos.feeder import Told, document_id, document_instant, instant


@dataclass(frozen=True, slots=True)
class Row:
    """One row of bronze."""

    stream: int
    sequence: int
    observed_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Gap:
    """A declared range, as far as it is not closed."""

    stream: int
    first: int
    sequences: int
    records: int
    """Of the sequences, those that the hub did not hold."""
    reason: str

    @property
    def end(self) -> int:
        """The sequence behind it."""
        return self.first + self.sequences


@dataclass(slots=True)
class Held:
    """What the hub has of one device."""

    documents: dict[str, list[Row]] = field(default_factory=dict)
    readings: dict[str, dict[int, list[Row]]] = field(default_factory=dict)
    """By metric and value."""
    gaps: list[Gap] = field(default_factory=list)
    segments: dict[int, list[int]] = field(default_factory=dict)
    """First sequences by stream, ascending."""
    quarantined: list[str] = field(default_factory=list)
    in_transit: int = 0
    remainder: int = 0


@dataclass(slots=True)
class Verdict:
    """What came out for one device."""

    told: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    given_up: int = 0
    """Told OK, not in bronze, within what was declared."""
    unknown_extent: int = 0
    """Told OK, not in bronze, in a file so damaged that it could not say how far it went; the
    device says so, and the hub shows what it knows to be missing."""
    seen: int = 0
    """Of those, how many the hub shows as in transit for ever, or as what nothing explains: they
    were in a hello."""
    wrong: list[str] = field(default_factory=list)
    """Anything else: invented times, strange records, an account that does not add up."""

    @property
    def right(self) -> bool:
        """Whether all promises were kept."""
        return not (self.lost or self.doubled or self.wrong)

    def add(self, other: Verdict) -> None:
        """Put another one to it."""
        self.told += other.told
        self.lost += other.lost
        self.doubled += other.doubled
        self.given_up += other.given_up
        self.unknown_extent += other.unknown_extent
        self.seen += other.seen
        self.wrong += other.wrong


def judge(
    device_id: str,
    told: Sequence[Told],
    held: Held,
    *,
    reasons: Iterable[str] = (),
    extent_unknown: bool = False,
) -> Verdict:
    """Hold what the sources of one device were told against what the hub has.

    Args:
        reasons: of the gaps that this schedule may have led to; any other is wrong.
        extent_unknown: a damaged file of the device said that its counts do not agree.
    """
    verdict = Verdict(told=sum(one.records for one in told))
    known = set(reasons)
    verdict.wrong += [
        f"{device_id}: sequences {gap.first} to {gap.end - 1} of stream {gap.stream} were given up"
        f" for the reason {gap.reason!r}, which nothing here led to"
        for gap in held.gaps
        if gap.reason not in known
    ]
    strange_documents = set(held.documents)
    strange_metrics = set(held.readings)
    for one in told:
        given = {*one.documents, *one.lines, *one.unsure_documents}
        names = {n: document_id(one.label, n) for n in given}
        documents = {n: held.documents.get(name, []) for n, name in names.items()}
        strange_documents -= set(names.values())
        readings = held.readings.get(one.metric, {})
        strange_metrics.discard(one.metric)
        strange = set(readings) - set(one.readings) - one.unsure_readings
        verdict.wrong += [f"{one.metric} {n}: nobody gave it" for n in sorted(strange)[:5]]
        _doubled(verdict, f"document {one.label}", documents)
        _doubled(verdict, f"reading {one.label}", readings)
        for word, sure, rows in (
            ("document", one.documents, documents),
            ("line", one.lines, documents),
            ("reading", one.readings, readings),
        ):
            declared, lost = _missing(sure, rows, held)
            verdict.given_up += declared
            if extent_unknown:
                verdict.unknown_extent += len(lost)
            else:
                verdict.lost += [f"{word} {one.label} {number}" for number in lost]
        _times(verdict, one, documents, readings)
    declared = sum(gap.records for gap in held.gaps)
    more = verdict.given_up - declared  # several runs may claim one gap
    if more > 0 and extent_unknown:
        verdict.given_up, verdict.unknown_extent = declared, verdict.unknown_extent + more
    elif more > 0:
        verdict.lost.append(
            f"{device_id}: {verdict.given_up} records are missing where {declared} were given up"
        )
    verdict.wrong += [f"document {name}: nobody gave it" for name in sorted(strange_documents)[:5]]
    verdict.wrong += [f"metric {name}: nobody gave it" for name in sorted(strange_metrics)[:5]]
    verdict.wrong += [f"{device_id}: in quarantine: {text}" for text in held.quarantined]
    # Where the hub knows of more than has come, and that no more will come, it says so.
    if held.remainder > verdict.unknown_extent:
        verdict.wrong.append(f"{device_id}: the reconciliation's remainder is {held.remainder}")
    verdict.seen = min(verdict.unknown_extent, max(held.remainder, held.in_transit, 0))
    if held.in_transit and not extent_unknown:
        verdict.wrong.append(f"{device_id}: {held.in_transit} records are in transit for ever")
    return verdict


def _doubled(verdict: Verdict, what: str, rows: Mapping[int, list[Row]]) -> None:
    verdict.doubled += [
        f"{what} {number} ({', '.join(f'stream {r.stream} at {r.sequence}' for r in found)})"
        for number, found in rows.items()
        if len(found) > 1
    ]


def _missing(
    told: Sequence[int], rows: Mapping[int, list[Row]], held: Held
) -> tuple[int, list[int]]:
    """How many of those that are not in bronze were declared, and the others."""
    declared, lost = 0, list[int]()
    before: Row | None = None
    run: list[int] = []
    for number in [*told, None]:
        found = rows.get(number) if number is not None else []
        if number is not None and not found:
            run.append(number)
            continue
        after = found[0] if found else None
        if run:
            # Which of a run were declared nobody can say: the last ones are called lost.
            known = min(len(run), _between(held, before, after))
            declared += known
            lost += run[known:]
            run = []
        before = after or before
    return declared, lost


def _between(held: Held, before: Row | None, after: Row | None) -> int:
    """How many declared sequences lie between two records of one source.

    A damaged row that waited unsealed with others has its gap in front of their segment.
    """
    total = 0
    same = before is not None and after is not None and before.stream == after.stream
    waited = () if before is None else _in_front(held, before)
    for gap in held.gaps:
        low, high = gap.first, gap.end
        if same and before is not None and gap.stream != before.stream:
            continue
        if before is not None and gap.stream == before.stream and gap not in waited:
            low = max(low, before.sequence + 1)
        if after is not None and gap.stream == after.stream:
            high = min(high, after.sequence)
        total += max(0, min(high - low, gap.records))
    return total


def _in_front(held: Held, row: Row) -> list[Gap]:
    """The gaps that stand, one after another, in front of what was sealed together with a row.

    What waits unsealed is sealed kind by kind: between the gaps and the row's segment there may be
    those of the other kinds.
    """
    end, found, passed = _start(held, row), list[Gap](), 0
    ending = {gap.end: gap for gap in held.gaps if gap.stream == row.stream}
    firsts = held.segments.get(row.stream, [])
    while True:
        if gap := ending.get(end):
            found.append(gap)
            end = gap.first
            continue
        at = bisect.bisect_left(firsts, end)
        if found or not at or passed == len(TAIL_KINDS) - 1:
            return found
        end, passed = firsts[at - 1], passed + 1


def _start(held: Held, row: Row) -> int:
    """First sequence of the segment that a row came in."""
    firsts = held.segments.get(row.stream, [])
    at = bisect.bisect_right(firsts, row.sequence)
    return firsts[at - 1] if at else row.sequence


def _times(
    verdict: Verdict,
    told: Told,
    documents: Mapping[int, list[Row]],
    readings: Mapping[int, list[Row]],
) -> None:
    for number, rows in documents.items():
        verdict.wrong += [
            f"document {told.label} {number} has the time {row.observed_at}, given was"
            f" {document_instant(number)}"
            for row in rows
            if row.observed_at != document_instant(number)
        ]
    for number, rows in readings.items():
        verdict.wrong += [
            f"reading {told.label} {number} has the time {row.observed_at}, given was"
            f" {instant(number)}"
            for row in rows
            if row.observed_at != instant(number)
        ]


# -- the hub's side -------------------------------------------------------------------------------


def held_of(connection: psycopg.Connection[tuple[object, ...]], device_id: str) -> Held:
    """Read what the hub has of a device."""
    held = Held()
    streams = "(select stream_id from metadata.streams where device_id = %s)"
    for name, stream, sequence, observed in connection.execute(
        "select document ->> 'transaction_id', stream_id, sequence, observed_at"
        f" from bronze.transaction_logs where stream_id in {streams}",  # no input
        (device_id,),
    ):
        held.documents.setdefault(str(name), []).append(_row(stream, sequence, observed))
    for name, value, stream, sequence, observed in connection.execute(
        "select metrics.name, readings.value::bigint, readings.stream_id, readings.sequence,"
        " readings.observed_at from bronze.device_readings as readings"
        " join metadata.metrics as metrics on readings.metric_id = metrics.metric_id"
        f" where readings.stream_id in {streams}",  # no input
        (device_id,),
    ):
        values = held.readings.setdefault(str(name), {})
        values.setdefault(_int(value), []).append(_row(stream, sequence, observed))
    held.gaps = [
        Gap(_int(stream), _int(first), _int(sequences), _int(records), str(reason))
        for stream, first, sequences, records, reason in connection.execute(
            "select stream_id, first_sequence, sequences, records, reason from metadata.gaps"
            " where device_id = %s and closed_at is null",
            (device_id,),
        )
    ]
    for stream, first in connection.execute(
        "select stream_id, first_sequence from metadata.segments"
        f" where stream_id in {streams} order by 1, 2",
        (device_id,),
    ):
        held.segments.setdefault(_int(stream), []).append(_int(first))
    held.quarantined = [
        f"{records} records at {sequence} of stream {stream}: {reason} {message}"
        for stream, sequence, records, reason, message in connection.execute(
            "select stream_id, sequence, records, reason, message from metadata.quarantine"
            " where device_id = %s and stage = 'ingest'",  # later stages: judged by their contracts
            (device_id,),
        )
    ]
    row = connection.execute(
        "select coalesce(sum(in_transit), 0)::bigint, coalesce(sum(remainder), 0)::bigint"
        " from metadata.reconciliation where device_id = %s",
        (device_id,),
    ).fetchone()
    assert row is not None
    held.in_transit, held.remainder = _int(row[0]), _int(row[1])
    return held


def landed_wrong(
    connection: psycopg.Connection[tuple[object, ...]], devices: Sequence[str]
) -> list[str]:
    """What ``metadata.verify_landed`` finds, of these devices."""
    return [
        " ".join(map(str, row))
        for row in connection.execute(
            "select * from metadata.verify_landed() where device_id = any(%s)", (list(devices),)
        )
    ]


def _row(stream: object, sequence: object, observed: object) -> Row:
    assert observed is None or isinstance(observed, dt.datetime)
    return Row(_int(stream), _int(sequence), observed)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
