"""Sends sealed segments to the hub by MQTT until a receipt covers them. Deletes nothing itself.

    connect → subscribe to receipts → status online, hello → wait for a receipt → send, oldest first

Nothing is sent before the first receipt on a connection: while no hub answers, a metered link
carries only hellos, and an old copy of a buffer is found out before it does harm. Then at most
``min(credit, WINDOW)`` segments wait for their receipt. PUBACK only paces: it starts the time-out,
and proves nothing. No receipt in time: back to the watermark, one segment at a time until the hub
shows progress again. A lost receipt costs a time-out and a hello, a repeated one nothing.

One async context per connection, named tasks, no callbacks. ``stopped`` ends it: the hub is told
"offline". Not its job: what is sealed when a device is offline (``Buffer``), how records look.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NoReturn

import aiomqtt

from scout_edge import boots, clock
from scout_edge.buffer import Buffer, StoredSegment
from scout_edge.config import DeviceSettings, MqttSettings
from scout_edge.metrics import AgentMetrics
from scout_edge.remote import Remote
from scout_shared import __version__, logs, topics
from scout_shared.errors import ConfigError, PermanentError, TransientError, WireError
from scout_shared.messages import Hello, Receipt, status_message

WINDOW = 16  # measured: more in flight gains nothing
_FETCH_BYTES = 512 * 1024  # read from the file at once: bounds memory
_PUBLISHES_AT_ONCE = 8
# Generous, because a slow uplink is not a broken one: 16 segments over 10 KB/s take half a minute.
_PUBACK_SECONDS = 60.0
_NAP_SECONDS = 0.2  # how late new records are seen; a look is two comparisons in memory
_FIRST_PAUSE_SECONDS = 1.0  # between hellos while there is no credit; doubles up to the heartbeat
_BACKOFF_SECONDS = 1.0
_LEDGER_SECONDS = 0.5  # between hellos that deliver the ledger at the end
_MAX_DOUBLINGS = 5  # of the time-out, while the hub shows no progress: 5 s → 160 s

log = logs.get("forwarder")


@dataclass(slots=True)
class ForwarderState:
    """What ``scout-edge status`` shows of the way to the hub."""

    connected: bool = False
    credit: int = 0
    in_flight: int = 0
    hub_time_ms: int | None = None
    """Hub's clock in the last receipt."""
    receipt_ms: int | None = None
    """Device's clock when that receipt came."""
    fenced: bool = False
    last_error: str = ""


class Forwarder:
    """Moves a buffer's segments to the hub for as long as ``run`` runs.

    Raises:
        ConfigError: the TLS files cannot be used.
    """

    def __init__(
        self,
        buffer: Buffer,
        measured: AgentMetrics,
        *,
        device: DeviceSettings,
        mqtt: MqttSettings,
        seal_seconds: float,
        recovered: bool = False,
        damaged_files: int = 0,
        orders: Remote | None = None,
    ) -> None:
        self.buffer = buffer
        self.metrics = measured
        self.device = device
        self.mqtt = mqtt
        self.seal_seconds = seal_seconds
        self.recovered = recovered
        """This is the second way to the hub, for what a damaged file held: it is not the device."""
        self.damaged_files = damaged_files
        self.orders = orders
        """Who takes the hub's orders, and reports what became of them."""
        self.state = ForwarderState()
        self.heard = False
        """The hub answered on the present connection, or on the last one."""
        self.ask = asyncio.Event()
        """Set: a hello is sent at once."""
        self._tls = tls_context(mqtt)

    async def run(self) -> NoReturn:
        """Connect, forward, reconnect, until cancelled."""
        doublings = 0
        while True:
            self.heard = False
            try:
                async with self._connected() as client:
                    await _Session(self, client).run()
            except* (aiomqtt.MqttError, TransientError) as group:
                self.state.last_error = _reasons(group)
            self.metrics.reconnects.inc()
            doublings = 0 if self.heard else doublings + 1
            most = min(self.mqtt.reconnect_cap_seconds, _BACKOFF_SECONDS * 2 ** min(doublings, 20))
            # Full jitter: after an outage a whole chain comes back, but not at the same second.
            delay = random.uniform(0, most)
            log.warning(
                "connection.lost",
                host=self.mqtt.host,
                port=self.mqtt.port,
                reason=self.state.last_error,
                retry_seconds=round(delay, 1),
            )
            await asyncio.sleep(delay)

    async def drain(self, timeout_seconds: float) -> bool:
        """Send what is there, unsealed records and the ledger too. True: the hub has all of it."""
        self.seal_seconds = 0.0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        ask_at = loop.time()
        while (waiting := self.backlog()) or (await asyncio.to_thread(self.buffer.status)).ledger:
            if loop.time() >= deadline:
                return False
            # The ledger travels in a hello, and the next one may be a heartbeat away.
            if not waiting and loop.time() >= ask_at:
                self.ask.set()
                ask_at = loop.time() + _LEDGER_SECONDS
            await asyncio.sleep(0.02)
        return True

    def backlog(self) -> bool:
        """Whether anything accepted is not confirmed."""
        buffer = self.buffer
        return buffer.unsealed_seconds() > 0 or buffer.watermark < buffer.next_sequence - 1

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiomqtt.Client]:
        device, mqtt = self.device, self.mqtt
        topic = topics.up(device.store, device.id, topics.STATUS)
        boot = clock.boot_id().hex()
        v5 = mqtt.version == "5"
        will = aiomqtt.Will(topic, status_message(False, boot, None), qos=1, retain=True)
        suffix = "-recovered" if self.recovered else ""
        # A client per connection: paho would send again what is queued in an old one.
        client = aiomqtt.Client(
            mqtt.host,
            mqtt.port,
            identifier=f"scout-{device.store}-{device.id}{suffix}",
            username=device.id if mqtt.password else None,
            password=mqtt.password or None,
            protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
            # No session at the broker: all that must survive is in the buffer. (Version 5 calls it
            # clean start, the default of a new client.)
            clean_session=None if v5 else True,
            will=None if self.recovered else will,
            keepalive=max(5, int(2 * mqtt.heartbeat_seconds)),
            max_concurrent_outgoing_calls=_PUBLISHES_AT_ONCE,
            tls_context=self._tls,
        )
        async with client:
            try:
                yield client
            finally:
                self.state.connected = False
                self.metrics.connected.set(0)
                # A clean goodbye discards the will, so it is said here.
                with contextlib.suppress(aiomqtt.MqttError):
                    if not self.recovered:
                        await self._say_offline(client, topic, boot)

    @staticmethod
    async def _say_offline(client: aiomqtt.Client, topic: str, boot: str) -> None:
        offline = status_message(False, boot, clock.wall_ms())
        await client.publish(topic, offline, qos=1, retain=True, timeout=1.0)


@dataclass(slots=True)
class _Flight:
    """A segment that was sent and waits for its receipt."""

    last_sequence: int
    acknowledged_at: float | None = None
    """Loop time of the PUBACK."""


class _Session:
    """One connection."""

    def __init__(self, forwarder: Forwarder, client: aiomqtt.Client) -> None:
        self._forwarder = forwarder
        self._client = client
        self._buffer = forwarder.buffer
        self._metrics = forwarder.metrics
        self._state = forwarder.state
        self._mqtt = forwarder.mqtt
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._flights: dict[int, _Flight] = {}
        self._cursor = 0
        self._failures = 0
        """Time-outs since the hub last showed progress."""
        self._rtt_seconds = 0.0
        self._wake = asyncio.Event()
        self._ask = forwarder.ask
        self._ending = False
        self._state.credit, self._state.fenced = 0, False

    async def run(self) -> None:
        """Until the connection is lost. Raises a group of MqttError or TransientError."""
        device = self._forwarder.device
        # Before anything is sent: the answer must find us listening.
        await self._client.subscribe(topics.receipts(device.store, device.id), qos=1)
        if self._forwarder.orders is not None:
            for channel in (topics.CONFIG, topics.COMMAND):
                await self._client.subscribe(topics.order(device.store, device.id, channel), qos=1)
        if not self._forwarder.recovered:
            online = status_message(True, clock.boot_id().hex(), clock.wall_ms())
            await self._publish_up(topics.STATUS, online, retain=True)
        self._state.connected = True
        self._metrics.connected.set(1)
        log.info("connection.opened", host=self._mqtt.host, port=self._mqtt.port)
        self._cursor = self._buffer.watermark
        async with self._tasks:
            self._tasks.create_task(self._receive(), name="receipts")
            self._tasks.create_task(self._send(), name="segments")
            self._tasks.create_task(self._heartbeat(), name="heartbeat")
            if self._forwarder.orders is not None:
                reporting = self._report(self._forwarder.orders)
                self._tasks.create_task(reporting, name="reports")
            try:
                await asyncio.Event().wait()
            finally:
                # Cancellation alone is not enough: until Python 3.12 asyncio.wait_for, on which
                # aiomqtt's publish stands, loses one that comes together with its result.
                self._ending = True
                self._wake.set()
                self._ask.set()
                if self._forwarder.orders is not None:
                    self._forwarder.orders.news.set()

    async def _report(self, orders: Remote) -> None:
        orders.connected()
        while not self._ending:
            await orders.news.wait()
            for report in orders.waiting():
                await self._publish_up(topics.REPORT, report.encode(), seconds=_PUBACK_SECONDS)
                await orders.said(report)

    async def _publish_up(
        self, channel: str, payload: bytes, *, retain: bool = False, seconds: float | None = None
    ) -> None:
        device = self._forwarder.device
        topic = topics.up(device.store, device.id, channel)
        await self._client.publish(topic, payload, qos=1, retain=retain, timeout=seconds)

    # -- segments -------------------------------------------------------------------------------

    async def _send(self) -> None:
        while not self._ending:
            self._wake.clear()
            self._expire()
            room = self._window() - len(self._flights)
            segments = await self._next(room) if room > 0 else []
            for segment in segments:
                flight = self._flights[segment.first_sequence] = _Flight(segment.last_sequence)
                self._cursor = segment.last_sequence
                name = f"publish-{segment.first_sequence}"
                self._tasks.create_task(self._publish(segment, flight), name=name)
            self._state.in_flight = len(self._flights)
            if not segments:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_NAP_SECONDS):
                        await self._wake.wait()

    def _window(self) -> int:
        if self._state.fenced:
            return 0
        # While nothing comes back one segment is enough to find out when that ends.
        return min(self._state.credit, 1 if self._failures else WINDOW)

    async def _next(self, room: int) -> list[StoredSegment]:
        self._cursor = max(self._cursor, self._buffer.watermark)
        last = self._buffer.next_sequence - 1
        if self._cursor >= last:
            age = self._buffer.unsealed_seconds()
            if not age or age < self._forwarder.seal_seconds:
                return []
            await asyncio.to_thread(self._buffer.seal, self._forwarder.seal_seconds)
            last = self._buffer.next_sequence - 1
        segments = await asyncio.to_thread(
            self._buffer.segments_after, self._cursor, _FETCH_BYTES, room
        )
        if not segments:  # the hub has all of them already
            self._cursor = max(self._cursor, last)
        return segments

    async def _publish(self, segment: StoredSegment, flight: _Flight) -> None:
        await self._publish_up(topics.DATA, segment.body, seconds=_PUBACK_SECONDS)
        flight.acknowledged_at = self._loop.time()
        self._metrics.sent_segments.inc()
        self._metrics.sent_bytes.inc(len(segment.body))

    def _expire(self) -> None:
        """Go back to the watermark when a receipt is overdue."""
        patience = max(self._mqtt.ack_timeout_seconds, 4 * self._rtt_seconds)
        oldest = self._loop.time() - patience * 2 ** min(self._failures, _MAX_DOUBLINGS)
        overdue = [
            first
            for first, flight in self._flights.items()
            if flight.acknowledged_at is not None and flight.acknowledged_at < oldest
        ]
        if overdue:
            self._failures += 1
            self._metrics.timeouts.inc()
            log.warning(
                "receipt.missed",
                first_sequence=overdue[0],
                segments=len(self._flights),
                watermark=self._buffer.watermark,
            )
            self._flights.clear()
            self._cursor = self._buffer.watermark
            self._ask.set()

    # -- receipts -------------------------------------------------------------------------------

    async def _receive(self) -> None:
        async for message in self._client.messages:
            orders = self._forwarder.orders
            if orders is not None and not message.topic.matches(f"{topics.PREFIX}/+/+/dn/ack/+"):
                name = f"order-{message.topic.value.rpartition('/')[2]}"
                taking = orders.take(message.topic.value, bytes(message.payload))
                self._tasks.create_task(taking, name=name)
                continue
            try:
                assert isinstance(message.payload, bytes)
                receipt = Receipt.decode(message.payload)
            except WireError as error:
                log.warning("receipt.refused", reason=error.message)
                continue
            if receipt.epoch != self._buffer.epoch:
                continue
            try:
                moved = await asyncio.to_thread(self._buffer.apply_receipt, receipt)
            except PermanentError as error:
                self._state.fenced = True
                self._state.last_error = error.message
                self._metrics.incidents.inc()
                # The message and its hint say it all; a trace would not help.
                log.error("receipt.impossible", reason=error.message, hint=error.hint)  # noqa: TRY400
                continue
            self._heard(receipt, moved)

    def _heard(self, receipt: Receipt, moved: int) -> None:
        now = self._loop.time()
        arrived = [
            first
            for first, flight in self._flights.items()
            if flight.last_sequence <= self._buffer.watermark
            or any(low <= first and flight.last_sequence <= high for low, high in receipt.ranges)
        ]
        for first in arrived:
            flight = self._flights.pop(first)
            if flight.acknowledged_at is not None:
                seconds = now - flight.acknowledged_at
                self._metrics.receipt_seconds.observe(seconds)
                self._rtt_seconds += (seconds - self._rtt_seconds) / 8
        if arrived or moved:
            self._failures = 0
        if self._state.credit and not receipt.credit:
            self._ask.set()
        self._forwarder.heard = True
        self._state.credit = receipt.credit
        self._state.hub_time_ms = receipt.hub_time_ms
        self._state.receipt_ms = clock.wall_ms()
        self._wake.set()

    # -- hello ----------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._ending:
            self._ask.clear()
            await self._publish_up(topics.HELLO, (await self._hello()).encode())
            heartbeat = self._mqtt.heartbeat_seconds
            if self._state.credit:
                pause, wait = _FIRST_PAUSE_SECONDS, heartbeat
            else:
                wait = min(pause, heartbeat)
                pause *= 2
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ask.wait()

    async def _hello(self) -> Hello:
        status = await asyncio.to_thread(self._buffer.status)
        known = await asyncio.to_thread(boots.known, self._buffer)
        return Hello(
            epoch=status.epoch,
            boot_id=clock.boot_id().hex(),
            zone=self._forwarder.device.zone,
            version=__version__,
            acked=status.watermark,
            next_sequence=status.next_sequence,
            unsealed_records=status.unsealed_records,
            buffer_bytes=status.buffer_bytes,
            oldest_unsent_ms=status.oldest_unsent_ms,
            device_time_ms=clock.wall_ms(),
            interval_seconds=self._mqtt.heartbeat_seconds,
            ledger_version=status.ledger_version,
            ledger=status.ledger,
            clock_synced=clock.synced(),
            counters=self._metrics.counters(),
            recovered=self._forwarder.recovered,
            damaged_files=self._forwarder.damaged_files,
            python=platform.python_version(),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            config_version=self._forwarder.orders.version if self._forwarder.orders else 0,
            boots=known,
        )


async def stopped(task: asyncio.Task[NoReturn]) -> None:
    """Cancel a task of ``Forwarder.run`` until it has ended.

    More than once, because before Python 3.12 ``asyncio.wait_for`` in aiomqtt can lose a
    cancellation. Raises what the task raised.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
    if not task.cancelled():
        task.result()


def tls_context(mqtt: MqttSettings) -> ssl.SSLContext | None:
    """What ``[mqtt] tls*`` ask for; None without TLS. Raises ConfigError."""
    if not mqtt.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=mqtt.tls_ca and str(mqtt.tls_ca))
        if mqtt.tls_certificate is not None:
            context.load_cert_chain(mqtt.tls_certificate, mqtt.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS files of [mqtt] cannot be used: {error} (tls_ca {mqtt.tls_ca},"
            f" tls_certificate {mqtt.tls_certificate}, tls_key {mqtt.tls_key})",
            "check tls_ca, tls_certificate and tls_key: PEM files that the agent's user may read",
        ) from error
    return context


def _reasons(group: BaseExceptionGroup[BaseException]) -> str:
    """The messages in a group, each once."""
    texts: dict[str, None] = {}
    for error in group.exceptions:
        text = _reasons(error) if isinstance(error, BaseExceptionGroup) else str(error)
        texts[text] = None
    return "; ".join(texts)
