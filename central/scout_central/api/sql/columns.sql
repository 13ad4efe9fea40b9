-- Columns of one table with type, comment and place in the primary key.
select
    attribute.attname::text as name,
    format_type(attribute.atttypid, attribute.atttypmod) as type,
    coalesce(col_description(class.oid, attribute.attnum), '') as description,
    array_position(key.indkey::smallint[], attribute.attnum) as key_position,
    kind.typcategory::text as category
from pg_class as class
inner join pg_namespace as namespace on class.relnamespace = namespace.oid
inner join pg_attribute as attribute on attribute.attrelid = class.oid
inner join pg_type as kind on attribute.atttypid = kind.oid
left join pg_index as key on key.indrelid = class.oid and key.indisprimary
where namespace.nspname = %(schema)s
    and class.relname = %(table)s
    and class.relkind in ('r', 'p')
    and not class.relispartition
    and attribute.attnum > 0
    and not attribute.attisdropped
order by attribute.attnum
