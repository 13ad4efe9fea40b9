"""``merge``: add the aggregates of the new rows to those that stand, and count what landed."""

from __future__ import annotations

from psycopg import sql

from scout_central.database import Connection
from scout_central.medallion.lineage import Node
from scout_central.medallion.strategies.base import (
    Change,
    Window,
    bounds_of,
    columns_of,
    one,
    replace_rows,
    run,
    table,
    text,
)

_MERGED = {
    "sum": "old.{0} + excluded.{0}",
    "least": "least(old.{0}, excluded.{0})",
    "greatest": "greatest(old.{0}, excluded.{0})",
}
_COUNT_LANDED = """
insert into metadata.outcome_counts as counts (
    stream_id, kind, business_date, outcome, records, lines
)
select stream_id, %(kind)s, business_date, 'landed', records, records
from ({}) as landed
on conflict (stream_id, kind, business_date, outcome, rule)
do update set
    records = counts.records + excluded.records,
    lines = counts.lines + excluded.lines
"""
_FORGET_LANDED = """
delete from metadata.outcome_counts where kind = %(kind)s and outcome = 'landed'
"""


def merge(connection: Connection, node: Node, window: Window) -> Change:
    """Aggregate the new rows, add them in, and count the records as landed."""
    model = node.model
    change = Change()
    bounds = bounds_of(node, window)
    change.touched_keys = run(
        connection,
        sql.SQL("create temporary table fresh on commit drop as {}").format(text(model.sql)),
        bounds,
    ).rowcount
    bounds["kind"] = model.outcome_kind
    if window.full:
        run(connection, text(_FORGET_LANDED), bounds)
        replace_rows(connection, node, change, scope=None, record_deleted=False)
    else:
        columns = columns_of(node.columns)
        sets = sql.SQL(", ").join(
            sql.SQL("{0} = ").format(sql.Identifier(column))
            + text(_MERGED[how]).format(sql.Identifier(column))
            for column, how in model.merge.items()
        )
        inserted, updated = one(
            connection,
            sql.SQL(
                "with written as (insert into {target} as old ({columns})"
                " select {columns} from fresh on conflict ({key}) do update set {sets},"
                " loaded_at = now(), xid = metadata.current_xid() returning (xmax = 0) as is_new)"
                " select count(*) filter (where is_new), count(*) filter (where not is_new)"
                " from written"
            ).format(
                target=table(model.dataset),
                columns=columns,
                key=columns_of(model.key),
                sets=sets,
            ),
        )
        change.rows_inserted, change.rows_updated = int(inserted), int(updated)
    run(connection, text(_COUNT_LANDED).format(text(model.landed)), bounds)
    (change.rows_read,) = one(
        connection, sql.SQL("select coalesce(sum(readings), 0)::bigint from fresh")
    )
    return change
