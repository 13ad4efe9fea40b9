"""MQTT is blocked: the same records go over HTTPS, each once, until MQTT is back."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scout_central.config import Ingest, Mqtt
from scout_central.hub import Supervisor
from scout_central.ingest import Receiver
from scout_edge import config, status
from scout_edge.buffer import Buffer
from scout_edge.config import DeviceSettings, HubSettings, MqttSettings
from scout_edge.doctor import second
from scout_edge.doctor.finding import OK, WARN
from scout_edge.forwarder import Forwarder, stopped
from scout_edge.metrics import AgentMetrics
from tests.central.api.living import LiveHub, empty_hub
from tests.central.api.test_ingest import PASSWORD, admit
from tests.central.segments import FAILING_COMMIT
from tests.edge_agent.records import ZONE, readings, stored
from tests.harness.process import Process
from tests.harness.waiting import free_port

__all__ = ["empty_hub"]

DEVICE = DeviceSettings("pos-1", "store-7", ZONE)
BROKER = "import sys; from scout_central.broker import run_broker; run_broker(int(sys.argv[1]))"


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


@pytest.fixture
def hub(empty_hub: LiveHub) -> LiveHub:
    with psycopg.connect(empty_hub.dsn) as connection:
        admit(connection, DEVICE.id, DEVICE.store, PASSWORD)
    return empty_hub


@contextlib.asynccontextmanager
async def forwarding(
    buffer: Buffer, port: int, url: str, password: str = PASSWORD
) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(
        buffer,
        AgentMetrics(buffer),
        device=DEVICE,
        mqtt=MqttSettings(
            port=port,
            password=password,
            heartbeat_seconds=0.2,
            ack_timeout_seconds=1.0,
            reconnect_cap_seconds=0.2,
            silence_seconds=4.0,
        ),
        hub=HubSettings(url=url, fallback_after_seconds=0.5, retry_mqtt_seconds=1.5),
        seal_seconds=0.05,
    )
    task = asyncio.create_task(forwarder.run(), name="forwarder")
    try:
        yield forwarder
    finally:
        await stopped(task)


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # conditions of threads and processes
            await asyncio.sleep(0.02)


def landed(hub: LiveHub) -> list[int]:
    with psycopg.connect(hub.dsn) as connection:
        found = connection.execute("select sequence from bronze.device_readings order by sequence")
        return [sequence for (sequence,) in found]


async def test_what_mqtt_cannot_carry_lands_once_and_mqtt_is_taken_again(
    buffer: Buffer, hub: LiveHub, processes: Callable[..., Process]
) -> None:
    port = free_port()
    buffer.append_readings(readings(2500))
    async with forwarding(buffer, port, hub.url) as forwarder:
        await until(lambda: forwarder.state.fallback and not forwarder.backlog())
        assert landed(hub) == list(range(1, 2501))
        assert stored(buffer) == []
        assert forwarder.metrics.counters()["fallback_posts"] > 0
        processes([sys.executable, "-c", BROKER, str(port)]).wait_for_port(port)
        receiver = Receiver(hub.dsn, Mqtt(port=port, password=""), Ingest())
        with Supervisor(receiver.tasks()):
            await until(
                lambda: (
                    forwarder.state.connected and forwarder.heard and not forwarder.ways.fallback
                )
            )
            posts = forwarder.metrics.counters()["fallback_posts"]
            buffer.append_readings(readings(500, first=2500))
            await until(lambda: not forwarder.backlog())
        assert forwarder.metrics.counters()["fallback_posts"] == posts
    assert landed(hub) == list(range(1, 3001))


async def test_a_receipt_that_is_lost_on_its_way_is_asked_for_again(
    buffer: Buffer, hub: LiveHub
) -> None:
    cut = 0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request at a time; the first answers are read, and never handed on."""
        nonlocal cut
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", hub.port)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                up_writer.write(head + await reader.readexactly(size))
                answer = await up_reader.readuntil(b"\r\n\r\n")
                size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                answer += await up_reader.readexactly(size)
                if cut < 4:
                    cut += 1
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            up_writer.close()
            writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    buffer.append_readings(readings(600))
    try:
        async with forwarding(buffer, free_port(), f"http://127.0.0.1:{port}") as forwarder:
            await until(lambda: not forwarder.backlog())
    finally:
        server.close()
        await server.wait_closed()
    assert cut == 4
    assert landed(hub) == list(range(1, 601))


async def test_a_commit_that_fails_deletes_nothing(buffer: Buffer, hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        connection.execute(FAILING_COMMIT.encode())
    buffer.append_readings(readings(600))
    async with forwarding(buffer, free_port(), hub.url) as forwarder:
        await until(
            lambda: (
                "status 503" in forwarder.state.last_error or "full" in forwarder.state.last_error
            )
        )
        assert buffer.watermark == 0
        assert sum(1 for _ in stored(buffer)) > 0
        assert landed(hub) == []
        with psycopg.connect(hub.dsn) as connection:
            connection.execute("drop trigger fail on metadata.segments")
        await until(lambda: not forwarder.backlog(), 60)
    assert landed(hub) == list(range(1, 601))


async def test_a_wrong_password_sends_nothing_and_is_said(buffer: Buffer, hub: LiveHub) -> None:
    buffer.append_readings(readings(10))
    async with forwarding(buffer, free_port(), hub.url, "wrong") as forwarder:
        await until(lambda: "not authorised" in forwarder.state.last_error)
        assert any(word in forwarder.state.last_error for word in status.DENIED)
    assert landed(hub) == []
    assert forwarder.backlog()


def test_the_doctor_looks_at_the_second_way_before_it_is_needed(
    tmp_path: Path, hub: LiveHub
) -> None:
    def found(url: str, password: str = PASSWORD) -> tuple[str, str]:
        path = tmp_path / "edge.toml"
        path.write_text(
            f'[device]\nid = "{DEVICE.id}"\nstore = "{DEVICE.store}"\nzone = "{ZONE}"\n'
            f'[buffer]\npath = "{tmp_path}/edge.db"\n[hub]\nurl = "{url}"\n'
        )
        settings = config.load(path, {"SCOUT_MQTT_PASSWORD": password})
        (finding,) = second.hub(settings)
        return finding.level, f"{finding.message} {finding.next_step}"

    level, text = found(hub.url)
    assert (level, "takes this device over HTTPS" in text) == (OK, True), text
    level, text = found(hub.url, "wrong")
    assert (level, "enrol the device again" in text) == (WARN, True), text
    level, text = found(f"http://127.0.0.1:{free_port()}")
    assert (level, "no answer over HTTPS" in text) == (WARN, True), text
    level, text = found(f"{hub.url}/elsewhere")
    assert (level, "answers 404" in text) == (WARN, True), text
