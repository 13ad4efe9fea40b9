-- All steps below some runs, at any depth, in the order they started.
with recursive steps as (
    select run_id
    from metadata.agent_orchestration
    where parent_run_id = any(%(run_ids)s::uuid[])
    union
    select step.run_id
    from metadata.agent_orchestration as step
    inner join steps on step.parent_run_id = steps.run_id
)

select
    run.run_id::text as run_id,
    run.parent_run_id::text as parent_run_id,
    run.agent,
    run.task,
    run.trigger,
    run.status,
    run.attempt,
    run.worker,
    run.started_at,
    run.heartbeat_at,
    run.finished_at,
    run.duration_seconds,
    run.rows_read,
    run.rows_written,
    run.rows_deleted,
    run.touched_keys,
    run.mode,
    run.message
from steps
inner join metadata.runs as run on steps.run_id = run.run_id
order by
    run.started_at,
    run.run_id
