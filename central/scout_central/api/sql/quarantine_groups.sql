-- Open quarantine by dataset and reason, largest first.
select
    dataset,
    stage,
    reason,
    count(*) as rows,
    sum(records)::bigint as records,
    min(quarantined_at) as first_at,
    max(quarantined_at) as newest_at
from metadata.quarantine
where state = 'open'
group by
    dataset,
    stage,
    reason
order by
    records desc,
    dataset,
    reason
limit 500
