"""What each fault does: a generator that yields how many seconds pass until its next step.

Steps of different faults interleave; each leaves things so that any other may happen meanwhile.
What must be delivered by hand (the buffer of a box that went out of service) is left to the end of
the schedule, when everything serves again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tests.system.chaos import central
from tests.system.chaos.box import Box
from tests.system.chaos.plan import Fault

if TYPE_CHECKING:
    from tests.system.chaos.schedule import Device, Schedule

Steps = Iterator[float]


def steps(schedule: Schedule, fault: Fault) -> Steps:
    """The fault, step by step."""
    if fault.device < 0:
        return _CENTRAL[fault.kind](schedule, fault)
    return _DEVICE[fault.kind](schedule.devices[fault.device], fault)


# -- what all share -------------------------------------------------------------------------------


def _kill(name: str) -> Callable[[Schedule, Fault], Steps]:
    def kill(schedule: Schedule, fault: Fault) -> Steps:
        schedule.central.kill(name, fault.seconds)
        yield fault.seconds

    return kill


_CENTRAL: dict[str, Callable[[Schedule, Fault], Steps]] = {
    "kill_hub": _kill(central.HUB),
    "hub_away": _kill(central.HUB),
    "kill_broker": _kill(central.BROKER),
    "kill_database": _kill(central.DATABASE),
}


# -- one device -----------------------------------------------------------------------------------


def _kill_agent(device: Device, fault: Fault) -> Steps:
    for box in device.running():
        box.kill()
        box.let_go(fault.seconds)
    yield fault.seconds


def _clock(device: Device, fault: Fault) -> Steps:
    for box in device.boxes:
        box.set_clock(fault.value)
    yield fault.seconds
    if fault.seconds:
        for box in device.boxes:
            box.set_clock(0.0)


def _link(change: Callable[[Box, float], None]) -> Callable[[Device, Fault], Steps]:
    def worsen(device: Device, fault: Fault) -> Steps:
        boxes = list(device.boxes)
        for box in boxes:
            change(box, fault.value)
        yield fault.seconds
        for box in boxes:
            if not box.cut_off:
                box.link.mend()

    return worsen


def _slow(box: Box, value: float) -> None:
    box.link.quality.bytes_per_second = value


def _repeat(box: Box, value: float) -> None:
    box.link.quality.repeat_ratio = value


def _reorder(box: Box, value: float) -> None:
    box.link.quality.reorder_ratio = value


def _forget(box: Box, value: float) -> None:
    box.link.quality.forget_ratio = value


def _cut_off(box: Box) -> None:
    box.cut_off = True
    box.link.cut()


def _back(box: Box) -> None:
    box.cut_off = False
    box.link.mend()


def _disk_full(device: Device, fault: Fault) -> Steps:
    (box,) = device.boxes
    _cut_off(box)  # nothing is confirmed meanwhile, so that what was accepted needs room
    yield fault.seconds / 2
    box.fill_disk()
    yield fault.seconds
    box.free_disk()
    yield fault.seconds / 4
    _back(box)


def _damage(device: Device, fault: Fault) -> Steps:
    rng = random.Random(fault.value)
    (box,) = device.boxes
    if rng.random() < 0.6:  # with a backlog there is something to lose
        _cut_off(box)
        yield fault.seconds * 2
    device.leave(box)
    box.hold(kill=rng.random() < 0.5)
    device.tell(f"{box.label}: {box.damage(fault.kind, int(fault.value))}")
    yield 0.1
    _back(box)
    box.let_go()
    device.feed(box)


def _swap(device: Device, fault: Fault) -> Steps:
    """The old box goes with a backlog; a new one takes over; the backlog comes by hand."""
    rng = random.Random(fault.value)
    (old,) = device.boxes
    _cut_off(old)
    yield fault.seconds
    device.leave(old)
    old.hold(kill=rng.random() < 0.5)
    _back(old)
    new = device.new_box()
    new.let_go()
    device.feed(new)
    device.by_hand(old, rng.choice(("drain", "export")))


def _clone(device: Device, fault: Fault) -> Steps:
    """The card is copied while the agent is off; then both run at once."""
    rng = random.Random(fault.value)
    (box,) = device.boxes
    if rng.random() < 0.6:
        _cut_off(box)
        yield fault.seconds
    device.leave(box)
    box.hold(kill=rng.random() < 0.5)
    twin = device.new_box()
    box.copy_card(twin)
    _back(box)
    for one in (box, twin):
        one.let_go(rng.choice((0.0, 0.0, 0.5)))
        device.feed(one)


def _restore(device: Device, fault: Fault) -> Steps:
    """An image is taken, the agent goes on, dies, and the image is put back.

    What was accepted after the image is on the newer card, which is drained by hand: an export has
    no lineage, and the hub would keep what meets other data under one sequence in quarantine.
    """
    rng = random.Random(fault.value)
    (box,) = device.boxes
    box.hold(kill=rng.random() < 0.5)
    image = device.new_box()
    box.copy_card(image)
    box.let_go()
    if rng.random() < 0.5:  # what comes now is on the newer card only
        _cut_off(box)
    yield fault.seconds + 0.5
    device.leave(box)
    box.hold()
    _back(box)
    image.let_go()
    device.feed(image)
    device.by_hand(box, "drain")


_DEVICE: dict[str, Callable[[Device, Fault], Steps]] = {
    "kill_agent": _kill_agent,
    "clock": _clock,
    "link_cut": _link(lambda box, _: box.link.cut()),
    "link_dead": _link(lambda box, _: box.link.die()),
    "link_slow": _link(_slow),
    "link_repeat": _link(_repeat),
    "link_reorder": _link(_reorder),
    "link_forget": _link(_forget),
    "disk_full": _disk_full,
    "corrupt": _damage,
    "truncate": _damage,
    "swap": _swap,
    "clone": _clone,
    "restore": _restore,
}
