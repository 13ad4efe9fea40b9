"""The embedded broker, as a real process, with a real client."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.harness.process import Process
from tests.harness.servers import BROKER, Address
from tests.harness.waiting import eventually, free_port, listens

Start = Callable[..., Process]


class Client:
    """A paho client that collects what it hears."""

    def __init__(self, address: Address, *, listen_to: str = "") -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._ready = threading.Event()
        self._listen_to = listen_to
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_message = lambda _c, _u, message: self.heard.append(
            (message.topic, bytes(message.payload))
        )
        self.client.connect(*address)
        self.client.loop_start()
        assert self._ready.wait(10), "the broker does not answer"

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        if self._listen_to:
            client.subscribe(self._listen_to, qos=1)
        else:
            self._ready.set()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Callable[..., Client]:
    def make(address: Address, *, listen_to: str = "") -> Client:
        made = Client(address, listen_to=listen_to)
        request.addfinalizer(made.close)
        return made

    return make


@pytest.mark.parametrize("name", ["broker", "mosquitto_broker"])
def test_a_broker_carries_what_the_protocol_needs(
    name: str, request: pytest.FixtureRequest, client: Callable[..., Client]
) -> None:
    """Large payloads, retained receipts, shared subscriptions: over MQTT 3.1.1."""
    address: Address = request.getfixturevalue(name)
    hub = client(address, listen_to="$share/hub/edge/1/+/+/up/#")
    device = client(address)
    device.publish("edge/1/store-1/device-1/up/d", b"x" * 900_000)
    device.publish("edge/1/store-1/device-1/dn/ack/00", b"receipt", retain=True)
    eventually(lambda: hub.heard, message="the hub hears the segment")
    assert [(topic, len(payload)) for topic, payload in hub.heard] == [
        ("edge/1/store-1/device-1/up/d", 900_000)
    ]
    late = client(address, listen_to="edge/1/store-1/device-1/dn/ack/+")
    eventually(lambda: late.heard, message="the retained receipt arrives")
    assert late.heard == [("edge/1/store-1/device-1/dn/ack/00", b"receipt")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told_to_and_frees_its_port(processes: Start, number: int) -> None:
    port = free_port()
    process = processes([sys.executable, "-c", BROKER, str(port)])
    process.wait_for_output("broker.started")
    process.wait_for_port(port)
    process.signal(number)
    assert process.wait(10) == 0
    assert not listens(port)


def test_killing_it_leaves_no_process_on_its_port(processes: Start) -> None:
    port = free_port()
    process = processes([sys.executable, "-c", BROKER, str(port)])
    process.wait_for_port(port)
    process.kill()
    eventually(lambda: not listens(port), message="the port is free")


def test_a_busy_port_is_named_with_what_to_do(processes: Start, broker: Address) -> None:
    process = processes([sys.executable, "-c", BROKER, str(broker.port)])
    assert process.wait(10) != 0
    assert f"cannot listen on 127.0.0.1:{broker.port}" in process.output()
    assert "--port" in process.output()
