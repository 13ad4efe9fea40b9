-- The clocks of the devices. A device without a battery clock starts at an old time and learns the
-- right one later, or never. What its agent stamped meanwhile travels in segments that say in which
-- span of the clock they arose (boot, wall minus monotonic clock); each hello says in which boots the
-- right difference became known. Both are kept, nothing stored is changed: the repair is a view.
create table metadata.stamped_spans (
    stream_id int not null references metadata.streams,
    first_sequence bigint not null,
    records int not null,
    boot_id bytea not null check (length(boot_id) = 16),
    clock smallint not null,
    offset_ms bigint not null,
    primary key (stream_id, first_sequence)
);
comment on table metadata.stamped_spans is
'segments whose times the agent took from a wall clock that nobody vouched for; those without a row need no repair';

create table metadata.boot_clocks (
    device_id text not null references metadata.devices,
    boot_id bytea not null check (length(boot_id) = 16),
    store_id text not null,
    offset_ms bigint not null,
    uncertainty_ms bigint not null,
    known_at timestamptz not null,
    told_at timestamptz not null default now(),
    primary key (device_id, boot_id)
);
comment on table metadata.boot_clocks is 'boots whose wall clock became known: right wall clock minus monotonic clock';

alter table metadata.devices
add column clock_samples double precision[] not null default '{}';
comment on column metadata.devices.clock_samples is
'device clock minus hub clock at the last hellos of one boot without a jump, newest last';
comment on column metadata.devices.clock_skew_seconds is
'device clock minus hub clock: the greatest of clock_samples, because delay only ever makes it less';

-- One row per reading, with what is known of its time. `happened_at` is null where nobody knows.
create view bronze.device_readings_timed with (security_invoker = true) as
select
    log.received_at,
    log.observed_at,
    case
        when span.first_sequence is null then log.observed_at
        when boot.boot_id is not null
            then log.observed_at + (boot.offset_ms - span.offset_ms) * interval '1 millisecond'
    end as happened_at,
    case
        when span.first_sequence is null then 'observed'
        when boot.boot_id is not null then 'recovered'
        else 'unknown'
    end as time_provenance,
    case when span.first_sequence is not null and boot.boot_id is not null then 'boot_clock' end
    as time_rule,
    case when span.first_sequence is not null then boot.uncertainty_ms / 1000.0 end
    as time_uncertainty_seconds,
    log.sequence,
    log.value,
    log.xid,
    log.stream_id,
    log.metric_id,
    log.store_id
from bronze.device_readings as log
inner join metadata.streams as stream
    on log.stream_id = stream.stream_id
left join lateral (
    select
        before.first_sequence,
        before.records,
        before.boot_id,
        before.offset_ms
    from metadata.stamped_spans as before
    where before.stream_id = log.stream_id
        and before.first_sequence <= log.sequence
    order by before.first_sequence desc
    limit 1
) as span
    on log.sequence < span.first_sequence + span.records
left join metadata.boot_clocks as boot
    on stream.device_id = boot.device_id
    and span.boot_id = boot.boot_id;
comment on view bronze.device_readings_timed is
'readings with the time at which they happened: observed, recovered (time_rule) or unknown';

select metadata.secure_tables();
