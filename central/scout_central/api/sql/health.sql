-- Newest segment and newest whole run: how the ingest and the runner are.
select
    (
        select max(newest.received_at)
        from (values (1::smallint), (2::smallint)) as kinds (kind)
        cross join lateral (
            select received_at
            from metadata.segments
            where segments.kind = kinds.kind
            order by received_at desc
            limit 1
        ) as newest
    ) as last_segment_at,
    last_run.status as run_status,
    last_run.started_at as run_started_at,
    last_run.heartbeat_at as run_heartbeat_at,
    last_run.finished_at as run_finished_at,
    last_run.message as run_message,
    now() as now
from (values (1)) as one (row)
left join lateral (
    select status, started_at, heartbeat_at, finished_at, message
    from metadata.agent_orchestration
    where parent_run_id is null
    order by started_at desc
    limit 1
) as last_run on true
