"""Tells systemd how the agent is: ready, alive, stopping. Without systemd it says nothing.

The protocol of sd_notify(3) over its datagram socket, by hand: it is three lines, and the library
would be a compiled wheel. A watchdog ping leaves only after ``alive`` has come back in time, so
that an agent whose writer, door or event loop hangs is killed and started again by systemd, which
the buffer makes safe at any moment.

Not its job: deciding what alive means (``Agent.alive``).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping

from scout_shared import logs
from scout_shared.errors import ScoutError

READY, STOPPING, PING = "READY=1", "STOPPING=1", "WATCHDOG=1"
_PINGS_PER_WATCHDOG = 3  # sd_watchdog_enabled(3) advises two; one may be late on a slow card
_STATUS_SECONDS = 30.0  # between status lines when there is no watchdog

log = logs.get("notify")


class StuckError(ScoutError):
    """A part of the agent that must move does not."""


class Manager:
    """The service manager that started this process, if one did.

    Args:
        address: ``NOTIFY_SOCKET``: a path, or ``@name`` in Linux' abstract namespace; empty: none.
        watchdog_seconds: after so long without a ping it kills the process; 0: never.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], pid: int) -> Manager:
        """The manager that ``environ`` names; its watchdog only when it means process ``pid``."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        seconds = int(microseconds) / 1e6 if microseconds.isdigit() and meant else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), seconds)

    @property
    def present(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def say(self, *states: str) -> None:
        """Send states in one datagram; a manager that cannot be reached is logged, no more."""
        if not self._address:
            return
        # A line break inside a value would begin another state.
        text = "\n".join(" ".join(state.splitlines()) for state in states)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A full queue must not hold the event loop up: the next ping comes soon.
                sender.setblocking(False)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("manager.unreached", reason=str(error))


async def watch(manager: Manager, alive: Callable[[], str]) -> None:
    """Ping for as long as ``alive`` answers in time; runs until cancelled.

    Args:
        alive: called in a thread; returns a status line, or raises StuckError. Any other ScoutError
            is an answer, too: a part that says no is alive. While a call hangs no second one is
            made.
    """
    if not manager.present:
        return
    pause = manager.watchdog_seconds / _PINGS_PER_WATCHDOG or _STATUS_SECONDS
    asking: asyncio.Future[str] | None = None
    while True:
        if asking is None:
            asking = asyncio.ensure_future(asyncio.to_thread(alive))
        await asyncio.wait([asking], timeout=pause)
        reason = f"no answer in {pause:g} s"
        if asking.done():
            reason, line = _answer(asking)
            asking = None
            if not reason:
                manager.say(PING, f"STATUS={line}")
        if reason:
            log.error("watchdog.withheld", reason=reason)
            manager.say(f"STATUS=stuck: {reason}")
        await asyncio.sleep(pause)


def _answer(asked: asyncio.Future[str]) -> tuple[str, str]:
    """Why no ping may leave, or the status line."""
    try:
        return "", asked.result()
    except StuckError as error:
        return error.message, ""
    except ScoutError as error:
        return "", error.message
