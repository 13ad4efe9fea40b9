-- The readings behind one hour of one metric of one stream.
with readings as (
    select *
    from bronze.device_readings
    where stream_id = %(stream_id)s
        and metric_id = %(metric_id)s
        and observed_at >= %(hour)s
        and observed_at < %(hour)s + interval '1 hour'
        and received_at >= %(hour)s - interval '1 day'
    order by
        received_at,
        sequence
    limit %(limit)s
)

select
    'bronze.device_readings' as bronze_dataset,
    jsonb_build_object(
        'observed_at', readings.observed_at,
        'value', readings.value,
        'metric_id', readings.metric_id
    ) as record,
    readings.received_at,
    readings.sequence,
    devices.store_id,
    devices.device_id,
    streams.stream_id,
    encode(streams.epoch, 'hex') as epoch,
    segment.first_sequence as segment_first_sequence,
    segment.records as segment_records,
    segment.crc as segment_crc,
    encode(segment.boot_id, 'hex') as boot_id,
    segment.sealed_at,
    null::bigint as file_id,
    null as file_name,
    null as file_sha256,
    null::bigint as line_number,
    null as uploaded_by
from readings
inner join metadata.streams on readings.stream_id = streams.stream_id
inner join metadata.devices on streams.device_id = devices.device_id
cross join lateral (
    select *
    from metadata.segments
    where segments.stream_id = readings.stream_id
        and segments.first_sequence <= readings.sequence
    order by segments.first_sequence desc
    limit 1
) as segment
order by
    readings.received_at,
    readings.sequence
