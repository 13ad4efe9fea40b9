-- dataset: gold.product_month
-- grain: one product in one calendar month
-- key: [product_id, month]
-- strategy: keyed
-- touched:
--   gold.product_store_day: >
--     select changed.product_id, date_trunc('month', changed.business_date)::date as month
--     from changed
-- critical: [sales_value]
-- sla_seconds: 3600
-- limits: >
--   A partial: what a product sold in all its history is added up from its months, so that a line of
--   today does not cost the years before it.
select
    sold.product_id,
    touched.month,
    min(sold.business_date) as first_sold_on,
    max(sold.business_date) as last_sold_on,
    count(distinct sold.business_date) as days_sold,
    count(distinct sold.store_id) as stores,
    sum(sold.transactions)::bigint as transactions,
    sum(sold.lines)::bigint as lines,
    sum(sold.quantity) as quantity,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then min(sold.currency)
    end as currency,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then sum(sold.sales_value)
    end as sales_value,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then sum(sold.retail_discount)
    end as retail_discount,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then sum(sold.coupon_discount)
    end as coupon_discount,
    case
        when min(sold.currency) = max(sold.currency) and count(sold.currency) = count(*)
            then sum(sold.coupon_match_discount)
    end as coupon_match_discount,
    sum(sold.warned_lines)::bigint as warned_lines
from touched
inner join gold.product_store_day as sold
    on
        touched.product_id = sold.product_id
        and touched.month <= sold.business_date
        and (touched.month + interval '1 month')::date > sold.business_date
group by
    sold.product_id,
    touched.month
