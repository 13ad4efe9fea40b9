-- Newest value of each metric of one device. Its last segments say where in bronze (BRIN on xid)
-- the newest readings stand.
with stream as (
    select stream_id
    from metadata.streams
    where device_id = %(device_id)s
    order by
        last_seen_at desc,
        stream_id desc
    limit 1
),

newest as (
    select
        stream_id,
        min(xid) as first_xid,
        min(received_at) as first_received_at
    from (
        select
            segments.stream_id,
            segments.xid,
            segments.received_at
        from metadata.segments
        inner join stream on segments.stream_id = stream.stream_id
        where segments.kind = 1
            and segments.received_at > now() - interval '2 days'
        order by segments.first_sequence desc
        limit 20
    ) as last_segments
    group by stream_id
)

select distinct on (metrics.name)
    metrics.name as metric,
    readings.value,
    readings.observed_at,
    readings.happened_at,
    readings.time_provenance,
    readings.received_at,
    extract(epoch from now() - readings.received_at)::double precision as age_seconds
from newest
inner join bronze.device_readings_timed as readings
    on readings.stream_id = newest.stream_id
    and readings.xid >= newest.first_xid
    and readings.received_at >= newest.first_received_at
inner join metadata.metrics on readings.metric_id = metrics.metric_id
order by
    metrics.name,
    coalesce(readings.happened_at, readings.observed_at) desc,
    readings.sequence desc
limit 500
