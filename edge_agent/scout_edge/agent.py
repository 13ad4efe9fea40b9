"""The agent: one buffer, its sources in threads, its forwarder in the event loop.

Start: open the buffer, open each source, then run. Stop: sources first, then seal and send for
``drain_seconds``, say "offline", close. What is left waits in the buffer for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http.client
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scout_edge import boots, forwarder, notify, recovery, status
from scout_edge.allowance import Allowance
from scout_edge.buffer import Buffer
from scout_edge.config import EdgeSettings
from scout_edge.database import DamagedError
from scout_edge.forwarder import Forwarder
from scout_edge.metrics import AgentMetrics
from scout_edge.privacy import Privacy
from scout_edge.remote import Remote
from scout_edge.room import Limits
from scout_edge.sources import Source, SourceContext, registry
from scout_edge.sources.http import HttpDoor
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.registry import SourceSettings
from scout_shared import __version__, logs
from scout_shared.errors import ConfigError, ScoutError, TransientError
from scout_shared.orders import Report

_MAX_DELAY_SECONDS = 60.0
_KNOCK_SECONDS = 10.0  # the watchdog's question to the door; systemd waits 60 s
_DRAIN_SECONDS = 60.0  # what the hub's command may take
_RETENTION_SECONDS = 60.0  # between two looks at what may not wait any longer
_JOIN_SECONDS = 5.0  # a source that does not stop in this time is left behind: it is a daemon

log = logs.get("agent")


class Agent:
    """Everything that one device runs.

    Raises:
        ConfigError, PermanentError: the buffer or the TLS files cannot be used.
    """

    def __init__(self, settings: EdgeSettings, remote: Remote | None = None) -> None:
        """``remote``: the hub's orders; None: this agent takes none."""
        self.settings = settings
        self.remote = remote
        self.buffer = _open_buffer(settings)
        try:
            self.metrics = AgentMetrics(self.buffer)
            self.allowance = Allowance(self.buffer, settings.mqtt.budget_bytes_per_day)
            self.metrics.budget.set(self.allowance.bytes_per_day)
            self.metrics.budget_used.set_function(lambda: self.allowance.used)
            self.forwarder = _forwarder(
                settings, self.buffer, self.metrics, self.allowance, orders=remote
            )
            self._outlets: dict[str, Outlet] = {}
            self.sources = [
                self._source(name, source)
                for name, source in _sources(settings).items()
                if source.enabled
            ]
        except BaseException:
            self.buffer.close()
            raise

    def _source(self, name: str, configured: SourceSettings) -> Source:
        """Make one source. Raises ConfigError naming it."""
        kind = registry.find(configured.kind)
        self._outlets[name] = Outlet(
            self.buffer, self.metrics, name, configured.shape, kind.patience_seconds
        )
        context = SourceContext(
            name=name,
            outlet=self._outlets[name],
            buffer=self.buffer,
            metrics=self.metrics,
            status=self.status,
            folder=self.settings.buffer.path.parent,
        )
        try:
            return kind.make(context, configured.settings)
        except ConfigError as error:
            raise ConfigError(f"source {name!r}: {error.message}", error.hint) from error

    async def run(self, stop: asyncio.Event, manager: notify.Manager | None = None) -> None:
        """Work until ``stop`` is set, then stop in order.

        Args:
            manager: is told when all runs, that it goes on running, and when it ends.

        Raises:
            ScoutError: a source cannot start or cannot go on; everything was stopped in order.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.buffer.close)
            stack.callback(self.allowance.keep)
            for source in self.sources:
                stack.callback(source.close)
                source.open()
            await self._run(stop, manager or notify.Manager())

    async def _run(self, stop: asyncio.Event, manager: notify.Manager) -> None:
        loop = asyncio.get_running_loop()
        failures: list[BaseException] = []

        def fail(error: BaseException) -> None:
            failures.append(error)
            loop.call_soon_threadsafe(stop.set)

        ending = threading.Event()
        threads = [
            threading.Thread(
                target=self._supervise,
                args=(source, ending, fail),
                name=f"source-{source.name}",
                daemon=True,
            )
            for source in self.sources
        ]
        for thread in threads:
            thread.start()
        forwarding = asyncio.create_task(self.forwarder.run(), name="forwarder")
        forwarding.add_done_callback(lambda _: stop.set())
        recovering = asyncio.create_task(self._deliver_recovered(), name="recovery")
        log.info(
            "agent.started",
            device_id=self.settings.device.id,
            store_id=self.settings.device.store,
            version=__version__,
            epoch=self.buffer.epoch.hex(),
            next_sequence=self.buffer.next_sequence,
        )
        timing = asyncio.create_task(self._watch_clock(), name="clock")
        retaining = asyncio.create_task(_retain(self.settings, self.buffer), name="retention")
        manager.say(notify.READY)
        watching = asyncio.create_task(
            notify.watch(manager, functools.partial(self.alive, threads)), name="watchdog"
        )
        tasks = asyncio.create_task(self._obey(stop), name="remote")
        try:
            await stop.wait()
            if self.remote is None or not self.remote.restart.is_set():
                # After STOPPING systemd waits for the end of the process; a restart has none.
                manager.say(notify.STOPPING, "STATUS=stopping: sending what is there")
            ending.set()
            for thread in threads:
                await asyncio.to_thread(thread.join, _JOIN_SECONDS)
            if self.forwarder.state.connected and not forwarding.done():
                await self.forwarder.drain(self.settings.mqtt.drain_seconds, metered=True)
        finally:
            ending.set()
            tasks.cancel()
            watching.cancel()
            recovering.cancel()
            timing.cancel()
            retaining.cancel()
            ended = await asyncio.gather(
                tasks, watching, recovering, timing, retaining, return_exceptions=True
            )
            # A defect in them must be seen, and stop nothing else.
            failures += [error for error in ended if isinstance(error, Exception)]
            await forwarder.stopped(forwarding)
        log.info("agent.stopped", backlog_records=self.buffer.status().backlog_records)
        if failures:
            raise failures[0]

    async def _obey(self, stop: asyncio.Event) -> None:
        """Follow the hub's orders; a restart is a stop, after which ``remote.restart`` is set."""
        remote = self.remote
        if remote is None:
            return
        remote.perform = self._perform
        remote.hub_time_ms = lambda: self.forwarder.state.hub_time_ms or 0
        trial = remote.watch(
            self._healthy,
            healthy_seconds=self.settings.remote.healthy_seconds,
            trial_seconds=self.settings.remote.trial_seconds,
        )
        watching = asyncio.create_task(trial, name="trial")
        try:
            await remote.restart.wait()
            stop.set()
        finally:
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended

    def _healthy(self) -> bool:
        """Receipts flow: everything from the sources to the hub's database goes on."""
        return self.forwarder.state.connected and self.forwarder.heard

    async def _perform(self, command: str) -> Report | None:
        """Do what the hub orders, and say how it went; ``drain`` or ``diagnostics``."""
        if command == "drain":
            done = await self.forwarder.drain(_DRAIN_SECONDS)
            left = self.buffer.status().backlog_records
            return Report("command", "", "done" if done else "failed", "", {"left_records": left})
        from scout_edge import doctor  # late: the agent itself does not need it in memory

        found = await asyncio.to_thread(lambda: list(doctor.examine(self.settings)))
        failed = sum(finding.level == doctor.FAIL for finding in found)
        findings = [dataclasses.asdict(finding) for finding in found]
        result = {"failed": failed, "findings": findings, "status": self.status()}
        return Report("command", "", "done", f"{failed} failed", result)

    async def _watch_clock(self) -> None:
        """Look at the clocks every LOOK_SECONDS: jumps, and when the right time becomes known."""
        watch = boots.ClockWatch(self.buffer, self.metrics.clock_jumps.inc)
        while True:
            try:
                await asyncio.to_thread(watch.look)
            except TransientError as error:
                log.warning("clock.not_kept", reason=error.message)
            await asyncio.sleep(boots.LOOK_SECONDS)

    async def _deliver_recovered(self) -> None:
        """Send what lies in files of old epochs, beside the new data, until the hub has all."""
        while True:
            self.forwarder.forked.clear()
            for path in recovery.waiting(self.settings.buffer.path):
                await _deliver(self.settings, path, math.inf, self.allowance, metered=True)
            await self.forwarder.forked.wait()

    def _supervise(
        self, source: Source, stop: threading.Event, fail: Callable[[BaseException], None]
    ) -> None:
        """Keep one source running; see ``sources.Source`` for what each error does."""
        doublings = 0
        while not stop.is_set():
            started = time.monotonic()
            try:
                source.run(stop)
            except TransientError as error:
                if time.monotonic() - started > _MAX_DELAY_SECONDS:
                    doublings = 0
                delay = random.uniform(0, min(_MAX_DELAY_SECONDS, 2.0**doublings))
                doublings = min(doublings + 1, 10)
                self.metrics.source_failures.labels(source.name).inc()
                log.warning(
                    "source.failed",
                    source=source.name,
                    reason=error.message,
                    hint=error.hint,
                    retry_seconds=round(delay, 1),
                )
                self._outlets[source.name].wait(delay)
                stop.wait(delay)
            except ScoutError as error:
                fail(error)
                return
            except Exception as error:  # noqa: BLE001 - supervisor: a defect in a source is seen
                fail(error)
                return
        try:
            self._outlets[source.name].flush()
        except TransientError as error:  # the open windows are in the file, and go on from there
            log.warning("window.kept_open", source=source.name, reason=error.message)

    def alive(self, threads: Sequence[threading.Thread]) -> str:
        """The status sentence, once each part that must move has moved; blocks until it has.

        The buffer's writer has done an empty transaction (no write to the disk), its reader and the
        event loop were asked, each source has its thread and beats (``Outlet.beat``; one that never
        did is not judged), the door has answered a request.

        Raises:
            StuckError: a source's thread is gone or hangs, or the door does not answer.
            TransientError: the buffer answered that it cannot.
        """
        for thread in threads:
            if not thread.is_alive():
                raise notify.StuckError(f"the thread {thread.name} has ended")
        self.buffer.seal(math.inf)
        for name, outlet in self._outlets.items():
            silent = outlet.silent_seconds
            if silent > outlet.patience_seconds:
                raise notify.StuckError(f"source {name!r} hangs: no beat for {silent:.0f} s")
        for source in self.sources:
            if isinstance(source, HttpDoor):
                _knock(source)
        return str(status.headline(self.status()))

    def status(self) -> dict[str, Any]:
        """What ``GET /v1/status`` answers. Raises TransientError while closing."""
        link = self.forwarder.state
        return {
            "running": True,
            "version": __version__,
            "device_id": self.settings.device.id,
            "store_id": self.settings.device.store,
            "zone": self.settings.device.zone,
            "uptime_seconds": round(time.monotonic() - self.metrics.started, 1),
            **status.of_buffer(self.buffer.status()),
            **status.of_machine(self.settings.buffer.path),
            "damaged_files": self.forwarder.damaged_files,
            "connected": link.connected,
            "fallback": link.fallback,
            "mqtt_error": link.mqtt_error,
            "hub_answers": link.connected and self.forwarder.heard,
            "copied": link.copied,
            "budget_bytes": self.allowance.bytes_per_day,
            "budget_used_bytes": self.allowance.used,
            "credit": link.credit,
            "in_flight_segments": link.in_flight,
            "hub_time_ms": link.hub_time_ms,
            "receipt_ms": link.receipt_ms,
            "last_error": link.last_error,
            "counters": self.metrics.counters(),
        }


async def drain(settings: EdgeSettings, timeout_seconds: float) -> int:
    """Send all that a stopped agent's buffer holds, without sources.

    Returns:
        the records that the hub has not confirmed: 0 when all is there.

    Raises:
        ConfigError: the agent is running, or the buffer cannot be used.
        TransientError: all records are there, but not yet the count of what was accepted.
    """
    with contextlib.ExitStack() as stack:
        buffer = stack.enter_context(_open_buffer(settings))
        allowance = Allowance(buffer, settings.mqtt.budget_bytes_per_day)
        stack.callback(allowance.keep)
        sending = _forwarder(settings, buffer, AgentMetrics(buffer), allowance)
        forwarding = asyncio.create_task(sending.run(), name="forwarder")
        try:
            await sending.drain(timeout_seconds)
        finally:
            await forwarder.stopped(forwarding)
        for path in recovery.waiting(settings.buffer.path):
            if records := await _deliver(settings, path, timeout_seconds, allowance):
                return records
        left = buffer.status()
        if left.ledger and not left.backlog_records:
            raise TransientError(
                f"the hub has all records, but not their count after {timeout_seconds:g} s",
                "try again when the hub is reachable",
            )
        return left.backlog_records


def _knock(door: HttpDoor) -> None:
    """Raise StuckError when the door does not answer; one that is too busy to is alive."""
    connection = http.client.HTTPConnection(*door.address, timeout=_KNOCK_SECONDS)
    try:
        connection.request("GET", "/v1/status")
        connection.getresponse().read()
    except (http.client.HTTPException, ConnectionResetError, BrokenPipeError):
        return  # all its connections are taken, and it said so
    except OSError as error:
        raise notify.StuckError(f"the local door does not answer: {error}") from error
    finally:
        connection.close()


def _sources(settings: EdgeSettings) -> dict[str, SourceSettings]:
    """Those of ``[http]`` and ``[system]``, on each device unless disabled, then the rest."""
    return {
        "http": SourceSettings("http", settings.http, settings.http.enabled),
        "system": SourceSettings("system", settings.system, settings.system.enabled),
        **settings.sources,
    }


def _open_buffer(settings: EdgeSettings) -> Buffer:
    return recovery.open_buffer(
        settings.buffer.path,
        zone=settings.device.zone,
        limits=settings.buffer.limits,
        group_commit_seconds=settings.buffer.group_commit_seconds,
        note_seconds=settings.buffer.note_seconds,
        privacy=Privacy(settings.privacy),
    )


async def _retain(settings: EdgeSettings, buffer: Buffer) -> None:
    """Give up documents that have waited for longer than they may be kept, until cancelled."""
    days = settings.privacy.retention_days
    while days:
        try:
            await asyncio.to_thread(buffer.give_up_expired, days)
        except TransientError as error:
            log.warning("retention.postponed", reason=error.message)
        await asyncio.sleep(_RETENTION_SECONDS)


async def _deliver(
    settings: EdgeSettings,
    path: Path,
    timeout_seconds: float,
    allowance: Allowance,
    *,
    metered: bool = False,
) -> int:
    """Send a recovered buffer, delete it when the hub has confirmed all; returns what is left."""
    left = 1
    # It takes nothing new, so it needs no more room than it has, and some to seal.
    most = settings.buffer.max_bytes + await asyncio.to_thread(recovery.size, path)
    try:
        with Buffer(path, zone=recovery.zone_of(path), limits=Limits(most)) as buffer:
            measured = AgentMetrics(buffer)
            sending = _forwarder(settings, buffer, measured, allowance, recovered=True)
            forwarding = asyncio.create_task(sending.run(), name="forwarder-recovered")
            retaining = asyncio.create_task(_retain(settings, buffer), name="retention-recovered")
            try:
                done = await sending.drain(timeout_seconds, metered=metered)
            finally:
                retaining.cancel()
                await forwarder.stopped(forwarding)
            left = 0 if done else buffer.status().backlog_records or 1
    except* DamagedError as group:
        recovery.search_again(path)
        reasons = "; ".join(map(str, group.exceptions))
        log.error("recovery.damaged", file=str(path), reason=reasons)  # noqa: TRY400 - no defect
    except* ScoutError as group:
        # What is new goes on; this is tried again at the next start.
        reasons = "; ".join(map(str, group.exceptions))
        log.error("recovery.failed", file=str(path), reason=reasons)  # noqa: TRY400 - no defect
    if not left:
        recovery.finish(path)
    return left


def _forwarder(
    settings: EdgeSettings,
    buffer: Buffer,
    measured: AgentMetrics,
    allowance: Allowance,
    *,
    recovered: bool = False,
    orders: Remote | None = None,
) -> Forwarder:
    return Forwarder(
        buffer,
        measured,
        device=settings.device,
        mqtt=settings.mqtt,
        hub=settings.hub,
        seal_seconds=settings.buffer.seal_seconds,
        recovered=recovered,
        damaged_files=len(recovery.damaged_files(settings.buffer.path)),
        orders=orders,
        allowance=allowance,
    )
