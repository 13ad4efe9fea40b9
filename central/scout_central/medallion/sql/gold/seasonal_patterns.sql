-- dataset: gold.seasonal_patterns
-- grain: one hour of one weekday (store's clock) in one store
-- key: [store_id, weekday, local_hour]
-- scope: [store_id, weekday]
-- strategy: keyed
-- touched:
--   gold.store_hour: >
--     select changed.store_id, extract(isodow from changed.business_date)::smallint as weekday
--     from changed
-- guards:
--   lines: >
--     select coalesce(sum(past.lines), 0) from gold.store_hour as past inner join touched
--     on past.store_id = touched.store_id and past.weekday = touched.weekday
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   Averages divide by the days on which the store sold anything. No trend, no holidays: with one
--   year of data they cannot be told apart from the season.
with days as (
    select
        past.store_id,
        past.weekday,
        count(distinct past.business_date) as days_open
    from touched
    inner join gold.store_hour as past
        on
            touched.store_id = past.store_id
            and touched.weekday = past.weekday
    group by
        past.store_id,
        past.weekday
),

hours as (
    select
        past.store_id,
        past.weekday,
        past.local_hour,
        count(*) as days_sold,
        sum(past.transactions)::bigint as transactions,
        sum(past.lines)::bigint as lines,
        case
            when min(past.currency) = max(past.currency) and count(past.currency) = count(*)
                then min(past.currency)
        end as currency,
        sum(past.sales_value) as sales_value,
        min(past.business_date) as first_on,
        max(past.business_date) as last_on
    from touched
    inner join gold.store_hour as past
        on
            touched.store_id = past.store_id
            and touched.weekday = past.weekday
    group by
        past.store_id,
        past.weekday,
        past.local_hour
)

select
    hours.store_id,
    hours.weekday,
    hours.local_hour,
    days.days_open,
    hours.days_sold,
    hours.transactions,
    hours.lines,
    hours.currency,
    case when hours.currency is not null then hours.sales_value end as sales_value,
    round(hours.transactions::numeric / days.days_open, 4) as average_transactions,
    case
        when hours.currency is not null then round(hours.sales_value / days.days_open, 4)
    end as average_sales_value,
    hours.first_on,
    hours.last_on
from hours
inner join days
    on
        hours.store_id = days.store_id
        and hours.weekday = days.weekday
