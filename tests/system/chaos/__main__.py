"""``python -m tests.system.chaos --schedules N --seed S``: see the package."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from scout_demo.ports import listens
from tests.system.chaos import central, plan
from tests.system.chaos.account import Verdict
from tests.system.chaos.box import Machine, machine
from tests.system.chaos.link import Network
from tests.system.chaos.schedule import Outcome, Schedule

_SHOWN = 12  # of each kind of finding


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the schedules; 0: nothing lost, nothing doubled, everything declared."""
    args = _parser().parse_args(arguments)
    wanted = frozenset(filter(None, args.only.split(",")))
    if unknown := wanted - set(plan.CLASSES):
        print(f"not known: {', '.join(unknown)}; known: {', '.join(plan.CLASSES)}", file=sys.stderr)
        return 2
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, _end)
    central.adopt_orphans()
    seed = args.seed if args.seed is not None else random.randrange(1 << 32)
    can = machine()
    possible = _possible(can)
    if wanted:
        possible &= wanted
    broker = args.broker or ("mosquitto" if central.mosquitto() else "iotcore")
    print(f"seed {seed}, broker {broker}; SEED={seed} repeats this run", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="scout-chaos-", dir="/tmp"))
    folder.chmod(0o755)  # PostgreSQL runs as another user than root
    failed = done = 0
    total, kinds = Verdict(), Counter[str]()
    ports: list[int] = []
    started = time.monotonic()
    try:
        with central.running(folder, broker) as living, Network() as network:
            ports = [living.database_port, living.broker_port, living.api_port]
            for number in range(args.schedules):
                one = plan.make(plan.seed_of(seed, number), wanted).only(possible)
                path = folder / f"s{number + 1}"
                outcome = Schedule(one, living, network, path, can.faketime).run()
                _show(number + 1, args, outcome)
                if args.verbose:
                    print("\n".join(outcome.story))
                kinds.update(fault.kind for fault in one.faults)
                done += 1
                total.add(outcome.verdict)
                if not outcome.verdict.right:
                    failed += 1
                    _explain(outcome, path, folder / "logs", args.only)
                elif not args.keep:
                    shutil.rmtree(path)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        failed += 1
    left = central.leftovers()
    listening = [port for port in ports if listens(port)]
    if left or listening:
        print(f"left behind: processes {left}, ports {listening}")
        failed += 1
    if failed or args.keep:
        print(f"files are kept in {folder}")
    else:
        shutil.rmtree(folder)
    _sum_up(done, failed, kinds, total, time.monotonic() - started)
    return 1 if failed else 0


def _end(_signal: int, _frame: object) -> NoReturn:
    # A second one must not interrupt the clearing up that the first one began.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, help="repeats a run; default: a new one")
    parser.add_argument(
        "--only", default="", metavar="CLASS,…", help="only faults of these classes"
    )
    parser.add_argument("--broker", choices=("mosquitto", "iotcore"), help="default: what is there")
    parser.add_argument("--verbose", action="store_true", help="tell each schedule's story")
    parser.add_argument("--keep", action="store_true", help="keep all files and logs")
    return parser


def _possible(can: Machine) -> frozenset[str]:
    possible = set(plan.CLASSES)
    if not can.faketime:
        possible.discard("clock")
        print("left out: clock (libfaketime is not installed: Debian package faketime)")
    if not can.mounts:
        possible.discard("disk_full")
        print("left out: disk_full (a small file system can only be mounted by root)")
    return frozenset(possible)


def _show(number: int, args: argparse.Namespace, outcome: Outcome) -> None:
    verdict, one = outcome.verdict, outcome.plan
    kinds = Counter(fault.kind for fault in one.faults)
    unknown = f", {verdict.unknown_extent} unknown" if verdict.unknown_extent else ""
    text = ", ".join(f"{kind}{f' ×{n}' if n > 1 else ''}" for kind, n in sorted(kinds.items()))
    print(
        f"{number:4d}/{args.schedules} {'ok  ' if verdict.right else 'FAIL'} seed {one.seed}"
        f" {outcome.seconds:.1f} s, {len(one.devices)} devices, {verdict.told} told OK,"
        f" {verdict.given_up} given up{unknown}: {text or 'no fault'}",
        flush=True,
    )


def _explain(outcome: Outcome, path: Path, logs: Path, only: str) -> None:
    verdict = outcome.verdict
    print(f"the plan: {outcome.plan}\nwhat happened:")
    print("\n".join(f"  {line}" for line in outcome.story))
    for name, found in (
        ("lost", verdict.lost),
        ("doubled", verdict.doubled),
        ("wrong", verdict.wrong),
    ):
        for text in found[:_SHOWN]:
            print(f"  {name}: {text}")
        if len(found) > _SHOWN:
            print(f"  {name}: … {len(found)} in all")
    print(f"logs: {path} and {logs}")
    chosen = f" ONLY={only}" if only else ""
    print(f"this schedule alone: make chaos N=1 SEED={outcome.plan.seed}{chosen}", flush=True)


def _sum_up(
    schedules: int,
    failed: int,
    kinds: Counter[str],
    total: Verdict,
    seconds: float,
) -> None:
    print(", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    unknown = (
        f", {total.unknown_extent} in files that could not say what they held (the hub shows"
        f" {total.seen} of them as missing)"
        if total.unknown_extent
        else ""
    )
    declared = "all declared" if not failed else f"{failed} schedules failed"
    print(
        f"{schedules} schedules, {kinds.total()} faults, {total.told} records told OK:"
        f" {len(total.lost)} lost, {len(total.doubled)} doubled, {total.given_up} given up"
        f"{unknown}, {declared}; {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
