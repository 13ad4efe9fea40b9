"""Keeps the programs of Scout running, and leaves none of them behind.

Whatever ends by itself is started again, after a pause that doubles from half a second to fifteen;
a program that cannot even start is an error for a person, with the end of its log. Stopping asks
with SIGTERM, waits, then kills. Afterwards no descendant is left: orphans of a killed program come
to us (child subreaper), and are found and ended.

Used from the main thread only: the kernel ties a child's life to the thread that made it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scout_shared.errors import PermanentError

_PR_SET_CHILD_SUBREAPER = 36  # of <sys/prctl.h>
_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 15.0
_STABLE_SECONDS = 30.0  # having run for so long, a program begins again with the first pause
_STARTS_IN_VAIN = 5
_REAP_SECONDS = 2.0
_LOG_BYTES = 20 * 1024 * 1024
_LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Program:
    """A command to keep running."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    """Whether it serves now; must answer within a second."""
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 20.0
    """How long a clean stop may take."""
    death_signal: signal.Signals = signal.SIGKILL
    """Sent by the kernel should the demo itself be killed; SIGTERM for those with children."""


class Child:
    """A program with its process."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.restarts = 0
        self.started_at = 0.0
        self.failures = 0
        """Starts in a row after which it never became ready."""
        self.pause_seconds = _FIRST_PAUSE_SECONDS
        self.retry_at = 0.0
        self.stopping_since: float | None = None

    @property
    def state(self) -> str:
        """``up``, ``starting``, ``stopping`` or ``restarting``."""
        if self.stopping_since is not None:
            return "stopping"
        if self.process is None:
            return "restarting"
        return "up" if self.ready else "starting"


class Supervisor:
    """The children of the demo, in the order in which they were started.

    Args:
        logs: folder for their output.
        say: tells a person what happened.
    """

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self.children: dict[str, Child] = {}
        self.hurry = False
        """Set it to kill instead of waiting for clean stops."""
        self.restarts = 0
        self._reaped_at = 0.0
        self._logs = logs
        self._say = say
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self, program: Program) -> None:
        """Start it now; ``tick`` sees to it from then on."""
        child = self.children[program.name] = Child(program)
        self._spawn(child)

    def tick(self) -> None:
        """Notice the dead, start them again when their pause is over. Call several times a second.

        Raises:
            PermanentError: a program ended several times in a row without ever serving.
        """
        now = time.monotonic()
        for child in list(self.children.values()):
            if child.stopping_since is not None:
                self._stopping(child, now)
            elif child.process is None:
                if now >= child.retry_at:
                    child.restarts += 1
                    self.restarts += 1
                    self._spawn(child)
            elif child.process.poll() is not None:
                self._ended(child, now)
            elif not child.ready and child.program.ready():
                child.ready = True
                child.failures = 0
                if child.restarts:
                    self._say(f"{child.program.name} serves again")
        if now - self._reaped_at > _REAP_SECONDS:
            self._reaped_at = now
            self._reap()

    def begin_stop(self, name: str) -> None:
        """Ask it to stop cleanly; ``tick`` sees it off, and then it is no child any more."""
        child = self.children[name]
        child.stopping_since = time.monotonic()
        if child.process is not None:
            child.process.terminate()

    def stop(self, *names: str) -> None:
        """Stop these together, cleanly if they can; returns when they are gone."""
        names = tuple(name for name in names if name in self.children)
        for name in names:
            if self.children[name].stopping_since is None:
                self.begin_stop(name)
        while any(name in self.children for name in names):
            for name in names:
                if name in self.children:
                    self._stopping(self.children[name], time.monotonic())
            time.sleep(0.02)
        self._reap()

    def _stopping(self, child: Child, now: float) -> None:
        assert child.stopping_since is not None
        if child.process is None or child.process.poll() is not None:
            if child.process is not None:
                _kill_group(child.process.pid)  # its own children, if it left any
            del self.children[child.program.name]
        elif self.hurry or now - child.stopping_since > child.program.stop_seconds:
            if not self.hurry:
                self._say(f"{child.program.name} does not stop: killed")
            _kill_group(child.process.pid)

    def leftovers(self, seconds: float = 5.0) -> list[str]:
        """Descendants that still run after everything was stopped; they are killed. [] is right."""
        deadline = time.monotonic() + seconds
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.05)
        found = [f"{pid} {_command_line(pid)}" for pid in left]
        for pid in left:
            _signal(pid, signal.SIGKILL)
        self._reap()
        return found

    def log_end(self, name: str, lines: int = 6) -> str:
        """The last lines that a program wrote."""
        try:
            text = self._log(name).read_bytes()[-8192:].decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])

    def _ended(self, child: Child, now: float) -> None:
        assert child.process is not None
        name, code = child.program.name, child.process.returncode
        _kill_group(child.process.pid)
        child.process = None
        child.failures = 0 if child.ready else child.failures + 1
        if child.failures >= _STARTS_IN_VAIN:
            raise PermanentError(
                f"{name} ended {child.failures} times without ever serving:\n{self.log_end(name)}",
                f"its log is {self._log(name)}",
            )
        if now - child.started_at > _STABLE_SECONDS:
            child.pause_seconds = _FIRST_PAUSE_SECONDS
        child.retry_at = now + child.pause_seconds
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._say(f"{name} {how}: started again in {child.pause_seconds:g} s")
        child.pause_seconds = min(child.pause_seconds * 2, _LAST_PAUSE_SECONDS)
        child.ready = False

    def _spawn(self, child: Child) -> None:
        program = child.program
        log = self._log(program.name)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        with log.open("ab") as output:
            child.process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_LAUNCH)),
                    *(str(os.getpid()), str(int(program.death_signal))),
                    *program.command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **program.environment},
                # Ctrl-C in a terminal reaches us alone: we stop them in order.
                start_new_session=True,
            )
        child.started_at = time.monotonic()
        child.ready = False

    def _reap(self) -> None:
        """Collect orphans that ended; never our own children, whom ``Popen`` waits for."""
        ours = {c.process.pid for c in self.children.values() if c.process is not None}
        for pid in _children(os.getpid()):
            if pid not in ours and _state(pid) == "Z":
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    continue

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def descendants(pid: int) -> list[int]:
    """Living processes below ``pid``, zombies not counted."""
    found = []
    for child in _children(pid):
        if _state(child) != "Z":
            found.append(child)
        found += descendants(child)
    return found


def _children(pid: int) -> list[int]:
    parent = str(pid)
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [process for process in processes if _stat(process)[1:2] == [parent]]


def _state(pid: int) -> str:
    return next(iter(_stat(pid)), "Z")


def _stat(pid: int) -> list[str]:
    """State, parent, … of a process; [] when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "(gone)"


def _kill_group(leader: int) -> None:
    """Kill what is left of a session that we made."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
