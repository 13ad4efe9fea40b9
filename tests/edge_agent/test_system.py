import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scout_edge import clock
from scout_edge.buffer import Buffer
from scout_edge.sources import machine as machines
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.system import SystemSource
from scout_shared import wire
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.harness.waiting import eventually

FILES = {
    "proc/loadavg": "0.50 0.25 0.10 1/100 1234\n",
    "proc/stat": "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n",
    "proc/meminfo": "MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable:  400 kB\n",
    "proc/uptime": "3600.12 1.0\n",
    "proc/net/dev": "a\nb\n    lo: 1 2 3 4 5 6 7 8 9\n  eth0: 10 0 0 0 0 0 0 0 20 0\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "root"


@pytest.fixture
def source(tmp_path: Path, machine: Path) -> Callable[[], dict[str, float]]:
    outlet: Outlet = None  # type: ignore[assignment]  # sampling does not touch it
    made = SystemSource(outlet, interval_seconds=1, disk=tmp_path, root=machine)
    return lambda: {reading.metric: reading.value for reading in made.sample(0)}


def test_the_numbers_are_those_of_the_kernel(
    source: Callable[[], dict[str, float]], machine: Path
) -> None:
    first = source()
    assert "system.cpu_busy_ratio" not in first, "one look at the counters is no ratio"
    (machine / "proc/stat").write_text("cpu  130 0 120 740 110 0 0 0 0 0\n")
    second = source()
    assert second.pop("system.disk_total_bytes") >= second.pop("system.disk_free_bytes")
    assert second == {
        "system.load_1_minutes": 0.5,
        "system.load_5_minutes": 0.25,
        "system.load_15_minutes": 0.1,
        "system.cpu_busy_ratio": 0.5,
        "system.memory_total_bytes": 1_024_000.0,
        "system.memory_available_bytes": 409_600.0,
        "system.uptime_seconds": 3600.12,
        "system.network.eth0.received_bytes": 10.0,
        "system.network.eth0.sent_bytes": 20.0,
        "system.temperature.0_celsius": 48.312,
    }


def test_what_the_machine_does_not_have_gives_no_reading(
    source: Callable[[], dict[str, float]], machine: Path
) -> None:
    for name in FILES:
        (machine / name).unlink()
    assert source().keys() == {"system.disk_total_bytes", "system.disk_free_bytes"}


def test_this_machine_is_sampled_into_the_buffer_until_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        source = SystemSource(outlet_of(buffer), interval_seconds=0.02, disk=tmp_path)
        thread = threading.Thread(target=source.run, args=(stop,))
        thread.start()
        eventually(lambda: buffer.status().unsealed_records > 30)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
        buffer.seal()
        found, _ = contents(stored(buffer))
    names = {reading.metric for reading in found}
    assert {"system.load_1_minutes", "system.uptime_seconds", "system.memory_total_bytes"} <= names
    assert set(found.values()) == {1}


def test_the_clock_says_what_the_kernel_says() -> None:
    assert clock.boot_id() == clock.boot_id()
    assert len(clock.boot_id()) == 16
    assert clock.synced() in (True, False, None)
    sealing = clock.sealing(b"e" * 16, "UTC")
    assert sealing.clock in (wire.CLOCK_UNKNOWN, wire.CLOCK_UNSYNCED, wire.CLOCK_SYNCED)


def test_psutil_and_proc_say_the_same_of_this_machine() -> None:
    by_psutil, by_proc = machines.of(Path("/")), machines._Proc(Path("/"))
    assert type(by_psutil) is not type(by_proc)
    assert by_psutil.load() == pytest.approx(by_proc.load(), abs=1.0)
    ours, theirs = by_proc.memory(), by_psutil.memory()
    assert ours.total == theirs.total
    assert ours.available == pytest.approx(theirs.available, rel=0.1)
    assert ours.swap_free == pytest.approx(theirs.swap_free, rel=0.1)
    assert by_psutil.uptime_seconds() == pytest.approx(by_proc.uptime_seconds(), abs=5)
    ticks, seconds = by_proc.cpu_time(), by_psutil.cpu_time()
    assert ticks is not None
    assert seconds is not None
    assert ticks.idle / ticks.total == pytest.approx(seconds.idle / seconds.total, abs=0.01)
    before = {each.interface: each for each in by_proc.traffic()}
    after = {each.interface: each for each in by_psutil.traffic()}
    assert before.keys() == after.keys()
    for name, each in before.items():
        assert after[name].received_bytes >= each.received_bytes
        assert after[name].sent_bytes >= each.sent_bytes


def test_without_psutil_proc_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert isinstance(machines.of(Path("/")), machines._Proc)
