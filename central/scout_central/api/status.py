"""The words that sum things up: one word for the hub, one per layer, the worst wins.

Pure functions over rows that were read; no SQL, no HTTP.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from scout_central.api.reading import Row
from scout_shared.answers import (
    Component,
    FleetCounts,
    ForecastStatus,
    LayerTile,
    ReconciliationRow,
    Run,
    Sla,
    Table,
)

LAYERS = ("bronze", "silver", "gold", "platinum")
WORST_FIRST = ("failed", "stale", "unknown", "empty", "ok")
QUIET_SECONDS = 15 * 60.0
"""No segment for so long, from any device: the door or the broker, rather than the devices."""
IDLE_SECONDS = 60 * 60.0
"""No run for so long is the runner's failure; micro-batches come every few seconds."""


def worst(words: Iterable[str], order: Sequence[str], best: str) -> str:
    """The word that stands first in ``order``; ``best`` when there is none."""
    return min(words, key=order.index, default=best)


def seconds(now: dt.datetime, then: dt.datetime | None) -> float | None:
    """Age; a clock a little ahead gives 0, not a negative age."""
    return None if then is None else max(0.0, (now - then).total_seconds())


def components(row: Row) -> list[Component]:
    """What the database knows of itself, the ingest and the runner."""
    now = row["now"]
    return [
        Component(name="database", status="ok", since=now, age_seconds=0.0, message=""),
        _ingest(now, row["last_segment_at"]),
        _runner(now, row),
    ]


def database_down(message: str) -> list[Component]:
    """When the database is away, nothing else is known either."""
    nothing = {"since": None, "age_seconds": None}
    unknown = "not known while the database is away"
    return [
        Component(name="database", status="down", message=message, **nothing),
        Component(name="ingest", status="unknown", message=unknown, **nothing),
        Component(name="runner", status="unknown", message=unknown, **nothing),
    ]


def _ingest(now: dt.datetime, last: dt.datetime | None) -> Component:
    age = seconds(now, last)
    if age is None:
        return Component(
            name="ingest",
            status="unknown",
            since=None,
            age_seconds=None,
            message="no device has sent anything yet",
        )
    quiet = age > QUIET_SECONDS
    return Component(
        name="ingest",
        status="degraded" if quiet else "ok",
        since=last,
        age_seconds=age,
        message=f"no segment from any device for {age / 60:.0f} minutes" if quiet else "",
    )


def _runner(now: dt.datetime, row: Row) -> Component:
    status, started = row["run_status"], row["run_started_at"]
    seen = row["run_finished_at"] or row["run_heartbeat_at"]
    age = seconds(now, seen)
    word, message = "ok", ""
    if status is None or age is None:
        return Component(
            name="runner",
            status="unknown",
            since=None,
            age_seconds=None,
            message="no run has started yet",
        )
    if status == "failed":
        word, message = "degraded", f"the last run failed: {row['run_message'] or 'see runs'}"
    elif status == "running" and age > 120:
        word, message = "degraded", f"the run that started {started:%H:%M} UTC gives no heartbeat"
    elif age > IDLE_SECONDS:
        word, message = "degraded", f"no run for {age / 60:.0f} minutes"
    return Component(name="runner", status=word, since=seen, age_seconds=age, message=message)


def overall(parts: Sequence[Component]) -> str:
    """ok, degraded or down; what is not known yet does not make the hub worse."""
    known = [p.status for p in parts if p.status != "unknown"]
    return worst(known, ("down", "degraded", "ok"), "ok")


def fleet_counts(devices: Sequence[Row]) -> FleetCounts:
    """Devices by state. Of one in maintenance nobody expects a word: its silence is no state."""
    words = [d["status"] for d in devices if d["lifecycle"] not in ("retired", "maintenance")]
    retired = sum(d["lifecycle"] == "retired" for d in devices)
    return FleetCounts(
        devices=len(words),
        online=words.count("online"),
        late=words.count("late"),
        dark=words.count("dark"),
        unknown=words.count("unknown"),
        retired=retired,
        maintenance=len(devices) - len(words) - retired,
    )


def table_status(rows: int | None, slas: Sequence[Sla], last_run: Run | None) -> str:
    """One word for a dataset."""
    if last_run is not None and last_run.status in ("failed", "lost"):
        return "failed"
    if rows == 0:
        return "empty"
    if any(sla.met is False for sla in slas):
        return "stale"
    if not any(sla.met for sla in slas):
        return "unknown"
    return "ok"


def layer_tiles(now: dt.datetime, tables: Sequence[Table]) -> list[LayerTile]:
    """Four tiles, also when a layer has nothing."""
    tiles = []
    for layer in LAYERS:
        members = [t for t in tables if t.layer == layer]
        newest = max((t.newest_at for t in members if t.newest_at), default=None)
        known = [t.rows for t in members if t.rows is not None]
        # Bronze has no SLA of its own: that it lands is judged by the components.
        words = ["ok" if layer == "bronze" and t.status == "unknown" else t.status for t in members]
        tiles.append(
            LayerTile(
                layer=layer,
                status=worst([w for w in words if w != "empty"] or words, WORST_FIRST, "ok"),
                tables=len(members),
                rows=sum(known) if len(known) == len(members) else None,
                rows_exact=all(t.rows_exact for t in members),
                newest_at=newest,
                age_seconds=seconds(now, newest),
                worst_sla=_worst_sla([s for t in members for s in t.slas]),
                last_run=max(
                    (t.last_run for t in members if t.last_run),
                    key=lambda run: run.started_at,
                    default=None,
                ),
            )
        )
    return tiles


def _worst_sla(slas: Sequence[Sla]) -> Sla | None:
    """Missed before met; then by how much of the target is used up."""

    def badness(sla: Sla) -> tuple[bool, float]:
        if sla.actual_value is None or not sla.target_value or not sla.actual_value:
            return (sla.met is False, 0.0)
        used = float(sla.actual_value / sla.target_value)
        return (sla.met is False, 1 / used if sla.target_operator.startswith(">") else used)

    return max(slas, key=badness, default=None)


def forecast(row: Row) -> ForecastStatus:
    """What the forecasts are, and the sentence that stands beside them."""
    rows, baseline = row["rows"], row.pop("baseline_rows")
    error = row["wape_ratio"]
    told = "" if error is None else f"; median back-test error {error:.0%} of sales"
    if rows == 0:
        word, label = "none", "There is no forecast yet."
    elif baseline == rows:
        word = "baseline"
        label = f"Baseline ({', '.join(row['methods'])}), not a trained model{told}."
    elif baseline:
        word = "mixed"
        label = f"{rows - baseline} of {rows} forecasts from models, the rest baseline{told}."
    else:
        word, label = "model", f"Models: {', '.join(row['methods'])}{told}."
    return ForecastStatus(status=word, label=label, **row)


def reasons(
    parts: Sequence[Component],
    reconciliation: Sequence[ReconciliationRow],
    fleet: FleetCounts,
    layers: Sequence[LayerTile],
    errors: Row,
) -> list[str]:
    """Why not all is well, worst first."""
    found = [p.message for p in parts if p.status in ("down", "degraded")]
    found += [
        f"{row.kind} do not add up: a remainder of {row.remainder} records"
        if row.remainder
        else f"{row.kind} do not add up in single devices or days"
        for row in reconciliation
        if not row.adds_up
    ]
    if errors["worst"] == "critical":
        found.append("a critical error is open")
    if fleet.dark:
        found.append(f"{fleet.dark} of {fleet.devices} devices are dark")
    found += [f"{t.layer}: the last run of a table failed" for t in layers if t.status == "failed"]
    found += [f"{t.layer} misses its SLA" for t in layers if t.status == "stale"]
    return found
