"""The SQL of the committer: each statement takes whole arrays, so a batch costs a fixed number.

Read together with ``committer.py``, which says when each runs. Parameters are bound by name.
Business days travel as days since 1970, null for unknown.
"""

SET_SESSION = """
select
    -- A receipt is a promise: no setting of the server may make commits asynchronous here.
    set_config('synchronous_commit', 'on', false),
    -- Another hub holds stream rows for one commit only; longer means that something hangs.
    set_config('lock_timeout', '30s', false)
"""

ENSURE_PARTITIONS = """
select
    pg_advisory_xact_lock(hashtext('scout.ensure_partitions')),
    metadata.ensure_partitions(%(from_day)s::date, %(days)s::int)
"""

# A device that is taken in at first sight is bound to the store that it names.
MAKE_DEVICES = """
with made as (
    insert into metadata.devices (device_id, store_id, state)
    select distinct on (device_id)
        device_id,
        store_id,
        %(state)s
    from unnest(%(devices)s::text[], %(stores)s::text[]) as seen (device_id, store_id)
    order by device_id
    on conflict (device_id) do nothing
    returning
        device_id,
        store_id,
        state
)

insert into metadata.device_bindings (device_id, store_id, bound_by, reason)
select
    device_id,
    store_id,
    'ingest',
    'first heard'
from made
where state = 'active'
"""

ADMITTED_DEVICES = """
select device_id
from metadata.devices
where device_id = any(%(devices)s::text[])
    and state <> 'pending'
"""

MAKE_STREAMS = """
insert into metadata.streams (device_id, epoch, store_id)
select
    seen.device_id,
    seen.epoch,
    devices.store_id
from unnest(%(devices)s::text[], %(epochs)s::bytea[]) as seen (device_id, epoch)
inner join metadata.devices using (device_id)
order by
    seen.device_id,
    seen.epoch
on conflict (device_id, epoch) do nothing
"""

FIND_STREAMS = """
select
    streams.device_id,
    streams.epoch,
    streams.stream_id
from unnest(%(devices)s::text[], %(epochs)s::bytea[]) as seen (device_id, epoch)
inner join metadata.streams using (device_id, epoch)
"""

FIND_METRICS = """
select
    name,
    metric_id
from metadata.metrics
where name = any(%(names)s::text[])
"""

MAKE_METRICS = """
insert into metadata.metrics (name)
select name
from unnest(%(names)s::text[]) as seen (name)
order by name
on conflict (name) do nothing
"""

# In one order everywhere, so that two hubs never wait for each other in a circle.
LOCK_STREAMS = """
with locked as materialized (
    select
        streams.stream_id,
        devices.store_id,
        devices.state
    from metadata.streams
    inner join metadata.devices using (device_id)
    where streams.stream_id = any(%(streams)s::int[])
    order by
        streams.device_id,
        streams.epoch
    for update of streams
)
select
    stream_id,
    store_id,
    exists (
        select from metadata.quarantine
        where quarantine.stream_id = locked.stream_id
            and quarantine.sha256 is not null
            and quarantine.state = 'open'
    ) as has_quarantined_segments,
    state = 'retired' as is_retired
from locked
"""

CURRENT_XID = "select metadata.current_xid()"

# Segments that touch what is committed already, with what stands at the same first sequence.
TOUCHED = """
select
    seen.position,
    coalesce(
        segments.records = seen.records
        and segments.crc = seen.crc
        and segments.outcome = 'landed',
        false
    ) as is_redelivery,
    coalesce(
        segments.records = seen.records
        and segments.kind in (0, seen.kind)
        and segments.outcome = 'given_up',
        false
    ) as was_given_up
from unnest(
    %(positions)s::int[], %(streams)s::int[], %(firsts)s::bigint[], %(records)s::int[],
    %(crcs)s::bigint[], %(kinds)s::smallint[]
) as seen (position, stream_id, first_sequence, records, crc, kind)
inner join metadata.streams using (stream_id)
left join metadata.segments using (stream_id, first_sequence)
where streams.received && int8range(seen.first_sequence, seen.first_sequence + seen.records)
"""

# What a contested segment meets, after the clean ones of its batch were added.
CONTEST = """
select
    coalesce((
        select sum(upper(held) - lower(held))
        from unnest(
            streams.received * int8multirange(int8range(%(first)s::bigint, %(end)s::bigint))
        ) as held
    ), 0)::bigint as held_records,
    segments.outcome,
    coalesce(segments.records = %(records)s and segments.crc = %(crc)s, false) as same
from metadata.streams
left join metadata.segments
    on segments.stream_id = streams.stream_id and segments.first_sequence = %(first)s
where streams.stream_id = %(stream)s
"""

QUARANTINE_SEGMENT = """
insert into metadata.quarantine (
    stage, dataset, reason, message, store_id, device_id, stream_id, sequence, records, raw, sha256
)
values (
    'ingest', 'segments', %(reason)s, %(message)s, %(store)s, %(device)s, %(stream)s, %(sequence)s,
    %(records)s, %(raw)s, sha256(%(raw)s)
)
on conflict (stream_id, sequence, sha256) where sha256 is not null
do update set attempts = quarantine.attempts + 1
"""

COUNT_ATTEMPTS = """
select coalesce(sum(attempts), 0)::bigint
from metadata.quarantine
where stream_id = %(stream)s
    and sequence = %(sequence)s
    and sha256 is not null
"""

RESOLVE_QUARANTINE = """
update metadata.quarantine
set state = 'replayed'
from unnest(%(streams)s::int[], %(firsts)s::bigint[]) as landed (stream_id, first_sequence)
where quarantine.stream_id = landed.stream_id
    and quarantine.sequence = landed.first_sequence
    and quarantine.sha256 is not null
    and quarantine.state = 'open'
"""

INSERT_SEGMENTS = """
insert into metadata.segments (
    stream_id, first_sequence, records, kind, outcome, bytes, crc, boot_id, clock, sealed_at,
    sealed_mono_ms, received_at
)
select
    stream_id,
    first_sequence,
    records,
    kind,
    outcome,
    bytes,
    crc,
    boot_id,
    clock,
    timestamptz 'epoch' + sealed_ms * interval '1 millisecond',
    sealed_mono_ms,
    timestamptz 'epoch' + %(received_ms)s::bigint * interval '1 millisecond'
from unnest(
    %(streams)s::int[], %(firsts)s::bigint[], %(records)s::int[], %(kinds)s::smallint[],
    %(outcomes)s::text[], %(bytes)s::int[], %(crcs)s::bigint[], %(boots)s::bytea[],
    %(clocks)s::smallint[], %(sealed)s::bigint[], %(mono)s::bigint[]
) as seen (
    stream_id, first_sequence, records, kind, outcome, bytes, crc, boot_id, clock, sealed_ms,
    sealed_mono_ms
)
on conflict (stream_id, first_sequence) do nothing
"""

INSERT_SPANS = """
insert into metadata.stamped_spans (
    stream_id, first_sequence, records, boot_id, clock, offset_ms
)
select
    stream_id,
    first_sequence,
    records,
    boot_id,
    clock,
    offset_ms
from unnest(
    %(streams)s::int[], %(firsts)s::bigint[], %(records)s::int[], %(boots)s::bytea[],
    %(clocks)s::smallint[], %(offsets)s::bigint[]
) as seen (stream_id, first_sequence, records, boot_id, clock, offset_ms)
on conflict (stream_id, first_sequence) do nothing
"""

# How much of each part of a gap the hub holds: only the rest is given up.
HELD = """
select coalesce((
    select sum(upper(held) - lower(held))
    from unnest(
        streams.received
        * int8multirange(int8range(parts.first, parts.first + parts.records))
    ) as held
), 0)::bigint
from metadata.streams
cross join unnest(%(firsts)s::bigint[], %(records)s::bigint[]) with ordinality
    as parts (first, records, position)
where streams.stream_id = %(stream)s
order by parts.position
"""

INSERT_GAPS = """
insert into metadata.gaps (
    stream_id, first_sequence, sequences, records, kind, reason, days, device_id, store_id
)
select
    %(stream)s,
    first_sequence,
    sequences,
    records,
    kind,
    reason,
    days::jsonb,
    %(device)s,
    %(store)s
from unnest(
    %(firsts)s::bigint[], %(sequences)s::bigint[], %(records)s::bigint[], %(kinds)s::smallint[],
    %(reasons)s::text[], %(days)s::text[]
) as part (first_sequence, sequences, records, kind, reason, days)
on conflict (stream_id, first_sequence, sequences) do nothing
"""

# What a gap stood for came after all: the segment is what it always was, and the gap is closed.
CLOSE_GAPS = """
with found as (
    select
        stream_id,
        first_sequence
    from unnest(%(streams)s::int[], %(firsts)s::bigint[]) as seen (stream_id, first_sequence)
),

replaced as (
    delete from metadata.segments
    using found
    where segments.stream_id = found.stream_id
        and segments.first_sequence = found.first_sequence
        and segments.outcome = 'given_up'
)

update metadata.gaps
set closed_at = now()
from found
where gaps.stream_id = found.stream_id
    and gaps.first_sequence = found.first_sequence
    and gaps.records = gaps.sequences
    and gaps.closed_at is null
returning
    gaps.stream_id,
    gaps.kind,
    gaps.reason,
    gaps.days
"""

EXTEND_STREAMS = """
update metadata.streams
set
    received = streams.received + added.ranges,
    next_sequence = greatest(streams.next_sequence, added.next_sequence),
    zone = coalesce(added.zone, streams.zone),
    last_seen_at = now()
from (
    select
        stream_id,
        range_agg(int8range(first_sequence, first_sequence + records)) as ranges,
        max(first_sequence + records) as next_sequence,
        (array_agg(zone order by first_sequence desc) filter (where zone is not null))[1] as zone
    from unnest(
        %(streams)s::int[], %(firsts)s::bigint[], %(records)s::int[], %(zones)s::text[]
    ) as seen (stream_id, first_sequence, records, zone)
    group by stream_id
) as added
where streams.stream_id = added.stream_id
"""

ADD_RECEIVED = """
insert into metadata.received_counts as counts (stream_id, kind, business_date, records)
select
    stream_id,
    kind,
    date '1970-01-01' + day,
    records
from unnest(
    %(streams)s::int[], %(kinds)s::smallint[], %(days)s::int[], %(records)s::bigint[]
) as seen (stream_id, kind, day, records)
on conflict (stream_id, kind, business_date)
do update set records = counts.records + excluded.records
"""

ADD_OUTCOMES = """
insert into metadata.outcome_counts as counts (
    stream_id, kind, business_date, outcome, rule, records
)
select
    stream_id,
    kind,
    date '1970-01-01' + day,
    outcome,
    rule,
    records
from unnest(
    %(streams)s::int[], %(kinds)s::smallint[], %(days)s::int[], %(outcomes)s::text[],
    %(rules)s::text[], %(records)s::bigint[]
) as seen (stream_id, kind, day, outcome, rule, records)
on conflict (stream_id, kind, business_date, outcome, rule)
do update set records = counts.records + excluded.records
"""

FIND_BAD_DOCUMENTS = """
select position
from unnest(%(documents)s::bytea[]) with ordinality as seen (document, position)
where metadata.jsonb_error(document) is not null
"""

QUARANTINE_RECORDS = """
insert into metadata.quarantine (
    stage, dataset, reason, message, store_id, device_id, stream_id, sequence, business_date,
    payload, raw
)
select
    'ingest',
    dataset,
    reason,
    concat_ws(': ', message, error),
    store_id,
    device_id,
    stream_id,
    sequence,
    date '1970-01-01' + day,
    case when error is null then convert_from(raw, 'UTF8')::jsonb end,
    case when error is not null then raw end
from unnest(
    %(datasets)s::text[], %(reasons)s::text[], %(messages)s::text[], %(stores)s::text[],
    %(devices)s::text[], %(streams)s::int[], %(sequences)s::bigint[], %(days)s::int[],
    %(raws)s::bytea[]
) as seen (
    dataset, reason, message, store_id, device_id, stream_id, sequence, day, raw
)
cross join lateral metadata.jsonb_error(raw) as error
"""

READ_OPENINGS = """
select
    stream_id,
    next_sequence,
    array(
        select openings.nonce from metadata.openings
        where openings.stream_id = streams.stream_id order by openings.position
    ) as nonces,
    array(
        select openings.first_sequence from metadata.openings
        where openings.stream_id = streams.stream_id order by openings.position
    ) as firsts
from metadata.streams
where stream_id = any(%(streams)s::int[])
"""

ADD_OPENINGS = """
insert into metadata.openings (stream_id, position, nonce, first_sequence)
select
    stream_id,
    position,
    nonce,
    first_sequence
from unnest(
    %(streams)s::int[], %(positions)s::int[], %(nonces)s::bytea[], %(firsts)s::bigint[]
) as seen (stream_id, position, nonce, first_sequence)
"""

# Which buffer each device spoke for last, and which one before.
READ_GREETED = """
select
    device_id,
    hello ->> 'epoch' as epoch,
    hello ->> 'boot' as boot,
    hello ->> 'version' as version,
    extract(epoch from hello_received_at)::float8 as heard_at,
    previous_hello ->> 'epoch' as previous_epoch,
    previous_hello ->> 'boot' as previous_boot,
    previous_hello ->> 'version' as previous_version,
    extract(epoch from previous_hello_at)::float8 as previous_heard_at
from metadata.devices
where device_id = any(%(devices)s::text[])
"""

SET_PREVIOUS = """
update metadata.devices
set
    previous_hello = jsonb_build_object(
        'epoch', seen.epoch, 'boot', seen.boot, 'version', seen.version
    ),
    previous_hello_at = timestamptz 'epoch' + seen.heard_at * interval '1 second'
from unnest(
    %(devices)s::text[], %(epochs)s::text[], %(boots)s::text[], %(versions)s::text[],
    %(heard)s::float8[]
) as seen (device_id, epoch, boot, version, heard_at)
where devices.device_id = seen.device_id
"""

GREET_DEVICES = """
update metadata.devices
set
    zone = coalesce(greeting.zone, devices.zone),
    version = greeting.version,
    hello = greeting.hello::jsonb,
    hello_received_at = now(),
    heartbeat_seconds = greeting.interval_seconds,
    -- A broken connection's will may come after its successor: who greets is there.
    online = true,
    status_changed_at = case
        when devices.online then devices.status_changed_at
        else now()
    end,
    clock_samples = sampled.clock_samples,
    clock_skew_seconds = (select max(sample) from unnest(sampled.clock_samples) as sample),
    last_seen_at = now()
from unnest(
    %(devices)s::text[], %(zones)s::text[], %(versions)s::text[], %(hellos)s::text[],
    %(intervals)s::float8[], %(device_ms)s::bigint[]
) as greeting (device_id, zone, version, hello, interval_seconds, device_ms)
inner join metadata.devices as before
    on greeting.device_id = before.device_id
-- Of one boot, between two jumps, the clock runs on: what differs is the delay.
cross join lateral (
    select
        (
            case
                when before.hello -> 'boot' = greeting.hello::jsonb -> 'boot'
                    and before.hello #> '{counters,clock_jumps}'
                    is not distinct from greeting.hello::jsonb #> '{counters,clock_jumps}'
                    then before.clock_samples[
                        greatest(cardinality(before.clock_samples) - 6, 1):
                    ]
                else '{}'
            end
        ) || ((greeting.device_ms - %(hub_ms)s::bigint) / 1000.0)::float8 as clock_samples
) as sampled
where devices.device_id = greeting.device_id
returning
    devices.device_id,
    devices.clock_skew_seconds,
    cardinality(devices.clock_samples)
"""

LEARN_BOOTS = """
insert into metadata.boot_clocks as known (
    device_id, boot_id, store_id, offset_ms, uncertainty_ms, known_at
)
select
    learned.device_id,
    learned.boot_id,
    devices.store_id,
    learned.offset_ms,
    learned.uncertainty_ms,
    timestamptz 'epoch' + learned.known_ms * interval '1 millisecond'
from unnest(
    %(devices)s::text[], %(boots)s::bytea[], %(offsets)s::bigint[], %(uncertainties)s::bigint[],
    %(known)s::bigint[]
) as learned (device_id, boot_id, offset_ms, uncertainty_ms, known_ms)
inner join metadata.devices
    on learned.device_id = devices.device_id
order by
    learned.device_id,
    learned.boot_id
on conflict (device_id, boot_id)
do update set
    offset_ms = excluded.offset_ms,
    uncertainty_ms = excluded.uncertainty_ms,
    known_at = excluded.known_at,
    told_at = now()
where excluded.known_at > known.known_at
"""

GREET_STREAMS = """
update metadata.streams
set
    zone = coalesce(greeting.zone, streams.zone),
    next_sequence = greatest(streams.next_sequence, greeting.next_sequence),
    unsealed_records = greeting.unsealed_records,
    ledger_version = greatest(streams.ledger_version, greeting.ledger_version),
    last_seen_at = now()
from unnest(
    %(streams)s::int[], %(zones)s::text[], %(nexts)s::bigint[], %(unsealed)s::bigint[],
    %(ledgers)s::bigint[]
) as greeting (stream_id, zone, next_sequence, unsealed_records, ledger_version)
where streams.stream_id = greeting.stream_id
"""

# Cumulative within the epoch: a repeated or late hello changes nothing.
RAISE_PRODUCED = """
insert into metadata.produced_counts as counts (stream_id, kind, business_date, records)
select
    stream_id,
    kind,
    date '1970-01-01' + day,
    records
from unnest(
    %(streams)s::int[], %(kinds)s::smallint[], %(days)s::int[], %(records)s::bigint[]
) as seen (stream_id, kind, day, records)
on conflict (stream_id, kind, business_date)
do update set
    records = excluded.records,
    updated_at = now()
where excluded.records > counts.records
"""

SET_ONLINE = """
update metadata.devices
set
    online = seen.online,
    status_changed_at = now()
from unnest(%(devices)s::text[], %(online)s::bool[]) as seen (device_id, online)
where devices.device_id = seen.device_id
    and devices.online is distinct from seen.online
"""

READ_RECEIPTS = """
select
    stream_id,
    ledger_version,
    (
        select openings.nonce from metadata.openings
        where openings.stream_id = streams.stream_id order by openings.position desc limit 1
    ) as writer,
    array(select lower(held) from unnest(received) as held order by 1 limit %(ranges)s) as firsts,
    array(select upper(held) from unnest(received) as held order by 1 limit %(ranges)s) as ends
from metadata.streams
where stream_id = any(%(streams)s::int[])
"""

LOG_ERRORS = """
insert into metadata.error_log as errors (
    component, error_type, severity, code, message, hint, store_id, device_id, affected_records,
    occurrences
)
select
    'ingest',
    error_type,
    severity,
    code,
    message,
    hint,
    store_id,
    device_id,
    records,
    occurrences
from unnest(
    %(types)s::text[], %(severities)s::text[], %(codes)s::text[], %(messages)s::text[],
    %(hints)s::text[], %(stores)s::text[], %(devices)s::text[], %(records)s::bigint[],
    %(occurrences)s::bigint[]
) as seen (
    error_type, severity, code, message, hint, store_id, device_id, records, occurrences
)
order by
    code,
    device_id
on conflict (component, code, coalesce(dataset, ''), coalesce(device_id, ''))
where state in ('open', 'acknowledged')
do update set
    message = excluded.message,
    affected_records = coalesce(errors.affected_records, 0) + excluded.affected_records,
    occurrences = errors.occurrences + excluded.occurrences,
    last_at = now()
"""

COPY_READINGS = """
copy bronze.device_readings (
    received_at, observed_at, sequence, value, xid, stream_id, metric_id, store_id
) from stdin (format binary)
"""

COPY_DOCUMENTS = """
copy bronze.transaction_logs (
    received_at, observed_at, sequence, xid, stream_id, business_date, store_id, document
) from stdin (format binary)
"""
