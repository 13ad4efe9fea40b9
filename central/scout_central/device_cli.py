"""``scout-hub device``: tokens, states and history of devices, for those who sit at the hub.

Not its job: what the commands do (``fleet``); the API offers the same to those who do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
import tomllib
from collections.abc import Callable
from typing import Any

from scout_central import config, database
from scout_central.fleet.door import FleetDoor
from scout_shared.errors import ConfigError
from scout_shared.fleet import (
    CommandRequest,
    ConfigRequest,
    StateRequest,
    TokenAnswer,
    TokenRequest,
)
from scout_shared.orders import COMMANDS

Show = Callable[..., None]

LIST = """
select
    devices.device_id,
    devices.store_id,
    devices.state,
    exists (
        select from scout_secrets.device_credentials as credentials
        where credentials.device_id = devices.device_id
    ) as enrolled,
    devices.version,
    devices.hello ->> 'python' as python,
    devices.hello ->> 'system' as system,
    devices.hello ->> 'config_version' as config_version,
    devices.last_seen_at
from metadata.devices
where %(state)s::text is null
    or devices.state = %(state)s
order by
    array_position(array['pending', 'maintenance', 'active', 'retired'], devices.state),
    devices.device_id
"""
_COLUMNS = (
    "device_id", "store_id", "state", "enrolled", "version", "python", "system",
    "config_version", "last_seen_at",
)  # fmt: skip


def add_to(commands: Any, show: Show) -> None:
    """Add the command ``device`` with its actions; ``show`` prints records."""
    parser = commands.add_parser(
        "device",
        help="enrol, look at, replace and retire devices",
        description="Identity and life cycle of devices. What is done here stands in the device's "
        "history with your name.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, function: Any, about: str, more: str = "") -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}. {more}"
        )
        made.set_defaults(command=function, show=show)
        made.add_argument("--json", action="store_true", help="for scripts: JSON on stdout")
        return made

    token = action(
        "token",
        _token,
        "make a one-time token that admits one device to a store",
        "It is shown once. On the device: scout-edge enrol --hub URL --token TOKEN",
    )
    token.add_argument("--store", required=True, metavar="ID", help="where the device will stand")
    token.add_argument("--device", metavar="ID", help="its id; without it the hub makes one")
    _token_options(token)

    listed = action("list", _list, "list the devices, those that wait for you first")
    listed.add_argument(
        "--state", choices=("pending", "active", "maintenance", "retired"), help="only these"
    )
    _device(action("show", _show_device, "show a device's state, bindings and history"))

    activate = _device(
        action("activate", _state("active"), "let a pending device in, or end its maintenance")
    )
    activate.add_argument("--store", metavar="ID", help="where it stands, if not where it says")
    _reason(activate)
    _reason(
        _device(
            action(
                "maintenance",
                _state("maintenance"),
                "expect nothing of a device for a while",
                "Its data lands; its silence is nobody's alarm.",
            )
        )
    )
    _reason(
        _device(
            action(
                "retire",
                _state("retired"),
                "end a device's credentials and its binding to the store",
                "What it sent late still lands, and raises an incident.",
            )
        )
    )
    configure = _device(
        action(
            "configure",
            _configure,
            "order settings that the device tries, and keeps when it is healthy with them",
            "They replace what was ordered before; without --set the device's own file counts.",
        )
    )
    configure.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        dest="wanted",
        help="e.g. mqtt.heartbeat_seconds=30, or sources.fridge.interval_seconds=60 (repeatable)",
    )
    _reason(configure)
    ordered = _device(
        action("command", _command, "order a device to do something once, now or soon")
    )
    ordered.add_argument("what", choices=COMMANDS)
    ordered.add_argument(
        "--minutes", type=float, default=10.0, help="how long it may wait (default 10)"
    )
    replace = _device(
        action(
            "replace",
            _replace,
            "make a token for a new box that takes over a device's store",
            "When the new box enrols, the old device is retired and the new one is bound to its "
            "store, in one transaction.",
        )
    )
    replace.add_argument("--token", action="store_true", help="make the token (the default)")
    replace.add_argument("--new", metavar="ID", dest="device", help="id of the new device")
    _token_options(replace)


def _device(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("device_id", metavar="DEVICE")
    return parser


def _reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, help="why; stands in its history")


def _token_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hours", type=float, default=24.0, help="how long it lives (default 24)")
    parser.add_argument(
        "--zone", metavar="ZONE", help="of the store, e.g. Asia/Manila; default: as its devices say"
    )


def _token(options: argparse.Namespace, settings: config.Settings) -> int:
    asked = TokenRequest(
        store_id=options.store, device_id=options.device, zone=options.zone, hours=options.hours
    )
    return _print_token(options, _door(settings).new_token(asked, by=_author()))


def _replace(options: argparse.Namespace, settings: config.Settings) -> int:
    door = _door(settings)
    asked = TokenRequest(
        store_id=door.find(options.device_id).store_id,
        device_id=options.device,
        replaces=options.device_id,
        zone=options.zone,
        hours=options.hours,
    )
    return _print_token(options, door.new_token(asked, by=_author()))


def _print_token(options: argparse.Namespace, made: TokenAnswer) -> int:
    if options.json:
        print(json.dumps(dataclasses.asdict(made), default=str))
        return 0
    who = f"device {made.device_id}" if made.device_id else "one device"
    instead = f" instead of {made.replaces}" if made.replaces else ""
    print(f"# Admits {who} to store {made.store_id} ({made.zone}){instead}, once,")
    print(f"# until {made.expires_at:%Y-%m-%d %H:%M} UTC. It is not shown again.")
    print(made.token)
    return 0


def _list(options: argparse.Namespace, settings: config.Settings) -> int:
    with (
        database.connect(settings.database_dsn(), application="scout-device") as connection,
        database.translated(),
    ):
        rows = connection.execute(LIST, {"state": options.state}).fetchall()
    options.show([dict(zip(_COLUMNS, row, strict=True)) for row in rows], as_json=options.json)
    return 0


def _show_device(options: argparse.Namespace, settings: config.Settings) -> int:
    life = dataclasses.asdict(_door(settings).life(options.device_id))
    if options.json:
        print(json.dumps(life, default=str))
        return 0
    for title, records in (
        ("", [life["device"]]),
        ("bindings", life["bindings"]),
        ("configurations", life["configurations"]),
        ("commands", [{**c, "result": "see --json"} for c in life["commands"]]),
        ("history", life["events"]),
    ):
        print(f"\n{title}:" if title else "", end="\n" if title else "")
        options.show(list(records), as_json=False)
    return 0


def _configure(options: argparse.Namespace, settings: config.Settings) -> int:
    asked = ConfigRequest(settings=_tables(options.wanted), reason=options.reason)
    made = _door(settings).configure(options.device_id, asked, by=_author())
    if options.json:
        print(json.dumps(dataclasses.asdict(made)))
    else:
        print(f"version {made.version} is on its way; see: scout-hub device show {made.device_id}")
    return 0


def _tables(wanted: list[str]) -> dict[str, dict[str, Any]]:
    """``mqtt.heartbeat_seconds=30`` → tables; a value is TOML, or a text."""
    made: dict[str, dict[str, Any]] = {}
    for one in wanted:
        path, equals, text = one.partition("=")
        *tables, key = path.split(".")
        if not equals or not tables:
            raise ConfigError(f"--set {one!r} is no setting", "write it as table.key=value")
        table: dict[str, Any] = made
        for name in tables:
            table = table.setdefault(name, {})
        try:
            table[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = text
    return made


def _command(options: argparse.Namespace, settings: config.Settings) -> int:
    asked = CommandRequest(command=options.what, minutes=options.minutes)
    made = _door(settings).command(options.device_id, asked, by=_author())
    if options.json:
        print(json.dumps(dataclasses.asdict(made)))
    else:
        print(f"ordered; its answer: scout-hub device show {made.device_id} --json")
    return 0


def _state(state: str) -> Callable[[argparse.Namespace, config.Settings], int]:
    def run(options: argparse.Namespace, settings: config.Settings) -> int:
        asked = StateRequest(
            state=state, reason=options.reason, store_id=getattr(options, "store", None)
        )
        done = _door(settings).change(options.device_id, asked, by=_author())
        if options.json:
            print(json.dumps(dataclasses.asdict(done)))
        else:
            print(f"device {done.device_id} of store {done.store_id} is {done.state}")
        return 0

    return run


def _door(settings: config.Settings) -> FleetDoor:
    return FleetDoor(settings.database_dsn(), settings.broker, settings.mqtt)


def _author() -> str:
    """Who sits at the hub's machine."""
    return f"{getpass.getuser()} at the hub"
