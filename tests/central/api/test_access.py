"""Promise 8 in the database itself: whoever gets past the API still meets these policies."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from scout_central.database import migrate
from scout_central.embedded import EmbeddedPostgres
from scout_shared.errors import PermanentError
from tests.central.api.living import NORTH, SOUTH, LiveHub, hub, seed, serving

__all__ = ["hub"]

SCHEMAS = ["azure_data", "bronze", "silver", "gold", "platinum", "metadata"]
RELATIONS = """
select class.oid::regclass::text as name, class.relkind::text, class.relrowsecurity,
    class.relforcerowsecurity, class.relispartition, class.reloptions,
    has_table_privilege('authenticated', class.oid, 'select') as authenticated_reads,
    has_table_privilege('anon', class.oid, 'select') as anon_reads,
    has_table_privilege('authenticated', class.oid, 'insert, update, delete, truncate') as writes
from pg_class as class
where class.relnamespace = any(%s::regnamespace[]) and class.relkind in ('r', 'p', 'v', 'm')
"""


def relations(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    found = connection.execute(RELATIONS, (SCHEMAS,)).fetchall()
    assert len(found) > 30
    return found


def act_as(connection: psycopg.Connection, role: str, stores: list[str] | None) -> None:
    claims = "" if stores is None else json.dumps({"role": role, "stores": stores})
    connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
    connection.execute(f"set local role {role}".encode())


def test_every_table_has_row_level_security_and_forces_it(hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        connection.execute("select metadata.ensure_partitions(current_date + 40, 1)")
        for name, kind, enabled, forced, is_partition, *_ in relations(connection):
            if kind in ("r", "p"):
                assert enabled, f"{name} has no row level security"
                # a partition that the hub makes later is closed by its lack of grants
                assert forced or is_partition, f"{name} does not force it on its owner"


def test_every_view_reads_with_the_rights_of_its_caller(hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        views = [r for r in relations(connection) if r[1] == "v"]
        assert len(views) >= 3
        for name, _kind, _enabled, _forced, _partition, options, *_ in views:
            assert "security_invoker=true" in (options or []), f"{name} reads as its owner"  # type: ignore[operator]  # text[]


def test_no_function_runs_with_its_owners_rights(hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        definers = connection.execute(
            "select oid::regprocedure::text from pg_proc"
            " where prosecdef and pronamespace = any(%s::regnamespace[])",
            (SCHEMAS,),
        ).fetchall()
    assert definers == []


def test_outsiders_cannot_write_and_strangers_cannot_read(hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        for (
            name,
            _kind,
            _enabled,
            _forced,
            is_partition,
            _options,
            reads,
            anon,
            writes,
        ) in relations(connection):
            assert not writes, f"authenticated may change {name}"
            assert not anon, f"anon may read {name}"
            assert reads is not is_partition, f"{name}: only through its parent"


def test_a_claim_of_one_store_sees_rows_of_that_store_only(hub: LiveHub) -> None:
    seen = 0
    with psycopg.connect(hub.dsn) as connection:
        names = [str(r[0]) for r in relations(connection) if r[6]]
        act_as(connection, "authenticated", [NORTH])
        for name in names:
            for (row,) in connection.execute(f"select t::text from {name} as t".encode()):
                seen += 1
                assert SOUTH not in row, f"{name}: {row}"
    assert seen > 30


@pytest.mark.parametrize(
    "stores", [None, [], ["nowhere"]], ids=["no claim", "no store", "another store"]
)
def test_a_claim_without_a_store_sees_no_row_that_tells_stores_apart(
    hub: LiveHub, stores: list[str] | None
) -> None:
    with psycopg.connect(hub.dsn) as connection:
        names = [str(r[0]) for r in relations(connection) if r[6]]
        act_as(connection, "authenticated", stores)
        for name in names:
            for (row,) in connection.execute(f"select t::text from {name} as t".encode()):
                assert NORTH not in row, f"{name}: {row}"
                assert SOUTH not in row, f"{name}: {row}"


def test_a_claim_of_all_stores_and_the_service_role_see_both(hub: LiveHub) -> None:
    for role, stores in (("authenticated", ["*"]), ("service_role", None)):
        with psycopg.connect(hub.dsn) as connection:
            act_as(connection, role, stores)
            row = connection.execute(
                "select count(distinct store_id) from gold.store_hour"
            ).fetchone()
            assert row == (2,), role


def test_a_claim_of_a_wrong_shape_sees_nothing(hub: LiveHub) -> None:
    for claims in ('{"stores": "*"}', '{"stores": {"*": 1}}', "[]", "{}"):
        with psycopg.connect(hub.dsn) as connection:
            connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            connection.execute("set local role authenticated")
            row = connection.execute("select count(*) from gold.store_hour").fetchone()
            assert row == (0,), claims


def test_a_new_table_is_secured_by_calling_secure_tables_again(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("create table gold.brand_new (store_id text, secret text)")
        connection.execute("create view gold.brand_view as select * from gold.brand_new")
        connection.execute("insert into gold.brand_new values ('north', 'n'), ('south', 's')")
        connection.execute("select metadata.secure_tables()")
        act_as(connection, "authenticated", [NORTH])
        for name in ("brand_new", "brand_view"):
            found = connection.execute(f"select secret from gold.{name}".encode()).fetchall()
            assert found == [("n",)], name


def test_an_owner_without_superuser_migrates_copies_and_serves(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A managed database. FORCE would bind this owner, and COPY is refused to a bound role."""
    name = "owned_by_a_plain_role"
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute("create role plain_owner")
        connection.execute(f"create database {name} owner plain_owner".encode())
        # every session of this database acts as the plain role from its start
        connection.execute(f"alter database {name} set role = plain_owner".encode())
        dsn = f"{postgres_server.dsn.rpartition('/')[0]}/{name}"
        try:
            with pytest.raises(PermanentError, match="may not act as authenticated"):
                migrate(dsn)
            connection.execute("grant authenticated, service_role to plain_owner")
            migrate(dsn)
            seed(dsn)
            with psycopg.connect(dsn) as own:
                assert own.execute("select current_user").fetchone() == ("plain_owner",)
                with own.cursor().copy("copy gold.store_hour from stdin"):
                    pass
                forced = [r[0] for r in relations(own) if r[3]]
                assert forced == []
            with serving(dsn, tmp_path) as live:
                assert len(live.get("/v1/fleet", "viewer-all").json()["devices"]) == 2
                assert len(live.get("/v1/fleet", "viewer-north").json()["devices"]) == 1
        finally:
            connection.execute(f"drop database {name} with (force)".encode())
            connection.execute("drop owned by plain_owner")
            connection.execute("drop role plain_owner")


def test_a_policy_is_evaluated_once_per_statement_not_once_per_row(hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        act_as(connection, "authenticated", [NORTH])
        plan = "\n".join(
            str(line)
            for (line,) in connection.execute("explain (verbose) select * from gold.store_hour")
        )
    assert "InitPlan" in plan
    filters = [line for line in plan.splitlines() if "Filter:" in line]
    assert filters
    assert not any("claimed_stores" in line for line in filters)
