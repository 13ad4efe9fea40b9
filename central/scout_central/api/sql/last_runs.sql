-- The newest run of each dataset.
select
    last_run.run_id::text as run_id,
    last_run.parent_run_id::text as parent_run_id,
    last_run.agent,
    last_run.task,
    last_run.trigger,
    last_run.status,
    last_run.attempt,
    last_run.worker,
    last_run.started_at,
    last_run.heartbeat_at,
    last_run.finished_at,
    last_run.duration_seconds,
    last_run.rows_read,
    last_run.rows_written,
    last_run.rows_deleted,
    last_run.touched_keys,
    last_run.mode,
    last_run.message
from unnest(%(datasets)s::text[]) as wanted (dataset)
cross join lateral (
    select *
    from metadata.runs as run
    where run.task = wanted.dataset
    order by run.started_at desc
    limit 1
) as last_run
