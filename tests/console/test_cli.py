"""``scout-console`` as a person or a script starts it, before the real API."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from scout_console.cli import main
from tests.console.world import TOKEN, World
from tests.harness.process import Process
from tests.harness.waiting import free_port


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOUT_HUB_TOKEN", TOKEN)


def status(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the hub of these tests writes to this one's stdout."""
    script = "import sys; from scout_console.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, "--hub", url, "status", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_status_of_a_well_chain_is_0(world: World) -> None:
    done = status(world.url)
    assert done.returncode == 0
    assert done.stdout.startswith("ok: 8 of 8 stores online; everything adds up: 134,400 produced")
    assert "UTC+08:00 (Asia/Manila)" in done.stdout
    assert done.stderr == ""


def test_status_of_a_dark_store_is_1_and_json_says_the_same(world: World) -> None:
    world.dark("343", 12)
    world.lose("367", 37)
    done = status(world.url, "--json")
    assert done.returncode == 1
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["status"] == "degraded"
    assert report["devices"]["dark"] == 1
    assert report["adds_up"] is False
    assert {row["kind"]: row["remainder"] for row in report["reconciliation"]} == {
        "documents": 37,
        "readings": 0,
    }
    assert report["concerns"][0]["incident"] is True


def test_status_without_a_hub_is_3() -> None:
    done = status(f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 3
    assert done.stdout.startswith("hub away: the hub at")
    assert "is scout-hub running" in done.stderr


def test_status_with_a_wrong_token_is_2(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOUT_HUB_TOKEN", "wrong")
    done = status(world.url)
    assert done.returncode == 2
    assert done.stdout.startswith("no access: the hub does not know this token")


@pytest.mark.parametrize("command", ["web", "tui", "status"])
def test_without_a_token_every_command_says_how_to_get_one(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SCOUT_HUB_TOKEN")
    assert main([command]) == 2
    assert "SCOUT_HUB_TOKEN" in capsys.readouterr().err


def test_a_busy_port_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["web", "--port", str(port)]) == 2
    assert "--port" in capsys.readouterr().err


def test_a_pipe_is_no_terminal() -> None:
    script = "from scout_console.cli import main; exit(main(['tui']))"
    with Process([sys.executable, "-c", script]) as p:
        assert p.wait() == 2
        assert "scout-console status" in p.output()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("SCOUT_HUB_TOKEN", "scout-console web", "exit codes", "refresh_seconds"):
        assert word in text
