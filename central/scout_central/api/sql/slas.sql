-- Service levels as measured last, of one dataset or all.
select
    sla_name,
    dataset,
    sla_type,
    target_value,
    target_operator,
    unit,
    actual_value,
    met,
    breached_since,
    measured_at
from metadata.sla_monitoring
where %(dataset)s::text is null
    or dataset = %(dataset)s
order by
    dataset,
    sla_name
