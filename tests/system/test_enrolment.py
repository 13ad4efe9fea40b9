"""A device's life with real parts: token, enrolment, mosquitto's accounts, records, retirement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.edge_agent.test_cli import fetch
from tests.harness.process import Process
from tests.harness.servers import require
from tests.harness.waiting import eventually, free_port

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
ZONE = "Asia/Manila"
HUB_PASSWORD = "the hub's own"


class Chain:
    """A hub, its database, and mosquitto with the accounts that the hub keeps."""

    def __init__(self, folder: Path, dsn: str, processes: Callable[..., Process]) -> None:
        self.folder = folder
        self.dsn = dsn
        self.mqtt, self.api = free_port(), free_port()
        self._processes = processes
        self._settings = folder / "hub.toml"
        self._environ = {
            **os.environ,
            "SCOUT_DATABASE_DSN": dsn,
            "SCOUT_MQTT_PASSWORD": HUB_PASSWORD,
        }
        self.passwords = folder / "scout.passwd"
        self._start_mosquitto()
        self._settings.write_text(
            f'[mqtt]\nport = {self.mqtt}\nusername = "hub"\n'
            f'[broker]\npassword_file = "{self.passwords}"\npid_file = "{folder}/mosquitto.pid"\n'
            '[ingest]\nenrolment = "required"\n[runner]\nenabled = false\n'
            f"[api]\nport = {self.api}\n"
        )
        hub = processes(
            [sys.executable, "-m", "scout_central.cli", "--config", self._settings, "run"],
            env=self._environ,
        )
        hub.wait_for_port(self.api)

    def _start_mosquitto(self) -> None:
        """As deploy/mosquitto has it, without TLS."""
        program = require("mosquitto")
        self.passwords.touch(mode=0o644)
        subprocess.run(
            [require("mosquitto_passwd"), "-b", self.passwords, "hub", HUB_PASSWORD], check=True
        )
        self.passwords.chmod(0o644)
        acl = self.folder / "scout.acl"
        acl.write_text((ROOT / "deploy/mosquitto/scout.acl").read_text())
        acl.chmod(0o644)
        conf = self.folder / "mosquitto.conf"
        conf.write_text(
            f"listener {self.mqtt} 127.0.0.1\nallow_anonymous false\npersistence false\n"
            f"password_file {self.passwords}\nacl_file {acl}\n"
            f"pid_file {self.folder}/mosquitto.pid\nuser root\n"
        )
        self._broker = [program, "-c", conf]
        self.restart_broker()

    def restart_broker(self) -> None:
        """As after a power cut: it remembers nothing."""
        self.broker = self._processes(self._broker)
        self.broker.wait_for_port(self.mqtt)

    def hub(self, *arguments: str) -> Any:
        """What ``scout-hub device …`` prints."""
        command = [sys.executable, "-m", "scout_central.cli", "--config", self._settings, "device"]
        done = subprocess.run(
            [*map(str, command), *arguments, "--json"],
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture
def chain(folder: Path, database: str, processes: Callable[..., Process]) -> Chain:
    place = folder / f"chain-{time.monotonic_ns()}"
    place.mkdir(mode=0o755)
    return Chain(place, database, processes)


def write_settings(folder: Path, device: str = "", mqtt: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "edge.toml"
    path.write_text(
        f'{device}[buffer]\npath = "{folder}/edge.db"\nseal_seconds = 0.05\n'
        f"[mqtt]\n{mqtt}heartbeat_seconds = 0.3\nreconnect_cap_seconds = 0.3\n"
        f"[http]\nport = {free_port()}\n[system]\nenabled = false\n"
    )
    return path


def edge(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scout_edge.cli", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )


def sell(settings: Path, number: int) -> None:
    sale = (
        '{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00",'
        f'"body":{{"receipt":"r-{number}","total":"12.50"}}}}'
    )
    assert fetch(settings, "/v1/documents", sale.encode())["accepted"] == 1


def test_enrol_connect_land_swap_and_be_refused(
    chain: Chain, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    def run(settings: Path) -> Process:
        agent = processes(
            [sys.executable, "-m", "scout_edge.cli", "run", "--config", settings],
            env=os.environ,
        )
        agent.wait_for_output("door.opened")
        return agent

    def enrol(settings: Path, token: str) -> subprocess.CompletedProcess[str]:
        address = f"http://127.0.0.1:{chain.api}"
        return edge("enrol", "--hub", address, "--token", token, "--config", settings)

    def landed(store: str) -> int:
        found = chain.rows(
            f"select count(*) from bronze.transaction_logs where store_id = '{store}'"
        )
        return int(found[0][0])

    made = chain.hub("token", "--store", "s1", "--device", "till-1", "--zone", ZONE)
    first = write_settings(tmp_path / "first")
    done = enrol(first, made["token"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"enrolled as till-1 in store s1 ({ZONE})\n"
    kept = tmp_path / "first/edge.db.credentials"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "first/edge.db.enrolment").exists()
    password = json.loads(kept.read_text())["password"]
    assert password not in chain.passwords.read_text()
    again = enrol(first, made["token"])
    assert (again.returncode, "enrolled already" in again.stderr) == (2, True)

    agent = run(first)
    sell(first, 1)
    eventually(lambda: landed("s1") == 1, 20, "the first record lands")

    # A stranger with a guessed password, and one that speaks for a store of its own choice.
    thief = write_settings(
        tmp_path / "thief",
        f'[device]\nid = "till-1"\nstore = "s1"\nzone = "{ZONE}"\n',
        f"port = {chain.mqtt}\n",
    )
    refused = edge("doctor", "--json", "--config", thief, SCOUT_MQTT_PASSWORD="guessed")
    found = {f["check"]: f for f in json.loads(refused.stdout)["findings"]}
    assert found["broker.connect"]["level"] == "fail", refused.stdout

    # The box is swapped: its successor takes over the store, and it is put out by the broker.
    swap = chain.hub("replace", "till-1", "--token", "--new", "till-2")
    second = write_settings(tmp_path / "second")
    assert enrol(second, swap["token"]).returncode == 0
    states = {d["device_id"]: (d["state"], d["enrolled"]) for d in chain.hub("list")}
    assert states == {"till-1": ("retired", False), "till-2": ("active", True)}
    run(second)
    sell(second, 2)
    eventually(lambda: landed("s1") == 2, 20, "the successor's record lands in the same store")
    eventually(
        lambda: (
            not fetch(first, "/v1/status")["connected"]
            and "uthori" in fetch(first, "/v1/status")["last_error"]
        ),
        20,
        "the retired device is refused",
    )
    sell(first, 3)  # it keeps what it is told, all the same
    assert fetch(first, "/v1/status")["backlog_records"] == 1
    assert agent.running
    # The hub's own account is as it was.
    assert chain.passwords.read_text().splitlines()[0].startswith("hub:")


def test_a_device_nobody_enrolled_keeps_its_data_until_it_is_let_in(
    chain: Chain, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    subprocess.run(
        [require("mosquitto_passwd"), "-b", chain.passwords, "by-hand", "typed"], check=True
    )
    chain.passwords.chmod(0o644)
    chain.broker.signal(signal.SIGHUP)
    settings = write_settings(
        tmp_path / "by-hand",
        f'[device]\nid = "by-hand"\nstore = "s9"\nzone = "{ZONE}"\n',
        f"port = {chain.mqtt}\n",
    )
    agent = processes(
        [sys.executable, "-m", "scout_edge.cli", "run", "--config", settings],
        env={**os.environ, "SCOUT_MQTT_PASSWORD": "typed"},
    )
    agent.wait_for_output("door.opened")
    sell(settings, 1)
    eventually(
        lambda: [d["state"] for d in chain.hub("list", "--state", "pending")] == ["pending"],
        20,
        "the operator sees it",
    )
    eventually(lambda: fetch(settings, "/v1/status")["hub_answers"], 20, "it is told to wait")
    assert chain.rows("select count(*) from metadata.streams") == [(0,)]
    assert fetch(settings, "/v1/status")["backlog_records"] == 1
    chain.hub("activate", "by-hand", "--store", "s1", "--reason", "it stands there, I saw it")
    eventually(
        lambda: chain.rows("select store_id from bronze.transaction_logs") == [("s1",)],
        20,
        "its data lands in the store that the operator said",
    )
    chain.hub("retire", "by-hand", "--reason", "taken away")
    assert "by-hand" not in chain.passwords.read_text()
