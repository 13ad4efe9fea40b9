"""Sends sealed segments to the hub by MQTT until a receipt covers them. Deletes nothing itself.

    connect → subscribe to receipts → status online, hello → wait for a receipt → send (schedule)

Nothing is sent before the first receipt on a connection: while no hub answers, a metered link
carries only hellos, and an old copy of a buffer is found out before it does harm. Then at most
``min(credit, WINDOW)`` segments wait for their receipt. PUBACK only paces: it starts the time-out,
and proves nothing. No receipt in time: back to the watermark, one segment at a time until the hub
shows progress again. A lost receipt costs a time-out and a hello, a repeated one nothing.

A link that swallows is noticed by its silence: while a PUBACK is awaited and neither one nor any
message has come for ``silence_seconds``, the connection is given up. It is never idle for longer
than a heartbeat, so a dead link lives at most ``heartbeat_seconds + silence_seconds``.

After a start, and after an outage of ``STORM_SECONDS``, the backlog waits for a random part of
``storm_guard_seconds`` (the whole chain comes back at that moment); what is new goes at once.

Where MQTT brings no receipt for ``[hub] fallback_after_seconds``, the same session runs over HTTPS
(``link_https``). MQTT is tried again in between, and kept as soon as it brings a receipt.

One async context per connection, named tasks, no callbacks. ``stopped`` ends it: the hub is told
"offline". Not its job: what is sealed when a device is offline (``Buffer``), which segment is
next (``schedule``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import platform
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NoReturn

import aiomqtt

from scout_edge import boots, clock
from scout_edge.allowance import Allowance
from scout_edge.buffer import Buffer
from scout_edge.config import DeviceSettings, HubSettings, MqttSettings
from scout_edge.link_https import HttpsLink
from scout_edge.metrics import AgentMetrics
from scout_edge.remote import Remote
from scout_edge.schedule import Flight, Schedule
from scout_edge.sealed import StoredSegment
from scout_edge.tail import TAIL_KINDS
from scout_edge.ways import Ways
from scout_shared import __version__, logs, topics
from scout_shared.errors import ConfigError, PermanentError, TransientError, WireError
from scout_shared.messages import Hello, Receipt, status_message
from scout_shared.wire import DOCUMENTS

WINDOW = 16  # measured: more in flight gains nothing
_PUBLISHES_AT_ONCE = 8
STORM_SECONDS = 120.0  # an outage of this length is one of the chain's, or of its power
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
    fallback: bool = False
    """The connection is by HTTPS, because MQTT does not get through."""
    credit: int = 0
    in_flight: int = 0
    hub_time_ms: int | None = None
    """Hub's clock in the last receipt."""
    receipt_ms: int | None = None
    """Device's clock when that receipt came."""
    fenced: bool = False
    copied: bool = False
    """Since the start the hub found another copy of this buffer; this one has left its stream."""
    last_error: str = ""
    mqtt_error: str = ""
    """Why MQTT brought no receipt when it was last tried."""


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
        hub: HubSettings | None = None,
        allowance: Allowance | None = None,
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
        self.forked = asyncio.Event()
        """Set: the buffer left its stream, and what it had in common with a copy lies beside it."""
        self.ask = asyncio.Event()
        """Set: a hello is sent at once."""
        self.backlog_from = -math.inf
        """Loop time before which only what is new is sent."""
        self.draining = False
        self.metered = True
        """Whether the budget holds; a person who drains may go beyond it."""
        self.allowance = allowance or Allowance(buffer, 0)
        self._tls = tls_context(mqtt)
        self.ways = Ways(hub or HubSettings())

    async def run(self) -> NoReturn:
        """Connect, forward, reconnect, until cancelled."""
        doublings = 0
        loop = asyncio.get_running_loop()
        heard_at = -math.inf
        while True:
            self.heard = False
            if loop.time() - heard_at >= STORM_SECONDS and not self.draining:
                self.backlog_from = math.inf  # until a hub answers
            self.ways.choose()
            pause = 0.0  # that the hub asked for
            try:
                if self.ways.fallback:
                    async with self._by_https() as link:
                        await _Session(self, link).run()
                else:
                    async with self._connected() as client:
                        await _Session(self, client).run()
            except* (aiomqtt.MqttError, TransientError) as group:
                self.state.last_error = _reasons(group)
                pause = _pause_seconds(group)
            if not self.ways.fallback:
                self.state.mqtt_error = self.state.last_error
            self.metrics.reconnects.inc()
            if self.heard:
                heard_at = loop.time()
            doublings = 0 if self.ways.ended(heard=self.heard) or self.heard else doublings + 1
            most = min(self.mqtt.reconnect_cap_seconds, _BACKOFF_SECONDS * 2 ** min(doublings, 20))
            # Full jitter: after an outage a whole chain comes back, but not at the same second.
            delay = min(random.uniform(pause, max(pause, most)), self.ways.seconds_left())
            log.warning(
                "connection.lost",
                **self.way(),
                reason=self.state.last_error,
                retry_seconds=round(delay, 1),
            )
            await asyncio.sleep(delay)

    def way(self) -> dict[str, str | int]:
        """Where the present connection goes, for the log."""
        if self.ways.fallback:
            return {"url": self.ways.hub.url}
        return {"host": self.mqtt.host, "port": self.mqtt.port}

    async def drain(self, timeout_seconds: float, *, metered: bool = False) -> bool:
        """Send what is there, unsealed records and the ledger too. True: the hub has all of it.

        Args:
            metered: the budget of the link holds: what it does not allow stays.
        """
        before = self.seal_seconds
        self.seal_seconds, self.backlog_from = 0.0, -math.inf
        self.draining, self.metered = True, metered
        try:
            return await self._drained(timeout_seconds)
        finally:
            self.seal_seconds, self.draining, self.metered = before, False, True

    async def _drained(self, timeout_seconds: float) -> bool:
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

    def saving(self) -> bool:
        """Whether only sales are sent, because the budget of the link is used up."""
        return self.allowance.look() and self.metered

    def hold_backlog(self, seconds: float) -> None:
        """Send only what is new for so long."""
        self.backlog_from = asyncio.get_running_loop().time() + seconds
        if seconds:
            log.info("backlog.held", seconds=round(seconds, 1))

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
            # Two boxes with one id must not throw each other out: the hub tells them apart.
            identifier=f"scout-{device.store}-{device.id}-{self.buffer.nonce.hex()[:8]}{suffix}",
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
            transport="websockets" if mqtt.transport == "websockets" else "tcp",
            websocket_path=mqtt.websocket_path,
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

    @contextlib.asynccontextmanager
    async def _by_https(self) -> AsyncIterator[HttpsLink]:
        link = HttpsLink(
            self.device,
            self.ways.hub,
            self.mqtt.password,
            self.metrics,
            self.mqtt.silence_seconds,
        )
        try:
            async with link:
                self.state.fallback = True
                self.metrics.fallback.set(1)
                yield link
        finally:
            self.state.connected = self.state.fallback = False
            self.metrics.fallback.set(0)

    @staticmethod
    async def _say_offline(client: aiomqtt.Client, topic: str, boot: str) -> None:
        offline = status_message(False, boot, clock.wall_ms())
        await client.publish(topic, offline, qos=1, retain=True, timeout=1.0)


class _Session:
    """One connection."""

    def __init__(self, forwarder: Forwarder, client: aiomqtt.Client | HttpsLink) -> None:
        self._forwarder = forwarder
        self._client = client
        self._buffer = forwarder.buffer
        self._metrics = forwarder.metrics
        self._state = forwarder.state
        self._mqtt = forwarder.mqtt
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._schedule = Schedule(self._buffer, self._mqtt.live_share_ratio)
        self._taking = asyncio.Lock()
        """Held while a thread reads the schedule: receipts change it between two looks only."""
        self._awaited = 0
        """Publishes whose PUBACK has not come."""
        self._alive_at = self._loop.time()
        """When the far side last gave a sign, or the first of these was sent."""
        self._failures = 0
        """Time-outs since the hub last showed progress."""
        self._rtt_seconds = 0.0
        self._saving = False
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
        fallback = self._forwarder.ways.fallback
        self._state.connected = True
        self._metrics.connected.set(0 if fallback else 1)
        log.info("connection.opened", **self._forwarder.way())
        async with self._tasks:
            self._tasks.create_task(self._receive(), name="receipts")
            self._tasks.create_task(self._send(), name="segments")
            self._tasks.create_task(self._heartbeat(), name="heartbeat")
            self._tasks.create_task(self._listen(), name="silence")
            if self._forwarder.orders is not None and not fallback:
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
                await self._publish_up(topics.REPORT, report.encode())
                await orders.said(report)

    async def _publish_up(self, channel: str, payload: bytes, *, retain: bool = False) -> None:
        device = self._forwarder.device
        topic = topics.up(device.store, device.id, channel)
        if not self._awaited:
            self._alive_at = self._loop.time()
        self._awaited += 1
        try:
            await self._forwarder.allowance.spend(len(topic) + len(payload))
            # No time-out of its own: a slow uplink is not a broken one, and ``_listen`` tells them
            # apart by the PUBACKs before it.
            await self._client.publish(topic, payload, qos=1, retain=retain, timeout=math.inf)
        finally:
            self._awaited -= 1
        self._alive_at = self._loop.time()

    async def _listen(self) -> None:
        """End the connection when it only swallows."""
        most = self._mqtt.silence_seconds
        while not self._ending:
            await asyncio.sleep(min(1.0, most / 4))
            if reason := self._forwarder.ways.over():
                raise TransientError(reason)
            silent = self._loop.time() - self._alive_at
            if self._awaited and silent > most:
                raise TransientError(
                    f"the link is silent: no answer to anything for {silent:.0f} s",
                    "it is opened again; if this comes back, look at the router and the line",
                )

    # -- segments -------------------------------------------------------------------------------

    async def _send(self) -> None:
        while not self._ending:
            self._wake.clear()
            self._expire()
            room = self._window() - len(self._schedule.flights)
            schedule = self._schedule
            segments = await self._next(room) if room > 0 else []
            if schedule is not self._schedule:  # these have another identity now
                continue
            for segment in segments:
                flight = schedule.flights[segment.first_sequence]
                name = f"publish-{segment.first_sequence}"
                self._tasks.create_task(self._publish(segment, flight), name=name)
            self._state.in_flight = len(self._schedule.flights)
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
        saving = self._forwarder.saving()
        if saving != self._saving:
            self._saving = saving
            self._ask.set()  # so that the hub knows why the backlog stands
        # Readings that do not go would only stand between the documents.
        kinds = (DOCUMENTS,) if saving else TAIL_KINDS
        age = self._buffer.unsealed_seconds(kinds)
        if age and age >= self._forwarder.seal_seconds:
            await asyncio.to_thread(self._buffer.seal, self._forwarder.seal_seconds, kinds)
        if self._buffer.watermark >= self._buffer.next_sequence - 1:
            return []
        async with self._taking:
            self._schedule.backlog_from = self._forwarder.backlog_from
            return await asyncio.to_thread(
                self._schedule.take, room, self._loop.time(), saving=saving
            )

    async def _publish(self, segment: StoredSegment, flight: Flight) -> None:
        await self._publish_up(topics.DATA, segment.body)
        flight.acknowledged_at = self._loop.time()
        self._metrics.sent_segments.inc()
        self._metrics.sent_bytes.inc(len(segment.body))

    def _expire(self) -> None:
        """Go back to the watermark when a receipt is overdue."""
        patience = max(self._mqtt.ack_timeout_seconds, 4 * self._rtt_seconds)
        oldest = self._loop.time() - patience * 2 ** min(self._failures, _MAX_DOUBLINGS)
        overdue = [
            first
            for first, flight in self._schedule.flights.items()
            if flight.acknowledged_at is not None and flight.acknowledged_at < oldest
        ]
        if overdue:
            self._failures += 1
            self._metrics.timeouts.inc()
            log.warning(
                "receipt.missed",
                first_sequence=overdue[0],
                segments=len(self._schedule.flights),
                watermark=self._buffer.watermark,
            )
            self._schedule.go_back()
            self._ask.set()

    # -- receipts -------------------------------------------------------------------------------

    async def _receive(self) -> None:
        async for message in self._client.messages:
            self._alive_at = self._loop.time()
            self._forwarder.allowance.took(len(message.topic.value) + len(bytes(message.payload)))
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
            if receipt.fork is not None:
                await self._leave(receipt)
                continue
            if not self._is_meant(receipt):
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
            async with self._taking:
                self._heard(receipt, moved)

    def _is_meant(self, receipt: Receipt) -> bool:
        """Whether it speaks of what this writer stored, and not of another copy's.

        A hub that names no writer does not tell copies apart.
        """
        if not receipt.writer or self._forwarder.recovered:
            return True
        return receipt.writer == self._buffer.lineage[-1].nonce

    async def _leave(self, receipt: Receipt) -> None:
        """Another copy of the buffer file goes on with this stream, when it is meant for us."""
        if self._forwarder.recovered:
            return
        try:
            left = await asyncio.to_thread(self._buffer.leave, receipt)
        except TransientError as error:
            self._state.last_error = error.message
            log.error("fork.postponed", reason=error.message, hint=error.hint)  # noqa: TRY400
            return
        if left:
            assert receipt.fork is not None
            self._schedule = Schedule(self._buffer, self._mqtt.live_share_ratio)
            self._state.copied = True
            self._metrics.incidents.inc()
            log.error(
                "buffer.forked",
                old_epoch=receipt.epoch.hex(),
                epoch=self._buffer.epoch.hex(),
                first_sequence=receipt.fork.first_sequence,
                hint="this buffer was copied: look for a second box, a cloned card, an old image",
            )
            self._forwarder.forked.set()
            self._ask.set()

    def _heard(self, receipt: Receipt, moved: int) -> None:
        now = self._loop.time()
        arrived = [
            first
            for first, flight in self._schedule.flights.items()
            if flight.last_sequence <= self._buffer.watermark
            or any(low <= first and flight.last_sequence <= high for low, high in receipt.ranges)
        ]
        for first in arrived:
            flight = self._schedule.flights.pop(first)
            if flight.acknowledged_at is not None:
                seconds = now - flight.acknowledged_at
                self._metrics.receipt_seconds.observe(seconds)
                self._rtt_seconds += (seconds - self._rtt_seconds) / 8
        if arrived or moved:
            self._failures = 0
        if self._state.credit and not receipt.credit:
            self._ask.set()
        if self._forwarder.backlog_from == math.inf:
            self._forwarder.hold_backlog(random.uniform(0, self._mqtt.storm_guard_seconds))
        self._forwarder.heard = True
        self._forwarder.ways.heard()
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
            lineage=() if self._forwarder.recovered else self._buffer.lineage,
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


def _pause_seconds(group: BaseExceptionGroup[BaseException]) -> float:
    """The longest pause that the hub asked for."""
    return max(
        _pause_seconds(error)
        if isinstance(error, BaseExceptionGroup)
        else getattr(error, "pause_seconds", 0.0)
        for error in group.exceptions
    )


def _reasons(group: BaseExceptionGroup[BaseException]) -> str:
    """The messages in a group, each once."""
    texts: dict[str, None] = {}
    for error in group.exceptions:
        text = _reasons(error) if isinstance(error, BaseExceptionGroup) else str(error)
        texts[text] = None
    return "; ".join(texts)
