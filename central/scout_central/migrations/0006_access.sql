-- Who may read what: Row Level Security on every table of the medallion and of metadata.
-- `authenticated` reads; its stores come from the claim `stores` in request.jwt.claims ('*': all).
-- `service_role` reads everything; `anon` nothing. Nobody but the owner writes.
-- A migration that makes a table or view calls metadata.secure_tables() again at its end.

-- Stores in the caller's claim; no claim, or one of another shape, is no store at all.
create function metadata.claimed_stores() returns text[]
language sql stable parallel safe
return (
    with claims as (
        select nullif(current_setting('request.jwt.claims', true), '')::jsonb as claim
    ),
    stores as (
        select coalesce(claim -> 'stores', claim -> 'app_metadata' -> 'stores') as listed
        from claims
    )
    select coalesce(array_agg(store_id), '{}')
    from stores
    cross join lateral jsonb_array_elements_text(
        case when jsonb_typeof(listed) = 'array' then listed else '[]'::jsonb end
    ) as store_id
);

create function metadata.sees_all_stores() returns boolean
language sql stable parallel safe
return '*' = any(metadata.claimed_stores());

-- Partitions as in 0001, now closed from their first moment. Reading goes through the parent, whose
-- policies count; a partition has neither grants nor policies of its own.
create or replace function metadata.ensure_partitions(from_day date, days int) returns int
language plpgsql as $$
declare
    parent text;
    day date;
    made int := 0;
    partition_name text;
begin
    foreach parent in array array['device_readings', 'transaction_logs'] loop
        for day in select from_day + i from generate_series(0, days - 1) as i loop
            partition_name := format('%s_%s', parent, to_char(day, 'YYYYMMDD'));
            if to_regclass('bronze.' || partition_name) is null then
                execute format(
                    'create table if not exists bronze.%I partition of bronze.%I for values from (%L) to (%L)',
                    partition_name, parent,
                    day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
                execute format('alter table bronze.%I enable row level security', partition_name);
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;

-- Puts grants and policies on every table and view that has none yet; safe to repeat.
-- FORCE only where the owner bypasses RLS anyway (superuser, or BYPASSRLS as on Supabase): an owner
-- that it did bind could not COPY into bronze any more. It guards what runs with the owner's rights
-- on a caller's behalf; without it, no view may lack security_invoker and no function may be
-- security definer (tests/central/api/test_access.py holds both).
create function metadata.secure_tables() returns int
language plpgsql as $$
declare
    -- Names and targets only: nothing in them tells stores apart.
    common constant text[] := array[
        'metadata.metrics', 'metadata.lineage_edges', 'metadata.data_contracts',
        'metadata.sla_monitoring'
    ];
    schema_name text;
    relation record;
    visible text;
    secured int := 0;
begin
    foreach schema_name in array array[
        'azure_data', 'bronze', 'silver', 'gold', 'platinum', 'metadata'
    ] loop
        execute format('grant usage on schema %I to authenticated, service_role', schema_name);
    end loop;

    for relation in
        select
            class.oid,
            class.relkind,
            class.relispartition,
            class.relrowsecurity,
            class.relforcerowsecurity,
            owner.rolsuper or owner.rolbypassrls as owner_bypasses,
            format('%I.%I', namespace.nspname, class.relname) as name,
            namespace.nspname || '.' || class.relname as plain_name,
            exists (
                select from pg_attribute
                where attrelid = class.oid and attname = 'store_id' and not attisdropped
            ) as has_store,
            exists (
                select from pg_attribute
                where attrelid = class.oid and attname = 'stream_id' and not attisdropped
            ) as has_stream
        from pg_class as class
        inner join pg_namespace as namespace on class.relnamespace = namespace.oid
        inner join pg_roles as owner on class.relowner = owner.oid
        where namespace.nspname in (
            'azure_data', 'bronze', 'silver', 'gold', 'platinum', 'metadata'
        )
            and class.relkind in ('r', 'p', 'v', 'm')
        order by class.oid
    loop
        execute format('revoke all on %s from public, anon, authenticated', relation.name);
        if relation.relkind = 'm' then
            -- A materialized view has no policies: nobody outside may read it.
            continue;
        end if;
        if relation.relkind = 'v' then
            execute format('alter view %s set (security_invoker = true)', relation.name);
            execute format('grant select on %s to authenticated, service_role', relation.name);
            continue;
        end if;

        if not relation.relrowsecurity then
            execute format('alter table %s enable row level security', relation.name);
            secured := secured + 1;
        end if;
        if relation.relforcerowsecurity is distinct from relation.owner_bypasses then
            execute format(
                'alter table %s %s row level security',
                relation.name, case when relation.owner_bypasses then 'force' else 'no force' end
            );
        end if;
        continue when relation.relispartition;

        execute format('grant select on %s to authenticated, service_role', relation.name);
        -- (select …) and array(select …) are evaluated once per statement, not once per row:
        -- 2092 ms became 1.7 ms on 300 k rows.
        visible := case
            when relation.plain_name = any(common) then 'true'
            when relation.has_store then
                '(select metadata.sees_all_stores())'
                ' or store_id = any(array(select unnest(metadata.claimed_stores())))'
            when relation.has_stream then
                '(select metadata.sees_all_stores())'
                ' or stream_id = any(array(select stream_id from metadata.streams))'
            else '(select metadata.sees_all_stores())'
        end;
        if not exists (
            select from pg_policy where polrelid = relation.oid and polname = 'scout_read'
        ) then
            execute format(
                'create policy scout_read on %s for select to authenticated using (%s)',
                relation.name, visible
            );
        end if;
        if not exists (
            select from pg_policy where polrelid = relation.oid and polname = 'scout_service'
        ) then
            execute format(
                'create policy scout_service on %s for select to service_role using (true)',
                relation.name
            );
        end if;
    end loop;
    return secured;
end
$$;

revoke execute on function metadata.secure_tables() from public;
revoke execute on function metadata.ensure_partitions(date, int) from public;

-- Where the records went, per stream, kind and business day. All columns count records.
--   produced + unreported = landed + duplicate + quarantined + excluded + in_transit + pending
--                           + missing - surplus
-- missing at the device: the hub lacks sequences below the receipt that the device confirmed, and
-- it has deleted them; charged to the oldest days in transit. surplus at the door: more received
-- than accepted, though the ledger covers all sequences that the hub knows of. missing at silver:
-- not judged, though every watermark is past the stream's segments.
create view metadata.reconciliation with (security_invoker = true) as
with counted as (
    select
        stream_id,
        kind,
        business_date,
        sum(produced)::bigint as produced,
        sum(received)::bigint as received,
        sum(landed)::bigint as landed,
        sum(duplicate)::bigint as duplicate,
        sum(quarantined)::bigint as quarantined,
        sum(excluded)::bigint as excluded
    from (
        select
            stream_id, kind, business_date, records as produced,
            0 as received, 0 as landed, 0 as duplicate, 0 as quarantined, 0 as excluded
        from metadata.produced_counts
        union all
        select stream_id, kind, business_date, 0, records, 0, 0, 0, 0
        from metadata.received_counts
        union all
        select
            stream_id, kind, business_date, 0, 0,
            case outcome when 'landed' then records else 0 end,
            case outcome when 'duplicate' then records else 0 end,
            case outcome when 'quarantined' then records else 0 end,
            case outcome when 'excluded' then records else 0 end
        from metadata.outcome_counts
    ) as counts
    group by
        stream_id,
        kind,
        business_date
),

consumed as (
    -- below this xid everything of the kind has been judged
    select
        case input when 'bronze.device_readings' then 1 else 2 end as kind,
        min(xid) as xid
    from metadata.watermarks
    where
        input in ('bronze.device_readings', 'bronze.transaction_logs')
        and dataset like 'silver.%'
    group by input
),

streams as (
    select
        stream.stream_id,
        stream.device_id,
        stream.store_id,
        coalesce(ledger.records, 0) >= coalesce(stream.next_sequence, 1) - 1 as ledger_complete,
        greatest(confirmed.acked - coalesce((
            select sum(upper(held) - lower(held))
            from unnest(
                stream.received * int8multirange(int8range(1, confirmed.acked + 1))
            ) as held
        ), 0), 0)::bigint as lost
    from metadata.streams as stream
    inner join metadata.devices as device on stream.device_id = device.device_id
    cross join lateral (
        select case
            when
                device.hello ->> 'epoch' = encode(stream.epoch, 'hex')
                and jsonb_typeof(device.hello -> 'acked') = 'number'
                then (device.hello ->> 'acked')::bigint
            else 0
        end as acked
    ) as confirmed
    left join lateral (
        select sum(records) as records
        from metadata.produced_counts
        where produced_counts.stream_id = stream.stream_id
    ) as ledger on true
),

differences as (
    select
        streams.device_id,
        streams.store_id,
        streams.lost,
        counted.*,
        greatest(counted.produced - counted.received, 0) as behind_door,
        greatest(counted.received - counted.produced, 0) as beyond_ledger,
        counted.received
        - counted.landed - counted.duplicate - counted.quarantined - counted.excluded as unjudged,
        streams.ledger_complete,
        not exists (
            select from metadata.segments
            where
                segments.stream_id = counted.stream_id
                and segments.kind = counted.kind
                and segments.xid >= consumed.xid
        ) and consumed.xid is not null as all_judged
    from counted
    inner join streams on counted.stream_id = streams.stream_id
    left join consumed on counted.kind = consumed.kind
),

charged as (
    select
        *,
        least(behind_door, greatest(lost - (sum(behind_door) over oldest_first - behind_door), 0))
            as lost_here
    from differences
    window oldest_first as (
        partition by stream_id
        order by
            business_date nulls first,
            kind
        rows between unbounded preceding and current row
    )
)

select
    stream_id,
    device_id,
    store_id,
    kind,
    business_date,
    produced,
    case when ledger_complete then 0 else beyond_ledger end as unreported,
    received,
    landed,
    duplicate,
    quarantined,
    excluded,
    behind_door - lost_here as in_transit,
    case when all_judged then 0 else greatest(unjudged, 0) end as pending,
    lost_here + case when all_judged then greatest(unjudged, 0) else 0 end as missing,
    case when ledger_complete then beyond_ledger else 0 end + greatest(-unjudged, 0) as surplus
from charged;

create index on metadata.segments (stream_id, xid);

-- The hub reads on behalf of a caller by `set local role`: its own role must be allowed to.
do $$
begin
    if not (select rolsuper from pg_roles where rolname = current_user) then
        execute format('grant authenticated, service_role to %I', current_user);
    end if;
exception when insufficient_privilege then
    if not pg_has_role(current_user, 'authenticated', 'member') then
        raise exception 'role % may not act as authenticated', current_user
            using hint = 'as an administrator: grant authenticated, service_role to this role';
    end if;
end
$$;

select metadata.secure_tables();
