"""Carries orders to the devices and their reports back: one thread, one MQTT connection.

Any number of hubs may do it: each order is locked while it is published, reports are a shared
subscription. Orders are published again until the device has answered, so neither a broker that
forgets nor a device that was away loses one. A failure ends the task; the supervisor starts it
again. Not its job: what is ordered (``orders``), receipts (``ingest``).
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from scout_central import database
from scout_central.config import Mqtt
from scout_central.fleet import orders
from scout_shared import logs, topics
from scout_shared.errors import TransientError, WireError
from scout_shared.orders import ConfigOrder, Report

log = logs.get("downlink")

_LOOK_SECONDS = 1.0
_PUBACK_SECONDS = 10.0
_MAX_WAITING = 1000


def task(dsn: str, broker: Mqtt, share_group: str) -> Callable[[threading.Event], None]:
    """What the hub runs: works until its event is set. Raises TransientError."""

    def run(stop: threading.Event) -> None:
        reports: queue.Queue[tuple[str, bytes]] = queue.Queue(_MAX_WAITING)
        gone = threading.Event()
        client = _client(broker, share_group, reports, gone)
        try:
            client.connect(broker.host, broker.port, keepalive=30)
        except OSError as error:
            raise TransientError(
                f"the broker {broker.host}:{broker.port} is away: {error}"
            ) from error
        client.loop_start()
        try:
            # What this hub did not hear while it was away, it asks for at once.
            again_seconds = 0.0
            with database.connect(dsn, application="scout-downlink") as connection:
                while not stop.is_set():
                    if gone.is_set():
                        raise TransientError("the connection to the broker is lost")
                    with database.translated():
                        _publish_due(connection, client, again_seconds)
                        again_seconds = orders.RESEND_SECONDS
                        _note_reports(connection, reports)
        finally:
            client.disconnect()
            client.loop_stop()

    return run


def _client(
    broker: Mqtt,
    share_group: str,
    reports: queue.Queue[tuple[str, bytes]],
    gone: threading.Event,
) -> mqtt.Client:
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"scout-hub-orders-{secrets.token_hex(6)}",
        clean_session=True,
        reconnect_on_failure=False,
    )
    if broker.username:
        client.username_pw_set(broker.username, broker.password or None)
    if broker.tls:
        client.tls_set(ca_certs=str(broker.ca_file) if broker.ca_file else None)

    def connected(*_: object) -> None:
        group = f"$share/{share_group}-reports"
        client.subscribe(f"{group}/{topics.PREFIX}/+/+/up/{topics.REPORT}", 1)

    def arrived(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            reports.put_nowait((message.topic, bytes(message.payload)))
        except (queue.Full, UnicodeDecodeError):
            # The device says its configuration again; a command is answered by its next report.
            log.warning("report.dropped", waiting=reports.qsize())

    client.on_connect = connected
    client.on_message = arrived
    client.on_disconnect = lambda *_: gone.set()
    return client


def _publish_due(
    connection: database.Connection, client: mqtt.Client, again_seconds: float
) -> None:
    with connection.transaction():
        for one in orders.due(connection, again_seconds=again_seconds):
            settings = isinstance(one.order, ConfigOrder)
            channel = topics.CONFIG if settings else topics.COMMAND
            topic = topics.order(one.store_id, one.device_id, channel)
            # Settings are retained: a device that is away hears them when it comes.
            published = client.publish(topic, one.payload, qos=1, retain=settings)
            try:
                published.wait_for_publish(_PUBACK_SECONDS)
            except (RuntimeError, ValueError) as error:
                raise TransientError(f"the broker took no order: {error}") from error
            if not published.is_published():
                raise TransientError("the broker did not answer to an order")
            orders.sent(connection, one)
            log.info("order.published", device_id=one.device_id, channel=channel)


def _note_reports(connection: database.Connection, reports: queue.Queue[tuple[str, bytes]]) -> None:
    """All that have come; waits a moment for the first."""
    wait = _LOOK_SECONDS
    while True:
        try:
            topic, payload = reports.get(timeout=wait) if wait else reports.get_nowait()
        except queue.Empty:
            return
        wait = 0.0
        try:
            _, device_id, _ = topics.parse_up(topic)
            report = Report.decode(payload)
        except WireError as error:
            log.warning("report.refused", topic=topic, reason=error.message)
            continue
        with connection.transaction():
            known = orders.reported(connection, device_id, report)
        log.info("report.noted", device_id=device_id, of=report.of, state=report.state, known=known)
