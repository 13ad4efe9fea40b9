-- Openings: who writes a stream. A buffer file may be copied (a cloned card, a restored image), and the
-- copy has the file's epoch; each process that opens a file for writing draws a nonce, and says in its
-- hello which ones came before it. The hub takes a stream from one line of openings only.
create table metadata.openings (
    stream_id int not null references metadata.streams,
    position int not null,
    nonce bytea not null check (length(nonce) = 8),
    first_sequence bigint not null check (first_sequence > 0),
    accepted_at timestamptz not null default now(),
    primary key (stream_id, position),
    unique (stream_id, nonce)
);
comment on table metadata.openings is 'one row per accepted writer of a stream, in their order';
comment on column metadata.openings.first_sequence is
'all below stood in the buffer file before; all from here on is of this writer, until the next';

alter table metadata.devices
add column previous_hello jsonb,
add column previous_hello_at timestamptz;
comment on column metadata.devices.previous_hello is
'epoch, boot and version of the buffer that spoke last before the present one: when it speaks again, two boxes have one id';

select metadata.secure_tables();
