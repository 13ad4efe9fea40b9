"""Fixtures: a real PostgreSQL with a template database per test, real brokers.

``database`` yields the DSN of a fresh, migrated database; ``broker`` and ``mosquitto_broker`` yield
(host, port). ``processes`` starts programs that are gone when the test ends.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

from scout_central.database import migrate
from scout_central.embedded import EmbeddedPostgres
from tests.harness.process import Process
from tests.harness.waiting import free_port

TEMPLATE = "scout_template"
BROKER = "import sys; from scout_central.broker import run_broker; run_broker(int(sys.argv[1]))"


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int


def require(program: str) -> str:
    """Path of a system program; without it the test is skipped, or fails where CI=true."""
    # Debian keeps servers in sbin, which is not on everybody's PATH.
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        reason = f"{program} is not installed (tests/install_system_packages.sh, as root)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that every account can reach: the server runs as another user than root."""
    path = Path(tempfile.mkdtemp(prefix="scout-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres_server(folder: Path) -> Iterator[EmbeddedPostgres]:
    """One server for the whole run. Without fsync: no test of these cuts the power."""
    settings = {"fsync": "off", "shared_buffers": "128MB", "max_connections": "100"}
    # stop_with_parent: pytest-timeout ends the whole run without finalizers.
    path = folder / "postgres"
    with EmbeddedPostgres(path, settings=settings, stop_with_parent=True) as server:
        yield server


@pytest.fixture(scope="session")
def template_dsn(postgres_server: EmbeddedPostgres) -> str:
    """The migrated database that each test's own is copied from; nobody connects to it again."""
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(TEMPLATE)))
    migrate(_named(postgres_server, TEMPLATE))
    return postgres_server.dsn


@pytest.fixture
def database(postgres_server: EmbeddedPostgres, template_dsn: str) -> Iterator[str]:
    """DSN of a fresh migrated database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(template_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE)
            )
        )
        yield _named(postgres_server, name)
        # force: a test that failed may have left a session open.
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _named(server: EmbeddedPostgres, name: str) -> str:
    return server.dsn.rpartition("/")[0] + f"/{name}"


@pytest.fixture
def processes() -> Iterator[Callable[..., Process]]:
    """Start a program: ``processes([...], env=, cwd=)``; all are gone when the test ends."""
    started: list[Process] = []

    def start(*args: object, **options: object) -> Process:
        process = Process(*args, **options)  # type: ignore[arg-type]  # same signature
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.close()


@pytest.fixture
def broker(processes: Callable[..., Process]) -> Address:
    """The embedded broker (iotcore), in a process of its own, MQTT 3.1.1."""
    port = free_port()
    processes([sys.executable, "-c", BROKER, str(port)]).wait_for_port(port)
    return Address("127.0.0.1", port)


@pytest.fixture
def mosquitto_broker(processes: Callable[..., Process], tmp_path: Path) -> Address:
    """mosquitto, in memory, without accounts."""
    program = require("mosquitto")
    port = free_port()
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    processes([program, "-c", conf]).wait_for_port(port)
    return Address("127.0.0.1", port)
