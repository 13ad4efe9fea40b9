-- A page of files, newest first, before before_id.
select
    file_id,
    dataset,
    name,
    encode(sha256, 'hex') as sha256,
    bytes,
    rows,
    rejected_rows,
    uploaded_by,
    received_at
from metadata.files
where (%(dataset)s::text is null or dataset = %(dataset)s)
    and (%(before_id)s::bigint is null or file_id < %(before_id)s::bigint)
order by file_id desc
limit %(limit)s
