"""The counters of this machine: by psutil where it is installed, else from Linux' /proc.

Both give the same numbers of the same kernel. What a machine does not have is left out, never zero.
Not its job: rates, averages, names of metrics (``system``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Memory(NamedTuple):
    """Bytes; None: not known."""

    total: float | None
    available: float | None
    swap_free: float | None


class CpuTime(NamedTuple):
    """Since the boot, of all CPUs together, in one unit: seconds or clock ticks."""

    total: float
    idle: float
    """Of ``total``: waiting, for input and output too."""


class Traffic(NamedTuple):
    """Of a network interface, since it came up."""

    interface: str
    received_bytes: float
    sent_bytes: float


class Machine(Protocol):
    """What the source asks."""

    def load(self) -> tuple[float, ...]:
        """Average number of running tasks over 1, 5 and 15 minutes; empty: not known."""

    def cpu_time(self) -> CpuTime | None:
        """None: not known."""

    def memory(self) -> Memory:
        """Now."""

    def uptime_seconds(self) -> float | None:
        """Since the boot; None: not known."""

    def traffic(self) -> Iterator[Traffic]:
        """Of each interface but the loopback."""


def of(root: Path) -> Machine:
    """By psutil where there is one; ``root`` other than '/' is read as /proc."""
    if root == Path("/"):
        try:
            import psutil
        except ImportError:
            pass
        else:
            return _Psutil(psutil)
    return _Proc(root)


class _Proc:
    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self) -> tuple[float, ...]:
        return tuple(float(load) for load in self._text("proc/loadavg").split()[:3])

    def cpu_time(self) -> CpuTime | None:
        fields = self._text("proc/stat").partition("\n")[0].split()
        if len(fields) < 6 or fields[0] != "cpu":
            return None
        ticks = [int(field) for field in fields[1:9]]  # guest time is within user time
        return CpuTime(sum(ticks), ticks[3] + ticks[4])  # idle, iowait

    def memory(self) -> Memory:
        found = {}
        for line in self._text("proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable", "SwapFree"):
                found[name] = float(int(rest.split()[0]) * 1024)
        return Memory(*map(found.get, ("MemTotal", "MemAvailable", "SwapFree")))

    def uptime_seconds(self) -> float | None:
        fields = self._text("proc/uptime").split()
        return float(fields[0]) if fields else None

    def traffic(self) -> Iterator[Traffic]:
        for line in self._text("proc/net/dev").splitlines()[2:]:
            interface, _, rest = line.partition(":")
            fields = rest.split()
            if interface.strip() != "lo" and len(fields) >= 9:
                yield Traffic(interface.strip(), float(fields[0]), float(fields[8]))

    def _text(self, path: str) -> str:
        """The file's text; empty when the machine does not have it or it cannot be read now."""
        try:
            return (self._root / path).read_text("ascii", "replace")
        except OSError:
            return ""


class _Psutil:
    def __init__(self, library: Any) -> None:
        self._psutil = library

    def load(self) -> tuple[float, ...]:
        return tuple(self._psutil.getloadavg())

    def cpu_time(self) -> CpuTime | None:
        now = self._psutil.cpu_times()
        guest = getattr(now, "guest", 0.0) + getattr(now, "guest_nice", 0.0)
        return CpuTime(sum(now) - guest, now.idle + getattr(now, "iowait", 0.0))

    def memory(self) -> Memory:
        now = self._psutil.virtual_memory()
        return Memory(now.total, now.available, self._psutil.swap_memory().free)

    def uptime_seconds(self) -> float | None:
        # Not boot_time: it is counted by the wall clock, which may be set meanwhile.
        boot = getattr(time, "CLOCK_BOOTTIME", None)
        return None if boot is None else time.clock_gettime(boot)

    def traffic(self) -> Iterator[Traffic]:
        for interface, now in self._psutil.net_io_counters(pernic=True).items():
            if interface not in ("lo", "lo0"):
                yield Traffic(interface, now.bytes_recv, now.bytes_sent)
