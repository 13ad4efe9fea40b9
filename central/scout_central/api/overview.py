"""How the hub is, and the first screen in one request."""

from __future__ import annotations

import datetime as dt

import psycopg
from fastapi import APIRouter, Request, Response
from psycopg_pool import PoolTimeout

from scout_central.api import statements, status
from scout_central.api.auth import HUB, Anybody, Viewer
from scout_central.api.datasets import tables
from scout_central.api.fleet import reconciled
from scout_central.api.reading import Door
from scout_shared.answers import Health, Me, Overview, ReconciliationRow
from scout_shared.errors import ScoutError

router = APIRouter(tags=["hub"])

HEALTH_SECONDS = 1.0
"""A health check that waits longer for a connection says "down"."""


@router.get("/health", responses={503: {"model": Health, "description": "The database is away."}})
def get_health(request: Request, response: Response) -> Health:
    """How the hub is; needs no token. 503 when the database is away, with the same body."""
    state = request.app.state
    door: Door = state.door
    try:
        with door.reader(HUB, wait_seconds=HEALTH_SECONDS) as reader:
            found = status.components(reader.one(statements.HEALTH))
    except (psycopg.Error, PoolTimeout, ScoutError):
        # The reason is in the log of the pool; an open page must not show an address or a name.
        found = status.database_down("the database does not answer")
        response.status_code = 503
        response.headers["retry-after"] = "2"
    return Health(
        as_of=dt.datetime.now(dt.UTC),
        status=status.overall(found),
        version=state.version,
        started_at=state.started_at,
        components=tuple(found),
    )


@router.get("/me")
def get_me(anybody: Anybody) -> Me:
    """Whom the token stands for."""
    return Me(
        as_of=dt.datetime.now(dt.UTC),
        name=anybody.name,
        role=anybody.role,
        stores=anybody.stores,
    )


@router.get("/overview")
def get_overview(request: Request, viewer: Viewer) -> Overview:
    """Everything the first screen needs, as of one moment."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        fleet = status.fleet_counts(reader.rows(statements.FLEET, device_id=None))
        layers = status.layer_tiles(reader.as_of, tables(reader))
        reconciliation = [ReconciliationRow(**row) for row in reconciled(reader)]
        quarantine = reader.one(statements.QUARANTINE_TOTAL)
        errors = reader.one(statements.ERRORS_TOTAL)
        forecast = status.forecast(reader.one(statements.FORECAST))
        parts = status.components(reader.one(statements.HEALTH))
        reasons = status.reasons(parts, reconciliation, fleet, layers, errors)
        return Overview(
            as_of=reader.as_of,
            status="degraded" if reasons else "ok",
            reasons=tuple(reasons),
            version=request.app.state.version,
            fleet=fleet,
            layers=tuple(layers),
            adds_up=all(row.adds_up for row in reconciliation),
            reconciliation=tuple(reconciliation),
            quarantine_open=quarantine["rows"],
            quarantine_records=quarantine["records"],
            errors_open=errors["open"],
            errors_worst=errors["worst"],
            errors_since=errors["since"],
            forecast=forecast,
            components=tuple(parts),
        )
