"""The demo as a person runs it: it adds up, goes on after kills, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scout_demo.supervisor import descendants
from tests.harness.process import Process
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.system]

REPOSITORY = Path(__file__).parents[2]
ANY_PORTS = [
    *("--api-port", "0", "--console-port", "0", "--database-port", "0"),
    *("--broker-port", "0", "--door-port", "0"),
]


def command(data_dir: Path, *arguments: str) -> list[str | Path]:
    return [sys.executable, "-m", "scout_demo", "--data-dir", data_dir, *ANY_PORTS, *arguments]


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(REPOSITORY / "deploy")}


def once(data_dir: Path, *arguments: str) -> dict[str, Any]:
    """Run it to its end; the account. Fails when it does not exit with 0."""
    done = subprocess.run(
        command(data_dir, "--once", "--json", *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, **environment()},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:] + logs(data_dir)
    account: dict[str, Any] = json.loads(done.stdout)
    return account


def logs(data_dir: Path) -> str:
    return "".join(
        f"\n--- {path.name}\n{path.read_text('utf-8', 'replace')[-1500:]}"
        for path in sorted((data_dir / "logs").glob("*.log"))
    )


def processes_of(data_dir: Path) -> list[str]:
    """Command lines that name the data directory; the database's backends stand in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            inside = (entry / "cwd").resolve().is_relative_to(data_dir)
        except (OSError, UnicodeDecodeError):
            continue
        if entry.name.isdigit() and (str(data_dir) in line or inside):
            found.append(f"{entry.name} {line}")
    return found


MARKS = {
    "agent": "till-367.toml",
    "hub": "hub.toml run",
    "broker": "hub.toml broker",
    "database": "hub.toml database",
    "console": "streamlit run",
}


def pid_of(name: str, demo: Process) -> int | None:
    """Of a program that the demo runs now."""
    for pid in descendants(demo.pid):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if MARKS[name] in line:
            return pid
    return None


def test_a_replay_adds_up_and_a_second_one_too(folder: Path) -> None:
    data_dir = folder / "demo-twice"
    first = once(data_dir, "--transactions", "3000")
    assert first["missing"] == []
    assert first["sold"]["lines"] >= 3000
    assert first["silver_lines"] + first["quarantined_lines"] == first["sold"]["lines"]
    assert first["equation"]["documents"]["produced"] == first["sold"]["baskets"]
    assert all(t["rows"] or t["why_empty"] for t in first["tables"].values())
    assert processes_of(data_dir) == []

    second = once(data_dir, "--transactions", "3000")
    assert second["sold"] == first["sold"], "nothing is sold twice"
    assert second["silver_lines"] == first["silver_lines"]

    third = once(data_dir, "--transactions", "5000")
    assert third["sold"]["lines"] >= 5000, "it goes on where it was"
    assert third["silver_lines"] + third["quarantined_lines"] == third["sold"]["lines"]
    assert processes_of(data_dir) == []


def test_each_program_may_be_killed_once_and_the_account_still_adds_up(
    folder: Path, processes: Callable[..., Process]
) -> None:
    data_dir = folder / "demo-killed"
    demo = processes(command(data_dir, "--speed", "100000"), env=environment())
    demo.wait_for_output("console: http", 120)
    for name in MARKS:
        pid = eventually(lambda name=name: pid_of(name, demo), 60, f"{name} runs")  # type: ignore[misc]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        what = "till-367" if name == "agent" else name
        demo.wait_for_output(f"{what} was killed by SIGKILL", 60)
        demo.wait_for_output(f"{what} serves again", 90)
    demo.signal(signal.SIGINT)
    assert demo.wait(90) == 0, demo.output()[-6000:] + logs(data_dir)

    account = once(data_dir, "--transactions", "30000")
    assert account["missing"] == []
    assert account["sold"]["lines"] >= 30_000
    assert account["silver_lines"] + account["quarantined_lines"] == account["sold"]["lines"]
    assert processes_of(data_dir) == []


def test_ctrl_c_stops_everything_and_a_killed_demo_leaves_nothing_running(
    folder: Path, processes: Callable[..., Process]
) -> None:
    data_dir = folder / "demo-stopped"
    demo = processes(command(data_dir, "--no-console"), env=environment())
    demo.wait_for_output("hub API: http", 120)
    with_lock = subprocess.run(
        command(data_dir),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment(),
    )
    assert with_lock.returncode == 2
    assert f"a demo is running on {data_dir} (pid {demo.pid})" in with_lock.stderr
    demo.signal(signal.SIGINT)
    assert demo.wait(90) == 0, demo.output()[-3000:]
    assert "no process and no port is left" in demo.output()
    assert processes_of(data_dir) == []

    again = processes(command(data_dir, "--no-console"), env=environment())
    again.wait_for_output("hub API: http", 120)
    again.kill()
    eventually(lambda: not processes_of(data_dir), 60, "nothing outlives the demo")


def test_a_busy_port_is_replaced_by_the_next_free_one(
    folder: Path, processes: Callable[..., Process]
) -> None:
    data_dir = folder / "demo-busy"
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        demo = processes(
            [*command(data_dir, "--no-console"), "--api-port", str(port)], env=environment()
        )
        demo.wait_for_output(f"port {port} is in use: the hub's API takes", 60)
        demo.signal(signal.SIGTERM)
        assert demo.wait(90) == 0
    assert processes_of(data_dir) == []


def test_what_it_foresaw_ends_in_one_message_and_its_exit_code(tmp_path: Path) -> None:
    """As the other programs do: no traceback, and the next step."""
    taken = tmp_path / "file"
    taken.touch()
    done = subprocess.run(
        command(taken / "demo"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment()},
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"scout-demo: the data directory {taken / 'demo'} cannot be used: Not a directory\n"
        "  hint: choose another with --data-dir\n"
    )
