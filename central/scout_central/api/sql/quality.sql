-- Newest value of each (dataset, metric); each pair by one step in the index, however many
-- measurements there are.
with recursive pairs as (
    (
        select dataset, metric
        from metadata.quality_metrics
        where %(dataset)s::text is null
            or dataset = %(dataset)s
        order by
            dataset,
            metric
        limit 1
    )
    union all
    select following.dataset, following.metric
    from pairs
    cross join lateral (
        select dataset, metric
        from metadata.quality_metrics as next_metric
        where (next_metric.dataset, next_metric.metric) > (pairs.dataset, pairs.metric)
            and (%(dataset)s::text is null or next_metric.dataset = %(dataset)s)
        order by
            dataset,
            metric
        limit 1
    ) as following
)

select
    newest.dataset,
    newest.layer,
    newest.dimension,
    newest.metric,
    newest.value,
    newest.unit,
    newest.threshold,
    newest.threshold_operator,
    newest.met,
    newest.run_id::text as run_id,
    newest.measured_at
from pairs
cross join lateral (
    select *
    from metadata.quality_metrics as measured
    where measured.dataset = pairs.dataset
        and measured.metric = pairs.metric
    order by
        measured_at desc,
        quality_metric_id desc
    limit 1
) as newest
order by
    newest.dataset,
    newest.metric
