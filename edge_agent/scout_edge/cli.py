"""``scout-edge``: the agent of a store device, on the command line.

Data goes to stdout, logs and errors to stderr. Exit codes: 0 done; 1 a defect, or the doctor found
something; 2 change a setting or the machine; 65 the data must be looked at; 75 try again later.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scout_edge import agent, buffer_cli, config, identity, notify
from scout_edge import status as statuses
from scout_edge.remote import Remote
from scout_shared import __version__, logs, program
from scout_shared import settings as settings_file
from scout_shared.errors import ConfigError, ScoutError, TransientError
from scout_shared.orders import overlay

DEFAULT_CONFIG = Path("/etc/scout/edge.toml")

_DESCRIPTION = """\
The agent of a store device: takes readings and documents from local sources, keeps them
in a file that survives power cuts, and sends them to the hub until the hub confirms them."""

_EPILOG = """\
start here:
  scout-edge enrol --hub https://hub.example --token …   become a device of the fleet
  scout-edge check-config --config edge.toml     is the settings file right?
  scout-edge run --config edge.toml              run the agent
  curl -H 'Content-Type: application/json' http://127.0.0.1:8780/v1/documents \\
    -d '{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00","body":{"total":"12.50"}}'
  scout-edge status --config edge.toml           how much waits, does the hub answer?
  scout-edge doctor --config edge.toml           what is wrong, and what to do about it

exit codes:
  0 done   1 a defect, or the doctor found something   2 change a setting
  65 look at the data   75 try again later"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(arguments)
    return program.exit_code("scout-edge", lambda: int(args.command(args)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scout-edge",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, run: Any, text: str, details: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n{details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        return sub

    def with_config(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument(
            "--config",
            type=Path,
            default=DEFAULT_CONFIG,
            metavar="FILE",
            help=f"settings file (default {DEFAULT_CONFIG})",
        )
        return sub

    with_config(
        command(
            "run",
            _run,
            "run the agent until SIGTERM or Ctrl-C",
            "\nOn a signal the sources close, what is there is sealed and sent for\n"
            "[mqtt] drain_seconds, and the hub is told 'offline'. What is left waits in the file.",
        )
    )
    enrolling = with_config(
        command(
            "enrol",
            _enrol,
            "make this device known to the hub, with a one-time token",
            "\nThe device makes its own password; id, store, zone and broker come from the hub,\n"
            "and are kept beside the buffer. An answer that got lost costs nothing: run it again.\n"
            "Exit code 0: enrolled; 2: mend something, see the hint; 75: try again later.",
        )
    )
    enrolling.add_argument(
        "--hub", required=True, metavar="URL", help="the hub, e.g. https://hub.example"
    )
    enrolling.add_argument(
        "--token", required=True, help="what 'scout-hub device token' printed; serves once"
    )
    enrolling.add_argument(
        "--device", metavar="ID", help="what it shall be called, if the token does not say"
    )
    enrolling.add_argument(
        "--ca", type=Path, metavar="FILE", help="certificates to trust for the hub, PEM"
    )
    enrolling.add_argument(
        "--again", action="store_true", help="new credentials for a device that has some"
    )
    enrolling.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    status = with_config(
        command(
            "status",
            _status,
            "show what waits for the hub",
            "\nAsks the running agent at its door; when none runs, reads the buffer file.\n"
            "Exit code 0: running and the hub answers; 75: not running, or no hub.",
        )
    )
    status.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    examined = with_config(
        command(
            "doctor",
            _doctor,
            "find what is wrong, with the next step for each finding",
            "\nLooks at agent, clock, disk, buffer, local door, network, TLS, broker and hub;\n"
            "changes nothing, and may run beside the agent. Run it as the agent's user.\n"
            "Exit code 0: nothing failed; 1: something did.",
        )
    )
    examined.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    examined.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="N",
        help="how long the hub may take to answer (default 20)",
    )
    drain = with_config(
        command(
            "drain",
            _drain,
            "send all that a stopped agent left behind",
            "\nBefore a device is taken away: stop the agent, then drain. What a metered line may"
            " carry in a day does not hold for it.\n"
            "Exit code 0: the hub has confirmed everything; 75: something is left, try again.",
        )
    )
    drain.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="give up after this time (default 600); what is left stays in the file",
    )
    check = with_config(
        command("check-config", _check_config, "say whether the settings file is right")
    )
    check.add_argument(
        "--json", action="store_true", help="the settings with all defaults, as JSON"
    )
    buffer_cli.add_to(commands, with_config, _load)
    command("version", _version, "print the version")
    return parser


def _load(args: argparse.Namespace) -> config.EdgeSettings:
    settings = config.load(args.config, os.environ)
    logs.configure(json=settings.log.json, level=settings.log.level)
    return settings


def _run(args: argparse.Namespace) -> int:
    document = settings_file.read(args.config)

    def check(body: Mapping[str, Any]) -> config.EdgeSettings:
        return config.check(args.config, overlay(document, body), os.environ)

    buffer = config.buffer_path(document)

    async def run() -> bool:
        remote = Remote(buffer, identity.read(buffer), check)
        settings = remote.begin(check)
        logs.configure(json=settings.log.json, level=settings.log.level)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signalled = asyncio.Event()

        def end() -> None:
            signalled.set()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        manager = notify.Manager.from_environ(os.environ, os.getpid())
        try:
            obeyed = remote if settings.remote.enabled else None
            await agent.Agent(settings, obeyed).run(stop, manager)
        except ScoutError as error:
            if not remote.on_trial:
                raise
            remote.reject(str(error))
            return not signalled.is_set()
        return remote.restart.is_set() and not signalled.is_set()

    if asyncio.run(run()):
        # The same process begins anew: nothing of the old settings is left in it, and a service
        # manager sees no end. Files and sockets are not inherited.
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # ourselves
    return 0


def _enrol(args: argparse.Namespace) -> int:
    from scout_edge import enrolment  # late: as the doctor

    document = settings_file.read(args.config)
    done = enrolment.enrol(
        config.buffer_path(document),
        hub=args.hub,
        token=args.token,
        device_id=args.device or _written_id(document),
        ca=args.ca,
        again=args.again,
    )
    known = done.identity
    if done.clock_is_wrong:
        print(
            f"scout-edge: this device's clock is {done.skew_seconds:+.0f} s off the hub's\n"
            "  hint: check 'timedatectl': without a right clock the times of sales are wrong",
            file=sys.stderr,
        )
    if args.json:
        shown = dataclasses.asdict(known)
        del shown["password"], shown["signing_key"], shown["broker_ca"]
        print(json.dumps({**shown, "clock_skew_seconds": round(done.skew_seconds, 1)}))
    else:
        print(f"enrolled as {known.device_id} in store {known.store_id} ({known.zone})")
    config.load(args.config, os.environ)  # what contradicts it is said now, not at the next start
    return 0


def _written_id(document: Mapping[str, Any]) -> str | None:
    table = document.get("device")
    written = table.get("id") if isinstance(table, Mapping) else None
    return written if isinstance(written, str) else None


def _drain(args: argparse.Namespace) -> int:
    settings = _load(args)
    left = asyncio.run(agent.drain(settings, args.timeout))
    if left:
        raise TransientError(
            f"{left} records are not confirmed by the hub after {args.timeout:g} s",
            f"they are safe in {settings.buffer.path}; try again when the hub is reachable",
        )
    print("all records are confirmed by the hub")
    return 0


def _status(args: argparse.Namespace) -> int:
    settings = _load(args)
    shown = statuses.ask(settings) or statuses.read_file(settings)
    if args.json:
        print(json.dumps(shown))
    else:
        print(statuses.text(shown))
    return 0 if shown.get("hub_answers") else TransientError.exit_code


def _doctor(args: argparse.Namespace) -> int:
    from scout_edge import doctor  # late: the agent itself does not need it in memory

    settings = _load(args)
    found = []
    for finding in doctor.examine(settings, seconds=args.seconds):
        found.append(finding)
        if not args.json:
            print(finding, flush=True)
    failed = sum(finding.level == doctor.FAIL for finding in found)
    warned = sum(finding.level == doctor.WARN for finding in found)
    left_out = doctor.not_tried(found)
    if args.json:
        shown = {
            "device_id": settings.device.id,
            "failed": failed,
            "warned": warned,
            "not_tried": left_out,
            "findings": [dataclasses.asdict(finding) for finding in found],
        }
        print(json.dumps(shown))
    else:
        rest = f"; not tried because of it: {', '.join(left_out)}" if left_out else ""
        print(f"\n{failed} failed, {warned} to look at, {len(found)} findings{rest}")
    return 1 if failed else 0


def _check_config(args: argparse.Namespace) -> int:
    from scout_edge.forwarder import tls_context

    settings = _load(args)
    tls_context(settings.mqtt)
    folder = settings.buffer.path.parent
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigError(
            f"[buffer] path: {existing} cannot be written to by this user",
            "choose another folder, or run as the user of the service",
        )
    if args.json:
        shown = config.as_dict(settings)
        print(json.dumps(shown, default=str))
    else:
        device = settings.device
        print(f"{args.config}: right. Device {device.id} in store {device.store} ({device.zone})")
    return 0


def _version(_args: argparse.Namespace) -> int:
    print(f"scout-edge {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
