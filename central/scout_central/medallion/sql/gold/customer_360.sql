-- dataset: gold.customer_360
-- grain: one customer who bought at least once
-- key: [customer_id]
-- strategy: keyed
-- touched:
--   gold.customer_store_day: select changed.customer_id from changed
--   silver.customer_profiles: select changed.customer_id from changed
-- guards:
--   lines: >
--     select coalesce(sum(visit.lines), 0) from gold.customer_store_day as visit inner join touched
--     on visit.customer_id = touched.customer_id
-- critical: [lifetime_sales_value]
-- sla_seconds: 3600
-- limits: >
--   Cost: the days of the touched customers, not their lines. The main store is the one with the
--   most transactions; the lowest id where two have the same.
with visits as (
    select
        visit.customer_id,
        visit.store_id,
        min(visit.business_date) as first_seen_on,
        max(visit.business_date) as last_seen_on,
        sum(visit.transactions) as transactions,
        sum(visit.lines) as lines,
        sum(visit.quantity) as quantity,
        case when count(visit.currency) = count(*) then min(visit.currency) end as first_currency,
        case when count(visit.currency) = count(*) then max(visit.currency) end as last_currency,
        sum(visit.sales_value) as sales_value,
        sum(visit.retail_discount) as retail_discount,
        sum(visit.coupon_discount) as coupon_discount,
        sum(visit.coupon_match_discount) as coupon_match_discount
    from touched
    inner join gold.customer_store_day as visit
        on touched.customer_id = visit.customer_id
    group by
        visit.customer_id,
        visit.store_id
),

days as (
    select
        visit.customer_id,
        count(distinct visit.business_date) as active_days
    from touched
    inner join gold.customer_store_day as visit
        on touched.customer_id = visit.customer_id
    group by visit.customer_id
),

totals as (
    select
        customer_id,
        min(first_seen_on) as first_seen_on,
        max(last_seen_on) as last_seen_on,
        count(*) as stores,
        (array_agg(store_id order by transactions desc, store_id asc))[1] as main_store_id,
        sum(transactions)::bigint as transactions,
        sum(lines)::bigint as lines,
        sum(quantity) as quantity,
        case
            when min(first_currency) = max(last_currency) and count(first_currency) = count(*)
                then min(first_currency)
        end as currency,
        sum(sales_value) as sales_value,
        sum(retail_discount) as retail_discount,
        sum(coupon_discount) as coupon_discount,
        sum(coupon_match_discount) as coupon_match_discount
    from visits
    group by customer_id
)

select
    totals.customer_id,
    totals.first_seen_on,
    totals.last_seen_on,
    days.active_days,
    totals.stores,
    totals.main_store_id,
    totals.transactions,
    totals.lines,
    totals.quantity,
    totals.currency,
    case when totals.currency is not null then totals.sales_value end as lifetime_sales_value,
    case
        when totals.currency is not null then round(totals.sales_value / totals.transactions, 2)
    end as average_transaction_value,
    case when totals.currency is not null then totals.retail_discount end as retail_discount,
    case when totals.currency is not null then totals.coupon_discount end as coupon_discount,
    case
        when totals.currency is not null then totals.coupon_match_discount
    end as coupon_match_discount,
    round(
        (totals.last_seen_on - totals.first_seen_on)::numeric / nullif(days.active_days - 1, 0), 2
    ) as average_gap_days,
    profile.age_band,
    profile.income_band,
    profile.home_ownership,
    profile.marital_status,
    profile.household_size,
    profile.household_composition,
    profile.children,
    coalesce(profile.completeness_ratio, 0) as profile_completeness_ratio
from totals
inner join days
    on totals.customer_id = days.customer_id
left join silver.customer_profiles as profile
    on totals.customer_id = profile.customer_id
