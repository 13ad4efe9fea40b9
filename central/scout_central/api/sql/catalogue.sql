-- Tables of the four layers with size and row estimates of all their partitions.
select
    namespace.nspname || '.' || class.relname as dataset,
    namespace.nspname as layer,
    class.relname as name,
    -- the tree of a table without partitions is empty, not the table itself
    coalesce((
        select sum(pg_total_relation_size(tree.relid))
        from pg_partition_tree(class.oid) as tree
    ), pg_total_relation_size(class.oid))::bigint as bytes,
    coalesce((
        select sum(greatest(part.reltuples::bigint, pg_stat_get_live_tuples(part.oid), 0))
        from pg_partition_tree(class.oid) as tree
        inner join pg_class as part on tree.relid = part.oid
        where tree.isleaf
    ), greatest(class.reltuples::bigint, pg_stat_get_live_tuples(class.oid), 0))::bigint
        as estimated_rows,
    array(
        select attname::text from pg_attribute
        where attrelid = class.oid and attnum > 0 and not attisdropped
    ) as columns,
    counted.rows as counted_rows
from pg_class as class
inner join pg_namespace as namespace on class.relnamespace = namespace.oid
left join metadata.datasets as counted
    on counted.dataset = namespace.nspname || '.' || class.relname
where namespace.nspname = any(array['bronze', 'silver', 'gold', 'platinum'])
    and class.relkind in ('r', 'p')
    and not class.relispartition
order by
    array_position(array['bronze', 'silver', 'gold', 'platinum'], namespace.nspname::text),
    class.relname
