-- What a document's privacy block claims and the document does not hold; null: it is kept, or there is
-- no block. The edge enforces it before it stores anything; this is the second look, at whatever came.
-- It never fails, whatever the document is: one that did would stop the step.
create function metadata.has_field(document jsonb, names text[], allowed text default null)
returns boolean
language sql immutable parallel safe
return exists (
    select
    from jsonb_path_query(
        document, '$.** ? (@.type() == "object").keyvalue()', '{}', true
    ) as field
    where field ->> 'key' = any(names)
        and jsonb_typeof(field -> 'value') <> 'null'
        and coalesce(field ->> 'value' !~ allowed, true)
);
comment on function metadata.has_field is
'whether a field of one of these names stands at any depth, not null and not of the allowed form';

create function metadata.privacy_breach(document jsonb) returns text
language sql immutable parallel safe
return case
    when jsonb_typeof(document -> 'privacy') is distinct from 'object' then null
    when (
        document #> '{privacy,noFacialRecognition}' = 'true'
        or document #> '{privacy,noImageProcessing}' = 'true'
    )
    and metadata.has_field(document, '{face_id,faceId,facial_id,facialId}')
        then 'a face beside the claim that there is none'
    when document #> '{privacy,audioStored}' = 'false'
    and metadata.has_field(document, '{audio,audio_url,audioUrl}')
        then 'audio beside the claim that none is stored'
    when coalesce(document #>> '{privacy,anonymizationLevel}', 'none') = 'none' then null
    when metadata.has_field(
        document,
        '{face_id,faceId,facial_id,facialId,customer_id,customerId}',
        '^hmac:[a-z0-9-]{1,16}:[0-9a-f]{40}$'
    )
        then 'a face id or customer key that is not hashed'
    when exists (
        select
        from jsonb_path_query(document, '$.** ? (@.type() == "string")', '{}', true) as said
        where said #>> '{}' ~ '[[:alnum:]_.+-]@[[:alnum:]-]+[.][[:alnum:]]'
            or said #>> '{}'
            ~ '(^|[^[:alnum:]_])([+]?63|0)[ .-]?9[0-9]{2}[ .-]?[0-9]{3}[ .-]?[0-9]{4}($|[^0-9])'
    )
        then 'an e-mail address or mobile number in a text'
end;
comment on function metadata.privacy_breach is
'why a document does not hold its own privacy block; null: it does, or it has none';
