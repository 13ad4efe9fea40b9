"""Telemetry of the agent's own machine (``machine``), its disk and its thermal zones.

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
from scout_edge.sources import SourceContext, SourceKind, machine
from scout_edge.sources.outlet import Outlet
from scout_shared.wire import Reading

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
        self._machine = machine.of(root)
        self._spent: machine.CpuTime | None = None

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
        here = self._machine
        for minutes, load in zip((1, 5, 15), here.load(), strict=False):
            yield f"system.load_{minutes}_minutes", load
        busy = self._busy_ratio()
        if busy is not None:
            yield "system.cpu_busy_ratio", busy
        memory = here.memory()
        for name, number in memory._asdict().items():
            if number is not None:
                word = "" if name.startswith("swap") else "memory_"
                yield f"system.{word}{name}_bytes", float(number)
        uptime = here.uptime_seconds()
        if uptime is not None:
            yield "system.uptime_seconds", round(uptime, 2)
        for interface, received, sent in here.traffic():
            yield f"system.network.{interface}.received_bytes", float(received)
            yield f"system.network.{interface}.sent_bytes", float(sent)
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
        now = self._machine.cpu_time()
        before, self._spent = self._spent, now
        if now is None or before is None or now.total <= before.total:
            return None
        # iowait may go backwards: a ratio above 1 would be a defect of the kernel's counting.
        busy = 1 - (now.idle - before.idle) / (now.total - before.total)
        return round(min(1.0, max(0.0, busy)), _BUSY_DECIMALS)


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
