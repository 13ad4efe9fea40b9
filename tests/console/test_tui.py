"""The terminal by Pilot, before the real API, at the two sizes that count."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot

from scout_console.sheets import Column, Line, Sheet
from scout_console.tui.app import Terminal
from scout_console.tui.grid import WINDOW, Grid
from scout_console.values import Said
from tests.console.world import World

SMALL, LARGE = (80, 24), (120, 40)
_REFRESH_SECONDS = 0.5


@asynccontextmanager
async def terminal(
    world: World, size: tuple[int, int] = SMALL
) -> AsyncIterator[tuple[Terminal, Pilot[None]]]:
    app = Terminal(
        world.feed(),
        zone="Asia/Manila",
        environment="test",
        refresh_seconds=_REFRESH_SECONDS,
    )
    async with app.run_test(size=size) as pilot:
        # the table measures its columns when it is idle
        await until(pilot, lambda: "● online" in text(app) and "micro_batch" in text(app))
        yield app, pilot


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Until ``condition`` holds; every pass lets the application work."""
    for _ in range(400):
        if condition():
            return
        await pilot.pause(0.02)
    raise AssertionError(f"never so:\n{text(pilot.app)}")


def text(app: object) -> str:
    """What stands on the screen, line by line."""
    assert isinstance(app, Terminal)
    return "\n".join(
        "".join(segment.text for segment in strip).rstrip()
        for strip in app.screen._compositor.render_strips()
    )


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_the_first_screen_answers_the_three_questions(
    world: World, size: tuple[int, int]
) -> None:
    world.dark("343", 12)
    world.lose("367", 37)
    async with terminal(world, size) as (app, pilot):
        # what is above grows first: the last line of the headline comes last
        await until(pilot, lambda: "newest row" in text(app) and "88 (12 min old)" in text(app))
        shown = text(app)
        assert "DEGRADED  since" in shown
        assert "7 of 8 stores online; store 343 dark for 12 min" in shown
        assert "does not add up, 37 documents missing" in shown
        assert "newest row: bronze <1 min" in shown
        assert "Asia/Manila, UTC+08:00" in shown
        assert "hub, database, ingest, runner ok" in shown
        assert "88 (12 min old)" in shown
        assert all(f" {store} " in shown for store in ("292", "343", "406"))
        assert "micro_batch" in shown
        assert ("till-343" in shown) == (size == LARGE)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_no_line_is_wider_than_the_screen_and_the_status_line_is_whole(
    world: World, size: tuple[int, int]
) -> None:
    world.fail()
    world.quarantine("406", 12)
    async with terminal(world, size) as (app, pilot):
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
            lines = text(app).splitlines()
            assert len(lines) == size[1]
            assert max(map(len, lines)) <= size[0]
            assert "quarantine 12" in lines[-1]
            assert lines[-1].endswith("? keys")
            assert "…" not in lines[-1]


async def test_every_view_opens_by_its_number(world: World) -> None:
    world.quarantine("406", 12)
    async with terminal(world, LARGE) as (app, pilot):
        for key, word in (
            ("2", "Backlog"),
            ("3", "silver.transactions_cleaned"),
            ("4", "missing_product"),
            ("5", "product_store_day"),
            ("1", "Runs, newest first"),
        ):
            await pilot.press(key)
            await until(pilot, lambda word=word: word in text(app))  # type: ignore[misc]


async def test_the_cursor_moves_and_enter_opens_the_device(world: World) -> None:
    async with terminal(world) as (app, pilot):
        await pilot.press("2", "j", "j", "k", "enter")
        await until(pilot, lambda: "Store 300 · till-300" in text(app))
        await until(pilot, lambda: "memory_used_bytes" in text(app))
        assert "America/New_York" in text(app)
        await pilot.press("escape")
        await until(pilot, lambda: "till-300" not in text(app))
        await pilot.press("G")
        grid = app.query_one("#devices", Grid)
        assert grid.chosen is not None
        assert grid.chosen.key == "till-406"
        await pilot.press("g")
        assert grid.chosen.key == "till-292"


async def test_search_finds_and_goes_on_finding(world: World) -> None:
    async with terminal(world) as (app, pilot):
        await pilot.press("2", "slash", *"3", "enter")
        grid = app.query_one("#devices", Grid)
        found = []
        for key in ("n", "n", "N"):
            assert grid.chosen is not None
            found.append(grid.chosen.key)
            await pilot.press(key)
        assert found == ["till-300", "till-321", "till-343"]
        assert grid.chosen is not None
        assert grid.chosen.key == "till-321"
        await pilot.press("slash", *"nobody", "enter")
        await until(pilot, lambda: "nothing here has 'nobody' in it" in text(app))


async def test_faults_only_hides_what_is_well(world: World) -> None:
    world.dark("343", 12)
    async with terminal(world) as (app, pilot):
        await pilot.press("f", "2")
        await until(pilot, lambda: app.query_one("#devices", Grid).total == 1)
        assert "faults only" in text(app)
        await pilot.press("f")
        await until(pilot, lambda: app.query_one("#devices", Grid).total == 8)


async def test_the_zone_changes_for_all_times(world: World) -> None:
    async with terminal(world) as (app, pilot):
        await pilot.press("t")
        await until(pilot, lambda: "UTC, UTC+00:00" in text(app))
        await pilot.press("t")
        await until(pilot, lambda: "Asia/Manila, UTC+08:00" in text(app))


async def test_a_paused_screen_asks_nothing_and_says_so(world: World) -> None:
    async with terminal(world) as (app, pilot):
        await pilot.press("z")
        assert "paused" in text(app)
        world.dark("343", 12)
        for _ in range(20):
            await pilot.pause(_REFRESH_SECONDS / 10)
        assert "8 of 8 stores online" in text(app)
        await pilot.press("z")
        await until(pilot, lambda: "store 343 dark" in text(app))


async def test_when_the_hub_goes_away_the_last_answer_stays_with_its_age(world: World) -> None:
    async with terminal(world, LARGE) as (app, pilot):
        world.close_hub()
        await until(pilot, lambda: "HUB AWAY" in text(app))
        shown = text(app)
        assert "last answer" in shown
        assert " old" in shown
        assert "8 of 8 stores online" in shown
        assert "Is scout-hub running" in shown
        assert "hub away" in shown.splitlines()[-1]
        grid = app.query_one("#fleet-few", Grid)
        assert all("dim" in str(cell.style) for cell in grid.get_row_at(0))


async def test_a_refresh_without_news_changes_no_cell(world: World) -> None:
    async with terminal(world) as (app, _):
        seen = app._look
        assert seen is not None
        grid = app.query_one("#runs-few", Grid)
        before = app._said.copy()
        app._draw()
        assert app._said == before
        assert not grid.show(Sheet(*_same(grid), ""), kept=False)


def _same(grid: Grid) -> tuple[tuple[Column, ...], tuple[Line, ...]]:
    columns = tuple(
        Column(name, 1, numeric=numeric)
        for name, numeric in zip(grid._names, grid._numeric, strict=True)
    )
    return columns, grid._all


async def test_a_large_fleet_is_a_window_that_moves(world: World) -> None:
    async with terminal(world) as (app, pilot):
        await pilot.press("z", "2")
        await until(pilot, lambda: not app._looking)
        grid = app.query_one("#devices", Grid)
        lines = tuple(Line(f"till-{n}", (Said(str(n)), Said(f"till-{n}"))) for n in range(5000))
        grid.show(Sheet((Column("Store"), Column("Device")), lines, ""), kept=False)
        await until(pilot, lambda: grid.has_focus)
        assert (grid.total, grid.row_count) == (5000, WINDOW)
        await pilot.press("G")
        assert grid.chosen is not None
        assert grid.chosen.key == "till-4999"
        assert grid.row_count == WINDOW
        assert grid.find("till-2500")
        assert grid.chosen.key == "till-2500"
        await pilot.press("j")
        assert grid.chosen.key == "till-2501"
        grid.go(grid.start + WINDOW - 1)
        await pilot.press("pagedown")
        await until(pilot, lambda: _number(grid) > 2600)
        await pilot.press("pageup")
        await until(pilot, lambda: _number(grid) < 2600)


def _number(grid: Grid) -> int:
    assert grid.chosen is not None
    return int(grid.chosen.key.removeprefix("till-"))


async def test_help_shows_the_keys_and_any_key_closes_it(world: World) -> None:
    async with terminal(world) as (app, pilot):
        await pilot.press("question_mark")
        await until(pilot, lambda: "a device in detail" in text(app))
        await pilot.press("x")
        await until(pilot, lambda: "a device in detail" not in text(app))


async def test_no_color_leaves_words_and_marks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    world.dark("343", 12)
    async with terminal(world) as (app, pilot):
        await until(pilot, lambda: "○ dark" in text(app))
