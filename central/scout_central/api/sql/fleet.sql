-- One row per device, worst first. A hello was checked when it came (scout_shared.messages), but is
-- kept as it was sent: a number beyond all reason must cost its own cell, not the whole page.
with current_streams as (
    select distinct on (device_id)
        device_id,
        last_seen_at,
        next_sequence - 1
        - coalesce((select sum(upper(held) - lower(held)) from unnest(received) as held), 0)
        + coalesce(unsealed_records, 0) as backlog_records
    from metadata.streams
    order by
        device_id,
        last_seen_at desc,
        stream_id desc
),

aside as (
    select
        device_id,
        count(*) as quarantine_open
    from metadata.quarantine
    where state = 'open'
        and device_id is not null
    group by device_id
),

lost as (
    select
        device_id,
        sum(records) as given_up_records
    from metadata.gaps
    where closed_at is null
    group by device_id
),

heard as (
    select
        devices.*,
        coalesce(devices.heartbeat_seconds, 60) as beat,
        greatest(
            devices.hello_received_at,
            current_streams.last_seen_at,
            case when devices.online then devices.status_changed_at end
        ) as heard_at,
        greatest(current_streams.backlog_records, 0) as backlog_records,
        coalesce(aside.quarantine_open, 0) as quarantine_open,
        coalesce(lost.given_up_records, 0)::bigint as given_up_records,
        case
            when metadata.number(devices.hello -> 'device_time_ms') is not null
                then (metadata.number(devices.hello -> 'device_time_ms')
                    - metadata.number(devices.hello -> 'oldest_unsent_ms')) / 1000.0
                    + extract(epoch from now() - devices.hello_received_at)
        end as oldest_seconds
    from metadata.devices
    left join current_streams on devices.device_id = current_streams.device_id
    left join aside on devices.device_id = aside.device_id
    left join lost on devices.device_id = lost.device_id
    where %(device_id)s::text is null
        or devices.device_id = %(device_id)s
),

judged as (
    select
        *,
        case
            when heard_at is null and online is null then 'unknown'
            when online is false and coalesce(hello_received_at <= status_changed_at, true)
                then 'dark'
            when now() - heard_at > greatest(beat * 20, 600) * interval '1 second' then 'dark'
            when now() - heard_at > beat * 3 * interval '1 second' then 'late'
            else 'online'
        end as status
    from heard
)

select
    device_id,
    store_id,
    zone,
    version,
    state as lifecycle,
    status,
    case status
        when 'online' then case when online then status_changed_at else first_seen_at end
        when 'late' then heard_at
        when 'dark' then coalesce(greatest(heard_at, status_changed_at), first_seen_at)
    end as since,
    first_seen_at,
    coalesce(heard_at, last_seen_at) as last_seen_at,
    hello_received_at,
    heartbeat_seconds,
    case when backlog_records < 9e15 then backlog_records::bigint end as backlog_records,
    case
        when coalesce(backlog_records, 0) > 0 and oldest_seconds between 0 and 9e15
            then oldest_seconds::double precision
    end as oldest_unsent_seconds,
    case
        when metadata.number(hello -> 'buffer_bytes') between 0 and 9e15
            then metadata.number(hello -> 'buffer_bytes')::bigint
    end as buffer_bytes,
    clock_skew_seconds,
    case jsonb_typeof(hello -> 'clock_synced')
        when 'boolean' then (hello -> 'clock_synced')::boolean
    end as clock_synced,
    quarantine_open,
    hello ->> 'python' as python,
    hello ->> 'system' as system,
    case
        when metadata.number(hello -> 'config_version') between 0 and 9e15
            then metadata.number(hello -> 'config_version')::bigint
    end as config_version,
    (
        select max(wanted.version)
        from metadata.device_configurations as wanted
        where wanted.device_id = judged.device_id
    ) as config_wanted,
    given_up_records,
    case
        when metadata.number(hello -> 'damaged_files') between 0 and 1e9
            then metadata.number(hello -> 'damaged_files')::int
    end as damaged_files,
    hello -> 'counters' as counters
from judged
order by
    array_position(array['dark', 'late', 'unknown', 'online'], status),
    device_id
