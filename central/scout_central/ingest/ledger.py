"""The books of one transaction: what it holds, what it counts, and what may be receipted of it.

Invariant: ``streams.received`` grows by exactly the sequences that ``received_counts`` grows by.
The committer gathers into a ``Work``; ``write_tallies`` writes each kind of row in one statement.
Not its job: bronze rows (``committer.py``), deciding what is bad (``isolation.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from scout_central import database
from scout_central.ingest import columns as column
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import HelloArrival, Parsed, SegmentArrival, StatusArrival
from scout_shared import wire
from scout_shared.errors import ConfigError
from scout_shared.messages import BootClock, Receipt
from scout_shared.zones import UNKNOWN_DAY, BusinessCalendar

MAX_RANGES = 64
"""Ranges above the watermark in one receipt; a device resends what lies beyond them."""

CLOCK_WRONG_SECONDS = 60.0
CLOCK_SAMPLES = 3
"""Hellos after which it is not a delay that makes a clock look slow."""


class Outcome(StrEnum):
    """What became of one arrival. Only REFUSED and HELD leave the device with something to send."""

    LANDED = "landed"
    REDELIVERED = "redelivered"
    QUARANTINED = "quarantined"
    GIVEN_UP = "given_up"
    """A declared gap: it has the sequences, the records are lost."""
    REFUSED = "refused"
    NOTED = "noted"
    HELD = "held"
    """Of a device that is pending: nothing is stored, it keeps its data and is told to wait."""


@dataclass(frozen=True, slots=True)
class StreamReceipt:
    """A receipt with its address; the credit is filled in by who sends it."""

    store_id: str
    """Store of the topic on which the device spoke, and listens."""
    device_id: str
    receipt: Receipt
    held: bool = False
    """The device is pending: credit 0, whatever room there is."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A segment at its place in the batch, with the stream it belongs to."""

    position: int
    stream_id: int
    item: SegmentArrival


@dataclass(slots=True)
class Record:
    """A single record for the quarantine."""

    dataset: str
    reason: str
    message: str | None
    device_id: str
    sequence: int
    day: int
    raw: bytes


@dataclass(slots=True)
class _Error:
    severity: str
    message: str
    hint: str
    store_id: str
    records: int = 0
    occurrences: int = 0


@dataclass(slots=True)
class Work:
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
    given_up: Counter[tuple[int, int, int, str]] = field(default_factory=Counter)
    """(stream, kind, day, reason) → records; negative: they came after all."""
    records: list[tuple[int, Record]] = field(default_factory=list)
    errors: dict[tuple[str, str], _Error] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    """Streams of retired devices."""
    contested: set[tuple[int | None, int | None, bytes]] = field(default_factory=set)


def note_error(
    work: Work,
    item: Parsed,
    *,
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


def add_segments(
    connection: database.Connection, work: Work, added: list[Accepted], outcome: Outcome
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
    extend_streams(connection, added)
    if outcome is not Outcome.LANDED:
        return
    for accepted in added:
        assert accepted.item.columns is not None
        for day, count in accepted.item.columns.days.items():
            work.received[accepted.stream_id, accepted.item.header.kind, day] += count
    _insert_spans(connection, added)
    doubtful = [a for a in added if a.stream_id in work.doubtful]
    if doubtful:
        connection.execute(
            sql.RESOLVE_QUARANTINE,
            {
                "streams": [a.stream_id for a in doubtful],
                "firsts": [a.item.header.first_sequence for a in doubtful],
            },
        )


def _insert_spans(connection: database.Connection, landed: list[Accepted]) -> None:
    """Which of ``landed`` hold times of a doubtful clock."""
    stamped = [
        (accepted, accepted.item.columns.span)
        for accepted in landed
        if isinstance(accepted.item.columns, column.ReadingColumns)
        and accepted.item.columns.span is not None
    ]
    if stamped:
        connection.execute(
            sql.INSERT_SPANS,
            {
                "streams": [a.stream_id for a, _ in stamped],
                "firsts": [a.item.header.first_sequence for a, _ in stamped],
                "records": [a.item.header.records for a, _ in stamped],
                "boots": [span.boot_id for _, span in stamped],
                "clocks": [span.clock for _, span in stamped],
                "offsets": [span.offset_ms for _, span in stamped],
            },
        )


def insert_given_up(
    connection: database.Connection,
    work: Work,
    gap: Accepted,
    parts: list[tuple[int, wire.GivenUp]],
) -> None:
    """Note, under (first sequence, part), which segments stand given up; they have no bytes."""
    header = gap.item.header
    n = len(parts)
    connection.execute(
        sql.INSERT_SEGMENTS,
        {
            "streams": [gap.stream_id] * n,
            "firsts": [first for first, _ in parts],
            "records": [part.records for _, part in parts],
            "kinds": [part.kind for _, part in parts],
            "outcomes": [str(Outcome.GIVEN_UP)] * n,
            "bytes": [0] * n,
            "crcs": [0] * n,
            "boots": [header.boot_id] * n,
            "clocks": [header.clock] * n,
            "sealed": [
                header.sealed_ms if column.MIN_MS <= header.sealed_ms <= column.MAX_MS else None
            ]
            * n,
            "mono": [header.sealed_mono_ms] * n,
            "received_ms": work.received_ms,
        },
    )


def extend_streams(connection: database.Connection, added: list[Accepted]) -> None:
    """The sequences of ``added`` are held: the device may forget them once this is committed."""
    headers = [a.item.header for a in added]
    connection.execute(
        sql.EXTEND_STREAMS,
        {
            "streams": [a.stream_id for a in added],
            "firsts": [h.first_sequence for h in headers],
            "records": [h.records for h in headers],
            "zones": [a.item.columns and _known_zone(a.item.columns.zone) for a in added],
        },
    )


def greet(
    connection: database.Connection,
    work: Work,
    batch: Sequence[Parsed],
    streams: list[int | None],
    refused: Collection[int],
) -> None:
    """What devices say of themselves; counts and versions only ever grow.

    ``refused``: positions of hellos that are not believed.
    """
    latest: dict[int, HelloArrival] = {}
    by_device: dict[str, HelloArrival] = {}
    versions: dict[int, int] = {}
    produced: dict[tuple[int, int, int], int] = {}
    for position, (item, stream_id) in enumerate(zip(batch, streams, strict=True)):
        if not isinstance(item, HelloArrival) or stream_id is None or position in refused:
            continue
        latest[stream_id] = item
        if not item.hello.recovered:
            by_device[item.arrival.device_id] = item
        versions[stream_id] = max(versions.get(stream_id, 0), item.hello.ledger_version)
        for entry in item.hello.ledger:
            key = (stream_id, entry.kind, entry.day)
            produced[key] = max(produced.get(key, 0), entry.records)
    if not latest:
        return
    hellos = [item.hello for item in by_device.values()]
    clocks = connection.execute(
        sql.GREET_DEVICES,
        {
            "devices": list(by_device),
            "zones": [_known_zone(hello.zone) for hello in hellos],
            "versions": [hello.version for hello in hellos],
            "hellos": [hello.encode().decode() for hello in hellos],
            "intervals": [hello.interval_seconds for hello in hellos],
            "device_ms": [hello.device_time_ms for hello in hellos],
            "hub_ms": work.received_ms,
        },
    )
    for device_id, skew_seconds, samples in clocks:
        _judge_clock(work, by_device[device_id], skew_seconds, samples)
    _learn_boots(connection, latest.values())
    for item in by_device.values():
        if item.hello.damaged_files:
            _note_damage(work, item)
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


def _learn_boots(connection: database.Connection, greeted: Iterable[HelloArrival]) -> None:
    """In which boots a device's clock became known; the later word about a boot counts."""
    learned: dict[tuple[str, bytes], BootClock] = {}
    for item in greeted:
        for boot in item.hello.boots:
            key = item.arrival.device_id, boot.boot_id
            if key not in learned or learned[key].known_ms < boot.known_ms:
                learned[key] = boot
    if learned:
        connection.execute(
            sql.LEARN_BOOTS,
            {
                "devices": [device_id for device_id, _ in learned],
                "boots": [boot_id for _, boot_id in learned],
                "offsets": [boot.offset_ms for boot in learned.values()],
                "uncertainties": [
                    min(boot.uncertainty_ms, wire.MAX_OFFSET_MS) for boot in learned.values()
                ],
                "known": [boot.known_ms for boot in learned.values()],
            },
        )


def _judge_clock(work: Work, item: HelloArrival, skew_seconds: float, samples: int) -> None:
    """Note a clock that is wrong. Behind may be a message that waited: only more of them say it."""
    is_behind = skew_seconds < -CLOCK_WRONG_SECONDS and samples >= CLOCK_SAMPLES
    if not is_behind and skew_seconds <= CLOCK_WRONG_SECONDS:
        return
    device_id = item.arrival.device_id
    where = "ahead of" if skew_seconds > 0 else "behind"
    note_error(
        work,
        item,
        code="clock_wrong",
        severity="medium",
        message=f"the clock of device {device_id} is {abs(skew_seconds):,.0f} s {where} the hub's",
        hint="run 'scout-edge doctor' on the device: does its network let NTP (UDP port 123) out? "
        "what it stamps meanwhile is marked, and repaired once its clock is right in that boot",
    )


def _note_damage(work: Work, item: HelloArrival) -> None:
    device_id, files = item.arrival.device_id, item.hello.damaged_files
    note_error(
        work,
        item,
        code="buffer_damaged",
        severity="critical",
        message=f"{files} damaged buffer files lie on device {device_id}: what was whole in them "
        "is delivered under its old identity, what was not is declared as given up",
        hint="check the SD card or disk and the power supply, change it; then keep or remove the "
        "files named .damaged- beside its buffer",
    )


def set_online(connection: database.Connection, batch: Sequence[Parsed]) -> None:
    """The last word of each device in the batch."""
    latest = {
        item.arrival.device_id: item.online for item in batch if isinstance(item, StatusArrival)
    }
    if latest:
        devices = sorted(latest)
        connection.execute(
            sql.SET_ONLINE, {"devices": devices, "online": [latest[d] for d in devices]}
        )


def write_tallies(connection: database.Connection, work: Work) -> None:
    """One statement for each kind of row that the transaction gathered."""
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
    if work.quarantined or work.given_up:
        keys = [*work.quarantined, *work.given_up]
        outcomes = [Outcome.QUARANTINED] * len(work.quarantined)
        outcomes += [Outcome.GIVEN_UP] * len(work.given_up)
        connection.execute(
            sql.ADD_OUTCOMES,
            {
                "streams": [stream_id for stream_id, _, _, _ in keys],
                "kinds": [kind for _, kind, _, _ in keys],
                "days": [_day(day) for _, _, day, _ in keys],
                "outcomes": [str(outcome) for outcome in outcomes],
                "rules": [rule for _, _, _, rule in keys],
                "records": [*work.quarantined.values(), *work.given_up.values()],
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


def read_receipts(
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
        stream_id: (ledger_version, writer, list(zip(firsts, ends, strict=True)))
        for stream_id, ledger_version, writer, firsts, ends in connection.execute(
            sql.READ_RECEIPTS, {"streams": list(wanted), "ranges": MAX_RANGES + 1}
        )
    }
    receipts: dict[tuple[str, int], StreamReceipt] = {}
    for item, stream_id in zip(batch, streams, strict=True):
        address = stream_key(item)
        if stream_id is None or address is None:
            continue
        ledger_version, writer, held = state[stream_id]
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
                writer=bytes(writer or b""),
            ),
        )
    return list(receipts.values())


def stream_key(item: Parsed) -> tuple[str, bytes] | None:
    """(device, epoch) that ``item`` speaks for, if any."""
    if isinstance(item, SegmentArrival):
        return item.arrival.device_id, item.header.epoch
    if isinstance(item, HelloArrival):
        return item.arrival.device_id, item.hello.epoch
    return None


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
