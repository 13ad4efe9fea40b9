"""How Streamlit is started: its command line, with our theme, and nothing that leaves the machine.

Settings travel as environment variables (``config.to_environment``), so that the process is the
ordinary ``python -m streamlit run``.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from scout_console import config
from scout_shared.errors import ConfigError

SCRIPT = Path(__file__).with_name("app.py")

_LIGHT = {
    "primaryColor": "#2f5d8a",
    "backgroundColor": "#fbfaf7",
    "secondaryBackgroundColor": "#f1efe9",
    "textColor": "#1f2429",
    "linkColor": "#2f5d8a",
    "borderColor": "#dedad1",
}
_DARK = {
    "primaryColor": "#8db4dc",
    "backgroundColor": "#15181b",
    "secondaryBackgroundColor": "#1e2226",
    "textColor": "#e4e1da",
    "linkColor": "#8db4dc",
    "borderColor": "#33393f",
}
OPTIONS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    # No usage figures, and no look-up of this machine's address in the internet.
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    # A stack trace belongs in the log, not in a browser.
    "client.showErrorDetails": "none",
    "logger.hideWelcomeMessage": "true",
    "theme.baseFontSize": "15",
    "theme.baseRadius": "4px",
    **{f"theme.light.{name}": value for name, value in _LIGHT.items()},
    **{f"theme.dark.{name}": value for name, value in _DARK.items()},
}


def command(settings: config.ConsoleSettings) -> list[str]:
    """The command line of the web process."""
    options = {
        **OPTIONS,
        "server.address": settings.web.host,
        "browser.serverAddress": settings.web.host,
        "server.port": str(settings.web.port),
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(SCRIPT), *flags]


def serve(settings: config.ConsoleSettings) -> NoReturn:
    """Become the web process. Raises ConfigError when it could not work."""
    if importlib.util.find_spec("streamlit") is None:
        raise ConfigError("streamlit is not installed", "pip install 'scout-console[web]'")
    _check_port(settings.web.host, settings.web.port)
    arguments = command(settings)
    os.execve(  # noqa: S606  # no shell: our own interpreter, a list of arguments
        arguments[0], arguments, {**os.environ, **config.to_environment(settings)}
    )


def _check_port(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"the web console cannot listen on {host} port {port}: {error.strerror}",
            "choose another with --port, or [web] host and port in the settings file",
        ) from error
