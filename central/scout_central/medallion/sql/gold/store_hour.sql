-- dataset: gold.store_hour
-- grain: one hour (store's clock) of one business day in one store
-- key: [store_id, business_date, local_hour]
-- strategy: keyed
-- touched:
--   silver.transactions_cleaned: >
--     select changed.store_id, changed.business_date, changed.local_hour from changed
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   An hour that a clock change repeats is one row.
select
    sale.store_id,
    sale.business_date,
    sale.local_hour,
    extract(isodow from sale.business_date)::smallint as weekday,
    count(distinct sale.transaction_id) as transactions,
    count(*) as lines,
    sum(sale.quantity) as quantity,
    case when min(sale.currency) = max(sale.currency) then min(sale.currency) end as currency,
    case when min(sale.currency) = max(sale.currency) then sum(sale.sales_value) end as sales_value
from touched
inner join silver.transactions_cleaned as sale
    on
        touched.store_id = sale.store_id
        and touched.business_date = sale.business_date
        and touched.local_hour = sale.local_hour
group by
    sale.store_id,
    sale.business_date,
    sale.local_hour
