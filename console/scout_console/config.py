"""Settings of the console (``console.toml``), and how the web process gets them.

The token of the hub is an environment variable only: SCOUT_HUB_TOKEN.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scout_console.values import Clock
from scout_shared import settings
from scout_shared.errors import ConfigError

_VARIABLE = "SCOUT_CONSOLE_SETTINGS"
"""Settings on their way from the command line to Streamlit's process, as JSON; no secrets."""


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub that is looked at."""

    url: str = "http://127.0.0.1:8700"
    """Address of its API, without /v1. Default http://127.0.0.1:8700."""
    token: str = settings.secret("SCOUT_HUB_TOKEN")
    """Bearer token; made with ``scout-hub token``."""
    timeout_seconds: float = 5.0
    """How long an answer may take, s. Default 5."""


@dataclass(frozen=True, slots=True)
class Screen:
    """What all screens share."""

    environment: str = ""
    """Name of this installation, shown on top, e.g. production. Default none."""
    zone: str = "Asia/Manila"
    """IANA time zone of every time on the screens. Default Asia/Manila."""
    refresh_seconds: float = 5.0
    """Time between two looks at the hub, s, 1 to 600. Default 5."""


@dataclass(frozen=True, slots=True)
class Web:
    """Where ``scout-console web`` listens."""

    host: str = "127.0.0.1"
    """Address. Default 127.0.0.1: everybody who reaches it sees what the token may see."""
    port: int = 8501
    """TCP port. Default 8501."""


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """The whole file."""

    hub: Hub = field(default_factory=Hub)
    """The hub that is looked at."""
    screen: Screen = field(default_factory=Screen)
    """What all screens share."""
    web: Web = field(default_factory=Web)
    """Where the web console listens."""


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> ConsoleSettings:
    """Settings from ``path``, or the defaults. Raises ConfigError."""
    return checked(settings.load(ConsoleSettings, path, environ))


def checked(found: ConsoleSettings) -> ConsoleSettings:
    """``found``, if a screen can work with it. Raises ConfigError."""
    if not found.hub.url.startswith(("http://", "https://")):
        raise ConfigError(
            f"hub address {found.hub.url!r} is no web address",
            "give one such as http://127.0.0.1:8700",
        )
    if not 1.0 <= found.screen.refresh_seconds <= 600.0:
        raise ConfigError(
            f"refresh_seconds is {found.screen.refresh_seconds:g}", "give 1 to 600 seconds"
        )
    if found.hub.timeout_seconds <= 0:
        raise ConfigError(
            f"timeout_seconds is {found.hub.timeout_seconds:g}", "give a time above 0"
        )
    if not 0 < found.web.port < 65_536:
        raise ConfigError(f"port {found.web.port} does not exist", "give 1 to 65535")
    Clock(found.screen.zone)
    return found


def to_environment(found: ConsoleSettings) -> dict[str, str]:
    """Variables with which another process of ours has the same settings."""
    document = dataclasses.asdict(found)
    token = document["hub"].pop("token")
    return {_VARIABLE: json.dumps(document), "SCOUT_HUB_TOKEN": token}


def from_environment(environ: Mapping[str, str] = os.environ) -> ConsoleSettings:
    """What ``to_environment`` gave; the defaults when nothing was given."""
    document = json.loads(environ.get(_VARIABLE, "{}"))
    return checked(
        settings.decode(ConsoleSettings, document, environ, where="settings of this process")
    )
