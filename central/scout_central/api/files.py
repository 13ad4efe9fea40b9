"""The upload door: files in, what became of them out.

The token is checked before the body is read; the body goes to disk, never to memory.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from scout_central.api import paging, statements
from scout_central.api.auth import Uploader, UploadViewer
from scout_central.api.failures import RefusalError
from scout_central.api.reading import Door
from scout_central.uploads import DATASETS, Receipt, UploadDoor, UploadError
from scout_shared.answers import Reject, Upload, UploadResult, Uploads

router = APIRouter(tags=["files"])

_FRAME_BYTES = 64 * 1024
"""What multipart may add to a file."""
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "CSV, TSV, JSON Lines or Parquet, by the ending of its "
                            "name; .gz may follow.",
                        }
                    },
                }
            }
        },
    }
}


@router.post(
    "/uploads/{dataset}",
    status_code=201,
    openapi_extra=_BODY,
    responses={200: {"model": UploadResult, "description": "The same bytes were loaded before."}},
)
async def post_upload(
    request: Request,
    *,
    response: Response,
    uploader: Uploader,
    dataset: Annotated[str, Path(description=f"One of: {', '.join(DATASETS)}.")],
    record_type: Annotated[
        str | None, Query(description="campaign_data only; inferred from the columns.")
    ] = None,
    encoding: Annotated[
        Literal["utf-8", "utf-16", "cp1252"] | None,
        Query(description="Of text; found by a fixed rule unless given."),
    ] = None,
) -> UploadResult:
    """Keep a file, and land its lines in bronze as strings; wrong lines go to quarantine."""
    if not uploader.sees_all:
        raise RefusalError(
            403,
            "forbidden",
            "a file concerns all stores; this token may see some of them only",
            'ask an administrator for a token with stores = ["*"]',
        )
    door: UploadDoor = request.app.state.uploads
    bounded = Request(request.scope, _bounded(request, door.limits.upload_bytes))
    async with bounded.form(max_files=1, max_fields=4) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RefusalError(
                422,
                "bad_request",
                "the request has no part named 'file'",
                "send the file as multipart/form-data in the part 'file'",
            )
        try:
            receipt = await run_in_threadpool(
                door.receive,
                dataset,
                file.filename or "",
                file.file,
                uploaded_by=uploader.name,
                record_type=record_type,
                encoding=encoding,
            )
        except UploadError as error:
            raise RefusalError(error.status, error.reason, error.message, error.hint) from error
    response.status_code = 200 if receipt.duplicate else 201
    return _result(receipt)


def _bounded(request: Request, at_most_bytes: int) -> Receive:
    """The request's body, refused by its announced size, or where it goes on beyond the limit."""
    announced = request.headers.get("content-length", "")
    left = at_most_bytes + _FRAME_BYTES
    if announced.isdecimal() and int(announced) > left:
        raise _too_large(at_most_bytes)

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(at_most_bytes)
        return message

    return receive


def _too_large(at_most_bytes: int) -> RefusalError:
    return RefusalError(
        413,
        "too_large",
        f"the file has more than {at_most_bytes:,} bytes",
        "split it; each part must start with the line of column names",
    )


def _result(receipt: Receipt) -> UploadResult:
    return UploadResult(
        as_of=dt.datetime.now(dt.UTC),
        file=Upload(**receipt.file),
        duplicate=receipt.duplicate,
        record_type=receipt.record_type,
        encoding=receipt.encoding,
        columns=receipt.columns,
        rejects=tuple(
            Reject(line_number=line, reason=reason, message=message)
            for line, reason, message in receipt.rejects
        ),
    )


@router.get("/uploads")
def get_uploads(
    request: Request,
    viewer: UploadViewer,
    dataset: Annotated[str | None, Query(description="Only files of this dataset.")] = None,
    limit: paging.Limit = 50,
    cursor: paging.Cursor = None,
) -> Uploads:
    """Files given to the hub, newest first. A token of some stores sees none."""
    door: Door = request.app.state.door
    (before_id,) = paging.parts(cursor, int)
    name = f"bronze.{dataset}" if dataset in DATASETS else dataset
    with door.reader(viewer) as reader:
        found = reader.rows(statements.UPLOADS, dataset=name, before_id=before_id, limit=limit + 1)
        rows, next_cursor = paging.page(found, limit, "file_id")
        return Uploads(
            as_of=reader.as_of,
            files=tuple(Upload(**row) for row in rows),
            next_cursor=next_cursor,
        )
