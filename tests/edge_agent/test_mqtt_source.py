"""The MQTT source with real brokers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from scout_edge.buffer import Buffer
from scout_edge.sources.mqtt import MqttSource, MqttSourceSettings, TopicSettings
from scout_edge.sources.outlet import Outlet
from scout_shared.errors import ConfigError, ScoutError, TransientError
from scout_shared.wire import Reading
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.harness.servers import Address
from tests.harness.waiting import eventually, free_port

TOPICS = (
    TopicSettings("fridges/+/temperature", "fridge.{1}.temperature_celsius"),
    TopicSettings(
        "meters/+/#",
        metrics={"e.kwh": "meter.{1}.{2}.energy", "v": "meter.{1}.{2}.volts"},
        time_path="t",
        time_format="epoch_milliseconds",
    ),
)


@pytest.fixture(params=["broker", "mosquitto_broker"])
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


@contextmanager
def listening(outlet: Outlet, address: Address, **given: Any) -> Iterator[MqttSource]:
    made = MqttSourceSettings(TOPICS, address.host, address.port, **given)
    source = MqttSource(outlet, made, name="sensors")
    source.open()
    stop = threading.Event()
    failures: list[ScoutError] = []

    def run() -> None:
        try:
            source.run(stop)
        except ScoutError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        eventually(lambda: source._connected or failures, 10, "the subscription")
        yield source
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        source.close()
    if failures:
        raise failures[0]


class Sensor:
    """Publishes and waits for the broker's word."""

    def __init__(self, address: Address) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.connect(address.host, address.port)
        self.client.loop_start()

    def __call__(self, topic: str, payload: str | bytes, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)


@pytest.fixture
def sensor(address: Address) -> Iterator[Sensor]:
    made = Sensor(address)
    yield made
    made.client.disconnect()
    made.client.loop_stop()


def records(buffer: Buffer) -> int:
    status = buffer.status()
    return status.unsealed_records + status.next_sequence - 1


def found(buffer: Buffer) -> list[Reading]:
    buffer.seal()
    return sorted(contents(stored(buffer))[0].elements())


def test_topics_become_metrics_and_bad_messages_are_counted(
    buffer: Buffer, address: Address, sensor: Sensor
) -> None:
    outlet = outlet_of(buffer, "sensors")
    before = time.time_ns() // 1_000_000
    with listening(outlet, address):
        sensor("fridges/7/temperature", "4.10")
        for bad in ("warm", "", b"\xff", "NaN", '{"v":1}'):
            sensor("fridges/7/temperature", bad)
        sensor("meters/a/b/c", '{"e":{"kwh":2},"v":null,"t":5}')
        sensor("meters/a/b/c", '{"e":{"kwh":2}}')
        sensor("meters/a/b/c", '{"v":true,"t":5}')
        sensor("meters/a", '{"v":230,"t":6}')
        eventually(lambda: records(buffer) == 3)
    live, timed, short = found(buffer)
    assert (live.metric, live.value) == ("fridge.7.temperature_celsius", 4.1)
    assert before <= live.observed_ms <= time.time_ns() // 1_000_000
    assert timed == Reading("meter.a..volts", 6, 230.0)
    assert short == Reading("meter.a.b.c.energy", 5, 2.0)
    assert outlet._metrics.counters()["unreadable_records"] == 6


def test_a_retained_message_is_never_stamped_anew(
    buffer: Buffer, address: Address, sensor: Sensor
) -> None:
    sensor("fridges/7/temperature", "4.1", retain=True)
    sensor("meters/a/b", '{"v":230,"t":6}', retain=True)
    outlet = outlet_of(buffer, "sensors")
    for _ in range(2):  # it comes with each connection, and is one reading
        with listening(outlet, address):
            sensor("fridges/8/temperature", "5")
            eventually(lambda: records(buffer) >= 2)
    with listening(outlet_of(buffer, "sensors"), address):
        sensor("fridges/8/temperature", "6")
        eventually(lambda: records(buffer) == 4)
    assert [r.metric for r in found(buffer)].count("meter.a.b.volts") == 1
    assert not [r for r in found(buffer) if r.metric.startswith("fridge.7")]


def test_a_message_is_acknowledged_only_when_it_is_durable(
    tmp_path: Path, mosquitto_broker: Address
) -> None:
    """The buffer is gone while messages come: they come again after the restart, all of them."""
    sensor = Sensor(mosquitto_broker)
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:

        def lose_the_buffer() -> None:
            with listening(outlet_of(buffer, "sensors"), mosquitto_broker):
                sensor("fridges/0/temperature", "0")
                eventually(lambda: records(buffer) == 1)
                buffer.close()
                for i in range(1, 5):
                    sensor(f"fridges/{i}/temperature", str(i))

        with pytest.raises(TransientError, match="closed"):
            lose_the_buffer()
    for i in range(5, 8):
        sensor(f"fridges/{i}/temperature", str(i))  # while nobody listens
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        with listening(outlet_of(buffer, "sensors"), mosquitto_broker):
            eventually(lambda: records(buffer) == 8)
        assert [r.value for r in found(buffer)] == [float(i) for i in range(8)]
    sensor.client.disconnect()
    sensor.client.loop_stop()


def test_without_a_broker_it_fails_for_now(buffer: Buffer) -> None:
    made = MqttSourceSettings(TOPICS, port=free_port())
    with pytest.raises(TransientError, match="is it running"):
        MqttSource(outlet_of(buffer), made).run(threading.Event())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"topic": "a/b+"}, "no pattern"),
        ({"topic": "a/#/b"}, "no pattern"),
        ({"topic": ""}, "no pattern"),
        ({"topic": "a", "metric": ""}, "either metric or metrics"),
        ({"topic": "a/+", "metric": "m.{2}"}, "does not have"),
        ({"topic": "a", "time_format": "x"}, "time_format 'x'"),
    ],
)
def test_wrong_topics_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TopicSettings(**{"metric": "m", **given})
