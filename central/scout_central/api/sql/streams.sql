-- Buffer files of one device, newest first.
select
    stream_id,
    encode(epoch, 'hex') as epoch,
    next_sequence,
    case
        when received @> int8range(1, 2)
            then (select upper(held) - 1 from unnest(received) as held where held @> 1::bigint)
        else 0
    end as watermark,
    coalesce((select sum(upper(held) - lower(held)) from unnest(received) as held), 0)::bigint
        as held_records,
    (select count(*) from unnest(received) as held)
    - case when received @> int8range(1, 2) or isempty(received) then 1 else 0 end
    + case when isempty(received) then 1 else 0 end as gaps,
    unsealed_records,
    first_seen_at,
    last_seen_at
from metadata.streams
where device_id = %(device_id)s
order by
    last_seen_at desc,
    stream_id desc
limit 50
