"""One schedule: start the agents, feed them, drive the faults, mend everything, judge.

All in one thread but for the feeders and the links, because the kernel ties a child's life to the
thread that started it.
"""

from __future__ import annotations

import heapq
import itertools
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from scout_edge.room import DROP_OLDEST, THIN
from tests.system.chaos import account, faults
from tests.system.chaos.account import Held, Verdict
from tests.system.chaos.box import Box
from tests.system.chaos.central import Central, reap
from tests.system.chaos.feeder import Feeder, Told, joined
from tests.system.chaos.link import Link, Network
from tests.system.chaos.plan import Plan

_SETTLE_SECONDS = 40.0
_TICK_SECONDS = 0.02


class Device:
    """A device and all boxes that it has in its life."""

    def __init__(self, schedule: Schedule, number: int) -> None:
        self.plan = schedule.plan.devices[number]
        self.fate = schedule.plan.fate(number)
        self._clocked = any(f.kind == "clock" and f.device == number for f in schedule.plan.faults)
        self.id = f"{schedule.name}-d{number + 1}"
        self.boxes: list[Box] = []
        """The present one last."""
        self.told: list[Told] = []
        self.feeders: list[Feeder] = []
        """All that ever fed it."""
        self.deliveries: list[tuple[Box, str]] = []
        """What must be brought to the hub by hand at the end."""
        self._schedule = schedule

    def new_box(self) -> Box:
        """A box of this device that does not run yet."""
        schedule, label = self._schedule, f"{self.id}{'abcdef'[len(self.boxes)]}"
        link = schedule.link(label)
        box = Box(
            label,
            link,
            schedule.folder / label,
            device_id=self.id,
            store=schedule.store,
            plan=self.plan,
            faketime=schedule.faketime if self._clocked else "",
            small_disk=self.fate == "disk_full",
        )
        self.boxes.append(box)
        return box

    def feed(self, box: Box) -> None:
        """A feeder for it, with ids of its own."""
        schedule = self._schedule
        label = f"{box.label}{len(self.feeders) + 1}"
        feeder = Feeder(
            label,
            schedule.store,
            box.door,
            seed=schedule.plan.seed + len(self.feeders),
            pause_seconds=self.plan.pause_seconds,
            inbox=box.inbox,
            journal=box.folder / f"told-{label}.txt",
        )
        self.feeders.append(feeder)
        self.told.append(feeder.told)
        box.feeder = feeder
        feeder.start()

    def leave(self, box: Box) -> None:
        """Its feeder leaves: what it was not told OK is never given again elsewhere."""
        if box.feeder is not None:
            box.feeder.leave()
            box.feeder = None

    def running(self) -> list[Box]:
        """Boxes whose agent runs or is about to."""
        return [box for box in self.boxes if not box.held and not box.retired]

    def by_hand(self, box: Box, how: str) -> None:
        """At the end the box's buffer is brought to the hub: by ``drain`` or ``export``."""
        self.deliveries.append((box, how))

    def tell(self, text: str) -> None:
        """Remember it for a failure."""
        self._schedule.tell(text)


@dataclass(slots=True)
class Outcome:
    """How a schedule ended."""

    plan: Plan
    verdict: Verdict
    seconds: float
    story: list[str] = field(default_factory=list)


class Schedule:
    """One plan on a living central."""

    def __init__(
        self, plan: Plan, central: Central, network: Network, folder: Path, faketime: str
    ) -> None:
        self.plan, self.central, self.folder, self.faketime = plan, central, folder, faketime
        # The central lives on: a plan that is run twice has other devices the second time.
        self.name = folder.name
        self.store = f"store-{self.name}"
        self._network = network
        self._links: list[Link] = []
        self._began = time.monotonic()
        self._story: list[str] = []
        folder.mkdir(parents=True)
        self.devices = [Device(self, i) for i in range(len(plan.devices))]

    def tell(self, text: str) -> None:
        """Remember it for a failure."""
        self._story.append(f"{time.monotonic() - self._began:6.2f} s {text}")

    def link(self, label: str) -> Link:
        """A way to the broker."""
        link = Link(self._network, self.central.broker_port, hash_of(self.plan.seed, label))
        self._links.append(link)
        return link

    def run(self) -> Outcome:
        """From the first process to the judgement; nothing is left but files."""
        started = time.monotonic()
        verdict = Verdict()
        try:
            self._start()
            self._drive()
            try:
                verdict.wrong += self._settle()
            except AssertionError as error:
                verdict.wrong.append(str(error))  # what the hub has by then is judged all the same
            verdict.add(self._judge())
        except (AssertionError, OSError, subprocess.SubprocessError, psycopg.Error) as error:
            verdict.wrong.append(f"{type(error).__name__}: {error}")
        finally:
            for device in self.devices:
                for box in device.boxes:
                    box.close()
            for link in self._links:
                link.close()
        seconds = time.monotonic() - started
        return Outcome(self.plan, verdict, seconds, self._story)

    def _start(self) -> None:
        for device in self.devices:
            device.new_box().let_go()
        present = [device.boxes[-1] for device in self.devices]
        self._until(self._central_ready, 60, "database, broker and hub serve")
        self._until(lambda: all(b.status() is not None for b in present), 30, "the agents answer")
        for device, box in zip(self.devices, present, strict=True):
            device.feed(box)

    def _drive(self) -> None:
        """Each fault at its time, until all have ended and load flowed long enough."""
        self._began = began = time.monotonic()
        order = itertools.count()
        due: list[tuple[float, int, str, faults.Steps]] = [
            (fault.at_seconds, next(order), fault.kind, faults.steps(self, fault))
            for fault in self.plan.faults
        ]
        heapq.heapify(due)
        while due or time.monotonic() - began < self.plan.seconds:
            now = time.monotonic() - began
            while due and due[0][0] <= now:
                _, number, kind, steps = heapq.heappop(due)
                self.tell(kind)
                pause = next(steps, None)
                if pause is not None:
                    heapq.heappush(due, (now + pause, number, f"{kind} goes on", steps))
            self._mind()
            time.sleep(_TICK_SECONDS)

    def _settle(self) -> list[str]:
        """Everything serves again; what waits is delivered; returns what went wrong."""
        self.tell("settles")
        for device in self.devices:
            for box in device.boxes:
                box.cut_off = False
                box.link.mend()
        self._until(self._central_ready, 90, "database, broker and hub serve again")
        for device in self.devices:
            for feeder in device.feeders:
                feeder.rest()
        feeders = [feeder for device in self.devices for feeder in device.feeders]
        self._until(
            lambda: not any(f.is_alive() for f in feeders), _SETTLE_SECONDS, "feeders are told OK"
        )
        wrong = joined(feeders, 5)
        self.tell("feeders have ended")
        boxes = [box for device in self.devices for box in device.running()]
        self._until(lambda: all(map(_empty, boxes)), _SETTLE_SECONDS, lambda: _waiting(boxes))
        self.tell("buffers are empty")
        for box in boxes:
            box.held = True
            if (code := box.stop()) != 0:
                wrong.append(f"{box.label}: the agent ended with {code} when it was stopped")
        wrong += [
            f"{box.label}: the agent ended by itself with {code}"
            for device in self.devices
            for box in device.boxes
            for code in box.ends
        ]
        for device in self.devices:
            for box, how in device.deliveries:
                wrong += self._deliver(box, how)
        return wrong

    def _deliver(self, box: Box, how: str) -> list[str]:
        self.tell(f"{box.label}: {how}")
        if how == "drain":
            done = box.run("drain", "--timeout", "30")
            return [] if done.returncode == 0 else [f"{box.label}: drain: {done.stderr[-500:]}"]
        stick = box.folder / "stick.scout"
        done = box.run("buffer", "export", str(stick))
        if done.returncode:
            return [f"{box.label}: export: {done.stderr[-500:]}"]
        done = self.central.hub("import", str(stick))
        if done.returncode:
            return [f"{box.label}: import: {done.stderr[-500:]}"]
        return []

    def _judge(self) -> Verdict:
        """What the hub has, once it does not change any more."""
        self.tell("judged")
        verdict = Verdict()
        with self.central.connect() as connection:
            for device in self.devices:
                verdict.add(self._judged(connection, device))
            found = account.landed_wrong(connection, [device.id for device in self.devices])
            verdict.wrong += [f"verify_landed: {text}" for text in found]
        self.tell("done")
        return verdict

    def _judged(
        self, connection: psycopg.Connection[tuple[object, ...]], device: Device
    ) -> Verdict:
        reasons = set()
        if device.fate == "disk_full":
            reasons = {DROP_OLDEST, THIN} & {device.plan.readings_at_cap}
        if device.fate in ("corrupt", "truncate"):
            reasons = {"damaged"}
        held: Held = account.held_of(connection, device.id)
        return account.judge(
            device.id,
            device.told,
            held,
            reasons=reasons,
            extent_unknown=any(not report["counts_agree"] for report in _reports(device)),
        )

    # -- waiting --------------------------------------------------------------------------------

    def _mind(self) -> None:
        self.central.mind()
        boxes = [box for device in self.devices for box in device.boxes]
        for box in boxes:
            box.mind()
        running = {box.process.pid for box in boxes if box.process is not None}
        reap(running | self.central.pids())

    def _central_ready(self) -> bool:
        if not self.central.ready():
            return False
        try:
            self.central.connect().close()
        except psycopg.Error:
            return False
        return True

    def _until(
        self, condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]
    ) -> None:
        """Mind all processes until then."""
        deadline = time.monotonic() + seconds
        while True:
            self._mind()
            if condition():
                return
            if time.monotonic() > deadline:
                text = what if isinstance(what, str) else what()
                raise AssertionError(f"not within {seconds:g} s: {text}")
            time.sleep(_TICK_SECONDS)


def hash_of(seed: int, label: str) -> int:
    """A seed for a part, the same in each process."""
    return sum(label.encode()) * 1_000_003 + seed


def _empty(box: Box) -> bool:
    if not box.followed():  # first: what is read after this stands in the backlog
        return False
    status = box.status()
    return (
        status is not None
        and status["backlog_records"] == 0
        and not any(box.card.glob("*.recovered-*"))
        and not any(box.card.glob("*.forked-*"))
    )


def _waiting(boxes: list[Box]) -> str:
    """Which agents still have something, for a failure."""
    texts = []
    for box in boxes:
        status = box.status()
        if not _empty(box):
            shown = status and {
                key: status.get(key)
                for key in ("backlog_records", "connected", "hub_answers", "credit", "last_error")
            }
            what = "records that the hub did not confirm" if box.followed() else "unread lines"
            texts.append(f"{box.label} has {what}: {shown}")
    return "; ".join(texts)


def _reports(device: Device) -> list[dict[str, Any]]:
    """What the device found in its damaged files."""
    return [
        json.loads(path.read_text("ascii"))
        for box in device.boxes
        for path in box.card.glob("*.damaged-*.json")
    ]
