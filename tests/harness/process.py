"""A real program under test: start, wait for a line or a port, kill -9, collect its output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from tests.harness.waiting import eventually, listens


class Process:
    """One program in its own process group; ``close()`` leaves nothing of it behind.

    Output goes to a file, so that a chatty program never blocks on a full pipe.

    Args:
        output: that file, if it shall stay; what is in it already is kept.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        output: Path | None = None,
    ) -> None:
        self.command = [str(part) for part in command]
        # Open as long as the process is.
        made = tempfile.TemporaryFile() if output is None else output.open("a+b")  # noqa: SIM115
        self._output: IO[bytes] = made
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # one ctypes call, no lock of ours
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        """All of stdout and stderr so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode("utf-8", "replace")

    def wait_for_output(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """The first match of the regular expression; fails at once when the program has ended."""

        def found() -> re.Match[str] | None:
            running = self.running
            match = re.search(pattern, self.output())
            if match is None and not running:
                raise EarlyEnd(self)
            return match

        match = eventually(found, timeout, f"{self.command[:4]} prints {pattern!r}")
        assert match is not None
        return match

    def wait_for_port(self, port: int, timeout: float = 30.0) -> None:
        """Until the program (or someone) accepts connections on ``port``."""

        def open_() -> bool:
            if not self.running:
                raise EarlyEnd(self)
            return listens(port)

        eventually(open_, timeout, f"{self.command[:4]} listens on {port}")

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code, once it has ended by itself."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.command[:4]} did not end in {timeout:g} s\n{self.output()}"
            ) from None

    def terminate(self, timeout: float = 30.0) -> int:
        """SIGTERM, as a service manager does; the exit code."""
        if self.running:
            self._popen.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def signal(self, number: int) -> None:
        """Send one signal to this process alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """kill -9 of this process alone, as a crash does; its children notice by themselves."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """End whatever is left of the whole process group. Safe to repeat."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._output.close()


_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """Killed with the test run: pytest-timeout ends it without finalizers."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG


class EarlyEnd(Exception):  # noqa: N818  # not an AssertionError: eventually() must not retry it
    """The program ended before it did what the test waits for."""

    def __init__(self, process: Process) -> None:
        super().__init__(
            f"{process.command} ended with {process.returncode}:\n{process.output()[-4000:]}"
        )
