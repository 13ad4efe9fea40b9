"""One box: the folder of a device, its agent as a real process, its clock and its disk.

A device may have several boxes in its life: swapped, cloned, or restored from an image.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scout_demo.ports import HOST
from scout_edge.sources.checkpoints import Checkpoints
from tests.harness.process import Process
from tests.harness.waiting import free_port
from tests.system.chaos.central import program, toml
from tests.system.chaos.feeder import Feeder
from tests.system.chaos.link import Link
from tests.system.chaos.plan import DevicePlan

DISK_BYTES = 6 << 20
FLOOR_BYTES = 1 << 20
_FAKETIME = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can do."""

    faketime: str
    """The library; empty: clocks cannot be set."""
    mounts: bool
    """Small file systems can be mounted."""


def machine() -> Machine:
    """Look."""
    found = [str(path) for pattern in _FAKETIME for path in Path("/").glob(pattern[1:])]
    return Machine(found[0] if found else "", _can_mount())


def _can_mount() -> bool:
    if os.geteuid():
        return False
    trial = Path(f"/tmp/scout-chaos-mount-{os.getpid()}")
    trial.mkdir()
    try:
        if subprocess.run(_mount(trial), check=False, capture_output=True).returncode:
            return False
        subprocess.run(["umount", str(trial)], check=True)
        return True
    finally:
        trial.rmdir()


def _mount(folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]


class Box:
    """A device's box. Nothing runs until ``start``.

    Args:
        label: unique in the whole run.
        folder: what is on its card is in ``card`` below; logs and settings are beside.
        faketime: library by which its clock is set; empty: its clock is the machine's.
        small_disk: whether the card is a file system of a few MB.
    """

    def __init__(
        self,
        label: str,
        link: Link,
        folder: Path,
        *,
        device_id: str,
        store: str,
        plan: DevicePlan,
        faketime: str,
        small_disk: bool = False,
    ) -> None:
        self.label, self.device_id, self.store = label, device_id, store
        self.plan, self.link, self.folder = plan, link, folder
        self.card = folder / "card"
        self.card.mkdir(parents=True)
        self.small_disk = small_disk
        if small_disk:
            subprocess.run(_mount(self.card), check=True)
        self.inbox = folder / "sales.jsonl" if plan.tails else None
        self.door = free_port()
        self.log = folder / "agent.log"
        self.process: Process | None = None
        self.held = True
        """It stays off until someone lets go of it."""
        self.restart_at = 0.0
        self.cut_off = False
        """A fault needs its link to stay cut."""
        self.retired = False
        """Its agent never runs again."""
        self.ends: list[int] = []
        """Exit codes of agents that ended by themselves."""
        self._clock = folder / "clock"
        self._faketime = faketime
        self.set_clock(0.0)
        self.settings = self._write_settings()
        self.feeder: Feeder | None = None

    @property
    def buffer(self) -> Path:
        """Its buffer file."""
        return self.card / "edge.db"

    def _write_settings(self) -> Path:
        path = self.folder / "edge.toml"
        tables: dict[str, dict[str, str | int | float | bool]] = {
            "device": {"id": self.device_id, "store": self.store, "zone": self.plan.zone},
            "buffer": {
                "path": str(self.buffer),
                "seal_seconds": self.plan.seal_seconds,
                "note_seconds": 0.2,
                "readings_at_cap": self.plan.readings_at_cap,
                "min_free_bytes": FLOOR_BYTES if self.small_disk else 0,
            },
            "mqtt": {
                "host": HOST,
                "port": self.link.port,
                "heartbeat_seconds": 0.5,
                "ack_timeout_seconds": 0.4,
                "reconnect_cap_seconds": 0.4,
                "drain_seconds": 0.5,
            },
            "http": {"host": HOST, "port": self.door},
            "system": {"enabled": False},
            "log": {"json": True},
        }
        if self.inbox is not None:
            tables["sources.sales"] = {
                "kind": "files",
                "path": str(self.inbox),
                "format": "jsonl",
                "document_type": "transaction",
                "time_field": "transaction_timestamp",
                "poll_seconds": 0.1,
            }
        path.write_text(toml(tables), "utf-8")
        return path

    # -- its agent ------------------------------------------------------------------------------

    def mind(self) -> None:
        """Start the agent again, when it ended and is due."""
        now = time.monotonic()
        if self.process is not None and not self.process.running:
            code = self.process.returncode
            assert code is not None
            if code >= 0:
                self.ends.append(code)
                self.restart_at = max(self.restart_at, now + 0.3)
            self.process.close()
            self.process = None
        if self.process is None and not self.held and not self.retired and now >= self.restart_at:
            command = (program("scout-edge"), "run", "--config", str(self.settings))
            self.process = Process(command, env=self._environment(), output=self.log)

    def let_go(self, after_seconds: float = 0.0) -> None:
        """Let the agent run."""
        self.held = False
        self.restart_at = time.monotonic() + after_seconds

    def kill(self) -> None:
        """SIGKILL it, if it runs; ``mind`` starts it again unless it is held."""
        if self.process is not None:
            self.process.kill()
            self.process.close()
            self.process = None

    def hold(self, *, kill: bool = True) -> None:
        """End the agent; it stays off."""
        self.held = True
        if kill or self.process is None:
            self.kill()
        else:
            self.stop()

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM; the exit code (0, if none ran)."""
        if self.process is None:
            return 0
        code = self.process.terminate(seconds)
        self.process.close()
        self.process = None
        return code

    def run(self, *arguments: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Another command of ``scout-edge`` with its settings."""
        command = [program("scout-edge"), *arguments, "--config", str(self.settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ scout-edge {' '.join(arguments)} → {done.returncode}\n")
            log.write(done.stdout + done.stderr)
        return done

    def status(self) -> Mapping[str, Any] | None:
        """What the agent says at its door; None: it does not answer."""
        connection = http.client.HTTPConnection(HOST, self.door, timeout=2)
        try:
            connection.request("GET", "/v1/status")
            response = connection.getresponse()
            body = response.read()
            return dict(json.loads(body)) if response.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def followed(self) -> bool:
        """Whether its agent has read the file that it follows to the end."""
        if self.inbox is None or not self.inbox.exists():
            return True
        found = self.inbox.stat()
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{self.buffer}?mode=ro", uri=True, timeout=1.0)
            ) as database:
                row = database.execute("select state from sources where name = 'sales'").fetchone()
        except sqlite3.Error:  # it is being set aside
            return False
        state = None if row is None else json.loads(row[0])["at"]  # as an Outlet keeps it
        place = Checkpoints.decode(state).files.get(found.st_ino)
        return found.st_size == (0 if place is None else place.offset)

    def close(self) -> None:
        """Nothing of it runs or is mounted any more."""
        self.retired = True
        if self.feeder is not None:
            self.feeder.leave()
        self.kill()
        if self.small_disk:
            # An agent that was killed this moment may still hold files there.
            for _ in range(50):
                if subprocess.run(["umount", str(self.card)], check=False).returncode == 0:
                    break
                time.sleep(0.1)
            self.small_disk = False

    # -- clock and disk -------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        if not self._faketime:
            return {}
        return {
            "LD_PRELOAD": self._faketime,
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set_clock(self, offset_seconds: float) -> None:
        """Its wall clock is the machine's plus this, from now on."""
        part = self._clock.with_suffix(".part")
        part.write_text(f"{offset_seconds:+.0f}\n", "ascii")
        part.replace(self._clock)

    def fill_disk(self) -> None:
        """Another program takes all the space that is left on the card."""
        with (self.card / "other").open("ab", buffering=0) as file:
            for size in (65536, _PAGE, 512):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free_disk(self) -> None:
        """That program is gone."""
        (self.card / "other").unlink(missing_ok=True)

    def damage(self, kind: str, seed: int) -> str:
        """Corrupt or truncate the buffer file; returns what was done to it."""
        rng = random.Random(seed)
        path = self.buffer
        size = path.stat().st_size if path.exists() else 0
        pages = size // _PAGE
        if pages < 2:
            return "nothing: the file has no pages yet"
        if kind == "truncate":
            keep = rng.choice((rng.randrange(1, pages) * _PAGE, rng.randrange(100, size)))
            os.truncate(path, keep)
            return f"{size} bytes cut to {keep}"
        with path.open("r+b") as file:
            if rng.random() < 0.5:
                page = rng.randrange(pages)
                file.seek(page * _PAGE)
                file.write(bytes(_PAGE))
                return f"page {page + 1} of {pages} zeroed"
            places = [rng.randrange(size) for _ in range(rng.choice((1, 8, 64)))]
            for place in places:
                file.seek(place)
                old = file.read(1)[0]
                file.seek(place)
                file.write(bytes([old ^ (1 << rng.randrange(8))]))
            return f"a bit in each of {len(places)} bytes of {size} flipped"

    def copy_card(self, target: Box) -> None:
        """All that is on the card, on another one. The agent must be off."""
        shutil.copytree(self.card, target.card, dirs_exist_ok=True)
