"""From the broker to committed rows, and receipts back: the threads of the ingest.

    MQTT client → Intake (bounded in bytes) → parse → committers → receipts → MQTT client

Parsing of the next batch overlaps the COPY of this one. The hub keeps no broker session: what
arrives while it is away, the devices still have. Nothing is receipted before its commit returned.
A database that is away stops the committers, not the process: the batch is kept and tried again,
the intake fills, credits go to 0, more is dropped and counted.
Not its job: restarting a thread that fails (``scout_central.hub`` supervises them).
"""

from __future__ import annotations

import queue
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from scout_central.config import Ingest, Mqtt
from scout_central.ingest import meters
from scout_central.ingest.arrivals import Arrival, Parsed, SegmentArrival, parse
from scout_central.ingest.committer import Committed, Committer
from scout_central.ingest.intake import Intake, cost_bytes
from scout_central.ingest.receipts import Publish, Receipts
from scout_shared import logs, topics
from scout_shared.errors import ConfigError, PermanentError, TransientError, WireError

log = logs.get("ingest")

BATCH_RECORDS = 200_000
"""A batch is closed beyond it: its rows take about 100 bytes each while they are sent."""
_POLL_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 30.0

Task = Callable[[threading.Event], None]


@dataclass(slots=True)
class _Batch:
    items: list[Parsed] = field(default_factory=list)
    taken_bytes: int = 0


class Receiver:
    """The ingest of one hub process. Run each of ``tasks()`` in a thread of its own."""

    def __init__(
        self, dsn: str, broker: Mqtt, settings: Ingest, *, publish: Publish | None = None
    ) -> None:
        """``publish``: where receipts go when no broker carries them (tests, benchmarks)."""
        self.failed_commits = 0
        """Commits that failed in a row; 0 while the database answers."""
        self._dsn = dsn
        self._broker = broker
        self._settings = settings
        self.intake = Intake(settings.queue_bytes)
        self._batches: queue.Queue[_Batch] = queue.Queue(maxsize=1)
        self._client: mqtt.Client | None = None
        self.receipts = Receipts(
            publish or self._publish,
            lambda: (self.intake.limit_bytes - self.intake.used_bytes, self.intake.limit_bytes),
        )
        meters.QUEUE_BYTES.set_function(lambda: self.intake.used_bytes)

    def tasks(self) -> dict[str, Task]:
        """Name → function that works until its event is set."""
        return {
            "ingest-mqtt": self._receive,
            "ingest-parse": self._parse,
            **{f"ingest-commit-{i + 1}": self._commit for i in range(self._settings.committers)},
        }

    @property
    def connected(self) -> bool:
        """Whether the broker accepted the connection and it still stands."""
        client = self._client
        return client is not None and client.is_connected()

    def drop_connection(self) -> None:
        """Break the MQTT connection, as a network does; it is made again."""
        client = self._client
        connection = None if client is None else client.socket()
        if isinstance(connection, socket.socket):
            connection.shutdown(socket.SHUT_RDWR)

    def offer(self, arrival: Arrival) -> bool:
        """Take in one message; False: dropped for want of room, and counted."""
        if self.intake.offer(arrival):
            return True
        meters.DROPPED.labels("overload").inc()
        log.warning("arrival.dropped", reason="overload", queue_bytes=self.intake.used_bytes)
        return False

    # --- MQTT

    def _receive(self, stop: threading.Event) -> None:
        """Connected as much as possible: for ever, with full jitter between attempts."""
        failures = 0
        while not stop.is_set():
            ended = threading.Event()
            client = self._make_client(ended)
            try:
                client.connect(self._broker.host, self._broker.port, keepalive=30)
            except OSError as error:
                failures += 1
                log.warning(
                    "broker.unreachable",
                    host=self._broker.host,
                    port=self._broker.port,
                    error=str(error),
                )
            else:
                client.loop_start()
                since = time.monotonic()
                while not stop.is_set() and not ended.wait(_POLL_SECONDS):
                    pass
                self._client = None
                client.disconnect()
                client.loop_stop()
                meters.CONNECTED.set(0)
                failures = 1 if time.monotonic() - since > _MAX_PAUSE_SECONDS else failures + 1
            stop.wait(_jitter(failures))

    def _make_client(self, ended: threading.Event) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"scout-hub-{secrets.token_hex(6)}",
            clean_session=True,  # the broker must queue nothing for a hub that is away
            reconnect_on_failure=False,  # paho waits without jitter; _receive does it with
        )
        # Receipts can be repeated; a broker that is slow must not make them pile up here.
        client.max_queued_messages_set(10_000)
        if self._broker.username:
            client.username_pw_set(self._broker.username, self._broker.password or None)
        if self._broker.tls:
            client.tls_set(ca_certs=str(self._broker.ca_file) if self._broker.ca_file else None)
        client.on_connect = self._connected
        client.on_message = self._arrived

        def disconnected(
            _client: mqtt.Client,
            _data: object,
            _flags: mqtt.DisconnectFlags,
            reason: ReasonCode,
            _properties: Properties | None,
        ) -> None:
            log.info("broker.disconnected", reason=str(reason))
            ended.set()

        client.on_disconnect = disconnected
        return client

    def _connected(
        self,
        client: mqtt.Client,
        _data: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            log.error("broker.refused", reason=str(reason), username=self._broker.username)
            return
        group = self._settings.share_group
        # Any number of hubs share the data. The status is retained, and a shared subscription gets
        # no retained messages (MQTT 5, 4.8.2), so each hub hears it by a subscription of its own.
        # A group of its own for each filter: rumqttd keeps one cursor per group name, and with two
        # filters in a group it silently delivers only one of them.
        client.subscribe([
            (f"$share/{group}-data/{topics.PREFIX}/+/+/up/{topics.DATA}", 1),
            (f"$share/{group}-hello/{topics.PREFIX}/+/+/up/{topics.HELLO}", 1),
            (f"{topics.PREFIX}/+/+/up/{topics.STATUS}", 1),
        ])  # fmt: skip  # one subscription per line
        self._client = client
        meters.CONNECTED.set(1)
        log.info("broker.connected", host=self._broker.host, port=self._broker.port)

    def _arrived(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            store_id, device_id, channel = topics.parse_up(message.topic)
        except (WireError, UnicodeDecodeError) as error:  # paho decodes the topic here
            meters.DROPPED.labels("bad_topic").inc()
            log.warning("arrival.dropped", reason="bad_topic", error=str(error))
            return
        if channel in (topics.DATA, topics.HELLO, topics.STATUS):
            self.offer(Arrival(store_id, device_id, channel, bytes(message.payload)))
        else:
            meters.DROPPED.labels("unknown_channel").inc()

    def _publish(self, topic: str, payload: bytes) -> bool:
        client = self._client
        if client is None or not client.is_connected():
            return False  # the device asks again, and this or another hub answers
        return client.publish(topic, payload, qos=1, retain=True).rc == mqtt.MQTT_ERR_SUCCESS

    # --- parse and commit

    def _parse(self, stop: threading.Event) -> None:
        """Batches: closed after some milliseconds if a committer is free, else filled up to N."""
        while not stop.is_set():
            first = self.intake.take(_POLL_SECONDS)
            if first is None:
                continue
            batch = _Batch()
            try:
                self._gather(batch, first)
                if self._hand_over(batch, stop):
                    batch = _Batch()
            finally:
                # Handed over: the committer releases it. Else (stop, or a defect in parse) it is
                # let go without receipt, and the device sends it again.
                self.intake.release(batch.taken_bytes)

    def _gather(self, batch: _Batch, first: Arrival) -> None:
        records = 0
        closes = time.monotonic() + self._settings.batch_milliseconds / 1000
        arrival: Arrival | None = first
        while arrival is not None:
            batch.taken_bytes += cost_bytes(arrival)
            item = parse(arrival)
            batch.items.append(item)
            if isinstance(item, SegmentArrival):
                records += item.header.records
            if len(batch.items) >= self._settings.batch_segments or records >= BATCH_RECORDS:
                return
            # While all committers are busy a small batch gains nothing by being closed.
            left = closes - time.monotonic()
            if left <= 0 and self._batches.empty():
                return
            arrival = self.intake.take(max(left, 0.0))

    def _hand_over(self, batch: _Batch, stop: threading.Event) -> bool:
        while not stop.is_set():
            try:
                self._batches.put(batch, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def _commit(self, stop: threading.Event) -> None:
        committer = Committer(self._dsn, enrolment=self._settings.enrolment)
        try:
            while not stop.is_set():
                batch = self._next_batch()
                if batch is None:
                    continue
                try:
                    committed = self._commit_until_done(committer, batch.items, stop)
                    if committed is not None:
                        self.receipts.send(committed.receipts)
                finally:
                    self.intake.release(batch.taken_bytes)
        finally:
            committer.close()

    def _next_batch(self) -> _Batch | None:
        try:
            return self._batches.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def _commit_until_done(
        self, committer: Committer, items: list[Parsed], stop: threading.Event
    ) -> Committed | None:
        """None: given up, because the hub stops or the database refuses even to quarantine."""
        failures = 0
        while not stop.is_set():
            started = time.monotonic()
            try:
                committed = committer.commit_isolating(items)
            except (TransientError, ConfigError) as error:  # a password may be mended meanwhile
                self.failed_commits = failures = failures + 1
                if failures > 1:  # one failure may be a deadlock or a connection that had died
                    meters.DATABASE_AWAY.set(1)
                    self.receipts.pause()
                log.warning(
                    "batch.kept", arrivals=len(items), attempt=failures, error=error.message
                )
                stop.wait(_jitter(failures))
            except PermanentError as error:
                meters.DROPPED.labels("refused_by_database").inc(len(items))
                # no stack: the message names the statement; the devices keep the data
                log.error("batch.refused", arrivals=len(items), error=error.message)  # noqa: TRY400
                return None
            else:
                if failures:
                    self.failed_commits = 0
                    meters.DATABASE_AWAY.set(0)
                    self.receipts.resume()
                meters.count(committed, time.monotonic() - started)
                return committed
        return None


def _jitter(failures: int) -> float:
    """Seconds to wait after that many failures in a row: full jitter, so that hubs do not march."""
    return random.uniform(0, min(_MAX_PAUSE_SECONDS, 0.1 * 2 ** min(failures, 20)))
