"""Opens PostgreSQL: connections, the pool, migrations. The only module that does.

psycopg's errors become ours here: a lost connection is transient, a refused one is a setting.
Migrations are forward-only numbered files, one transaction each, checked by hash; the migrator
takes an advisory lock, so any number of hubs may start at once.
Not its job: what is read or written (each module brings its own SQL).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from scout_shared.errors import ConfigError, PermanentError, ScoutError, TransientError

Connection = psycopg.Connection[TupleRow]

# "scout" in ASCII: any constant will do, it must only be the same in all hubs.
_MIGRATION_LOCK = 0x73636F7574


def connect(dsn: str, *, application: str, autocommit: bool = False, **options: Any) -> Connection:
    """One connection in UTC.

    Raises:
        ConfigError: the server refuses these credentials or this database.
        TransientError: the server is not reachable now.
    """
    with translated():
        # No prepared statements by name: a transaction pooler (Supavisor, pgbouncer) loses them.
        return psycopg.connect(
            dsn,
            autocommit=autocommit,
            application_name=application,
            connect_timeout=10,
            prepare_threshold=None,
            options="-c timezone=UTC",
            **options,
        )


def pool(dsn: str, *, application: str, size: int) -> ConnectionPool[Connection]:
    """A pool of at most ``size`` connections, closed until ``open()``; checks each before use."""
    return ConnectionPool(
        dsn,
        min_size=1,
        max_size=size,
        open=False,
        check=ConnectionPool.check_connection,
        kwargs={
            "application_name": application,
            "prepare_threshold": None,
            "options": "-c timezone=UTC",
        },
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's exceptions into Scout's, by SQLSTATE class."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> ScoutError:
    """What an error of PostgreSQL means for the caller: retry, mend a setting, or give up."""
    state = error.sqlstate or ""
    message = str(error).strip().replace("\n", " ")
    if state.startswith("28") or state == "3D000":
        return ConfigError(
            f"PostgreSQL refused the connection: {message}", "check SCOUT_DATABASE_DSN"
        )
    if not state and isinstance(error, (psycopg.DataError, psycopg.ProgrammingError)):
        # psycopg itself refused a value (NUL in a text): a retry would refuse it for ever.
        return PermanentError(f"a value cannot be sent to PostgreSQL: {message}")
    # 08 connection, 25006 a standby, 40 rollback, 53 resources, 55P03 lock, 57 shutdown, crash
    # recovery and cancelled by an operator, 58 disk of the server
    if not state or state[:2] in ("08", "40", "53", "57", "58") or state in ("25006", "55P03"):
        return TransientError(f"PostgreSQL is not available: {message}")
    return PermanentError(f"PostgreSQL refused the statement ({state}): {message}")


def migrations() -> list[tuple[str, str, str]]:
    """(name, SQL, sha256) of each migration, in order."""
    folder = resources.files("scout_central") / "migrations"
    found = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".sql"):
            text = entry.read_text("utf-8")
            found.append((entry.name, text, hashlib.sha256(text.encode()).hexdigest()))
    return found


def migrate(dsn: str) -> list[str]:
    """Bring the database to this program's schema; returns the names of what was applied.

    Raises:
        ConfigError: a migration that was applied has another text now, or the database is newer.
    """
    applied = []
    with connect(dsn, application="scout-migrate", autocommit=True) as connection, translated():
        connection.execute("select pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        connection.execute("create schema if not exists scout_migrations")
        connection.execute(
            "create table if not exists scout_migrations.applied ("
            " name text primary key, sha256 text not null,"
            " applied_at timestamptz not null default now())"
        )
        done: dict[str, str] = dict(
            connection.execute("select name, sha256 from scout_migrations.applied").fetchall()
        )
        known = migrations()
        newer = sorted(set(done) - {name for name, _, _ in known})
        if newer:
            raise ConfigError(
                f"the database has migrations that this program does not know: {', '.join(newer)}",
                "run a Scout of at least the version that made them",
            )
        for name, text, sha256 in known:
            if name in done:
                if done[name] != sha256:
                    raise ConfigError(
                        f"migration {name} was applied with another text",
                        "an applied migration must never be edited: restore it, add a new one",
                    )
                continue
            with connection.transaction():
                connection.execute(text.encode())
                connection.execute(
                    "insert into scout_migrations.applied (name, sha256) values (%s, %s)",
                    (name, sha256),
                )
            applied.append(name)
    return applied
