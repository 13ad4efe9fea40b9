-- How many errors are open, the worst severity, and since when.
select
    count(*) as open,
    (array['low', 'medium', 'high', 'critical'])[
        max(array_position(array['low', 'medium', 'high', 'critical'], severity))
    ] as worst,
    min(first_at) as since
from metadata.error_log
where state in ('open', 'acknowledged')
