-- dataset: platinum.demand_forecasting
-- grain: one department of one store on one of the seven days after the store's last business day
-- key: [store_id, department, forecast_date]
-- scope: [store_id]
-- strategy: keyed
-- touched:
--   gold.department_store_day: select changed.store_id from changed
-- critical: [backtest_wape_ratio]
-- sla_seconds: 86400
-- limits: >
--   A baseline, and labelled so: the value of the same weekday one week before. A day on which the
--   store sold anything counts as zero for the departments that sold nothing; a day without any
--   sale is unknown, not zero. No row is the answer (abstention) with less than three weeks of
--   history, with fewer than two back-test weeks, in mixed currencies, or when the day one week
--   before is unknown. The back-test takes the last eight weekly origins; the published interval
--   is the 10 and 90 % quantile of its residuals, its coverage is measured on the last four
--   weeks with the quantiles of the weeks before. Reads 77 days per touched store.
-- planner: {enable_nestloop: 'off'}
-- # The planner takes the steps in between for a handful of rows: 9 minutes against 1 second.
with ends as materialized (
    select
        touched.store_id,
        (
            select max(sold.business_date)
            from gold.department_store_day as sold
            where sold.store_id = touched.store_id
        ) as as_of
    from touched
),

recent as materialized (
    select
        sold.store_id,
        sold.department,
        sold.business_date,
        sold.sales_value,
        sold.currency,
        ends.as_of
    from ends
    cross join lateral (
        select
            past.store_id,
            past.department,
            past.business_date,
            past.sales_value,
            past.currency
        from gold.department_store_day as past
        where
            past.store_id = ends.store_id
            and past.business_date > ends.as_of - 77
        offset 0
    ) as sold
),

trading_days as (
    select distinct
        store_id,
        business_date,
        as_of
    from recent
),

spans as (
    select
        store_id,
        min(business_date) as training_from
    from trading_days
    group by store_id
),

departments as (
    select
        store_id,
        department,
        min(currency) as currency
    from recent
    group by
        store_id,
        department
    having min(currency) = max(currency) and count(currency) = count(*)
),

series as materialized (
    select
        departments.store_id,
        departments.department,
        trading_days.business_date,
        trading_days.as_of,
        coalesce(recent.sales_value, 0) as sales_value
    from departments
    inner join trading_days
        on departments.store_id = trading_days.store_id
    left join recent
        on
            departments.store_id = recent.store_id
            and departments.department = recent.department
            and trading_days.business_date = recent.business_date
),

residuals as materialized (
    select
        actual.store_id,
        actual.department,
        actual.sales_value as actual,
        past.sales_value as forecast,
        (actual.as_of - actual.business_date) / 7 as weeks_ago
    from series as actual
    inner join series as past
        on
            actual.store_id = past.store_id
            and actual.department = past.department
            and actual.business_date - 7 = past.business_date
    where actual.business_date > actual.as_of - 56
),

backtests as (
    select
        store_id,
        department,
        count(distinct weeks_ago)::int as origins,
        count(*)::int as days,
        sum(abs(forecast - actual)) as absolute_error,
        sum(forecast - actual) as error,
        sum(actual) as actual,
        percentile_cont(0.1) within group (order by (actual - forecast)::float8) as low,
        percentile_cont(0.9) within group (order by (actual - forecast)::float8) as high,
        percentile_cont(0.1) within group (
            order by case when weeks_ago >= 4 then (actual - forecast)::float8 end
        ) as earlier_low,
        percentile_cont(0.9) within group (
            order by case when weeks_ago >= 4 then (actual - forecast)::float8 end
        ) as earlier_high
    from residuals
    group by
        store_id,
        department
),

coverage as (
    select
        residuals.store_id,
        residuals.department,
        avg(
            (
                (residuals.actual - residuals.forecast)::float8
                between backtests.earlier_low and backtests.earlier_high
            )::int
        ) as covered
    from residuals
    inner join backtests
        on
            residuals.store_id = backtests.store_id
            and residuals.department = backtests.department
    where residuals.weeks_ago < 4
    group by
        residuals.store_id,
        residuals.department
)

select
    past.store_id,
    past.department,
    past.business_date + 7 as forecast_date,
    past.as_of,
    departments.currency,
    past.sales_value as predicted_sales_value,
    greatest(past.sales_value + round(backtests.low::numeric, 2), 0) as lower_sales_value,
    greatest(past.sales_value + round(backtests.high::numeric, 2), 0) as upper_sales_value,
    0.8 as interval_ratio,
    'hub' as backend,
    'seasonal_naive' as method,
    true as is_baseline,
    'seasonal_naive-1' as model_version,
    spans.training_from,
    past.as_of as training_to,
    backtests.origins as backtest_origins,
    backtests.days as backtest_days,
    round(backtests.absolute_error / nullif(backtests.actual, 0), 4) as backtest_wape_ratio,
    round(backtests.error / nullif(backtests.actual, 0), 4) as backtest_bias_ratio,
    round(coverage.covered, 4) as backtest_coverage_ratio
from series as past
inner join spans
    on past.store_id = spans.store_id
inner join departments
    on
        past.store_id = departments.store_id
        and past.department = departments.department
inner join backtests
    on
        past.store_id = backtests.store_id
        and past.department = backtests.department
left join coverage
    on
        past.store_id = coverage.store_id
        and past.department = coverage.department
where
    past.business_date > past.as_of - 7
    and past.as_of - spans.training_from >= 20
    and backtests.origins >= 2
