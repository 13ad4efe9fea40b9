"""The technician's walk of edge_agent/README.md, step by step, with the installed program.

Two things stand in for what a test cannot do: the network cable is a relay that is killed, and
the power cut is SIGKILL of the agent. Its service is started by hand, as systemd would.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.edge_agent.test_cli import fetch
from tests.edge_agent.test_install import ROOT, script
from tests.harness.process import Process
from tests.harness.waiting import eventually, free_port
from tests.system.world import running

pytestmark = [pytest.mark.system, pytest.mark.slow]

README = ROOT / "edge_agent/README.md"
RELAY = """
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def serve(reader, writer):
    other = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pump(reader, other[1]), pump(other[0], writer))
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def test_install_unplug_power_cut_plug_in_everything_arrived(
    tmp_path: Path, folder: Path, processes: Callable[..., Process]
) -> None:
    steps = README.read_text("utf-8")
    prefix = tmp_path / "card"
    settings = prefix / "etc/scout/edge.toml"
    shown: list[str] = []

    def do(line: str, code: int = 0, real: Mapping[str, str] | None = None) -> str:
        """A command line of the walk, as it stands there; its output. ``real``: word → here."""
        assert f"$ {line}\n" in steps, f"the walk in {README} has no line: {line}"
        words = [(real or {}).get(word, word) for word in line.removeprefix("sudo ").split()]
        assert words[0] == "scout-edge"
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [prefix / "usr/local/bin/scout-edge", *words[1:], "--config", settings]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=environ, check=False
        )
        shown.append(f"$ {line}\n{done.stdout}{done.stderr}")
        assert done.returncode == code, shown[-1]
        return done.stdout

    with running(folder / "walk") as world:
        cable, door = free_port(), free_port()

        def plug_in() -> Process:
            relay = processes([sys.executable, "-c", RELAY, cable, world.address.broker])
            relay.wait_for_port(cable)
            return relay

        def power_on() -> Process:
            agent = processes([prefix / "usr/local/bin/scout-edge", "run", "--config", settings])
            agent.wait_for_output("door.opened")
            return agent

        sold = 0

        def sell(count: int) -> None:
            nonlocal sold
            for _ in range(count):
                sold += 1
                sale = (
                    '{"type":"transaction","observed_at":"2026-11-23T08:15:00-05:00",'
                    f'"body":{{"receipt":"till-9-{sold}","total":"12.50"}}}}'
                )
                assert fetch(settings, "/v1/documents", sale.encode())["accepted"] == 1

        def well() -> bool:
            state = fetch(settings, "/v1/status")
            return bool(state["hub_answers"] and not state["backlog_records"])

        done = script("--prefix", prefix, "--python", sys.executable, offline=False)
        if done.returncode and "packages cannot be installed" in done.stderr:
            pytest.skip(f"the packages of requirements/edge.txt cannot be had: {done.stderr}")
        assert done.returncode == 0, done.stderr
        text = settings.read_text()
        path = f'path = "{prefix}/var/lib/scout/edge.db"'
        text = re.sub(r"(?m)^path = \S+", path, text).replace("port = 8780", "")
        # The hub tells its devices where the broker is; here there is a cable between.
        text = text.replace("[mqtt]\n", f'[mqtt]\nhost = "127.0.0.1"\nport = {cable}\n')
        text = text.replace("[http]\n", f"[http]\nport = {door}\n")
        text = text.replace("reconnect_cap_seconds = 300.0", "reconnect_cap_seconds = 2.0")
        settings.write_text(text)

        order = "scout-hub device token --store 101 --device till-9 --zone America/New_York"
        assert f"`{order}`" in steps
        made = world.hub(*order.split()[1:], "--json")
        assert made.returncode == 0, made.stderr
        enrolment = "sudo scout-edge enrol --hub https://hub.example --token"
        done_so = do(
            f"{enrolment} K7QXM4-ABCD-EFGH-JKMN-PQRS",
            real={
                "https://hub.example": f"http://127.0.0.1:{world.address.api}",
                "K7QXM4-ABCD-EFGH-JKMN-PQRS": json.loads(made.stdout)["token"],
            },
        )
        assert done_so == "enrolled as till-9 in store 101 (America/New_York)\n"
        assert "right. Device till-9 in store 101" in do("sudo scout-edge check-config")
        relay = plug_in()
        agent = power_on()
        sell(20)
        eventually(well, 30, "the first sales are confirmed")
        assert do("sudo scout-edge status").startswith("ALL IS WELL")
        do("sudo scout-edge doctor")

        relay.kill()
        eventually(lambda: not fetch(settings, "/v1/status")["connected"], 30, "unplugged")
        sell(30)
        assert do("sudo scout-edge status", 75).startswith("WAITING: no connection to the broker")
        do("sudo scout-edge doctor", 1)

        agent.kill()
        agent = power_on()
        state = fetch(settings, "/v1/status")
        assert state["backlog_records"] >= 30, "records that were told OK are gone"
        plug_in()
        eventually(well, 60, "everything arrived")
        assert do("sudo scout-edge status").startswith(
            "ALL IS WELL: sending, everything is confirmed by the hub."
        )
        assert agent.terminate() == 0

        def received() -> dict[str, Any] | None:
            """The hub's account of the sales, once all of them are in bronze."""
            answer = world.hub("reconcile", "--json")
            assert answer.returncode == 0, answer.stderr
            for row in json.loads(answer.stdout):
                if row["device_id"] == "till-9" and row["kind"] in ("documents", 2):
                    return dict(row) if row["received"] >= sold else None
            return None

        account = eventually(received, 60)
        assert account is not None
        assert (account["produced"], account["received"], account["remainder"]) == (sold, sold, 0)
    print("\n".join([*shown, f"the hub's account: {account}"]))  # noqa: T201 - what the README shows
