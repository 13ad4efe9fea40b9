-- Newest receipt of each kind of segment.
select
    kinds.dataset,
    newest.received_at as newest_at
from (
    values ('bronze.device_readings', 1::smallint), ('bronze.transaction_logs', 2::smallint)
) as kinds (dataset, kind)
cross join lateral (
    select received_at
    from metadata.segments
    where segments.kind = kinds.kind
    order by received_at desc
    limit 1
) as newest
