"""Segments and hellos by HTTP, for devices whose network blocks MQTT; the answer is the receipt.

The user is the device id, the password is the one of its enrolment: a device can speak for nobody
else, and for the store of its binding only. Both are checked before the body is read. No answer
says 200 before the commit returned.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.requests import ClientDisconnect

from scout_central.api import failures
from scout_central.api.devices import Tries
from scout_central.api.failures import RefusalError
from scout_central.ingest.counter import BusyError, Counter
from scout_shared import parcel
from scout_shared.errors import WireError

router = APIRouter(tags=["devices"])

_basic = HTTPBasic(auto_error=False, description="Device id and its password of the enrolment.")
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {parcel.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/ingest",
    response_class=Response,
    openapi_extra=_BODY,
    responses={200: {"content": {"application/x-ndjson": {}}, "description": "The receipts."}},
)
async def post_ingest(
    request: Request,
    credentials: Annotated[HTTPBasicCredentials | None, Depends(_basic)],
) -> Response:
    """Commit a hello, segments, or both (``scout_shared.parcel``). Safe to repeat as it is."""
    counter: Counter = request.app.state.counter
    if credentials is None:
        return _unknown("the request carries no device id and password")
    size = _announced(request)
    device = await run_in_threadpool(counter.admit, credentials.username, credentials.password)
    if device is None:
        tries: Tries = request.app.state.password_tries
        address = request.client.host if request.client else "unknown"
        try:
            # After the look, not before: who has the right password is never slowed down.
            tries.check(address)
        except RefusalError as error:
            wait = {"retry-after": "60"}
            return failures.answer(error.status, error.error, error.message, error.hint, wait)
        tries.wrong(address)
        return _unknown(f"not authorised: {credentials.username!r} with this password")
    try:
        parts = parcel.decode(await _read(request, size))
        receipts = await run_in_threadpool(counter.deliver, device, parts)
    except WireError as error:
        raise RefusalError(422, error.reason, error.message, "see scout_shared.parcel") from error
    except BusyError as error:
        return failures.answer(503, "busy", error.message, error.hint, {"retry-after": "2"})
    return Response(parcel.encode_answer(receipts), media_type="application/x-ndjson")


def _unknown(message: str) -> Response:
    return failures.answer(
        401,
        "unknown_device",
        message,
        "enrol the device; its user name is its device id, its password the one of the enrolment",
        {"www-authenticate": 'Basic realm="scout devices"'},
    )


def _announced(request: Request) -> int:
    """The size of the body. Raises RefusalError: 411, 413, 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != parcel.MEDIA_TYPE:
        raise RefusalError(
            415, "bad_media_type", f"the body is {kind!r}", f"send {parcel.MEDIA_TYPE}"
        )
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        raise RefusalError(
            411, "length_required", "the request does not say how long it is", "send Content-Length"
        )
    if int(announced) > parcel.MAX_BYTES:
        raise RefusalError(
            413,
            "too_large",
            f"{announced} bytes; a request has at most {parcel.MAX_BYTES:,}",
            "send fewer segments at once",
        )
    return int(announced)


async def _read(request: Request, size: int) -> bytes:
    """The body: the server cuts it at its announced size. Raises WireError: it ends before."""
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise WireError("bad_parcel", f"the body ended before its {size} bytes") from error
    return body
