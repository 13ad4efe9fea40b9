"""The Modbus source against pymodbus' own server."""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_edge.buffer import Buffer
from scout_edge.sources.modbus import ModbusSettings, ModbusSource, RegisterSettings, decode
from scout_shared.errors import ConfigError, TransientError
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.harness.process import Process
from tests.harness.waiting import eventually, free_port

ROOT = Path(__file__).parents[2]
R = RegisterSettings
GOOD = (
    R("volts", 0, scale=0.1),
    R("celsius", 1, type="int16"),
    R("fridge", 2, type="float32"),
    R("swapped", 4, type="uint32", word_order="little"),
    R("energy", 6, type="uint64"),
    R("flow", 0, table="input", offset=-7.0),
    R("door", 0, table="coil"),
    R("alarm", 1, table="discrete"),
)
EMPTY = R("none", 10, unavailable=0x8000)
BAD = (R("absent", 500), R("nan", 11, type="float32"))
VALUES = {
    "volts": 25.3,
    "celsius": -40.0,
    "fridge": 4.1,
    "swapped": 65_538.0,
    "energy": 123_456_789_012.0,
    "flow": 0.0,
    "door": 1.0,
    "alarm": 0.0,
}


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


def meter(processes: Callable[..., Process], port: int, framer: str = "socket") -> Process:
    process = processes(
        [sys.executable, "-m", "tests.edge_agent.meter", str(port), framer], cwd=ROOT
    )
    process.wait_for_port(port)
    return process


def settings(port: int, *registers: RegisterSettings, **given: Any) -> ModbusSettings:
    more: dict[str, Any] = {"interval_seconds": 0.1, "timeout_seconds": 0.5, **given}
    return ModbusSettings("127.0.0.1", registers, port, **more)


@pytest.mark.parametrize("framer", ["socket", "rtu"])
def test_registers_become_readings_and_a_refused_one_costs_only_itself(
    buffer: Buffer, processes: Callable[..., Process], framer: str
) -> None:
    port = free_port()
    server = meter(processes, port, framer)
    outlet = outlet_of(buffer, "meter")
    given = settings(port, BAD[0], *GOOD, EMPTY, BAD[1], framer=framer)
    source = ModbusSource(outlet, given, name="meter")
    stop = threading.Event()
    failures: list[TransientError] = []

    def run() -> None:
        try:
            source.run(stop)
        except TransientError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    counters = outlet._metrics.counters
    eventually(lambda: counters()["unreadable_records"] >= 4 or failures, 20, "two rounds")
    server.kill()
    eventually(lambda: failures, 20, "the failure")
    thread.join(10)
    assert "does not answer" in failures[0].message
    buffer.seal()
    found = list(contents(stored(buffer))[0].elements())
    assert {reading.metric: reading.value for reading in found} == VALUES
    assert len(found) >= 2 * len(GOOD)


def test_a_device_that_is_not_there_fails_for_now(buffer: Buffer) -> None:
    source = ModbusSource(outlet_of(buffer), settings(free_port(), *GOOD))
    with pytest.raises(TransientError, match="cannot be reached"):
        source.run(threading.Event())


def test_a_silent_unit_does_not_silence_the_others(
    buffer: Buffer, processes: Callable[..., Process]
) -> None:
    port = free_port()
    meter(processes, port)
    outlet = outlet_of(buffer)
    absent = R("other", 0, device_id=9)
    source = ModbusSource(outlet, settings(port, absent, absent, GOOD[0], timeout_seconds=0.2))
    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(stop,))
    thread.start()
    eventually(lambda: buffer.status().unsealed_records >= 2, 20)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert outlet._metrics.counters()["unreadable_records"] >= 4


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_keeps_its_value_in_few_digits(value: float) -> None:
    words = struct.unpack(">HH", struct.pack(">f", value))
    found = decode(words, "float32", "big")
    assert struct.pack(">f", found) == struct.pack(">f", value)
    assert decode(words[::-1], "float32", "little") == found
    if abs(value) < 3.4e38:  # at the end of the range a shorter decimal would be outside it
        assert len(Decimal(repr(found)).normalize().as_tuple().digits) <= 9


@pytest.mark.parametrize(
    "given, message",
    [
        ({"table": "register"}, "table 'register'"),
        ({"type": "int8"}, "type 'int8'"),
        ({"address": 65_535, "type": "int32"}, "address 65535"),
        ({"word_order": "middle"}, "word_order"),
        ({"metric": ""}, "metric ''"),
        ({"device_id": 300}, "device_id 300"),
        ({"scale": 0.0}, "scale 0"),
    ],
)
def test_wrong_registers_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        R(**{"metric": "a", "address": 0, **given})


def test_without_the_library_it_says_what_to_install(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(ConfigError, match="needs pymodbus") as caught:
        ModbusSource(outlet_of(buffer), settings(1, *GOOD))
    assert "scout-edge[modbus]" in caught.value.hint
