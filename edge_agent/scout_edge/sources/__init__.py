"""Sources: where records come from. Each has a thread of its own and hands records to the buffer.

    http      a point of sale posts documents and readings to the local door
    system    telemetry of this machine

A source promises its own origin nothing before ``Buffer.append_*`` has returned: an OK, a moved
offset, an acknowledgement all come after the commit.
"""

from __future__ import annotations

import threading
from typing import Protocol

__all__ = ["Source"]


class Source(Protocol):
    """What the agent asks of a source."""

    name: str
    """In logs and metrics."""

    def open(self) -> None:
        """Called once, before anything runs, in the agent's main thread: take ports, open devices.

        Raises:
            ConfigError: a person must change something; the agent does not start.
        """

    def run(self, stop: threading.Event) -> None:
        """Called in the source's own thread; works until ``stop`` is set, then returns soon.

        Raises:
            TransientError: logged and counted; ``run`` is called again after a jittered delay that
                grows to a minute. What was not appended must be read again by the source itself.
            ConfigError, PermanentError: the whole agent stops with that error's exit code, because
                a store whose source is silent must be seen.
        """

    def close(self) -> None:
        """Called once, after ``run`` has returned or was never called. Must not fail."""
