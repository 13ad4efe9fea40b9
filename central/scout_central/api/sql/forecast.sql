-- What the forecasts say about themselves: medians and shares.
select
    count(*) as rows,
    count(*) filter (where is_baseline) as baseline_rows,
    coalesce(array_agg(distinct method), '{}') as methods,
    coalesce(array_agg(distinct backend), '{}') as backends,
    max(as_of) as as_of_date,
    min(training_from) as training_from,
    max(training_to) as training_to,
    percentile_cont(0.5) within group (order by backtest_wape_ratio)::double precision
        as wape_ratio,
    avg(backtest_coverage_ratio)::double precision as coverage_ratio,
    max(loaded_at) as loaded_at
from platinum.demand_forecasting
