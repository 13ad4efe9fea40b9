"""``append``: judge each new row by the contract; the first document of a transaction wins.

A row that breaks a rule goes to quarantine with the names of all the rules it breaks, and every
document is counted under one outcome: landed, duplicate, quarantined or excluded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from psycopg import sql

from scout_central.database import Connection
from scout_central.medallion.contracts import Contract
from scout_central.medallion.lineage import Node
from scout_central.medallion.model import JUDGED
from scout_central.medallion.quality import judged_metrics
from scout_central.medallion.strategies.base import (
    Change,
    Window,
    bounds_of,
    columns_of,
    indexes_aside,
    is_empty,
    match,
    one,
    replace_rows,
    run,
    table,
    text,
)
from scout_shared.errors import PermanentError

ANALYZE_ROWS = 1_000
"""Below, the planner's old idea of a temporary table costs less than a new one."""

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


def append(
    connection: Connection, node: Node, contract: Contract, window: Window, run_id: UUID
) -> Change:
    """Judge the new rows, publish the lines of the documents that won, count every document."""
    model = node.model
    target = table(model.dataset)
    change = Change()
    lines = _judge(connection, node, contract, window)
    first_time = is_empty(connection, target)
    or_held, look_up = sql.Composed([]), sql.Composed([])
    if not window.full and not first_time:
        or_held = sql.Composed([sql.SQL("or held.is_held")])
        look_up = text(_HELD).format(
            target=target, match=match("kept", "documents", model.document)
        )
    run(
        connection,
        text(_DOCUMENTS).format(
            firsts=sql.SQL(", ").join(
                sql.SQL("min({0}) as {0}").format(sql.Identifier(c)) for c in model.document
            )
        ),
    )
    run(connection, sql.SQL("analyze documents"))
    change.rows_read = change.touched_keys = run(
        connection,
        text(_OUTCOMES).format(
            document=columns_of(model.document, "documents"), or_held=or_held, look_up=look_up
        ),
    ).rowcount
    run(connection, sql.SQL("analyze outcomes"))
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
        with indexes_aside(connection, model.dataset, lines if first_time else 0):
            _publish(connection, node, change, values)
    run(connection, text(_BAD), values)
    if window.full:
        run(connection, text(_FORGET_OUTCOMES), values)
        run(connection, text(_SETTLE), values)
        run(connection, text(_JUDGE_AGAIN), values)
    run(connection, text(_QUARANTINE), values)
    run(connection, text(_COUNT_OUTCOMES), values)
    change.metrics += judged_metrics(connection, contract)
    return change


def _judge(connection: Connection, node: Node, contract: Contract, window: Window) -> int:
    """``judged``: each line with the rules that it breaks; returns how many lines there are."""
    lines = run(
        connection,
        text(_JUDGE).format(
            columns=columns_of(node.columns, "marked"),
            payload=text(node.model.payload),
            failed=contract.mask("quarantine"),
            excluded=contract.mask("exclude"),
            blocked=contract.mask("block"),
            warned=contract.mask("warn"),
            model=text(node.model.sql),
        ),
        bounds_of(node, window),
    ).rowcount
    if lines >= ANALYZE_ROWS:
        run(connection, sql.SQL("analyze judged"))
    blocked, bits = one(
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
    change.rows_inserted = run(
        connection,
        sql.SQL("insert into {} ({}) {} order by {}").format(
            table(node.model.dataset),
            columns_of((*node.columns, *JUDGED)),
            text(_LANDED).format(columns=columns_of(node.columns, "judged")),
            columns_of(node.model.key),
        ),
        values,
    ).rowcount


def _publish_in_place(
    connection: Connection, node: Node, change: Change, values: dict[str, Any]
) -> None:
    """Make the table what the good lines say, rewriting only what differs."""
    landed = text(_LANDED).format(columns=columns_of(node.columns, "judged"))
    run(
        connection,
        sql.SQL("create temporary table fresh on commit drop as {}").format(landed),
        values,
    )
    run(connection, sql.SQL("analyze fresh"))
    wider = replace(node, columns=(*node.columns, *JUDGED))
    replace_rows(connection, wider, change, scope=None, record_deleted=True)
