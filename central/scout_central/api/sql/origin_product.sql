-- The lines of catalogue files behind a product.
select
    'bronze.product_catalog' as bronze_dataset,
    line.record,
    line.loaded_at as received_at,
    null::bigint as sequence,
    null as store_id,
    null as device_id,
    null::int as stream_id,
    null as epoch,
    null::bigint as segment_first_sequence,
    null::int as segment_records,
    null::bigint as segment_crc,
    null as boot_id,
    null::timestamptz as sealed_at,
    files.file_id,
    files.name as file_name,
    encode(files.sha256, 'hex') as file_sha256,
    line.line_number,
    files.uploaded_by
from bronze.product_catalog as line
inner join metadata.files on line.file_id = files.file_id
where metadata.identifier(line.record -> 'product_id') = %(product_id)s
order by
    line.file_id desc,
    line.line_number
limit %(limit)s
