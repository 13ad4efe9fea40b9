"""The web console in headless Chromium, served by `scout-console web`, before the real API."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.console.world import TOKEN, World
from tests.harness.process import Process
from tests.harness.servers import require
from tests.harness.waiting import free_port

pytestmark = [pytest.mark.slow, pytest.mark.system]

_SETTINGS = """\
[hub]
url = "{url}"
timeout_seconds = 2.0
[screen]
environment = "test"
refresh_seconds = 1.0
[web]
port = {port}
"""
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@dataclass
class Console:
    """The web console, and a browser before it."""

    url: str
    page: Page
    process: Process
    asked: list[str] = field(default_factory=list)
    """Every address that the browser asked."""

    def open(self, path: str = "") -> Page:
        """The page at ``path``, once it shows something."""
        self.page.goto(f"{self.url}/{path}")
        expect(self.page.locator(".headline")).to_be_visible(timeout=60_000)
        return self.page

    def see(self, *texts: str) -> None:
        """All of ``texts`` stand on the page, soon."""
        for text in texts:
            expect(self.page.locator("body")).to_contain_text(text, timeout=20_000)


@pytest.fixture
def console(world: World, tmp_path: object, processes: Callable[..., Process]) -> Iterator[Console]:
    port = free_port()
    settings = f"{tmp_path}/console.toml"
    with open(settings, "w", encoding="utf-8") as file:  # noqa: PTH123  # one line less than Path
        file.write(_SETTINGS.format(url=world.url, port=port))
    script = "import sys; from scout_console.cli import main; sys.exit(main(sys.argv[1:]))"
    process = processes(
        [sys.executable, "-c", script, "--config", settings, "web"],
        env={"SCOUT_HUB_TOKEN": TOKEN},
    )
    process.wait_for_port(port, 60)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=list(_FLAGS))
        page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        found = Console(f"http://127.0.0.1:{port}", page, process)
        page.on("request", lambda request: found.asked.append(request.url))
        yield found
        browser.close()


def test_the_three_pages_of_a_chain_that_is_well(console: Console) -> None:
    page = console.open()
    expect(page).to_have_title("Scout")
    console.see(
        "8 of 8 stores online",
        "Everything adds up: 134,400 produced = 134,400 landed",
        "Yes: every record is accounted for",
        "Newest row: bronze",
        "Store 343",
        "Seasonal naive baseline, not a trained model; median WAPE 0.21, from 8 weeks of sales",
        "Asia/Manila, UTC+08:00",
        "console · viewer, all stores",
    )
    expect(page.locator(".headline .word .good")).to_have_text("OK")
    expect(page.locator("body")).not_to_contain_text("To look at")

    page.get_by_role("link", name="Fleet").click()
    expect(page.locator("table.sheet tbody tr")).to_have_count(8)
    console.see("till-406", "Clock skew")

    page.get_by_role("link", name="Pipeline").click()
    console.see(
        "micro_batch", "Steps of the run of", "demand_forecasting", "Nothing is in quarantine"
    )
    console.see("No failure is open.", "within 15 min")

    # Streamlit's own chrome is not ours, and nothing is fetched from anywhere else.
    for chrome in ("stHeader", "stToolbar", "stSidebar"):
        expect(page.locator(f'[data-testid="{chrome}"]:visible')).to_have_count(0)
    elsewhere = [u for u in console.asked if not u.startswith((console.url, "data:", "blob:"))]
    assert elsewhere == []


def test_what_is_broken_is_on_the_first_page_with_its_since(world: World, console: Console) -> None:
    page = console.open()
    world.dark("343", 12)
    world.lose("367", 37)
    world.give_up("343", 1_500)
    world.quarantine("406", 12)
    world.fail()
    # no reload: the page refreshes itself
    console.see(
        "7 of 8 stores online; store 343 dark for 12 min",
        "Does not add up, 37 documents missing: 134,488 produced",
        "No: 37 documents missing",
        "12 records in quarantine, not yet judged",
        "gold.product_store_day: last run failed",
    )
    expect(page.locator(".headline .word .bad")).to_have_text("Degraded")
    # With its day, in the first minutes of the next one.
    since = re.compile(r"since (\d\d \w{3} )?\d\d:\d\d, 12 min")
    expect(page.locator(".headline .since")).to_contain_text(since)
    expect(page.locator(".stores a").first).to_contain_text("Store 343○ dark for 12 min")
    remainder = page.locator("table.sheet").first.locator("tbody tr").first.locator("td").last
    expect(remainder.locator(".bad")).to_have_text("37")

    console.page.get_by_role("link", name="Store 343 dark").click()
    console.see("Store 343 · till-343", "88 (12 min old)", "America/New_York", "cpu_ratio")
    assert console.page.url.endswith("/fleet?device=till-343")
    given_up = page.get_by_role("table", name="What it gave up")
    expect(given_up.locator("tbody tr")).to_contain_text("1,500")
    expect(given_up.locator("tbody tr")).to_contain_text("buffer full, readings thinned")
    # the chart has its table beside it
    expect(page.locator('[data-testid="stVegaLiteChart"]')).to_be_visible(timeout=20_000)
    console.see("1,088", "under way")


def test_filters_live_in_the_address(world: World, console: Console) -> None:
    world.dark("343", 12)
    page = console.open("fleet?state=dark")
    expect(page.locator("table.sheet tbody tr")).to_have_count(1)
    page.get_by_role("radio", name="online").or_(
        page.get_by_text("online", exact=True)
    ).first.click()
    expect(page.locator("table.sheet tbody tr")).to_have_count(7, timeout=20_000)
    expect(page).to_have_url(re.compile(r"state=online"))
    console.open("fleet?state=late")
    console.see("No device is late; 8 are in other states.")


def test_when_the_hub_goes_away_the_last_answer_stays_grey(world: World, console: Console) -> None:
    page = console.open()
    console.see("8 of 8 stores online")
    world.close_hub()
    expect(page.locator(".headline .word .bad")).to_have_text("Hub away", timeout=20_000)
    console.see("At ", ": 8 of 8 stores online", "Is scout-hub running, and is the address right?")
    console.see("last answer", " old")
    kept = page.locator(".st-key-kept")
    assert "grayscale(1)" in kept.evaluate("e => getComputedStyle(e).filter")
    # whoever comes now gets the same
    console.open("fleet")
    console.see("Hub away", "till-343")


def test_when_the_console_itself_goes_away_the_page_says_so(console: Console) -> None:
    page = console.open()
    banner = page.locator(".gone")
    expect(banner).to_be_hidden()
    console.process.kill()
    expect(banner).to_be_visible(timeout=40_000)
    expect(banner).to_contain_text("the console itself does not answer")


def test_it_is_light_or_dark_as_the_system_is(console: Console) -> None:
    page = console.open()
    colour = "e => getComputedStyle(e).backgroundColor"
    app = page.locator('[data-testid="stApp"]')
    assert app.evaluate(colour) == "rgb(251, 250, 247)"
    page.emulate_media(color_scheme="dark")
    console.open()
    assert app.evaluate(colour) == "rgb(21, 24, 27)"
    ink = page.locator(".headline dd").nth(2).evaluate("e => getComputedStyle(e).color")
    assert ink == "rgb(228, 225, 218)"
