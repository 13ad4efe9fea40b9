"""Sparkplug B: the decoder against the protobuf package, and edge nodes on real brokers."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from scout_edge.buffer import Buffer
from scout_edge.sources import sparkplug
from scout_edge.sources.mqtt import MqttSource, MqttSourceSettings, TopicSettings
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.sparkplug_nodes import Nodes, Topic
from scout_shared.errors import ConfigError, PermanentError
from scout_shared.wire import Reading
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.edge_agent.sparkplug_messages import Payload, payload
from tests.harness.servers import Address
from tests.harness.waiting import eventually

T = 1_760_000_000_000
INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 = range(1, 9)
FLOAT, DOUBLE, BOOLEAN, STRING = range(9, 13)
BIRTH = (
    {"name": "bdSeq", "datatype": INT64, "long_value": 7, "timestamp": T},
    {"name": "Node Control/Rebirth", "datatype": BOOLEAN, "boolean_value": False},
    {"name": "a", "alias": 1, "datatype": INT16, "int_value": 5, "timestamp": T},
    {"name": "text", "alias": 2, "datatype": STRING, "string_value": "x", "timestamp": T},
)
ALL = TopicSettings("spBv1.0/plant/#", "plc.{node}.{device}.{metric}", format="sparkplug")


def topic(kind: str, device: str = "") -> Topic:
    found = Topic.parse("/".join(["spBv1.0", "plant", kind, "line", *([device] if device else [])]))
    assert found is not None
    return found


class Node:
    """One edge node, without a broker."""

    def __init__(self) -> None:
        self.nodes = Nodes()

    def __call__(
        self,
        kind: str,
        seq: int | None,
        *metrics: dict[str, Any],
        device: str = "",
        timestamp: int | None = None,
    ) -> list[Reading]:
        decoded = sparkplug.decode(payload(seq, *metrics, timestamp=timestamp))
        found = self.nodes.read(
            topic(kind, device), decoded, lambda _g, _n, device, name: f"{device}.{name}"
        )
        self.nodes.stored()
        return found


@pytest.fixture
def node() -> Node:
    made = Node()
    made("NBIRTH", 0, *BIRTH)
    return made


# The decoder


@given(
    st.none() | st.integers(0, 255),
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.text(max_size=20),
                "alias": st.integers(0, 2**64 - 1),
                "timestamp": st.integers(0, 2**64 - 1),
                "datatype": st.integers(0, 2**32 - 1),
                "is_historical": st.booleans(),
                "is_transient": st.booleans(),
                "is_null": st.booleans(),
                "properties": st.dictionaries(
                    st.sampled_from(["Quality", "engUnit"]), st.integers(0, 2**32 - 1)
                ),
            },
        ).flatmap(
            lambda fields: st.sampled_from(
                [
                    ("int_value", st.integers(0, 2**32 - 1)),
                    ("long_value", st.integers(0, 2**64 - 1)),
                    ("float_value", st.floats(width=32, allow_nan=False)),
                    ("double_value", st.floats(allow_nan=False)),
                    ("boolean_value", st.booleans()),
                    ("string_value", st.text()),
                    ("bytes_value", st.binary()),
                    ("template_value", st.text()),
                ]
            ).flatmap(lambda of: of[1].map(lambda value: {**fields, of[0]: value}))
        ),
        max_size=5,
    ),
)
def test_what_protobuf_encodes_is_decoded(seq: int | None, metrics: list[dict[str, Any]]) -> None:
    found = sparkplug.decode(payload(seq, *metrics))
    assert found.seq == seq
    assert len(found.metrics) == len(metrics)
    for metric, made in zip(metrics, found.metrics, strict=True):
        assert made.name == metric.get("name")
        assert made.alias == metric.get("alias")
        assert made.timestamp_ms == metric.get("timestamp")
        assert made.datatype == metric.get("datatype")
        assert made.historical == metric.get("is_historical", False)
        assert made.null == metric.get("is_null", False)
        assert made.quality == metric.get("properties", {}).get("Quality")
        numbers = [
            metric[f"{of}_value"]
            for of in ("int", "long", "float", "double", "boolean")
            if f"{of}_value" in metric
        ]
        assert ([made.raw.number] if made.raw else []) == numbers


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_read_otherwise_than_protobuf_does(data: bytes) -> None:
    try:
        found = sparkplug.decode(data)
    except PermanentError:
        return
    try:
        expected = Payload.FromString(data)
    except DecodeError:
        return  # in a part that we pass over by its length
    assert (found.seq or 0) == expected.seq
    assert [m.name or "" for m in found.metrics] == [m.name for m in expected.metrics]


@given(st.data())
def test_a_payload_with_changed_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(payload(3, *BIRTH, {"properties": {"Quality": 192}}, {"template_value": "t"}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    nodes = Nodes()
    with suppress(PermanentError):
        nodes.read(topic("NBIRTH"), sparkplug.decode(bytes(whole[:cut])), lambda *_: "m")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x18\x80\x02", "seq 256"),
        (b"\x12\x05\x0a", "is cut"),
        (b"\x18" + b"\x80" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x18", "ends within a number"),
        (b"\x1b", "wire type 3"),
        (b"\x00\x00", "field number 0"),
        (b"\x19" + bytes(8), "field 3 has wire type 1"),
        (b"\x12\x03\x0a\x01\xff", "not UTF-8"),
        (bytes(sparkplug.MAX_PAYLOAD_BYTES + 1), "are more than"),
        (b"\x12\x00" * (sparkplug.MAX_METRICS + 1), "more than 10000 metrics"),
        (payload(0, {"name": "x" * 513}), "a name of 513 bytes"),
        (b"\x12\x05\x4a\x03\x0a\x01x", "1 property names stand for 0 values"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        sparkplug.decode(data)


@pytest.mark.parametrize(
    "datatype, fields, value",
    [
        (INT8, {"int_value": 0xFFFFFFFF}, -1.0),
        (INT8, {"int_value": 0x80}, -128.0),
        (INT16, {"int_value": 0xFFFE}, -2.0),
        (INT32, {"int_value": 2**32 - 40}, -40.0),
        (INT32, {"long_value": 2**64 - 40}, -40.0),
        (INT64, {"long_value": 2**64 - 3}, -3.0),
        (UINT8, {"int_value": 255}, 255.0),
        (UINT16, {"int_value": 65_535}, 65_535.0),
        (UINT32, {"long_value": 2**32 - 1}, 2.0**32 - 1),
        (UINT64, {"long_value": 2**63}, 2.0**63),
        (FLOAT, {"float_value": 4.1}, 4.1),
        (DOUBLE, {"double_value": 4.1}, 4.1),
        (BOOLEAN, {"boolean_value": True}, 1.0),
        (BOOLEAN, {"boolean_value": False}, 0.0),
    ],
)
def test_a_value_is_read_by_its_data_type(
    datatype: int, fields: dict[str, Any], value: float
) -> None:
    (metric,) = sparkplug.decode(payload(0, fields)).metrics
    assert metric.raw is not None
    assert sparkplug.number(metric.raw, datatype) == value


@pytest.mark.parametrize(
    "datatype, fields",
    [
        (UINT8, {"int_value": 256}),
        (INT8, {"int_value": 300}),
        (INT64, {"int_value": 1}),
        (INT32, {"float_value": 1.0}),
        (FLOAT, {"double_value": 1.0}),
        (BOOLEAN, {"int_value": 1}),
    ],
)
def test_a_value_that_does_not_fit_its_data_type_is_none(
    datatype: int, fields: dict[str, Any]
) -> None:
    (metric,) = sparkplug.decode(payload(0, fields)).metrics
    assert metric.raw is not None
    with pytest.raises(PermanentError):
        sparkplug.number(metric.raw, datatype)


def test_the_rebirth_command_is_what_protobuf_reads() -> None:
    found = Payload.FromString(sparkplug.encode_rebirth(T))
    (metric,) = found.metrics
    assert (metric.name, metric.datatype, metric.boolean_value) == (
        "Node Control/Rebirth",
        BOOLEAN,
        True,
    )
    assert found.timestamp == metric.timestamp == T
    assert not found.HasField("seq")


# Nodes


def test_names_and_types_come_from_the_birth(node: Node) -> None:
    assert node("NDATA", 1, {"alias": 1, "int_value": 0xFFFE, "timestamp": T + 5}) == [
        Reading(".a", T + 5, -2.0)
    ]
    assert node("NDATA", 2, {"name": "a", "int_value": 3, "timestamp": T + 6}) == [
        Reading(".a", T + 6, 3.0)
    ]
    assert not node("NDATA", 3, {"alias": 2, "string_value": "y", "timestamp": T + 7})
    assert not node.nodes.unreadable
    assert not node.nodes.to_ask(0)


def test_a_birth_gives_readings_once(node: Node) -> None:
    again = Node()
    assert again("NBIRTH", 9, *BIRTH) == [Reading(".a", T, 5.0)]
    assert again("NBIRTH", 0, *BIRTH) == []
    newer = {**BIRTH[2], "timestamp": T + 1}
    assert again("NBIRTH", 0, newer) == [Reading(".a", T + 1, 5.0)]


def test_historical_values_keep_their_time(node: Node) -> None:
    old = {"alias": 1, "int_value": 1, "timestamp": T - 60_000, "is_historical": True}
    assert node("NDATA", 1, old) == [Reading(".a", T - 60_000, 1.0)]
    assert node("NBIRTH", 0, *BIRTH) == []


def test_the_nodes_own_time_of_sending_stands_in_but_not_for_the_past(node: Node) -> None:
    assert node("NDATA", 1, {"alias": 1, "int_value": 1}, timestamp=T + 9) == [
        Reading(".a", T + 9, 1.0)
    ]
    assert not node("NDATA", 2, {"alias": 1, "int_value": 1, "is_historical": True}, timestamp=T)
    assert not node("NDATA", 3, {"alias": 1, "int_value": 1})
    assert node.nodes.unreadable == {"a value without a time": 2}


@pytest.mark.parametrize(
    "metric, reason",
    [
        ({"is_null": True}, "a value is null"),
        ({"int_value": 1, "properties": {"Quality": 0}}, "a value of quality 0"),
        ({"int_value": 1, "properties": {"Quality": 500}}, "a value of quality 500"),
        ({}, "a metric without a value"),
        ({"int_value": 1, "datatype": INT8}, "data type is not that of its birth"),
        ({"float_value": 1.0}, "a value in field 12 is none of data type 2"),
        ({"int_value": 1, "timestamp": 2**60}, "is outside the years 1 to 9999"),
    ],
)
def test_what_is_no_value_is_left_out_and_counted(
    node: Node, metric: dict[str, Any], reason: str
) -> None:
    good = {"alias": 1, "int_value": 2, "timestamp": T + 2}
    bad = {"alias": 1, "timestamp": T + 1, **metric}
    assert node("NDATA", 1, bad, good) == [Reading(".a", T + 2, 2.0)]
    ((found, count),) = node.nodes.unreadable.items()
    assert (reason in found, count) == (True, 1)


def test_nan_is_no_value() -> None:
    node = Node()
    nan = {"name": "f", "datatype": DOUBLE, "double_value": float("nan"), "timestamp": T}
    assert node("NBIRTH", 0, nan) == []
    assert node.nodes.unreadable == {"a value is nan": 1}


def test_a_gap_in_seq_asks_for_the_births_and_costs_no_value(node: Node) -> None:
    for seq in range(1, 256):
        node("NDATA", seq)
    node("NDATA", 0)
    assert not node.nodes.to_ask(0)
    assert node("NDATA", 2, {"alias": 1, "int_value": 1, "timestamp": T + 1})
    assert node.nodes.to_ask(100.0) == [("plant", "line")]
    assert node.nodes.to_ask(129.0) == []
    assert node.nodes.to_ask(130.0) == [("plant", "line")]
    assert node.nodes.to_ask(189.0) == [], "twice as long"
    assert node.nodes.to_ask(190.0) == [("plant", "line")]
    node("NBIRTH", 0, *BIRTH)
    assert node.nodes.to_ask(1e6) == []


@pytest.mark.parametrize(
    "kind, device, metrics",
    [
        ("NDATA", "", [{"alias": 77, "int_value": 1, "timestamp": T}]),
        ("DDATA", "oven", [{"alias": 1, "int_value": 1, "timestamp": T}]),
    ],
)
def test_what_no_birth_declared_is_not_read(
    node: Node, kind: str, device: str, metrics: list[dict[str, Any]]
) -> None:
    with suppress(PermanentError):
        assert node(kind, 1, *metrics, device=device) == []
    assert node.nodes.to_ask(0) == [("plant", "line")]


def test_a_dead_node_or_device_is_unknown_until_it_is_born_again(node: Node) -> None:
    oven = {"name": "t", "alias": 5, "datatype": FLOAT, "float_value": 4.1, "timestamp": T}
    assert node("DBIRTH", 1, oven, device="oven") == [Reading("oven.t", T, 4.1)]
    node("DDEATH", 2, device="oven")
    with pytest.raises(PermanentError, match="its device has not been born"):
        node("DDATA", 3, {"alias": 5, "float_value": 1.0}, device="oven")
    stale = {"name": "bdSeq", "datatype": INT64, "long_value": 6}
    node("NDEATH", None, stale)
    assert node("NDATA", 4, {"alias": 1, "int_value": 1, "timestamp": T + 1}), "an old will"
    node("NDEATH", None, BIRTH[0])
    with pytest.raises(PermanentError, match="its node has not been born"):
        node("NDATA", 5, {"alias": 1, "int_value": 1, "timestamp": T + 2})
    assert node.nodes.to_ask(0) == [("plant", "line")]


def test_an_alias_of_one_device_is_not_read_for_another(node: Node) -> None:
    oven = {"name": "t", "alias": 5, "datatype": FLOAT, "timestamp": T, "float_value": 1.0}
    node("DBIRTH", 1, oven, device="oven")
    node("DBIRTH", 2, device="fridge")
    assert node("DDATA", 3, {**oven, "name": ""}, device="fridge") == []
    assert node.nodes.unreadable == {"a metric that no birth has declared": 1}


def test_commands_and_states_are_for_others() -> None:
    assert Topic.parse("spBv1.0/g/NCMD/n") is None
    assert Topic.parse("spBv1.0/STATE/host") is None
    for wrong in ("spBv1.0/g/NDATA", "spBv1.0/g/NDATA/n/d", "spBv1.0/g/DDATA/n", "a/g/NDATA/n"):
        with pytest.raises(PermanentError, match="no Sparkplug B topic"):
            Topic.parse(wrong)


# The source


@pytest.fixture(params=["broker", "mosquitto_broker"])
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


class Gateway:
    """An edge node on a broker, which answers a rebirth command with its births."""

    def __init__(self, address: Address) -> None:
        self.seq = 0
        self.commands = 0
        self.now = T
        self.births = True
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._commanded
        self.client.connect(address.host, address.port)
        ready = threading.Event()
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.subscribe("spBv1.0/plant/NCMD/line")
        self.client.loop_start()
        assert ready.wait(10)

    def _commanded(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        command = Payload.FromString(message.payload).metrics[0]
        if command.name == "Node Control/Rebirth" and command.boolean_value and self.births:
            self.commands += 1
            self.born()

    def born(self) -> None:
        self.seq = 0
        birth = {**BIRTH[2], "timestamp": self.now, "int_value": self.now - T}
        self.say("NBIRTH", BIRTH[0], birth)
        oven = {"name": "t/in", "alias": 9, "datatype": FLOAT, "float_value": 4.1}
        self.say("DBIRTH", {**oven, "timestamp": T}, device="oven")

    def say(self, kind: str, *metrics: dict[str, Any], device: str = "") -> None:
        name = "/".join(["spBv1.0", "plant", kind, "line", *([device] if device else [])])
        self.client.publish(name, payload(self.seq, *metrics), qos=0)
        self.seq = (self.seq + 1) % 256

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def listening(outlet: Outlet, address: Address, *topics: TopicSettings) -> Iterator[MqttSource]:
    source = MqttSource(outlet, MqttSourceSettings(topics, address.host, address.port))
    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: source._connected, 10, "the subscription")
        yield source
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def found(buffer: Buffer) -> list[Reading]:
    buffer.seal()
    return sorted(contents(stored(buffer))[0].elements())


def test_a_gateway_is_asked_for_its_births_and_read(buffer: Buffer, address: Address) -> None:
    gateway = Gateway(address)
    outlet = outlet_of(buffer)
    try:
        with listening(outlet, address, ALL):
            gateway.now = T + 1
            gateway.say("NDATA", {"alias": 1, "int_value": 1, "timestamp": T + 1})
            eventually(lambda: len(found(buffer)) == 2, 10, "the births")
            # A power cut now: the node is known, and its births are not taken again.
            kept = json.loads(outlet_of(buffer).state() or "{}")["sparkplug"]
            assert kept["nodes"] == [["plant", "line"]]
            assert kept["latest"]["plc.line.a"] == T + 1
            gateway.now = T + 2
            gateway.say("NDATA", {"alias": 1, "int_value": 2, "timestamp": T + 2})
            gateway.say(
                "DDATA", {"alias": 9, "float_value": 5.5, "timestamp": T + 3}, device="oven"
            )
            eventually(lambda: len(found(buffer)) == 4, 10)
        assert gateway.commands == 1
        assert outlet._metrics.counters()["unreadable_records"] == 1
        # Nobody listens: what is said now is gone, and the births tell how it is afterwards.
        gateway.say("NDATA", {"alias": 1, "int_value": 3, "timestamp": T + 4})
        gateway.now = T + 5
        with listening(outlet_of(buffer), address, ALL):
            eventually(lambda: len(found(buffer)) == 5, 10, "the birth after the restart")
    finally:
        gateway.close()
    assert found(buffer) == [
        Reading("plc.line.a", T + 1, 1.0),
        Reading("plc.line.a", T + 2, 2.0),
        Reading("plc.line.a", T + 5, 5.0),
        Reading("plc.line.oven.t.in", T, 4.1),
        Reading("plc.line.oven.t.in", T + 3, 5.5),
    ]


def test_only_named_metrics_are_taken_and_bad_payloads_counted(
    buffer: Buffer, mosquitto_broker: Address
) -> None:
    gateway = Gateway(mosquitto_broker)
    outlet = outlet_of(buffer)
    named = TopicSettings(
        "spBv1.0/plant/+/line/#",
        metrics={"t/in": "oven.celsius"},
        format="sparkplug",
        rebirth=False,
    )
    try:
        with listening(outlet, mosquitto_broker, named):
            gateway.client.publish("spBv1.0/plant/NDATA/line", b"\xff\xff", qos=0)
            gateway.say("NDATA")
            gateway.client.publish("spBv1.0/plant/NBIRTH/line", payload(0, *BIRTH), retain=True)
            gateway.born()
            eventually(lambda: found(buffer) == [Reading("oven.celsius", T, 4.1)], 10)
            assert gateway.commands == 0, "rebirth = false"
            # Delivered live to a subscriber, a retained message does not look like one.
            eventually(lambda: outlet._metrics.counters()["unreadable_records"] == 2)
        with listening(outlet, mosquitto_broker, named):
            eventually(lambda: outlet._metrics.counters()["unreadable_records"] == 3)
    finally:
        gateway.client.publish("spBv1.0/plant/NBIRTH/line", b"", retain=True).wait_for_publish(10)
        gateway.close()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"topic": "spBv1.0/g/NDATA/n"}, "does not take all messages"),
        ({"topic": "spBv1.0/g/+/n/d"}, "does not take all messages"),
        ({"topic": "plant/#"}, "does not take all messages"),
        ({"metric": "m.{1}"}, "names {1}"),
        ({"time_path": "t"}, "are not for format 'sparkplug'"),
        ({"format": "sparkplugB"}, "format 'sparkplugB' is not known"),
        ({"metrics": {"a": "b"}}, "either metric or metrics"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], message: str) -> None:
    base = {"topic": "spBv1.0/#", "metric": "{node}.{metric}", "format": "sparkplug"}
    with pytest.raises(ConfigError, match=message):
        TopicSettings(**{**base, **given})


def test_sparkplug_and_plain_topics_are_two_sources() -> None:
    with pytest.raises(ConfigError, match="are two sources"):
        MqttSourceSettings((ALL, TopicSettings("a", "b")))


def test_a_float_is_four_bytes_on_the_wire() -> None:
    """Golden bytes: NDATA seq 1, one metric, alias 5, float 4.1."""
    data = b"\x12\x07\x10\x05\x65" + struct.pack("<f", 4.1) + b"\x18\x01"
    assert data == payload(1, {"alias": 5, "float_value": 4.1})
    assert sparkplug.decode(data).metrics[0].alias == 5
