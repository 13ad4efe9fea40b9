"""Database, broker and hub as processes: they live over many schedules, killed at any time.

What a service manager does, start again what ended, is done by ``mind``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from scout_central.embedded import EmbeddedPostgres
from scout_demo.ports import HOST, listens
from scout_demo.supervisor import descendants
from tests.harness.process import Process
from tests.harness.waiting import eventually, free_port

DATABASE, BROKER, HUB = "database", "broker", "hub"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>


@dataclass
class Service:
    """A program that is started again whenever it ends."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    log: Path
    process: Process | None = None
    restart_at: float | None = 0.0
    starts: int = 0


class Central:
    """What all devices share.

    Args:
        folder: for data and logs; every account must be able to pass through its parents.
        broker: ``mosquitto`` or ``iotcore``.
    """

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.database_port, self.broker_port, self.api_port = (free_port() for _ in range(3))
        self.broker = broker
        settings = folder / "hub.toml"
        settings.write_text(
            toml(
                {
                    "database": {
                        "data_dir": str(folder / "database"),
                        "port": self.database_port,
                    },
                    "mqtt": {"host": HOST, "port": self.broker_port},
                    # Small batches: receipts with holes, and commits that a kill can part.
                    "ingest": {"batch_segments": 2, "batch_milliseconds": 0},
                    "runner": {"interval_seconds": 3.0},
                    "api": {"host": HOST, "port": self.api_port},
                    "storage": {"directory": str(folder / "uploads")},
                    "log": {"json": True},
                }
            ),
            "utf-8",
        )
        self._hub = (program("scout-hub"), "--config", str(settings))
        logs = folder / "logs"
        logs.mkdir()
        self.services = {
            name: Service(name, command, ready, logs / f"{name}.log")
            for name, command, ready in (
                (DATABASE, (*self._hub, "database"), lambda: listens(self.database_port)),
                (BROKER, self._broker_command(), lambda: listens(self.broker_port)),
                (HUB, (*self._hub, "run"), lambda: listens(self.api_port)),
            )
        }

    def _broker_command(self) -> tuple[str, ...]:
        if self.broker == "iotcore":
            return (*self._hub, "broker")
        conf = self.folder / "mosquitto.conf"
        conf.write_text(
            f"listener {self.broker_port} {HOST}\nallow_anonymous true\npersistence false\n"
        )
        found = mosquitto()
        assert found is not None
        return (found, "-c", str(conf))

    @property
    def dsn(self) -> str:
        """Where the database is."""
        return EmbeddedPostgres(self.folder / "database", port=self.database_port).dsn

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection; raises psycopg.OperationalError while the database is away."""
        return psycopg.connect(self.dsn, connect_timeout=2, autocommit=True)

    def mind(self) -> None:
        """Start again what ended and is due."""
        now = time.monotonic()
        for service in self.services.values():
            if service.process is not None and not service.process.running:
                service.process.close()
                service.process = None
                service.restart_at = service.restart_at or now
            if service.process is None and now >= (service.restart_at or 0.0):
                service.process = Process(service.command, output=service.log)
                service.restart_at = None
                service.starts += 1

    def pids(self) -> set[int]:
        """Of the present processes."""
        return {s.process.pid for s in self.services.values() if s.process is not None}

    def kill(self, name: str, away_seconds: float) -> None:
        """SIGKILL it; it comes back after that time."""
        service = self.services[name]
        if service.process is not None:
            if name == DATABASE:
                self._kill_postmaster()
            service.process.kill()
        service.restart_at = time.monotonic() + away_seconds

    def _kill_postmaster(self) -> None:
        path = self.folder / "database" / "cluster" / "postmaster.pid"
        try:
            os.kill(int(path.read_text().split()[0]), signal.SIGKILL)
        except (OSError, IndexError, ValueError):
            return  # just away anyway

    def ready(self) -> bool:
        """Whether everything serves."""
        return all(
            s.process is not None and s.process.running and s.ready()
            for s in self.services.values()
        )

    def hub(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of ``scout-hub`` with the hub's own settings."""
        command = [*self._hub, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def log_sizes(self) -> dict[str, int]:
        """How long each log is now: a schedule's part begins there."""
        return {
            name: service.log.stat().st_size if service.log.exists() else 0
            for name, service in self.services.items()
        }

    def close(self) -> None:
        """End everything, the database last and in order."""
        for name in (HUB, BROKER, DATABASE):
            process = self.services[name].process
            if process is None:
                continue
            if process.running and name == DATABASE:
                process.terminate(60)
            process.close()


@contextmanager
def running(folder: Path, broker: str) -> Iterator[Central]:
    """A central that serves; nothing of it is left afterwards."""
    central = Central(folder, broker)
    try:

        def served() -> bool:
            central.mind()
            return central.ready()

        eventually(served, 90, f"database, broker and hub serve (logs: {folder / 'logs'})")
        yield central
    finally:
        central.close()


def program(name: str) -> str:
    """Path of one of our own programs."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def mosquitto() -> str | None:
    """Path of mosquitto; Debian keeps servers in sbin, which is not on everybody's PATH."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def adopt_orphans() -> None:
    """Children of what we kill come to us, so that none is left behind unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def reap(ours: Collection[int]) -> None:
    """Collect orphans that ended, as init does; never our own children, which are waited for.

    PostgreSQL takes a killed postmaster that nobody collected for a running one.
    """
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, options)) and ended.si_pid not in ours:
            os.waitpid(ended.si_pid, 0)


def leftovers() -> list[int]:
    """Processes below us that still run, after a moment to end; they are killed. [] is right."""

    def none_left() -> bool:
        reap(())
        return not descendants(os.getpid())

    try:
        eventually(none_left, 10, "all processes have ended")
    except AssertionError:
        left = descendants(os.getpid())
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left
    return []


def toml(tables: dict[str, dict[str, str | int | float | bool]]) -> str:
    lines = []
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items()), ""]
    return "\n".join(lines)
