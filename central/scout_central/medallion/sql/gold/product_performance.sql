-- dataset: gold.product_performance
-- grain: one product that was sold at least once
-- key: [product_id]
-- strategy: keyed
-- touched:
--   gold.product_month: select changed.product_id from changed
--   silver.product_hierarchy: select changed.product_id from changed
-- guards:
--   lines: >
--     select coalesce(sum(sold.lines), 0) from gold.product_month as sold inner join touched
--     on sold.product_id = touched.product_id
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   Margin stays unknown: no source gives a cost. Cost: the months of the touched products.
with totals as (
    select
        sold.product_id,
        min(sold.first_sold_on) as first_sold_on,
        max(sold.last_sold_on) as last_sold_on,
        sum(sold.days_sold)::bigint as days_sold,
        (array_agg(sold.stores order by sold.month desc))[1] as last_month_stores,
        sum(sold.transactions)::bigint as transactions,
        sum(sold.lines)::bigint as lines,
        sum(sold.quantity) as quantity,
        case
            when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
                then min(sold.currency)
        end as currency,
        sum(sold.sales_value) as sales_value,
        sum(sold.retail_discount) as retail_discount,
        sum(sold.coupon_discount) as coupon_discount,
        sum(sold.coupon_match_discount) as coupon_match_discount,
        sum(sold.warned_lines)::bigint as warned_lines
    from touched
    inner join gold.product_month as sold
        on touched.product_id = sold.product_id
    group by sold.product_id
)

select
    totals.product_id,
    product.department,
    product.category,
    product.product_type,
    product.brand,
    totals.first_sold_on,
    totals.last_sold_on,
    totals.days_sold,
    totals.last_month_stores,
    totals.transactions,
    totals.lines,
    totals.quantity,
    totals.currency,
    case when totals.currency is not null then totals.sales_value end as sales_value,
    case when totals.currency is not null then totals.retail_discount end as retail_discount,
    case when totals.currency is not null then totals.coupon_discount end as coupon_discount,
    case
        when totals.currency is not null then totals.coupon_match_discount
    end as coupon_match_discount,
    case
        when totals.currency is not null
            then
                round(
                    (totals.sales_value + totals.retail_discount + totals.coupon_match_discount)
                    / nullif(totals.quantity, 0), 4
                )
    end as regular_price,
    case
        when totals.currency is not null
            then
                round(
                    totals.retail_discount
                    / nullif(totals.sales_value + totals.retail_discount, 0), 4
                )
    end as discount_ratio,
    totals.warned_lines,
    null::numeric as margin_value,
    'unknown' as margin_provenance
from totals
left join silver.product_hierarchy as product
    on totals.product_id = product.product_id
