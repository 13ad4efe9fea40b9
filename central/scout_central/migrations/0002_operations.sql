-- Metadata that the runs write and the operators read: contracts, runs, quality, errors, SLA, lineage.
create table metadata.data_contracts (
    contract_id text not null,
    version text not null,
    status text not null,
    dataset text not null,
    odcs jsonb not null,
    sha256 text not null,
    loaded_at timestamptz not null default now(),
    primary key (contract_id, version)
);

create table metadata.agent_orchestration (
    run_id uuid primary key default gen_random_uuid(),
    parent_run_id uuid references metadata.agent_orchestration,
    agent text not null,
    task text not null,
    trigger text not null,
    status text not null check (status in ('running', 'completed', 'failed', 'cancelled')),
    attempt int not null default 1,
    worker text not null,
    started_at timestamptz not null default now(),
    heartbeat_at timestamptz not null default now(),
    finished_at timestamptz,
    rows_read bigint,
    rows_written bigint,
    rows_deleted bigint,
    touched_keys bigint,
    mode text check (mode in ('incremental', 'full')),
    from_xid bigint,
    to_xid bigint,
    sql_sha256 text,
    message text
);
create index on metadata.agent_orchestration (started_at desc);
create index on metadata.agent_orchestration (task, started_at desc);
create index on metadata.agent_orchestration (parent_run_id);
comment on column metadata.agent_orchestration.agent is 'worker role: ingest, quality, aggregate, predict, monitor';
comment on column metadata.agent_orchestration.task is 'dataset of a step, or the name of a whole run';

create table metadata.watermarks (
    dataset text not null,
    input text not null,
    xid bigint not null,
    cluster_id text not null,
    sql_sha256 text not null,
    updated_at timestamptz not null default now(),
    primary key (dataset, input)
);
comment on table metadata.watermarks is 'dataset has consumed input below xid, on the cluster named (xids restart after a restore)';

create table metadata.deleted_keys (
    dataset text not null,
    key jsonb not null,
    xid bigint not null default metadata.current_xid()
);
create index on metadata.deleted_keys (dataset, xid);
comment on table metadata.deleted_keys is 'keys that vanished from a table: downstream has no other way to see it';

create table metadata.quality_metrics (
    quality_metric_id bigint generated always as identity primary key,
    run_id uuid,
    dataset text not null,
    layer text not null,
    dimension text not null,
    metric text not null,
    value numeric not null,
    unit text not null,
    threshold numeric,
    threshold_operator text,
    met boolean,
    measured_at timestamptz not null default now()
);
create index on metadata.quality_metrics (dataset, metric, measured_at desc);

create table metadata.error_log (
    error_id bigint generated always as identity primary key,
    run_id uuid,
    component text not null,
    error_type text not null check (error_type in ('schema', 'data', 'connection', 'business_rule', 'system')),
    severity text not null check (severity in ('low', 'medium', 'high', 'critical')),
    code text not null,
    message text not null,
    hint text not null default '',
    dataset text,
    store_id text,
    device_id text,
    affected_records bigint,
    state text not null default 'open' check (state in ('open', 'acknowledged', 'resolved', 'ignored')),
    first_at timestamptz not null default now(),
    last_at timestamptz not null default now(),
    occurrences bigint not null default 1,
    resolved_by text,
    resolved_at timestamptz,
    resolution text
);
create unique index error_log_open on metadata.error_log (component, code, coalesce(dataset, ''), coalesce(device_id, ''))
where state in ('open', 'acknowledged');
comment on index metadata.error_log_open is 'a repeated error is one row with a count';

create table metadata.sla_monitoring (
    sla_name text not null,
    dataset text not null,
    sla_type text not null check (sla_type in ('freshness', 'latency', 'throughput', 'quality', 'availability')),
    target_value numeric not null,
    target_operator text not null,
    unit text not null,
    actual_value numeric,
    met boolean,
    breached_since timestamptz,
    measured_at timestamptz not null default now(),
    primary key (sla_name, dataset)
);

create table metadata.data_lineage (
    event_id bigint generated always as identity primary key,
    run_id uuid not null,
    event_type text not null check (event_type in ('START', 'RUNNING', 'COMPLETE', 'FAIL', 'ABORT', 'OTHER')),
    job text not null,
    event jsonb not null,
    forwarded_at timestamptz,
    created_at timestamptz not null default now()
);
create index on metadata.data_lineage (job, created_at desc);
comment on table metadata.data_lineage is 'OpenLineage run events, and the outbox for forwarding them';

create table metadata.lineage_edges (
    source_dataset text not null,
    source_column text not null,
    target_dataset text not null,
    target_column text not null,
    transformation text not null,
    primary key (target_dataset, target_column, source_dataset, source_column)
);
comment on table metadata.lineage_edges is 'current column lineage, parsed from the SQL; column * is the table itself';
