-- What one device gave up, newest first.
select
    stream_id,
    first_sequence,
    records,
    case kind when 1 then 'readings' when 2 then 'documents' else 'unknown' end as kind,
    reason,
    declared_at,
    closed_at
from metadata.gaps
where device_id = %(device_id)s
order by
    declared_at desc,
    stream_id desc,
    first_sequence desc
limit 50
