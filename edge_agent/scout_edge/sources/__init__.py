"""Sources: where records come from. Each has a thread of its own and hands records to the buffer.

    http      a point of sale posts documents and readings to the local door
    system    telemetry of this machine
    files     tail of growing files, or a drop folder: JSONL and CSV
    exec      the lines that a command writes
    mqtt      sensors of the store on a local broker
    modbus    refrigeration, meters: registers by Modbus TCP

Each ``[sources.<name>]`` table of the settings makes one source; ``kind`` says which. A package of
another author adds a kind with an entry point of the group ``scout_edge.sources`` whose name is the
kind and whose object is a ``SourceKind``; it is used like a built-in one:

    [project.entry-points."scout_edge.sources"]
    scales = "shop_scales:KIND"

The contract, all of it:

- A source promises its own origin nothing before ``Outlet.append_*`` has returned: an OK, a moved
  offset, an acknowledgement all come after the commit.
- ``append_*`` raises TransientError when the buffer or the disk is full or failing. Let it through,
  or refuse the origin; what was not appended is yours to read again.
- Where the origin can be read again (files), give the place to go on at as ``state``: it is
  committed with the records, and ``Outlet.state()`` gives it back after a restart.
- Call ``Outlet.tick`` about once a second, so that the windows of ``shape`` rules end in time.
  Each call is a beat: a source that has beaten and then does not for ``patience_seconds`` hangs,
  and the service manager starts the agent again. So wait with a timeout, wake up, tick; or say with
  ``Outlet.beat(wait_seconds)`` how long you may wait. Appending beats, too, also when it is
  refused; the delay after a TransientError is no silence. A source that never ticks is not judged.
- What cannot be read is counted (``Outlet.unreadable``) and never replaced by a value. A record
  without a time has none: do not stamp what you did not observe yourself. What you did, stamp with
  ``clock.stamp()`` and give its span with the append: the hub repairs what a wrong clock stamped.
- A defect (any other exception) stops the whole agent, because a silent source must be seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from scout_edge.buffer import Buffer
    from scout_edge.metrics import AgentMetrics
    from scout_edge.sources.outlet import Outlet

__all__ = ["Source", "SourceContext", "SourceKind"]


class Source(Protocol):
    """What the agent asks of a source."""

    name: str
    """In logs and metrics: that of its table."""

    def open(self) -> None:
        """Called once, before anything runs, in the agent's main thread: take ports, open devices.

        What may be absent for a while (a broker, a meter) is reached in ``run``, not here.

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


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source gets from the agent."""

    name: str
    """The name of its table: unique among the sources of an agent."""
    outlet: Outlet
    """Where its records go."""
    buffer: Buffer
    """Behind the outlet; for what answers each request itself (idempotency keys)."""
    metrics: AgentMetrics
    """Counters of the agent."""
    status: Callable[[], dict[str, Any]]
    """What ``GET /v1/status`` answers."""
    folder: Path
    """Where the buffer stands: a folder that the agent may write to."""


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source.

    ``settings`` and ``make`` belong together: what is decoded with one is given to the other.
    """

    settings: type[Any]
    """Dataclass of the table's keys without ``kind``, ``enabled`` and ``shape``. It checks its
    values in ``__post_init__`` (ConfigError). A field ``scout_shared.settings.secret(PASSWORD)``
    (see ``registry``) is read from ``SCOUT_SOURCE_<NAME>_PASSWORD``."""
    make: Callable[[SourceContext, Any], Source]
    """Makes a source; takes nothing yet. Raises ConfigError, e.g. when a library is missing."""
    shapes: bool = True
    """Whether its readings go through the outlet, so that ``shape`` rules may be given."""
    patience_seconds: float = 60.0
    """Without a beat after which the source counts as hanging; see ``Outlet.beat``."""
