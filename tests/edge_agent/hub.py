"""A small hub with bad manners: real MQTT, commits in memory, loses and mixes up what it may."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiomqtt

from scout_shared import topics, wire
from scout_shared.messages import Hello, Receipt


class Hub:
    """What a hub holds of one device, and how it answers.

    Args:
        loss_ratio: share of segments that it drops unseen, and of receipts that it never sends.
        repeat_ratio: share of receipts that come twice, and of old ones sent again later.
    """

    def __init__(
        self, *, seed: int = 1, loss_ratio: float = 0.0, repeat_ratio: float = 0.0, credit: int = 8
    ) -> None:
        self.rng = random.Random(seed)
        self.loss_ratio = loss_ratio
        self.repeat_ratio = repeat_ratio
        self.credit = credit
        self.silent = False
        """Commits and says nothing."""
        self.segments: dict[int, bytes] = {}
        self.arrivals = 0
        self.hellos: list[Hello] = []
        self.statuses: list[dict[str, Any]] = []
        self.old_receipts: list[Receipt] = []
        self.told = 0
        """Highest watermark in any receipt that was sent."""
        self.ledger_version = 0
        self.make_receipt: Callable[[Receipt], Receipt] = lambda receipt: receipt

    def receipt(self, epoch: bytes) -> Receipt:
        """What is committed now."""
        watermark, ranges = 0, list[tuple[int, int]]()
        for first in sorted(self.segments):
            if wire.decode_header(self.segments[first]).epoch != epoch:
                continue
            last = wire.decode_header(self.segments[first]).last_sequence
            if first == watermark + 1 and not ranges:
                watermark = last
            elif ranges and first == ranges[-1][1] + 1:
                ranges[-1] = ranges[-1][0], last
            else:
                ranges.append((first, last))
        made = Receipt(epoch, watermark, tuple(ranges), self.credit, 1, self.ledger_version)
        return self.make_receipt(made)

    @contextlib.asynccontextmanager
    async def running(self, host: str, port: int) -> AsyncIterator[None]:
        """Answer until the end of the block."""
        ready = asyncio.Event()
        task = asyncio.create_task(self._run(host, port, ready), name="hub")
        try:
            await asyncio.wait_for(ready.wait(), 10)
            yield
        finally:
            # More than once: before Python 3.12 asyncio.wait_for, on which aiomqtt's publish
            # stands, loses a cancellation that comes together with its result.
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=1.0)
            if not task.cancelled():
                task.result()

    async def _run(self, host: str, port: int, ready: asyncio.Event) -> None:
        async with aiomqtt.Client(host, port, identifier="hub") as client:
            await client.subscribe(topics.HUB_FILTER, qos=1)
            ready.set()
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                await self._take(client, str(message.topic), message.payload)

    async def _take(self, client: aiomqtt.Client, topic: str, payload: bytes) -> None:
        store, device, channel = topics.parse_up(topic)
        if channel == topics.STATUS:
            self.statuses.append(json.loads(payload))
            return
        if channel not in (topics.DATA, topics.HELLO):  # a hub does not listen to those
            return
        if channel == topics.HELLO:
            hello = Hello.decode(payload)
            self.hellos.append(hello)
            self.ledger_version = max(self.ledger_version, hello.ledger_version)
            epoch = hello.epoch
        else:
            header = wire.decode_header(payload)
            self.arrivals += 1
            if self.rng.random() < self.loss_ratio:
                return
            held = self.segments.setdefault(header.first_sequence, payload)
            assert held == payload, "a segment was sent with other bytes"
            epoch = header.epoch
        if not self.silent and self.rng.random() >= self.loss_ratio:
            receipt = self.receipt(epoch)
            self.old_receipts.append(receipt)
            await self._say(client, store, device, receipt)
        if self.rng.random() < self.repeat_ratio and self.old_receipts and not self.silent:
            await self._say(client, store, device, self.rng.choice(self.old_receipts))

    async def _say(self, client: aiomqtt.Client, store: str, device: str, receipt: Receipt) -> None:
        self.told = max(self.told, receipt.watermark)
        topic = topics.receipt(store, device, receipt.epoch)
        await client.publish(topic, receipt.encode(), qos=1, retain=True)
