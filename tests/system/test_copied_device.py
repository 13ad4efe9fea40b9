"""A cloned card: two agents with one id and one buffer, both alive, against a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg

from scout_central.config import Ingest, Mqtt
from scout_central.hub import Supervisor
from scout_central.ingest import Receiver
from scout_edge import agent, recovery
from scout_edge.config import load
from tests.edge_agent.records import readings
from tests.edge_agent.test_cli import write
from tests.harness.servers import Address
from tests.harness.waiting import eventually


def device(folder: Path, broker: Address) -> agent.Agent:
    return agent.Agent(load(write(folder, broker.port), {}))


@contextlib.asynccontextmanager
async def running(made: agent.Agent) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(made.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def confirmed(*devices: agent.Agent) -> None:
    def all_is_there() -> bool:
        return not any(d.forwarder.backlog() or d.buffer.status().ledger for d in devices) and all(
            recovery.waiting(d.settings.buffer.path) == [] for d in devices
        )

    await asyncio.to_thread(eventually, all_is_there, 30, "the hub has all")


async def test_two_boxes_of_one_card_both_deliver_all_that_they_accepted(
    tmp_path: Path, database: str, mosquitto_broker: Address
) -> None:
    broker = mosquitto_broker
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    original = device(first, broker)
    # While it is offline: all of this is on both cards.
    original.buffer.append_readings(readings(1030))
    original.buffer.close()
    shutil.copytree(first / "data", second / "data")
    receiver = Receiver(database, Mqtt(host=broker.host, port=broker.port), Ingest())
    with Supervisor(receiver.tasks()):
        await asyncio.to_thread(eventually, lambda: receiver.connected, 15, "the hub is there")
        boxes = [device(first, broker), device(second, broker)]
        boxes[0].buffer.append_readings(readings(50, 10_000))
        boxes[1].buffer.append_readings(readings(70, 20_000))
        async with running(boxes[0]), running(boxes[1]):
            await confirmed(*boxes)
            for i, box in enumerate(boxes):
                await asyncio.to_thread(box.buffer.append_readings, readings(5, 30_000 + 100 * i))
            await confirmed(*boxes)
            # Both stay connected: they do not throw each other out.
            assert [box.metrics.counters()["reconnects"] for box in boxes] == [0, 0]
            assert sorted(box.buffer.status().forks for box in boxes) == [0, 1]
    expected = [
        float(i)
        for start, n in ((0, 1030), (10_000, 50), (20_000, 70), (30_000, 5), (30_100, 5))
        for i in range(start, start + n)
    ]
    with psycopg.connect(database) as connection:
        rows = connection.execute("select value from bronze.device_readings order by 1").fetchall()
        assert [value for (value,) in rows] == expected
        assert connection.execute(
            "select (select sum(records) from metadata.produced_counts),"
            " (select sum(records) from metadata.received_counts)"
        ).fetchone() == (len(expected), len(expected))
        assert ("buffer_copied",) in connection.execute(
            "select code from metadata.error_log"
        ).fetchall()
        assert connection.execute("select count(*) from metadata.quarantine").fetchone() == (0,)
