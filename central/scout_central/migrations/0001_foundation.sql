-- Schemas of the medallion, the roles that outsiders act in, and the ledger of what arrives.
-- Every `xid` column holds the inserting transaction, as bigint because BRIN has no class for xid8;
-- incremental work reads xid >= last and xid < pg_snapshot_xmin(pg_current_snapshot()).
create schema azure_data;
create schema bronze;
create schema silver;
create schema gold;
create schema platinum;
create schema metadata;

-- Roles belong to the server, not to the database: another database may have made them.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
        if not exists (select from pg_roles where rolname = role_name) then
            execute format('create role %I nologin', role_name);
        end if;
    end loop;
end
$$;

create function metadata.current_xid() returns bigint
language sql volatile parallel safe
return pg_current_xact_id()::text::bigint;

-- First transaction that may still be running: every older one has ended, whatever its order.
create function metadata.horizon_xid() returns bigint
language sql stable
return pg_snapshot_xmin(pg_current_snapshot())::text::bigint;

create table metadata.devices (
    device_id text primary key,
    store_id text not null,
    zone text,
    version text,
    state text not null default 'active' check (state in ('pending', 'active', 'maintenance', 'retired')),
    online boolean,
    status_changed_at timestamptz,
    hello jsonb,
    hello_received_at timestamptz,
    heartbeat_seconds double precision,
    clock_skew_seconds double precision,
    first_seen_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now()
);
comment on column metadata.devices.online is 'last status message or will; null: never heard';
comment on column metadata.devices.clock_skew_seconds is 'device clock minus hub clock at the last hello';

create table metadata.streams (
    stream_id int generated always as identity primary key,
    device_id text not null references metadata.devices,
    epoch bytea not null check (length(epoch) = 16),
    store_id text not null,
    zone text,
    received int8multirange not null default '{}',
    next_sequence bigint,
    unsealed_records bigint,
    ledger_version bigint not null default 0,
    first_seen_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    unique (device_id, epoch)
);
comment on table metadata.streams is 'one buffer file of one device; received: half-open ranges of committed sequences';

create table metadata.segments (
    stream_id int not null references metadata.streams,
    first_sequence bigint not null,
    records int not null,
    kind smallint not null,
    outcome text not null check (outcome in ('landed', 'quarantined')),
    bytes int not null,
    crc bigint not null,
    boot_id bytea not null,
    clock smallint not null,
    sealed_at timestamptz,
    sealed_mono_ms bigint not null,
    received_at timestamptz not null,
    xid bigint not null default metadata.current_xid(),
    primary key (stream_id, first_sequence)
);
comment on table metadata.segments is 'lineage of bronze rows: (stream_id, sequence) falls into exactly one segment';

-- Reconciliation, device side: what the device says it accepted. Cumulative per stream.
create table metadata.produced_counts (
    stream_id int not null references metadata.streams,
    kind smallint not null,
    business_date date,
    records bigint not null,
    updated_at timestamptz not null default now(),
    unique nulls not distinct (stream_id, kind, business_date)
);

-- Reconciliation, hub side: what was committed at the door, by the days that the segments carry.
create table metadata.received_counts (
    stream_id int not null references metadata.streams,
    kind smallint not null,
    business_date date,
    records bigint not null,
    unique nulls not distinct (stream_id, kind, business_date)
);

-- Reconciliation, silver side: what became of each received record. No foreign key to streams: the
-- runner writes in repeatable read, where the key's check fails whenever the ingest has touched the
-- stream meanwhile, which under a steady flow is always (silver never landed anything: measured).
create table metadata.outcome_counts (
    stream_id int not null,
    kind smallint not null,
    business_date date,
    outcome text not null check (outcome in ('landed', 'duplicate', 'quarantined', 'excluded')),
    rule text not null default '',
    records bigint not null,
    lines bigint not null default 0,
    unique nulls not distinct (stream_id, kind, business_date, outcome, rule)
);
comment on column metadata.outcome_counts.rule is 'named rule of an exclusion, reason of a quarantine, empty otherwise';

create table metadata.metrics (
    metric_id int generated always as identity primary key,
    name text not null unique
);

create table metadata.files (
    file_id bigint generated always as identity primary key,
    dataset text not null,
    name text not null,
    sha256 bytea not null,
    bytes bigint not null,
    rows bigint not null,
    rejected_rows bigint not null default 0,
    storage_key text not null,
    uploaded_by text not null,
    received_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    unique (dataset, sha256)
);

create table metadata.quarantine (
    quarantine_id bigint generated always as identity primary key,
    stage text not null check (stage in ('ingest', 'upload', 'silver', 'gold', 'platinum')),
    dataset text not null,
    reason text not null,
    rules text[] not null default '{}',
    message text not null default '',
    contract_id text,
    contract_version text,
    run_id uuid,
    store_id text,
    device_id text,
    stream_id int,
    sequence bigint,
    records bigint not null default 1,
    file_id bigint,
    line_number bigint,
    business_date date,
    payload jsonb,
    raw bytea,
    sha256 bytea,
    attempts int not null default 1,
    state text not null default 'open' check (state in ('open', 'replayed', 'discarded')),
    quarantined_at timestamptz not null default now()
);
create index on metadata.quarantine (dataset, reason) where state = 'open';
create index on metadata.quarantine (stream_id, sequence);
create unique index quarantine_raw on metadata.quarantine (stream_id, sequence, sha256) nulls not distinct
where sha256 is not null;
comment on column metadata.quarantine.sha256 is 'of raw, for whole segments: the same bytes are kept once, with a count of attempts';

-- Why jsonb refuses a document, or null: finds the bad ones after a COPY of many failed.
create function metadata.jsonb_error(document bytea) returns text
language plpgsql immutable parallel safe as $$
begin
    perform convert_from(document, 'UTF8')::jsonb;
    return null;
exception
    when data_exception or program_limit_exceeded then
        return sqlerrm;
end
$$;

-- Bronze: everything raw, append only, by day of receipt. No per-row unique index: the stream's
-- multirange already keeps a sequence from being stored twice (494 k rows/s against 244 k).
create table bronze.device_readings (
    received_at timestamptz not null,
    observed_at timestamptz not null,
    sequence bigint not null,
    value double precision not null,
    xid bigint not null default metadata.current_xid(),
    stream_id int not null,
    metric_id int not null,
    store_id text not null
) partition by range (received_at);
create index on bronze.device_readings using brin (xid) with (pages_per_range = 32);

create table bronze.transaction_logs (
    received_at timestamptz not null,
    observed_at timestamptz,
    sequence bigint not null,
    xid bigint not null default metadata.current_xid(),
    stream_id int not null,
    business_date date,
    store_id text not null,
    document jsonb not null
) partition by range (received_at);
create index on bronze.transaction_logs using brin (xid) with (pages_per_range = 32);
comment on column bronze.transaction_logs.observed_at is 'device clock; null: the source gave no time, and none was made up';
comment on column bronze.transaction_logs.business_date is 'day of observed_at in the store''s zone, given by the device';

-- Partitions are made ahead by the hub; see scout_central.database.ensure_partitions.
create function metadata.ensure_partitions(from_day date, days int) returns int
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
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;

-- Files: one row per line, read as strings, under the names that the file uses.
create table bronze.product_catalog (
    file_id bigint not null references metadata.files,
    line_number bigint not null,
    record_type text not null default 'product',
    record jsonb not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (file_id, line_number)
);
create table bronze.demographic_data (like bronze.product_catalog including all);
alter table bronze.demographic_data alter column record_type set default 'household';
create table bronze.campaign_data (like bronze.product_catalog including all);
alter table bronze.campaign_data alter column record_type drop default;
create table bronze.store_locations (like bronze.product_catalog including all);
alter table bronze.store_locations alter column record_type set default 'store';
comment on column bronze.campaign_data.record_type is 'campaign, campaign_household, coupon or redemption';
create index on bronze.product_catalog (xid);
create index on bronze.demographic_data (xid);
create index on bronze.campaign_data (xid);
create index on bronze.store_locations (xid);
