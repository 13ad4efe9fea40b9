"""The way between an agent and the broker, made worse on purpose.

TCP: cut (connections end), dead (half-open: what is sent disappears and nobody is told), slow. A
new connection over a bad link hangs until it is mended, as when packets are lost. MQTT: QoS 1
PUBLISH packets, in both directions, are repeated, overtaken by later ones, or acknowledged and
forgotten, as a broker does whose queue is full; packet boundaries are kept, so neither end sees
broken MQTT. Other packets are left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

HOST = "127.0.0.1"
_CHUNK = 4096
_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 9.0  # of one who connects
_PUBLISH_QOS1 = 0x32
_TYPE_AND_QOS = 0xF6  # without DUP and RETAIN


@dataclass(slots=True)
class Quality:
    """How a link is now."""

    cut: bool = False
    dead: bool = False
    bytes_per_second: float = 0.0
    """0: as fast as it goes."""
    repeat_ratio: float = 0.0
    """Share of the publishes that come a second time, up to a second later."""
    reorder_ratio: float = 0.0
    """Share of the publishes that are held back until later ones have passed."""
    forget_ratio: float = 0.0
    """Share of the publishes that are acknowledged and go nowhere."""


class Network(threading.Thread):
    """The thread in which all links run."""

    def __init__(self) -> None:
        super().__init__(name="chaos-network", daemon=True)
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join(10)
        self.loop.close()

    def run(self) -> None:
        """Until the ``with`` block ends."""
        self.loop.run_forever()
        self.loop.run_until_complete(self._end())

    @staticmethod
    async def _end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it there; returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)


class Link:
    """A port that leads to another one, for one box.

    Args:
        seed: which packets are repeated or held back.
    """

    def __init__(self, network: Network, target_port: int, seed: int) -> None:
        self.quality = Quality()
        self.repeated = self.reordered = self.forgotten = 0
        self._network = network
        self._target = target_port
        self._random = random.Random(seed)
        self._connections: set[asyncio.StreamWriter] = set()
        self._pending: set[asyncio.StreamWriter] = set()
        """Not yet led on."""
        self._server: asyncio.Server | None = None
        # The port stays ours while the link is cut.
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        network.do(self._open())

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._connected, sock=self._socket)

    def close(self) -> None:
        """End it and its connections."""
        self._network.do(self._close())

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._reset()
        for writer in tuple(self._pending):
            writer.transport.abort()

    def cut(self) -> None:
        """No way to the broker."""
        self.quality.cut = True
        self._network.loop.call_soon_threadsafe(self._reset)

    def die(self) -> None:
        """Half-open: both ends believe in a connection over which nothing comes."""
        self.quality.dead = True

    def mend(self) -> None:
        """As good as new; a connection that was dead is found out now."""
        if self.quality.dead and not self.quality.cut:
            self._network.loop.call_soon_threadsafe(self._reset)
        self.quality = Quality()

    def _reset(self) -> None:
        for writer in tuple(self._connections):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A reset before the CONNACK costs ten seconds, which aiomqtt waits for it all the same.
        self._pending.add(writer)
        far = await self._reach()
        self._pending.discard(writer)
        if far is None or writer.is_closing():
            writer.transport.abort()
            if far is not None:
                far[1].transport.abort()
            return
        far_reader, far_writer = far
        self._connections |= {writer, far_writer}
        ways = [
            asyncio.ensure_future(self._carry(reader, far_writer, writer)),
            asyncio.ensure_future(self._carry(far_reader, writer, far_writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, far_writer):
                end.transport.abort()
            self._connections -= {writer, far_writer}

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the broker, as soon as link and broker allow; None: not in time."""
        for _ in range(int(_PATIENCE_SECONDS / _LOOK_SECONDS)):
            if not (self.quality.cut or self.quality.dead):
                with contextlib.suppress(OSError):
                    return await asyncio.open_connection(HOST, self._target)
            await asyncio.sleep(_LOOK_SECONDS)
        return None

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        splitter = Splitter()
        held: list[bytes] = []
        with contextlib.suppress(OSError):
            while True:
                try:
                    # Held packets go when nothing follows that could overtake them.
                    data = await asyncio.wait_for(reader.read(_CHUNK), 0.15 if held else None)
                except TimeoutError:
                    data = b""
                    packets: list[bytes] = []
                else:
                    if not data:
                        return
                    packets = splitter.feed(data)
                if self.quality.dead:
                    held.clear()
                    continue
                packets = [packet for packet in packets if not self._forgets(packet, back)]
                out, held = self._arrange(packets, held, flush=not data, writer=writer)
                await self._write(writer, out)

    def _forgets(self, packet: bytes, back: asyncio.StreamWriter) -> bool:
        """Whether it goes nowhere; its sender is told that it arrived."""
        ratio = self.quality.forget_ratio
        if not ratio or not is_publish(packet) or self._random.random() >= ratio:
            return False
        self.forgotten += 1
        back.write(puback(packet))
        return True

    def _arrange(
        self, packets: list[bytes], held: list[bytes], *, flush: bool, writer: asyncio.StreamWriter
    ) -> tuple[list[bytes], list[bytes]]:
        """What goes on now, in which order, and what is held back."""
        out: list[bytes] = []
        keep: list[bytes] = []
        for packet in packets:
            if not is_publish(packet):
                out.append(packet)
                continue
            if self._random.random() < self.quality.repeat_ratio:
                self.repeated += 1
                delay = self._random.choice((0.0, 0.05, 0.3, 1.0))
                asyncio.get_running_loop().call_later(delay, self._again, writer, packet)
            if self._random.random() < self.quality.reorder_ratio:
                self.reordered += 1
                keep.append(packet)
            else:
                out.append(packet)
        if flush or out or len(held) > 3:
            # Newest first: what was held comes in the wrong order, too.
            out += reversed(held)
            return out, keep
        return out, held + keep

    @staticmethod
    def _again(writer: asyncio.StreamWriter, packet: bytes) -> None:
        if not writer.is_closing():
            writer.write(packet)

    async def _write(self, writer: asyncio.StreamWriter, packets: list[bytes]) -> None:
        for packet in packets:
            rate = self.quality.bytes_per_second
            if rate:
                await asyncio.sleep(min(len(packet) / rate, 1.0))
            writer.write(packet)
        await writer.drain()


class Splitter:
    """Bytes of a stream → whole MQTT packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are whole now."""
        self._buffer += data
        packets = []
        while size := _size(self._buffer):
            if len(self._buffer) < size:
                break
            packets.append(bytes(self._buffer[:size]))
            del self._buffer[:size]
        return packets


def _size(buffer: bytearray) -> int:
    """Bytes of the first packet, its fixed header included; 0: its length has not come yet."""
    length = 0
    for i, byte in enumerate(buffer[1:5]):
        length |= (byte & 0x7F) << (7 * i)
        if not byte & 0x80:
            return 2 + i + length
    return 0


def is_publish(packet: bytes) -> bool:
    """Whether it is a PUBLISH of QoS 1."""
    return packet[0] & _TYPE_AND_QOS == _PUBLISH_QOS1


def puback(packet: bytes) -> bytes:
    """The acknowledgement of a PUBLISH of QoS 1."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    topic = at + 1
    (length,) = struct.unpack_from(">H", packet, topic)
    number = topic + 2 + length
    return b"\x40\x02" + packet[number : number + 2]
