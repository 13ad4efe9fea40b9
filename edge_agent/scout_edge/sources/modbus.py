"""Meters and refrigeration by Modbus TCP, RTU over TCP or a serial line: registers → metrics.

Each register is read by itself, so that one that the device refuses costs only itself: it is
counted and gives no reading. A device that does not answer is left alone for the rest of the round.
A reading has this device's clock when the answer came.
Not its job: writing registers.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scout_edge import acceptance, clock
from scout_edge.sources import SourceContext, SourceKind
from scout_edge.sources.outlet import Outlet, runs
from scout_edge.sources.units import Conversion, conversion, shortest_float32
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.settings import check_port, check_seconds
from scout_shared.wire import Reading, Span

if TYPE_CHECKING:
    from pymodbus.client import ModbusSerialClient, ModbusTcpClient

_BITS = ("coil", "discrete")
_PARITIES = {"none": "N", "even": "E", "odd": "O"}
_TYPES = {
    "int16": ">h",
    "uint16": ">H",
    "int32": ">i",
    "uint32": ">I",
    "int64": ">q",
    "uint64": ">Q",
    "float32": ">f",
    "float64": ">d",
}


@dataclass(frozen=True, slots=True)
class RegisterSettings:
    """One ``[[sources.<name>.registers]]`` table."""

    metric: str
    """What it is, with its unit. No default."""
    address: int
    """As sent, counted from 0: manuals that say 40001 mean 0 of 'holding'. No default."""
    table: str = "holding"
    """'holding', 'input', 'coil' or 'discrete'. Default 'holding'."""
    type: str = "uint16"
    """int16, uint16, int32, uint32, int64, uint64, float32 or float64; not for bits. Default
    'uint16'."""
    word_order: str = "big"
    """Of types with several registers: 'big' has the high one first. Default 'big'."""
    scale: float = 1.0
    """Factor. Default 1."""
    offset: float = 0.0
    """Added after the factor. Default 0."""
    unavailable: int | None = None
    """The raw value by which the device says that it has none, e.g. 0x8000. Default: there is
    none."""
    device_id: int | None = None
    """Unit on the bus. Default: that of the source."""

    def __post_init__(self) -> None:
        try:
            acceptance.check_readings([Reading(self.metric, 0, 0.0)], set())
        except PermanentError as error:
            raise ConfigError(error.message, error.hint) from error
        if self.table not in ("holding", "input", *_BITS):
            raise ConfigError(
                f"table {self.table!r} is not known", "use 'holding', 'input', 'coil', 'discrete'"
            )
        if self.type not in _TYPES:
            raise ConfigError(f"type {self.type!r} is not known", f"use {', '.join(_TYPES)}")
        if self.word_order not in ("big", "little"):
            raise ConfigError(f"word_order {self.word_order!r} is not known", "'big' or 'little'")
        if not 0 <= self.address <= 65_536 - self.count:
            raise ConfigError(
                f"address {self.address} cannot be",
                f"give 0 to {65_536 - self.count}; a manual's 40001 is 0 of 'holding'",
            )
        if self.device_id is not None and not 0 <= self.device_id <= 255:
            raise ConfigError(f"device_id {self.device_id} cannot be", "give 0 to 255")
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale):
            raise ConfigError(f"scale {self.scale} and offset {self.offset} cannot be")

    @property
    def count(self) -> int:
        """Registers that it takes."""
        return 1 if self.table in _BITS else struct.calcsize(_TYPES[self.type]) // 2


@dataclass(frozen=True, slots=True)
class ModbusSettings:
    """A ``[sources.<name>]`` table of kind ``modbus``."""

    host: str = ""
    """The device or its gateway; none for a serial line. No default."""
    registers: tuple[RegisterSettings, ...] = ()
    """What to read. No default."""
    port: int | str = 502
    """Its port; or a serial line, e.g. '/dev/ttyUSB0'. Default 502."""
    framer: str = ""
    """'socket' (Modbus TCP) or 'rtu'. Default 'rtu' for a serial line, else 'socket'."""
    baudrate: int = 9600
    """Of a serial line, bits per second: as the device is set. Default 9600."""
    parity: str = "none"
    """Of a serial line: 'none', 'even' or 'odd'. Default 'none'."""
    stop_bits: int = 1
    """Of a serial line: 1 or 2. Default 1."""
    device_id: int = 1
    """Unit on the bus. Default 1."""
    interval_seconds: float = 10.0
    """Seconds between two rounds. Default 10."""
    timeout_seconds: float = 3.0
    """Seconds to wait for an answer. Default 3."""

    def __post_init__(self) -> None:
        if isinstance(self.port, int):
            check_port("port", self.port)
            if not self.host:
                raise ConfigError(
                    "host must be set", "or port to a serial line such as '/dev/ttyUSB0'"
                )
        else:
            self._check_line()
        check_seconds("interval_seconds", self.interval_seconds, 0.05)
        check_seconds("timeout_seconds", self.timeout_seconds, 0.05)
        if self.framer not in ("", "socket", "rtu"):
            raise ConfigError(f"framer {self.framer!r} is not known", "use 'socket' or 'rtu'")
        if not 0 <= self.device_id <= 255:
            raise ConfigError(f"device_id {self.device_id} cannot be", "give 0 to 255")
        if not self.registers:
            raise ConfigError("registers must name at least one register")

    def _check_line(self) -> None:
        if not str(self.port).startswith("/"):
            raise ConfigError(f"port {self.port!r} is no serial line", "e.g. '/dev/ttyUSB0'")
        if self.host or self.framer == "socket":
            raise ConfigError(
                f"port {self.port} is a serial line, which has no host and no framer 'socket'",
                "leave both out",
            )
        if not 50 <= self.baudrate <= 4_000_000:
            raise ConfigError(f"baudrate {self.baudrate} cannot be", "e.g. 9600 or 19200")
        if self.parity not in _PARITIES:
            raise ConfigError(f"parity {self.parity!r} is not known", "'none', 'even' or 'odd'")
        if self.stop_bits not in (1, 2):
            raise ConfigError(f"stop_bits {self.stop_bits} cannot be", "give 1 or 2")

    @property
    def line(self) -> str:
        """The serial line; empty: TCP."""
        return self.port if isinstance(self.port, str) else ""


_EXCEPTIONS = {
    1: "it cannot do this",
    2: "it has no such address",
    3: "it does not take this count",
    4: "it failed, or the unit is not there",
    5: "it needs more time",
    6: "it is busy",
    8: "its memory is damaged",
    10: "the gateway has no way to the unit",
    11: "behind the gateway the unit does not answer",
}
"""Modbus Application Protocol V1.1b3, section 7."""


class _SilentError(TransientError):
    """A device did not answer."""


class ModbusSource:
    """Reads the registers of one table; see the module.

    Raises:
        ConfigError: pymodbus is not installed.
    """

    def __init__(self, outlet: Outlet, settings: ModbusSettings, *, name: str = "modbus") -> None:
        self.name = name
        self._outlet = outlet
        self._settings = settings
        self._conversions: dict[RegisterSettings, Conversion] = {
            register: conversion("", "", register.scale, register.offset)
            for register in settings.registers
        }
        _library(serial=bool(settings.line))

    def open(self) -> None:
        """Nothing to take: a device may be away for a while."""

    def run(self, stop: threading.Event) -> None:
        """Read until stopped. Raises TransientError: no connection, no answer, or buffer full."""
        client = self._client()
        try:
            self._outlet.beat(self._settings.timeout_seconds)
            if not client.connect():
                raise self._unreached()
            due = time.monotonic()
            while not stop.is_set():
                self._round(client, stop)
                due = max(due + self._settings.interval_seconds, time.monotonic())
                while not stop.wait(min(1.0, max(0.0, due - time.monotonic()))):
                    self._outlet.tick()
                    if time.monotonic() >= due:
                        break
        finally:
            client.close()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Nothing to give back."""

    @property
    def _where(self) -> str:
        given = self._settings
        place = f"on {given.line}" if given.line else f"at {given.host}:{given.port}"
        return f"the device of source {self.name!r} {place}"

    def _unreached(self) -> TransientError:
        """Why: the library says no more than that. A line may come back: an adapter is plugged."""
        line = self._settings.line
        if not line:
            return TransientError(
                f"{self._where} cannot be reached", "check host, port, cable and power"
            )
        try:
            descriptor = os.open(line, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except PermissionError:
            return TransientError(
                f"{line} may not be opened by this user",
                "add the agent's user to the group dialout: sudo usermod -aG dialout USER; then"
                " start the agent again",
            )
        except OSError as error:
            return TransientError(
                f"{line} cannot be opened: {error.strerror}",
                "is the adapter plugged in? ls -l /dev/serial/by-id tells its name",
            )
        try:
            if not os.isatty(descriptor):
                return TransientError(f"{line} is no serial line", "ls -l /dev/serial/by-id")
        finally:
            os.close(descriptor)
        return TransientError(
            f"{line} is in use, or cannot be set to {self._settings.baudrate} baud",
            "stop the other program (sudo fuser -v tells which), or correct baudrate",
        )

    def _round(self, client: ModbusTcpClient | ModbusSerialClient, stop: threading.Event) -> None:
        """Read each register once; store what came. Raises TransientError when nothing answers."""
        readings: list[tuple[Span | None, Reading]] = []
        silent: set[int] = set()
        heard = False
        for register in self._settings.registers:
            unit = self._settings.device_id if register.device_id is None else register.device_id
            if stop.is_set():
                break
            try:
                if unit in silent:
                    raise _SilentError("no answer")
                # Two requests, and a connection before each, may all run into their timeout.
                self._outlet.beat(4 * self._settings.timeout_seconds)
                value = self._read(client, register, unit)
                heard = True
                if value is not None:
                    now = clock.stamp()
                    readings.append((now.span, Reading(register.metric, now.wall_ms, value)))
            except (_SilentError, PermanentError) as error:
                if isinstance(error, _SilentError):
                    silent.add(unit)
                else:
                    heard = True
                self._outlet.unreadable(
                    error.message, metric=register.metric, address=register.address, unit=unit
                )
        for span, run in runs(readings):
            self._outlet.append_readings(run, span=span)
        self._outlet.tick()
        if silent and not heard:
            raise TransientError(
                f"{self._where} does not answer",
                "check device_id, baudrate, parity, stop_bits, and the wires A and B"
                if self._settings.line
                else "check device_id and the bus",
            )

    def _read(
        self, client: ModbusTcpClient | ModbusSerialClient, register: RegisterSettings, unit: int
    ) -> float | None:
        """The value; None: the device says that it has none.

        Raises:
            PermanentError: it refuses this register, or says something that is no number.
            _SilentError: it does not answer.
        """
        from pymodbus.exceptions import ModbusException

        call = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[register.table]
        try:
            answer = call(register.address, count=register.count, device_id=unit)
        except (ModbusException, OSError) as error:
            # An answer that comes late must not be taken for that of the next request, which RTU
            # frames cannot tell. The next call connects again.
            client.close()  # type: ignore[no-untyped-call]
            raise _SilentError(f"no answer: {error}") from error
        if answer.isError():
            code = answer.exception_code
            meaning = _EXCEPTIONS.get(code, "not of the standard")
            raise PermanentError(f"the device refuses: exception {code}, {meaning}")
        if register.table in _BITS:
            return float(answer.bits[0])
        if len(answer.registers) != register.count:
            raise PermanentError(f"{len(answer.registers)} registers came, not {register.count}")
        raw = decode(answer.registers, register.type, register.word_order)
        if register.unavailable is not None and raw == register.unavailable:
            return None
        value = self._conversions[register](float(raw)) if math.isfinite(raw) else raw
        if not math.isfinite(value):
            raise PermanentError(f"the value is {value}")
        return value

    def _client(self) -> ModbusTcpClient | ModbusSerialClient:
        from pymodbus import FramerType
        from pymodbus.client import ModbusSerialClient, ModbusTcpClient

        given = self._settings
        if given.line:
            return ModbusSerialClient(
                given.line,
                baudrate=given.baudrate,
                parity=_PARITIES[given.parity],
                stopbits=given.stop_bits,
                timeout=given.timeout_seconds,
                retries=1,
            )
        framer = FramerType.RTU if given.framer == "rtu" else FramerType.SOCKET
        return ModbusTcpClient(
            given.host,
            port=int(given.port),
            framer=framer,
            timeout=given.timeout_seconds,
            retries=1,
        )


def decode(registers: Sequence[int], kind: str, word_order: str) -> float:
    """The number in one or more registers; a float32 as the shortest decimal that it can mean."""
    words = registers if word_order == "big" else list(reversed(registers))
    data = b"".join(word.to_bytes(2, "big") for word in words)
    (value,) = struct.unpack(_TYPES[kind], data)
    found: float = value
    return shortest_float32(found) if kind == "float32" else found


def _library(*, serial: bool) -> Any:
    install = "pip install 'scout-edge[modbus]'"
    try:
        import pymodbus
    except ImportError as error:
        raise ConfigError(
            "a source of kind 'modbus' needs pymodbus, which is not installed", install
        ) from error
    if serial and importlib.util.find_spec("serial") is None:
        raise ConfigError("Modbus on a serial line needs pyserial, which is not installed", install)
    # Each failure is told once, by us: the library writes a line per retry.
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
    return pymodbus


def _make(context: SourceContext, settings: ModbusSettings) -> ModbusSource:
    return ModbusSource(context.outlet, settings, name=context.name)


KIND = SourceKind(ModbusSettings, _make)
