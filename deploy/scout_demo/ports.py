"""Where each program listens: 127.0.0.1, the wanted port, or the next free one, said aloud."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from scout_shared.errors import ConfigError

HOST = "127.0.0.1"
_TRIES = 200


@dataclass(frozen=True)
class WantedPorts:
    """Ports as the person wants them; 0: any free one."""

    api: int = 8700
    console: int = 8501
    database: int = 8710
    broker: int = 8711
    door: int = 8780
    """Of the first agent; the others follow."""


class Ports:
    """Gives out ports, none twice."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.given: list[int] = []
        self._say = say

    def choose(self, what: str, wanted: int) -> int:
        """``wanted`` if it is free, else the next that is. Raises ConfigError when none is."""
        for port in range(wanted, wanted + _TRIES) if wanted else [0] * _TRIES:
            if port > 65_535:
                break
            free = _free(port)
            if free and free not in self.given:
                if wanted and free != wanted and wanted not in self.given:
                    self._say(f"port {wanted} is in use: {what} takes {free}")
                self.given.append(free)
                return free
        raise ConfigError(f"no free port for {what} from {wanted} on", "choose another; see --help")

    def listening(self) -> list[int]:
        """Those of the given ports on which something still listens."""
        return [port for port in self.given if listens(port)]


def _free(port: int) -> int:
    """The port if nothing listens there, else 0; 0 asks for any."""
    with socket.socket() as probe:
        # As servers do: connections of a server that just ended are no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex((HOST, port)) == 0
