"""Sensors of the store on a local broker: topic pattern → metric.

    payloads carry their time   QoS 1, acknowledged after the readings are durable; while the buffer
                                refuses, or the agent is down, the broker keeps them in this
                                device's session. At least once: a message whose acknowledgement
                                was lost comes again.
    they do not                 QoS 0, no session: observed when it came, or not at all. A retained
                                one may be old: it is left out and counted, never stamped.
    Sparkplug B                 QoS 0 by specification, no session: what a node published while the
                                agent was down is gone; its births tell the present values.

The topics of one source are all of one sort, because a client has one session.
Not its job: the way to the hub (``forwarder``); what Sparkplug's bytes and births mean
(``sparkplug``, ``sparkplug_nodes``).
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from scout_edge import acceptance, clock
from scout_edge.sources import SourceContext, SourceKind, sparkplug
from scout_edge.sources.instants import InstantFormat
from scout_edge.sources.lines import find, number, parse_json
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.registry import PASSWORD
from scout_edge.sources.sparkplug_nodes import NAMESPACE, Nodes, Topic
from scout_shared import logs, settings
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.wire import Reading, Span

_LOOP_SECONDS = 0.2  # how soon a stop is seen
_GATHER_MESSAGES = 16  # unacknowledged at once; brokers allow 20
_GATHER_SECONDS = 0.1
"""How long the first message waits for others: a commit of its own costs the card about 13 KB."""
_KEEPALIVE_SECONDS = 30
_CONNECT_SECONDS = 10.0
_PLACE = re.compile(r"\{([0-9]+)\}")
_LEVEL = re.compile(r"\{(group|node|device|metric)\}")
_BRACES = re.compile(r"\{[^}]*\}")

log = logs.get("mqtt_source")


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """One ``[[sources.<name>.topics]]`` table."""

    topic: str
    """What to subscribe to, with + and #, e.g. 'fridges/+/temperature'. No default."""
    metric: str = ""
    """Metric of the value; {1} is what stands for the first + or #, {2} for the second …; levels
    under # are joined with '.'. Of Sparkplug: with {group}, {node}, {device}, {metric}; it takes
    all numeric metrics. Default none: give ``metrics``."""
    format: str = "plain"
    """'plain', or 'sparkplug': Sparkplug B payloads. Default 'plain'."""
    value_path: str = ""
    """Where the value stands in a JSON payload, e.g. 'data.celsius'. Default: it is the payload."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Several values of a payload: path (Sparkplug: metric) → metric. Default none."""
    time_path: str = ""
    """Where the time stands in the payload. Default: none; it was observed when it came, and one
    that comes while the agent is down or the buffer full is not taken."""
    time_format: str = "iso"
    """'iso', 'epoch_seconds', 'epoch_milliseconds' or a strptime format. Default 'iso'."""
    zone: str = ""
    """Zone of times without one. Default: they are refused."""
    rebirth: bool = True
    """Of Sparkplug: whether nodes are asked for their births (NCMD). Default true."""

    def __post_init__(self) -> None:
        levels = self.topic.split("/")
        wrong = any(("+" in x or "#" in x) and len(x) > 1 for x in levels) or "#" in levels[:-1]
        if not self.topic or wrong:
            raise ConfigError(
                f"topic {self.topic!r} is no pattern", "'+' and '#' stand alone; '#' comes last"
            )
        if bool(self.metric) == bool(self.metrics):
            raise ConfigError("give either metric or metrics")
        if self.format not in ("plain", "sparkplug"):
            raise ConfigError(f"format {self.format!r} is not known", "use 'plain' or 'sparkplug'")
        if self.format == "sparkplug":
            self._check_sparkplug(levels)
            return
        places = sum(level in ("+", "#") for level in levels)
        for template in self.templates().values():
            if any(not 1 <= int(n) <= places for n in _PLACE.findall(template)):
                raise ConfigError(
                    f"metric {template!r} names a place that topic {self.topic!r} does not have",
                    f"it has {places}: {{1}} is the first",
                )
        InstantFormat.of(self.time_format, self.zone)

    def _check_sparkplug(self, levels: list[str]) -> None:
        # seq counts all messages of a node, so all of them must come.
        whole = levels[-1] == "#" and 2 <= len(levels) <= 5 and levels[2:3] in ([], ["#"], ["+"])
        if levels[0] != NAMESPACE or not whole:
            raise ConfigError(
                f"topic {self.topic!r} does not take all messages of a Sparkplug node",
                f"use '{NAMESPACE}/#', '{NAMESPACE}/GROUP/#' or '{NAMESPACE}/GROUP/+/NODE/#'",
            )
        if self.value_path or self.time_path or self.zone or self.time_format != "iso":
            raise ConfigError(
                "value_path, time_path, time_format and zone are not for format 'sparkplug'",
                "its metrics carry their values and times in its own way",
            )
        for template in self.templates().values():
            for place in _BRACES.findall(template):
                if not _LEVEL.fullmatch(place):
                    raise ConfigError(
                        f"metric {template!r} names {place}, which Sparkplug does not have",
                        "use {group}, {node}, {device}, {metric}",
                    )

    def templates(self) -> Mapping[str, str]:
        """Path of each value → metric."""
        return self.metrics or {self.value_path: self.metric}


@dataclass(frozen=True, slots=True)
class MqttSourceSettings:
    """A ``[sources.<name>]`` table of kind ``mqtt``."""

    topics: tuple[TopicSettings, ...]
    """What to subscribe to. The first that fits a message is used. No default."""
    host: str = "127.0.0.1"
    """Host name of the broker. Default 127.0.0.1."""
    port: int = 1883
    """Its port. Default 1883."""
    client_id: str = ""
    """Names this device at the broker, and its session. Default 'scout-<name>'."""
    username: str = ""
    """Default none."""
    password: str = settings.secret(PASSWORD)
    """Of ``username``. Environment only."""
    tls: bool = False
    """Whether to use TLS. Default false."""
    tls_ca: Path | None = None
    """File with the broker's CA, PEM. Default: those of the system."""

    def __post_init__(self) -> None:
        settings.check_port("port", self.port)
        if not self.topics:
            raise ConfigError("topics must name at least one topic")
        if len({bool(topic.time_path) for topic in self.topics}) > 1:
            raise ConfigError(
                "topics with and without time_path cannot share a session at the broker",
                "make two sources: what carries its time may wait there, the rest may not",
            )
        if len({topic.format for topic in self.topics}) > 1:
            raise ConfigError(
                "topics of format 'sparkplug' and plain ones are two sources",
                "Sparkplug's metrics have times of their own, plain messages this device's",
            )
        if self.password and not self.username:
            raise ConfigError("a password without a username", "set username")

    @property
    def timed(self) -> bool:
        """Whether messages carry their time, and so may wait."""
        return bool(self.topics[0].time_path)

    @property
    def sparkplug(self) -> bool:
        """Whether they are Sparkplug B payloads."""
        return self.topics[0].format == "sparkplug"


class _Topic:
    """A subscription, ready for matching."""

    def __init__(self, given: TopicSettings) -> None:
        self.topic = given.topic
        self.time_path = given.time_path
        self.sparkplug = given.format == "sparkplug"
        self.rebirth = given.rebirth
        self._templates = given.templates()
        self._plain = not given.value_path and not given.metrics and not given.time_path
        self._instants = InstantFormat.of(given.time_format, given.zone)
        wild = {"+": "([^/]*)", "#": "(.*)"}
        parts = [wild.get(level, re.escape(level)) for level in given.topic.split("/")]
        # 'a/#' fits 'a' too.
        pattern = "/".join(parts).replace("/(.*)", "(?:/(.*))?")
        self._pattern = re.compile(pattern, re.DOTALL)

    def fits(self, topic: str) -> re.Match[str] | None:
        if topic.startswith("$") and not self.topic.startswith("$"):
            return None
        return self._pattern.fullmatch(topic)

    def readings(
        self, match: re.Match[str], message: paho.MQTTMessage, now_ms: int
    ) -> list[Reading]:
        """``now_ms``: for a message that need not carry its time.

        Raises PermanentError: it is not what the settings say, or of unknown age."""
        try:
            text = bytes(message.payload).decode("utf-8")
        except UnicodeDecodeError as error:
            raise PermanentError("the payload is not UTF-8") from error
        value: Any = text if self._plain else parse_json(text)
        given = find(value, self.time_path) if self.time_path else None
        if given is not None:
            instant_ms = self._instants.parse(given)
        elif self.time_path:
            raise PermanentError("the message has no time")
        elif message.retain:
            raise PermanentError("a retained message without a time")
        else:
            instant_ms = now_ms
        made = []
        for path, template in self._templates.items():
            known = number(path or "the payload", find(value, path))
            if known is not None:
                made.append(Reading(_metric(template, match), instant_ms, known))
        if made:
            acceptance.check_readings(made, set())
        return made

    def metric(self, group: str, node: str, device: str, metric: str) -> str | None:
        """The name of a Sparkplug metric; None: the settings do not name it."""
        template = self._templates.get(metric, self._templates.get("")) or None
        if template is None:
            return None
        places = {"group": group, "node": node, "device": device, "metric": metric}
        if not device:  # a metric of the node itself
            template = template.replace(".{device}", "").replace("{device}.", "")
        return _LEVEL.sub(lambda found: places[found.group(1)].replace("/", "."), template)


class _Arrived(NamedTuple):
    """A message, and the clock when it came."""

    message: paho.MQTTMessage
    stamp: clock.Stamp


class MqttSource:
    """Listens to the broker of one table; see the module."""

    def __init__(self, outlet: Outlet, given: MqttSourceSettings, *, name: str = "mqtt") -> None:
        self.name = name
        self._outlet = outlet
        self._settings = given
        self._topics = [_Topic(topic) for topic in given.topics]
        self._arrived: list[_Arrived] = []
        self._trouble = ""
        self._connected = False
        self._nodes = Nodes()

    def open(self) -> None:
        """Raises ConfigError: the TLS files cannot be used."""
        self._context()

    def run(self, stop: threading.Event) -> None:
        """Listen until stopped. Raises TransientError: no broker, refused, or the buffer is full.

        Whatever was not acknowledged then comes again with the next connection.
        """
        self._arrived, self._trouble, self._connected = [], "", False
        # What was declared or given out before the connection ended may not have been stored.
        self._nodes = self._nodes.again() if self._nodes.heard else self._known_nodes()
        client = self._client()
        given = self._settings
        where = f"the broker of source {self.name!r} at {given.host}:{given.port}"
        try:
            client.connect(given.host, given.port, _KEEPALIVE_SECONDS)
            while not stop.is_set():
                code = self._gather(client, stop)
                if self._arrived:
                    self._take(client)
                if self._connected:
                    self._ask(client)
                self._outlet.tick()
                if self._trouble:
                    raise TransientError(f"{where} refuses: {self._trouble}", "look at its log")
                if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    raise TransientError(f"{where}: {paho.error_string(code)}")
            if self._nodes.heard:
                self._outlet.append_readings([], state=self._sparkplug_state())
            client.disconnect()
        except (OSError, socket.gaierror, ValueError) as error:
            raise TransientError(
                f"{where}: {error}", "is it running, and the port right?"
            ) from error
        finally:
            _drop(client)

    def close(self) -> None:
        """Nothing to give back."""

    def _gather(self, client: paho.Client, stop: threading.Event) -> MQTTErrorCode:
        """Wait for a message, then a little for others, so that they share a commit."""
        code = client.loop(_LOOP_SECONDS)
        until = time.monotonic() + _GATHER_SECONDS
        while (
            self._arrived
            and len(self._arrived) < _GATHER_MESSAGES
            and code == MQTTErrorCode.MQTT_ERR_SUCCESS
            and not stop.is_set()
            and (left := until - time.monotonic()) > 0
        ):
            code = client.loop(left)
        return code

    def _take(self, client: paho.Client) -> None:
        """Append what arrived, one commit for all that one clock stamped, then acknowledge it."""
        own_times = self._settings.timed or self._settings.sparkplug
        for span, run in itertools.groupby(
            self._arrived, lambda arrived: None if own_times else arrived.stamp.span
        ):
            self._append(span, run)
        for message, _ in self._arrived:
            if message.qos:
                client.ack(message.mid, message.qos)
        self._arrived = []

    def _append(self, span: Span | None, run: Iterable[_Arrived]) -> None:
        readings: list[Reading] = []
        state: dict[str, int] = self._latest()
        for message, now in run:
            try:
                readings += self._read(message, state, now.wall_ms)
            except PermanentError as error:
                self._outlet.unreadable(
                    error.message,
                    topic=message.topic,
                    payload=message.payload[:100].decode("utf-8", "replace"),
                )
        keep = json.dumps(state) if state else None
        if self._nodes.born:
            keep = self._sparkplug_state()
        self._outlet.append_readings(readings, state=keep, span=span)
        self._nodes.stored()
        for reason, metrics in self._nodes.unreadable.items():
            self._outlet.unreadable(reason, metrics)
        self._nodes.unreadable.clear()

    def _read(
        self, message: paho.MQTTMessage, latest: dict[str, int], now_ms: int
    ) -> list[Reading]:
        for topic in self._topics:
            match = topic.fits(message.topic)
            if match is None:
                continue
            if topic.sparkplug:
                return self._sparkplug(topic, message)
            made = topic.readings(match, message, now_ms)
            if topic.time_path:
                if message.retain:  # comes with each connection: taken when it is new
                    made = [r for r in made if r.observed_ms > latest.get(r.metric, -(1 << 62))]
                for reading in made:
                    known = latest.get(reading.metric, reading.observed_ms)
                    latest[reading.metric] = max(known, reading.observed_ms)
            return made
        raise PermanentError("no topic of the settings fits")

    def _latest(self) -> dict[str, int]:
        """Per metric that carries its time: the latest taken."""
        stored = self._outlet.state()
        found = {} if stored is None else parse_json(stored)
        return {metric: ms for metric, ms in found.items() if isinstance(ms, int)}

    def _sparkplug(self, topic: _Topic, message: paho.MQTTMessage) -> list[Reading]:
        found = Topic.parse(message.topic)
        if found is None:
            return []
        if message.retain:
            raise PermanentError("a retained Sparkplug message, which the specification forbids")
        return self._nodes.read(found, sparkplug.decode(bytes(message.payload)), topic.metric)

    def _ask(self, client: paho.Client) -> None:
        """Send the rebirth requests that are due."""
        for group, node in self._nodes.to_ask(time.monotonic()):
            name = f"{NAMESPACE}/{group}/NBIRTH/{node}"
            topic = next((each for each in self._topics if each.fits(name)), None)
            if topic is not None and topic.sparkplug and topic.rebirth:
                command = sparkplug.encode_rebirth(clock.wall_ms())
                client.publish(f"{NAMESPACE}/{group}/NCMD/{node}", command, qos=0)
                log.info("rebirth.requested", source=self.name, group=group, node=node)

    def _known_nodes(self) -> Nodes:
        stored = self._outlet.state()
        found = None if stored is None else parse_json(stored).get("sparkplug")
        if not isinstance(found, dict):
            return Nodes()
        return Nodes(found["latest"], {(group, node) for group, node in found["nodes"]})

    def _sparkplug_state(self) -> str:
        """Kept with births and at the stop, not with each message: it names every metric."""
        return json.dumps({"sparkplug": self._nodes.saved()})

    def _client(self) -> paho.Client:
        given = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=given.client_id or f"scout-{self.name}",
            clean_session=not given.timed,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_SECONDS
        if given.username:
            client.username_pw_set(given.username, given.password or None)
        context = self._context()
        if context is not None:
            client.tls_set_context(context)

        def connected(_c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
            if reason.is_failure:
                self._trouble = str(reason)
                return
            client.subscribe([(topic.topic, int(given.timed)) for topic in self._topics])

        def subscribed(_c: Any, _u: Any, _mid: Any, reasons: Any, _p: Any) -> None:
            refused = [
                topic.topic
                for topic, reason in zip(self._topics, reasons, strict=False)
                if reason.is_failure
            ]
            if refused:
                self._trouble = f"the subscription to {', '.join(refused)}"
            else:
                self._connected = True
                log.info("source.connected", source=self.name, host=given.host, port=given.port)

        def arrived(_c: Any, _u: Any, message: paho.MQTTMessage) -> None:
            self._arrived.append(_Arrived(message, clock.stamp()))

        client.on_connect = connected
        client.on_subscribe = subscribed
        client.on_message = arrived
        return client

    def _context(self) -> ssl.SSLContext | None:
        if not self._settings.tls:
            return None
        try:
            return ssl.create_default_context(cafile=self._settings.tls_ca)
        except OSError as error:
            raise ConfigError(
                f"source {self.name!r}: tls_ca {self._settings.tls_ca} cannot be used: {error}",
                "give the broker's CA as PEM",
            ) from error


def _drop(client: paho.Client) -> None:
    """Close the socket. A session, and what waits in it, stays at the broker."""
    client.on_message = None
    open_socket = client.socket()
    if open_socket is not None:
        client.disconnect()
        open_socket.close()


def _metric(template: str, match: re.Match[str]) -> str:
    def place(found: re.Match[str]) -> str:
        return (match.group(int(found.group(1))) or "").replace("/", ".")

    return _PLACE.sub(place, template)


def _make(context: SourceContext, given: MqttSourceSettings) -> MqttSource:
    return MqttSource(context.outlet, given, name=context.name)


KIND = SourceKind(MqttSourceSettings, _make)
