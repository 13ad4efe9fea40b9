-- What the runner says about its datasets, and the views that answer: does everything add up, and
-- how old is what I see.
create table metadata.datasets (
    dataset text primary key,
    layer text not null,
    grain text not null,
    strategy text not null,
    position int not null,
    rows bigint not null default 0,
    sla_seconds double precision not null,
    last_run_id uuid,
    last_run_at timestamptz,
    last_status text check (last_status in ('completed', 'failed', 'blocked')),
    last_message text,
    checked_at timestamptz
);
comment on table metadata.datasets is 'the runner''s own datasets, with exact row counts';
comment on column metadata.datasets.checked_at is 'last time the runner found it current or made it so';
comment on column metadata.datasets.last_status is 'blocked: an input''s step failed';

-- One row per device, kind and business day. Per row
--   produced = received + undated + in_transit
--   received = landed + duplicate + quarantined + excluded + pending
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
            0 as ended,
            0 as waiting
        from produced
        union all
        select stream_id, kind, business_date, 0, records, 0, 0, 0, 0, 0, 0
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
            records,
            0
        from outcomes
        union all
        select stream_id, kind, business_date, 0, 0, 0, 0, 0, 0, 0, records
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

-- A segment whose body cannot be read has no days: its records were received, and quarantined, on
-- an unknown day, and are missing on their own. So many may be put against the days that lack them.
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
                    then least(greatest(facts.received - facts.produced, 0), facts.quarantined)
            end
        ) over (partition by facts.stream_id, facts.kind), 0) as undatable
    from facts
),

placed as (
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
        end as undated
    from missing
)

select
    placed.device_id,
    placed.store_id,
    case placed.kind when 1 then 'readings' when 2 then 'documents' end as kind,
    placed.business_date,
    sum(placed.produced)::bigint as produced,
    sum(placed.received)::bigint as received,
    sum(placed.landed)::bigint as landed,
    sum(placed.duplicate)::bigint as duplicate,
    sum(placed.quarantined)::bigint as quarantined,
    sum(placed.excluded)::bigint as excluded,
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

-- The counters against the rows themselves: whoever deletes or doubles rows behind the runner's back
-- shows up here, whatever the counters say. Reads whole tables.
create function metadata.verify_landed()
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

-- How old, how many, how it went. Rows are exact for the runner's datasets, an estimate for bronze.
create view metadata.dataset_status with (security_invoker = true) as
with newest as (
    select 'silver.transactions_cleaned' as dataset, (
        select t.loaded_at from silver.transactions_cleaned as t order by t.xid desc limit 1
    ) as loaded_at
    union all
    select 'silver.product_hierarchy', (
        select t.loaded_at from silver.product_hierarchy as t order by t.xid desc limit 1
    )
    union all
    select 'silver.customer_profiles', (
        select t.loaded_at from silver.customer_profiles as t order by t.xid desc limit 1
    )
    union all
    select 'silver.device_readings_hourly', (
        select t.loaded_at from silver.device_readings_hourly as t order by t.xid desc limit 1
    )
    union all
    select 'gold.product_store_day', (
        select t.loaded_at from gold.product_store_day as t order by t.xid desc limit 1
    )
    union all
    select 'gold.customer_store_day', (
        select t.loaded_at from gold.customer_store_day as t order by t.xid desc limit 1
    )
    union all
    select 'gold.store_hour', (
        select t.loaded_at from gold.store_hour as t order by t.xid desc limit 1
    )
    union all
    select 'gold.department_store_day', (
        select t.loaded_at from gold.department_store_day as t order by t.xid desc limit 1
    )
    union all
    select 'gold.product_month', (
        select t.loaded_at from gold.product_month as t order by t.xid desc limit 1
    )
    union all
    select 'gold.customer_360', (
        select t.loaded_at from gold.customer_360 as t order by t.xid desc limit 1
    )
    union all
    select 'gold.product_performance', (
        select t.loaded_at from gold.product_performance as t order by t.xid desc limit 1
    )
    union all
    select 'gold.seasonal_patterns', (
        select t.loaded_at from gold.seasonal_patterns as t order by t.xid desc limit 1
    )
    union all
    select 'platinum.demand_forecasting', (
        select t.loaded_at from platinum.demand_forecasting as t order by t.xid desc limit 1
    )
),

landing as (
    select 'bronze.transaction_logs' as dataset, (
        select max(segment.received_at) from metadata.segments as segment where segment.kind = 2
    ) as loaded_at
    union all
    select 'bronze.device_readings', (
        select max(segment.received_at) from metadata.segments as segment where segment.kind = 1
    )
    union all
    select 'bronze.product_catalog', (
        select t.loaded_at from bronze.product_catalog as t order by t.xid desc limit 1
    )
    union all
    select 'bronze.demographic_data', (
        select t.loaded_at from bronze.demographic_data as t order by t.xid desc limit 1
    )
    union all
    select 'bronze.campaign_data', (
        select t.loaded_at from bronze.campaign_data as t order by t.xid desc limit 1
    )
    union all
    select 'bronze.store_locations', (
        select t.loaded_at from bronze.store_locations as t order by t.xid desc limit 1
    )
),

sizes as (
    select
        landing.dataset,
        sum(greatest(class.reltuples, 0))::bigint as rows
    from landing
    inner join pg_class as class
        on class.oid = landing.dataset::regclass
        or class.oid in (
            select part.inhrelid from pg_inherits as part
            where part.inhparent = landing.dataset::regclass
        )
    where class.relkind = 'r'
    group by landing.dataset
)

select
    landing.dataset,
    'bronze' as layer,
    null::text as grain,
    sizes.rows,
    false as rows_exact,
    landing.loaded_at,
    extract(epoch from now() - landing.loaded_at)::double precision as freshness_seconds,
    null::double precision as sla_seconds,
    null::boolean as sla_met,
    null::text as last_status,
    null::timestamptz as last_run_at,
    null::timestamptz as checked_at,
    null::text as last_message,
    0 as position
from landing
left join sizes
    on landing.dataset = sizes.dataset
union all
select
    datasets.dataset,
    datasets.layer,
    datasets.grain,
    datasets.rows,
    true as rows_exact,
    newest.loaded_at,
    extract(epoch from now() - newest.loaded_at)::double precision as freshness_seconds,
    datasets.sla_seconds,
    extract(epoch from now() - newest.loaded_at) <= datasets.sla_seconds as sla_met,
    datasets.last_status,
    datasets.last_run_at,
    datasets.checked_at,
    datasets.last_message,
    datasets.position
from metadata.datasets
left join newest
    on datasets.dataset = newest.dataset;
comment on view metadata.dataset_status is 'freshness is now minus the newest loaded_at, against its SLA';

-- Written after each run, also one with nothing to do: a table grows old while nobody writes it.
create function metadata.refresh_freshness() returns void
language sql
begin atomic
    insert into metadata.sla_monitoring as kept (
        sla_name, dataset, sla_type, target_value, target_operator, unit, actual_value, met,
        breached_since, measured_at
    )
    select
        'freshness',
        status.dataset,
        'freshness',
        status.sla_seconds::numeric,
        '<=',
        'seconds',
        round(status.freshness_seconds::numeric, 3),
        status.sla_met,
        case when not status.sla_met then now() end,
        now()
    from metadata.dataset_status as status
    where status.sla_seconds is not null
    on conflict (sla_name, dataset) do update set
        target_value = excluded.target_value,
        actual_value = excluded.actual_value,
        met = excluded.met,
        breached_since = case
            when excluded.met is not false then null
            else coalesce(kept.breached_since, now())
        end,
        measured_at = excluded.measured_at;
end;

-- After a restore into another cluster transaction numbers start anew: rows that carry numbers of the
-- old one would hide behind the horizon. Visible rows at or above it are old or committed: both may
-- count as consumed from the start, for all datasets are rebuilt after this.
create function metadata.adopt_rows() returns bigint
language plpgsql as $$
declare
    target record;
    horizon bigint := metadata.horizon_xid();
    changed bigint;
    total bigint := 0;
begin
    for target in
        select namespace.nspname, class.relname
        from pg_attribute as attribute
        inner join pg_class as class on attribute.attrelid = class.oid
        inner join pg_namespace as namespace on class.relnamespace = namespace.oid
        where attribute.attname = 'xid' and not attribute.attisdropped
            and class.relkind in ('r', 'p') and not class.relispartition
            and (
                namespace.nspname in ('bronze', 'silver', 'gold', 'platinum')
                or (namespace.nspname = 'metadata' and class.relname in ('segments', 'files'))
            )
    loop
        execute format('update %I.%I set xid = 0 where xid >= $1', target.nspname, target.relname)
        using horizon;
        get diagnostics changed = row_count;
        total := total + changed;
    end loop;
    delete from metadata.deleted_keys;
    delete from metadata.watermarks;
    return total;
end
$$;
