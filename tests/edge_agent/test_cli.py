"""The program as a person and a service manager use it: real processes, a real broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scout_edge import agent as agents
from scout_edge.buffer import Buffer
from scout_edge.config import load
from tests.edge_agent.hub import Hub
from tests.edge_agent.records import ZONE, documents, readings
from tests.harness.process import Process
from tests.harness.servers import Address
from tests.harness.waiting import eventually, free_port

SCOUT_EDGE = [sys.executable, "-m", "scout_edge.cli"]


def run(*args: object, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    command = [*SCOUT_EDGE, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a device whose broker is not there."""
    return write(tmp_path, free_port())


def write(folder: Path, mqtt_port: int, http_port: int | None = None) -> Path:
    path = folder / "edge.toml"
    path.write_text(
        f'[device]\nid = "pos-1"\nstore = "store-7"\nzone = "{ZONE}"\n'
        f'[buffer]\npath = "{folder}/data/edge.db"\nseal_seconds = 0.05\n'
        f"[mqtt]\nport = {mqtt_port}\nheartbeat_seconds = 0.5\nreconnect_cap_seconds = 0.5\n"
        f"[http]\nport = {http_port or free_port()}\n[system]\nenabled = false\n"
        "[log]\njson = true\n"
    )
    return path


def fetch(config: Path, path: str, body: bytes | None = None) -> Any:
    port = config.read_text().partition("[http]\nport = ")[2].partition("\n")[0]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    "command", ["", "run", "status", "doctor", "drain", "check-config", "version"]
)
def test_help_teaches(command: str) -> None:
    done = run(*([command] if command else []), "--help")
    assert done.returncode == 0
    assert "usage: scout-edge" in done.stdout
    if not command:
        for word in ("check-config", "drain", "exit codes", "/v1/documents"):
            assert word in done.stdout


def test_the_version_is_told() -> None:
    assert run("version").stdout.startswith("scout-edge ")
    assert run("nonsense").returncode == 2
    assert run().returncode == 2


def test_a_right_settings_file_is_called_right(config: Path) -> None:
    done = run("check-config", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pos-1 in store store-7 (Asia/Manila)" in done.stdout
    shown = json.loads(run("check-config", "--json", "--config", config).stdout)
    assert shown["buffer"]["max_bytes"] == 1 << 30
    assert "password" not in shown["mqtt"]


def test_a_wrong_settings_file_is_explained(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("[mqtt]\nport", "[mqtt]\nprot"))
    for command in ("check-config", "run", "status", "drain"):
        done = run(command, "--config", config)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "unknown key 'prot'" in done.stderr
        assert "did you mean 'port'?" in done.stderr
        assert "Traceback" not in done.stderr
    assert run("check-config", "--config", tmp_path / "none.toml").returncode == 2


def test_status_without_an_agent_reads_the_file(config: Path, tmp_path: Path) -> None:
    done = run("status", "--config", config)
    assert done.returncode == 2
    assert "no buffer file" in done.stderr
    with Buffer(tmp_path / "data" / "edge.db", zone=ZONE) as buffer:
        buffer.append_readings(readings(1500))
    done = run("status", "--json", "--config", config)
    assert done.returncode == 75
    shown = json.loads(done.stdout)
    assert (shown["running"], shown["backlog_records"], shown["device_id"]) == (
        False,
        1500,
        "pos-1",
    )
    text = run("status", "--config", config).stdout
    assert text.startswith("STOPPED: the agent does not run; 1,500 records safe on this device.\n")
    assert "1,500 records" in text


async def test_an_agent_runs_forwards_and_stops(
    broker: Address, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    config = write(tmp_path, broker.port)
    hub = Hub()
    async with hub.running(*broker):
        agent = processes([*SCOUT_EDGE, "run", "--config", config])
        await asyncio.to_thread(agent.wait_for_output, "door.opened")
        sale = b'{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00","body":{"n":1}}'
        answer = await asyncio.to_thread(fetch, config, "/v1/documents", sale)
        assert answer == {"accepted": 1, "duplicate": False}

        def confirmed() -> bool:
            shown = fetch(config, "/v1/status")
            return bool(shown["hub_answers"] and not shown["backlog_records"])

        await asyncio.to_thread(eventually, confirmed)
        done = await asyncio.to_thread(run, "status", "--config", config)
        assert done.returncode == 0
        assert done.stdout.startswith("ALL IS WELL: sending, everything is confirmed by the hub.\n")
        second = await asyncio.to_thread(run, "run", "--config", config)
        assert second.returncode == 2
        assert "in use by another process" in second.stderr
        drained = await asyncio.to_thread(run, "drain", "--config", config)
        assert drained.returncode == 2
        # The last sale before the end is sealed and sent within drain_seconds.
        await asyncio.to_thread(fetch, config, "/v1/documents", sale.replace(b"1}", b"2}"))
        assert await asyncio.to_thread(agent.terminate) == 0
        assert sum(len(s) for s in hub.segments.values()) > 0
        assert [s["online"] for s in hub.statuses] == [True, False]
    assert "agent.stopped" in agent.output()
    assert "Traceback" not in agent.output()
    records = json.loads(run("status", "--json", "--config", config).stdout)
    assert records["backlog_records"] == 0
    assert records["watermark"] == 2


async def test_drain_sends_what_a_stopped_agent_left(broker: Address, tmp_path: Path) -> None:
    config = write(tmp_path, broker.port)
    with Buffer(tmp_path / "data" / "edge.db", zone=ZONE) as buffer:
        buffer.append_documents(documents(buffer, 50))
        buffer.append_readings(readings(2500))
    failed = await asyncio.to_thread(run, "drain", "--timeout", "0.5", "--config", config)
    assert failed.returncode == 75
    assert "2550 records are not confirmed" in failed.stderr
    hub = Hub()
    async with hub.running(*broker):
        done = await asyncio.to_thread(run, "drain", "--config", config)
        assert (done.returncode, done.stdout) == (0, "all records are confirmed by the hub\n")
    again = json.loads(run("status", "--json", "--config", config).stdout)
    assert again["backlog_records"] == 0


async def test_a_drain_ends_at_whatever_moment_it_is_done(broker: Address, tmp_path: Path) -> None:
    """Its end meets the connection in any state; a cancellation that was lost hung it for ever."""
    settings = load(write(tmp_path, broker.port), {})
    async with Hub().running(*broker):
        for number in range(40):
            with Buffer(settings.buffer.path, zone=ZONE) as buffer:
                buffer.append_documents(documents(buffer, number % 2))
            async with asyncio.timeout(20):
                assert await agents.drain(settings, 10) == 0


def test_a_damaged_buffer_stops_the_start_and_is_kept(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "data" / "edge.db"
    path.parent.mkdir()
    path.write_bytes(b"SQLite format 3\0" + b"x" * 9000)
    done = run("run", "--config", config)
    assert done.returncode == 65
    assert str(path) in done.stderr
    assert "kept" in done.stderr
    assert path.read_bytes() == b"SQLite format 3\0" + b"x" * 9000


def test_a_busy_port_stops_the_start_clearly(
    config: Path, processes: Callable[..., Process], tmp_path: Path
) -> None:
    agent = processes([*SCOUT_EDGE, "run", "--config", config])
    agent.wait_for_output("door.opened")
    other = tmp_path / "other"
    other.mkdir()
    port = config.read_text().partition("[http]\nport = ")[2].partition("\n")[0]
    done = run("run", "--config", write(other, free_port(), int(port)))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    # An agent without broker works, and stops at once.
    assert fetch(config, "/v1/status")["connected"] is False
    assert agent.terminate(timeout=10) == 0


def test_an_agent_carries_nothing_in_memory_that_only_other_commands_use() -> None:
    asked = "import sys, scout_edge.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"scout_edge.agent", "aiomqtt"} <= loaded
    unwanted = {"scout_edge.doctor", "importlib.metadata", "zipfile", "pymodbus", "sqlite_utils"}
    assert not loaded & unwanted, "make bench BENCH=footprint says what it costs"
