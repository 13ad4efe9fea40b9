-- Identity and life cycle of devices: one-time tokens, credentials, bindings to stores with their
-- history, and what the hub asked of a device. `devices.store_id` is the store of the open binding,
-- changed in the same transaction; a device without a binding is pending.
create table metadata.enrolment_tokens (
    token_id text primary key,
    secret_sha256 bytea not null check (length(secret_sha256) = 32),
    store_id text not null,
    device_id text,
    replaces text references metadata.devices,
    zone text not null,
    created_by text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz,
    used_by text references metadata.devices,
    request_id uuid
);
comment on table metadata.enrolment_tokens is 'each admits one device once; the secret itself is known to its bearer only';
comment on column metadata.enrolment_tokens.request_id is
'made by the device: the same request gets the same answer for some minutes, because answers get lost';

create table metadata.device_bindings (
    binding_id bigint generated always as identity primary key,
    device_id text not null references metadata.devices,
    store_id text not null,
    valid_from timestamptz not null default now(),
    valid_to timestamptz,
    bound_by text not null,
    reason text not null,
    ended_by text,
    end_reason text,
    check (valid_to >= valid_from)
);
create unique index device_bindings_open on metadata.device_bindings (device_id) where valid_to is null;
create index on metadata.device_bindings (store_id);
comment on table metadata.device_bindings is 'which device stood in which store, from when to when; at most one open binding per device';

insert into metadata.device_bindings (device_id, store_id, valid_from, bound_by, reason)
select
    device_id,
    store_id,
    first_seen_at,
    'migration',
    'known before bindings were kept'
from metadata.devices;

create table metadata.device_events (
    event_id bigint generated always as identity primary key,
    device_id text not null,
    store_id text not null,
    event text not null,
    done_by text not null,
    reason text not null default '',
    happened_at timestamptz not null default now()
);
create index on metadata.device_events (device_id, event_id);
comment on table metadata.device_events is 'who did what to a device: token, enrolled, activated, maintenance, retired, replaced, configured, commanded';

create table metadata.device_configurations (
    device_id text not null references metadata.devices,
    store_id text not null,
    version bigint not null check (version > 0),
    body text not null,
    made_by text not null,
    reason text not null default '',
    made_at timestamptz not null default now(),
    sent_at timestamptz,
    state text not null default 'desired' check (state in ('desired', 'trying', 'good', 'rejected', 'superseded')),
    message text not null default '',
    reported_at timestamptz,
    primary key (device_id, version)
);
comment on column metadata.device_configurations.body is 'JSON, byte for byte as it was signed';

create table metadata.device_commands (
    command_id uuid primary key default gen_random_uuid(),
    device_id text not null references metadata.devices,
    store_id text not null,
    command text not null,
    made_by text not null,
    made_at timestamptz not null default now(),
    expires_at timestamptz not null,
    sent_at timestamptz,
    state text not null default 'waiting' check (state in ('waiting', 'sent', 'done', 'failed', 'refused')),
    result jsonb,
    finished_at timestamptz
);
create index on metadata.device_commands (device_id, made_at desc);
create index on metadata.device_commands (made_at) where state in ('waiting', 'sent');

-- Beside the schemas of the medallion: metadata.secure_tables() grants nothing here, so no outsider
-- reads it through any door.
create schema scout_secrets;
revoke all on schema scout_secrets from public;

create table scout_secrets.device_credentials (
    device_id text primary key references metadata.devices,
    password_hash text not null,
    signing_key bytea not null check (length(signing_key) = 32),
    made_at timestamptz not null default now()
);
comment on column scout_secrets.device_credentials.password_hash is 'PBKDF2-SHA512 as in a password file of mosquitto';
comment on column scout_secrets.device_credentials.signing_key is
'made by the device; what is signed with it can only come from this hub or from the device itself';

select metadata.secure_tables();
