-- dataset: silver.transactions_cleaned
-- grain: one line of one sale that passed its contract; the first document of a transaction wins
-- key: [store_id, transaction_id, line_number]
-- strategy: append
-- document: [store_id, transaction_id]
-- outcome_kind: 2
-- contract: silver.transactions_cleaned
-- payload: >
--   case when document_type = 'object' and line_number > 0
--   then (document - 'lines') || jsonb_build_object('line', content) else document end
-- sla_seconds: 3600
-- limits: >
--   Returns (negative quantities) are not modelled: they go to quarantine. A document that is wrong
--   as a whole is one record, counted under the first rule it breaks; its good lines land, if any.
--   Cost: about 20 us per line, linear in the new lines.
with zones as materialized (
    select
        stream.stream_id,
        metadata.known_zone(stream.zone) as zone
    from metadata.streams as stream
),

documents as (
    -- one look into the document per field: it may be compressed, and each look unpacks it
    select
        log.xid,
        log.stream_id,
        log.sequence,
        log.store_id,
        log.observed_at,
        log.received_at,
        log.business_date,
        zones.zone,
        log.document,
        jsonb_typeof(log.document) as document_type,
        log.document -> 'lines' as lines,
        log.document -> 'store_id' as stated_store_id,
        log.document -> 'customer_id' as stated_customer_id,
        log.document -> 'training' as training,
        log.document -> 'week' as stated_week,
        log.document ->> 'currency' as currency,
        metadata.identifier(log.document -> 'transaction_id') as transaction_id,
        log.observed_at at time zone zones.zone as local_time
    from bronze.transaction_logs as log
    left join zones
        on log.stream_id = zones.stream_id
    where
        log.xid >= %(from_xid)s
        and log.xid < %(to_xid)s
    offset 0
),

lines as (
    -- a document without usable lines keeps one empty line: it must be judged as well
    select
        documents.*,
        coalesce(line.line_number, 0)::int as line_number,
        line.content,
        line.content -> 'quantity' as stated_quantity,
        metadata.identifier(line.content -> 'product_id') as product_id,
        metadata.number(line.content -> 'quantity') as exact_quantity,
        metadata.number(line.content -> 'sales_value') as exact_sales_value,
        metadata.number(line.content -> 'retail_disc') as exact_retail_discount,
        metadata.number(line.content -> 'coupon_disc') as exact_coupon_discount,
        metadata.number(line.content -> 'coupon_match_disc') as exact_coupon_match_discount,
        metadata.number(documents.stated_week) as exact_week
    from documents
    left join lateral jsonb_array_elements(
        case when jsonb_typeof(documents.lines) = 'array' then documents.lines else '[]' end
    ) with ordinality as line (content, line_number)
        on true
    offset 0
)

select
    store_id,
    transaction_id,
    line_number,
    product_id,
    metadata.identifier(stated_customer_id) as customer_id,
    observed_at,
    business_date,
    extract(hour from local_time)::smallint as local_hour,
    case when abs(exact_quantity) < 1e11 then round(exact_quantity, 3) end as quantity,
    case when abs(exact_sales_value) < 1e11 then round(exact_sales_value, 2) end as sales_value,
    case
        when abs(exact_retail_discount) < 1e11 then round(exact_retail_discount, 2)
    end as retail_discount,
    case
        when abs(exact_coupon_discount) < 1e11 then round(exact_coupon_discount, 2)
    end as coupon_discount,
    case
        when abs(exact_coupon_match_discount) < 1e11 then round(exact_coupon_match_discount, 2)
    end as coupon_match_discount,
    currency,
    case when exact_week between 0 and 10000 then exact_week::int end as source_week,
    stream_id,
    sequence,
    -- evidence: what the contract's rules and the quarantine look at; not stored
    xid,
    received_at,
    local_time,
    document_type,
    training,
    stated_store_id,
    stated_customer_id,
    stated_week,
    stated_quantity,
    content,
    exact_quantity,
    exact_sales_value,
    exact_retail_discount,
    exact_coupon_discount,
    exact_coupon_match_discount,
    exact_week,
    document
from lines
