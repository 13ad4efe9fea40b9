"""How one step changes its table: append, keyed, merge. All in the caller's transaction.

``append`` judges each new row by the contract and lets the first document of a transaction win.
``keyed`` computes the touched keys again. ``merge`` adds aggregates of the new rows. Each one run
twice is run once, and a full rebuild ends with the same rows, so a row that would not change is
not written: what follows the table stays quiet.
Not its job: watermarks, locks, the ledger of runs (``runner``, ``journal``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from scout_central.database import Connection
from scout_central.medallion.contracts import Contract
from scout_central.medallion.lineage import Node
from scout_central.medallion.model import JUDGED
from scout_central.medallion.quality import Metric, completeness, judged_metrics
from scout_shared.errors import PermanentError

ANALYZE_ROWS = 1_000
"""Below, the planner's old idea of a temporary table costs less than a new one."""
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


def apply(
    connection: Connection,
    node: Node,
    contract: Contract | None,
    window: Window,
    run_id: UUID,
    *,
    record_deleted: bool,
) -> Change:
    """Bring the table of ``node`` up to ``window``; the caller commits.

    Raises:
        FanOutError: a guard does not hold, or the select gives a key twice.
        psycopg.Error: as it comes; the caller translates it.
    """
    for name, value in node.model.planner.items():
        connection.execute("select set_config(%s, %s, true)", (name, value))
    if node.model.strategy == "keyed":
        return _keyed(connection, node, window, record_deleted=record_deleted)
    if node.model.strategy == "merge":
        return _merge(connection, node, window)
    assert contract is not None
    return _append(connection, node, contract, window, run_id)


# ── keyed ──────────────────────────────────────────────────────────────────────────────────────


def _keyed(connection: Connection, node: Node, window: Window, *, record_deleted: bool) -> Change:
    model = node.model
    change = Change()
    change.touched_keys = _run(connection, _touched(node, window)).rowcount
    _run(connection, sql.SQL("analyze touched"))
    change.rows_read = change.touched_keys
    _run(
        connection,
        sql.SQL("create temporary table fresh on commit drop as {}").format(_text(model.sql)),
    )
    _run(connection, sql.SQL("analyze fresh"))
    for column, guard in model.guards.items():
        _hold(connection, node, column, guard)
    change.metrics += completeness(connection, "fresh", model.critical)
    scope = None if window.full else model.scope
    _replace(connection, node, change, scope=scope, record_deleted=record_deleted)
    return change


def _touched(node: Node, window: Window) -> sql.Composed:
    """``touched``: each key to compute again, once."""
    scope = _columns(node.model.scope)
    parts = []
    for source, touched in node.model.touched.items():
        changed = sql.SQL("select * from {} where xid >= {}").format(
            _table(source), sql.Literal(0 if window.full else window.from_xid[source])
        )
        if not window.full:
            changed += sql.SQL(
                " union all select gone.* from metadata.deleted_keys as deleted"
                " cross join lateral jsonb_populate_record(null::{}, deleted.key) as gone"
                " where deleted.dataset = {} and deleted.xid >= {}"
            ).format(_table(source), sql.Literal(source), sql.Literal(window.from_xid[source]))
        parts.append(
            sql.SQL("select {} from (with changed as ({}) {}) as one").format(
                scope, changed, _text(touched)
            )
        )
    return sql.SQL(
        "create temporary table touched on commit drop as"
        " select distinct {scope} from ({parts}) as every where num_nulls({scope}) = 0"
    ).format(scope=scope, parts=sql.SQL(" union all ").join(parts))


def _hold(connection: Connection, node: Node, column: str, guard: str) -> None:
    """The rows that went in and the rows that are accounted for in the result are the same."""
    actual, expected = _one(
        connection,
        sql.SQL("select (select coalesce(sum({}), 0) from fresh), ({})").format(
            sql.Identifier(column), _text(guard)
        ),
    )
    if actual != expected:
        raise FanOutError(
            f"{node.model.dataset}: {column} adds up to {actual}, its inputs to {expected}",
            "a join multiplies or loses rows: compare the join's keys with the joined table's key",
        )


def _replace(
    connection: Connection,
    node: Node,
    change: Change,
    *,
    scope: Sequence[str] | None,
    record_deleted: bool,
) -> None:
    """Make the target equal to ``fresh`` within ``touched`` (scope None: the whole table)."""
    model = node.model
    target, key, columns = _table(model.dataset), _columns(model.key), _columns(node.columns)
    try:
        if _is_empty(connection, target):
            (rows,) = _one(connection, sql.SQL("select count(*) from fresh"))
            with _indexes_aside(connection, model.dataset, rows):
                change.rows_inserted = _run(
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
            ).format(gone, _columns(model.key, "old"), sql.Literal(model.dataset), pairs)
        change.rows_deleted = _run(connection, gone).rowcount
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
        ).format(target, _match("fresh", "touched", key), _match("touched", "old", key))
    statement = sql.SQL("delete from {} as old").format(target)
    if scope is not None:
        statement += sql.SQL(" using touched")
    statement += sql.SQL(" where not exists (select from fresh where {})").format(
        _match("fresh", "old", key)
    )
    if scope is not None:
        statement += sql.SQL(" and {}").format(_match("touched", "old", scope))
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
        match=_match("old", "fresh", model.key),
        same=same,
        key=_columns(model.key),
        sets=sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in values
        ),
    )
    inserted, updated = _one(connection, statement)
    return int(inserted), int(updated)


# ── merge ──────────────────────────────────────────────────────────────────────────────────────

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


def _merge(connection: Connection, node: Node, window: Window) -> Change:
    model = node.model
    change = Change()
    bounds = _bounds(node, window)
    change.touched_keys = _run(
        connection,
        sql.SQL("create temporary table fresh on commit drop as {}").format(_text(model.sql)),
        bounds,
    ).rowcount
    bounds["kind"] = model.outcome_kind
    if window.full:
        _run(connection, _text(_FORGET_LANDED), bounds)
        _replace(connection, node, change, scope=None, record_deleted=False)
    else:
        columns = _columns(node.columns)
        sets = sql.SQL(", ").join(
            sql.SQL("{0} = ").format(sql.Identifier(column))
            + _text(_MERGED[how]).format(sql.Identifier(column))
            for column, how in model.merge.items()
        )
        inserted, updated = _one(
            connection,
            sql.SQL(
                "with written as (insert into {target} as old ({columns})"
                " select {columns} from fresh on conflict ({key}) do update set {sets},"
                " loaded_at = now(), xid = metadata.current_xid() returning (xmax = 0) as is_new)"
                " select count(*) filter (where is_new), count(*) filter (where not is_new)"
                " from written"
            ).format(
                target=_table(model.dataset),
                columns=columns,
                key=_columns(model.key),
                sets=sets,
            ),
        )
        change.rows_inserted, change.rows_updated = int(inserted), int(updated)
    _run(connection, _text(_COUNT_LANDED).format(_text(model.landed)), bounds)
    (change.rows_read,) = _one(
        connection, sql.SQL("select coalesce(sum(readings), 0)::bigint from fresh")
    )
    return change


# ── append ─────────────────────────────────────────────────────────────────────────────────────

# The fences (offset 0) keep each expression of the model from being computed once per rule.
_JUDGE = """
create temporary table judged on commit drop as
select
    {columns},
    marked.xid as input_xid,
    marked.failed,
    marked.excluded,
    marked.blocked,
    marked.warned,
    case when marked.failed <> 0 then {payload} end as payload
from (
    select candidate.*, {failed} as failed, {excluded} as excluded,
        {blocked} as blocked, {warned} as warned
    from (select model.* from ({model}) as model offset 0) as candidate
    offset 0
) as marked
"""
_DOCUMENTS = """
create temporary table documents on commit drop as
select
    stream_id,
    sequence,
    min(input_xid) as input_xid,
    min(business_date) as business_date,
    {firsts},
    count(*) as lines,
    count(*) filter (where failed = 0) as good_lines,
    bit_or(excluded) as excluded,
    bit_or(failed) as failed
from judged
group by
    stream_id,
    sequence
"""
_OUTCOMES = """
create temporary table outcomes on commit drop as
select
    stream_id,
    sequence,
    business_date,
    lines,
    good_lines,
    case
        when excluded <> 0 then 'excluded'
        when good_lines = 0 then 'quarantined'
        when
            row_number() over (
                partition by {document}, excluded = 0 and good_lines > 0
                order by input_xid, stream_id, sequence
            ) > 1 {or_held} then 'duplicate'
        else 'landed'
    end as outcome,
    case
        when excluded <> 0 then excluded & -excluded
        when good_lines = 0 then failed & -failed
        else 0
    end as first_bit
from documents
{look_up}
"""
# One index look-up per document: as `exists` inside the case, the planner read the whole table.
_HELD = """
left join lateral (
    select true as is_held from {target} as kept where {match} limit 1
) as held on true
"""
_LANDED = """
select
    {columns},
    case
        when judged.warned = 0 then '{{}}'::text[]
        else array(
            select rule.name
            from unnest(%(names)s::text[]) with ordinality as rule (name, position)
            where judged.warned & (1::bigint << (rule.position::int - 1)) <> 0
            order by rule.position
        )
    end as warnings,
    %(version)s as contract_version
from judged
inner join outcomes using (stream_id, sequence)
where outcomes.outcome = 'landed' and judged.failed = 0
"""
_BAD = """
create temporary table bad on commit drop as
select
    judged.stream_id,
    judged.sequence,
    judged.line_number,
    judged.store_id,
    judged.business_date,
    judged.payload,
    array(
        select rule.name
        from unnest(%(names)s::text[]) with ordinality as rule (name, position)
        where judged.failed & (1::bigint << (rule.position::int - 1)) <> 0
        order by rule.position
    ) as rules,
    (
        outcomes.outcome = 'quarantined'
        and row_number() over (
            partition by judged.stream_id, judged.sequence order by judged.line_number
        ) = 1
    )::int as records
from judged
inner join outcomes using (stream_id, sequence)
where judged.failed <> 0 and outcomes.outcome in ('quarantined', 'landed')
"""
_SETTLE = """
update metadata.quarantine as kept
set state = 'replayed'
where kept.stage = 'silver' and kept.dataset = %(dataset)s and kept.state = 'open'
    and not exists (
        select from bad
        where bad.stream_id = kept.stream_id and bad.sequence = kept.sequence
            and bad.line_number = kept.line_number
    )
"""
_JUDGE_AGAIN = """
update metadata.quarantine as kept
set
    reason = bad.rules[1],
    rules = bad.rules,
    contract_version = %(version)s,
    run_id = %(run_id)s,
    attempts = kept.attempts + 1
from bad
where kept.stage = 'silver' and kept.dataset = %(dataset)s and kept.state = 'open'
    and bad.stream_id = kept.stream_id and bad.sequence = kept.sequence
    and bad.line_number = kept.line_number
"""
_QUARANTINE = """
insert into metadata.quarantine (
    stage, dataset, reason, rules, contract_id, contract_version, run_id, store_id, device_id,
    stream_id, sequence, records, line_number, business_date, payload
)
select
    'silver', %(dataset)s, bad.rules[1], bad.rules, %(contract)s, %(version)s, %(run_id)s,
    bad.store_id, stream.device_id, bad.stream_id, bad.sequence, bad.records, bad.line_number,
    bad.business_date, bad.payload
from bad
left join metadata.streams as stream on bad.stream_id = stream.stream_id
where not exists (
    select from metadata.quarantine as kept
    where kept.stage = 'silver' and kept.dataset = %(dataset)s
        and kept.state in ('open', 'discarded')
        and kept.stream_id = bad.stream_id and kept.sequence = bad.sequence
        and kept.line_number = bad.line_number
)
"""
_FORGET_OUTCOMES = """
delete from metadata.outcome_counts
where kind = %(kind)s and (
    outcome in ('landed', 'duplicate')
    or rule in (
        select rule ->> 'name'
        from metadata.data_contracts
        cross join lateral jsonb_path_query(odcs, '$.schema[*].quality[*]') as rule
        where contract_id = %(contract)s
    )
)
"""
# Records are documents, each counted once; the bad lines of a document that landed are lines only.
_COUNT_OUTCOMES = """
insert into metadata.outcome_counts as counts (
    stream_id, kind, business_date, outcome, rule, records, lines
)
select stream_id, %(kind)s, business_date, outcome, rule, sum(records), sum(lines)
from (
    select
        outcomes.stream_id,
        outcomes.business_date,
        outcomes.outcome,
        coalesce(rule.name, '') as rule,
        count(*) as records,
        sum(case outcomes.outcome when 'landed' then good_lines else lines end) as lines
    from outcomes
    left join unnest(%(names)s::text[]) with ordinality as rule (name, position)
        on outcomes.first_bit = 1::bigint << (rule.position::int - 1)
    group by 1, 2, 3, 4
    union all
    select bad.stream_id, bad.business_date, 'quarantined', bad.rules[1], 0, count(*)
    from bad
    inner join outcomes using (stream_id, sequence)
    where outcomes.outcome = 'landed'
    group by 1, 2, 4
) as found
group by 1, 3, 4, 5
on conflict (stream_id, kind, business_date, outcome, rule)
do update set
    records = counts.records + excluded.records,
    lines = counts.lines + excluded.lines
"""


def _append(
    connection: Connection, node: Node, contract: Contract, window: Window, run_id: UUID
) -> Change:
    model = node.model
    target = _table(model.dataset)
    change = Change()
    lines = _judge(connection, node, contract, window)
    first_time = _is_empty(connection, target)
    or_held, look_up = sql.Composed([]), sql.Composed([])
    if not window.full and not first_time:
        or_held = sql.Composed([sql.SQL("or held.is_held")])
        look_up = _text(_HELD).format(
            target=target, match=_match("kept", "documents", model.document)
        )
    _run(
        connection,
        _text(_DOCUMENTS).format(
            firsts=sql.SQL(", ").join(
                sql.SQL("min({0}) as {0}").format(sql.Identifier(c)) for c in model.document
            )
        ),
    )
    _run(connection, sql.SQL("analyze documents"))
    change.rows_read = change.touched_keys = _run(
        connection,
        _text(_OUTCOMES).format(
            document=_columns(model.document, "documents"), or_held=or_held, look_up=look_up
        ),
    ).rowcount
    _run(connection, sql.SQL("analyze outcomes"))
    values = {
        "names": contract.names,
        "version": contract.version,
        "contract": contract.contract_id,
        "dataset": model.dataset,
        "run_id": run_id,
        "kind": model.outcome_kind,
    }
    if window.full and not first_time:
        _publish_in_place(connection, node, change, values)
    else:
        with _indexes_aside(connection, model.dataset, lines if first_time else 0):
            _publish(connection, node, change, values)
    _run(connection, _text(_BAD), values)
    if window.full:
        _run(connection, _text(_FORGET_OUTCOMES), values)
        _run(connection, _text(_SETTLE), values)
        _run(connection, _text(_JUDGE_AGAIN), values)
    _run(connection, _text(_QUARANTINE), values)
    _run(connection, _text(_COUNT_OUTCOMES), values)
    change.metrics += judged_metrics(connection, contract)
    return change


def _judge(connection: Connection, node: Node, contract: Contract, window: Window) -> int:
    """``judged``: each line with the rules that it breaks; returns how many lines there are."""
    lines = _run(
        connection,
        _text(_JUDGE).format(
            columns=_columns(node.columns, "marked"),
            payload=_text(node.model.payload),
            failed=contract.mask("quarantine"),
            excluded=contract.mask("exclude"),
            blocked=contract.mask("block"),
            warned=contract.mask("warn"),
            model=_text(node.model.sql),
        ),
        _bounds(node, window),
    ).rowcount
    if lines >= ANALYZE_ROWS:
        _run(connection, sql.SQL("analyze judged"))
    blocked, bits = _one(
        connection,
        sql.SQL("select count(*), coalesce(bit_or(blocked), 0) from judged where blocked <> 0"),
    )
    if blocked:
        names = [name for bit, name in enumerate(contract.names) if bits & (1 << bit)]
        raise PermanentError(
            f"{node.model.dataset}: {blocked} rows break {', '.join(names)}, which block the step",
            "mend the source, or publish a version of the contract that quarantines them",
        )
    return lines


def _publish(connection: Connection, node: Node, change: Change, values: dict[str, Any]) -> None:
    """Add the good lines of the documents that won."""
    change.rows_inserted = _run(
        connection,
        sql.SQL("insert into {} ({}) {} order by {}").format(
            _table(node.model.dataset),
            _columns((*node.columns, *JUDGED)),
            _text(_LANDED).format(columns=_columns(node.columns, "judged")),
            _columns(node.model.key),
        ),
        values,
    ).rowcount


def _publish_in_place(
    connection: Connection, node: Node, change: Change, values: dict[str, Any]
) -> None:
    """Make the table what the good lines say, rewriting only what differs."""
    landed = _text(_LANDED).format(columns=_columns(node.columns, "judged"))
    _run(
        connection,
        sql.SQL("create temporary table fresh on commit drop as {}").format(landed),
        values,
    )
    _run(connection, sql.SQL("analyze fresh"))
    wider = replace(node, columns=(*node.columns, *JUDGED))
    _replace(connection, wider, change, scope=None, record_deleted=True)


# ── small parts ────────────────────────────────────────────────────────────────────────────────


def _bounds(node: Node, window: Window) -> dict[str, Any]:
    (source,) = node.inputs
    return {
        "from_xid": 0 if window.full else window.from_xid[source],
        "to_xid": window.to_xid,
    }


@contextmanager
def _indexes_aside(connection: Connection, dataset: str, rows: int) -> Iterator[None]:
    """Drop the secondary indexes while many rows go in, and build them again at the end.

    The transaction holds the table's exclusive lock meanwhile: only for tables that were empty.
    """
    if rows < BULK_ROWS:
        yield
        return
    aside = connection.execute(_SECONDARY_INDEXES, (dataset,)).fetchall()
    for schema, name, _ in aside:
        _run(connection, sql.SQL("drop index {}").format(sql.Identifier(schema, name)))
    yield
    connection.execute("set local maintenance_work_mem = '256MB'")
    for _, _, definition in aside:
        _run(connection, _text(definition))


_SECONDARY_INDEXES = """
select namespace.nspname, class.relname, pg_get_indexdef(index.indexrelid)
from pg_index as index
inner join pg_class as class on index.indexrelid = class.oid
inner join pg_namespace as namespace on class.relnamespace = namespace.oid
where index.indrelid = %s::regclass and not index.indisunique
order by class.relname
"""


def _is_empty(connection: Connection, target: sql.Composable) -> bool:
    return not _one(connection, sql.SQL("select exists (select from {})").format(target))[0]


def _text(text: str) -> sql.SQL:
    # text of this package's own files, never of a user
    return sql.SQL(text)


def _table(dataset: str) -> sql.Identifier:
    return sql.Identifier(*dataset.split("."))


def _columns(names: Sequence[str], table: str = "") -> sql.Composed:
    return sql.SQL(", ").join(
        sql.Identifier(table, name) if table else sql.Identifier(name) for name in names
    )


def _match(left: str, right: str, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, name), sql.Identifier(right, name))
        for name in names
    )


def _run(
    connection: Connection, query: sql.SQL | sql.Composed, values: dict[str, Any] | None = None
) -> psycopg.Cursor[Any]:
    return connection.execute(query, values)


def _one(connection: Connection, query: sql.SQL | sql.Composed) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)
