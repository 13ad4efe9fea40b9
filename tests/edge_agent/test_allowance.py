"""The budget of a metered link: not spent twice, whatever is killed, whatever the clock says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_edge import clock
from scout_edge.allowance import MESSAGE_BYTES, STATE, Allowance
from scout_edge.buffer import Buffer
from scout_shared.errors import TransientError
from tests.edge_agent.records import ZONE

BUDGET = 1_000_000
NOON_MS = 1_795_406_400_000  # 2026-11-23 in Manila
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Clocks:
    """The device's clocks, as a test sets them."""

    def __init__(self) -> None:
        self.wall_ms = NOON_MS
        self.up_ms = HOUR_MS
        self.synced: bool | None = True
        self.boot = b"\1" * 16

    def pass_ms(self, passed: int) -> None:
        self.wall_ms += passed
        self.up_ms += passed


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    found = Clocks()
    monkeypatch.setattr(clock, "wall_ms", lambda: found.wall_ms)
    monkeypatch.setattr(clock, "monotonic_ms", lambda: found.up_ms)
    monkeypatch.setattr(clock, "synced", lambda: found.synced)
    monkeypatch.setattr(clock, "boot_id", lambda: found.boot)
    return found


@pytest.fixture
def buffer(tmp_path: Path, clocks: Clocks) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


def spend(allowance: Allowance, *sizes: int) -> int:
    """Returns what they come to."""

    async def together() -> None:
        await asyncio.gather(*(allowance.spend(size - MESSAGE_BYTES) for size in sizes))

    asyncio.run(together())
    return sum(sizes)


@given(sizes=st.lists(st.integers(20, 60_000), min_size=1, max_size=30), kept=st.booleans())
def test_what_was_spent_is_known_after_a_power_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], kept: bool
) -> None:
    with Buffer(tmp_path_factory.mktemp("buffer") / "edge.db", zone=ZONE) as buffer:
        first = Allowance(buffer, BUDGET)
        spent = spend(first, *sizes)
        assert first.used == spent
        if kept:
            first.keep()
        again = Allowance(buffer, BUDGET)
        assert spent <= again.used <= spent + (0 if kept else BUDGET // 100)


def test_it_is_used_up_and_sales_still_count(buffer: Buffer, clocks: Clocks) -> None:
    allowance = Allowance(buffer, BUDGET)
    spend(allowance, BUDGET - 1)
    assert not allowance.look()
    allowance.took(1)
    assert allowance.look()
    assert Allowance(buffer, BUDGET).look(), "a restart does not begin the day anew"
    spend(allowance, 5000)
    assert Allowance(buffer, BUDGET).used > BUDGET + 5000


def test_a_day_is_one_of_the_store(buffer: Buffer, clocks: Clocks) -> None:
    allowance = Allowance(buffer, BUDGET)
    spend(allowance, BUDGET)
    clocks.pass_ms(12 * HOUR_MS - 1000)  # of UTC it is a quarter to four
    assert allowance.look()
    clocks.pass_ms(1000)
    assert not allowance.look()
    assert allowance.used == 0
    spend(allowance, 700)
    assert Allowance(buffer, BUDGET).used < BUDGET // 50


def test_without_a_known_clock_a_day_is_24_hours_of_running(buffer: Buffer, clocks: Clocks) -> None:
    clocks.synced = False
    allowance = Allowance(buffer, BUDGET)
    spend(allowance, BUDGET)
    clocks.wall_ms += 40 * DAY_MS  # a jump that nobody vouches for
    clocks.up_ms += DAY_MS - 1
    assert allowance.look()
    assert Allowance(buffer, BUDGET).look(), "the same boot goes on"
    clocks.up_ms += 1
    assert not allowance.look()


def test_a_boot_without_a_known_clock_does_not_renew_it(buffer: Buffer, clocks: Clocks) -> None:
    clocks.synced = None
    spend(Allowance(buffer, BUDGET), BUDGET)
    for boot in range(2, 5):
        clocks.boot, clocks.up_ms = bytes([boot]) * 16, 5000
        assert Allowance(buffer, BUDGET).look()
    allowance = Allowance(buffer, BUDGET)
    clocks.up_ms += DAY_MS
    assert not allowance.look()


def test_a_clock_that_becomes_known_names_the_day_and_gives_nothing(
    buffer: Buffer, clocks: Clocks
) -> None:
    clocks.synced = False
    allowance = Allowance(buffer, BUDGET)
    spend(allowance, BUDGET)
    clocks.synced = True
    assert allowance.look()
    clocks.pass_ms(DAY_MS)
    assert not allowance.look()


def test_a_full_disk_stops_no_message(
    buffer: Buffer, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise TransientError("the disk is full")

    allowance = Allowance(buffer, BUDGET)
    monkeypatch.setattr(buffer, "append_readings", full)
    assert spend(allowance, 50_000, 50_000) == allowance.used


def test_without_a_budget_nothing_is_counted_or_written(buffer: Buffer, clocks: Clocks) -> None:
    allowance = Allowance(buffer, 0)
    spend(allowance, 10 * BUDGET)
    allowance.took(BUDGET)
    allowance.keep()
    assert not allowance.look()
    assert allowance.used == 0
    assert buffer.offset(STATE) is None


def test_a_commit_is_for_a_hundredth_of_the_budget(
    buffer: Buffer, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []
    append = buffer.append_readings

    def noted(records: tuple[()], *, offset: tuple[str, str]) -> object:
        states.append(offset[1])
        return append(records, offset=offset)  # type: ignore[arg-type]

    monkeypatch.setattr(buffer, "append_readings", noted)
    allowance = Allowance(buffer, BUDGET)
    for _ in range(1000):
        spend(allowance, 500)
    assert 45 <= len(states) <= 51
    assert json.loads(states[-1])["bytes"] >= allowance.used
