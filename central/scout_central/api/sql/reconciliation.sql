-- metadata.reconciliation summed up by total, device or day, a page after
-- (after_device, after_kind, after_day). A negative in_transit is what the hub has received before
-- the device's next hello could report it.
with rows as (
    select
        kind,
        case when %(by)s::text <> 'total' then device_id end as device_id,
        case when %(by)s::text <> 'total' then store_id end as store_id,
        case when %(by)s::text = 'day' then business_date end as business_date,
        produced,
        received,
        landed,
        duplicate,
        quarantined,
        excluded,
        given_up,
        undated,
        in_transit,
        pending,
        remainder
    from metadata.reconciliation
    where
        (%(device_id)s::text is null or device_id = %(device_id)s)
        and (
            %(after_device)s::text is null
            or (device_id, kind) > (%(after_device)s::text, %(after_kind)s::text)
            or (
                %(by)s::text = 'day'
                and device_id = %(after_device)s
                and kind = %(after_kind)s
                and coalesce(business_date, 'infinity') > %(after_day)s::date
            )
        )
)

select
    kind,
    device_id,
    store_id,
    business_date,
    sum(produced)::bigint as produced,
    sum(greatest(-in_transit, 0))::bigint as unreported,
    sum(received)::bigint as received,
    sum(landed)::bigint as landed,
    sum(duplicate)::bigint as duplicate,
    sum(quarantined)::bigint as quarantined,
    sum(excluded)::bigint as excluded,
    sum(given_up)::bigint as given_up,
    sum(undated)::bigint as undated,
    sum(greatest(in_transit, 0))::bigint as in_transit,
    sum(pending)::bigint as pending,
    sum(remainder)::bigint as remainder,
    bool_and(remainder = 0) as adds_up
from rows
group by
    kind,
    device_id,
    store_id,
    business_date
order by
    device_id,
    kind,
    business_date nulls last
limit %(limit)s
