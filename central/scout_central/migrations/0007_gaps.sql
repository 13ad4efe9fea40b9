-- Gaps: what a device accepted and declares that it can no longer deliver. A gap has the sequences of
-- the records that it stands for; it is committed with the stream's `received`, so the watermark moves
-- over it, and counts as the outcome `given_up`. When the records come after all (an export carried
-- by hand, a late message), they land and the gap is closed.
create table metadata.gaps (
    stream_id int not null references metadata.streams,
    first_sequence bigint not null,
    sequences bigint not null,
    records bigint not null,
    kind smallint not null,
    reason text not null,
    days jsonb not null,
    device_id text not null,
    store_id text not null,
    declared_at timestamptz not null default now(),
    closed_at timestamptz,
    primary key (stream_id, first_sequence, sequences)
);
comment on table metadata.gaps is 'one row per segment or lost range that a device gave up';
comment on column metadata.gaps.records is
'of the sequences, those that the hub did not hold; less than sequences: they count on no known day';
comment on column metadata.gaps.days is
'[[days since 1970, records], ...], the lowest integer for an unknown day: what was counted, and what is taken back when it is closed';
comment on column metadata.gaps.kind is '0: what stood there is not known';

alter table metadata.segments
drop constraint segments_outcome_check,
add constraint segments_outcome_check check (outcome in ('landed', 'quarantined', 'given_up'));
alter table metadata.outcome_counts
drop constraint outcome_counts_outcome_check,
add constraint outcome_counts_outcome_check
check (outcome in ('landed', 'duplicate', 'quarantined', 'excluded', 'given_up'));

drop view metadata.reconciliation;
-- One row per device, kind and business day. Per row
--   produced = received + undated + in_transit
--   received = landed + duplicate + quarantined + excluded + given_up + pending
-- A gap is received like the records that it stands for, so that the watermark moves over it.
-- `remainder` is what those differences cannot be: once everything that the device ever sealed has
-- arrived and nothing waits unsealed, in_transit must be 0; and pending must be what really stands
-- in bronze above silver's watermark, counted there. Before that they are under way. It counts the
-- records that nothing explains, so it is never negative.
create view metadata.reconciliation with (security_invoker = true) as
with zones as materialized (
    select
        stream.stream_id,
        metadata.known_zone(stream.zone) as zone
    from metadata.streams as stream
),

marks as (
    select
        2::smallint as kind,
        coalesce((
            select mark.xid from metadata.watermarks as mark
            where mark.dataset = 'silver.transactions_cleaned'
        ), 0) as xid
    union all
    select
        1::smallint as kind,
        coalesce((
            select mark.xid from metadata.watermarks as mark
            where mark.dataset = 'silver.device_readings_hourly'
        ), 0) as xid
),

produced as (
    select
        produced_counts.stream_id,
        produced_counts.kind,
        produced_counts.business_date,
        produced_counts.records
    from metadata.produced_counts
),

received as (
    select
        received_counts.stream_id,
        received_counts.kind,
        received_counts.business_date,
        received_counts.records
    from metadata.received_counts
),

outcomes as (
    select
        counts.stream_id,
        counts.kind,
        counts.business_date,
        sum(counts.records) filter (where counts.outcome = 'landed') as landed,
        sum(counts.records) filter (where counts.outcome = 'duplicate') as duplicate,
        sum(counts.records) filter (where counts.outcome = 'quarantined') as quarantined,
        sum(counts.records) filter (where counts.outcome = 'excluded') as excluded,
        sum(counts.records) filter (where counts.outcome = 'given_up') as given_up,
        sum(counts.records) as records
    from metadata.outcome_counts as counts
    group by
        counts.stream_id,
        counts.kind,
        counts.business_date
),

waiting as (
    select
        log.stream_id,
        2::smallint as kind,
        log.business_date,
        count(*) as records
    from bronze.transaction_logs as log
    where log.xid >= (select marks.xid from marks where marks.kind = 2)
    group by
        log.stream_id,
        log.business_date
    union all
    select
        log.stream_id,
        1::smallint as kind,
        (log.observed_at at time zone zones.zone)::date as business_date,
        count(*) as records
    from bronze.device_readings as log
    left join zones
        on log.stream_id = zones.stream_id
    where log.xid >= (select marks.xid from marks where marks.kind = 1)
    group by
        log.stream_id,
        (log.observed_at at time zone zones.zone)::date
),

-- Put together by grouping, not by joins: a join with `is not distinct from` compares each day of a
-- stream with each other (25 s for 457 streams and a year, against 1 s).
counted as (
    select
        parts.stream_id,
        parts.kind,
        parts.business_date,
        sum(parts.produced) as produced,
        sum(parts.received) as received,
        sum(parts.landed) as landed,
        sum(parts.duplicate) as duplicate,
        sum(parts.quarantined) as quarantined,
        sum(parts.excluded) as excluded,
        sum(parts.given_up) as given_up,
        sum(parts.ended) as ended,
        sum(parts.waiting) as waiting
    from (
        select
            stream_id,
            kind,
            business_date,
            records as produced,
            0 as received,
            0 as landed,
            0 as duplicate,
            0 as quarantined,
            0 as excluded,
            0 as given_up,
            0 as ended,
            0 as waiting
        from produced
        union all
        select stream_id, kind, business_date, 0, records, 0, 0, 0, 0, 0, 0, 0
        from received
        union all
        select
            stream_id,
            kind,
            business_date,
            0,
            0,
            coalesce(landed, 0),
            coalesce(duplicate, 0),
            coalesce(quarantined, 0),
            coalesce(excluded, 0),
            coalesce(given_up, 0),
            records,
            0
        from outcomes
        union all
        select stream_id, kind, business_date, 0, 0, 0, 0, 0, 0, 0, 0, records
        from waiting
    ) as parts
    group by
        parts.stream_id,
        parts.kind,
        parts.business_date
),

-- Everything sealed has arrived and nothing waits unsealed. `ahead`: the hub holds more than the
-- ledger counts, so the ledger is older than the last segments.
streams as materialized (
    select
        stream.stream_id,
        stream.device_id,
        stream.store_id,
        coalesce(
            stream.unsealed_records = 0
            and stream.received = int8multirange(int8range(1, stream.next_sequence)),
            false
        ) as settled,
        stream.next_sequence - 1 > coalesce((
            select sum(ledger.records) from metadata.produced_counts as ledger
            where ledger.stream_id = stream.stream_id
        ), 0) as ahead
    from metadata.streams as stream
),

facts as (
    select
        counted.*,
        streams.device_id,
        streams.store_id,
        streams.settled,
        streams.ahead
    from counted
    inner join streams
        on counted.stream_id = streams.stream_id
),

-- A segment whose body cannot be read has no days: its records were received, and quarantined or
-- given up, on an unknown day, and are missing on their own. So many may be put against the days
-- that lack them.
missing as (
    select
        facts.*,
        greatest(facts.produced - facts.received, 0) as short,
        sum(greatest(facts.produced - facts.received, 0)) over (
            partition by facts.stream_id, facts.kind
            order by facts.business_date asc nulls last
        ) as short_so_far,
        coalesce(max(
            case
                when facts.business_date is null and facts.settled
                    then least(
                        greatest(facts.received - facts.produced, 0),
                        facts.quarantined + facts.given_up
                    )
            end
        ) over (partition by facts.stream_id, facts.kind), 0) as undatable
    from facts
),

dated as (
    select
        missing.*,
        case
            when missing.business_date is null
                then -least(
                    missing.undatable,
                    sum(case when missing.business_date is not null then missing.short else 0 end)
                    over (partition by missing.stream_id, missing.kind)
                )
            else
                greatest(
                    0,
                    least(
                        missing.short,
                        missing.undatable - (missing.short_so_far - missing.short)
                    )
                )
        end as dated
    from missing
),

-- Of a range that a damaged file lost not even the kinds are known (kind 0): those records are put
-- against what both kinds still lack.
lacking as (
    select
        dated.*,
        case
            when dated.kind > 0 then dated.short - greatest(dated.dated, 0)
            else 0
        end as rest,
        coalesce(max(
            case when dated.kind = 0 and dated.settled then dated.received end
        ) over (partition by dated.stream_id), 0) as kindless
    from dated
),

summed as (
    select
        lacking.*,
        sum(lacking.rest) over (
            partition by lacking.stream_id
            order by
                lacking.kind,
                lacking.business_date nulls last
        ) as rest_so_far,
        sum(lacking.rest) over (partition by lacking.stream_id) as rest_of_all
    from lacking
),

placed as (
    select
        summed.*,
        case
            when summed.kind = 0 then -least(summed.kindless, summed.rest_of_all)
            else
                summed.dated
                + greatest(
                    0,
                    least(
                        summed.rest, summed.kindless - (summed.rest_so_far - summed.rest)
                    )
                )
        end as undated
    from summed
)

select
    placed.device_id,
    placed.store_id,
    case placed.kind when 1 then 'readings' when 2 then 'documents' else 'unknown' end as kind,
    placed.business_date,
    sum(placed.produced)::bigint as produced,
    sum(placed.received)::bigint as received,
    sum(placed.landed)::bigint as landed,
    sum(placed.duplicate)::bigint as duplicate,
    sum(placed.quarantined)::bigint as quarantined,
    sum(placed.excluded)::bigint as excluded,
    sum(placed.given_up)::bigint as given_up,
    sum(placed.undated)::bigint as undated,
    sum(placed.produced - placed.received - placed.undated)::bigint as in_transit,
    sum(placed.received - placed.ended)::bigint as pending,
    -- Absolute, and per stream: two errors must not hide each other.
    sum(
        abs(placed.received - placed.ended - placed.waiting)
        + case
            when placed.settled and placed.ahead
                then greatest(placed.produced - placed.received - placed.undated, 0)
            when placed.settled then abs(placed.produced - placed.received - placed.undated)
            else 0
        end
    )::bigint as remainder
from placed
group by
    placed.device_id,
    placed.store_id,
    placed.kind,
    placed.business_date;
comment on view metadata.reconciliation is
'does everything add up, per device, kind and business day; remainder other than zero is an incident';

create or replace function metadata.verify_landed()
returns table (
    device_id text, stream_id int, kind text, check_name text, counted bigint, actual bigint
)
language sql stable
begin atomic
    with landed as (
        select
            counts.stream_id,
            counts.kind,
            sum(counts.records)::bigint as records,
            sum(counts.lines)::bigint as lines
        from metadata.outcome_counts as counts
        where counts.outcome = 'landed'
        group by
            counts.stream_id,
            counts.kind
    ),

    sales as (
        select
            sale.stream_id,
            count(distinct sale.sequence) as documents,
            count(*) as lines
        from silver.transactions_cleaned as sale
        group by sale.stream_id
    ),

    hours as (
        select
            hourly.stream_id,
            sum(hourly.readings)::bigint as readings
        from silver.device_readings_hourly as hourly
        group by hourly.stream_id
    ),

    bronze_rows as (
        select log.stream_id, 2 as kind, count(*) as records
        from bronze.transaction_logs as log
        group by log.stream_id
        union all
        select log.stream_id, 1 as kind, count(*) as records
        from bronze.device_readings as log
        group by log.stream_id
    ),

    at_the_door as (
        select
            received.stream_id,
            received.kind,
            sum(received.records)::bigint - coalesce((
                select sum(kept.records)
                from metadata.quarantine as kept
                where kept.stream_id = received.stream_id and kept.stage = 'ingest'
                    and kept.state <> 'replayed'
                    and case
                        when kept.sha256 is null
                            then received.kind = 2
                        else received.kind = (
                            select segment.kind from metadata.segments as segment
                            where segment.stream_id = kept.stream_id
                                and segment.first_sequence = kept.sequence
                                and segment.outcome = 'quarantined'
                        )
                    end
            ), 0)::bigint - coalesce((
                select sum(counts.records)
                from metadata.outcome_counts as counts
                where counts.stream_id = received.stream_id and counts.kind = received.kind
                    and counts.outcome = 'given_up'
            ), 0)::bigint as records
        from metadata.received_counts as received
        group by
            received.stream_id,
            received.kind
    ),

    checks as (
        select
            stream.stream_id,
            2 as kind,
            'landed documents are in silver' as check_name,
            coalesce(landed.records, 0) as counted,
            coalesce(sales.documents, 0) as actual
        from metadata.streams as stream
        left join landed on stream.stream_id = landed.stream_id and landed.kind = 2
        left join sales on stream.stream_id = sales.stream_id
        union all
        select
            stream.stream_id,
            2 as kind,
            'landed lines are in silver' as check_name,
            coalesce(landed.lines, 0) as counted,
            coalesce(sales.lines, 0) as actual
        from metadata.streams as stream
        left join landed on stream.stream_id = landed.stream_id and landed.kind = 2
        left join sales on stream.stream_id = sales.stream_id
        union all
        select
            stream.stream_id,
            1 as kind,
            'landed readings are in the hours' as check_name,
            coalesce(landed.records, 0) as counted,
            coalesce(hours.readings, 0) as actual
        from metadata.streams as stream
        left join landed on stream.stream_id = landed.stream_id and landed.kind = 1
        left join hours on stream.stream_id = hours.stream_id
        union all
        select
            stream.stream_id,
            kinds.kind,
            'received records are in bronze or in quarantine' as check_name,
            coalesce(at_the_door.records, 0) as counted,
            coalesce(bronze_rows.records, 0) as actual
        from metadata.streams as stream
        cross join (values (1), (2)) as kinds (kind)
        left join at_the_door
            on stream.stream_id = at_the_door.stream_id and kinds.kind = at_the_door.kind
        left join bronze_rows
            on stream.stream_id = bronze_rows.stream_id and kinds.kind = bronze_rows.kind
    )

    select
        stream.device_id,
        checks.stream_id,
        case checks.kind when 1 then 'readings' else 'documents' end as kind,
        checks.check_name,
        checks.counted,
        checks.actual
    from checks
    inner join metadata.streams as stream on checks.stream_id = stream.stream_id
    where checks.counted <> checks.actual;
end;
comment on function metadata.verify_landed is 'one row per check that fails; none when all is well';

select metadata.secure_tables();
