"""The Modbus source against pymodbus' own server."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import select
import struct
import sys
import threading
import tty
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
from scout_shared.settings import decode as decode_settings
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


class SerialLine:
    """Two pseudo-terminals joined by a thread: what is written to one end is read at the other.

    ``cut`` pulls the cable.
    """

    def __init__(self) -> None:
        (self._a, slave_a), (self._b, slave_b) = os.openpty(), os.openpty()
        self._slaves = (slave_a, slave_b)
        for slave in self._slaves:
            tty.setraw(slave)
        self.ends = os.ttyname(slave_a), os.ttyname(slave_b)
        self.cut = False
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._relay)
        self._thread.start()

    def _relay(self) -> None:
        other = {self._a: self._b, self._b: self._a}
        while True:
            ready, _, _ = select.select([self._a, self._b, self._stop], [], [])
            if self._stop in ready:
                return
            for end in ready:
                data = os.read(end, 4096)
                if not self.cut:
                    os.write(other[end], data)

    def close(self) -> None:
        os.write(self._wake, b"x")
        self._thread.join(10)
        for descriptor in (self._a, self._b, *self._slaves, self._stop, self._wake):
            os.close(descriptor)


@pytest.fixture
def line() -> Iterator[SerialLine]:
    made = SerialLine()
    yield made
    made.close()


def test_a_serial_line_is_read_and_a_cut_one_told(
    buffer: Buffer, processes: Callable[..., Process], line: SerialLine
) -> None:
    ours, theirs = line.ends
    server = processes([sys.executable, "-m", "tests.edge_agent.meter", theirs, "serial"], cwd=ROOT)
    server.wait_for_output("ready")
    outlet = outlet_of(buffer, "meter")
    more: dict[str, Any] = {"interval_seconds": 0.1, "timeout_seconds": 0.5}
    given = ModbusSettings(port=ours, registers=(*GOOD, BAD[0]), **more)
    stop = threading.Event()
    messages: list[str] = []

    def run() -> None:
        while not stop.is_set():
            try:
                ModbusSource(outlet, given, name="meter").run(stop)
            except TransientError as error:
                messages.append(f"{error.message}; {error.hint}")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        eventually(lambda: buffer.status().unsealed_records >= 2 * len(GOOD), 20)
        line.cut = True
        told = "does not answer; check device_id, baudrate, parity"
        eventually(lambda: any(told in m for m in messages), 20, "the silence")
        line.cut = False
        before = buffer.status().unsealed_records
        eventually(lambda: buffer.status().unsealed_records > before + len(GOOD), 20)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    buffer.seal()
    found = list(contents(stored(buffer))[0].elements())
    assert {reading.metric: reading.value for reading in found} == VALUES


def test_a_serial_line_that_cannot_be_had_says_why(
    buffer: Buffer, tmp_path: Path, line: SerialLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(port: str) -> str:
        given = ModbusSettings(port=port, registers=GOOD)
        with pytest.raises(TransientError) as caught:
            ModbusSource(outlet_of(buffer), given).run(threading.Event())
        return f"{caught.value.message}; {caught.value.hint}"

    assert "cannot be opened: No such file" in message(str(tmp_path / "ttyUSB0"))
    plain = tmp_path / "plain"
    plain.touch()
    assert "is no serial line" in message(str(plain))
    ours, _ = line.ends
    descriptor = os.open(ours, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "is in use" in message(ours)
    finally:
        os.close(descriptor)

    def denied(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may open everything
    assert "may not be opened by this user; add the agent's user to the group dialout" in message(
        ours
    )


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


@pytest.mark.parametrize(
    "given, message",
    [
        ({"port": "ttyUSB0"}, "port 'ttyUSB0' is no serial line"),
        ({"host": "10.0.0.1"}, "has no host"),
        ({"framer": "socket"}, "has no host and no framer"),
        ({"baudrate": 0}, "baudrate 0"),
        ({"parity": "E"}, "parity 'E'"),
        ({"stop_bits": 3}, "stop_bits 3"),
        ({"port": 502}, "host must be set"),
    ],
)
def test_wrong_lines_are_named(given: dict[str, Any], message: str) -> None:
    table = {"port": "/dev/ttyUSB0", "registers": [{"metric": "a", "address": 0}]}
    assert decode_settings(ModbusSettings, table, {}, "x").line == "/dev/ttyUSB0"
    with pytest.raises(ConfigError, match=message):
        decode_settings(ModbusSettings, {**table, **given}, {}, "x")


def test_without_the_library_it_says_what_to_install(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(ConfigError, match="needs pymodbus") as caught:
        ModbusSource(outlet_of(buffer), settings(1, *GOOD))
    assert "scout-edge[modbus]" in caught.value.hint


def test_a_line_without_its_library_says_what_to_install(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs pyserial"):
        ModbusSource(outlet_of(buffer), ModbusSettings(port="/dev/ttyUSB0", registers=GOOD))
