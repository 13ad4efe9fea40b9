"""The hub as one service: named threads, and the one place that restarts them.

A thread that fails is logged and started again after a pause with full jitter; a wrong setting ends
the service instead, because no restart mends it. Stopping sets one event, that every task watches.
Not its job: what the tasks do (ingest, runner, API).
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from scout_central.config import Settings
from scout_shared import logs
from scout_shared.errors import ConfigError, ScoutError, TransientError

log = logs.get("hub")

Task = Callable[[threading.Event], None]
"""Works until the event is set; returning or raising before that is a failure."""

PARTS = ("ingest", "runner", "api")
STOP_SECONDS = 10.0
_MAX_PAUSE_SECONDS = 30.0
_CALM_SECONDS = 60.0
"""A task that worked so long starts its next pause from the shortest again."""


class Supervisor:
    """Runs tasks in threads until ``stop``; a ``with`` block starts and stops it."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._stop = threading.Event()
        self.ended = threading.Event()
        """Set when a task met a ConfigError: the service cannot go on."""
        self.failure: ConfigError | None = None
        # daemon: a thread that hangs in a system call must not keep a stopped hub alive.
        self._threads = [
            threading.Thread(target=self._supervise, args=(name, task), name=name, daemon=True)
            for name, task in tasks.items()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """Ask all tasks to end and wait for them. Safe to repeat."""
        self._stop.set()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hung = [thread.name for thread in self._threads if thread.is_alive()]
        if hung:
            log.warning("tasks.abandoned", tasks=hung, waited_seconds=timeout_seconds)

    def _supervise(self, name: str, task: Task) -> None:
        failures = 0
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                task(self._stop)
                if not self._stop.is_set():
                    log.error("task.ended", task=name)
            except ConfigError as error:
                self.failure = error
                self.ended.set()
                return
            except ScoutError as error:
                log.error(  # noqa: TRY400  # ours: the message says it all
                    "task.failed", task=name, error=error.message, hint=error.hint
                )
            except Exception as error:  # the supervisor: a defect costs one restart
                log.exception("task.crashed", task=name, error=repr(error))
            calm = time.monotonic() - started > _CALM_SECONDS
            failures = 1 if calm else failures + 1
            self._stop.wait(
                random.uniform(0, min(_MAX_PAUSE_SECONDS, 0.2 * 2 ** min(failures, 10)))
            )


def serve(settings: Settings, parts: tuple[str, ...], stop: threading.Event) -> None:
    """Run ``parts`` (of PARTS) until ``stop`` is set.

    Raises:
        ConfigError: a part cannot work with these settings.
    """
    with Supervisor(tasks(settings, parts)) as supervisor:
        log.info("hub.started", parts=parts)
        # Two events cannot be waited for at once; this is how late a stop is noticed.
        while not stop.wait(0.1) and not supervisor.ended.is_set():
            pass
    log.info("hub.stopped", parts=parts)
    if supervisor.failure is not None:
        raise supervisor.failure


def tasks(settings: Settings, parts: tuple[str, ...]) -> dict[str, Task]:
    """The tasks of ``parts``, by thread name. Raises ConfigError."""
    dsn = settings.database_dsn()
    found: dict[str, Task] = {}
    if "ingest" in parts:
        from scout_central.ingest import Receiver

        found.update(Receiver(dsn, settings.mqtt, settings.ingest).tasks())
        from scout_central.fleet import downlink

        found["orders"] = downlink.task(dsn, settings.mqtt, settings.ingest.share_group)
    if "runner" in parts:
        found["runner"] = lambda stop: run_medallion(dsn, settings.runner.interval_seconds, stop)
    if "api" in parts:
        listener = _listen(settings.api.host, settings.api.port)
        found["api"] = lambda stop: _serve_api(settings, listener, stop)
    if "api" in parts and settings.broker.password_file is not None:
        from scout_central.fleet.door import FleetDoor

        found["accounts"] = FleetDoor(dsn, settings.broker, settings.mqtt).keep_accounts
    return found


def run_medallion(dsn: str, interval_seconds: float, stop: threading.Event) -> None:
    """A run every ``interval_seconds``; one that meets a busy or absent database is tried again.

    Any other failure is in ``metadata.error_log``, written by the run itself, and the loop goes on:
    the next run starts from the same watermarks.
    """
    from scout_central.medallion import Runner

    runner = Runner(dsn)
    failures = 0
    while not stop.is_set():
        try:
            runner.run_once(trigger="micro-batch")
            failures = 0
        except TransientError as error:
            failures += 1
            log.warning("run.postponed", attempt=failures, error=error.message)
        except ConfigError:
            raise
        except ScoutError as error:
            log.error("run.failed", error=error.message, hint=error.hint)  # noqa: TRY400  # ours
            failures = 0
        pause = interval_seconds
        if failures:
            pause = random.uniform(0, min(_MAX_PAUSE_SECONDS, 0.5 * 2 ** min(failures, 10)))
        stop.wait(pause)


def _listen(host: str, port: int) -> socket.socket:
    """A socket of our own, because uvicorn ends the whole process when its port is taken."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise ConfigError(
            f"the API cannot listen on {host}:{port}: {error.strerror}",
            "stop what uses the port, or set another one as api.port",
        ) from error


def _serve_api(settings: Settings, listener: socket.socket, stop: threading.Event) -> None:
    from scout_central.api.app import create_app
    from scout_central.api.server import server_of

    server = server_of(create_app(settings), settings.api.proxies)
    watcher = threading.Thread(
        target=_stop_server, args=(server, stop), name="api-stop", daemon=True
    )
    watcher.start()
    # A duplicate: uvicorn closes what it is given, and a restart needs the port again.
    server.run(sockets=[listener.dup()])


def _stop_server(server: object, stop: threading.Event) -> None:
    stop.wait()
    server.should_exit = True  # type: ignore[attr-defined]  # uvicorn is imported late
