"""Each program of Scout as the demo runs it: command, settings file, when it serves.

Only what a person could do too: settings files, environment variables, command lines.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scout_demo.folder import Folder, write_atomically
from scout_demo.journey import ZONE
from scout_demo.ports import HOST, listens
from scout_demo.supervisor import Program
from scout_shared.errors import ConfigError

DRAIN_SECONDS = 5.0
"""How long an agent that stops may go on sending; what is left, it still has."""

TOKENS = (("demo", "operator"), ("loader", "uploader"), ("console", "operator"))
"""Names and roles; each token is a file of the data directory that only its owner may read."""

Table = Mapping[str, "str | int | float | bool"]


@dataclass(frozen=True)
class Address:
    """The ports of the programs that there is one of."""

    database: int
    broker: int
    api: int
    console: int

    @property
    def hub_url(self) -> str:
        """Where the hub's API is."""
        return f"http://{HOST}:{self.api}"

    @property
    def console_url(self) -> str:
        """Where the web console is."""
        return f"http://{HOST}:{self.console}"


class Programs:
    """Makes the programs of one data directory."""

    def __init__(self, folder: Folder, address: Address) -> None:
        self._folder = folder
        self._address = address

    def database(self) -> Program:
        """The embedded PostgreSQL."""
        port = self._address.database
        return Program(
            name="database",
            command=self._hub_command("database"),
            ready=lambda: listens(port),
            stop_seconds=70.0,
            death_signal=signal.SIGTERM,
        )

    def broker(self) -> Program:
        """The embedded MQTT broker."""
        port = self._address.broker
        return Program(
            name="broker", command=self._hub_command("broker"), ready=lambda: listens(port)
        )

    def hub(self) -> Program:
        """Ingest, transforms and API; it waits for the database by itself."""
        port = self._address.api
        return Program(
            name="hub",
            command=self._hub_command("run"),
            ready=lambda: _answers(port, "/v1/health"),
        )

    def plan(self) -> tuple[str, ...]:
        """The command that lists the tables which are behind their inputs."""
        return self._hub_command("medallion", "plan", "--json")

    def _hub_command(self, *arguments: str) -> tuple[str, ...]:
        path = self._settings(
            "hub",
            {
                "database": {
                    "data_dir": str(self._folder / "database"),
                    "port": self._address.database,
                },
                "mqtt": {"host": HOST, "port": self._address.broker},
                "runner": {"interval_seconds": 2.0},
                "api": {"host": HOST, "port": self._address.api},
                "storage": {"directory": str(self._folder / "uploads")},
                "log": {"json": True},
            },
            "".join(
                f'\n[[api.tokens]]\nname = "{name}"\nrole = "{role}"\nstores = ["*"]\n'
                f'sha256 = "{sha256(self._folder.secret(name))}"\n'
                for name, role in TOKENS
            ),
        )
        return (_program("scout-hub"), "--config", str(path), *arguments)

    def agent(self, store_id: str, door: int) -> Program:
        """The agent of one store, with its HTTP door on port ``door``."""
        return Program(
            name=f"till-{store_id}",
            command=(
                *(_program("scout-edge"), "run"),
                *("--config", str(self._agent_settings(store_id, door))),
            ),
            ready=lambda: _answers(door, "/v1/status"),
            stop_seconds=DRAIN_SECONDS + 20,
        )

    def drain(self, store_id: str) -> tuple[str, ...]:
        """The command that sends what a stopped agent left behind."""
        path = self._folder / "settings" / f"till-{store_id}.toml"
        return (_program("scout-edge"), "drain", "--config", str(path), "--timeout", "120")

    def console(self) -> Program:
        """The web console."""
        path = self._settings(
            "console",
            {
                "hub": {"url": self._address.hub_url},
                "screen": {"environment": "demo", "zone": ZONE},
                "web": {"host": HOST, "port": self._address.console},
            },
        )
        port = self._address.console
        return Program(
            name="console",
            command=(_program("scout-console"), "--config", str(path), "web"),
            ready=lambda: listens(port),
            environment={"SCOUT_HUB_TOKEN": self._folder.secret("console")},
            death_signal=signal.SIGTERM,
        )

    def _agent_settings(self, store_id: str, door: int) -> Path:
        return self._settings(
            f"till-{store_id}",
            {
                "device": {"id": f"till-{store_id}", "store": store_id, "zone": ZONE},
                "buffer": {
                    "path": str(self._folder / "devices" / f"till-{store_id}.db"),
                    "seal_seconds": 1.0,
                },
                "mqtt": {
                    "host": HOST,
                    "port": self._address.broker,
                    "heartbeat_seconds": 5.0,
                    "ack_timeout_seconds": 2.0,
                    "reconnect_cap_seconds": 5.0,  # one machine: no herd to be kept apart
                    "drain_seconds": DRAIN_SECONDS,
                },
                "http": {"host": HOST, "port": door},
                "system": {"interval_seconds": 5.0},
                "log": {"json": True},
            },
        )

    def _settings(self, name: str, tables: Mapping[str, Table], more: str = "") -> Path:
        path = self._folder / "settings" / f"{name}.toml"
        lines = ["# Written by the demo at each start; edits are lost."]
        for table, values in tables.items():
            lines += ["", f"[{table}]"]
            # A JSON scalar is a TOML scalar.
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        write_atomically(path, ("\n".join(lines) + "\n" + more).encode())
        return path


def sha256(token: str) -> str:
    """What the hub knows of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _program(name: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise ConfigError(f"{name} is not installed: there is no {path}", "say make demo")
    return str(path)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=0.8)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
