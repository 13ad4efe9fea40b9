"""What the kernel counts of a process: memory, CPU, bytes written to devices. Linux only."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> tuple[int, int]:
    """(resident now, most ever resident)."""
    fields = _fields(Path(f"/proc/{pid}/status"))
    return _kilobytes(fields["VmRSS"]), _kilobytes(fields["VmHWM"])


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads, ended ones too; in steps of 10 ms."""
    # The name in parentheses may hold blanks; utime and stime are fields 14 and 15.
    rest = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(rest[11]) + int(rest[12])) / _TICKS


def written_bytes(pid: int) -> int:
    """Bytes it made the block layer write; nothing on a file system in memory."""
    fields = _fields(Path(f"/proc/{pid}/io"))
    return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])


def _fields(path: Path) -> dict[str, str]:
    lines = path.read_text("ascii").splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def _kilobytes(text: str) -> int:
    return int(text.removesuffix(" kB")) * 1024
