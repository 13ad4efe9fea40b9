-- Gold and platinum. The partials (per day, hour or month) are small-grain,
-- mergeable, and corrected by touched key; the wide rows are derived from them, not from silver.
-- Sums of money are null where currencies are mixed: nobody has told us a rate.
create table gold.product_store_day (
    store_id text not null,
    product_id text not null,
    business_date date not null,
    transactions bigint not null,
    lines bigint not null,
    quantity numeric(18, 3) not null,
    currency text,
    sales_value numeric(16, 2),
    retail_discount numeric(16, 2),
    coupon_discount numeric(16, 2),
    coupon_match_discount numeric(16, 2),
    warned_lines bigint not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (product_id, business_date, store_id)
);
create index on gold.product_store_day (store_id, business_date);
create index on gold.product_store_day (xid);

create table gold.customer_store_day (
    store_id text not null,
    customer_id text not null,
    business_date date not null,
    transactions bigint not null,
    lines bigint not null,
    quantity numeric(18, 3) not null,
    currency text,
    sales_value numeric(16, 2),
    retail_discount numeric(16, 2),
    coupon_discount numeric(16, 2),
    coupon_match_discount numeric(16, 2),
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (customer_id, store_id, business_date)
);
create index on gold.customer_store_day (xid);

create table gold.store_hour (
    store_id text not null,
    business_date date not null,
    local_hour smallint not null,
    weekday smallint not null,
    transactions bigint not null,
    lines bigint not null,
    quantity numeric(18, 3) not null,
    currency text,
    sales_value numeric(16, 2),
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (store_id, business_date, local_hour)
);
create index on gold.store_hour (store_id, weekday);
create index on gold.store_hour (xid);
comment on column gold.store_hour.weekday is '1 Monday to 7 Sunday';

create table gold.department_store_day (
    store_id text not null,
    department text not null,
    business_date date not null,
    lines bigint not null,
    quantity numeric(18, 3) not null,
    currency text,
    sales_value numeric(16, 2),
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (store_id, business_date, department)
);
create index on gold.department_store_day (xid);
comment on column gold.department_store_day.department is
'''unknown'' for the products whose department no catalogue gives';

create table gold.product_month (
    product_id text not null,
    month date not null,
    first_sold_on date not null,
    last_sold_on date not null,
    days_sold bigint not null,
    stores bigint not null,
    transactions bigint not null,
    lines bigint not null,
    quantity numeric(18, 3) not null,
    currency text,
    sales_value numeric(16, 2),
    retail_discount numeric(16, 2),
    coupon_discount numeric(16, 2),
    coupon_match_discount numeric(16, 2),
    warned_lines bigint not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (product_id, month)
);
create index on gold.product_month (xid);
comment on column gold.product_month.month is 'its first day';

create table gold.customer_360 (
    customer_id text primary key,
    first_seen_on date not null,
    last_seen_on date not null,
    active_days bigint not null,
    stores bigint not null,
    main_store_id text not null,
    transactions bigint not null,
    lines bigint not null,
    quantity numeric(20, 3) not null,
    currency text,
    lifetime_sales_value numeric(18, 2),
    average_transaction_value numeric(18, 2),
    retail_discount numeric(18, 2),
    coupon_discount numeric(18, 2),
    coupon_match_discount numeric(18, 2),
    average_gap_days numeric(10, 2),
    age_band text,
    income_band text,
    home_ownership text,
    marital_status text,
    household_size text,
    household_composition text,
    children text,
    profile_completeness_ratio numeric(5, 4) not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid()
);
create index on gold.customer_360 (xid);
comment on column gold.customer_360.lifetime_sales_value is 'observed so far, not predicted';
comment on column gold.customer_360.average_gap_days is 'between active days; null with a single one';

create table gold.product_performance (
    product_id text primary key,
    department text,
    category text,
    product_type text,
    brand text,
    first_sold_on date not null,
    last_sold_on date not null,
    days_sold bigint not null,
    last_month_stores bigint not null,
    transactions bigint not null,
    lines bigint not null,
    quantity numeric(20, 3) not null,
    currency text,
    sales_value numeric(18, 2),
    retail_discount numeric(18, 2),
    coupon_discount numeric(18, 2),
    coupon_match_discount numeric(18, 2),
    regular_price numeric(18, 4),
    discount_ratio numeric(9, 4),
    warned_lines bigint not null,
    margin_value numeric(18, 2),
    margin_provenance text not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid()
);
create index on gold.product_performance (xid);
comment on column gold.product_performance.last_month_stores is
'stores that sold it in the last month in which any did';
comment on column gold.product_performance.regular_price is
'(sales + retail discount + coupon match discount) / quantity; null without quantity';
comment on column gold.product_performance.margin_value is
'null, margin_provenance unknown: no source gives a cost';

create table gold.seasonal_patterns (
    store_id text not null,
    weekday smallint not null,
    local_hour smallint not null,
    days_open bigint not null,
    days_sold bigint not null,
    transactions bigint not null,
    lines bigint not null,
    currency text,
    sales_value numeric(18, 2),
    average_transactions numeric(14, 4) not null,
    average_sales_value numeric(18, 4),
    first_on date not null,
    last_on date not null,
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (store_id, weekday, local_hour)
);
create index on gold.seasonal_patterns (xid);
comment on column gold.seasonal_patterns.days_open is
'days of this weekday on which the store sold anything: what the averages divide by';

create table platinum.demand_forecasting (
    store_id text not null,
    department text not null,
    forecast_date date not null,
    as_of date not null,
    currency text,
    predicted_sales_value numeric(16, 2) not null,
    lower_sales_value numeric(16, 2) not null,
    upper_sales_value numeric(16, 2) not null,
    interval_ratio numeric(4, 3) not null,
    backend text not null,
    method text not null,
    is_baseline boolean not null,
    model_version text not null,
    training_from date not null,
    training_to date not null,
    backtest_origins int not null,
    backtest_days int not null,
    backtest_wape_ratio numeric(12, 4),
    backtest_bias_ratio numeric(12, 4),
    backtest_coverage_ratio numeric(5, 4),
    loaded_at timestamptz not null default now(),
    xid bigint not null default metadata.current_xid(),
    primary key (store_id, department, forecast_date)
);
create index on platinum.demand_forecasting (xid);
comment on column platinum.demand_forecasting.backtest_wape_ratio is
'sum |forecast - actual| / sum actual over the back-test; null when nothing was sold in it';
comment on column platinum.demand_forecasting.backtest_bias_ratio is
'sum (forecast - actual) / sum actual: positive means too high';
comment on column platinum.demand_forecasting.backtest_coverage_ratio is
'share of the last four weeks inside an interval made from the weeks before them';
