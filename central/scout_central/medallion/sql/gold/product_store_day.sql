-- dataset: gold.product_store_day
-- grain: one product in one store on one business day
-- key: [product_id, business_date, store_id]
-- strategy: keyed
-- touched:
--   silver.transactions_cleaned: >
--     select changed.store_id, changed.product_id, changed.business_date from changed
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   A sparse assortment hardly shrinks here (Complete Journey: 1,469,307 lines, 1,441,213 rows); a
--   sari-sari store's few hundred products do.
select
    sale.store_id,
    sale.product_id,
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
    end as coupon_match_discount,
    count(*) filter (where sale.warnings <> '{}') as warned_lines
from touched
inner join silver.transactions_cleaned as sale
    on
        touched.store_id = sale.store_id
        and touched.product_id = sale.product_id
        and touched.business_date = sale.business_date
group by
    sale.product_id,
    sale.store_id,
    sale.business_date
