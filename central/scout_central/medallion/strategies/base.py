"""What every strategy needs: the window it reads, the change it made, and making a table equal.

``replace_rows`` rewrites only rows that differ, so what follows the table stays quiet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from scout_central.database import Connection
from scout_central.medallion.lineage import Node
from scout_central.medallion.quality import Metric
from scout_shared.errors import PermanentError

BULK_ROWS = 100_000
"""From here on the first load of a table sorts each secondary index once instead of inserting into
it row by row (1.47 M lines of silver: 46 s with its five indexes, 20 s so)."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of each input are new."""

    from_xid: dict[str, int]
    """Per input: rows below were consumed."""
    to_xid: int
    """Horizon: all transactions below have ended. ``append`` and ``merge`` read no further."""
    full: bool
    """Everything again, from the first row."""


@dataclass(slots=True)
class Change:
    """What a step did to its table."""

    rows_read: int = 0
    touched_keys: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    metrics: list[Metric] = field(default_factory=list)

    @property
    def rows_written(self) -> int:
        """Inserted and updated."""
        return self.rows_inserted + self.rows_updated


class FanOutError(PermanentError):
    """A join gave more, or fewer, rows than it may: nothing was published."""


def replace_rows(
    connection: Connection,
    node: Node,
    change: Change,
    *,
    scope: Sequence[str] | None,
    record_deleted: bool,
) -> None:
    """Make the target equal to ``fresh`` within ``touched`` (scope None: the whole table)."""
    model = node.model
    target, key, columns = table(model.dataset), columns_of(model.key), columns_of(node.columns)
    try:
        if is_empty(connection, target):
            (rows,) = one(connection, sql.SQL("select count(*) from fresh"))
            with indexes_aside(connection, model.dataset, rows):
                change.rows_inserted = run(
                    connection,
                    sql.SQL("insert into {} ({}) select {} from fresh order by {}").format(
                        target, columns, columns, key
                    ),
                ).rowcount
            return
        gone = _vanished(target, model.key, scope)
        if record_deleted:
            pairs = sql.SQL(", ").join(
                sql.SQL("{}, gone.{}").format(sql.Literal(name), sql.Identifier(name))
                for name in model.key
            )
            gone = sql.SQL(
                "with gone as ({} returning {}) insert into metadata.deleted_keys (dataset, key)"
                " select {}, jsonb_build_object({}) from gone"
            ).format(gone, columns_of(model.key, "old"), sql.Literal(model.dataset), pairs)
        change.rows_deleted = run(connection, gone).rowcount
        change.rows_inserted, change.rows_updated = _upsert(connection, node, target, columns)
    except (psycopg.errors.UniqueViolation, psycopg.errors.CardinalityViolation) as error:
        raise FanOutError(
            f"{model.dataset}: the select gives a key ({', '.join(model.key)}) more than once",
            "a join multiplies rows, or the grain in the header is wrong",
        ) from error


def _vanished(
    target: sql.Composable, key: Sequence[str], scope: Sequence[str] | None
) -> sql.Composed:
    """Delete the rows that ``fresh`` no longer has."""
    if scope is not None and set(scope) == set(key):
        # nearly always none, which is found without looking into the target
        return sql.SQL(
            "delete from {} as old using touched where not exists"
            " (select from fresh where {}) and {}"
        ).format(target, match("fresh", "touched", key), match("touched", "old", key))
    statement = sql.SQL("delete from {} as old").format(target)
    if scope is not None:
        statement += sql.SQL(" using touched")
    statement += sql.SQL(" where not exists (select from fresh where {})").format(
        match("fresh", "old", key)
    )
    if scope is not None:
        statement += sql.SQL(" and {}").format(match("touched", "old", scope))
    return statement


def _upsert(
    connection: Connection, node: Node, target: sql.Composable, columns: sql.Composable
) -> tuple[int, int]:
    """Write the rows of ``fresh`` that differ. The filter comes first: ``on conflict`` locks, and
    so dirties, each row that it meets, also those that it leaves alone."""
    model = node.model
    values = [c for c in node.columns if c not in model.key]
    same = sql.SQL(" and ").join(
        sql.SQL("old.{0} is not distinct from fresh.{0}").format(sql.Identifier(c)) for c in values
    )
    statement = sql.SQL(
        "with written as (insert into {target} ({columns}) select {columns} from fresh"
        " where not exists (select from {target} as old where {match} and {same})"
        " on conflict ({key}) do update set {sets}, loaded_at = now(),"
        " xid = metadata.current_xid() returning (xmax = 0) as is_new)"
        " select count(*) filter (where is_new), count(*) filter (where not is_new) from written"
    ).format(
        target=target,
        columns=columns,
        match=match("old", "fresh", model.key),
        same=same,
        key=columns_of(model.key),
        sets=sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in values
        ),
    )
    inserted, updated = one(connection, statement)
    return int(inserted), int(updated)


def bounds_of(node: Node, window: Window) -> dict[str, Any]:
    """``from_xid`` and ``to_xid`` of the only input: a statement that sees each row once."""
    (source,) = node.inputs
    return {
        "from_xid": 0 if window.full else window.from_xid[source],
        "to_xid": window.to_xid,
    }


@contextmanager
def indexes_aside(connection: Connection, dataset: str, rows: int) -> Iterator[None]:
    """Drop the secondary indexes while many rows go in, and build them again at the end.

    The transaction holds the table's exclusive lock meanwhile: only for tables that were empty.
    """
    if rows < BULK_ROWS:
        yield
        return
    aside = connection.execute(_SECONDARY_INDEXES, (dataset,)).fetchall()
    for schema, name, _ in aside:
        run(connection, sql.SQL("drop index {}").format(sql.Identifier(schema, name)))
    yield
    connection.execute("set local maintenance_work_mem = '256MB'")
    for _, _, definition in aside:
        run(connection, text(definition))


_SECONDARY_INDEXES = """
select namespace.nspname, class.relname, pg_get_indexdef(index.indexrelid)
from pg_index as index
inner join pg_class as class on index.indexrelid = class.oid
inner join pg_namespace as namespace on class.relnamespace = namespace.oid
where index.indrelid = %s::regclass and not index.indisunique
order by class.relname
"""


def is_empty(connection: Connection, target: sql.Composable) -> bool:
    """Whether ``target`` has no row."""
    return not one(connection, sql.SQL("select exists (select from {})").format(target))[0]


def text(text: str) -> sql.SQL:
    """SQL of this package's own files and constants, never of a user."""
    return sql.SQL(text)


def table(dataset: str) -> sql.Identifier:
    """``schema.table`` as an identifier."""
    return sql.Identifier(*dataset.split("."))


def columns_of(names: Sequence[str], table: str = "") -> sql.Composed:
    """``names`` as a list of identifiers, of ``table`` if given."""
    return sql.SQL(", ").join(
        sql.Identifier(table, name) if table else sql.Identifier(name) for name in names
    )


def match(left: str, right: str, names: Sequence[str]) -> sql.Composed:
    """``left`` and ``right`` are equal in each of ``names``."""
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, name), sql.Identifier(right, name))
        for name in names
    )


def run(
    connection: Connection, query: sql.SQL | sql.Composed, values: dict[str, Any] | None = None
) -> psycopg.Cursor[Any]:
    """Execute one statement of the step."""
    return connection.execute(query, values)


def one(connection: Connection, query: sql.SQL | sql.Composed) -> tuple[Any, ...]:
    """The only row that ``query`` gives."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)
