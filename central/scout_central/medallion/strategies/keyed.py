"""``keyed``: compute the touched keys again and rewrite the rows that differ."""

from __future__ import annotations

from psycopg import sql

from scout_central.database import Connection
from scout_central.medallion.lineage import Node
from scout_central.medallion.quality import completeness
from scout_central.medallion.strategies.base import (
    Change,
    FanOutError,
    Window,
    columns_of,
    one,
    replace_rows,
    run,
    table,
    text,
)


def keyed(connection: Connection, node: Node, window: Window, *, record_deleted: bool) -> Change:
    """Collect the touched keys, compute them again, check the guards, rewrite what differs."""
    model = node.model
    change = Change()
    change.touched_keys = run(connection, _touched(node, window)).rowcount
    run(connection, sql.SQL("analyze touched"))
    change.rows_read = change.touched_keys
    run(
        connection,
        sql.SQL("create temporary table fresh on commit drop as {}").format(text(model.sql)),
    )
    run(connection, sql.SQL("analyze fresh"))
    for column, guard in model.guards.items():
        _hold(connection, node, column, guard)
    change.metrics += completeness(connection, "fresh", model.critical)
    scope = None if window.full else model.scope
    replace_rows(connection, node, change, scope=scope, record_deleted=record_deleted)
    return change


def _touched(node: Node, window: Window) -> sql.Composed:
    """``touched``: each key to compute again, once."""
    scope = columns_of(node.model.scope)
    parts = []
    for source, touched in node.model.touched.items():
        changed = sql.SQL("select * from {} where xid >= {}").format(
            table(source), sql.Literal(0 if window.full else window.from_xid[source])
        )
        if not window.full:
            changed += sql.SQL(
                " union all select gone.* from metadata.deleted_keys as deleted"
                " cross join lateral jsonb_populate_record(null::{}, deleted.key) as gone"
                " where deleted.dataset = {} and deleted.xid >= {}"
            ).format(table(source), sql.Literal(source), sql.Literal(window.from_xid[source]))
        parts.append(
            sql.SQL("select {} from (with changed as ({}) {}) as one").format(
                scope, changed, text(touched)
            )
        )
    return sql.SQL(
        "create temporary table touched on commit drop as"
        " select distinct {scope} from ({parts}) as every where num_nulls({scope}) = 0"
    ).format(scope=scope, parts=sql.SQL(" union all ").join(parts))


def _hold(connection: Connection, node: Node, column: str, guard: str) -> None:
    """The rows that went in and the rows that are accounted for in the result are the same."""
    actual, expected = one(
        connection,
        sql.SQL("select (select coalesce(sum({}), 0) from fresh), ({})").format(
            sql.Identifier(column), text(guard)
        ),
    )
    if actual != expected:
        raise FanOutError(
            f"{node.model.dataset}: {column} adds up to {actual}, its inputs to {expected}",
            "a join multiplies or loses rows: compare the join's keys with the joined table's key",
        )
