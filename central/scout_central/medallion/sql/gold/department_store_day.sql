-- dataset: gold.department_store_day
-- grain: one department in one store on one business day
-- key: [store_id, business_date, department]
-- scope: [store_id, business_date]
-- strategy: keyed
-- touched:
--   gold.product_store_day: select changed.store_id, changed.business_date from changed
--   silver.product_hierarchy: >
--     select sold.store_id, sold.business_date from changed
--     inner join gold.product_store_day as sold on changed.product_id = sold.product_id
-- guards:
--   lines: >
--     select coalesce(sum(sold.lines), 0) from gold.product_store_day as sold inner join touched
--     on sold.store_id = touched.store_id and sold.business_date = touched.business_date
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   A touched store-day is recomputed whole. A product that changes its department touches all days
--   on which it was sold.
select
    sold.store_id,
    coalesce(product.department, 'unknown') as department,
    sold.business_date,
    sum(sold.lines)::bigint as lines,
    sum(sold.quantity) as quantity,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then min(sold.currency)
    end as currency,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then sum(sold.sales_value)
    end as sales_value
from touched
inner join gold.product_store_day as sold
    on
        touched.store_id = sold.store_id
        and touched.business_date = sold.business_date
left join silver.product_hierarchy as product
    on sold.product_id = product.product_id
group by
    sold.store_id,
    coalesce(product.department, 'unknown'),
    sold.business_date
