-- Whether there is such a dataset.
select exists (
    select from pg_class as class
    inner join pg_namespace as namespace on class.relnamespace = namespace.oid
    where namespace.nspname || '.' || class.relname = %(dataset)s
        and namespace.nspname = any(
            array['azure_data', 'bronze', 'silver', 'gold', 'platinum', 'metadata']
        )
        and class.relkind in ('r', 'p', 'v')
        and not class.relispartition
) as found
