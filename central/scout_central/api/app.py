"""The hub's HTTP API: everything under /v1, described at /v1/openapi.json.

``create_app(settings)`` is what ``scout-hub`` serves. Not its job: listening (``hub``).
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    Counter,
    Histogram,
    generate_latest,
)

from scout_central.api import (
    datasets,
    devices,
    failures,
    files,
    fleet,
    ingest,
    origins,
    overview,
    pipeline,
)
from scout_central.api.auth import FleetViewer, TokenBook
from scout_central.api.reading import Door
from scout_central.config import Broker, Mqtt, Settings, Token
from scout_central.fleet.door import FleetDoor
from scout_central.ingest.counter import Counter as IngestCounter
from scout_central.storage import FileStore
from scout_central.uploads import Limits, UploadDoor
from scout_shared import __version__, logs
from scout_shared.answers import Failure

log = logs.get("api")

_DESCRIPTION = """
The only door to Scout's data for people and programs. Every answer carries `as_of`, the hub's time
of reading. Times are ISO 8601 in UTC; decimals are strings; `null` means "not known".
Tokens have a role (viewer < operator < admin; uploader beside them) and a list of stores; rows of
other stores do not exist for them.
"""
_FAILURES: dict[int | str, dict[str, object]] = {
    401: {"model": Failure, "description": "No token, or one that is not known."},
    403: {"model": Failure, "description": "The token's role or stores do not suffice."},
    422: {"model": Failure, "description": "The request is wrong as it is."},
    503: {"model": Failure, "description": "The database is away; see Retry-After."},
}

REQUESTS = Counter("scout_api_requests", "Requests by route and status", ["route", "status"])
SECONDS = Histogram(
    "scout_api_request_seconds",
    "Time to answer, by route",
    ["route"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 20),
)


def create_app(settings: Settings) -> FastAPI:
    """The API with the hub's settings. Raises ConfigError when they name no database."""
    dsn = settings.database_dsn()
    return build_app(
        dsn,
        settings.api.tokens,
        settings.storage.directory,
        fleet_door=FleetDoor(dsn, settings.broker, settings.mqtt),
        enrolment=settings.ingest.enrolment,
    )


def build_app(
    dsn: str,
    tokens: Sequence[Token],
    storage: Path,
    limits: Limits | None = None,
    fleet_door: FleetDoor | None = None,
    *,
    enrolment: str = "open",
) -> FastAPI:
    """The API on the database at ``dsn``, for the bearers of ``tokens``; files go to ``storage``.

    The database need not be there yet: requests get 503 until it is.
    """
    limits = limits or Limits()
    door = Door(dsn)
    counter = IngestCounter(dsn, enrolment=enrolment)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.started_at = dt.datetime.now(dt.UTC)
        door.open()
        yield
        door.close()
        counter.close()

    app = FastAPI(
        title="Scout hub",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url="/v1/openapi.json",
        # Their pages load scripts from the internet; the hub must work without it.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.door = door
    app.state.tokens = TokenBook.of(tokens)
    app.state.uploads = UploadDoor(dsn, FileStore(storage), limits)
    app.state.fleet = fleet_door or FleetDoor(dsn, Broker(), Mqtt(password=""))
    app.state.tries = devices.Tries()
    app.state.counter = counter
    app.state.password_tries = devices.Tries()
    app.state.version = __version__
    app.state.started_at = dt.datetime.now(dt.UTC)
    failures.install(app)
    app.middleware("http")(_observe)
    app.add_middleware(failures.Deadline, seconds=failures.REQUEST_SECONDS)
    # origins before pipeline: /lineage/row is not the lineage of a dataset named "row"
    for module in (overview, fleet, devices, datasets, origins, pipeline, files, ingest):
        app.include_router(module.router, prefix="/v1", responses=_FAILURES)
    app.add_api_route(
        "/metrics", get_metrics, include_in_schema=False, response_class=Response, methods=["GET"]
    )
    return app


def get_metrics(_viewer: FleetViewer) -> Response:
    """Prometheus metrics of this process; they may name devices: for tokens of all stores."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def _observe(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    # The route's template, not the path: a path holds ids, and there is no end of them.
    route = getattr(request.scope.get("route"), "path", "none")
    seconds = time.perf_counter() - started
    REQUESTS.labels(route, str(response.status_code)).inc()
    SECONDS.labels(route).observe(seconds)
    log.debug(
        "request.answered",
        route=route,
        status=response.status_code,
        duration_seconds=round(seconds, 4),
    )
    return response
