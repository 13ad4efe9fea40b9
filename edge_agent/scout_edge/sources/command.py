"""Kind ``exec``: the lines that a command writes, each a reading or a document.

    values    metric value [time]
    jsonl     {"metric", "value", "observed_at"?}  or  {"type", "body", "observed_at"}

A reading without a time was observed now: it gets this device's clock when its line is read. The
command runs every ``interval_seconds``, or once for ever (0). Its whole process group ends with it
and with the source. While the buffer refuses, the command waits at its full pipe; what it wrote
meanwhile is taken afterwards when it carries its time, and counted as unreadable when it does not.
Not its job: a shell; what the command does when the agent is killed (the service manager ends it).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from scout_edge import acceptance, clock
from scout_edge.sources import SourceContext, SourceKind, payload
from scout_edge.sources.instants import InstantFormat
from scout_edge.sources.lines import number, parse_json
from scout_edge.sources.outlet import Outlet, runs
from scout_shared import logs
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.settings import check_seconds
from scout_shared.wire import Document, Reading, Span

_LINE_BYTES = 256 * 1024  # a document may not be longer
_LOOK_SECONDS = 0.1  # how soon a stop is seen
_GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
_ERROR_BYTES = 500  # of stderr, shown when the command fails

log = logs.get("exec")


@dataclass(frozen=True, slots=True)
class ExecSettings:
    """A ``[sources.<name>]`` table of kind ``exec``."""

    command: tuple[str, ...]
    """The program and its arguments; no shell. No default."""
    format: str = "values"
    """'values' or 'jsonl'. Default 'values'."""
    interval_seconds: float = 60.0
    """Seconds between two starts; 0: it runs for ever, and is started again when it ends.
    Default 60."""
    timeout_seconds: float = 30.0
    """Seconds that a run of an interval may take. Default 30."""
    silence_seconds: float = 0.0
    """Seconds without a line after which a command that runs for ever is started again. Default 0:
    never."""

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise ConfigError("command must name a program", 'e.g. ["/opt/shop/bin/scales"]')
        if self.format not in ("values", "jsonl"):
            raise ConfigError(f"format {self.format!r} is not known", "use 'values' or 'jsonl'")
        check_seconds("interval_seconds", self.interval_seconds, 0.0)
        check_seconds("timeout_seconds", self.timeout_seconds, 0.1)
        check_seconds("silence_seconds", self.silence_seconds, 0.0)


class ExecSource:
    """Runs the command of one table; see the module."""

    def __init__(self, outlet: Outlet, settings: ExecSettings, *, name: str = "exec") -> None:
        self.name = name
        self._outlet = outlet
        self._settings = settings
        self._instants = InstantFormat.of("iso", "")
        self._seconds = InstantFormat.of("epoch_seconds", "")
        self._live_from = 0.0
        """Monotonic seconds; a line read before it may have waited in the pipe."""
        parsers: dict[str, Callable[[bytes], Reading | Document]] = {
            "values": self._value,
            "jsonl": self._json,
        }
        self._parse = parsers[settings.format]
        self._span: Span | None = None  # in which the line that was parsed last was stamped

    def open(self) -> None:
        """Raises ConfigError: there is no such program."""
        if shutil.which(self._settings.command[0]) is None:
            raise ConfigError(
                f"source {self.name!r}: {self._settings.command[0]!r} cannot be run",
                "give its full path, and make it executable",
            )

    def run(self, stop: threading.Event) -> None:
        """Run the command until stopped.

        Raises:
            TransientError: it failed, took too long, or ended though it should run for ever.
        """
        interval = self._settings.interval_seconds
        while not stop.is_set():
            due = time.monotonic() + interval
            self._once(stop)
            if not interval and not stop.is_set():
                raise TransientError(f"{self._settings.command[0]} ended", "it is started again")
            while not stop.wait(min(1.0, max(0.0, due - time.monotonic()))):
                self._outlet.tick()
                if time.monotonic() >= due:
                    break

    def close(self) -> None:
        """Nothing to give back: each run ends its command."""

    def _once(self, stop: threading.Event) -> None:
        try:
            process = subprocess.Popen(
                self._settings.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise TransientError(
                f"{self._settings.command[0]} cannot be run: {error.strerror}"
            ) from error
        self._live_from = 0.0
        with process:
            try:
                said = self._listen(process, stop)
            finally:
                _end(process)
        if process.returncode and not stop.is_set():
            text = said.decode("utf-8", "replace").strip()
            raise TransientError(
                f"{self._settings.command[0]} ended with {process.returncode}: {text}",
                "run it by hand as the agent's user",
            )

    def _listen(self, process: subprocess.Popen[bytes], stop: threading.Event) -> bytes:
        """Take its lines until it ends; returns the end of its stderr."""
        assert process.stdout is not None
        assert process.stderr is not None
        half, said, skipping = b"", b"", False
        heard = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while not stop.is_set():
                # Asked before the read: what it wrote before its end is read after it.
                ended = _has_ended(process)
                events = selector.select(0 if ended else _LOOK_SECONDS)
                for key, _ in events:
                    data = os.read(key.fd, 65_536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stderr:
                        said = (said + data)[-_ERROR_BYTES:]
                    else:
                        *lines, half = (half + data).split(b"\n")
                        if skipping and lines:
                            lines, skipping = lines[1:], False
                        if len(half) > _LINE_BYTES or skipping:
                            if not skipping:
                                self._outlet.unreadable("a line is too long", start=str(half[:80]))
                            half, skipping = b"", True
                        if self._take(lines, stop):
                            heard = time.monotonic()
                self._outlet.tick()
                self._look_if_empty(selector)
                if ended and not events:
                    break
                if not ended:
                    self._check_time(heard)
        if not stop.is_set() and not skipping:
            self._take([half], stop)
        return said

    def _look_if_empty(self, selector: selectors.BaseSelector) -> None:
        """After a refusal: what is in the pipe is old, and what its writer held back follows."""
        if self._live_from == math.inf and not selector.select(0):
            self._live_from = time.monotonic() + _LOOK_SECONDS

    def _check_time(self, heard: float) -> None:
        settings = self._settings
        limit = settings.timeout_seconds if settings.interval_seconds else settings.silence_seconds
        if limit and time.monotonic() - heard > limit:
            raise TransientError(
                f"{settings.command[0]} said nothing for {limit:g} s: it was killed",
                "raise the limit when it needs longer",
            )

    def _take(self, lines: list[bytes], stop: threading.Event) -> int:
        """Append what lines say; waits while the buffer refuses. Returns the number of records."""
        readings: list[tuple[Span | None, Reading]] = []
        documents: list[Document] = []
        for line in lines:
            if not line.strip():
                continue
            try:
                self._span = None
                record = self._parse(line)
            except PermanentError as error:
                self._outlet.unreadable(error.message, line=line[:200].decode("utf-8", "replace"))
                continue
            if isinstance(record, Reading):
                readings.append((self._span, record))
            else:
                documents.append(record)
        self._insist(lambda: self._outlet.append_documents(documents), len(documents), stop)
        for span, run in runs(readings):
            append = functools.partial(self._outlet.append_readings, run, span=span)
            self._insist(append, len(run), stop)
        return len(readings) + len(documents)

    def _insist(self, append: Callable[[], None], records: int, stop: threading.Event) -> None:
        """Append until it succeeds: a command cannot be asked to say it again."""
        told = False
        while True:
            try:
                append()
            except TransientError as error:
                self._live_from = math.inf
                if stop.wait(1.0 if told else 0.0):
                    self._outlet.unreadable("stopped while the buffer refused", records)
                    return
                if not told:
                    log.warning("source.waiting", source=self.name, reason=error.message)
                told = True
            else:
                return

    def _value(self, line: bytes) -> Reading:
        fields = _text(line).split()
        if len(fields) not in (2, 3):
            raise PermanentError(f"{len(fields)} words, not 'metric value [time]'")
        value = number("value", fields[1])
        assert value is not None
        if len(fields) == 3:
            iso = "T" in fields[2]
            instant_ms = (self._instants if iso else self._seconds).parse(fields[2])
        else:
            instant_ms = self._now_ms()
        return _checked(Reading(fields[0], instant_ms, value))

    def _json(self, line: bytes) -> Reading | Document:
        fields = parse_json(_text(line))
        if isinstance(fields, dict) and "metric" in fields and "observed_at" not in fields:
            name, value = fields["metric"], number("value", fields.get("value"))
            if fields.keys() != {"metric", "value"} or not isinstance(name, str) or value is None:
                raise PermanentError('a reading is {"metric", "value", "observed_at"}')
            return _checked(Reading(name, self._now_ms(), value))
        if isinstance(fields, dict) and "metric" in fields:
            return _checked(payload.readings(line, lines=False)[0])
        if not isinstance(fields, dict):
            raise PermanentError("a line is one JSON object")
        documents = payload.documents(line, self._outlet.buffer.calendar, lines=False)
        acceptance.check_documents(documents)
        return documents[0]

    def _now_ms(self) -> int:
        """For a line without a time. Raises PermanentError: nobody knows when it was written."""
        if time.monotonic() < self._live_from:
            raise PermanentError("it waited while the buffer refused, and has no time of its own")
        now = clock.stamp()
        self._span = now.span
        return now.wall_ms


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def _checked(reading: Reading) -> Reading:
    acceptance.check_readings([reading], set())
    return reading


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    # Not poll(): it would free the process id, by which the group is killed afterwards.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while not _has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _make(context: SourceContext, settings: ExecSettings) -> ExecSource:
    return ExecSource(context.outlet, settings, name=context.name)


KIND = SourceKind(ExecSettings, _make)
