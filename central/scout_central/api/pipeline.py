"""What the pipeline did, what it put aside, what failed, and where things come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from scout_central.api import paging, statements
from scout_central.api.auth import Viewer
from scout_central.api.failures import RefusalError
from scout_central.api.reading import Door, Row
from scout_shared.answers import (
    ErrorItem,
    Errors,
    Lineage,
    LineageEdge,
    Quality,
    QualityMetric,
    Quarantine,
    QuarantineGroup,
    QuarantineItem,
    Run,
    Runs,
    Sla,
)

router = APIRouter(tags=["pipeline"])


@router.get("/runs")
def get_runs(
    request: Request,
    *,
    viewer: Viewer,
    task: Annotated[str | None, Query(description="Of this name, or with a step of it.")] = None,
    status: Annotated[
        Literal["running", "completed", "failed", "cancelled", "lost"] | None,
        Query(description="Only runs in this state."),
    ] = None,
    limit: paging.Limit = 50,
    cursor: paging.Cursor = None,
) -> Runs:
    """Whole runs, newest first, each with its steps. A token of some stores sees none."""
    door: Door = request.app.state.door
    before = paging.parts(cursor, paging.moment, paging.uuid)
    with door.reader(viewer) as reader:
        found = reader.rows(
            statements.RUNS,
            task=task,
            status=status,
            before_at=before[0],
            before_id=before[1],
            limit=limit + 1,
        )
        roots, next_cursor = paging.page(found, limit, "started_at", "run_id")
        steps = reader.rows(statements.STEPS, run_ids=[r["run_id"] for r in roots])
        children: dict[str, list[Row]] = {}
        for step in steps:
            children.setdefault(step["parent_run_id"], []).append(step)
        return Runs(
            as_of=reader.as_of,
            runs=tuple(_tree(root, children) for root in roots),
            next_cursor=next_cursor,
        )


def _tree(row: Row, children: dict[str, list[Row]]) -> Run:
    steps = tuple(_tree(step, children) for step in children.get(row["run_id"], ()))
    return Run(**row, steps=steps)


@router.get("/quality")
def get_quality(
    request: Request,
    viewer: Viewer,
    dataset: Annotated[str | None, Query(description="Only this dataset.")] = None,
) -> Quality:
    """The newest value of each quality metric, and all service levels."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        metrics = reader.rows(statements.QUALITY, dataset=dataset)
        slas = reader.rows(statements.SLAS, dataset=dataset)
        return Quality(
            as_of=reader.as_of,
            metrics=tuple(QualityMetric(**row) for row in metrics),
            slas=tuple(Sla(**row) for row in slas),
        )


@router.get("/quarantine")
def get_quarantine(
    request: Request,
    *,
    viewer: Viewer,
    dataset: Annotated[str | None, Query(description="Only items of this dataset.")] = None,
    reason: Annotated[str | None, Query(description="Only items with this reason.")] = None,
    state: Annotated[
        Literal["open", "replayed", "discarded", "all"], Query(description="State of the items.")
    ] = "open",
    limit: paging.Limit = 50,
    cursor: paging.Cursor = None,
) -> Quarantine:
    """What was put aside: groups over all that is open, and a page of items, newest first."""
    door: Door = request.app.state.door
    (before_id,) = paging.parts(cursor, int)
    with door.reader(viewer) as reader:
        groups = reader.rows(statements.QUARANTINE_GROUPS)
        found = reader.rows(
            statements.QUARANTINE_ITEMS,
            dataset=dataset,
            reason=reason,
            state=None if state == "all" else state,
            before_id=before_id,
            limit=limit + 1,
        )
        items, next_cursor = paging.page(found, limit, "quarantine_id")
        return Quarantine(
            as_of=reader.as_of,
            groups=tuple(QuarantineGroup(**row) for row in groups),
            items=tuple(QuarantineItem(**row) for row in items),
            next_cursor=next_cursor,
        )


@router.get("/errors")
def get_errors(
    request: Request,
    *,
    viewer: Viewer,
    state: Annotated[
        Literal["open", "acknowledged", "resolved", "ignored"] | None,
        Query(description="open includes acknowledged; without it, all."),
    ] = None,
    limit: paging.Limit = 50,
    cursor: paging.Cursor = None,
) -> Errors:
    """Failures with their state, newest first; a repeated one is one row with a count."""
    door: Door = request.app.state.door
    before = paging.parts(cursor, paging.moment, int)
    with door.reader(viewer) as reader:
        found = reader.rows(
            statements.ERRORS,
            state=state,
            before_at=before[0],
            before_id=before[1],
            limit=limit + 1,
        )
        rows, next_cursor = paging.page(found, limit, "last_at", "error_id")
        return Errors(
            as_of=reader.as_of,
            errors=tuple(ErrorItem(**row) for row in rows),
            next_cursor=next_cursor,
        )


@router.get("/lineage/{dataset}")
def get_lineage(request: Request, viewer: Viewer, dataset: str) -> Lineage:
    """Where a dataset's columns come from and where they go, all the way."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        if not reader.one(statements.DATASET_EXISTS, dataset=dataset)["found"]:
            raise RefusalError(
                404,
                "not_found",
                f"there is no dataset {dataset!r}",
                "GET /v1/tables lists them; a name is schema.table",
            )
        return Lineage(
            as_of=reader.as_of,
            dataset=dataset,
            upstream=_edges(reader.rows(statements.UPSTREAM, dataset=dataset)),
            downstream=_edges(reader.rows(statements.DOWNSTREAM, dataset=dataset)),
        )


def _edges(rows: list[dict[str, Any]]) -> tuple[LineageEdge, ...]:
    return tuple(LineageEdge(**row) for row in rows)
