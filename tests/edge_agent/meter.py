"""A meter: pymodbus' own server. ``python -m tests.edge_agent.meter PORT FRAMER``

``PORT`` is a TCP port, or a serial line with the framer ``serial``.
"""

from __future__ import annotations

import sys

from pymodbus import FramerType
from pymodbus.server import StartSerialServer, StartTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice


def main() -> None:
    registers = [
        SimData(0, values=[253], datatype=DataType.UINT16),
        SimData(1, values=[-40], datatype=DataType.INT16),
        SimData(2, values=[4.1], datatype=DataType.FLOAT32),
        SimData(4, values=[0x0002, 0x0001], datatype=DataType.REGISTERS),
        SimData(6, values=[123_456_789_012], datatype=DataType.UINT64),
        SimData(10, values=[0x8000], datatype=DataType.REGISTERS),
        SimData(11, values=[0x7FC0, 0], datatype=DataType.REGISTERS),  # NaN
    ]
    bits = [SimData(0, values=[True, False], datatype=DataType.BITS)]
    inputs = [SimData(0, values=[7], datatype=DataType.UINT16)]
    device = SimDevice(1, simdata=(bits, bits, registers, inputs))
    if sys.argv[2] == "serial":
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        StartSerialServer(device, port=sys.argv[1], framer=FramerType.RTU, baudrate=9600)
        return
    StartTcpServer(
        device,
        address=("127.0.0.1", int(sys.argv[1])),
        framer=FramerType.RTU if sys.argv[2] == "rtu" else FramerType.SOCKET,
    )


if __name__ == "__main__":
    main()
