"""Datasets: what there is, how much, how old; and pages of their rows.

Names come from the catalogue, never from the request: a table or column that the catalogue does not
have is refused before any SQL is made. Values are bound and cast to the column's type.
"""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query, Request
from psycopg import errors, sql
from pydantic import StringConstraints
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

from scout_central.api import paging, statements
from scout_central.api.auth import Viewer
from scout_central.api.failures import RefusalError
from scout_central.api.reading import Door, Reader, Row
from scout_central.api.status import seconds, table_status
from scout_shared.answers import Column, Rows, Run, Sla, Table, Tables

router = APIRouter(tags=["datasets"])

READABLE = ("silver", "gold", "platinum")
COUNTED_ROWS = 20_000
"""Up to so many rows are counted at each request (about 2 ms); beyond, PostgreSQL estimates."""
COUNT_MILLISECONDS = 1500
EXACT_MILLISECONDS = 15_000
_HIDDEN = ("xid",)
_DIALECT = postgresql.dialect(paramstyle="pyformat")  # type: ignore[no-untyped-call]
_COMPARE = {
    "eq": lambda column, value: column == value,
    "ne": lambda column, value: column.is_distinct_from(value),
    "lt": lambda column, value: column < value,
    "le": lambda column, value: column <= value,
    "gt": lambda column, value: column > value,
    "ge": lambda column, value: column >= value,
}
_OPERATORS = (*_COMPARE, "in", "prefix", "null")


class _Named(UserDefinedType[Any]):
    """A type by the name that PostgreSQL's catalogue gives it."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        """What stands behind ``as`` in a cast."""
        return self.name


# --- the list


@router.get("/tables", response_model_exclude_none=False)
def get_tables(
    request: Request,
    viewer: Viewer,
    exact: Annotated[bool, Query(description="Count every row, which may take seconds.")] = False,
) -> Tables:
    """All datasets, bronze to platinum: rows, freshness, SLA, last run."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        return Tables(as_of=reader.as_of, tables=tables(reader, exact=exact))


def tables(reader: Reader, *, exact: bool = False) -> tuple[Table, ...]:
    """The datasets as this caller may see them."""
    catalogue = reader.rows(statements.CATALOGUE)
    slas: dict[str, list[Sla]] = {}
    for row in reader.rows(statements.SLAS, dataset=None):
        slas.setdefault(row["dataset"], []).append(Sla(**row))
    last = {
        row["task"]: Run(**row)
        for row in reader.rows(statements.LAST_RUNS, datasets=[c["dataset"] for c in catalogue])
    }
    landed = {r["dataset"]: r["newest_at"] for r in reader.rows(statements.LANDED_AT)}
    found = []
    for entry in catalogue:
        dataset = entry["dataset"]
        rows, rows_exact = _count(reader, entry, exact=exact)
        newest = landed.get(dataset) if "sequence" in entry["columns"] else None
        if newest is None and "loaded_at" in entry["columns"]:
            newest = _newest(reader, entry)
        found.append(
            Table(
                dataset=dataset,
                layer=entry["layer"],
                status=table_status(rows, slas.get(dataset, []), last.get(dataset)),
                rows=rows,
                rows_exact=rows_exact,
                bytes=entry["bytes"],
                newest_at=newest,
                age_seconds=seconds(reader.as_of, newest),
                slas=tuple(slas.get(dataset, ())),
                last_run=last.get(dataset),
            )
        )
    return tuple(found)


def _count(reader: Reader, entry: Row, *, exact: bool) -> tuple[int | None, bool]:
    """Rows that the caller may see, and whether they were counted."""
    sees_all = reader.caller.sees_all
    if not exact and sees_all and entry["counted_rows"] is not None:
        return entry["counted_rows"], True
    name = sql.Identifier(entry["layer"], entry["name"])
    where, values = _own_stores(reader, "store_id" in entry["columns"])
    if not exact:
        counted = reader.composed(
            sql.SQL("select count(*) as rows from (select from {}{} limit {}) as bounded").format(
                name, where, sql.Literal(COUNTED_ROWS + 1)
            ),
            values,
        )[0]["rows"]
        if counted <= COUNTED_ROWS:
            return counted, True
        if sees_all:
            return max(entry["estimated_rows"], counted), False
    try:
        with reader.attempt(EXACT_MILLISECONDS if exact else COUNT_MILLISECONDS):
            query = sql.SQL("select count(*) as rows from {}{}").format(name, where)
            return reader.composed(query, values)[0]["rows"], True
    except errors.QueryCanceled:
        return (entry["estimated_rows"] if sees_all else None), False


def _newest(reader: Reader, entry: Row) -> Any:
    where, values = _own_stores(reader, "store_id" in entry["columns"])
    query = sql.SQL("select loaded_at from {}{} order by xid desc limit 1").format(
        sql.Identifier(entry["layer"], entry["name"]), where
    )
    found = reader.composed(query, values)
    return found[0]["loaded_at"] if found else None


def _own_stores(reader: Reader, has_store: bool) -> tuple[sql.Composable, dict[str, Any]]:
    """A condition that changes nothing (the policy holds anyway) but lets an index be used."""
    if not has_store or reader.caller.sees_all:
        return sql.SQL(""), {}
    return sql.SQL(" where store_id = any(%(stores)s)"), {"stores": list(reader.caller.stores)}


# --- pages of rows


@router.get("/tables/{dataset}/rows")
def get_rows(
    request: Request,
    *,
    viewer: Viewer,
    dataset: Annotated[str, Path(description="`schema.table` of silver, gold or platinum.")],
    filters: Annotated[
        list[Annotated[str, StringConstraints(max_length=4000)]] | None,
        Query(
            alias="filter",
            max_length=20,
            description="`column:operator:value`, all must hold. Operators: eq, ne, lt, le, gt, "
            "ge, in (values with commas), prefix, null (true or false).",
        ),
    ] = None,
    sort: Annotated[
        str | None, Query(description="A column, `-` before it for descending. Else the key.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Rows in a page.")] = 100,
    cursor: paging.Cursor = None,
) -> Rows:
    """A page of a table's rows, in a stable order; decimals are strings."""
    door: Door = request.app.state.door
    with door.reader(viewer) as reader:
        columns = describe(reader, dataset)
        order = _order(columns, sort)
        query = _select(
            reader,
            dataset=dataset,
            columns=columns,
            order=order,
            filters=filters or (),
            limit=limit,
            cursor=cursor,
        )
        compiled = query.compile(dialect=_DIALECT)
        rows = reader.rows(str(compiled).encode(), **compiled.params)
        marks = [f"cursor_{i}" for i in range(len(order))]
        rows, next_cursor = paging.page(rows, limit, *marks)
        shown = [c for c in columns if c["name"] not in _HIDDEN]
        names = [c["name"] for c in shown]
        return Rows(
            as_of=reader.as_of,
            dataset=dataset,
            columns=tuple(
                Column(name=c["name"], type=c["type"], description=c["description"]) for c in shown
            ),
            rows=tuple({name: row[name] for name in names} for row in rows),
            next_cursor=next_cursor,
        )


def describe(reader: Reader, dataset: str) -> list[Row]:
    """Columns of a readable dataset, in order. Raises RefusalError (404)."""
    schema, _, table = dataset.partition(".")
    columns = (
        reader.rows(statements.COLUMNS, schema=schema, table=table) if schema in READABLE else []
    )
    if not columns:
        raise RefusalError(
            404,
            "not_found",
            f"there is no dataset {dataset!r} in silver, gold or platinum",
            "GET /v1/tables lists them",
        )
    return columns


def _order(columns: list[Row], sort: str | None) -> list[tuple[Row, bool]]:
    """Columns of the order with "descending", ending in the key so that it is total."""
    by_name = {c["name"]: c for c in columns}
    key = sorted((c for c in columns if c["key_position"] is not None), key=_key_position)
    if sort is None:
        return [(c, False) for c in key]
    name = sort.removeprefix("-")
    if name not in by_name or not _comparable(by_name[name]):
        raise _unknown_column(name, [c for c in columns if _comparable(c)])
    rest = [(c, False) for c in key if c["name"] != name]
    return [(by_name[name], sort.startswith("-")), *rest]


def _key_position(column: Row) -> int:
    position: int = column["key_position"]
    return position


def _comparable(column: Row) -> bool:
    """Not arrays and not documents: their order means nothing to a reader."""
    return column["category"] != "A" and column["type"] not in ("jsonb", "json", "bytea")


def _select(
    reader: Reader,
    *,
    dataset: str,
    columns: list[Row],
    order: list[tuple[Row, bool]],
    filters: Any,
    limit: int,
    cursor: str | None,
) -> sa.Select[Any]:
    schema, _, name = dataset.partition(".")
    table = sa.table(
        name, *(sa.column(c["name"], _Named(c["type"])) for c in columns), schema=schema
    )
    marks = [
        sa.cast(table.c[c["name"]], sa.Text).label(f"cursor_{i}") for i, (c, _) in enumerate(order)
    ]
    query = sa.select(*table.c, *marks).limit(limit + 1)
    for column, descending in order:
        field = table.c[column["name"]]
        query = query.order_by((field.desc() if descending else field.asc()).nulls_last())
    by_name = {c["name"]: c for c in columns}
    for text in filters:
        query = query.where(_condition(table, by_name, text))
    if "store_id" in by_name and not reader.caller.sees_all:
        stores = sa.bindparam(None, list(reader.caller.stores), postgresql.ARRAY(sa.Text))
        query = query.where(table.c.store_id == sa.any_(stores))
    after = paging.decode(cursor, len(order))
    if after is not None:
        query = query.where(_after(table, order, after))
    return query


def _value(column: Row, text: str) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(None, text, sa.Text), _Named(column["type"]))


def _condition(table: Any, columns: dict[str, Row], text: str) -> sa.ColumnElement[bool]:
    name, _, rest = text.partition(":")
    operator, separator, value = rest.partition(":")
    if name not in columns or not _comparable(columns[name]):
        raise _unknown_column(name, [c for c in columns.values() if _comparable(c)])
    if operator not in _OPERATORS or not separator or "\x00" in value:
        raise RefusalError(
            422,
            "bad_filter",
            f"filter {text!r} is not column:operator:value",
            f"operators: {', '.join(_OPERATORS)}",
        )
    field, column = table.c[name], columns[name]
    condition: sa.ColumnElement[bool]
    if operator == "null":
        if value not in ("true", "false"):
            raise RefusalError(422, "bad_filter", f"filter {text!r}: say null:true or null:false")
        condition = field.is_(None) if value == "true" else field.is_not(None)
    elif operator == "prefix":
        condition = sa.cast(field, sa.Text).startswith(value, autoescape=True)
    elif operator == "in":
        condition = sa.or_(*(field == _value(column, one) for one in value.split(",")))
    else:
        condition = _COMPARE[operator](field, _value(column, value))
    return condition


def _after(
    table: Any, order: list[tuple[Row, bool]], after: list[str | None]
) -> sa.ColumnElement[bool]:
    """Rows behind the cursor, nulls last: (a, b, c) > (x, y, z), column by column."""
    branches: list[sa.ColumnElement[bool]] = []
    equal: list[sa.ColumnElement[bool]] = []
    for (column, descending), text in zip(order, after, strict=True):
        field = table.c[column["name"]]
        if text is None:  # nothing comes behind null in this column
            equal.append(field.is_(None))
            continue
        value = _value(column, text)
        beyond = field < value if descending else field > value
        branches.append(sa.and_(*equal, sa.or_(beyond, field.is_(None))))
        equal.append(field == value)
    return sa.or_(sa.false(), *branches)


def _unknown_column(name: str, columns: list[Row]) -> RefusalError:
    return RefusalError(
        422,
        "unknown_column",
        f"there is no column {name!r} to filter or sort by",
        f"columns: {', '.join(c['name'] for c in columns)}",
    )
