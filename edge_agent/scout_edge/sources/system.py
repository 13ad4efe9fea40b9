"""Telemetry of the agent's own machine, read from /proc and /sys.

What the kernel does not offer (no thermal zone, no such file) gives no reading, never a zero.
Values keep the resolution of their origin: a ratio of clock ticks has four decimals, not sixteen.
Not its job: other machines, averages.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scout_edge import clock
from scout_edge.config import SystemSettings
from scout_edge.sources import SourceContext, SourceKind
from scout_edge.sources.outlet import Outlet
from scout_shared.wire import Reading

_MEMINFO = {
    "MemTotal": "system.memory_total_bytes",
    "MemAvailable": "system.memory_available_bytes",
    "SwapFree": "system.swap_free_bytes",
}
_BUSY_DECIMALS = 4


class SystemSource:
    """Samples this machine every ``interval_seconds``.

    Args:
        disk: a path on the file system whose free space is reported: where the buffer stands.
        root: '/' except in tests.
    """

    def __init__(
        self,
        outlet: Outlet,
        *,
        interval_seconds: float,
        disk: Path,
        root: Path = Path("/"),
        name: str = "system",
    ) -> None:
        self.name = name
        self._outlet = outlet
        self._interval_seconds = interval_seconds
        self._disk = disk
        self._root = root
        self._ticks: tuple[int, int] | None = None

    def open(self) -> None:
        """Nothing to take."""

    def run(self, stop: threading.Event) -> None:
        """Append one sample per interval until stopped. Raises TransientError: buffer full."""
        self.sample(clock.wall_ms())  # the first one only starts the tick counters
        due = time.monotonic()
        while not stop.wait(max(0.0, due + self._interval_seconds - time.monotonic())):
            due = max(due + self._interval_seconds, time.monotonic() - self._interval_seconds)
            now = clock.stamp()
            self._outlet.append_readings(self.sample(now.wall_ms), span=now.span)
            self._outlet.tick()
            self._outlet.beat(self._interval_seconds)

    def close(self) -> None:
        """Nothing to give back."""

    def sample(self, now_ms: int) -> list[Reading]:
        """One reading of each metric that this machine has, all stamped with ``now_ms``."""
        return [Reading(metric, now_ms, value) for metric, value in self._values()]

    def _values(self) -> Iterator[tuple[str, float]]:
        for minutes, load in zip((1, 5, 15), self._text("proc/loadavg").split(), strict=False):
            yield f"system.load_{minutes}_minutes", float(load)
        busy = self._busy_ratio()
        if busy is not None:
            yield "system.cpu_busy_ratio", busy
        for line in self._text("proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name in _MEMINFO:
                yield _MEMINFO[name], float(int(rest.split()[0]) * 1024)
        uptime = self._text("proc/uptime").split()
        if uptime:
            yield "system.uptime_seconds", float(uptime[0])
        yield from self._network()
        try:
            disk = os.statvfs(self._disk)
        except OSError:
            pass
        else:
            yield "system.disk_total_bytes", float(disk.f_blocks * disk.f_frsize)
            yield "system.disk_free_bytes", float(disk.f_bavail * disk.f_frsize)
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            millidegrees = _text(zone / "temp").strip()
            if millidegrees.lstrip("-").isdigit():
                celsius = int(millidegrees) / 1000
                yield (
                    f"system.temperature.{zone.name.removeprefix('thermal_zone')}_celsius",
                    celsius,
                )

    def _busy_ratio(self) -> float | None:
        """Share of CPU time not idle since the last sample; None at the first one."""
        fields = self._text("proc/stat").partition("\n")[0].split()
        if len(fields) < 6 or fields[0] != "cpu":
            return None
        ticks = [int(field) for field in fields[1:9]]  # guest time is within user time
        total, idle = sum(ticks), ticks[3] + ticks[4]  # idle, iowait
        before, self._ticks = self._ticks, (total, idle)
        if before is None or total <= before[0]:
            return None
        # iowait may go backwards: a ratio above 1 would be a defect of the kernel's counting.
        busy = 1 - (idle - before[1]) / (total - before[0])
        return round(min(1.0, max(0.0, busy)), _BUSY_DECIMALS)

    def _network(self) -> Iterator[tuple[str, float]]:
        for line in self._text("proc/net/dev").splitlines()[2:]:
            interface, _, rest = line.partition(":")
            fields = rest.split()
            if interface.strip() != "lo" and len(fields) >= 9:
                yield f"system.network.{interface.strip()}.received_bytes", float(fields[0])
                yield f"system.network.{interface.strip()}.sent_bytes", float(fields[8])

    def _text(self, path: str) -> str:
        return _text(self._root / path)


def _text(path: Path) -> str:
    """The file's text; empty when the machine does not have it or it cannot be read now."""
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _make(context: SourceContext, settings: SystemSettings) -> SystemSource:
    return SystemSource(
        context.outlet,
        interval_seconds=settings.interval_seconds,
        disk=context.folder,
        name=context.name,
    )


KIND = SourceKind(SystemSettings, _make)
