"""What the hub's HTTP API answers: one frozen dataclass per answer, for both of its ends.

The hub makes them and OpenAPI shows them with their descriptions; the console's client reads them
(``scout_console.decoding``). Times are ISO 8601 in UTC, decimals are strings (no digit is lost on
the way), ``None`` is "not known", a count of 0 is a count. ``as_of`` is when the hub read.
Not its job: words, colours and rounding; the presenters do that.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar


class Answer:
    """What all answers share."""

    __slots__ = ()
    # Read by pydantic, which the hub has: what follows a field becomes its description, and an
    # answer is checked, types and all, when it leaves.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "use_attribute_docstrings": True,
        "revalidate_instances": "always",
        "extra": "forbid",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Answer):
    """Why a request failed, in one shape for all failures."""

    error: str
    """A word for programs, e.g. ``forbidden`` or ``database_away``."""
    message: str
    """What failed, with which value."""
    hint: str
    """What to do about it; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Answer):
    """One part of the hub and how it is."""

    name: str
    """database, ingest or runner."""
    status: str
    """ok, degraded, down or unknown."""
    since: dt.datetime | None
    """When it was last seen to work; None: never."""
    age_seconds: float | None
    message: str
    """One sentence for a person; empty when all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Answer):
    """How the hub is: the worst of its components."""

    as_of: dt.datetime
    status: str
    """ok, degraded or down."""
    version: str
    started_at: dt.datetime
    components: tuple[Component, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Me(Answer):
    """Whom the token stands for."""

    as_of: dt.datetime
    name: str
    role: str
    """uploader, viewer, operator or admin."""
    stores: tuple[str, ...]
    """Stores that it may see; ``*``: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sla(Answer):
    """One service level of one dataset, as measured last."""

    sla_name: str
    dataset: str
    sla_type: str
    target_value: Decimal
    target_operator: str
    unit: str
    actual_value: Decimal | None
    met: bool | None
    """None: not measured yet."""
    breached_since: dt.datetime | None
    measured_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Answer):
    """A run, or one step of it."""

    run_id: str
    parent_run_id: str | None
    agent: str
    task: str
    """Dataset of a step, or the name of a whole run."""
    trigger: str
    status: str
    """running, completed, failed, cancelled, or lost (it runs, but its heartbeat stopped)."""
    attempt: int
    worker: str
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    finished_at: dt.datetime | None
    duration_seconds: float | None
    """Until now while it runs; None when it is lost."""
    rows_read: int | None
    rows_written: int | None
    rows_deleted: int | None
    touched_keys: int | None
    mode: str | None
    """incremental or full."""
    message: str | None
    steps: tuple[Run, ...] = ()
    """Steps in the order they started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs(Answer):
    """A page of whole runs, newest first, each with its steps."""

    as_of: dt.datetime
    runs: tuple[Run, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Answer):
    """A dataset: how much is in it, how old it is, whether it keeps its word."""

    dataset: str
    layer: str
    status: str
    """ok, stale (SLA missed), failed (its last run), empty, or unknown (no SLA measured)."""
    rows: int | None
    """Rows that this token may see; None: too many to count in time."""
    rows_exact: bool
    """False: an estimate of PostgreSQL's statistics."""
    bytes: int
    """On disk with indexes, all stores."""
    newest_at: dt.datetime | None
    """Newest loaded row (bronze: newest receipt); None: empty, or not allowed to see it."""
    age_seconds: float | None
    slas: tuple[Sla, ...]
    last_run: Run | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables(Answer):
    """All datasets, bronze to platinum."""

    as_of: dt.datetime
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCounts(Answer):
    """Devices by state; retired ones are counted apart."""

    devices: int
    """Without the retired ones: online + late + dark + unknown."""
    online: int
    late: int
    dark: int
    unknown: int
    """Never heard by themselves."""
    retired: int
    maintenance: int = 0
    """Of these nothing is expected; they are counted nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTile(Answer):
    """One layer of the warehouse in one tile."""

    layer: str
    """bronze, silver, gold or platinum."""
    status: str
    """Worst of its tables: failed, stale, unknown, empty, ok."""
    tables: int
    rows: int | None
    rows_exact: bool
    newest_at: dt.datetime | None
    age_seconds: float | None
    """Of the newest row in the layer."""
    worst_sla: Sla | None
    """The missed SLA that is furthest from its target, else the nearest to being missed."""
    last_run: Run | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationRow(Answer):
    """Where the records went. Always:

    produced + unreported = received + undated + in_transit, and
    received = landed + duplicate + quarantined + excluded + given_up + pending.
    ``remainder`` is what in_transit and pending cannot be: other than zero is an incident.
    """

    kind: str
    """documents or readings; unknown: given up with a damaged file, nobody can tell."""
    device_id: str | None
    """None: all devices."""
    store_id: str | None
    business_date: dt.date | None
    """None with by=day: records without a known time."""
    produced: int
    """What the devices say they accepted."""
    unreported: int
    """Received before the device's next hello could report them."""
    received: int
    landed: int
    duplicate: int
    quarantined: int
    excluded: int
    given_up: int
    """Accepted, then lost at the device, which declared it: damage, or a full buffer."""
    undated: int
    """Of unreadable segments: put against the days that lack them; 0 in a total."""
    in_transit: int
    """At the device, or on the way."""
    pending: int
    """At the hub, not yet judged by silver."""
    remainder: int
    adds_up: bool
    """The remainder is zero in each device and day behind this row, not only in their sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation(Answer):
    """Does everything add up."""

    as_of: dt.datetime
    by: str
    """total, device or day."""
    adds_up: bool
    totals: tuple[ReconciliationRow, ...]
    """One row per kind."""
    rows: tuple[ReconciliationRow, ...]
    """by=total: none. by=device: per device and kind. by=day: per device, kind, business day."""
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastStatus(Answer):
    """What the forecasts on the screen are."""

    status: str
    """model, baseline (a fallback, and it says so), mixed or none."""
    label: str
    """One sentence for a person, to stand beside each forecast."""
    rows: int
    methods: tuple[str, ...]
    backends: tuple[str, ...]
    as_of_date: dt.date | None
    """Last day that the forecast knew."""
    training_from: dt.date | None
    training_to: dt.date | None
    wape_ratio: float | None
    """Median over the series of their back-test errors; None: nothing was sold in them."""
    coverage_ratio: float | None
    """Mean share of back-test days inside the interval."""
    loaded_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview(Answer):
    """Everything the first screen needs."""

    as_of: dt.datetime
    status: str
    """ok, degraded or down: the worst word of what follows."""
    reasons: tuple[str, ...]
    """Why the status is not ok, one sentence each, worst first."""
    version: str
    fleet: FleetCounts
    layers: tuple[LayerTile, ...]
    adds_up: bool
    reconciliation: tuple[ReconciliationRow, ...]
    """One row per kind; empty: no device has been heard of."""
    quarantine_open: int
    quarantine_records: int
    errors_open: int
    errors_worst: str | None
    """low, medium, high or critical."""
    errors_since: dt.datetime | None
    """When the oldest open error was first seen."""
    forecast: ForecastStatus
    components: tuple[Component, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device(Answer):
    """One device and how it is."""

    device_id: str
    store_id: str
    zone: str | None
    version: str | None
    lifecycle: str
    """pending, active, maintenance or retired."""
    status: str
    """online, late, dark or unknown."""
    since: dt.datetime | None
    """Since when it is in this state."""
    first_seen_at: dt.datetime
    last_seen_at: dt.datetime
    hello_received_at: dt.datetime | None
    heartbeat_seconds: float | None
    backlog_records: int | None
    """Accepted by the device and not yet here; None: it never said."""
    oldest_unsent_seconds: float | None
    """Age of the oldest record without receipt; None: none, or it never said."""
    buffer_bytes: int | None
    clock_skew_seconds: float | None
    """Device clock minus hub clock, by the quickest of its last hellos."""
    clock_synced: bool | None
    quarantine_open: int
    given_up_records: int
    """Accepted by the device and declared as lost; those that came after all are not counted."""
    damaged_files: int | None
    """Damaged buffer files that lie on the device; None: it never said."""
    python: str | None = None
    """Version of Python that the agent runs on."""
    system: str | None = None
    """Operating system and machine."""
    config_version: int | None = None
    """Of the hub's settings that are in force; 0: the device's own file alone."""
    config_wanted: int | None = None
    """The newest version that was ordered; None: none ever was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet(Answer):
    """All devices, worst first."""

    as_of: dt.datetime
    counts: FleetCounts
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Answer):
    """One buffer file of a device."""

    stream_id: int
    epoch: str
    next_sequence: int | None
    watermark: int
    """All sequences 1..watermark are here."""
    held_records: int
    """Records here, those above the watermark included."""
    gaps: int
    """Ranges missing below the highest received sequence."""
    unsealed_records: int | None
    first_seen_at: dt.datetime
    last_seen_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Answer):
    """A range of records that a device accepted and declared that it gave up."""

    stream_id: int
    first_sequence: int
    records: int
    """Of the range, those that were not here."""
    kind: str
    """readings, documents or unknown."""
    reason: str
    """damaged, thin or drop_oldest."""
    declared_at: dt.datetime
    closed_at: dt.datetime | None
    """When the records came after all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestReading(Answer):
    """The newest value of one metric of a device; look at its age before its value."""

    metric: str
    """Name with its unit."""
    value: float
    observed_at: dt.datetime
    """As it was stamped."""
    received_at: dt.datetime
    age_seconds: float
    """Since it was received."""
    happened_at: dt.datetime | None
    """``observed_at``, repaired where the device's clock was wrong; None: nobody knows."""
    time_provenance: str
    """Of ``happened_at``: observed, recovered (by the clock of that boot) or unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDetail(Answer):
    """One device with its streams and latest telemetry."""

    as_of: dt.datetime
    device: Device
    streams: tuple[Stream, ...]
    gaps: tuple[Gap, ...]
    """What it gave up, the newest 50 ranges."""
    readings: tuple[LatestReading, ...]
    """Of the last two days of receipt."""
    counters: dict[str, int]
    """What the device counted since it started, e.g. reconnects."""
    reconciliation: tuple[ReconciliationRow, ...]
    """One row per kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineGroup(Answer):
    """Open quarantine of one dataset and reason."""

    dataset: str
    stage: str
    reason: str
    rows: int
    records: int
    first_at: dt.datetime
    newest_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineItem(Answer):
    """One thing that was put aside, with why and where it came from."""

    quarantine_id: int
    stage: str
    dataset: str
    reason: str
    rules: tuple[str, ...]
    message: str
    contract_id: str | None
    contract_version: str | None
    run_id: str | None
    store_id: str | None
    device_id: str | None
    stream_id: int | None
    sequence: int | None
    records: int
    file_id: int | None
    line_number: int | None
    business_date: dt.date | None
    payload: Any
    """The record as JSON, when it is JSON."""
    raw_base64: str | None
    """First 4096 bytes, when it is not."""
    raw_bytes: int | None
    attempts: int
    state: str
    """open, replayed or discarded."""
    quarantined_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine(Answer):
    """Groups over all that is open, and a page of items, newest first."""

    as_of: dt.datetime
    groups: tuple[QuarantineGroup, ...]
    items: tuple[QuarantineItem, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorItem(Answer):
    """A failure with its state; a repeated one is one row with a count."""

    error_id: int
    run_id: str | None
    component: str
    error_type: str
    severity: str
    code: str
    message: str
    hint: str
    dataset: str | None
    store_id: str | None
    device_id: str | None
    affected_records: int | None
    state: str
    """open, acknowledged, resolved or ignored."""
    first_at: dt.datetime
    last_at: dt.datetime
    occurrences: int
    resolved_by: str | None
    resolved_at: dt.datetime | None
    resolution: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors(Answer):
    """A page of errors, newest first."""

    as_of: dt.datetime
    errors: tuple[ErrorItem, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityMetric(Answer):
    """The newest value of one metric of one dataset."""

    dataset: str
    layer: str
    dimension: str
    metric: str
    value: Decimal
    unit: str
    threshold: Decimal | None
    threshold_operator: str | None
    met: bool | None
    run_id: str | None
    measured_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality(Answer):
    """Newest quality metrics and all service levels."""

    as_of: dt.datetime
    metrics: tuple[QualityMetric, ...]
    slas: tuple[Sla, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEdge(Answer):
    """A column comes from a column; ``*`` is the table itself."""

    source_dataset: str
    source_column: str
    target_dataset: str
    target_column: str
    transformation: str
    depth: int
    """Steps away from the dataset asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage(Answer):
    """Where a dataset comes from and where it goes, all the way."""

    as_of: dt.datetime
    dataset: str
    upstream: tuple[LineageEdge, ...]
    downstream: tuple[LineageEdge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(Answer):
    """One record that a row came from: its place in a segment of a device, or in a file."""

    bronze_dataset: str
    record: Any
    """The bronze row as it arrived."""
    received_at: dt.datetime
    store_id: str | None
    device_id: str | None
    stream_id: int | None
    epoch: str | None
    sequence: int | None
    segment_first_sequence: int | None
    segment_records: int | None
    segment_crc: int | None
    boot_id: str | None
    sealed_at: dt.datetime | None
    file_id: int | None
    file_name: str | None
    file_sha256: str | None
    line_number: int | None
    uploaded_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLineage(Answer):
    """One row of silver with everything it came from."""

    as_of: dt.datetime
    dataset: str
    key: dict[str, Any]
    row: dict[str, Any]
    origins: tuple[Origin, ...]
    truncated: bool
    """There are more origins than these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Answer):
    """A column of a table."""

    name: str
    type: str
    """PostgreSQL's name of it."""
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Answer):
    """A page of rows. Values have their types: Decimal, date, aware datetime."""

    as_of: dt.datetime
    dataset: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Answer):
    """A line of a file that did not land."""

    line_number: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload(Answer):
    """A file that was given to the hub."""

    file_id: int
    dataset: str
    name: str
    sha256: str
    bytes: int
    rows: int
    """Rows that landed."""
    rejected_rows: int
    uploaded_by: str
    received_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadResult(Answer):
    """What became of an upload."""

    as_of: dt.datetime
    file: Upload
    duplicate: bool
    """The same bytes had been loaded before; nothing was loaded again."""
    record_type: str | None
    encoding: str | None
    """How the text was read: utf-8, utf-16 or cp1252; None for Parquet and duplicates."""
    columns: tuple[str, ...]
    rejects: tuple[Reject, ...] = ()
    """The first 20; all are in quarantine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads(Answer):
    """A page of files, newest first."""

    as_of: dt.datetime
    files: tuple[Upload, ...]
    next_cursor: str | None
