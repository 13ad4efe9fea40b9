-- A page of quarantine, newest first, before before_id.
select
    quarantine_id,
    stage,
    dataset,
    reason,
    rules,
    message,
    contract_id,
    contract_version,
    run_id::text as run_id,
    store_id,
    device_id,
    stream_id,
    sequence,
    records,
    file_id,
    line_number,
    business_date,
    payload,
    encode(substring(raw from 1 for 4096), 'base64') as raw_base64,
    length(raw) as raw_bytes,
    attempts,
    state,
    quarantined_at
from metadata.quarantine
where (%(dataset)s::text is null or dataset = %(dataset)s)
    and (%(reason)s::text is null or reason = %(reason)s)
    and (%(state)s::text is null or state = %(state)s)
    and (%(before_id)s::bigint is null or quarantine_id < %(before_id)s::bigint)
order by quarantine_id desc
limit %(limit)s
