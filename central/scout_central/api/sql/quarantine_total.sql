-- How much is open.
select
    count(*) as rows,
    coalesce(sum(records), 0)::bigint as records
from metadata.quarantine
where state = 'open'
