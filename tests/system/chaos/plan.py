"""A seed → the whole plan of one schedule: devices, load, faults and their times.

Pure: the same seed gives the same plan on any machine. A fault that this machine cannot do (no
root, no libfaketime) is taken out afterwards, so that the rest stays as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Collection
from dataclasses import dataclass

CENTRAL = ("kill_hub", "kill_broker", "kill_database", "hub_away")
LINK = ("link_cut", "link_dead", "link_slow", "link_repeat", "link_reorder", "link_forget")
FREE = ("kill_agent", "clock", *LINK, *CENTRAL)
"""May come several times and on top of each other."""
FATES = ("disk_full", "corrupt", "truncate", "swap", "clone", "restore")
"""At most one per device: each decides which copy of its buffer goes on."""
COPIES = ("clone", "restore")
_FULL = ("disk_full", "corrupt", "truncate")
CLASSES = (*FREE, *FATES)

_WEIGHTS = {
    "kill_agent": 6, "clock": 4, "link_cut": 3, "link_dead": 2, "link_slow": 2, "link_repeat": 3,
    "link_reorder": 3, "link_forget": 4, "kill_hub": 3, "kill_broker": 3, "kill_database": 2,
    "hub_away": 1,
}  # fmt: skip
_JUMPS = (-400 * 86400, -86400, -3600, -30, 30, 3600, 86400, 400 * 86400)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    kind: str
    """Of CLASSES."""
    at_seconds: float
    """From the moment when load flows."""
    seconds: float
    """How long it lasts, or how long what was killed stays away."""
    device: int
    """Which device it meets; -1: what all share."""
    value: float = 0.0
    """What else it needs: a jump of the clock, a share, a number that seeds details."""

    def __str__(self) -> str:
        where = f" device {self.device + 1}" if self.device >= 0 else ""
        return (
            f"{self.at_seconds:5.2f} s {self.kind}{where} for {self.seconds:.2f} s ({self.value:g})"
        )


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device and its load."""

    readings_at_cap: str
    seal_seconds: float
    pause_seconds: float
    """Between two requests of its feeder, on average."""
    tails: bool
    """Whether it also follows a JSONL file."""
    zone: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One schedule."""

    seed: int
    seconds: float
    """How long load flows, at least."""
    devices: tuple[DevicePlan, ...]
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The classes of its faults."""
        return frozenset(fault.kind for fault in self.faults)

    def fate(self, device: int) -> str:
        """The fate of a device; empty: none."""
        found = (f.kind for f in self.faults if f.device == device and f.kind in FATES)
        return next(found, "")

    def only(self, wanted: Collection[str]) -> Plan:
        """The plan without the faults of other classes."""
        faults = tuple(fault for fault in self.faults if fault.kind in wanted)
        return dataclasses.replace(self, faults=faults)

    def __str__(self) -> str:
        devices = [
            f"  device {i + 1}: at cap {d.readings_at_cap}, seals after {d.seal_seconds:g} s, a"
            f" request per {d.pause_seconds:g} s{', follows a file' if d.tails else ''}, {d.zone}"
            for i, d in enumerate(self.devices)
        ]
        return "\n".join(
            [
                f"seed {self.seed}, load for {self.seconds:.1f} s",
                *devices,
                *(f"  {f}" for f in self.faults),
            ]
        )


def seed_of(seed: int, number: int) -> int:
    """The seed of schedule ``number``; of the first it is ``seed`` itself, which replays one."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def make(seed: int, wanted: Collection[str] = ()) -> Plan:
    """The plan of a seed.

    Args:
        wanted: at least one fault is of these classes, if any is given.
    """
    rng = random.Random(f"chaos {seed}")
    seconds = rng.uniform(1.5, 3.0)
    count = rng.choice((1, 1, 2, 2, 3))
    fates = [rng.choice(FATES) if rng.random() < 0.55 else "" for _ in range(count)]
    kinds = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=rng.randint(1, 5))
    chosen = sorted(wanted)
    if chosen and not set(chosen) & {*fates, *kinds}:
        one = rng.choice(chosen)
        if one in FATES:
            fates[rng.randrange(count)] = one
        else:
            kinds.append(one)
    faults = [_fault(rng, kind, seconds, rng.randrange(count)) for kind in kinds]
    faults += [_fault(rng, fate, seconds, i) for i, fate in enumerate(fates) if fate]
    devices = tuple(_device(rng, fate) for fate in fates)
    return Plan(seed, seconds, devices, tuple(sorted(faults, key=lambda f: f.at_seconds)))


def _device(rng: random.Random, fate: str) -> DevicePlan:
    policy = rng.choice(("reject", "thin", "drop_oldest"))
    return DevicePlan(
        readings_at_cap=policy,
        seal_seconds=rng.choice((0.05, 0.2, 0.5)),
        # Where a file is damaged or a disk is full, there shall be something in it.
        pause_seconds=min(rng.choice((0.01, 0.03, 0.1)), 0.01 if fate in _FULL else 1.0),
        # A file is read again from where the buffer says: a place that was lost with a page, or
        # that an old copy holds, is read again, and nobody can know it. So not with these.
        tails=rng.random() < 0.5 and fate not in ("corrupt", "truncate", "swap", *COPIES),
        zone=rng.choice(("Asia/Manila", "UTC", "America/New_York")),
    )


def _fault(rng: random.Random, kind: str, seconds: float, device: int) -> Fault:
    at = rng.uniform(0.1, seconds * 0.8)
    lasts = rng.choice((0.0, 0.0, 0.3, 1.0))
    value = float(rng.randrange(1 << 30))
    if kind in LINK:
        lasts = rng.uniform(0.3, 1.5)
        value = rng.choice((0.2, 0.5, 1.0)) if kind != "link_slow" else rng.choice((2e3, 2e4))
    elif kind == "hub_away":
        lasts = rng.uniform(2.0, 4.0)
    elif kind == "clock":
        lasts, value = rng.choice((0.0, 0.7)), float(rng.choice(_JUMPS))
    elif kind in FATES:
        lasts = rng.uniform(0.4, 1.0)
        at = rng.uniform(0.3, seconds * 0.6)
    target = -1 if kind in CENTRAL else device
    return Fault(kind, round(at, 2), round(lasts, 2), target, value)
