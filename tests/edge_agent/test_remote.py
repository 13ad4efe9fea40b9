"""The device's side of orders: which state every end of the process leaves, and what comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scout_edge.identity import Identity
from scout_edge.remote import Remote
from scout_shared.errors import ConfigError
from scout_shared.orders import CommandOrder, ConfigOrder, Report

KEY = b"k" * 32
IDENTITY = Identity("d", "s", "Asia/Manila", "b", 1883, False, "", "p", KEY)
CONFIG, COMMAND = "edge/1/s/d/dn/cfg", "edge/1/s/d/dn/cmd"
ONE, TWO = '{"log":{"level":"debug"}}', '{"log":{"level":"error"}}'
WRONG = '{"log":{"level":"loud"}}'


def check(body: Mapping[str, Any]) -> str:
    """Settings are the level here."""
    level = body.get("log", {}).get("level", "info")
    if level not in ("info", "debug", "error"):
        raise ConfigError(f"level {level!r} is not known")
    return str(level)


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


def start(buffer: Path, identity: Identity | None = IDENTITY) -> tuple[Remote, str]:
    """As after any end of the process: what the file says."""
    remote = Remote(buffer, identity, check)
    return remote, remote.begin(check)


def order(remote: Remote, version: int, body: str, key: bytes = KEY) -> None:
    payload = ConfigOrder("d", version, body).encode(key)
    asyncio.run(remote.take(CONFIG, payload))


def watch(remote: Remote, *, healthy: bool, trial_seconds: float = 5.0) -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            await remote.watch(lambda: healthy, healthy_seconds=0.02, trial_seconds=trial_seconds)

    asyncio.run(run())


def said(remote: Remote) -> list[tuple[str, str, str]]:
    remote.connected()
    return [(report.of, report.state, report.message) for report in remote.waiting()]


def test_settings_are_tried_after_a_restart_and_kept_when_all_goes_well(buffer: Path) -> None:
    remote, level = start(buffer)
    assert (level, remote.version) == ("info", 0)
    order(remote, 1, ONE)
    assert remote.restart.is_set()
    assert said(remote) == [("1", "trying", "")]
    remote, level = start(buffer)
    assert (level, remote.on_trial, remote.version) == ("debug", True, 1)
    watch(remote, healthy=True)
    assert (remote.on_trial, said(remote)) == (False, [("1", "good", "")])
    remote, level = start(buffer)
    assert (level, remote.on_trial, remote.version) == ("debug", False, 1)


def test_settings_that_do_not_come_up_healthy_are_rolled_back(buffer: Path) -> None:
    remote, _ = start(buffer)
    order(remote, 1, ONE)
    remote, _ = start(buffer)
    watch(remote, healthy=True)
    order(remote, 2, TWO)
    remote, level = start(buffer)
    assert level == "error"
    watch(remote, healthy=False, trial_seconds=0.05)
    assert remote.restart.is_set()
    remote, level = start(buffer)
    assert (level, remote.on_trial, remote.version) == ("debug", False, 1)
    ((of, state, message),) = said(remote)
    assert (of, state) == ("2", "rejected")
    assert "no receipts" in message


def test_settings_that_end_the_agent_are_rolled_back_but_one_power_cut_is_forgiven(
    buffer: Path,
) -> None:
    remote, _ = start(buffer)
    order(remote, 1, ONE)
    for _ in range(2):  # started into the trial, and killed
        remote, level = start(buffer)
        assert (level, remote.on_trial) == ("debug", True)
    remote, level = start(buffer)
    assert (level, remote.on_trial) == ("info", False)
    ((_, state, message),) = said(remote)
    assert (state, "ended 2 times" in message) == ("rejected", True)


def test_settings_that_the_agent_itself_finds_wrong_are_rejected_at_once(buffer: Path) -> None:
    for version, body in enumerate((WRONG, "not json", "[]"), 1):
        remote, _ = start(buffer)
        order(remote, version, body)
        assert not remote.restart.is_set()
        ((of, state, _),) = said(remote)
        assert (of, state) == (str(version), "rejected")
    assert start(buffer)[1] == "info"


def test_an_old_version_and_a_foreign_signature_change_nothing(buffer: Path) -> None:
    remote, _ = start(buffer)
    order(remote, 5, ONE, key=b"x" * 32)
    assert not remote.restart.is_set()
    order(remote, 5, ONE)
    remote, _ = start(buffer)
    watch(remote, healthy=True)
    for version in (5, 4, 1):
        order(remote, version, TWO)
        assert not remote.restart.is_set()
    assert start(buffer)[1] == "debug"
    remote, _ = start(buffer, identity=None)
    order(remote, 6, TWO)
    assert not remote.restart.is_set()


def test_a_newer_order_during_a_trial_is_tried_instead_and_not_kept_for_it(buffer: Path) -> None:
    remote, _ = start(buffer)
    order(remote, 1, ONE)
    remote, _ = start(buffer)
    order(remote, 2, TWO)
    remote.keep(1)
    remote.reject("late", 1)
    assert remote.version == 0
    remote, level = start(buffer)
    assert (level, remote.on_trial, remote.version) == ("error", True, 2)


def test_good_settings_that_no_longer_fit_the_file_give_way_to_it(buffer: Path) -> None:
    remote, _ = start(buffer)
    order(remote, 1, ONE)
    remote, _ = start(buffer)
    watch(remote, healthy=True)

    def other_file(body: Mapping[str, Any]) -> str:
        if body:
            raise ConfigError("the source is gone")
        return "own"

    remote = Remote(buffer, IDENTITY, other_file)
    assert remote.begin(other_file) == "own"
    assert said(remote) == [("1", "rejected", "the source is gone")]


def test_a_damaged_file_of_orders_stops_nobody(buffer: Path) -> None:
    for content in (b"", b"{}}", b"[]", b'{"unknown":1}'):
        buffer.with_name("edge.db.remote").write_bytes(content)
        assert start(buffer)[1] == "info"


class Performer:
    """Counts what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def __call__(self, command: str) -> Report:
        self.done.append(command)
        return Report("command", "", "done", "", {"left_records": 0})


def command(remote: Remote, what: str, command_id: str = "", expires_ms: int = 2_000) -> bytes:
    payload = CommandOrder("d", command_id or str(uuid4()), what, expires_ms).encode(KEY)
    asyncio.run(remote.take(COMMAND, payload))
    return payload


def test_a_command_is_done_once_however_often_it_comes_and_whatever_dies(buffer: Path) -> None:
    remote, _ = start(buffer)
    remote.perform = performer = Performer()
    payload = command(remote, "drain", "id-1")
    asyncio.run(remote.take(COMMAND, payload))
    remote, _ = start(buffer)
    remote.perform = performer
    asyncio.run(remote.take(COMMAND, payload))
    assert performer.done == ["drain"]
    (report,) = remote.waiting()
    assert (report.of, report.state, report.result) == ("id-1", "done", {"left_records": 0})
    asyncio.run(remote.said(report))
    remote, _ = start(buffer)
    assert remote.waiting() == []
    # the answer was lost behind the broker: the hub asks again, and hears it again
    asyncio.run(remote.take(COMMAND, payload))
    assert [r.of for r in remote.waiting()] == ["id-1"]
    assert performer.done == ["drain"]


def test_the_state_of_the_settings_is_said_again_when_the_hub_asks_again(buffer: Path) -> None:
    remote, _ = start(buffer)
    order(remote, 1, WRONG)
    (report,) = remote.waiting()
    asyncio.run(remote.said(report))
    assert remote.waiting() == []
    order(remote, 1, WRONG)
    assert remote.waiting() == [report]


def test_a_command_that_was_begun_when_the_power_failed_is_not_begun_again(buffer: Path) -> None:
    remote, _ = start(buffer)

    async def power_cut(_command: str) -> Report:
        raise KeyboardInterrupt

    remote.perform = power_cut
    with pytest.raises(KeyboardInterrupt):
        command(remote, "drain", "id-1")
    remote, _ = start(buffer)
    remote.perform = performer = Performer()
    command(remote, "drain", "id-1")
    assert performer.done == []


def test_what_has_expired_or_is_not_known_is_refused(buffer: Path) -> None:
    remote, _ = start(buffer)
    remote.perform = performer = Performer()
    remote.hub_time_ms = lambda: 2_001
    command(remote, "drain", "late")
    command(remote, "format", "odd", expires_ms=9_000)
    assert performer.done == []
    assert [(r.of, r.state) for r in remote.waiting()] == [("late", "refused"), ("odd", "refused")]


def test_a_restart_is_written_down_before_it_is_begun(buffer: Path) -> None:
    remote, _ = start(buffer)
    remote.perform = Performer()
    payload = command(remote, "restart", "id-1")
    assert remote.restart.is_set()
    remote, _ = start(buffer)
    assert [(r.of, r.state) for r in remote.waiting()] == [("id-1", "done")]
    asyncio.run(remote.take(COMMAND, payload))
    assert not remote.restart.is_set(), "it would restart for ever"
