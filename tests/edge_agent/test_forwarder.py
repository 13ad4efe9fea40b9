from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import sqlite3
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from scout_edge.allowance import Allowance
from scout_edge.buffer import Buffer, StoredSegment
from scout_edge.config import DeviceSettings, MqttSettings
from scout_edge.forwarder import Forwarder, stopped, tls_context
from scout_edge.metrics import AgentMetrics
from scout_edge.schedule import Schedule
from scout_shared import wire
from scout_shared.errors import ConfigError
from scout_shared.wire import DOCUMENTS
from tests.edge_agent.hub import Hub
from tests.edge_agent.records import ZONE, contents, documents, readings, stored
from tests.harness.process import Process
from tests.harness.servers import Address, require
from tests.harness.tls import Authority
from tests.harness.waiting import free_port

DEVICE = DeviceSettings("pos-1", "store-7", ZONE)
BROKER = (
    "import sys; from scout_central.broker import run_broker;"
    " run_broker(int(sys.argv[1]), version5_port=int(sys.argv[2]) or None)"
)


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


def settings(address: Address, **changed: object) -> MqttSettings:
    quick = MqttSettings(
        host=address.host,
        port=address.port,
        heartbeat_seconds=1.0,
        ack_timeout_seconds=0.3,
        reconnect_cap_seconds=0.3,
    )
    return dataclasses.replace(quick, **changed)  # type: ignore[arg-type]  # fields by name


@contextlib.asynccontextmanager
async def forwarding(
    buffer: Buffer, mqtt: MqttSettings, seal_seconds: float = 0.05
) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(
        buffer, AgentMetrics(buffer), device=DEVICE, mqtt=mqtt, seal_seconds=seal_seconds
    )
    task = asyncio.create_task(forwarder.run(), name="forwarder")
    try:
        yield forwarder
    finally:
        await stopped(task)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # conditions of threads and of the broker
            await asyncio.sleep(0.01)


def at_hub(hub: Hub) -> tuple[Counter[wire.Reading], list[wire.Document]]:
    segments = []
    for first in sorted(hub.segments):
        header = wire.decode_header(hub.segments[first])
        body = hub.segments[first]
        segments.append(StoredSegment(first, header.records, header.kind, body))
    return contents(segments)


async def test_everything_arrives_and_is_deleted_after_its_receipt(
    buffer: Buffer, broker: Address
) -> None:
    hub = Hub()
    buffer.append_readings(readings(20_500))
    docs = documents(buffer, 30)
    async with hub.running(*broker), forwarding(buffer, settings(broker)) as forwarder:
        await until(lambda: not forwarder.backlog())
        buffer.append_documents(docs)  # while connected
        await until(lambda: not forwarder.backlog())
        await until(lambda: not buffer.status().ledger)
    assert at_hub(hub) == (Counter(readings(20_500)), docs)
    assert stored(buffer) == []
    assert hub.arrivals == len(hub.segments), "with a hub that answers nothing is sent twice"


@pytest.mark.parametrize("seed", [1, 2])
async def test_lost_repeated_and_reordered_receipts_lose_and_double_nothing(
    buffer: Buffer, broker: Address, seed: int
) -> None:
    hub = Hub(seed=seed, loss_ratio=0.3, repeat_ratio=0.5, credit=4)
    rng = random.Random(seed)
    made: list[wire.Document] = []
    async with hub.running(*broker), forwarding(buffer, settings(broker)) as forwarder:

        async def produce() -> None:
            for i in range(30):
                batch = documents(buffer, rng.choice([1, 20, 300]), first=10_000 * i)
                await asyncio.to_thread(buffer.append_documents, batch)
                made.extend(batch)

        def nothing_is_deleted_before_its_receipt() -> bool:
            with contextlib.closing(sqlite3.connect(buffer.path)) as file:
                kept = {first for (first,) in file.execute("select first_sequence from segments")}
            assert buffer.watermark <= hub.told
            # What no watermark covers is still in the file, also what a range covers.
            for first, body in hub.segments.items():
                assert wire.decode_header(body).last_sequence <= hub.told or first in kept
            return producing.done() and not forwarder.backlog()

        producing = asyncio.create_task(produce())
        await until(nothing_is_deleted_before_its_receipt, 60)
        await producing
    assert at_hub(hub)[1] == made
    assert buffer.watermark == len(made)


async def test_a_metered_line_carries_sales_when_its_bytes_are_used_up(
    buffer: Buffer, broker: Address
) -> None:
    hub = Hub()
    mqtt = settings(broker, heartbeat_seconds=60.0)
    allowance = Allowance(buffer, 30_000)
    buffer.append_readings(readings(200_000))
    forwarder = Forwarder(
        buffer,
        AgentMetrics(buffer),
        device=DEVICE,
        mqtt=mqtt,
        seal_seconds=0.05,
        allowance=allowance,
    )
    async with hub.running(*broker):
        task = asyncio.create_task(forwarder.run(), name="forwarder")
        await until(lambda: forwarder.saving() and not forwarder.state.in_flight)
        await until(lambda: len(hub.hellos) == 2)  # the second says why the backlog stands
        arrived = hub.arrivals
        assert 0 < arrived < len(stored(buffer, buffer.watermark)), "the window, and no more"
        docs = documents(buffer, 3)
        for document in docs:
            buffer.append_documents([document])
            buffer.append_readings(readings(10))
            await until(lambda: hub.segments and buffer.unsealed_seconds((DOCUMENTS,)) == 0)
            await asyncio.sleep(0.1)
        await until(lambda: len(at_hub(hub)[1]) == 3)
        assert hub.arrivals == arrived + 3
        assert buffer.status().unsealed_records == 30, "readings wait for company"
        assert allowance.used > 30_000
        # A new day begins.
        allowance.used = 0
        allowance.bytes_per_day = 10_000_000
        await until(lambda: not forwarder.backlog())
        await stopped(task)
    assert at_hub(hub)[1] == docs
    assert at_hub(hub)[0] == Counter(readings(200_000) + 3 * readings(10))
    assert stored(buffer) == []


async def test_a_person_who_drains_goes_beyond_the_budget(buffer: Buffer, broker: Address) -> None:
    allowance = Allowance(buffer, 1000)
    allowance.took(1000)
    buffer.append_readings(readings(5000))
    forwarder = Forwarder(
        buffer,
        AgentMetrics(buffer),
        device=DEVICE,
        mqtt=settings(broker),
        seal_seconds=0.05,
        allowance=allowance,
    )
    async with Hub().running(*broker):
        task = asyncio.create_task(forwarder.run(), name="forwarder")
        assert not await forwarder.drain(1.0, metered=True)
        assert await forwarder.drain(20.0)
        assert forwarder.saving(), "it holds again"
        await stopped(task)


async def test_receipts_that_come_while_the_next_segments_are_looked_up(
    buffer: Buffer, broker: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(self: Schedule) -> dict[int, int]:
        found = {}
        for first, flight in self.flights.items():
            time.sleep(0.0005)  # a receipt comes in between
            found[first] = flight.last_sequence
        return found

    monkeypatch.setattr(Schedule, "_last_sequences", slowly)
    hub = Hub()
    for i in range(120):
        buffer.append_readings(readings(5, first=5 * i))
        buffer.seal()
    async with hub.running(*broker), forwarding(buffer, settings(broker)) as forwarder:
        await until(lambda: not forwarder.backlog())
    assert at_hub(hub)[0] == Counter(readings(600))


async def test_nothing_is_sent_or_deleted_while_the_hub_is_silent(
    buffer: Buffer, broker: Address
) -> None:
    hub = Hub()
    hub.silent = True
    buffer.append_readings(readings(3000))
    async with hub.running(*broker), forwarding(buffer, settings(broker)) as forwarder:
        await until(lambda: len(hub.hellos) >= 3)
        assert hub.arrivals == 0, "without a receipt on this connection only hellos are sent"
        assert len(stored(buffer)) == 3
        hub.silent = False
        await until(lambda: not forwarder.backlog())
        hub.silent = True
        buffer.append_readings(readings(3000, first=3000))
        # Credit is still there: it sends, misses the receipts, and goes back to the watermark.
        await until(lambda: hub.arrivals >= 8)
        assert len(stored(buffer, after=buffer.watermark)) == 3
        assert buffer.watermark == 3000
        hub.silent = False
        await until(lambda: not forwarder.backlog())
    assert at_hub(hub)[0] == Counter(readings(6000))


async def test_no_credit_pauses_sending_and_a_hello_asks_again(
    buffer: Buffer, broker: Address
) -> None:
    hub = Hub(credit=0)
    buffer.append_readings(readings(3000))
    async with hub.running(*broker), forwarding(buffer, settings(broker)) as forwarder:
        await until(lambda: len(hub.hellos) >= 2)
        assert hub.arrivals == 0
        hub.credit = 1
        await until(lambda: not forwarder.backlog())
        assert len(hub.segments) == 3


async def test_a_hello_tells_what_the_hub_needs(buffer: Buffer, broker: Address) -> None:
    hub = Hub(credit=0)
    buffer.append_documents(documents(buffer, 7))
    expected = buffer.status()
    async with hub.running(*broker), forwarding(buffer, settings(broker), seal_seconds=9999):
        await until(lambda: hub.hellos)
    hello = hub.hellos[0]
    assert (hello.epoch, hello.zone, hello.acked) == (buffer.epoch, ZONE, 0)
    assert (hello.next_sequence, hello.unsealed_records) == (1, 7)
    assert (hello.ledger, hello.ledger_version) == (expected.ledger, 1)
    assert hello.oldest_unsent_ms == expected.oldest_unsent_ms
    assert hello.interval_seconds == 1.0
    assert "reconnects" in hello.counters


async def test_status_is_online_then_offline_and_the_will_speaks_for_the_dead(
    buffer: Buffer, broker: Address, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    hub = Hub()
    async with hub.running(*broker):
        async with forwarding(buffer, settings(broker)) as forwarder:
            await until(lambda: forwarder.state.connected)
        await until(lambda: [s["online"] for s in hub.statuses] == [True, False])
        assert hub.statuses[1]["time_ms"] is not None
        config = tmp_path / "edge.toml"
        config.write_text(
            f'[device]\nid = "d2"\nstore = "s"\nzone = "{ZONE}"\n'
            f'[buffer]\npath = "{tmp_path}/d2.db"\n[http]\nport = {free_port()}\n'
            f"[mqtt]\nport = {broker.port}\n"
        )
        agent = processes([sys.executable, "-m", "scout_edge.cli", "run", "--config", config])
        await until(lambda: hub.statuses[-1]["online"])
        agent.kill()
        await until(lambda: not hub.statuses[-1]["online"])
        assert hub.statuses[-1]["time_ms"] is None


async def test_it_waits_for_the_broker_and_goes_on_after_a_restart_that_forgets_all(
    buffer: Buffer, processes: Callable[..., Process]
) -> None:
    port = free_port()
    address = Address("127.0.0.1", port)
    buffer.append_readings(readings(5000))

    def start() -> Process:
        process = processes([sys.executable, "-c", BROKER, str(port), "0"])
        assert isinstance(process, Process)
        return process

    hub = Hub()
    async with forwarding(buffer, settings(address)) as forwarder:
        await until(lambda: forwarder.metrics.counters()["reconnects"] >= 2)
        assert "refused" in forwarder.state.last_error.lower()
        first = start()
        await asyncio.to_thread(first.wait_for_port, port)
        async with hub.running(*address):
            await until(lambda: not forwarder.backlog())
        first.kill()
        buffer.append_readings(readings(5000, first=5000))
        second = start()
        await asyncio.to_thread(second.wait_for_port, port)
        async with hub.running(*address):
            await until(lambda: not forwarder.backlog(), 30)
    assert at_hub(hub)[0] == Counter(readings(10_000))


async def test_version_5_carries_the_same(
    buffer: Buffer, processes: Callable[..., Process]
) -> None:
    port, port5 = free_port(), free_port()
    process = processes([sys.executable, "-c", BROKER, str(port), str(port5)])
    process.wait_for_port(port5)
    hub = Hub()
    buffer.append_readings(readings(2000))
    mqtt = settings(Address("127.0.0.1", port5), version="5")
    async with hub.running("127.0.0.1", port), forwarding(buffer, mqtt) as forwarder:
        await until(lambda: not forwarder.backlog())
    assert at_hub(hub)[0] == Counter(readings(2000))


async def test_the_same_on_mosquitto(buffer: Buffer, mosquitto_broker: Address) -> None:
    hub = Hub(loss_ratio=0.2, repeat_ratio=0.3)
    buffer.append_readings(readings(10_000))
    mqtt = settings(mosquitto_broker, version="5")
    async with hub.running(*mosquitto_broker), forwarding(buffer, mqtt) as forwarder:
        await until(lambda: not forwarder.backlog(), 60)
    assert at_hub(hub)[0] == Counter(readings(10_000))


async def test_an_impossible_receipt_stops_sending_and_deletes_nothing(
    buffer: Buffer, broker: Address
) -> None:
    hub = Hub()
    hub.make_receipt = lambda receipt: dataclasses.replace(receipt, watermark=10**6)
    buffer.append_readings(readings(3000))
    async with hub.running(*broker), forwarding(buffer, settings(broker)) as forwarder:
        await until(lambda: forwarder.state.fenced)
        hellos = len(hub.hellos)
        await until(lambda: len(hub.hellos) > hellos + 1)
    assert hub.arrivals == 0
    assert len(stored(buffer)) == 3
    assert forwarder.metrics.counters()["receipt_incidents"] >= 1


async def test_drain_seals_and_sends_what_is_left(buffer: Buffer, broker: Address) -> None:
    hub = Hub()
    async with (
        hub.running(*broker),
        forwarding(buffer, settings(broker), seal_seconds=9999) as forwarder,
    ):
        buffer.append_readings(readings(5))
        await until(lambda: hub.hellos)
        assert buffer.status().unsealed_records == 5
        assert await forwarder.drain(10)
        hub.silent = True
        buffer.append_readings(readings(5))
        assert not await forwarder.drain(0.05)
    assert at_hub(hub)[0][readings(1)[0]] >= 1


async def test_drain_also_delivers_the_ledger(buffer: Buffer, broker: Address) -> None:
    """Else the hub would hold records that, as far as it knows, nobody produced."""
    hub = Hub()
    async with (
        hub.running(*broker),
        forwarding(buffer, settings(broker, heartbeat_seconds=600.0)) as forwarder,
    ):
        await until(lambda: hub.hellos)
        buffer.append_readings(readings(5))
        assert await forwarder.drain(10)
    assert buffer.status().ledger == ()
    assert hub.hellos[-1].ledger[-1].records == 5


def test_tls_files_that_cannot_be_used_are_a_setting_to_change(
    buffer: Buffer, tmp_path: Path
) -> None:
    mqtt = MqttSettings(tls=True, tls_ca=tmp_path / "no.pem")
    with pytest.raises(ConfigError, match="TLS"):
        Forwarder(buffer, AgentMetrics(buffer), device=DEVICE, mqtt=mqtt, seal_seconds=1)


class Swallower:
    """A TCP proxy to an address that can stop forwarding without a RST or a FIN."""

    def __init__(self, to: Address) -> None:
        self.to = to
        self.swallow = False
        self.connections = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection(*self.to)
        ways = (reader, there_writer), (there_reader, writer)
        tasks = [asyncio.create_task(self._copy(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, there_writer):
                end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not self.swallow:
                    writer.write(data)
                    await writer.drain()


async def test_a_link_that_only_swallows_is_given_up_by_its_silence(
    buffer: Buffer, broker: Address
) -> None:
    hub, proxy = Hub(), Swallower(broker)
    async with hub.running(*broker), proxy.running() as address:
        # The keep-alive is twice the heartbeat, at least 5 s: it alone would take 7 s and more.
        mqtt = settings(address, silence_seconds=0.5, heartbeat_seconds=30.0)
        buffer.append_readings(readings(1000))
        async with forwarding(buffer, mqtt) as forwarder:
            await until(lambda: not forwarder.backlog())
            assert proxy.connections == 1
            proxy.swallow = True
            buffer.append_readings(readings(1000, first=1000))
            await until(lambda: "silent" in forwarder.state.last_error, 5)
            assert not forwarder.state.connected
            proxy.swallow = False
            await until(lambda: not forwarder.backlog())
    assert at_hub(hub)[0] == Counter(readings(2000))


async def test_after_a_start_the_backlog_waits_and_what_is_new_does_not(
    buffer: Buffer, broker: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    hub = Hub()
    buffer.append_readings(readings(40_000))
    async with hub.running(*broker):
        mqtt = settings(broker, storm_guard_seconds=600.0)
        async with forwarding(buffer, mqtt) as forwarder:
            await until(lambda: hub.segments)
            sale = documents(buffer, 1)
            buffer.append_documents(sale)
            await until(lambda: at_hub(hub)[1] == sale)
            assert buffer.watermark == 0
            assert min(hub.segments) > 30_000
            assert await forwarder.drain(20), "who drains does not wait"
    assert at_hub(hub)[0] == Counter(readings(40_000))


@contextlib.asynccontextmanager
async def web_door(to: Address, security: ssl.SSLContext) -> AsyncIterator[Server]:
    """The broker behind TLS and WebSocket, on the path /mqtt.

    Not mosquitto's own listener: Debian's libwebsockets cannot open it where IPv6 is off.
    """

    async def carry(web: ServerConnection) -> None:
        assert web.request is not None
        assert (web.request.path, web.subprotocol) == ("/mqtt", "mqtt")
        reader, writer = await asyncio.open_connection(*to)

        async def back() -> None:
            while data := await reader.read(65_536):
                await web.send(data)

        returning = asyncio.create_task(back())
        try:
            async for data in web:
                assert isinstance(data, bytes)
                writer.write(data)
                await writer.drain()
        finally:
            returning.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await returning
            writer.transport.abort()

    protocols = [Subprotocol("mqtt")]
    async with serve(carry, "127.0.0.1", 0, ssl=security, subprotocols=protocols) as server:
        yield server


async def test_the_same_through_a_websocket_with_tls(
    buffer: Buffer, broker: Address, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("broker", alternative="IP:127.0.0.1")
    security = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    security.load_cert_chain(own.certificate, own.key)
    hub = Hub()
    buffer.append_readings(readings(5000))
    async with hub.running(*broker), web_door(broker, security) as server:
        port = server.sockets[0].getsockname()[1]
        mqtt = settings(
            Address("127.0.0.1", port),
            transport="websockets",
            tls=True,
            tls_ca=authority.certificate,
        )
        async with forwarding(buffer, mqtt) as forwarder:
            await until(lambda: not forwarder.backlog())
    assert at_hub(hub)[0] == Counter(readings(5000))


async def test_a_broker_that_requires_certificates_gets_the_devices_own(
    buffer: Buffer, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("broker", alternative="IP:127.0.0.1")
    device = authority.issue("pos-1")
    plain, port = free_port(), free_port()
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(
        f"user root\nallow_anonymous true\npersistence false\nlistener {plain} 127.0.0.1\n"
        f"listener {port} 127.0.0.1\ncafile {authority.certificate}\n"
        f"certfile {own.certificate}\nkeyfile {own.key}\nrequire_certificate true\n"
    )
    processes([require("mosquitto"), "-c", conf]).wait_for_port(port)
    mqtt = settings(Address("127.0.0.1", port), tls=True, tls_ca=authority.certificate)
    stranger = tls_context(mqtt)
    assert stranger is not None
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        stranger.wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        secured.recv(1)
    mqtt = dataclasses.replace(mqtt, tls_certificate=device.certificate, tls_key=device.key)
    hub = Hub()
    buffer.append_readings(readings(2000))
    async with hub.running("127.0.0.1", plain), forwarding(buffer, mqtt) as forwarder:
        await until(lambda: not forwarder.backlog())
    assert at_hub(hub)[0] == Counter(readings(2000))
