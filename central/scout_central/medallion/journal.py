"""What runs leave behind in metadata: ledger, watermarks, metrics, lineage, errors.

Success is written in the transaction of the step itself, so data and ledger cannot disagree; a
failure is written in a transaction of its own, after the step was rolled back.
OpenLineage events are plain JSON in ``metadata.data_lineage``, the outbox for any backend that
wants them; the client library would add seven packages to build six dictionaries.
Not its job: deciding what runs (``runner``).
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from scout_central.database import Connection
from scout_central.medallion.lineage import Graph, Node
from scout_central.medallion.strategies import Change, FanOutError, Window
from scout_shared.errors import ScoutError, TransientError

PRODUCER = "urn:scout:medallion"
_SPEC = "https://openlineage.io/spec"
AGENTS = {"silver": "quality", "gold": "aggregate", "platinum": "predict"}

_START_RUN = """
with ended as (
    -- the run lock is ours, so whoever is still 'running' died
    update metadata.agent_orchestration
    set status = 'failed', finished_at = now(), message = 'ended without a word: its process died'
    where task = 'medallion' and status = 'running'
)
insert into metadata.agent_orchestration (agent, task, trigger, status, worker)
values ('aggregate', 'medallion', %s, 'running', %s)
returning run_id
"""
_BEAT = "update metadata.agent_orchestration set heartbeat_at = now() where run_id = %s"
_FINISH_RUN = """
update metadata.agent_orchestration
set
    status = %(status)s,
    finished_at = clock_timestamp(),
    heartbeat_at = clock_timestamp(),
    rows_read = %(rows_read)s,
    rows_written = %(rows_written)s,
    rows_deleted = %(rows_deleted)s,
    message = %(message)s
where run_id = %(run_id)s
"""
_STEP = """
insert into metadata.agent_orchestration (
    run_id, parent_run_id, agent, task, trigger, status, worker, started_at, heartbeat_at,
    finished_at, rows_read, rows_written, rows_deleted, touched_keys, mode, from_xid, to_xid,
    sql_sha256, message
)
values (
    %(run_id)s, %(parent)s, %(agent)s, %(dataset)s, %(trigger)s, %(status)s, %(worker)s,
    %(started_at)s, clock_timestamp(), clock_timestamp(), %(rows_read)s, %(rows_written)s,
    %(rows_deleted)s, %(touched_keys)s, %(mode)s, %(from_xid)s, %(to_xid)s, %(sha256)s, %(message)s
)
"""
_WATERMARK = """
insert into metadata.watermarks (dataset, input, xid, cluster_id, sql_sha256)
values (%(dataset)s, %(input)s, %(xid)s, %(cluster)s, %(sha256)s)
on conflict (dataset, input) do update set
    xid = excluded.xid,
    cluster_id = excluded.cluster_id,
    sql_sha256 = excluded.sql_sha256,
    updated_at = now()
"""
_FORGET_INPUTS = "delete from metadata.watermarks where dataset = %s and input <> all(%s)"
_METRIC = """
insert into metadata.quality_metrics (
    run_id, dataset, layer, dimension, metric, value, unit, threshold, threshold_operator, met
)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_EVENT = (
    "insert into metadata.data_lineage (run_id, event_type, job, event) values (%s, %s, %s, %s)"
)
_FORGET_EDGES = "delete from metadata.lineage_edges where target_dataset = %s"
_EDGE = """
insert into metadata.lineage_edges (
    source_dataset, source_column, target_dataset, target_column, transformation
)
values (%s, %s, %s, %s, %s)
"""
_DATASETS = """
insert into metadata.datasets as known (dataset, layer, grain, strategy, position, sla_seconds)
values (%s, %s, %s, %s, %s, %s)
on conflict (dataset) do update set
    layer = excluded.layer,
    grain = excluded.grain,
    strategy = excluded.strategy,
    position = excluded.position,
    sla_seconds = excluded.sla_seconds
where (known.layer, known.grain, known.strategy, known.position, known.sla_seconds)
    is distinct from
    (excluded.layer, excluded.grain, excluded.strategy, excluded.position, excluded.sla_seconds)
"""
_DATASET_DONE = """
update metadata.datasets
set
    rows = coalesce(%(rows)s, rows + %(change)s),
    last_run_id = %(run_id)s,
    last_run_at = now(),
    last_status = %(status)s,
    last_message = %(message)s,
    checked_at = case when %(status)s = 'completed' then clock_timestamp() else checked_at end
where dataset = %(dataset)s
"""
_CHECKED = """
update metadata.datasets set checked_at = clock_timestamp() where dataset = any(%s)
"""
_ERROR = """
insert into metadata.error_log as known (
    run_id, component, error_type, severity, code, message, hint, dataset
)
values (%s, 'medallion', %s, 'high', %s, %s, %s, %s)
on conflict (component, code, coalesce(dataset, ''), coalesce(device_id, ''))
where state in ('open', 'acknowledged')
do update set
    run_id = excluded.run_id,
    message = excluded.message,
    hint = excluded.hint,
    last_at = now(),
    occurrences = known.occurrences + 1
"""
_RESOLVE = """
update metadata.error_log
set state = 'resolved', resolved_by = 'medallion', resolved_at = now(),
    resolution = 'a later run of the same step succeeded'
where component = 'medallion' and dataset = %s and state in ('open', 'acknowledged')
"""
_FORGET_DELETED = """
delete from metadata.deleted_keys as deleted
where deleted.xid < all(
    select mark.xid from metadata.watermarks as mark where mark.input = deleted.dataset
)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one run, as the ledger names it."""

    node: Node
    run_id: UUID
    parent: UUID
    trigger: str
    mode: str
    sha256: str
    window: Window
    started_at: dt.datetime

    @property
    def dataset(self) -> str:
        """Name of the dataset that the step brings up to date."""
        return self.node.model.dataset


def worker() -> str:
    """Host and process, for the ledger."""
    return f"{socket.gethostname()}:{os.getpid()}"


def describe(connection: Connection, graph: Graph) -> None:
    """Make the datasets known with their order; safe to repeat."""
    with connection.cursor() as cursor:
        cursor.executemany(
            _DATASETS,
            [
                (
                    n.model.dataset,
                    n.model.layer,
                    n.model.grain,
                    n.model.strategy,
                    i,
                    n.model.sla_seconds,
                )
                for i, n in enumerate(graph.nodes.values(), 1)
            ],
        )


def start_run(connection: Connection, trigger: str) -> UUID:
    """Open the ledger for a run that has something to do."""
    row = connection.execute(_START_RUN, (trigger, worker())).fetchone()
    assert row is not None
    run_id: UUID = row[0]
    return run_id


def beat(connection: Connection, run_id: UUID) -> None:
    """The run is alive."""
    connection.execute(_BEAT, (run_id,))


def finish_run(
    connection: Connection, run_id: UUID, status: str, totals: Mapping[str, Any]
) -> None:
    """Close the ledger; forgets deleted keys that everybody has consumed."""
    connection.execute(_FINISH_RUN, {"run_id": run_id, "status": status, **totals})
    connection.execute(_FORGET_DELETED)


def checked(connection: Connection, datasets: Iterable[str]) -> None:
    """These were found current: say so, and how old each table is now."""
    connection.execute(_CHECKED, (list(datasets),))
    connection.execute("select metadata.refresh_freshness()")


def record_success(
    connection: Connection, step: Step, change: Change, *, cluster: str, rows: int | None
) -> None:
    """Everything about a step that worked; in the step's transaction."""
    model = step.node.model
    connection.execute(
        _STEP,
        _step_row(step, "completed", None)
        | {
            "rows_read": change.rows_read,
            "rows_written": change.rows_written,
            "rows_deleted": change.rows_deleted,
            "touched_keys": change.touched_keys,
        },
    )
    connection.execute(_FORGET_INPUTS, (model.dataset, list(step.node.inputs)))
    with connection.cursor() as cursor:
        cursor.executemany(
            _WATERMARK,
            [
                {
                    "dataset": model.dataset,
                    "input": source,
                    "xid": step.window.to_xid,
                    "cluster": cluster,
                    "sha256": step.sha256,
                }
                for source in step.node.inputs
            ],
        )
        cursor.executemany(
            _METRIC,
            [
                (
                    step.run_id,
                    model.dataset,
                    model.layer,
                    m.dimension,
                    m.metric,
                    m.value,
                    m.unit,
                    m.threshold,
                    m.operator,
                    m.met,
                )
                for m in change.metrics
            ],
        )
        if step.window.full:
            cursor.execute(_FORGET_EDGES, (model.dataset,))
            cursor.executemany(
                _EDGE,
                [
                    (
                        e.source_dataset,
                        e.source_column,
                        e.target_dataset,
                        e.target_column,
                        e.transformation,
                    )
                    for e in step.node.edges
                ],
            )
    event = _event(connection, step, "COMPLETE", change)
    connection.execute(_EVENT, (step.run_id, "COMPLETE", model.dataset, Jsonb(event)))
    connection.execute(
        _DATASET_DONE,
        {
            "rows": rows,
            "change": change.rows_inserted - change.rows_deleted,
            "run_id": step.run_id,
            "status": "completed",
            "message": None,
            "dataset": model.dataset,
        },
    )
    connection.execute(_RESOLVE, (model.dataset,))


def record_failure(connection: Connection, step: Step, error: ScoutError) -> None:
    """Everything about a step that was rolled back; in a transaction of its own."""
    code, kind = type(error).__name__, "system"
    if isinstance(error, FanOutError):
        kind = "data"
    elif isinstance(error, TransientError):
        kind = "connection"
    nothing = dict.fromkeys(("rows_read", "rows_written", "rows_deleted", "touched_keys"), 0)
    with connection.transaction():
        connection.execute(_STEP, _step_row(step, "failed", error.message) | nothing)
        connection.execute(
            _ERROR, (step.run_id, kind, code, error.message, error.hint, step.dataset)
        )
        event = _event(connection, step, "FAIL", None, error)
        connection.execute(_EVENT, (step.run_id, "FAIL", step.dataset, Jsonb(event)))
        _mark(connection, step.dataset, step.run_id, "failed", error.message)


def record_blocked(connection: Connection, dataset: str, run_id: UUID, message: str) -> None:
    """A step that did not run because an input's step failed."""
    _mark(connection, dataset, run_id, "blocked", message)


def _mark(connection: Connection, dataset: str, run_id: UUID, status: str, message: str) -> None:
    connection.execute(
        _DATASET_DONE,
        {
            "rows": None,
            "change": 0,
            "run_id": run_id,
            "status": status,
            "message": message,
            "dataset": dataset,
        },
    )


def _step_row(step: Step, status: str, message: str | None) -> dict[str, Any]:
    return {
        "run_id": step.run_id,
        "parent": step.parent,
        "agent": AGENTS[step.node.model.layer],
        "dataset": step.dataset,
        "trigger": step.trigger,
        "status": status,
        "worker": worker(),
        "started_at": step.started_at,
        "mode": step.mode,
        "from_xid": min(step.window.from_xid.values(), default=0),
        "to_xid": step.window.to_xid,
        "sha256": step.sha256,
        "message": message,
    }


def _event(
    connection: Connection,
    step: Step,
    kind: str,
    change: Change | None,
    error: ScoutError | None = None,
) -> dict[str, Any]:
    """An OpenLineage 2-0-2 run event."""
    info = connection.info
    namespace = f"postgres://{info.host or 'localhost'}:{info.port}"
    node = step.node

    def facet(name: str, **content: Any) -> dict[str, Any]:
        return {"_producer": PRODUCER, "_schemaURL": f"{_SPEC}/facets/{name}.json", **content}

    def name(dataset: str) -> str:
        return f"{info.dbname}.{dataset}"

    fields: dict[str, dict[str, Any]] = {}
    for edge in node.edges:
        if edge.transformation == "table":
            continue
        fields.setdefault(edge.target_column, {"inputFields": []})["inputFields"].append(
            {
                "namespace": namespace,
                "name": name(edge.source_dataset),
                "field": edge.source_column,
                "transformations": [
                    {"type": "DIRECT", "subtype": edge.transformation.upper(), "masking": False}
                ],
            }
        )
    output: dict[str, Any] = {
        "namespace": namespace,
        "name": name(step.dataset),
        "facets": {
            "schema": facet(
                "1-1-1/SchemaDatasetFacet",
                fields=[{"name": c, "type": t} for c, t in node.types.items()],
            ),
            "columnLineage": facet("1-2-0/ColumnLineageDatasetFacet", fields=fields),
        },
    }
    if change is not None:
        output["outputFacets"] = {
            "outputStatistics": facet(
                "1-0-2/OutputStatisticsOutputDatasetFacet", rowCount=change.rows_written
            )
        }
        output["facets"]["dataQualityMetrics"] = facet(
            "1-0-2/DataQualityMetricsInputDatasetFacet",
            rowCount=change.rows_read,
            columnMetrics={},
            scout={m.metric: float(m.value) for m in change.metrics},
        )
    run_facets: dict[str, Any] = {
        "parent": facet(
            "1-1-0/ParentRunFacet",
            run={"runId": str(step.parent)},
            job={"namespace": "scout", "name": "medallion"},
        )
    }
    if error is not None:
        run_facets["errorMessage"] = facet(
            "1-0-1/ErrorMessageRunFacet", message=error.message, programmingLanguage="SQL"
        )
    return {
        "eventType": kind,
        "eventTime": dt.datetime.now(dt.UTC).isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": str(step.run_id), "facets": run_facets},
        "job": {
            "namespace": "scout",
            "name": f"medallion.{step.dataset}",
            "facets": {"sql": facet("1-1-0/SQLJobFacet", query=node.model.sql, dialect="postgres")},
        },
        "inputs": [{"namespace": namespace, "name": name(source)} for source in node.reads],
        "outputs": [output],
    }
