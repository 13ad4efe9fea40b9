"""What the agent costs a small device, against stated limits: disk, memory, CPU, first record.

Installed as on a device: a new environment, requirements/edge.txt with hashes, the two packages
from wheels without what they can do without. The agent is that environment's ``scout-edge run``
with 1 M readings that wait, the local door, ``system``, a followed file and a local MQTT source:

    installed     all of site-packages but pip and setuptools, in blocks of the disk, with .pyc
    memory        most ever resident: while no hub answers and records come, then while it drains
    cpu           seconds of the process per second at 100 readings/s, each way in by itself
    first record  from starting the program to the answer of the first POST; a new buffer each time

The last line is ``footprint: <figure> ratio``: the largest share of a limit. Above 1: exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from scout_edge.buffer import Buffer
from scout_shared import wire
from scout_shared.messages import Receipt
from tests.bench.buffer import readings
from tests.edge_agent import hub
from tests.harness import proc
from tests.harness.process import Process
from tests.harness.servers import BROKER
from tests.harness.waiting import eventually, free_port

ROOT = Path(__file__).parents[2]
ZONE = "Asia/Manila"
READINGS_A_SECOND = 100
STEPS_A_SECOND = 10
"""How often the feeders write; a real device's sensors do not speak at one moment either."""

INSTALLED_BYTES = 25_000_000
MEMORY_BYTES = 40_000_000
CPU_RATIO = 0.10
FIRST_RECORD_SECONDS = 3.0


def main() -> None:
    """Install, measure, compare; exit code 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=1_000_000, help="readings that wait")
    parser.add_argument("--seconds", type=int, default=30, help="of each CPU measurement")
    parser.add_argument("--starts", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a real disk)")
    args = parser.parse_args()
    shares = []

    def judge(what: str, figure: float, limit: float, unit: str) -> None:
        shares.append(figure / limit)
        missed = "" if figure <= limit else "  MISSED"
        print(f"{what}: {figure:.3g} {unit} (limit {limit:g}){missed}", flush=True)

    with tempfile.TemporaryDirectory(dir=args.folder, prefix="scout-footprint-") as name:
        folder = Path(name)
        judge("installed", installed(folder) / 1e6, INSTALLED_BYTES / 1e6, "MB")
        with broker() as port:
            first = [first_record(folder / f"start-{i}", port) for i in range(args.starts)]
            print(f"first record, each start: {', '.join(f'{s:.2f}' for s in first)} s")
            judge("first record", statistics.median(first), FIRST_RECORD_SECONDS, "s")
            device = Device(folder / "device", port)
            fill(device.path, args.backlog)
            with device.running(folder):
                for feeder in (Door, Log, Sensors):
                    cpu = measured(device, feeder, args.seconds)
                    judge(f"cpu, {feeder.__doc__}", cpu, CPU_RATIO, "of a core")
                resident, most = proc.memory_bytes(device.pid)
                waiting = device.status()["backlog_records"]
                print(f"no hub: {waiting:,} records wait, {resident / 1e6:.1f} MB resident")
                judge("memory, no hub", most / 1e6, MEMORY_BYTES / 1e6, "MB")
                seconds = drain(device)
                resident, most = proc.memory_bytes(device.pid)
                print(f"drained in {seconds:.1f} s, {resident / 1e6:.1f} MB resident")
                judge("memory, drained", most / 1e6, MEMORY_BYTES / 1e6, "MB")
    print(f"footprint: {max(shares):.2f} ratio")
    sys.exit(max(shares) > 1)


# -- disk ---------------------------------------------------------------------------------------


def installed(folder: Path) -> int:
    """Install as ``deploy/install-edge.sh`` does; the bytes that it takes on the disk."""
    wheels, copies, environment = folder / "wheels", folder / "source", folder / "environment"
    copies.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    before = {path.name for path in packages.iterdir()}
    pip: list[str | Path] = [
        environment / "bin/python",
        "-m",
        "pip",
        "-qq",
        "--disable-pip-version-check",
    ]
    locked: list[str | Path] = [
        "--require-hashes",
        "--only-binary",
        ":all:",
        "-r",
        ROOT / "requirements/edge.txt",
    ]
    subprocess.run([*pip, "install", *locked], check=True)
    # Built in a copy, by the environment of this program: the checkout stays as it is.
    ours = [copies / "shared", copies / "edge_agent"]
    subprocess.run(["cp", "-R", ROOT / "shared", ROOT / "edge_agent", copies], check=True)
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "-qq",
        "--disable-pip-version-check",
        "wheel",
    ]
    alone: list[str | Path] = ["--no-deps", "--no-build-isolation", "--no-index", "-w", wheels]
    subprocess.run([*build, *alone, *ours], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-index", *wheels.iterdir()], check=True)
    added = [path for path in packages.iterdir() if path.name not in before]
    files = [path for top in added for path in (top, *top.rglob("*"))]
    everything = [packages, *packages.rglob("*")]
    names = sorted(path.name.split("-")[0] for path in added if path.name.endswith(".dist-info"))
    compiled = [path for path in files if path.suffix == ".pyc"]
    print(f"counted: {', '.join(names)}")
    print(
        f"as stored {_stored(files) / 1e6:.2f} MB, of it .pyc {_stored(compiled) / 1e6:.2f} MB;"
        f" their lengths add up to {sum(path.stat().st_size for path in files) / 1e6:.2f} MB;"
        f" with pip and setuptools {_stored(everything) / 1e6:.1f} MB"
    )
    return _stored(files)


def _stored(files: list[Path]) -> int:
    return sum(path.stat().st_blocks * 512 for path in files)


# -- the device ---------------------------------------------------------------------------------


class Device:
    """A settings file, and the agent that runs with it."""

    def __init__(self, folder: Path, broker_port: int, *, door_only: bool = False) -> None:
        folder.mkdir()
        self.path = folder / "edge.db"
        self.log = folder / "sales.log"
        self.config = folder / "edge.toml"
        self.broker_port, self.door_port = broker_port, free_port()
        self._process: Process | None = None
        sources = (
            f'[sources.sales]\nkind = "files"\npath = "{self.log}"\nformat = "jsonl"\n'
            'time_field = "at"\nmetric_field = "metric"\nvalue_field = "value"\n'
            f'[sources.sensors]\nkind = "mqtt"\nport = {broker_port}\n'
            '[[sources.sensors.topics]]\ntopic = "sensors/+/value"\nmetric = "sensor.{1}.value"\n'
        )
        self.config.write_text(
            f'[device]\nid = "till-9"\nstore = "store-7"\nzone = "{ZONE}"\n'
            f'[buffer]\npath = "{self.path}"\n[mqtt]\nport = {broker_port}\n'
            f"[http]\nport = {self.door_port}\n{'' if door_only else sources}"
        )

    @property
    def pid(self) -> int:
        """Of the running agent."""
        assert self._process is not None
        return self._process.pid

    @contextmanager
    def running(self, installation: Path) -> Iterator[None]:
        """The installed program, with nothing of this checkout on its path."""
        program = installation / "environment/bin/scout-edge"
        command: list[str | Path] = [program, "run", "--config", self.config]
        with Process(command, env={"PYTHONPATH": ""}, cwd=Path("/")) as agent:
            self._process = agent
            agent.wait_for_port(self.door_port)
            yield
            assert agent.running, agent.output()

    def status(self) -> dict[str, int]:
        """What the agent says at its door."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.door_port, 10)) as connection:
            connection.request("GET", "/v1/status")
            answer: dict[str, int] = json.load(connection.getresponse())
            return answer


def first_record(folder: Path, broker_port: int) -> float:
    """Seconds from the start of the program until the first POST is answered."""
    device = Device(folder, broker_port, door_only=True)
    body = json.dumps({"metric": "a.b", "observed_at": _now(), "value": 1.0})

    def posted() -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", device.door_port, 10)) as connection:
            connection.request("POST", "/v1/readings", body, {"Content-Type": "application/json"})
            return connection.getresponse().status == 200

    began = time.perf_counter()
    with device.running(folder.parent):
        eventually(posted, 30, "the first record is durable")
        return time.perf_counter() - began


def fill(path: Path, records: int) -> None:
    """A buffer in which so many readings wait."""
    made = readings(records)
    with Buffer(path, zone=ZONE) as buffer:
        for i in range(0, records, 1000):
            buffer.append_readings(made[i : i + 1000])
    print(f"backlog: {records:,} readings in {path.stat().st_size / 1e6:.2f} MB")


@contextmanager
def broker() -> Iterator[int]:
    """The embedded broker, in a process of its own; its port."""
    port = free_port()
    with Process([sys.executable, "-c", BROKER, str(port)]) as process:
        process.wait_for_port(port)
        yield port


class Hub(hub.Hub):
    """Keeps all in memory; without looking through it for each receipt."""

    watermark = 0

    def receipt(self, epoch: bytes) -> Receipt:
        """What came without a hole, of the one epoch that there is."""
        while (body := self.segments.get(self.watermark + 1)) is not None:
            self.watermark = wire.decode_header(body).last_sequence
        return Receipt(epoch, self.watermark, (), self.credit, 1, self.ledger_version)


def drain(device: Device) -> float:
    """Seconds until a hub with credit for a full window has all that waited."""
    began = time.perf_counter()

    async def wait() -> None:
        async with Hub(credit=16).running("127.0.0.1", device.broker_port):
            await asyncio.to_thread(eventually, empty, 120, "the hub has all")

    def empty() -> bool:
        return device.status()["backlog_records"] <= 100  # what came in the last second

    asyncio.run(wait())
    return time.perf_counter() - began


# -- 100 readings a second, three ways ------------------------------------------------------------


@dataclass
class Door:
    """10 POSTs a second of 10 readings"""

    device: Device

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", self.device.door_port, 10)

    def send(self, values: list[tuple[str, float]]) -> None:
        """One request."""
        body = [{"metric": m, "observed_at": _now(), "value": v} for m, v in values]
        kind = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/readings", json.dumps(body), kind)
        answer = self._connection.getresponse()
        assert answer.read(), answer
        assert answer.status == 200, answer.status

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


@dataclass
class Log:
    """100 lines a second in a followed file"""

    device: Device

    def __post_init__(self) -> None:
        self._file = self.device.log.open("a")

    def send(self, values: list[tuple[str, float]]) -> None:
        """One line per reading."""
        for metric, value in values:
            self._file.write(json.dumps({"metric": metric, "at": _now(), "value": value}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass
class Sensors:
    """100 MQTT messages a second"""

    device: Device

    def __post_init__(self) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.connect("127.0.0.1", self.device.broker_port)
        self._client.loop_start()

    def send(self, values: list[tuple[str, float]]) -> None:
        """One message per reading."""
        for metric, value in values:
            self._client.publish(f"sensors/{metric}/value", str(value))

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def measured(
    device: Device, feeder: Callable[[Device], Door | Log | Sensors], seconds: int
) -> float:
    """CPU seconds per second while readings come; all of them arrive in the buffer."""
    each = READINGS_A_SECOND // STEPS_A_SECOND
    feed = feeder(device)
    made = iter(readings(READINGS_A_SECOND * seconds + each))
    pause = threading.Event()

    def step() -> None:
        feed.send(
            [(reading.metric, reading.value) for reading in (next(made) for _ in range(each))]
        )

    try:
        before = device.status()["backlog_records"]
        step()  # what is loaded at the first record is not counted every second
        eventually(lambda: device.status()["backlog_records"] >= before + each, 10, "it arrives")
        start, cpu, written = time.perf_counter(), *_counted(device)
        for i in range(STEPS_A_SECOND * seconds):
            pause.wait(max(0.0, start + i / STEPS_A_SECOND - time.perf_counter()))
            step()
        pause.wait(max(0.0, start + seconds - time.perf_counter()))
        ended, (cpu_end, written_end) = time.perf_counter(), _counted(device)
        arrived = before + each + READINGS_A_SECOND * seconds
        eventually(lambda: device.status()["backlog_records"] >= arrived, 10, "all arrives")
    finally:
        feed.close()
    written_each = (written_end - written) / (READINGS_A_SECOND * seconds)
    print(f"{feeder.__doc__}: {written_each:,.0f} bytes written to the disk per reading")
    return (cpu_end - cpu) / (ended - start)


def _counted(device: Device) -> tuple[float, int]:
    return proc.cpu_seconds(device.pid), proc.written_bytes(device.pid)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    main()
