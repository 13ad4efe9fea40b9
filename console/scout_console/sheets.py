"""The tables on the screens: which columns, in which words, in which order.

A ``Sheet`` is plain text with tones; the web draws it as a table of the page, the terminal as a
``DataTable``, both with the same words. Columns have a rank: the terminal shows the low ranks that
fit its width. A cell never shows a stale value as if it were live. Pure functions.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scout_console.values import (
    EMPTY,
    UNKNOWN,
    Clock,
    Nothing,
    Said,
    Tone,
    age,
    aged,
    count,
    counted,
    duration,
    printable,
    size,
)
from scout_console.views import store
from scout_shared import answers

MARKS = {
    "online": "●",
    "late": "◐",
    "dark": "○",
    "unknown": "?",
    "ok": "●",
    "completed": "●",
    "running": "▸",
    "stale": "◐",
    "failed": "✕",
    "lost": "✕",
    "cancelled": "–",
    "empty": "·",
}
"""A shape for each state, beside its word: nothing is told by colour alone."""

_TONES = {
    "online": Tone.GOOD,
    "late": Tone.WARN,
    "dark": Tone.BAD,
    "ok": Tone.GOOD,
    "completed": Tone.GOOD,
    "running": Tone.PLAIN,
    "stale": Tone.WARN,
    "failed": Tone.BAD,
    "lost": Tone.BAD,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column and how much it matters."""

    name: str
    rank: int = 1
    """1: always; 2: from 100 characters on; 3: only where there is plenty of room."""
    numeric: bool = False
    prose: bool = False
    """Sentences: may take several lines where there are any."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row; ``key`` finds it again after a refresh."""

    key: str
    cells: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table in words."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    nothing: str
    """What to say when there are no lines, and what would bring some."""

    def narrow(self, rank: int) -> Sheet:
        """Only the columns up to ``rank``."""
        kept = [i for i, column in enumerate(self.columns) if column.rank <= rank]
        return Sheet(
            tuple(self.columns[i] for i in kept),
            tuple(Line(line.key, tuple(line.cells[i] for i in kept)) for line in self.lines),
            self.nothing,
        )


def state(word: str, text: str = "") -> Said:
    """A state as shape, word and tone."""
    mark = MARKS.get(word, "?")
    return Said(f"{mark} {text or word}", _TONES.get(word, Tone.QUIET))


def _text(value: str | None) -> Said:
    return Said(printable(value)) if value else UNKNOWN


def _since(moment: dt.datetime | None, now: dt.datetime, clock: Clock) -> Said:
    if moment is None:
        return UNKNOWN
    return Said(clock.moment(moment, now), note=clock.full(moment))


def _happened(reading: answers.LatestReading, now: dt.datetime, clock: Clock) -> Said:
    """When it happened, and where that time is from unless it was simply observed."""
    if reading.happened_at is None:
        stamped = clock.full(reading.observed_at)
        return Said("clock not known", Tone.WARN, note=f"stamped {stamped} by a doubtful clock")
    said = _since(reading.happened_at, now, clock)
    if reading.time_provenance == "observed":
        return said
    stamped = clock.full(reading.observed_at)
    return Said(f"{said.text}, {reading.time_provenance}", note=f"stamped {stamped}")


# --- fleet


def fleet(devices: Sequence[answers.Device], clock: Clock, now: dt.datetime) -> Sheet:
    """One line per device, worst first, as the hub ordered them."""
    return Sheet(
        columns=(
            Column("Store"),
            Column("Device", 2),
            Column("State"),
            Column("For", numeric=True),
            Column("Since", 2),
            Column("Last heard", numeric=True),
            Column("Backlog", numeric=True),
            Column("Oldest unsent", 3, numeric=True),
            Column("Clock skew", 3, numeric=True),
            Column("Quarantine", 2, numeric=True),
            Column("Version", 3),
        ),
        lines=tuple(Line(d.device_id, _device_cells(d, clock, now)) for d in devices),
        nothing="No device has reported yet. Start an agent: scout-edge run",
    )


def _device_cells(d: answers.Device, clock: Clock, now: dt.datetime) -> tuple[Said, ...]:
    told, told_age = reported(d, now)
    word = state(d.status, "never heard" if d.status == "unknown" else d.status)
    if d.lifecycle == "retired":
        word = Said("– retired", Tone.QUIET)
    elif d.lifecycle == "maintenance" and d.status != "online":
        word = Said("– maintenance", Tone.QUIET)
    elif d.lifecycle != "active":
        word = Said(f"{word.text}, {d.lifecycle}", word.tone)
    unsent = (
        Said(age(d.oldest_unsent_seconds))
        if d.oldest_unsent_seconds is not None
        else Said("none")
        if d.backlog_records == 0
        else UNKNOWN
    )
    return (
        Said(printable(d.store_id)),
        Said(printable(d.device_id)),
        word,
        UNKNOWN
        if d.since is None
        else Said(clock.age(d.since, now), word.tone if told else Tone.PLAIN),
        _since(d.since, now, clock),
        UNKNOWN
        if d.status == "unknown"
        else Said(clock.ago(d.last_seen_at, now), word.tone if told else Tone.PLAIN),
        aged(counted(d.backlog_records), told_age, stale=told),
        aged(unsent, told_age, stale=told),
        aged(skew(d), told_age, stale=told),
        Said(count(d.quarantine_open), Tone.WARN)
        if d.quarantine_open
        else counted(d.quarantine_open),
        _text(d.version),
    )


def reported(d: answers.Device, now: dt.datetime) -> tuple[bool, float | None]:
    """Whether what the device said of itself is stale, and how old it is."""
    told_age = None if d.hello_received_at is None else (now - d.hello_received_at).total_seconds()
    return d.status in ("dark", "late", "unknown"), told_age


def skew(d: answers.Device) -> Said:
    """How far the device's clock is off; more than 2 s is worth a look."""
    if d.clock_skew_seconds is None:
        return UNKNOWN
    off = d.clock_skew_seconds
    text = f"{'−' if off < 0 else '+'}{abs(off):,.1f} s" if abs(off) >= 0.05 else "0.0 s"
    unsynced = d.clock_synced is False
    return Said(
        f"{text}, not synchronised" if unsynced else text,
        Tone.WARN if unsynced or abs(off) > 2 else Tone.PLAIN,
    )


def device_facts(
    detail: answers.DeviceDetail, clock: Clock, now: dt.datetime
) -> tuple[tuple[str, Said], ...]:
    """What is known of one device, name by name."""
    d = detail.device
    told, told_age = reported(d, now)
    cells = dict(
        zip(
            (c.name for c in fleet((), clock, now).columns),
            _device_cells(d, clock, now),
            strict=True,
        )
    )
    heard = cells["Last heard"]
    if d.heartbeat_seconds is not None:
        every = f"it reports every {d.heartbeat_seconds:g} s"
        heard = dataclasses.replace(heard, note=f"{heard.note}, {every}" if heard.note else every)
    return (
        ("Last heard", heard),
        ("First seen", _since(d.first_seen_at, now, clock)),
        ("Backlog", _waiting(cells["Backlog"], detail.counters)),
        ("Oldest unsent", cells["Oldest unsent"]),
        ("Buffer on disk", aged(_kept(d), told_age, stale=told)),
        ("Clock skew", cells["Clock skew"]),
        ("Store zone", _text(d.zone)),
        ("Agent version", cells["Version"]),
        (
            "Runs on",
            _text(", ".join(p for p in (d.system, d.python and f"Python {d.python}") if p)),
        ),
        ("Settings", _settings(d)),
        ("Quarantine", cells["Quarantine"]),
        ("Given up", _alarming(d.given_up_records)),
    )


def _waiting(backlog: Said, counters: Mapping[str, int]) -> Said:
    """The backlog, and whether it waits because a metered line's bytes of the day are used up."""
    if not 0 < counters.get("budget_bytes", 0) <= counters.get("budget_used_bytes", 0):
        return backlog
    return dataclasses.replace(backlog, text=f"{backlog.text}, only sales are sent until tomorrow")


def _kept(d: answers.Device) -> Said:
    """What the buffer takes on the device's disk, and the files set aside as damaged."""
    if not d.damaged_files:
        return size(d.buffer_bytes)
    return Said(f"{size(d.buffer_bytes).text}, {count(d.damaged_files)} damaged", Tone.BAD)


def _settings(d: answers.Device) -> Said:
    """Which of the hub's settings are in force, and which were ordered."""
    if d.config_version is None:
        return UNKNOWN
    here = f"version {d.config_version}" if d.config_version else "the device's own file"
    if d.config_wanted is None or d.config_wanted == d.config_version:
        return Said(here)
    return Said(f"{here}, version {d.config_wanted} was ordered", Tone.WARN)


def _alarming(number: int | None) -> Said:
    """A count that should be 0."""
    return Said(count(number), Tone.BAD) if number else counted(number)


def streams(detail: answers.DeviceDetail, clock: Clock, now: dt.datetime) -> Sheet:
    """One line per buffer file of a device, the newest first."""
    return Sheet(
        columns=(
            Column("Buffer file"),
            Column("Here without gap", numeric=True),
            Column("Held in all", numeric=True),
            Column("Gaps", numeric=True),
            Column("Not yet sealed", 2, numeric=True),
            Column("First seen", 2),
            Column("Last seen"),
        ),
        lines=tuple(
            Line(
                str(s.stream_id),
                (
                    Said(s.epoch[:8], note=s.epoch),
                    Said(f"1 to {count(s.watermark)}") if s.watermark else counted(0),
                    counted(s.held_records),
                    Said(count(s.gaps), Tone.WARN) if s.gaps else counted(0),
                    counted(s.unsealed_records),
                    _since(s.first_seen_at, now, clock),
                    _since(s.last_seen_at, now, clock),
                ),
            )
            for s in detail.streams
        ),
        nothing="This device has not sent a record yet.",
    )


def gaps(detail: answers.DeviceDetail, clock: Clock, now: dt.datetime) -> Sheet:
    """One line per range of records that a device gave up, the newest first."""
    return Sheet(
        columns=(
            Column("Given up", numeric=True),
            Column("Records"),
            Column("Why"),
            Column("Declared"),
            Column("Came after all", 2),
            Column("From sequence", 2, numeric=True),
        ),
        lines=tuple(
            Line(
                f"{gap.stream_id}/{gap.first_sequence}/{gap.records}",
                (
                    counted(gap.records)
                    if gap.closed_at
                    else Said(count(gap.records), Tone.BAD, note="not here"),
                    Said(printable(gap.kind)),
                    Said(_REASONS.get(gap.reason, printable(gap.reason)), note=gap.reason),
                    _since(gap.declared_at, now, clock),
                    Said("no") if gap.closed_at is None else _since(gap.closed_at, now, clock),
                    counted(gap.first_sequence),
                ),
            )
            for gap in detail.gaps
        ),
        nothing="This device has given up nothing.",
    )


_REASONS = {
    "damaged": "its storage was damaged",
    "thin": "buffer full, readings thinned",
    "drop_oldest": "buffer full, oldest dropped",
}


def readings(detail: answers.DeviceDetail, clock: Clock, now: dt.datetime) -> Sheet:
    """The latest value of each metric, grey when the device is not online."""
    told, _ = reported(detail.device, now)
    return Sheet(
        columns=(
            Column("Metric"),
            Column("Latest value", numeric=True),
            Column("Observed", 2),
            Column("Received", numeric=True),
        ),
        lines=tuple(
            Line(
                r.metric,
                (
                    Said(printable(r.metric)),
                    Said(figure(r.value), Tone.QUIET if told else Tone.PLAIN),
                    _happened(r, now, clock),
                    Said(
                        clock.ago(r.received_at, now),
                        Tone.QUIET if told else Tone.PLAIN,
                    ),
                ),
            )
            for r in detail.readings
        ),
        nothing="No telemetry received in the last two days.",
    )


def figure(value: float) -> str:
    """A measured value with the digits that matter: ``0.042``, ``36.5``, ``1,048,576``."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:,.3g}".replace("-", "−")


# --- does everything add up


def reconciliation(rows: Sequence[answers.ReconciliationRow], by: str) -> Sheet:
    """The equation, a line per kind (``by`` kind), device or business day."""
    names = {"kind": "Records", "device": "Store", "day": "Business day"}
    return Sheet(
        columns=(
            Column(names[by]),
            *(() if by == "kind" else (Column("Kind", 2),)),
            Column("Produced", numeric=True),
            Column("Not yet reported", 2, numeric=True),
            Column("In transit", 2, numeric=True),
            Column("Received", numeric=True),
            Column("Landed", numeric=True),
            Column("Duplicate", 2, numeric=True),
            Column("Quarantined", 2, numeric=True),
            Column("Excluded", 2, numeric=True),
            Column("Given up", 2, numeric=True),
            Column("Pending", 2, numeric=True),
            Column("Remainder", numeric=True),
        ),
        lines=tuple(_sum_line(row, by) for row in rows),
        nothing="No records yet: the equation begins with the first device that reports.",
    )


def _sum_line(row: answers.ReconciliationRow, by: str) -> Line:
    name = {
        "kind": row.kind,
        "device": row.store_id or Nothing.UNKNOWN.value,
        "day": "unknown day" if row.business_date is None else f"{row.business_date:%Y-%m-%d}",
    }[by]
    undated = f"{count(row.undated)} of segments whose days cannot be read" if row.undated else ""
    key = "/".join((row.device_id or "all", row.kind, str(row.business_date)))
    remainder = (
        Said("0", Tone.GOOD, Nothing.ZERO)
        if row.adds_up
        else Said(
            count(row.remainder) if row.remainder else "0, cancelled out",
            Tone.BAD,
            note="records that cannot be accounted for",
        )
    )
    return Line(
        key,
        (
            Said(printable(name), note=row.device_id or ""),
            *(() if by == "kind" else (Said(row.kind),)),
            Said(count(row.produced), note=undated),
            counted(row.unreported),
            counted(row.in_transit),
            counted(row.received),
            counted(row.landed),
            counted(row.duplicate),
            Said(count(row.quarantined), Tone.WARN) if row.quarantined else counted(0),
            counted(row.excluded),
            Said(count(row.given_up), Tone.WARN) if row.given_up else counted(0),
            counted(row.pending),
            remainder,
        ),
    )


# --- pipeline


def runs(found: Sequence[answers.Run], clock: Clock, now: dt.datetime) -> Sheet:
    """One line per whole run, newest first."""
    return Sheet(
        columns=(
            Column("Started"),
            Column("Run"),
            Column("State"),
            Column("Took", numeric=True),
            Column("Steps", numeric=True),
            Column("Read", 2, numeric=True),
            Column("Written", numeric=True),
            Column("Mode", 2),
            Column("Trigger", 3),
            Column("Message", 2, prose=True),
        ),
        lines=tuple(Line(run.run_id, _run_cells(run, clock, now)) for run in found),
        nothing="No run yet: the hub starts one as soon as a segment or a file has arrived.",
    )


def steps(run: answers.Run, clock: Clock, now: dt.datetime) -> Sheet:
    """The steps of a run in the order they started; each is a table that was brought up to date."""
    whole = runs(run.steps, clock, now)
    kept = [i for i, column in enumerate(whole.columns) if column.name not in ("Steps", "Trigger")]
    named = {"Run": "Table"}
    return Sheet(
        tuple(
            dataclasses.replace(
                whole.columns[i], name=named.get(whole.columns[i].name, whole.columns[i].name)
            )
            for i in kept
        ),
        tuple(Line(line.key, tuple(line.cells[i] for i in kept)) for line in whole.lines),
        "This run has no steps: it found nothing to do, or failed before the first.",
    )


def _run_cells(run: answers.Run, clock: Clock, now: dt.datetime) -> tuple[Said, ...]:
    done = sum(step.status == "completed" for step in run.steps)
    bad = any(step.status in ("failed", "lost") for step in run.steps)
    took = run.duration_seconds
    return (
        Said(clock.moment(run.started_at, now, seconds=True), note=run.run_id),
        Said(printable(run.task)),
        state(run.status),
        duration(took) if run.status != "running" else Said(f"{duration(took).text} so far"),
        Said(f"{done}/{len(run.steps)}", Tone.BAD if bad else Tone.PLAIN)
        if run.steps
        else Said("–", Tone.QUIET),
        counted(run.rows_read),
        counted(run.rows_written),
        Said(run.mode) if run.mode else Said("–", Tone.QUIET),
        Said(printable(run.trigger)),
        Said(printable(run.message), Tone.BAD if run.status == "failed" else Tone.PLAIN)
        if run.message
        else Said(""),
    )


def datasets(tables: Sequence[answers.Table], clock: Clock, now: dt.datetime) -> Sheet:
    """One line per dataset, bronze to platinum: rows, age, service level, last run."""
    return Sheet(
        columns=(
            Column("Layer", 2),
            Column("Table"),
            Column("State"),
            Column("Rows", numeric=True),
            Column("Size", 3, numeric=True),
            Column("Newest row", numeric=True),
            Column("Target", 2, numeric=True),
            Column("Last run", 2),
        ),
        lines=tuple(Line(t.dataset, _dataset_cells(t, clock, now)) for t in tables),
        nothing="The hub names no tables: has it been migrated?",
    )


def _dataset_cells(t: answers.Table, clock: Clock, now: dt.datetime) -> tuple[Said, ...]:
    freshness = next((s for s in t.slas if s.sla_type == "freshness"), None)
    newest = (
        EMPTY
        if t.newest_at is None
        else Said(
            clock.ago(t.newest_at, now),
            Tone.WARN if t.status == "stale" else Tone.PLAIN,
            note=clock.full(t.newest_at),
        )
    )
    target = (
        Said("none set", Tone.QUIET)
        if freshness is None
        else Said(f"within {age(float(freshness.target_value))}")
    )
    last = (
        Said("–", Tone.QUIET)
        if t.last_run is None
        else Said(
            f"{state(t.last_run.status).text}, {clock.moment(t.last_run.started_at, now)}",
            Tone.BAD if t.last_run.status in ("failed", "lost") else Tone.PLAIN,
            note=printable(t.last_run.message or ""),
        )
    )
    name = t.dataset.partition(".")[2] or t.dataset
    return (
        Said(t.layer),
        Said(printable(name), note=printable(t.dataset)),
        standing(t.status, t.rows),
        row_count(t.rows, exact=t.rows_exact),
        size(t.bytes),
        newest,
        target,
        last,
    )


def standing(status: str, rows: int | None) -> Said:
    """How a table or layer is. No target is not a failing, and rows are not "empty"."""
    if status == "unknown" or (status == "empty" and rows):
        return Said("– no target", Tone.QUIET)
    return state(status)


def row_count(rows: int | None, *, exact: bool) -> Said:
    """``about 15,212`` when it is an estimate; unknown when it took too long to count."""
    if rows is None:
        return UNKNOWN
    if exact:
        return counted(rows)
    return Said(f"≈ {count(rows)}", note="an estimate of PostgreSQL's statistics")


def quarantine(groups: Sequence[answers.QuarantineGroup], clock: Clock, now: dt.datetime) -> Sheet:
    """Open quarantine by dataset and reason, newest first."""
    return Sheet(
        columns=(
            Column("Reason"),
            Column("Records", numeric=True),
            Column("Table"),
            Column("Stage", 2),
            Column("First", 3),
            Column("Newest"),
        ),
        lines=tuple(
            Line(
                f"{g.dataset}/{g.reason}",
                (
                    Said(printable(g.reason)),
                    Said(count(g.records), Tone.WARN),
                    Said(printable(g.dataset)),
                    Said(g.stage),
                    _since(g.first_at, now, clock),
                    Said(
                        clock.ago(g.newest_at, now),
                        note=clock.full(g.newest_at),
                    ),
                ),
            )
            for g in groups
        ),
        nothing="Nothing is in quarantine: every record was readable and kept its contract.",
    )


def errors(found: Sequence[answers.ErrorItem], clock: Clock, now: dt.datetime) -> Sheet:
    """Open failures with their state, newest first."""
    return Sheet(
        columns=(
            Column("Severity"),
            Column("State", 2),
            Column("What failed", prose=True),
            Column("Times", numeric=True),
            Column("Since"),
            Column("What to do", 2, prose=True),
        ),
        lines=tuple(
            Line(
                str(e.error_id),
                (
                    Said(
                        e.severity,
                        Tone.BAD if e.severity in ("high", "critical") else Tone.WARN,
                    ),
                    Said(e.state),
                    Said(printable(f"{e.component}: {e.message}"), note=printable(e.code)),
                    Said(count(e.occurrences)),
                    _since(e.first_at, now, clock),
                    Said(printable(e.hint)),
                ),
            )
            for e in found
        ),
        nothing="No failure is open.",
    )


def store_name(device: answers.Device) -> str:
    """``Store 343``: as a title."""
    name = printable(store(device))
    return name[:1].upper() + name[1:]


def layers(
    tiles: Sequence[answers.LayerTile], clock: Clock, now: dt.datetime
) -> tuple[tuple[answers.LayerTile, Said, Said, Said, str], ...]:
    """Each layer with its state, rows, age of the newest row, and the service level in words."""
    return tuple(
        (
            tile,
            standing(tile.status, tile.rows),
            row_count(tile.rows, exact=tile.rows_exact),
            EMPTY
            if tile.newest_at is None
            else Said(
                clock.ago(tile.newest_at, now),
                Tone.WARN if tile.status == "stale" else Tone.PLAIN,
                note=clock.full(tile.newest_at),
            ),
            _target(tile.worst_sla),
        )
        for tile in tiles
    )


def _target(sla: answers.Sla | None) -> str:
    if sla is None:
        return "no target set"
    goal = (
        f"within {age(float(sla.target_value))}"
        if sla.unit == "seconds"
        else f"{sla.target_operator} {sla.target_value.normalize():f} {sla.unit}"
    )
    name = sla.dataset.partition(".")[2] or sla.dataset
    kept = {True: "kept", False: "missed", None: "not measured yet"}[sla.met]
    return printable(f"target {goal}: {kept} ({name})")
