-- A page of errors, newest first; state open includes acknowledged.
select
    error_id,
    run_id::text as run_id,
    component,
    error_type,
    severity,
    code,
    message,
    hint,
    dataset,
    store_id,
    device_id,
    affected_records,
    state,
    first_at,
    last_at,
    occurrences,
    resolved_by,
    resolved_at,
    resolution
from metadata.error_log
where (
    %(state)s::text is null
    or state = %(state)s
    or (%(state)s = 'open' and state = 'acknowledged')
)
    and (
        %(before_at)s::timestamptz is null
        or (last_at, error_id) < (%(before_at)s::timestamptz, %(before_id)s::bigint)
    )
order by
    last_at desc,
    error_id desc
limit %(limit)s
