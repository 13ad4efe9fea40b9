-- Silver: judged, typed, deduplicated. Written by the medallion runner only; one row per key.
-- `xid` has a b-tree here, not a BRIN: rows are updated in place, and the newest row (freshness) is
-- one index step away. Equal xids of a batch share one posting list, so it stays small.

-- Reading JSON without trust. Each gives null instead of an error, so no document can break a batch.
create function metadata.number(value jsonb) returns numeric
language sql immutable parallel safe
return case jsonb_typeof(value)
    when 'number' then value::numeric
    when 'string' then
        case
            when value #>> '{}' ~ '^[+-]?[0-9]{1,15}([.][0-9]{1,15})?$' then (value #>> '{}')::numeric
        end
end;
comment on function metadata.number is 'a JSON number, or a plain decimal in a string; else null';

create function metadata.identifier(value jsonb) returns text
language sql immutable parallel safe
return case
    when jsonb_typeof(value) in ('string', 'number')
        and length(value #>> '{}') <= 64
        and btrim(value #>> '{}') <> '' then value #>> '{}'
end;
comment on function metadata.identifier is
'text of 1 to 64 characters that is not blank; longer ones would not fit into an index';

create function metadata.known(value text) returns text
language sql immutable parallel safe
return case
    when lower(btrim(value)) in ('', 'na', 'n/a', 'nan', 'null', 'unknown') then null
    else left(value, 1000)
end;
comment on function metadata.known is 'null for the words that files use for "not known"';

-- Not parallel safe: catching an error starts a subtransaction, which parallel plans refuse.
create function metadata.known_zone(zone text) returns text
language plpgsql stable parallel unsafe as $$
begin
    perform now() at time zone zone;
    return zone;
exception when invalid_parameter_value then
    return null;
end
$$;
comment on function metadata.known_zone is 'the zone, or null when this server does not know it';

create table silver.transactions_cleaned (
    store_id text not null,
    transaction_id text not null,
    line_number int not null,
    product_id text not null,
    customer_id text,
    observed_at timestamptz not null,
    business_date date not null,
    local_hour smallint not null,
    quantity numeric(15, 3) not null,
    sales_value numeric(14, 2) not null,
    retail_discount numeric(14, 2),
    coupon_discount numeric(14, 2),
    coupon_match_discount numeric(14, 2),
    currency text not null,
    source_week int,
    warnings text[] not null default '{}',
    stream_id int not null,
    sequence bigint not null,
    contract_version text not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (store_id, transaction_id, line_number)
);
comment on column silver.transactions_cleaned.sales_value is 'total of the line, in currency';
comment on column silver.transactions_cleaned.local_hour is 'hour of the day in the store''s zone';
comment on column silver.transactions_cleaned.source_week is 'week number that the source itself gave';
-- One per touched look-up: product-store-day, customer-store-day, store-hour.
create index on silver.transactions_cleaned (product_id, store_id, business_date);
create index on silver.transactions_cleaned (customer_id, store_id, business_date)
where customer_id is not null;
create index on silver.transactions_cleaned (store_id, business_date, local_hour);
create index on silver.transactions_cleaned (xid);

create table silver.product_hierarchy (
    product_id text primary key,
    department text,
    category text,
    product_type text,
    brand text,
    manufacturer_id text,
    package_size text,
    known_from text[] not null,
    completeness_ratio numeric(5, 4) not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid()
);
create index on silver.product_hierarchy (xid);
comment on column silver.product_hierarchy.known_from is 'where the product appears: catalogue, sales';
comment on column silver.product_hierarchy.completeness_ratio is 'share of the six attributes known';

create table silver.customer_profiles (
    customer_id text primary key,
    age_band text,
    income_band text,
    home_ownership text,
    marital_status text,
    household_size text,
    household_composition text,
    children text,
    known_from text[] not null,
    completeness_ratio numeric(5, 4) not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid()
);
create index on silver.customer_profiles (xid);
comment on column silver.customer_profiles.completeness_ratio is 'share of the seven attributes known';

create table silver.device_readings_hourly (
    store_id text not null,
    stream_id int not null,
    metric_id int not null,
    hour timestamptz not null,
    readings bigint not null,
    minimum double precision not null,
    maximum double precision not null,
    total numeric not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (store_id, stream_id, metric_id, hour)
);
create index on silver.device_readings_hourly (xid);
comment on column silver.device_readings_hourly.total is
'exact sum of the decimals: the same in whatever order the readings came';

-- The newest record of a key decides: look-ups by the key that the file's record carries.
create index on bronze.product_catalog (metadata.identifier(record -> 'product_id'));
create index on bronze.demographic_data (metadata.identifier(record -> 'household_id'));
create index on bronze.campaign_data (metadata.identifier(record -> 'household_id'));
-- Freshness of bronze: the newest receipt of a kind.
create index on metadata.segments (kind, received_at desc);
