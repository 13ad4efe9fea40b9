"""Cursors: where the next page begins, as an opaque word.

A cursor is the key of the last row, never an offset: rows that arrive meanwhile shift nothing.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Query

from scout_central.api.failures import RefusalError
from scout_central.api.reading import Row

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=500, description="Rows in a page.")]
Cursor = Annotated[str | None, Query(max_length=4000, description="`next_cursor` of a page.")]


def encode(values: Sequence[object]) -> str:
    """The cursor after a row with these key values."""
    text = json.dumps([None if v is None else str(v) for v in values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str | None, length: int) -> list[str | None] | None:
    """The key values in a cursor of ours. Raises RefusalError (422)."""
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
        if (
            not isinstance(values, list)
            or len(values) != length
            or not all(v is None or (isinstance(v, str) and "\x00" not in v) for v in values)
        ):
            raise ValueError("another shape")
    except (ValueError, binascii.Error, RecursionError) as error:
        raise RefusalError(
            422,
            "bad_cursor",
            "the cursor is not one of this list",
            "take next_cursor of the page before, with the same question",
        ) from error
    return values


def parts(cursor: str | None, *readers: Callable[[str], object]) -> list[object | None]:
    """The key values of a cursor, each read by its reader; all None without a cursor.

    Raises RefusalError (422).
    """
    values = decode(cursor, len(readers))
    if values is None:
        return [None] * len(readers)
    try:
        return [None if v is None else read(v) for v, read in zip(values, readers, strict=True)]
    except ValueError as error:
        raise RefusalError(422, "bad_cursor", "the cursor cannot be read") from error


def moment(text: str) -> dt.datetime:
    """A reader of times."""
    return dt.datetime.fromisoformat(text)


def uuid(text: str) -> UUID:
    """A reader of run ids."""
    return UUID(text)


def page(rows: list[Row], limit: int, *key: str) -> tuple[list[Row], str | None]:
    """Rows of this page and the cursor of the next; ``rows`` has one more when there is one."""
    if len(rows) <= limit:
        return rows, None
    kept = rows[:limit]
    return kept, encode([kept[-1][name] for name in key])
