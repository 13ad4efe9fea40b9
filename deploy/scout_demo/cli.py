"""``python -m scout_demo``: the arguments of the demo.

Progress and messages go to stdout; with ``--json`` to stderr, and stdout has one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from scout_demo.account import Account, equation
from scout_demo.demo import Demo, DemoOptions
from scout_demo.folder import default_path
from scout_demo.ports import WantedPorts
from scout_demo.view import PlainView, View, open_view
from scout_shared import program
from scout_shared.errors import ScoutError

_DESCRIPTION = """\
The whole of Scout on this machine, on real sales. Starts PostgreSQL, an MQTT broker, the hub,
an agent for each of eight stores and the web console, each as a process of its own, and replays
the Complete Journey data set (dunnhumby; for educational use) through the agents, as tills would.
Nothing is invented: what the data set does not have is shown as unknown."""

_EPILOG = """\
examples:
  make demo                                           look around; Ctrl-C stops everything
  make demo ARGS="--speed 60"                         a minute a second, as a shop feels it
  make demo ARGS="--once --transactions 60000"        unattended; exit 0: nothing is missing
  make demo ARGS="--once --stores all"                all 1,469,307 lines of 457 stores
  make demo ARGS="--fresh"                            forget everything, begin again

try to break it: kill -9 any of its processes; it goes on, and the account still adds up.
A second start goes on where the first one was. To remove the demo, delete its data directory.

exit codes:
  0 all is well   1 something is missing or was left behind   2 change a setting
  65, 75 see the message   130 interrupted before --once was through"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    args = _parser().parse_args(arguments)
    view = PlainView(sys.stderr) if args.json else open_view()
    once = args.once
    options = DemoOptions(
        data_dir=args.data_dir or default_path(),
        transactions=args.transactions,
        speed=args.speed or (float("inf") if once else 3600.0),
        all_stores=args.stores == "all",
        at_once=args.agents,
        once=once,
        console=args.console if args.console is not None else not once,
        fresh=args.fresh,
        ports=WantedPorts(
            api=args.api_port,
            console=args.console_port,
            database=args.database_port,
            broker=args.broker_port,
            door=args.door_port,
        ),
    )
    return program.exit_code("scout-demo", lambda: _run(Demo(options, view), view, args.json))


def _run(demo: Demo, view: View, as_json: bool) -> int:
    try:
        code = demo.run()
    except ScoutError:
        view.close()  # before the message, which would else be drawn over
        raise
    if demo.account is not None:
        if as_json:
            print(json.dumps(demo.account.as_dict()))
        else:
            _print(demo.account)
    return code


def _print(account: Account) -> None:
    print()
    for row in account.equation:
        print(equation(row))
    print(
        f"lines: sold {account.sold.lines:,} in {account.sold.baskets:,} baskets = "
        f"silver {account.silver_lines or 0:,} + quarantined {account.quarantined_lines:,}"
    )
    print()
    print(f"{'table':<32}{'rows':>12}   age of the newest row")
    for line in account.tables:
        rows = "unknown" if line.rows is None else f"{line.rows:,}"
        age = line.why_empty or "-"
        if line.age_seconds is not None:
            age = f"{line.age_seconds:.0f} s"
        print(f"{line.dataset:<32}{rows:>12}   {age}")
    print()
    for reason in account.missing:
        print(f"MISSING: {reason}")
    if not account.missing:
        print("Nothing is missing: everything that the tills were told OK has reached gold.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scout_demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--once",
        action="store_true",
        help="replay, wait until everything has reached gold, give an account, stop; "
        "exit code 0 only if nothing is missing",
    )
    add(
        "--transactions",
        type=_positive,
        metavar="N",
        help="sell at least N lines in all, whole baskets only (default: all of them)",
    )
    add(
        "--speed",
        type=_speed,
        metavar="X",
        help="times real time, or max (default: 3600, an hour a second; with --once: max)",
    )
    add("--stores", choices=("8", "all"), default="8", help="the busiest eight (default), or all")
    add(
        "--agents",
        type=_positive,
        default=8,
        metavar="N",
        help="agents that run at the same time (default 8)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help=f"where everything is kept (default {default_path()})",
    )
    add("--fresh", action="store_true", help="delete what an earlier demo kept there, first")
    console = parser.add_mutually_exclusive_group()
    console.add_argument(
        "--no-console",
        dest="console",
        action="store_false",
        default=None,
        help="without the web console (as with --once)",
    )
    console.add_argument(
        "--console", action="store_true", default=None, help="with it, even with --once"
    )
    add("--json", action="store_true", help="the account as one JSON object on stdout")
    ports = parser.add_argument_group(
        "ports", "All on 127.0.0.1. One that is in use is replaced by the next free one; 0: any."
    )
    wanted = WantedPorts()
    for name, default, what in (
        ("api", wanted.api, "the hub's HTTP API"),
        ("console", wanted.console, "the web console"),
        ("database", wanted.database, "PostgreSQL"),
        ("broker", wanted.broker, "the MQTT broker"),
        ("door", wanted.door, "the first agent's HTTP door; the others follow"),
    ):
        ports.add_argument(
            f"--{name}-port",
            type=_port,
            default=default,
            metavar="PORT",
            help=f"{what} (default {default})",
        )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _speed(text: str) -> float:
    if text == "max":
        return float("inf")
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to 65535")
    return number
