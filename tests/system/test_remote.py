"""Settings and commands from the hub, with real parts: kept, rolled back, done once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.publish
import pytest

from tests.edge_agent.test_cli import fetch
from tests.harness.process import Process
from tests.harness.waiting import eventually
from tests.system.test_enrolment import ZONE, Chain, chain, edge, write_settings

__all__ = ["chain"]

pytestmark = pytest.mark.system

REMOTE = "[remote]\nhealthy_seconds = 0.5\ntrial_seconds = 2.0\n"


class Device:
    """An enrolled agent that runs, and what the hub knows of it."""

    def __init__(self, chain: Chain, folder: Path, processes: Callable[..., Process]) -> None:
        self.chain = chain
        self.settings = write_settings(folder, REMOTE)
        token = chain.hub("token", "--store", "s1", "--device", "till-1", "--zone", ZONE)["token"]
        address = f"http://127.0.0.1:{chain.api}"
        done = edge("enrol", "--hub", address, "--token", token, "--config", self.settings)
        assert done.returncode == 0, done.stderr
        self._processes = processes
        self.agent = self.start()

    def start(self) -> Process:
        self.agent = self._processes(
            [sys.executable, "-m", "scout_edge.cli", "run", "--config", self.settings],
            env=os.environ,
        )
        return self.agent

    def life(self) -> dict[str, Any]:
        found: dict[str, Any] = self.chain.hub("show", "till-1")
        return found

    def configure(self, *wanted: str) -> int:
        sets = [part for one in wanted for part in ("--set", one)]
        made = self.chain.hub("configure", "till-1", *sets, "--reason", "a test")
        return int(made["version"])

    def decided(self, version: int, state: str) -> dict[str, Any]:
        """The configuration, once the hub knows that it came to that."""

        def look() -> dict[str, Any] | None:
            (found,) = (c for c in self.life()["configurations"] if c["version"] == version)
            return found if found["state"] == state else None

        # Hub and agent wait up to 30 s each between two attempts when the broker was away.
        found = eventually(look, 90, f"version {version} is {state}")
        assert found is not None
        return found

    def answered(self, command_id: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            (found,) = (c for c in self.life()["commands"] if c["command_id"] == command_id)
            return found if found["finished_at"] else None

        found = eventually(look, 30, "the device has answered")
        assert found is not None
        return found


@pytest.fixture
def device(chain: Chain, tmp_path: Path, processes: Callable[..., Process]) -> Device:
    made = Device(chain, tmp_path / "till", processes)
    made.agent.wait_for_output("connection.opened")
    return made


def test_settings_are_kept_rejected_and_rolled_back_and_the_hub_knows(device: Device) -> None:
    pid = device.agent.pid
    good = device.configure("mqtt.heartbeat_seconds=0.25", "log.level=debug")
    device.decided(good, "good")
    assert device.agent.running
    assert device.agent.pid == pid, "systemd sees no end"
    listed = eventually(
        lambda: [d for d in device.chain.hub("list") if d["config_version"] == str(good)], 20
    )
    assert listed[0]["python"].startswith("3.")

    wrong = device.configure("mqtt.heartbeat_seconds=0")
    assert "heartbeat_seconds" in device.decided(wrong, "rejected")["message"]

    # The agent does not come up healthy with these: the broker is gone when it tries.
    device.agent.wait_for_output("config.kept")
    unhealthy = device.configure("log.level=error")
    device.agent.wait_for_output(f"config.tried.*version={unhealthy}")
    device.chain.broker.kill()
    remote = device.settings.with_name("edge.db.remote")
    eventually(lambda: '"rejected"' in remote.read_text(), 20, "it rolled back by itself")
    device.chain.restart_broker()
    assert "no receipts" in device.decided(unhealthy, "rejected")["message"]
    state = json.loads(remote.read_text())
    assert (state["good_version"], state["trial_version"]) == (good, 0)
    assert fetch(device.settings, "/v1/status")["connected"]


def test_an_agent_that_dies_of_new_settings_goes_back_to_the_old_ones(device: Device) -> None:
    remote = device.settings.with_name("edge.db.remote")

    def starts() -> int:
        return int(json.loads(remote.read_text())["starts"]) if remote.exists() else 0

    text = device.settings.read_text().replace("healthy_seconds = 0.5", "healthy_seconds = 60")
    device.settings.write_text(text.replace("trial_seconds = 2.0", "trial_seconds = 90"))
    version = device.configure("log.level=debug")
    for count in (1, 2):
        eventually(lambda: starts() == count, 20, "it was started into them")  # noqa: B023
        device.agent.kill()
        device.start()
    message = device.decided(version, "rejected")["message"]
    assert "ended 2 times" in message
    assert device.agent.running


def test_commands_are_done_once_and_answered_without_secrets(device: Device) -> None:
    fetch(device.settings, "/v1/documents", b'{"type":"t","observed_at":null,"body":{}}')
    drained = device.chain.hub("command", "till-1", "drain")
    assert device.answered(drained["command_id"])["result"]["left_records"] == 0
    asked = device.chain.hub("command", "till-1", "diagnostics")
    answer = device.answered(asked["command_id"])
    assert answer["state"] == "done"
    assert {f["check"] for f in answer["result"]["findings"]} >= {"clock", "broker.connect"}
    kept = json.loads(device.settings.with_name("edge.db.credentials").read_text())
    for secret in (kept["password"], kept["signing_key"]):
        assert secret not in json.dumps(answer)
    restarted = device.chain.hub("command", "till-1", "restart")
    assert device.answered(restarted["command_id"])["state"] == "done"
    device.agent.wait_for_output("connection.opened(?s:.*)connection.opened")
    assert device.agent.output().count("agent.started") == 2


def test_an_order_that_the_hub_did_not_sign_is_not_obeyed(device: Device) -> None:
    """Whoever may publish at the broker has not the key."""
    forged = json.dumps({"v": 1, "d": "till-1", "n": 99, "b": "{}", "h": "0" * 64})
    paho.mqtt.publish.single(
        "edge/1/s1/till-1/dn/cfg",
        forged,
        qos=1,
        port=device.chain.mqtt,
        auth={"username": "hub", "password": "the hub's own"},
    )
    device.agent.wait_for_output("bad_signature")
    assert not device.settings.with_name("edge.db.remote").exists()
