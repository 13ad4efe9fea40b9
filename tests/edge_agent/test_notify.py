"""The service manager's side of the agent: a real datagram socket, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scout_edge import agent as agents
from scout_edge import notify
from scout_edge.config import load
from scout_shared.errors import TransientError
from tests.edge_agent.test_cli import SCOUT_EDGE, fetch, write
from tests.harness.process import Process
from tests.harness.waiting import eventually, free_port

UNIT = Path(__file__).parents[2] / "deploy/systemd/scout-edge.service"


class Systemd:
    """Receives what a service says."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.address = address
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """All datagrams so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self.socket.recv(65536).decode())
        return self.heard

    def pings(self) -> int:
        return sum(notify.PING in text.split("\n") for text in self.listen())


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    short = f"/tmp/scout-notify-{os.getpid()}-{tmp_path.name[-8:]}"
    made = Systemd(short if request.param == "path" else f"@scout-test-{os.getpid()}")
    yield made
    made.socket.close()
    Path(short).unlink(missing_ok=True)


def test_an_agent_is_ready_pings_and_says_that_it_stops(
    systemd: Systemd, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    config = write(tmp_path, free_port())
    environ = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "600000"}
    agent = processes([*SCOUT_EDGE, "run", "--config", config], env=environ)
    eventually(lambda: systemd.pings() >= 3, 20)
    assert systemd.heard[0] == notify.READY
    assert fetch(config, "/v1/status")["running"], "it said READY and does not answer"
    ping = next(text for text in systemd.heard if notify.PING in text)
    assert re.search(r"^STATUS=WAITING: no connection to the broker", ping, re.MULTILINE)
    assert agent.terminate() == 0
    said = systemd.listen()
    stopping = next(n for n, text in enumerate(said) if notify.STOPPING in text)
    assert not any(notify.PING in text for text in said[stopping:])
    assert "Traceback" not in agent.output()


def test_a_writer_that_hangs_gets_no_ping_until_it_moves_again(
    tmp_path: Path, processes: Callable[..., Process]
) -> None:
    config, systemd = write(tmp_path, free_port()), Systemd(f"@scout-hang-{os.getpid()}")
    environ = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "600000"}
    agent = processes([*SCOUT_EDGE, "run", "--config", config], env=environ)
    eventually(lambda: systemd.pings() >= 1, 20)
    database = sqlite3.connect(tmp_path / "data" / "edge.db", isolation_level=None)
    database.execute("begin immediate")  # the agent's writer waits for this, up to busy_timeout
    agent.wait_for_output("watchdog.withheld")

    def stuck() -> list[int]:
        said = enumerate(systemd.listen())
        return [n for n, text in said if text.startswith("STATUS=stuck: no answer")]

    eventually(lambda: len(stuck()) >= 3)  # the file says "in use" only after 5 s
    first, *_, last = stuck()
    assert not any(notify.PING in text for text in systemd.heard[first:last])
    before = systemd.pings()
    database.execute("rollback")
    database.close()
    eventually(lambda: systemd.pings() > before, 20)
    assert agent.terminate() == 0
    systemd.socket.close()


async def test_each_part_that_stands_still_withholds_the_ping(tmp_path: Path) -> None:
    """The agent's own judgement, with its real parts stopped one by one."""
    settings = load(write(tmp_path, free_port()), {})
    agent = agents.Agent(settings)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))

    def thread() -> threading.Thread | None:
        return next((t for t in threading.enumerate() if t.name == "source-http"), None)

    found = await asyncio.to_thread(eventually, thread)
    assert found is not None
    await asyncio.to_thread(eventually, lambda: agent.alive([found]))
    assert (await asyncio.to_thread(agent.alive, [found])).startswith("WAITING")
    ended = threading.Thread(target=int, name="source-modbus")
    ended.start()
    ended.join()
    with pytest.raises(notify.StuckError, match="source-modbus has ended"):
        await asyncio.to_thread(agent.alive, [found, ended])
    door = agent.sources[0]
    door.close()  # its port is gone, as soon as the poll on it has ended; its thread is not

    def stuck() -> str:
        try:
            agent.alive([found])
        except notify.StuckError as error:
            return error.message
        return ""

    reason = await asyncio.to_thread(eventually, stuck)
    assert reason.startswith("the local door does not answer")
    stop.set()
    await running
    with pytest.raises(TransientError, match="closed"):
        agent.alive([])


def test_a_part_that_says_no_is_alive(tmp_path: Path) -> None:
    systemd = Systemd(f"@scout-no-{os.getpid()}")

    def full() -> str:
        raise TransientError("the disk is full\nand a second line")

    async def scenario() -> None:
        watching = asyncio.create_task(notify.watch(notify.Manager(systemd.address, 0.03), full))
        await asyncio.to_thread(eventually, lambda: systemd.pings() >= 2)
        watching.cancel()

    asyncio.run(scenario())
    assert systemd.heard[0] == "WATCHDOG=1\nSTATUS=the disk is full and a second line"
    systemd.socket.close()


def test_without_a_manager_nothing_is_said_and_a_lost_one_does_no_harm(tmp_path: Path) -> None:
    quiet = notify.Manager.from_environ({}, 7)
    assert not quiet.present
    quiet.say(notify.READY)
    asyncio.run(notify.watch(quiet, lambda: pytest.fail("was asked")))
    notify.Manager(str(tmp_path / "gone")).say(notify.READY)
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}
    assert notify.Manager.from_environ(environ, 7).watchdog_seconds == 0.0
    assert notify.Manager.from_environ(environ, 8).watchdog_seconds == 60.0


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    # The program that it starts must exist: this machine has no /opt/scout.
    unit = tmp_path / "scout-edge.service"
    unit.write_text(UNIT.read_text().replace("/opt/scout/current/bin/python", SCOUT_EDGE[0]))
    done = subprocess.run(
        [program, "verify", unit], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "scout-edge" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_unit_lets_the_agent_ask_whether_the_clock_is_synchronised() -> None:
    """glibc asks by clock_adjtime; ProtectClock= would answer with EPERM: records lose the mark."""
    lines = UNIT.read_text().splitlines()
    assert "ProtectClock=yes" not in lines
    filters = [line for line in lines if line.startswith("SystemCallFilter=")]
    assert {"adjtimex", "clock_adjtime", "clock_adjtime64"} <= set(" ".join(filters).split())


def test_the_unit_lets_the_agent_open_serial_lines_and_no_other_device() -> None:
    """PrivateDevices= would hide them: a meter on a serial line could not be read."""
    lines = UNIT.read_text().splitlines()
    assert "PrivateDevices=yes" not in lines
    assert {"DevicePolicy=closed", "SupplementaryGroups=dialout"} <= set(lines)
    allowed = {line.split("=")[1].split()[0] for line in lines if line.startswith("DeviceAllow=")}
    assert allowed == {"char-ttyUSB", "char-ttyACM", "char-ttyAMA", "char-ttyS"}
