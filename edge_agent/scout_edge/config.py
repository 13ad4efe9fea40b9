"""Settings of the agent: one TOML file, see ``deploy/samples/edge.toml``; unknown keys are errors.

The only module here that reads files and the environment for settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scout_edge import identity
from scout_edge.privacy import PrivacySettings
from scout_edge.room import Limits
from scout_edge.sources import registry
from scout_edge.sources.registry import SourceSettings
from scout_shared import settings, topics
from scout_shared.errors import ConfigError
from scout_shared.zones import BusinessCalendar

HELLO_BYTES = 1_200
"""About a hello and the receipt that answers it (measured: 1,050; more after many restarts)."""
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Who this device is."""

    id: str
    """Its name in the fleet and its MQTT user name. Default: as it was enrolled."""
    store: str
    """Id of the store where it stands. Default: as it was enrolled."""
    zone: str
    """IANA time zone of the store, e.g. 'Asia/Manila'; business days are days in it. Default: as
    it was enrolled; nothing else, because a wrong zone moves sales to another day."""


@dataclass(frozen=True, slots=True)
class BufferSettings:
    """Where accepted records wait for the hub."""

    path: Path = Path("/var/lib/scout/edge.db")
    """The buffer file. Default /var/lib/scout/edge.db."""
    max_bytes: int = 1 << 30
    """Bytes the file may have. Default 1 GiB: 400 million readings."""
    min_free_bytes: int = 64 << 20
    """Free space of the disk below which the file does not grow. Default 64 MiB."""
    document_reserve_ratio: float = 0.1
    """Share of the room that only documents (sales) may use. Default 0.1."""
    readings_at_cap: str = "thin"
    """When there is no more room for readings: 'reject' refuses new ones, 'thin' gives up every
    second segment of the old ones, 'drop_oldest' the oldest; what is given up is declared to the
    hub. Documents are refused, never given up. Default 'thin'."""
    group_commit_seconds: float = 0.0
    """Seconds a commit waits for other requests to share its disk write. Default 0."""
    note_seconds: float = 30.0
    """Least seconds between two notes, beside the file, of how far it reaches: a file that is lost
    is declared to the hub up to the last one. Default 30."""
    seal_seconds: float = 5.0
    """Seconds that records may wait for others to be sent with. Default 5."""

    def __post_init__(self) -> None:
        _ = self.limits

    @property
    def limits(self) -> Limits:
        """What the file may take of the disk. Raises ConfigError: a value cannot be."""
        return Limits(
            self.max_bytes,
            self.min_free_bytes,
            self.document_reserve_ratio,
            self.readings_at_cap,
        )


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """The way to the hub."""

    host: str = "127.0.0.1"
    """Host name of the broker. Default: as the device was enrolled, port and TLS with it; else
    127.0.0.1."""
    port: int = 1883
    """Port of the broker. Default 1883; with TLS usually 8883."""
    version: str = "3.1.1"
    """MQTT version, '3.1.1' or '5'. Default '3.1.1', which every broker speaks."""
    transport: str = "tcp"
    """'tcp' or 'websockets', for networks that let only web traffic out; with TLS: wss. Default
    'tcp'."""
    websocket_path: str = "/mqtt"
    """Path of the broker's WebSocket listener. Default '/mqtt'."""
    tls: bool = False
    """Whether to use TLS. Default false."""
    tls_ca: Path | None = None
    """File with the broker's CA, PEM. Default: those of the system."""
    tls_certificate: Path | None = None
    """This device's certificate, PEM. Default none."""
    tls_key: Path | None = None
    """The certificate's key, PEM. Default none."""
    password: str = settings.secret("SCOUT_MQTT_PASSWORD")
    """Password of the user ``[device] id``; empty: the one of the enrolment, and without that no
    user name either. Environment only."""
    heartbeat_seconds: float = 15.0
    """Seconds between hellos; three missed ones make the device late. Default 15."""
    ack_timeout_seconds: float = 5.0
    """Least seconds to wait for a receipt before sending again. Default 5."""
    reconnect_cap_seconds: float = 300.0
    """Most seconds between two attempts to connect. Default 300."""
    silence_seconds: float = 30.0
    """Seconds without any sign from the broker, while one is awaited, after which the connection
    counts as dead. Default 30."""
    live_share_ratio: float = 0.25
    """Share of what is sent that goes to the newest records, sales first, while there is a backlog;
    the rest of it goes oldest first. 0: oldest first only. Default 0.25."""
    budget_bytes_per_day: int = 0
    """Bytes of messages, either way, that a metered link may carry in a day of the store, without
    what TCP and TLS add. When they are used up, readings wait for the next day; sales and hellos
    go on. 0: no limit. Default 0."""
    storm_guard_seconds: float = 0.0
    """After a start or an outage of two minutes the backlog waits for a random time up to this, so
    that a chain does not come back at one second; what is new goes at once. Default 0."""
    drain_seconds: float = 2.0
    """Seconds to go on sending when told to stop. Default 2; what is left waits in the buffer."""


@dataclass(frozen=True, slots=True)
class HubSettings:
    """The second way to the hub, by HTTPS, for networks that block MQTT."""

    url: str = ""
    """Where the hub's API is, https://…; plain http only on this machine. Default: as the device
    was enrolled; empty: there is no second way."""
    ca: Path | None = None
    """File with the hub's CA, PEM. Default: as the device was enrolled; else those of the system.
    """
    fallback_after_seconds: float = 120.0
    """Seconds without a receipt by MQTT after which HTTPS is used; 0: never. Default 120."""
    retry_mqtt_seconds: float = 180.0
    """Seconds after which MQTT is tried again meanwhile. Default 180."""

    def __post_init__(self) -> None:
        settings.check_seconds("fallback_after_seconds", self.fallback_after_seconds, 0)
        settings.check_seconds("retry_mqtt_seconds", self.retry_mqtt_seconds, 0.1)
        if not self.url:
            return
        where = urllib.parse.urlsplit("")
        with contextlib.suppress(ValueError):
            where = urllib.parse.urlsplit(self.url)
            _ = where.port  # raises, too
        if where.scheme not in ("https", "http") or not where.hostname:
            raise ConfigError(f"url {self.url!r} is no address", "write https://hub.example")
        if where.scheme == "http" and where.hostname not in _LOCAL:
            raise ConfigError(
                f"url {self.url} is not encrypted: the password would be read on its way",
                "use https://…",
            )

    @property
    def fallback(self) -> bool:
        """Whether there is a second way."""
        return bool(self.url) and self.fallback_after_seconds > 0


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The local door for a point of sale."""

    enabled: bool = True
    """Whether it is open. Default true."""
    host: str = "127.0.0.1"
    """Address it listens on. Default 127.0.0.1: it has no password, so keep it local."""
    port: int = 8780
    """Port it listens on. Default 8780; 0: any free one."""

    def __post_init__(self) -> None:
        settings.check_port("port", self.port, 0)


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """Telemetry of this machine."""

    enabled: bool = True
    """Whether it is read. Default true."""
    interval_seconds: float = 10.0
    """Seconds between two samples. Default 10."""

    def __post_init__(self) -> None:
        settings.check_seconds("interval_seconds", self.interval_seconds, 0.1)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """What the hub may order; only an enrolled device has the key to know its orders by."""

    enabled: bool = True
    """Whether its orders are obeyed. Default true."""
    healthy_seconds: float = 10.0
    """Receipts must flow so long before new settings are kept. Default 10."""
    trial_seconds: float = 180.0
    """Within this time; else the last good settings come back. Default 180."""

    def __post_init__(self) -> None:
        settings.check_seconds("healthy_seconds", self.healthy_seconds, 0.1)
        settings.check_seconds("trial_seconds", self.trial_seconds, 0.1)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Log lines on stderr."""

    json: bool = False
    """JSON lines instead of lines for people. Default false."""
    level: str = "info"
    """debug, info, warning or error. Default info."""


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """All settings of ``scout-edge``."""

    device: DeviceSettings
    """Who this device is."""
    buffer: BufferSettings = field(default_factory=BufferSettings)
    """Where accepted records wait."""
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    """The way to the hub."""
    hub: HubSettings = field(default_factory=HubSettings)
    """The second way to the hub."""
    http: HttpSettings = field(default_factory=HttpSettings)
    """The local door."""
    system: SystemSettings = field(default_factory=SystemSettings)
    """Telemetry of this machine."""
    remote: RemoteSettings = field(default_factory=RemoteSettings)
    """The hub's orders."""
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    """What is personal, and what is done with it before it is stored."""
    log: LogSettings = field(default_factory=LogSettings)
    """Log lines."""
    sources: Mapping[str, SourceSettings] = field(
        default_factory=dict, metadata={"decode": registry.decode}
    )
    """More sources by name, of any kind. Default none."""


def load(path: Path, environ: Mapping[str, str]) -> EdgeSettings:
    """Read and check the settings file, completed by the enrolment. Raises ConfigError."""
    return check(path, settings.read(path), environ)


def buffer_path(document: Mapping[str, Any]) -> Path:
    """Where the buffer is, for those who have no complete settings yet. Raises ConfigError."""
    table = document.get("buffer")
    given = table.get("path") if isinstance(table, Mapping) else None
    if not isinstance(given, str):
        return BufferSettings().path
    if "\0" in given:
        raise ConfigError(f"[buffer] path {given!r} cannot be", "take the NUL out of it")
    path = Path(given).expanduser()
    if not path.name or path.is_dir():
        raise ConfigError(
            f"[buffer] path {given!r} is a folder",
            "give a file in a folder that the agent may write to, e.g. /var/lib/scout/edge.db",
        )
    return path


def check(path: Path, document: Mapping[str, Any], environ: Mapping[str, str]) -> EdgeSettings:
    """The settings that ``document``, read from ``path``, comes to. Raises ConfigError."""
    document, environ = _completed(path, document, environ)
    loaded = settings.decode(EdgeSettings, document, environ, where=str(path))
    topics.check_name("[device] id", loaded.device.id)
    topics.check_name("[device] store", loaded.device.store)
    BusinessCalendar(loaded.device.zone)
    if loaded.mqtt.version not in ("3.1.1", "5"):
        raise ConfigError(
            f"[mqtt] version {loaded.mqtt.version!r} is not known", "use '3.1.1' or '5'"
        )
    if loaded.mqtt.transport not in ("tcp", "websockets"):
        raise ConfigError(
            f"[mqtt] transport {loaded.mqtt.transport!r} is not known", "use 'tcp' or 'websockets'"
        )
    if not loaded.mqtt.websocket_path.startswith("/"):
        raise ConfigError(
            f"[mqtt] websocket_path {loaded.mqtt.websocket_path!r} is no path", "begin it with '/'"
        )
    if loaded.log.level not in ("debug", "info", "warning", "error"):
        raise ConfigError(
            f"[log] level {loaded.log.level!r} is not known", "use debug, info, warning or error"
        )
    for name, seconds, least in (
        ("[buffer] group_commit_seconds", loaded.buffer.group_commit_seconds, 0.0),
        ("[buffer] note_seconds", loaded.buffer.note_seconds, 0.0),
        ("[buffer] seal_seconds", loaded.buffer.seal_seconds, 0.0),
        ("[mqtt] heartbeat_seconds", loaded.mqtt.heartbeat_seconds, 0.1),
        ("[mqtt] ack_timeout_seconds", loaded.mqtt.ack_timeout_seconds, 0.1),
        ("[mqtt] reconnect_cap_seconds", loaded.mqtt.reconnect_cap_seconds, 0.1),
        ("[mqtt] silence_seconds", loaded.mqtt.silence_seconds, 0.1),
        ("[mqtt] storm_guard_seconds", loaded.mqtt.storm_guard_seconds, 0.0),
        ("[mqtt] drain_seconds", loaded.mqtt.drain_seconds, 0.0),
    ):
        settings.check_seconds(name, seconds, least)
    if not 0 <= loaded.mqtt.live_share_ratio <= 1:
        raise ConfigError(
            f"[mqtt] live_share_ratio {loaded.mqtt.live_share_ratio} cannot be", "give 0 to 1"
        )
    _check_budget(loaded.mqtt)
    settings.check_port("[mqtt] port", loaded.mqtt.port, 1)
    if (
        loaded.hub.fallback
        and loaded.hub.fallback_after_seconds < 2 * loaded.mqtt.heartbeat_seconds
    ):
        raise ConfigError(
            f"[hub] fallback_after_seconds {loaded.hub.fallback_after_seconds} is too short: the"
            f" hub is asked every {loaded.mqtt.heartbeat_seconds} s ([mqtt] heartbeat_seconds)",
            "give at least twice that, or 0 for no fallback",
        )
    _check_host(loaded.mqtt.host)
    _check_tls(loaded.mqtt)
    return loaded


def _check_budget(mqtt: MqttSettings) -> None:
    """Hellos alone must leave most of it to what the device has to say."""
    budget = mqtt.budget_bytes_per_day
    if not budget:
        return
    if budget < 0:
        raise ConfigError(
            f"[mqtt] budget_bytes_per_day {budget} cannot be", "give bytes, or 0 for no limit"
        )
    hellos = int(86_400 / mqtt.heartbeat_seconds * HELLO_BYTES)
    if hellos > budget / 2:
        raise ConfigError(
            f"[mqtt] budget_bytes_per_day {budget} is too small: a hello every"
            f" {mqtt.heartbeat_seconds:g} s with its receipt is {hellos} bytes a day",
            f"give at least {2 * hellos} bytes, or a longer heartbeat_seconds",
        )


def _check_host(host: str) -> None:
    if not host or set("/[]@ ") & set(host):
        raise ConfigError(
            f"[mqtt] host {host!r} is no host name",
            "give the broker's name or address only; its port stands in port",
        )


def _check_tls(mqtt: MqttSettings) -> None:
    """Whoever names TLS files means to be encrypted."""
    files = {
        "tls_ca": mqtt.tls_ca,
        "tls_certificate": mqtt.tls_certificate,
        "tls_key": mqtt.tls_key,
    }
    given = [name for name, path in files.items() if path is not None]
    if given and not mqtt.tls:
        raise ConfigError(
            f"[mqtt] {given[0]} is set, but tls is false: nothing would be encrypted",
            f"write tls = true, or leave {' and '.join(given)} out",
        )
    if mqtt.tls_key is not None and mqtt.tls_certificate is None:
        raise ConfigError(
            "[mqtt] tls_key is set without tls_certificate", "a client certificate needs both"
        )


def _completed(
    path: Path, document: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """What the settings leave open, as the hub said at the enrolment. The settings win, but who
    the device is must not be said in two ways."""
    device, mqtt = document.get("device", {}), document.get("mqtt", {})
    hub = document.get("hub", {})
    if not all(isinstance(table, Mapping) for table in (device, mqtt, hub)):
        return document, environ  # decoding says what is wrong
    buffer = buffer_path(document)
    known = identity.read(buffer)
    if known is None:
        missing = [key for key in ("id", "store", "zone") if key not in device]
        if missing:
            raise ConfigError(
                f"{path}: device: {', '.join(map(repr, missing))} must be set",
                "enrol the device: scout-edge enrol --hub https://… --token …; or write them",
            )
        return document, environ
    own = {"id": known.device_id, "store": known.store_id, "zone": known.zone}
    for key, value in own.items():
        if device.get(key, value) != value:
            raise ConfigError(
                f"{path}: [device] {key} is {device[key]!r}, but the device was enrolled as"
                f" {value!r} ({identity.path_of(buffer)})",
                f"remove {key} from the settings; a box that moves or is renamed is enrolled anew",
            )
    # Its own broker: then nothing of the hub's holds for it.
    route: dict[str, Any] = {}
    if "host" not in mqtt:
        route = {
            "host": known.broker_host,
            "port": known.broker_port,
            "tls": known.broker_tls,
        }
        if known.broker_tls and known.broker_ca:
            route["tls_ca"] = str(identity.ca_path(buffer))
        if "url" not in hub and known.hub_url:
            second: dict[str, Any] = {"url": known.hub_url}
            if known.hub_ca:
                second["ca"] = str(identity.hub_ca_path(buffer))
            hub = {**second, **hub}
    # The installer's edge.env has the variable, empty.
    password = environ.get("SCOUT_MQTT_PASSWORD") or known.password
    return (
        {**document, "device": {**own, **device}, "mqtt": {**route, **mqtt}, "hub": hub},
        {**environ, "SCOUT_MQTT_PASSWORD": password},
    )


def as_dict(loaded: EdgeSettings) -> dict[str, Any]:
    """All settings with their defaults, without secrets."""
    shown = dataclasses.asdict(loaded)
    for section in dataclasses.fields(loaded):
        if section.name != "sources":
            _hide_secrets(getattr(loaded, section.name), shown[section.name])
    for name, source in loaded.sources.items():
        _hide_secrets(source.settings, shown["sources"][name]["settings"])
    return shown


def _hide_secrets(table: Any, shown: dict[str, Any]) -> None:
    for inner in dataclasses.fields(table):
        if "variable" in inner.metadata:
            del shown[inner.name]
