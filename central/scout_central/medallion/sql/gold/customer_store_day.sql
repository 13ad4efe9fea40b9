-- dataset: gold.customer_store_day
-- grain: one known customer in one store on one business day
-- key: [customer_id, store_id, business_date]
-- strategy: keyed
-- touched:
--   silver.transactions_cleaned: >
--     select changed.store_id, changed.customer_id, changed.business_date from changed
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   Sales without a customer are in no row here: they are in gold.store_hour.
select
    sale.store_id,
    sale.customer_id,
    sale.business_date,
    count(distinct sale.transaction_id) as transactions,
    count(*) as lines,
    sum(sale.quantity) as quantity,
    case when min(sale.currency) = max(sale.currency) then min(sale.currency) end as currency,
    case when min(sale.currency) = max(sale.currency) then sum(sale.sales_value) end as sales_value,
    case
        when min(sale.currency) = max(sale.currency) then sum(sale.retail_discount)
    end as retail_discount,
    case
        when min(sale.currency) = max(sale.currency) then sum(sale.coupon_discount)
    end as coupon_discount,
    case
        when min(sale.currency) = max(sale.currency) then sum(sale.coupon_match_discount)
    end as coupon_match_discount
from touched
inner join silver.transactions_cleaned as sale
    on
        touched.store_id = sale.store_id
        and touched.customer_id = sale.customer_id
        and touched.business_date = sale.business_date
group by
    sale.customer_id,
    sale.store_id,
    sale.business_date
