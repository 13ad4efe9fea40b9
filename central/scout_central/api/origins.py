"""Walks one row of silver back to the records that it came from (DESIGN §2, promise 6).

A line of sale → its document → the segment → the device, its boot and the time of receipt; an hour
of telemetry → its readings → their segments; a product or customer → the lines of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from psycopg import sql

from scout_central.api import statements
from scout_central.api.auth import Viewer
from scout_central.api.datasets import describe
from scout_central.api.failures import RefusalError
from scout_central.api.reading import Door, Reader, Row
from scout_shared.answers import Origin, RowLineage

router = APIRouter(tags=["pipeline"])

ORIGINS = 100
"""So many origins at most; an hour of telemetry has more."""
# Which rows a dataset's row came from, and the columns of the row that say so.
_WALKS: Mapping[str, tuple[tuple[str, ...], bytes]] = {
    "silver.transactions_cleaned": (("stream_id", "sequence"), statements.ORIGIN_DOCUMENT),
    "silver.device_readings_hourly": (
        ("stream_id", "metric_id", "hour"),
        statements.ORIGIN_READINGS,
    ),
    "silver.product_hierarchy": (("product_id",), statements.ORIGIN_PRODUCT),
    "silver.customer_profiles": (("customer_id",), statements.ORIGIN_CUSTOMER),
}


@router.get("/lineage/row")
def get_row_lineage(
    request: Request,
    viewer: Viewer,
    dataset: Annotated[str, Query(description="A dataset of silver.")],
    key: Annotated[
        list[str], Query(max_length=8, description="`column:value` for each column of its key.")
    ],
) -> RowLineage:
    """One row of silver with the records, segments, devices and files behind it."""
    if dataset not in _WALKS:
        raise RefusalError(
            422,
            "no_walk",
            f"a walk does not start at {dataset!r}",
            f"start at one of: {', '.join(_WALKS)}; a row of gold is the silver rows of its key",
        )
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        row = _find(reader, dataset, _pairs(key))
        columns, statement = _WALKS[dataset]
        found = reader.rows(statement, **{name: row[name] for name in columns}, limit=ORIGINS + 1)
        return RowLineage(
            as_of=reader.as_of,
            dataset=dataset,
            key=dict(_pairs(key)),
            row={name: value for name, value in row.items() if name != "xid"},
            origins=tuple(Origin(**origin) for origin in found[:ORIGINS]),
            truncated=len(found) > ORIGINS,
        )


def _pairs(key: list[str]) -> dict[str, str]:
    pairs = {}
    for text in key:
        name, separator, value = text.partition(":")
        if not separator or "\x00" in value:
            raise RefusalError(
                422, "bad_key", f"key {text!r} is not column:value", "e.g. store_id:367"
            )
        pairs[name] = value
    return pairs


def _find(reader: Reader, dataset: str, key: Mapping[str, str]) -> Row:
    columns = describe(reader, dataset)
    wanted = {c["name"]: c["type"] for c in columns if c["key_position"] is not None}
    if set(key) != set(wanted):
        raise RefusalError(
            422,
            "bad_key",
            f"the key of {dataset} is {', '.join(wanted)}, not {', '.join(key) or 'nothing'}",
            "give each column once, as column:value",
        )
    conditions = sql.SQL(" and ").join(
        sql.SQL("{} = {}::text::{}").format(
            sql.Identifier(name), sql.Placeholder(name), sql.SQL(kind)
        )
        for name, kind in wanted.items()
    )
    schema, _, table = dataset.partition(".")
    query = sql.SQL("select * from {} where {}").format(sql.Identifier(schema, table), conditions)
    found = reader.composed(query, dict[str, Any](key))
    if not found:
        raise RefusalError(
            404,
            "not_found",
            f"{dataset} has no row {dict(key)}, or this token may not see it",
            "copy the key from the row itself",
        )
    return found[0]
