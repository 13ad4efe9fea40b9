-- Columns that come from a dataset, all the way, with the number of steps.
with recursive walk as (
    select
        source_dataset, source_column, target_dataset, target_column, transformation, 1 as depth
    from metadata.lineage_edges
    where source_dataset = %(dataset)s
    union
    select
        edge.source_dataset, edge.source_column, edge.target_dataset, edge.target_column,
        edge.transformation, walk.depth + 1
    from metadata.lineage_edges as edge
    inner join walk
        on edge.source_dataset = walk.target_dataset
        and edge.source_column = walk.target_column
    where walk.depth < 16
)

select
    source_dataset, source_column, target_dataset, target_column, transformation,
    min(depth) as depth
from walk
group by source_dataset, source_column, target_dataset, target_column, transformation
order by depth, source_dataset, source_column, target_dataset, target_column
