"""The MQTT source with real brokers."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
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

LIVE = (TopicSettings("fridges/+/temperature", "fridge.{1}.temperature_celsius"),)
TIMED = (
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
def listening(
    outlet: Outlet, address: Address, topics: tuple[TopicSettings, ...]
) -> Iterator[MqttSource]:
    made = MqttSourceSettings(topics, address.host, address.port)
    source = MqttSource(outlet, made, name=outlet.name)
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
    live, timed = outlet_of(buffer, "fridges"), outlet_of(buffer, "meters")
    before = time.time_ns() // 1_000_000
    with listening(live, address, LIVE), listening(timed, address, TIMED):
        sensor("fridges/7/temperature", "4.10")
        for bad in ("warm", "", b"\xff", "NaN", '{"v":1}'):
            sensor("fridges/7/temperature", bad)
        sensor("meters/a/b/c", '{"e":{"kwh":2},"v":null,"t":5}')
        sensor("meters/a/b/c", '{"e":{"kwh":2}}')
        sensor("meters/a/b/c", '{"v":true,"t":5}')
        sensor("meters/a", '{"v":230,"t":6}')
        eventually(lambda: records(buffer) == 3)
        eventually(lambda: live._metrics.counters()["unreadable_records"] == 4)
        eventually(lambda: timed._metrics.counters()["unreadable_records"] == 2)
    stamped, deep, short = found(buffer)
    assert (stamped.metric, stamped.value) == ("fridge.7.temperature_celsius", 4.1)
    assert before <= stamped.observed_ms <= time.time_ns() // 1_000_000
    assert deep == Reading("meter.a..volts", 6, 230.0)
    assert short == Reading("meter.a.b.c.energy", 5, 2.0)


def test_a_retained_message_is_never_stamped_anew(
    buffer: Buffer, address: Address, sensor: Sensor
) -> None:
    sensor("fridges/7/temperature", "4.1", retain=True)
    sensor("meters/a/b", '{"v":230,"t":6}', retain=True)
    for value in (5.0, 6.0, 7.0):  # it comes with each connection, and is one reading
        live, timed = outlet_of(buffer, "fridges"), outlet_of(buffer, "meters")
        with listening(live, address, LIVE), listening(timed, address, TIMED):
            sensor("fridges/8/temperature", str(value))
            eventually(lambda value=value: value in [r.value for r in found(buffer)])  # type: ignore[misc]
            eventually(lambda: 230.0 in [r.value for r in found(buffer)])
    assert sorted(r.value for r in found(buffer)) == [5.0, 6.0, 7.0, 230.0]


def test_a_message_is_acknowledged_only_when_it_is_durable(
    tmp_path: Path, mosquitto_broker: Address
) -> None:
    """The buffer is gone while messages come: they come again after the restart, all of them."""
    sensor = Sensor(mosquitto_broker)

    def measured(i: int) -> None:
        sensor(f"meters/m/{i}", f'{{"v":{i},"t":{i}}}')

    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:

        def lose_the_buffer() -> None:
            with listening(outlet_of(buffer, "sensors"), mosquitto_broker, TIMED):
                measured(0)
                eventually(lambda: records(buffer) == 1)
                buffer.close()
                for i in range(1, 5):
                    measured(i)

        with pytest.raises(TransientError, match="closed"):
            lose_the_buffer()
    for i in range(5, 8):
        measured(i)  # while nobody listens
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        with listening(outlet_of(buffer, "sensors"), mosquitto_broker, TIMED):
            eventually(lambda: records(buffer) == 8)
        assert sorted((r.observed_ms, r.value) for r in found(buffer)) == [(i, i) for i in range(8)]
    sensor.client.disconnect()
    sensor.client.loop_stop()


def test_what_came_while_nobody_listened_is_never_stamped(
    buffer: Buffer, address: Address, sensor: Sensor
) -> None:
    """Without a time of its own nobody knows when it was observed: it is not taken later."""
    outlet = outlet_of(buffer, "sensors")
    with listening(outlet, address, LIVE):
        sensor("fridges/1/temperature", "1")
        eventually(lambda: records(buffer) == 1)
    sensor("fridges/2/temperature", "2")
    with listening(outlet, address, LIVE):
        sensor("fridges/3/temperature", "3")
        eventually(lambda: 3.0 in [r.value for r in found(buffer)])
    assert sorted(r.value for r in found(buffer)) == [1.0, 3.0]


def test_without_a_broker_it_fails_for_now(buffer: Buffer) -> None:
    made = MqttSourceSettings(LIVE, port=free_port())
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


def test_topics_with_and_without_a_time_are_two_sources() -> None:
    with pytest.raises(ConfigError, match="cannot share a session") as raised:
        MqttSourceSettings((*LIVE, *TIMED))
    assert "two sources" in raised.value.hint


def test_messages_that_come_together_share_a_commit(
    buffer: Buffer, mosquitto_broker: Address
) -> None:
    outlet = outlet_of(buffer, "meters")
    with listening(outlet, mosquitto_broker, TIMED):
        pass  # the broker keeps from here on what comes
    sensor = Sensor(mosquitto_broker)
    try:
        for number in range(48):
            sensor("meters/a/b", f'{{"v":{number},"t":{number}}}')
        with listening(outlet, mosquitto_broker, TIMED):
            eventually(lambda: records(buffer) == 48)
        with closing(sqlite3.connect(buffer.path)) as file:
            (commits,) = file.execute("select count(*) from tail").fetchone()
        assert commits <= 12, "one by one they take 48"
        assert [reading.value for reading in found(buffer)] == [float(n) for n in range(48)]
    finally:
        sensor.client.disconnect()
        sensor.client.loop_stop()
