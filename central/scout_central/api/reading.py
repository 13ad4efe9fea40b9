"""The only way from the API to the database: a transaction in the caller's name.

Each is read only, sees one snapshot, acts as role ``authenticated`` with the caller's claims (so
that Row Level Security applies through this door as through any other), and ends within
STATEMENT_SECONDS per statement. Not its job: uploads, which the hub does with its own rights.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.sql import Composed

from scout_central import database
from scout_central.api.auth import Caller

POOL_SIZE = 8
POOL_SECONDS = 2.0
"""How long a request waits for a connection; a stopped database is noticed in this time."""
STATEMENT_SECONDS = 5
RECONNECT_SECONDS = 4.0

_ACT_AS = """
select
    set_config('role', 'authenticated', true),
    set_config('request.jwt.claims', %(claims)s, true),
    set_config('statement_timeout', %(timeout)s, true)
"""

Row = dict[str, Any]


class Reader:
    """One transaction; every answer made in it is as of the same moment."""

    def __init__(self, connection: database.Connection, caller: Caller) -> None:
        self._connection = connection
        self.caller = caller
        self.as_of = dt.datetime.now(dt.UTC)

    def rows(self, query: bytes, **parameters: Any) -> list[Row]:
        """All rows of ``query`` by column name."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters).fetchall()

    def row(self, query: bytes, **parameters: Any) -> Row | None:
        """The first row of ``query``, if it has one."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters).fetchone()

    def one(self, query: bytes, **parameters: Any) -> Row:
        """The row of a query that always has one."""
        found = self.row(query, **parameters)
        assert found is not None, "a query without group by has a row"
        return found

    def composed(self, query: Composed, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of a query whose identifiers come from the catalogue."""
        return self.rows(query.as_bytes(self._connection), **parameters)

    @contextmanager
    def attempt(self, milliseconds: int) -> Iterator[None]:
        """A savepoint with a time limit of its own: what fails in it leaves the rest standing."""
        with self._connection.transaction():
            self._connection.execute(
                "select set_config('statement_timeout', %s, true)", (f"{milliseconds}ms",)
            )
            yield
            self._connection.execute(
                "select set_config('statement_timeout', %s, true)", (f"{STATEMENT_SECONDS}s",)
            )


class Door:
    """The pool of connections for reading."""

    def __init__(self, dsn: str) -> None:
        # Keepalives: a server that vanished from the network is noticed in about ten seconds.
        self._pool = database.pool(
            make_conninfo(
                dsn,
                connect_timeout=3,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=10_000,
            ),
            application="scout-api",
            size=POOL_SIZE,
        )
        # The pool waits twice as long after each failure, for five minutes unless told: a database
        # that is back must not wait for that. After giving up, the next request starts it afresh.
        self._pool.reconnect_timeout = RECONNECT_SECONDS

    def open(self) -> None:
        """Start connecting, without waiting: the API also answers while the database is away."""
        self._pool.open(wait=False)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(timeout=1.0)

    @contextmanager
    def reader(self, caller: Caller, *, wait_seconds: float = POOL_SECONDS) -> Iterator[Reader]:
        """A transaction in ``caller``'s name.

        Raises:
            PoolTimeout: the database is away, or all connections are in use.
            psycopg.Error: the statement failed; translated at the edge (``failures``).
        """
        with self._pool.connection(timeout=wait_seconds) as connection:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            connection.execute(
                _ACT_AS, {"claims": caller.claims, "timeout": f"{STATEMENT_SECONDS}s"}
            )
            yield Reader(connection, caller)
