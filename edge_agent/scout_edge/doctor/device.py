"""The doctor's look at this device: agent, clock, disk, buffer, local door.

Each function yields findings and raises nothing that a broken device can cause. Writes one probe
file of a page beside the buffer and removes it; everything else is only read.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from scout_edge import clock, database, status
from scout_edge.buffer_status import BufferStatus, peek
from scout_edge.config import EdgeSettings
from scout_edge.doctor.finding import Finding, fail, ok, warn
from scout_shared.errors import ConfigError, ScoutError

# No record of ours is older than the program; a device without a battery clock starts in 1970, or
# at the moment of its last shutdown.
EARLIEST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(2060, 1, 1, tzinfo=dt.UTC)

_FAIL_BYTES = 16 * 1024 * 1024  # less cannot hold a checkpoint and a burst of sales
_BACKLOG_WARN_SECONDS = 3600.0
_FILL_WARN_RATIO = 0.7
_SCAN_SECONDS = 5.0  # a full buffer of 1 GiB takes a minute to read from an SD card
_PROBE_BYTES = 4096
_WORN = {"0x02": "has used up 80 % of its spare blocks", "0x03": "has used up its spare blocks"}

_DISK_STEPS = {
    errno.EROFS: (
        "the file system is read-only",
        "see 'dmesg'; a card that turned read-only is worn: replace it, keep the old one",
    ),
    errno.ENOSPC: (
        "the disk is full",
        "free space: 'sudo journalctl --vacuum-size=50M', then look for large files with 'du -x'",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free space, or raise the quota of user scout"),
    errno.EIO: (
        "the disk reports an input/output error",
        "replace the SD card now, and keep the old one: its records can be recovered",
    ),
}
_DISK_STEP_ELSE = (
    "the folder cannot be written to",
    "give it to the agent's user: 'sudo chown -R scout: <folder>'; run the doctor as that user",
)


def locked(path: Path, root: Path = Path("/")) -> bool:
    """Whether a process holds the buffer's lock, without touching the lock.

    Taking it, even for a moment, could refuse an agent that is just starting.
    """
    try:
        inode = path.with_name(path.name + ".lock").stat().st_ino
        lines = (root / "proc/locks").read_text("ascii").splitlines()
    except OSError:
        return False
    # "1: FLOCK  ADVISORY  WRITE 811 08:02:131099 0 EOF": the device number differs from stat's
    # on overlay and btrfs file systems, so the inode has to do.
    words = [line.split() for line in lines]
    return any("FLOCK" in word and word[-3].endswith(f":{inode}") for word in words)


def agent(settings: EdgeSettings, shown: dict[str, Any] | None, running: bool) -> Finding:
    """Whether an agent runs."""
    if shown is not None:
        line = status.headline(shown)
        said = f"running, version {shown['version']}; {line.sentence.rstrip('.')}"
        return ok("agent", said) if line.well else warn("agent", said, "see the lines below")
    if running:
        return ok("agent", f"running: it holds {settings.buffer.path}")
    return warn(
        "agent",
        "no agent runs",
        "sudo systemctl start scout-edge; when it ends again: journalctl -u scout-edge -n 50",
    )


def clock_findings() -> Generator[Finding, None, bool]:
    """Whether the clock can be trusted; returns that too."""
    found = clock_finding(dt.datetime.now(dt.UTC), clock.synced())
    yield found
    return found.level == "ok"


def clock_finding(now: dt.datetime, synced: bool | None) -> Finding:
    """What date and synchronisation state mean."""
    said = now.strftime("%Y-%m-%d %H:%M:%S UTC")
    if not EARLIEST <= now < LATEST:
        return fail(
            "clock",
            f"the clock says {said}, which cannot be",
            "connect the network and wait for 'timedatectl' to say 'synchronized: yes', or set it:"
            " sudo timedatectl set-time 'YYYY-MM-DD hh:mm:ss'; records are kept meanwhile",
        )
    if synced is False:
        return warn(
            "clock",
            f"{said}, not synchronised",
            "check 'timedatectl': NTP service must be active, and the router must let UDP 123"
            " through; records are kept and marked meanwhile",
        )
    if synced is None:
        return warn("clock", f"{said}, the kernel cannot be asked", "compare it with your watch")
    return ok("clock", f"{said}, synchronised")


def disk(settings: EdgeSettings, root: Path) -> Iterator[Finding]:
    """Whether the buffer's folder can be written to, how much fits, how worn the card is."""
    folder = settings.buffer.path.parent
    try:
        found = os.statvfs(folder)
    except OSError as error:
        yield fail(
            "disk.write",
            f"{folder} cannot be looked at: {error.strerror}",
            f"sudo install -d -o scout -g scout -m 750 {folder}; if it is a partition of its own,"
            " mount it first",
        )
        return
    yield _writable(folder)
    yield _space(settings, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
    yield from _wear(folder, root)


def _writable(folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".scout-doctor-") as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        what, step = _DISK_STEPS.get(error.errno or 0, _DISK_STEP_ELSE)
        said = f"{folder}: {what} ({error.strerror})"
        return fail("disk.write", said, step.replace("<folder>", str(folder)))
    owner = folder.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        return warn(
            "disk.write",
            f"{folder} can be written to by root, whom nothing stops; it belongs to user {owner}",
            "run the doctor as the agent's user, e.g. 'sudo -u scout scout-edge doctor'",
        )
    return ok("disk.write", f"{folder} can be written to")


def _space(settings: EdgeSettings, free: int, total: int) -> Finding:
    said = f"{free / 1e6:,.0f} MB free of {total / 1e6:,.0f} MB"
    step = "free space: 'sudo journalctl --vacuum-size=50M', then look for large files with 'du -x'"
    if free < _FAIL_BYTES:
        return fail("disk.space", said, step)
    path = settings.buffer.path
    try:
        missing = settings.buffer.max_bytes - (path.stat().st_size if path.exists() else 0)
    except OSError:  # the buffer's own finding says more
        missing = 0
    if free < status.DISK_WARN_BYTES or free < missing:
        return warn(
            "disk.space",
            f"{said}; the buffer may grow by {max(0, missing) / 1e6:,.0f} MB more",
            f"{step}; or lower [buffer] max_bytes",
        )
    return ok("disk.space", said)


def _wear(folder: Path, root: Path) -> Iterator[Finding]:
    """What an eMMC or a file system says of its own wear; most SD cards say nothing."""
    number = folder.stat().st_dev
    block = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    with contextlib.suppress(OSError):
        block = block.resolve(strict=True)
        hints = _wear_hints(block, root)
        if hints:
            yield warn(
                "disk.wear",
                f"{block.name}: {'; '.join(hints)}",
                "plan a new card for the next visit, and keep the old one until its records are"
                " confirmed",
            )
        else:
            yield ok("disk.wear", f"{block.name} reports no wear (SD cards seldom do)")
        return
    yield ok("disk.wear", "this disk has no wear counters")


def _wear_hints(block: Path, root: Path) -> list[str]:
    whole = block.parent if (block / "partition").exists() else block
    hints = []
    # "0x03 0x01": tenths of the guaranteed life that two kinds of cells have used up.
    used = max((int(word, 16) for word in _words(whole / "device/life_time")), default=0)
    if used >= 8:
        hints.append(f"{10 * (used - 1)} to {10 * used} % of its guaranteed life is used up")
    hints += [_WORN[word] for word in _words(whole / "device/pre_eol_info") if word in _WORN]
    errors = sum(int(word) for word in _words(root / f"sys/fs/ext4/{block.name}/errors_count"))
    if errors:
        hints.append(f"the file system has counted {errors} errors")
    return hints


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except OSError:
        return []


def buffer(settings: EdgeSettings) -> Generator[Finding, None, BufferStatus | None]:
    """Whether the file opens and is whole, and how long records wait; returns its numbers."""
    path = settings.buffer.path
    if not path.exists():
        yield ok("buffer.open", f"{path} is not there yet: the first start makes it")
        return None
    try:
        held = peek(path, settings.buffer.max_bytes)
    except ScoutError as error:
        yield fail("buffer.open", error.message, error.hint or "tell the engineer on call")
        return None
    except OSError as error:
        yield fail("buffer.open", f"{path}: {error.strerror}", "run the doctor as user scout")
        return None
    if held.fenced:
        yield fail(
            "buffer.open",
            "the hub holds more than this file gave: an old copy, or a twin of this device",
            "do not delete the file; tell the engineer on call",
        )
    else:
        yield ok("buffer.open", f"{path} opens, epoch {held.epoch.hex()[:8]}")
    yield _backlog(held)
    yield _damage(path)
    return held


def _backlog(held: BufferStatus) -> Finding:
    fill = held.buffer_bytes / held.max_bytes
    said = f"{status.records(held.backlog_records)} to go, the file is {fill:.0%} full"
    if fill >= status.FULL_RATIO:
        step = "bring the line to the hub back, or raise [buffer] max_bytes: tills are refused"
        return fail("buffer.backlog", said, step)
    age = 0.0
    if held.oldest_unsent_ms is not None:
        age = time.time() - held.oldest_unsent_ms / 1000
        said += f", the oldest for {age / 60:,.0f} minutes"
    if age > _BACKLOG_WARN_SECONDS or fill >= _FILL_WARN_RATIO:
        step = "they are safe here; the lines below say where the way to the hub ends"
        return warn("buffer.backlog", said, step)
    return ok("buffer.backlog", said)


def _damage(path: Path) -> Finding:
    """Each segment against its own checksum: SQLite does not see a flipped bit in a value."""
    deadline = time.monotonic() + _SCAN_SECONDS
    checked, damaged = 0, list[int]()
    try:
        with contextlib.closing(database.open_reader(path)) as reader:
            rows = reader.execute("select first_sequence, crc, body from segments order by 1")
            for first, crc, body in rows:
                checked += 1
                if zlib.crc32(body) != crc:
                    damaged.append(first)
                if time.monotonic() > deadline:
                    break
    except sqlite3.Error as error:
        said = f"reading stopped after {checked} segments: {error}"
        return fail("buffer.damage", said, "keep the file, replace the card, tell the engineer")
    if damaged:
        return fail(
            "buffer.damage",
            f"{len(damaged)} of {checked} segments are damaged (first: sequence {damaged[0]})",
            "replace the SD card soon; the agent declares damaged segments to the hub and sends"
            " the others; keep the file, the engineer on call recovers what can be",
        )
    return ok("buffer.damage", f"{checked} segments match their checksums")


def door(
    settings: EdgeSettings, shown: dict[str, Any] | None, refusal: ScoutError | None, running: bool
) -> Finding:
    """Whether a point of sale on this machine finds the agent."""
    http = settings.http
    url = f"http://{http.host}:{http.port}"
    if not http.enabled:
        return ok("door", "switched off in the settings file")
    if refusal is not None:
        step = refusal.hint
        if isinstance(refusal, ConfigError):
            step = "another program has this port: " + step
        return fail("door", refusal.message, step or "journalctl -u scout-edge -n 50")
    if shown is None and running:
        step = "check [http] in the settings file, then: sudo systemctl restart scout-edge"
        return fail("door", f"the agent runs, and nothing answers at {url}", step)
    if shown is None:
        step = "start the agent; a till must keep its sales until then"
        return warn("door", f"{url} is closed because no agent runs", step)
    if http.host not in ("127.0.0.1", "::1", "localhost"):
        step = "it has no password: set [http] host to 127.0.0.1 if the till is on this machine"
        return warn("door", f"{url} answers, also to other machines", step)
    return ok("door", f"{url} answers")
