-- dataset: silver.product_hierarchy
-- grain: one product that a catalogue lists or a store sold
-- key: [product_id]
-- strategy: keyed
-- touched:
--   bronze.product_catalog: >
--     select metadata.identifier(changed.record -> 'product_id') as product_id from changed
--   silver.transactions_cleaned: select changed.product_id from changed
-- critical: [department, category]
-- sla_seconds: 3024000
-- limits: >
--   The newest record of a product decides, whole; a product that a later file leaves out stays
--   (4,836 sold lines of Complete Journey have one of 17 products that no catalogue has: unknown).
with described as (
    -- lateral: one index look-up per touched product; without a limit on the newest record,
    -- for which an unanalysed file was read backwards once per key
    select
        touched.product_id,
        metadata.known(listed.record ->> 'department') as department,
        metadata.known(listed.record ->> 'product_category') as category,
        metadata.known(listed.record ->> 'product_type') as product_type,
        metadata.known(listed.record ->> 'brand') as brand,
        metadata.known(listed.record ->> 'manufacturer_id') as manufacturer_id,
        metadata.known(listed.record ->> 'package_size') as package_size,
        listed.record is not null as in_catalogue,
        sold.product_id is not null as in_sales
    from touched
    left join lateral (
        select
            (array_agg(entry.record order by entry.file_id desc, entry.line_number desc))[1]
            as record
        from bronze.product_catalog as entry
        where metadata.identifier(entry.record -> 'product_id') = touched.product_id
    ) as listed
        on true
    left join lateral (
        select sale.product_id
        from silver.transactions_cleaned as sale
        where sale.product_id = touched.product_id
        limit 1
    ) as sold
        on true
)

select
    product_id,
    department,
    category,
    product_type,
    brand,
    manufacturer_id,
    package_size,
    array_remove(
        array[
            case when in_catalogue then 'bronze.product_catalog' end,
            case when in_sales then 'silver.transactions_cleaned' end
        ],
        null
    ) as known_from,
    round(
        num_nonnulls(department, category, product_type, brand, manufacturer_id, package_size) / 6.0, 4
    ) as completeness_ratio
from described
where in_catalogue or in_sales
