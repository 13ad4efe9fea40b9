"""``scout-edge doctor``: what is wrong with this device, and what a technician does about it.

It looks, and changes nothing that the agent or the hub keeps. It runs beside a working agent: the
buffer is only read and its lock is not taken, the broker sees a client id of its own, and no hello
is sent while an agent sends them (the agent's own status, or its receipts, tell how it goes).

    agent     does one run?                        device.agent
    clock     plausible, synchronised              device.clock
    disk      writable, space, wear                device.disk
    buffer    opens, age, damage                   device.buffer
    door      does the local door answer?          device.door
    network   DNS, TCP                             route.network
    tls       chain, name, dates                   route.tls
    broker    connect, subscribe, publish          route.broker
    receipts  does the hub answer?                 route.broker
    hub       the second way, if [hub] url is set  second.hub

What stands behind a failed step of the route is not tried: one cause, one ``fail``.
Not its job: repairing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from scout_edge import status
from scout_edge.config import EdgeSettings
from scout_edge.doctor import device, route, second
from scout_edge.doctor.finding import FAIL, OK, WARN, Finding
from scout_shared.errors import ScoutError

__all__ = ["FAIL", "OK", "WARN", "Finding", "examine", "not_tried"]

STEPS = ("agent", "clock", "disk", "buffer", "door", "network", "tls", "broker", "receipts")


def examine(
    settings: EdgeSettings, *, seconds: float = 20.0, root: Path = Path("/")
) -> Iterator[Finding]:
    """All findings, each as soon as it is known.

    Args:
        seconds: how long the hub may take to answer.
        root: where ``/sys`` and ``/proc`` are looked for.
    """
    path = settings.buffer.path
    refusal: ScoutError | None = None
    shown = None
    try:
        shown = status.ask(settings)
    except ScoutError as error:
        refusal = error
    running = shown is not None or device.locked(path, root)
    yield device.agent(settings, shown, running)
    synced = yield from device.clock_findings()
    yield from device.disk(settings, root)
    held = yield from device.buffer(settings)
    yield device.door(settings, shown, refusal, running)
    yield from second.hub(settings)
    if (yield from route.network(settings.mqtt)) and (yield from route.tls(settings.mqtt, synced)):
        yield from asyncio.run(route.broker(settings, shown, running, held, seconds))


def not_tried(findings: list[Finding]) -> list[str]:
    """Steps that had to be left out because an earlier one failed."""
    seen = {finding.check.partition(".")[0] for finding in findings}
    return [step for step in STEPS if step not in seen]
