"""The first line, the numbers below it, and the page: from the states of real agents."""

from __future__ import annotations

import asyncio
import re
import subprocess
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scout_edge import status
from scout_edge.buffer import Buffer
from scout_edge.config import load
from tests.edge_agent.hub import Hub
from tests.edge_agent.records import ZONE, readings
from tests.edge_agent.test_cli import SCOUT_EDGE, fetch, run, write
from tests.harness.process import Process
from tests.harness.servers import Address, require
from tests.harness.waiting import eventually, free_port

MINUTE_MS = 60_000
NOW_MS = 1_790_000_000_000
SHOWN: dict[str, Any] = {
    "running": True,
    "version": "7.1.0",
    "device_id": "pos-1",
    "store_id": "store-7",
    "zone": ZONE,
    "uptime_seconds": 7300.0,
    "backlog_records": 0,
    "oldest_unsent_ms": None,
    "buffer_bytes": 50_000,
    "buffer_max_bytes": 1 << 30,
    "damaged_segments": 0,
    "fenced": False,
    "connected": True,
    "hub_answers": True,
    "hub_time_ms": NOW_MS - 4_000,
    "receipt_ms": NOW_MS - 3_900,
    "last_error": "",
    "time_ms": NOW_MS,
    "clock_synced": True,
    "disk_total_bytes": 32_000_000_000,
    "disk_free_bytes": 20_000_000_000,
}
OFFLINE = {"connected": False, "hub_answers": False, "backlog_records": 1200}


@pytest.mark.parametrize(
    "changed, first, words",
    [
        ({}, "ALL IS WELL: sending, everything is confirmed by the hub.", ""),
        ({"backlog_records": 1}, "ALL IS WELL: sending, 1 record to go.", ""),
        (
            {"backlog_records": 9000, "budget_bytes": 5_000_000, "budget_used_bytes": 5_000_000},
            "ALL IS WELL: sending sales only, because today's 5.0 MB of the line are used up; 9",
            "",
        ),
        (
            {"backlog_records": 9000, "budget_bytes": 5_000_000, "budget_used_bytes": 4_999_999},
            "ALL IS WELL: sending, 9,000 records to go.",
            "",
        ),
        (
            {"damaged_segments": 2},
            "SENDING: the hub confirms, but 2 segments were damaged here",
            "SD card",
        ),
        ({"running": False}, "STOPPED: the agent does not run; nothing waits.", "systemctl start"),
        (
            {**OFFLINE, "last_error": "[Errno 101] Network is unreachable"},
            "WAITING: no connection to the broker (Network is unreachable); 1,200 records safe",
            "cable",
        ),
        ({**OFFLINE, "connected": True}, "WAITING: the broker is there, the hub does not", "hour"),
        (
            {**OFFLINE, "last_error": "[code:135] Not authorized"},
            "REFUSED: the broker refuses this device ([code:135] Not authorized)",
            "SCOUT_MQTT_PASSWORD",
        ),
        ({"copied": True}, "SENDING: sending, 0 records to go; another box", "find the other"),
        ({"fenced": True}, "REFUSED: the hub knows more of this buffer", "do not delete"),
        ({"buffer_bytes": 1 << 30}, "REFUSED: the buffer is full", "max_bytes"),
    ],
)
def test_the_first_line_says_whether_all_is_well(
    changed: dict[str, Any], first: str, words: str
) -> None:
    shown = SHOWN | changed
    lines = status.text(shown).splitlines()
    assert lines[0].startswith(first)
    line = status.headline(shown)
    assert words in line.next_step
    assert bool(line.next_step) != line.well
    assert len(lines) <= 14, "one screen"
    assert first.partition("(")[0].partition(";")[0] in _text_of(status.page(shown))


def test_the_numbers_are_those_that_a_technician_asks_for() -> None:
    shown = SHOWN | {
        "backlog_records": 1200,
        "oldest_unsent_ms": NOW_MS - 125 * MINUTE_MS,
        "clock_synced": False,
        "receipt_ms": NOW_MS - 3 * MINUTE_MS,
        "hub_time_ms": NOW_MS - 63 * MINUTE_MS,
        "disk_free_bytes": 9_000_000,
    }
    facts = dict(status.facts(shown))
    assert facts["waiting"].startswith("1,200 records, the oldest for 2 h (since 2026-09-")
    assert facts["receipt"] == "3 min ago"
    assert facts["clock"].endswith("NOT synchronised, 60 min ahead of the hub")
    assert facts["disk"] == "9.0 MB free of 32.0 GB, LOW"
    assert facts["version"] == "7.1.0, running for 2 h"
    assert (
        "clock was set back"
        in dict(status.facts(shown | {"oldest_unsent_ms": NOW_MS + 5000}))["waiting"]
    )


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _text_of(page: str) -> str:
    parser = _Page()
    parser.feed(page)
    return " ".join(parser.words)


def test_the_page_needs_no_script_and_nothing_from_elsewhere() -> None:
    parser = _Page()
    hostile = SHOWN | OFFLINE | {"last_error": "<script>alert('x')</script>"}
    parser.feed(status.page(hostile))
    names = [tag for tag, _ in parser.tags]
    assert "script" not in names
    assert not [a for _, attributes in parser.tags for a in attributes if a in ("src", "href")]
    metas = [attributes for tag, attributes in parser.tags if tag == "meta"]
    assert {"http-equiv": "refresh", "content": "10"} in metas
    assert any((m.get("content") or "").startswith("width=device-width") for m in metas)
    assert "<script>alert('x')</script>" in " ".join(parser.words)


def _page(config: Path) -> tuple[str, str]:
    port = load(config, {}).http.port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


async def test_a_real_agent_goes_from_waiting_to_well_and_says_so(
    broker: Address, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    config = write(tmp_path, broker.port)
    with Buffer(tmp_path / "data" / "edge.db", zone=ZONE) as buffer:
        buffer.append_readings(readings(300))
    processes([*SCOUT_EDGE, "run", "--config", config]).wait_for_output("door.opened")
    await asyncio.to_thread(
        eventually, lambda: fetch(config, "/v1/status")["connected"], 20, "connected"
    )
    waiting = await asyncio.to_thread(run, "status", "--config", config)
    assert waiting.returncode == 75
    assert waiting.stdout.startswith("WAITING: the broker is there")
    assert "300 records" in waiting.stdout
    assert re.search(r"receipt +none since the start", waiting.stdout)
    async with Hub().running(*broker):

        def well() -> bool:
            kind, page = _page(config)
            assert kind == "text/html; charset=utf-8"
            return "ALL IS WELL: sending, everything is confirmed" in page

        await asyncio.to_thread(eventually, well, 20)
        done = await asyncio.to_thread(run, "status", "--config", config)
        assert done.returncode == 0
        assert re.search(r"receipt +[0-9]+ s ago", done.stdout)


def test_a_refused_password_is_said_to_be_refused(
    tmp_path: Path, processes: Callable[..., Process]
) -> None:
    passwords, conf, port = tmp_path / "passwd", tmp_path / "mosquitto.conf", free_port()
    command = [require("mosquitto_passwd"), "-c", "-b", str(passwords), "pos-1", "right"]
    subprocess.run(command, check=True, capture_output=True)
    conf.write_text(
        f"user root\nlistener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
    )
    processes([require("mosquitto"), "-c", conf]).wait_for_port(port)
    config = write(tmp_path, port)
    environ = {"SCOUT_MQTT_PASSWORD": "wrong"}
    processes([*SCOUT_EDGE, "run", "--config", config], env=environ).wait_for_output("lost")
    done = run("status", "--config", config)
    assert done.stdout.startswith("REFUSED: the broker refuses this device"), done.stdout
    assert "wrong" not in done.stdout
