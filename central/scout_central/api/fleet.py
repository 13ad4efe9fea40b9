"""The devices, and whether their records add up."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from scout_central.api import paging, statements, status
from scout_central.api.auth import Viewer
from scout_central.api.failures import RefusalError
from scout_central.api.reading import Door, Reader, Row
from scout_shared.answers import (
    Device,
    DeviceDetail,
    Fleet,
    Gap,
    LatestReading,
    Reconciliation,
    ReconciliationRow,
    Stream,
)

router = APIRouter(tags=["fleet"])

State = Literal["online", "late", "dark", "unknown"]


@router.get("/fleet")
def get_fleet(
    request: Request,
    viewer: Viewer,
    state: Annotated[
        State | None, Query(alias="status", description="Only devices in this state.")
    ] = None,
) -> Fleet:
    """All devices, worst first: dark, late, unknown, online. Counts are of all states."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        rows = reader.rows(statements.FLEET, device_id=None)
        return Fleet(
            as_of=reader.as_of,
            counts=status.fleet_counts(rows),
            devices=tuple(_device(r) for r in rows if state in (None, r["status"])),
        )


@router.get("/fleet/{device_id}")
def get_device(request: Request, viewer: Viewer, device_id: str) -> DeviceDetail:
    """One device: streams, latest telemetry, what it counted, whether its records add up."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        row = reader.row(statements.FLEET, device_id=device_id)
        if row is None:
            raise RefusalError(
                404,
                "not_found",
                f"there is no device {device_id!r}, or this token may not see it",
                "GET /v1/fleet lists the devices of your stores",
            )
        counters = row["counters"] if isinstance(row["counters"], dict) else {}
        return DeviceDetail(
            as_of=reader.as_of,
            device=_device(row),
            streams=tuple(
                Stream(**r) for r in reader.rows(statements.STREAMS, device_id=device_id)
            ),
            gaps=tuple(Gap(**r) for r in reader.rows(statements.GAPS, device_id=device_id)),
            readings=tuple(
                LatestReading(**r)
                for r in reader.rows(statements.LATEST_READINGS, device_id=device_id)
            ),
            counters={k: v for k, v in counters.items() if type(v) is int},
            reconciliation=_totals(reader, device_id),
        )


@router.get("/reconciliation")
def get_reconciliation(
    request: Request,
    *,
    viewer: Viewer,
    by: Annotated[
        Literal["total", "device", "day"], Query(description="How finely the rows are cut.")
    ] = "total",
    device_id: Annotated[str | None, Query(description="Only this device.")] = None,
    limit: Annotated[int, Query(ge=1, le=5000, description="Rows in a page.")] = 1000,
    cursor: paging.Cursor = None,
) -> Reconciliation:
    """Where the records went: produced, received, landed, duplicate, quarantined, …, given up."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        totals = _totals(reader, device_id)
        rows, next_cursor = _cut(reader, by, device_id, limit, cursor)
        return Reconciliation(
            as_of=reader.as_of,
            by=by,
            adds_up=all(row.adds_up for row in totals),
            totals=totals,
            rows=tuple(ReconciliationRow(**row) for row in rows),
            next_cursor=next_cursor,
        )


def _totals(reader: Reader, device_id: str | None) -> tuple[ReconciliationRow, ...]:
    return tuple(ReconciliationRow(**row) for row in reconciled(reader, device_id=device_id))


def reconciled(reader: Reader, **parameters: Any) -> list[Row]:
    """The sums per kind, or what the parameters of reconciliation.sql ask for."""
    defaults = {
        "by": "total",
        "device_id": None,
        "after_device": None,
        "after_kind": None,
        "after_day": None,
        "limit": None,
    }
    return reader.rows(statements.RECONCILIATION, **{**defaults, **parameters})


def _cut(
    reader: Reader, by: str, device_id: str | None, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    if by == "total":
        return [], None
    key = ("device_id", "kind", "business_date")
    device, kind, day = paging.parts(cursor, str, str, dt.date.fromisoformat)
    rows = reconciled(
        reader,
        by=by,
        device_id=device_id,
        after_device=device,
        after_kind=kind,
        # no date in a cursor: the row of records without a day, which comes last
        after_day="infinity" if day is None else day,
        limit=limit + 1,
    )
    return paging.page(rows, limit, *key)


def _device(row: Row) -> Device:
    return Device(**{k: v for k, v in row.items() if k != "counters"})
