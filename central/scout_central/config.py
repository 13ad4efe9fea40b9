"""Settings of the hub (``hub.toml``) and the two decisions that follow from them.

Secrets are environment variables only: SCOUT_DATABASE_DSN, SCOUT_MQTT_PASSWORD. A token stands in
the file as its SHA-256, never itself (``scout-hub token`` makes both).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from scout_shared import settings, topics
from scout_shared.errors import ConfigError

ROLES = ("viewer", "operator", "uploader", "admin")
ALL_STORES = "*"


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """/var/lib/scout for root, else ``scout`` in the XDG data home. Never inside a checkout."""
    if os.geteuid() == 0:
        return Path("/var/lib/scout")
    home = environ.get("XDG_DATA_HOME", "")
    # The standard says that a relative path there is to be ignored.
    base = Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()
    return base / "scout"


@dataclass(frozen=True, slots=True)
class Database:
    """Where PostgreSQL is: SCOUT_DATABASE_DSN, or the embedded one of ``scout-hub database``."""

    dsn: str = settings.secret("SCOUT_DATABASE_DSN")
    """libpq connection string; empty: the embedded server in ``data_dir``."""
    data_dir: Path = field(default_factory=lambda: default_directory() / "database")
    """Directory of the embedded server. Default: /var/lib/scout/database for root, else below the
    XDG data home."""
    port: int = 5432
    """TCP port of the embedded server on 127.0.0.1. Default 5432."""


@dataclass(frozen=True, slots=True)
class Mqtt:
    """The broker between the devices and the hub."""

    host: str = "127.0.0.1"
    """Name or address. Default 127.0.0.1."""
    port: int = 1883
    """TCP port; 8883 is usual with TLS. Default 1883."""
    username: str = ""
    """User of the hub at the broker; empty: none."""
    password: str = settings.secret("SCOUT_MQTT_PASSWORD")
    """Its password, if it has one."""
    tls: bool = False
    """Whether to speak TLS and to check the broker's certificate. Default false."""
    ca_file: Path | None = None
    """Certificates to trust, PEM; default: those of the system."""


@dataclass(frozen=True, slots=True)
class Broker:
    """What an enrolled device is told of the broker, and where the broker's accounts are."""

    host: str = ""
    """Name or address that the devices use; empty: host, port and TLS of [mqtt]."""
    port: int = 8883
    """TCP port, together with ``host``. Default 8883."""
    tls: bool = True
    """Whether the devices speak TLS, together with ``host``. Default true."""
    ca_file: Path | None = None
    """Certificates that devices shall trust for it, PEM; default: those of their system."""
    password_file: Path | None = None
    """mosquitto's password_file, which the hub then keeps; default: accounts are made by hand."""
    pid_file: Path | None = None
    """mosquitto's pid file: it gets SIGHUP when accounts have changed. Default none."""
    reload_command: tuple[str, ...] = ()
    """Or a command that reloads it, e.g. ["systemctl", "reload", "mosquitto"]. Default none."""


@dataclass(frozen=True, slots=True)
class Ingest:
    """How segments are taken in and committed."""

    enabled: bool = True
    """Whether ``scout-hub run`` ingests. Default true."""
    queue_bytes: int = 64 * 1024 * 1024
    """Bytes received and not committed that the hub may hold; more is dropped, and sent again by
    the devices. Default 64 MiB."""
    batch_segments: int = 100
    """Messages in one transaction, at most. Default 100."""
    batch_milliseconds: int = 20
    """How long a batch stays open for more, ms. Default 20."""
    committers: int = 1
    """Threads that commit, each with a connection. Default 1."""
    share_group: str = "hub"
    """Name of the shared subscription; the same in all hubs that share the work. Default hub."""
    enrolment: str = "open"
    """"open": a device that is heard for the first time is taken in; "required": it is noted as
    pending and keeps its data, until it is enrolled or an operator activates it. Default open."""
    metrics_port: int = 0
    """Port on 127.0.0.1 where ``scout-hub ingest`` and ``runner`` serve Prometheus metrics; 0: none
    (``run`` and ``api`` have them at /metrics). Default 0."""


@dataclass(frozen=True, slots=True)
class Runner:
    """The micro-batches that carry bronze to silver, gold and platinum."""

    enabled: bool = True
    """Whether ``scout-hub run`` runs them. Default true."""
    interval_seconds: float = 10.0
    """Time from the end of one run to the start of the next, s. Default 10."""


@dataclass(frozen=True, slots=True)
class Token:
    """Who may use the API. The token itself is known to its bearer only."""

    name: str
    """Whose it is; stands in the audit."""
    sha256: str
    """SHA-256 of the token, 64 hexadecimal digits: ``scout-hub token`` prints this table."""
    role: str = "viewer"
    """viewer, operator, uploader or admin. Default viewer."""
    stores: tuple[str, ...] = ()
    """Ids of the stores it may see; ["*"]: all. Default none."""

    def sees(self, store_id: str) -> bool:
        """Whether this token may see that store."""
        return store_id in self.stores or ALL_STORES in self.stores

    def matches(self, token: str) -> bool:
        """Whether ``token`` is the one, in a time that does not tell how nearly."""
        return hmac.compare_digest(sha256(token.encode()).hexdigest(), self.sha256.lower())


@dataclass(frozen=True, slots=True)
class Api:
    """The HTTP API of the hub."""

    enabled: bool = True
    """Whether ``scout-hub run`` serves it. Default true."""
    host: str = "127.0.0.1"
    """Address to listen on. Default 127.0.0.1: put a proxy with TLS before it to open it."""
    port: int = 8700
    """TCP port. Default 8700."""
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses or networks of the proxies before it: what they say of who asks (X-Forwarded-For)
    is believed, so that wrong passwords count for that address. Default: those on this machine."""
    tokens: tuple[Token, ...] = ()
    """Who may use it, as [[api.tokens]] tables. Default nobody."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where uploaded files are kept as they came."""

    directory: Path = field(default_factory=lambda: default_directory() / "files")
    """Directory; files lie in it by the hash of their content. Default: files, beside the
    database's default."""


@dataclass(frozen=True, slots=True)
class Log:
    """Log lines on stderr."""

    level: str = "info"
    """debug, info, warning or error. Default info."""
    json: bool = False
    """One JSON object per line, for machines. Default false."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All of ``hub.toml``."""

    database: Database = field(default_factory=Database)
    mqtt: Mqtt = field(default_factory=Mqtt)
    broker: Broker = field(default_factory=Broker)
    ingest: Ingest = field(default_factory=Ingest)
    runner: Runner = field(default_factory=Runner)
    api: Api = field(default_factory=Api)
    storage: Storage = field(default_factory=Storage)
    log: Log = field(default_factory=Log)

    def database_dsn(self) -> str:
        """Where PostgreSQL is, with its password: never log it.

        Raises:
            ConfigError: no SCOUT_DATABASE_DSN, and the embedded server was never started.
        """
        if self.database.dsn:
            return self.database.dsn
        from scout_central.embedded import EmbeddedPostgres

        return EmbeddedPostgres(self.database.data_dir, port=self.database.port).dsn


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in ``path`` (None: the defaults), checked. Raises ConfigError."""
    loaded = settings.load(Settings, path, environ)
    _check(loaded)
    return loaded


def _check(s: Settings) -> None:
    for name, port, least in (
        ("mqtt.port", s.mqtt.port, 1),
        ("broker.port", s.broker.port, 1),
        ("api.port", s.api.port, 0),
        ("database.port", s.database.port, 0),
        ("ingest.metrics_port", s.ingest.metrics_port, 0),
    ):
        if not least <= port <= 65535:
            raise ConfigError(f"{name} is {port}, which is no TCP port")
    for name, value, least_value in (
        ("ingest.queue_bytes", s.ingest.queue_bytes, 2 * 1024 * 1024),
        ("ingest.batch_segments", s.ingest.batch_segments, 1),
        ("ingest.batch_milliseconds", s.ingest.batch_milliseconds, 0),
        ("ingest.committers", s.ingest.committers, 1),
        ("runner.interval_seconds", s.runner.interval_seconds, 0.1),
    ):
        if value < least_value:
            raise ConfigError(f"{name} is {value}", f"give {least_value} or more")
    if s.log.level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"log.level is {s.log.level!r}", "use debug, info, warning or error")
    if s.ingest.enrolment not in ("open", "required"):
        raise ConfigError(f"ingest.enrolment is {s.ingest.enrolment!r}", "use 'open' or 'required'")
    topics.check_name("ingest.share_group", s.ingest.share_group)
    names: set[str] = set()
    for token in s.api.tokens:
        _check_token(token)
        if token.name in names:
            raise ConfigError(f"two api.tokens are named {token.name!r}")
        names.add(token.name)


def _check_token(token: Token) -> None:
    if token.role not in ROLES:
        raise ConfigError(
            f"role {token.role!r} of token {token.name!r} is not known",
            f"use one of: {', '.join(ROLES)}",
        )
    if len(token.sha256) != 64 or not set(token.sha256.lower()) <= set("0123456789abcdef"):
        raise ConfigError(
            f"sha256 of token {token.name!r} is not 64 hexadecimal digits",
            "make a token with: scout-hub token",
        )
    for store_id in token.stores:
        if store_id != ALL_STORES:
            topics.check_name("store", store_id)
