"""Every failure leaves the API in one shape: {error, message, hint}.

A lost database is 503 with Retry-After; a defect of ours is 500 and stands in the log, not in the
answer. Not its job: deciding what is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scout_central.database import translate
from scout_shared import logs
from scout_shared.answers import Failure
from scout_shared.errors import ConfigError, PermanentError, ScoutError, TransientError

log = logs.get("api")

RETRY_AFTER_SECONDS = 2
REQUEST_SECONDS = 20.0
"""No request takes longer, whatever hangs; the longest statement may take a quarter of it."""
UPLOAD_SECONDS = 600.0


class RefusalError(PermanentError):
    """A request that is refused, with the HTTP status that says so."""

    def __init__(self, status: int, error: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.error = error


def answer(
    status: int, error: str, message: str, hint: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A failure as a response."""
    body = Failure(error=error, message=message, hint=hint)
    return JSONResponse(dataclasses.asdict(body), status_code=status, headers=headers)


def database_away(message: str) -> JSONResponse:
    """503: the hub is there, its database is not."""
    return answer(
        503,
        "database_away",
        message,
        "the data is safe at the devices and in the database; this answers again when it is back",
        {"retry-after": str(RETRY_AFTER_SECONDS)},
    )


def install(app: FastAPI) -> None:
    """Give ``app`` the handlers of this module."""
    handlers: dict[Any, Callable[[Request, Any], JSONResponse]] = {
        psycopg.Error: _database_error,
        PoolTimeout: _pool_timeout,
        ScoutError: _scout_error,
        HTTPException: _http_exception,
        RequestValidationError: _validation_error,
        Exception: _defect,  # starlette logs it and lets it go on to uvicorn, after the answer
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _asynchronous(handler))


def _asynchronous(
    handler: Callable[[Request, Any], JSONResponse],
) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    """Handlers only format; run in the event loop, they need no free thread."""

    async def run(request: Request, error: Exception) -> JSONResponse:
        return handler(request, error)

    return run


def _scout_error(request: Request, error: ScoutError) -> JSONResponse:
    if isinstance(error, RefusalError):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        return answer(error.status, error.error, error.message, error.hint, headers)
    if isinstance(error, TransientError):
        return database_away(error.message)
    log.error("request.failed", path=request.url.path, error=error.message, hint=error.hint)
    word = "hub_misconfigured" if isinstance(error, ConfigError) else "hub_failed"
    return answer(500, word, "the hub could not do this", "its log says why")


def _database_error(request: Request, error: psycopg.Error) -> JSONResponse:
    state = error.sqlstate or ""
    if state == "57014":
        return answer(
            503,
            "query_too_slow",
            "the database did not finish this question in time",
            "ask for less: a filter, a smaller limit, another order",
            {"retry-after": "30"},
        )
    if state.startswith("22"):
        detail = str(error).strip().splitlines()[0]
        return answer(422, "bad_value", detail, "a value does not fit the type of its column")
    return _scout_error(request, translate(error))


def _pool_timeout(request: Request, error: PoolTimeout) -> JSONResponse:
    log.warning("pool.exhausted", path=request.url.path, error=str(error))
    return database_away("no connection to the database became free in time")


def _http_exception(_request: Request, error: HTTPException) -> JSONResponse:
    words = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    hints = {
        404: "the paths are in /v1/openapi.json",
        413: "split the file; a smaller part can be uploaded by itself",
    }
    return answer(
        error.status_code,
        words.get(error.status_code, "bad_request"),
        str(error.detail),
        hints.get(error.status_code, ""),
        dict(error.headers) if error.headers else None,
    )


def _validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "request"
    return answer(
        422, "bad_request", f"{where}: {first['msg']}", "the parameters are in /v1/openapi.json"
    )


def _defect(request: Request, error: Exception) -> JSONResponse:
    log.error("request.crashed", path=request.url.path, error=repr(error))
    return answer(500, "hub_failed", "the hub failed in a way that nobody foresaw", "see its log")


class Deadline:
    """Answers 503 when a request takes longer than anything of ours should.

    The last resort against what no time-out of PostgreSQL reaches, e.g. a server process that is
    frozen: the worker thread stays behind until the server moves again, the caller does not.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = closed = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if not closed:
                started = True
                await send(message)

        seconds = UPLOAD_SECONDS if scope["method"] == "POST" else self._seconds
        task = asyncio.ensure_future(self._app(scope, receive, guarded))
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            if not task.done():
                task.cancel()
        if task.done():
            task.result()
        elif not started:
            closed = True
            task.add_done_callback(_forget)
            log.warning("request.abandoned", path=scope["path"], waited_seconds=seconds)
            await database_away(f"no answer within {seconds:g} seconds")(scope, receive, send)


def _forget(task: asyncio.Future[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
