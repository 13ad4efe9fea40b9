"""Orders of the hub: settings that are tried before they are kept, commands that are done once.

    order ─► checked ─► trial (written down) ─► restart into it ─► healthy for a while ─► good
                │                                   │ not healthy in time, ended, refused
                └─► rejected                        └─► rejected: restart into the last good one

Everything is one file beside the buffer, replaced whole, so a kill -9 or a power cut at any point
leaves one of these states and the next start goes on from it. A trial that was started twice and
did not become good is rejected: what crashes the agent cannot tell so itself.
Not its job: carrying messages (``forwarder``), what a command does (``agent``).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from scout_edge.identity import Identity, write_durably
from scout_shared import logs, topics
from scout_shared.errors import ConfigError, WireError
from scout_shared.orders import COMMANDS, CommandOrder, ConfigOrder, Report

S = TypeVar("S")

_STARTS = 2  # one more than a crash needs: a power cut during a trial is nobody's fault
_REMEMBERED = 200
_REPORTS = 5

log = logs.get("remote")

Body = Mapping[str, Any]
Perform = Callable[[str], Awaitable[Report | None]]
"""(command) → its report; ``None``: it is done by the restart that follows."""


@dataclass(slots=True)
class _State:
    seen: int = 0
    """Highest version that was ever decided about."""
    good_version: int = 0
    good: Body = field(default_factory=dict)
    trial_version: int = 0
    """0: no trial."""
    trial: Body = field(default_factory=dict)
    starts: int = 0
    """How often the agent was started into the trial."""
    config_report: dict[str, Any] | None = None
    """What was last said of the configuration; repeated on each connection."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """The last ones of commands: the hub asks again until it has them."""
    unsaid: list[str] = field(default_factory=list)
    """Which of them the broker has not taken yet."""
    commands: list[str] = field(default_factory=list)
    """Ids of commands that were begun, newest last."""


class Remote:
    """The orders for one device. For one event loop; ``begin`` and ``reject`` also without one."""

    def __init__(self, buffer: Path, identity: Identity | None, check: Callable[[Body], object]):
        """``check``: makes settings of the hub's wishes, or raises ConfigError."""
        self._path = buffer.with_name(buffer.name + ".remote")
        self._identity = identity
        self._check = check
        self._lock = threading.Lock()
        self._state = self._read()
        self._on_trial = False
        self._unsaid = True
        self.news = asyncio.Event()
        """Set: there is something to report."""
        self.restart = asyncio.Event()
        """Set: the agent shall stop in order and start again."""
        self.hub_time_ms: Callable[[], int] = lambda: 0
        """The hub's clock, as far as it is known; 0: not at all."""
        self.perform: Perform | None = None
        """How commands are done."""

    @property
    def on_trial(self) -> bool:
        """Whether the settings in force have not proved themselves yet."""
        return self._on_trial

    @property
    def version(self) -> int:
        """Of the hub's configuration in force; 0: none."""
        return self._state.trial_version if self._on_trial else self._state.good_version

    def begin(self, check: Callable[[Body], S]) -> S:
        """The settings to start with: those on trial, or the last good ones, or the file's own.

        Raises:
            ConfigError: the settings file itself is wrong.
        """
        state = self._state
        if state.trial_version:
            if state.starts >= _STARTS:
                self.reject(f"the agent ended {state.starts} times before it was healthy")
            else:
                try:
                    made = check(state.trial)
                except ConfigError as error:
                    self.reject(str(error))
                else:
                    state.starts += 1
                    self._write()
                    self._on_trial = True
                    return made
        if state.good_version:
            try:
                return check(state.good)
            except ConfigError as error:
                # The file was changed since; a device with its own settings beats a dead one.
                log.error("config.set_aside", version=state.good_version, reason=error.message)  # noqa: TRY400 - no defect
                self._say_config(state.good_version, "rejected", str(error))
                state.good_version, state.good = 0, {}
                self._write()
        return check({})

    def reject(self, reason: str, version: int | None = None) -> None:
        """Give up the trial, for this reason. The caller restarts into what was good.

        Args:
            version: the trial that is meant; nothing happens when another has begun meanwhile.
        """
        with self._lock:
            state = self._state
            if version not in (None, state.trial_version):
                return
            log.warning("config.rejected", version=state.trial_version, reason=reason)
            self._say_config(state.trial_version, "rejected", reason)
            state.trial_version, state.trial, state.starts = 0, {}, 0
            self._on_trial = False
            self._write()

    def keep(self, version: int) -> None:
        """The settings on trial have proved themselves; as ``reject``."""
        with self._lock:
            state = self._state
            if version != state.trial_version:
                return
            log.info("config.kept", version=state.trial_version)
            state.good_version, state.good = state.trial_version, state.trial
            self._say_config(state.good_version, "good", "")
            state.trial_version, state.trial, state.starts = 0, {}, 0
            self._on_trial = False
            self._write()
        self.news.set()

    async def watch(
        self, healthy: Callable[[], bool], *, healthy_seconds: float, trial_seconds: float
    ) -> None:
        """Keep the settings on trial once ``healthy`` held for a while; else roll back."""
        if not self._on_trial:
            return
        version = self._state.trial_version
        loop = asyncio.get_running_loop()
        deadline = loop.time() + trial_seconds
        since: float | None = None
        while True:
            now = loop.time()
            since = (since or now) if healthy() else None
            if since is not None and now - since >= healthy_seconds:
                await asyncio.to_thread(self.keep, version)
                return
            if now >= deadline:
                await asyncio.to_thread(
                    self.reject,
                    f"no receipts for {healthy_seconds:g} s within {trial_seconds:g} s",
                    version,
                )
                self.restart.set()
                return
            await asyncio.sleep(min(0.2, healthy_seconds))

    async def take(self, topic: str, payload: bytes) -> None:
        """An order came. Never raises for what is in it."""
        if self._identity is None:
            log.warning("order.refused", reason="this device is not enrolled: it has no key")
            return
        channel = topic.rpartition("/")[2]
        try:
            if channel == topics.CONFIG:
                order = ConfigOrder.decode(
                    payload, device_id=self._identity.device_id, key=self._identity.signing_key
                )
                await asyncio.to_thread(self._take_config, order)
            elif channel == topics.COMMAND:
                await self._take_command(
                    CommandOrder.decode(
                        payload,
                        device_id=self._identity.device_id,
                        key=self._identity.signing_key,
                    )
                )
        except WireError as error:
            log.warning("order.refused", reason=error.reason, topic=topic)
        except ConfigError as error:  # it cannot be written down: then it is not begun
            log.error("order.refused", reason=error.message, hint=error.hint)  # noqa: TRY400 - no defect
        if self._state.trial_version and not self._on_trial:
            self.restart.set()
        self.news.set()

    def _take_config(self, order: ConfigOrder) -> None:
        with self._lock:
            state = self._state
            if order.version <= state.seen:
                if order.version < state.seen:
                    log.warning("config.refused", version=order.version, newest=state.seen)
                self._unsaid = True  # the hub asks: what it was told may have been lost
                return
            state.seen = order.version
            try:
                body = json.loads(order.body)
                if not isinstance(body, dict):
                    raise ConfigError("the configuration is no table of tables")
                self._check(body)
            except (ValueError, RecursionError) as error:
                self._say_config(order.version, "rejected", f"it cannot be read: {error}")
            except ConfigError as error:
                self._say_config(order.version, "rejected", str(error))
            else:
                state.trial_version, state.trial, state.starts = order.version, body, 0
                self._on_trial = False
                self._say_config(order.version, "trying", "")
                log.info("config.tried", version=order.version)
            self._write()

    async def _take_command(self, order: CommandOrder) -> None:
        state = self._state
        if any(r["of"] == order.command_id for r in state.reports):
            # Done is done. The hub asks again, because the answer was lost.
            state.unsaid = [*{*state.unsaid, order.command_id}]
            return
        if order.command_id in state.commands:
            return
        hub_ms = self.hub_time_ms()
        if hub_ms > order.expires_ms:
            report = Report("command", order.command_id, "refused", "it has expired")
        elif order.command not in COMMANDS or self.perform is None:
            known = ", ".join(COMMANDS)
            report = Report("command", order.command_id, "refused", f"this agent knows: {known}")
        else:
            state.commands = [*state.commands, order.command_id][-_REMEMBERED:]
            restarts = order.command == "restart"
            if restarts:
                self._say(Report("command", order.command_id, "done", "restarting"))
            # Before it is begun: it is done at most once, whatever happens meanwhile.
            await asyncio.to_thread(self._write)
            log.info("command.begun", command=order.command, command_id=order.command_id)
            if restarts:
                self.restart.set()
                return
            done = await self.perform(order.command)
            if done is None:
                return
            report = Report("command", order.command_id, done.state, done.message, done.result)
        self._say(report)
        await asyncio.to_thread(self._write)

    # -- reports --------------------------------------------------------------------------------

    def connected(self) -> None:
        """On a new connection the state of the configuration is said again."""
        self._unsaid = True
        self.news.set()

    def waiting(self) -> list[Report]:
        """What is to be said now."""
        self.news.clear()
        commands = [r for r in self._state.reports if r["of"] in self._state.unsaid]
        said = [*([self._state.config_report] if self._unsaid else []), *commands]
        return [_report(one) for one in said if one is not None]

    async def said(self, report: Report) -> None:
        """The broker has it."""
        if report.kind == "config":
            if self._state.config_report == report.as_dict():
                self._unsaid = False
            return
        self._state.unsaid = [of for of in self._state.unsaid if of != report.of]
        await asyncio.to_thread(self._write)

    def _say_config(self, version: int, state: str, message: str) -> None:
        self._state.config_report = Report("config", str(version), state, message[:2000]).as_dict()
        self._unsaid = True

    def _say(self, report: Report) -> None:
        self._state.reports = [*self._state.reports, report.as_dict()][-_REPORTS:]
        self._state.unsaid = [*self._state.unsaid, report.of]

    # -- the file -------------------------------------------------------------------------------

    def _read(self) -> _State:
        try:
            return _State(**json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return _State()
        except (OSError, ValueError, TypeError) as error:
            # Nothing in it cannot be had again: the hub's settings are retained at the broker.
            log.error("remote.forgotten", file=str(self._path), reason=str(error))  # noqa: TRY400 - no defect
            return _State()

    def _write(self) -> None:
        fields = {name: getattr(self._state, name) for name in _State.__dataclass_fields__}
        write_durably(self._path, json.dumps(fields).encode())


def _report(found: Mapping[str, Any]) -> Report:
    return Report(
        found["kind"], found["of"], found["state"], found["message"], found.get("result") or {}
    )
