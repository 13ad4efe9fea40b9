"""The tables of a buffer file, and how a file of an older version becomes one of this.

    meta         epoch, next_sequence, watermark, acknowledged ledger version, zone, fence
    tail         accepted, not sealed: one row per commit, records of one kind, no sequence yet;
                 readings stamped by a doubtful clock stand apart, with its span (kind STAMPED)
    segments     sealed: immutable wire bytes under their first sequence, with an outer CRC; a gap
                 stands in the place of segments that were given up, and only ever grows
    idempotency  keys of requests already accepted, so that a retry is answered, not stored again
    ledger       records accepted per business day and kind, cumulative
    sources      where each source goes on reading, committed with the records read before it
    openings     who wrote this file, oldest first: a nonce per process and its first sequence

Not its job: what a transaction does to them (``journal``).
"""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x53434F55  # "SCOU": another program's database is not taken for a buffer
SCHEMA_VERSION = 2
SCHEMA = """
create table meta (key text primary key, value) without rowid;
create table tail (
  id integer primary key,
  kind integer not null,
  accepted_ms integer not null,
  records integer not null,
  crc integer not null,
  body blob not null,
  boot_id blob not null default x'00000000000000000000000000000000',
  clock integer not null default 0,
  mono_ms integer not null default 0
);
create table segments (
  first_sequence integer primary key,
  records integer not null,
  kind integer not null,
  accepted_ms integer not null,
  crc integer not null,
  body blob not null
);
create table idempotency (
  id integer primary key,
  key text not null unique,
  digest blob not null,
  records integer not null,
  accepted_ms integer not null
);
create table ledger (
  day integer not null,
  kind integer not null,
  records integer not null,
  version integer not null,
  primary key (day, kind)
) without rowid;
create table sources (name text primary key, state text not null) without rowid;
create table openings (
  id integer primary key,
  nonce blob not null,
  first_sequence integer not null
);
"""
# What stood before must stay on the pages where it stands: `recovery` finds it there.
_STEPS = {
    1: """
alter table tail add column boot_id blob not null default x'00000000000000000000000000000000';
alter table tail add column clock integer not null default 0;
alter table tail add column mono_ms integer not null default 0;
create table openings (
  id integer primary key,
  nonce blob not null,
  first_sequence integer not null
);
""",
}
"""Version of a file → what makes it the next version; what is in it stays as it is."""


def create(database: sqlite3.Connection) -> None:
    """Make the tables in an empty file."""
    _all(database, SCHEMA)
    database.execute(f"pragma application_id = {APPLICATION_ID}")
    database.execute(f"pragma user_version = {SCHEMA_VERSION}")


def upgrade(database: sqlite3.Connection, version: int) -> None:
    """Bring a file of an older version up to this one. Not an empty file."""
    while version < SCHEMA_VERSION:
        _all(database, _STEPS[version])
        version += 1
        database.execute(f"pragma user_version = {version}")


def _all(database: sqlite3.Connection, statements: str) -> None:
    """One by one, because ``executescript`` would commit first."""
    for statement in statements.split(";"):
        database.execute(statement)
