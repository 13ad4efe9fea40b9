-- Whole runs, newest first, a page after (before_at, before_id).
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
from metadata.runs as run
where
    run.parent_run_id is null
    and (
        %(before_at)s::timestamptz is null
        or (run.started_at, run.run_id) < (%(before_at)s::timestamptz, %(before_id)s::uuid)
    )
    and (%(status)s::text is null or run.status = %(status)s)
    and (
        %(task)s::text is null
        or run.task = %(task)s
        or exists (
            select from metadata.agent_orchestration as step
            where step.parent_run_id = run.run_id and step.task = %(task)s
        )
    )
order by
    run.started_at desc,
    run.run_id desc
limit %(limit)s
