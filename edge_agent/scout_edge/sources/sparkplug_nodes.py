"""Sparkplug B edge nodes, followed: births, aliases and sequences → readings, rebirth requests.

    a birth                 declares names, aliases and data types; its values are readings when
                            they are newer than the metric's last one, because a node publishes its
                            births again and again
    data                    each value is a reading, historical ones too: all have their own time
    a gap in seq, an alias, node or device without a birth
                            what can be read is taken; the node is asked for its births
    NDEATH, DDEATH          the node or device is unknown until it is born again
    null, quality other than 192, NaN, no time
                            left out and counted; never a zero

A metric without a timestamp was observed when its node sent the message, by the node's word; one
that is historical needs its own.
Not its job: bytes (``sparkplug``), MQTT, storing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scout_edge import acceptance
from scout_edge.sources import sparkplug
from scout_edge.sources.sparkplug import Metric, Payload
from scout_shared import logs
from scout_shared.errors import PermanentError
from scout_shared.wire import Reading

NAMESPACE = "spBv1.0"
REBIRTH_SECONDS = 30.0
"""After this a node is asked again, then after twice as long, up to an hour: births are large."""
MAX_NODES = 1_000
MAX_KNOWN = 100_000
"""Metrics of all nodes: a stranger on the local broker must not fill the memory."""

_KINDS = ("NBIRTH", "NDATA", "NDEATH", "DBIRTH", "DDATA", "DDEATH")
_BD_SEQ = "bdSeq"
_COMMANDS = ("Node Control/", "Device Control/")
_MAX_REBIRTH_SECONDS = 3600.0

log = logs.get("sparkplug")

Name = Callable[[str, str, str, str], str | None]
"""Group, node, device (or empty), metric → our metric; None: it is not wanted."""


@dataclass(frozen=True, slots=True)
class Topic:
    """Where a message came from."""

    kind: str
    group: str
    node: str
    device: str

    @property
    def birth(self) -> bool:
        """Whether it declares metrics."""
        return self.kind.endswith("BIRTH")

    @classmethod
    def parse(cls, topic: str) -> Topic | None:
        """None: a command or a host's state, which are for others.

        Raises:
            PermanentError: it is no Sparkplug topic.
        """
        levels = topic.split("/")
        if levels[:2] == [NAMESPACE, "STATE"] or levels[2:3] in (["NCMD"], ["DCMD"]):
            return None
        kind = levels[2] if len(levels) > 2 else ""
        wanted = 5 if kind.startswith("D") else 4
        if levels[0] != NAMESPACE or kind not in _KINDS or len(levels) != wanted or not all(levels):
            raise PermanentError("no Sparkplug B topic")
        return cls(kind, levels[1], levels[3], levels[4] if wanted == 5 else "")


@dataclass(slots=True)
class _Known:
    """What a birth said of a metric."""

    device: str
    name: str
    datatype: int


@dataclass(slots=True)
class _Node:
    """One edge node since its last birth."""

    seq: int
    bd_seq: int | None
    devices: set[str] = field(default_factory=set)
    names: dict[tuple[str, str], _Known] = field(default_factory=dict)
    aliases: dict[int, _Known] = field(default_factory=dict)

    def forget(self, device: str) -> None:
        self.devices.discard(device)
        self.names = {key: known for key, known in self.names.items() if key[0] != device}
        self.aliases = {a: known for a, known in self.aliases.items() if known.device != device}


class Nodes:
    """All nodes behind one source; used by its thread only.

    Args:
        latest: metric → ms UTC of its last reading, as ``saved`` gave it.
        asked: nodes heard before, as (group, node): each is asked for its births first.
    """

    def __init__(
        self, latest: Mapping[str, int] | None = None, asked: set[tuple[str, str]] | None = None
    ) -> None:
        self.heard: set[tuple[str, str]] = set(asked or ())
        self.unreadable: Counter[str] = Counter()
        """Reason → metrics left out; whoever reports them clears it."""
        self._latest = dict(latest or {})
        self._fresh: dict[str, int] = {}
        self._names: set[str] = set()
        self._born = False
        self._nodes: dict[tuple[str, str], _Node] = {}
        self._wanted: set[tuple[str, str]] = set(self.heard)
        self._asked: dict[tuple[str, str], tuple[float, float]] = {}  # when, pause after it

    def again(self) -> Nodes:
        """After a connection that ended: births are unknown, what was stored is not."""
        return Nodes(self._latest, self.heard)

    def read(self, topic: Topic, payload: Payload, name: Name) -> list[Reading]:
        """The readings of one message; what they change is kept by ``stored`` only.

        Raises:
            PermanentError: the message as a whole cannot be used.
        """
        where = (topic.group, topic.node)
        if topic.kind == "NDEATH":
            self._died(where, payload)
            return []
        node = self._node(where, topic, payload)
        if topic.kind == "DDEATH":
            node.forget(topic.device)
            return []
        if topic.birth:
            self._births(node, topic, payload)
            self._born = True
        elif topic.device and topic.device not in node.devices:
            self._wanted.add(where)
            raise PermanentError("its device has not been born yet")
        made = []
        for metric in payload.metrics:
            try:
                reading = self._reading(node, topic, payload, metric, name)
            except PermanentError as error:
                self.unreadable[error.message] += 1
            else:
                if reading is not None:
                    made.append(reading)
        return made

    def stored(self) -> None:
        """The readings given out are durable."""
        self._latest.update(self._fresh)
        self._fresh = {}
        self._born = False

    @property
    def born(self) -> bool:
        """Whether a birth was read since ``stored``: worth saving, because it may come again."""
        return self._born

    def saved(self) -> dict[str, object]:
        """For ``latest`` and ``asked`` after a restart."""
        return {
            "latest": {**self._latest, **self._fresh},
            "nodes": sorted(list(where) for where in self.heard),
        }

    def to_ask(self, now: float) -> list[tuple[str, str]]:
        """Nodes (group, node) to be asked for their births now; see ``REBIRTH_SECONDS``.

        Args:
            now: monotonic seconds.
        """
        asking = []
        for where in sorted(self._wanted):
            at, pause = self._asked.get(where, (-math.inf, 0.0))
            if now - at < pause:
                continue
            again = now - at < 10 * pause
            longer = min(2 * pause, _MAX_REBIRTH_SECONDS) if again else REBIRTH_SECONDS
            self._asked[where] = (now, longer)
            asking.append(where)
        return asking

    def _node(self, where: tuple[str, str], topic: Topic, payload: Payload) -> _Node:
        """Who speaks, its ``seq`` moved on. Raises PermanentError: it has not been born."""
        if where not in self.heard and len(self.heard) == MAX_NODES:
            raise PermanentError(f"more than {MAX_NODES} edge nodes")
        self.heard.add(where)
        if payload.seq is None:
            raise PermanentError("the message has no seq")
        if topic.kind == "NBIRTH":
            self._wanted.discard(where)
            self._nodes[where] = _Node(payload.seq, _bd_seq(payload))
            return self._nodes[where]
        node = self._nodes.get(where)
        if node is None:
            self._wanted.add(where)
            raise PermanentError("its node has not been born yet")
        expected = (node.seq + 1) % 256
        node.seq = payload.seq
        if payload.seq != expected:
            self._wanted.add(where)
            log.warning(
                "sequence.broken",
                group=topic.group,
                node=topic.node,
                expected=expected,
                found=payload.seq,
            )
        return node

    def _died(self, where: tuple[str, str], payload: Payload) -> None:
        node = self._nodes.get(where)
        # A will that was laid down before the last birth comes late, and says nothing of now.
        if node is not None and node.bd_seq in (None, _bd_seq(payload)):
            del self._nodes[where]
            self._wanted.discard(where)
            log.info("node.died", group=where[0], node=where[1])

    def _births(self, node: _Node, topic: Topic, payload: Payload) -> None:
        node.forget(topic.device)
        if topic.device:
            node.devices.add(topic.device)
        others = 0
        size = sum(len(each.names) for each in self._nodes.values())
        for metric in payload.metrics:
            if not metric.name or metric.datatype is None:
                self.unreadable["a birth has a metric without name or data type"] += 1
                continue
            if metric.datatype not in sparkplug.NUMERIC:
                others += 1
            if size == MAX_KNOWN:
                raise PermanentError(f"more than {MAX_KNOWN} metrics of all nodes")
            known = _Known(topic.device, metric.name, metric.datatype)
            size += (topic.device, metric.name) not in node.names
            node.names[topic.device, metric.name] = known
            if metric.alias is not None:
                node.aliases[metric.alias] = known
        log.info(
            "node.born",
            group=topic.group,
            node=topic.node,
            device=topic.device,
            metrics=len(payload.metrics),
            not_numeric=others,
        )

    def _reading(
        self, node: _Node, topic: Topic, payload: Payload, metric: Metric, name: Name
    ) -> Reading | None:
        """One value; None: it is not wanted, no number, or known. Raises PermanentError."""
        known = self._known(node, topic, metric)
        if known is None:
            return None
        ours = name(topic.group, topic.node, topic.device, known.name)
        if ours is None:
            return None
        value = _value(metric, known.datatype)
        observed_ms = metric.timestamp_ms
        if observed_ms is None and not metric.historical:
            observed_ms = payload.timestamp_ms
        if not observed_ms:
            raise PermanentError("a value without a time")
        reading = Reading(ours, observed_ms, value)
        acceptance.check_readings([reading], self._names)
        latest = self._fresh.get(ours, self._latest.get(ours))
        if latest is None and len(self._latest) + len(self._fresh) >= 2 * MAX_KNOWN:
            raise PermanentError(f"more than {2 * MAX_KNOWN} metrics since the start")
        if topic.birth and latest is not None and observed_ms <= latest:
            return None
        self._fresh[ours] = observed_ms if latest is None else max(latest, observed_ms)
        return reading

    def _known(self, node: _Node, topic: Topic, metric: Metric) -> _Known | None:
        """What its birth said; None: it gives no readings. Raises PermanentError: none did."""
        if topic.birth and (not metric.name or metric.datatype is None):
            return None  # counted with the birth
        if metric.name:
            known = node.names.get((topic.device, metric.name))
        else:
            known = node.aliases.get(-1 if metric.alias is None else metric.alias)
        if known is None or known.device != topic.device:
            self._wanted.add((topic.group, topic.node))
            raise PermanentError("a metric that no birth has declared")
        command = known.name == _BD_SEQ or known.name.startswith(_COMMANDS)
        return None if command or known.datatype not in sparkplug.NUMERIC else known


def _value(metric: Metric, datatype: int) -> float:
    """Raises PermanentError: there is none that may be used."""
    if metric.datatype not in (None, datatype):
        raise PermanentError("a metric whose data type is not that of its birth")
    if metric.null:
        raise PermanentError("a value is null")
    if metric.quality not in (None, sparkplug.GOOD):
        raise PermanentError(f"a value of quality {metric.quality}")
    if metric.raw is None:
        raise PermanentError("a metric without a value")
    value = sparkplug.number(metric.raw, datatype)
    if not math.isfinite(value):
        raise PermanentError(f"a value is {value}")
    return value


def _bd_seq(payload: Payload) -> int | None:
    for metric in payload.metrics:
        if metric.name == _BD_SEQ and metric.raw is not None:
            return int(metric.raw.number)
    return None
