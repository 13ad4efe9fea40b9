-- The document behind a line of sale. (stream, sequence) falls into one segment; its xid finds the
-- row in bronze without an index of its own (BRIN), its time of receipt the partition.
select
    'bronze.transaction_logs' as bronze_dataset,
    log.document as record,
    coalesce(log.received_at, segment.received_at) as received_at,
    %(sequence)s::bigint as sequence,
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
from metadata.streams
inner join metadata.devices on streams.device_id = devices.device_id
cross join lateral (
    select *
    from metadata.segments
    where segments.stream_id = streams.stream_id
        and segments.first_sequence <= %(sequence)s
    order by segments.first_sequence desc
    limit 1
) as segment
left join bronze.transaction_logs as log
    on log.stream_id = segment.stream_id
    and log.sequence = %(sequence)s
    and log.xid = segment.xid
    and log.received_at = segment.received_at
where streams.stream_id = %(stream_id)s
    and %(sequence)s < segment.first_sequence + segment.records
