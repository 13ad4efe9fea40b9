"""``scout-console``: the screens of Scout. Data goes to stdout, errors to stderr.

Exit codes: 0 done; 1 a defect; 2 change a setting. ``status`` has its own: 0 ok, 1 degraded,
2 down or no access, 3 hub away.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scout_console import config, views
from scout_console.client import HubClient
from scout_console.feed import Feed
from scout_console.values import Clock, Tone
from scout_shared import __version__, program
from scout_shared.errors import ConfigError

_DESCRIPTION = """\
The screens of Scout. They only look: which stores are dark and since when, how old the
data is, whether everything adds up. All three ask the hub over HTTP, none the database."""

_EPILOG = """\
start here:
  export SCOUT_HUB_TOKEN=...        a token for the hub; `scout-hub token` makes one
  scout-console status              one look, in a few lines; the exit code says how it is
  scout-console web                 the console in a browser, http://127.0.0.1:8501
  scout-console tui                 the same in a terminal, also over a slow ssh line

settings, weakest first: built in, the file of --config, the options below.
  [hub] url   [screen] environment, zone, refresh_seconds   [web] host, port

exit codes of status:
  0 ok   1 degraded   2 down, or the token is refused   3 the hub is away"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(arguments)
    return program.exit_code("scout-console", lambda: int(args.command(args)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scout-console",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file, TOML")
    parser.add_argument("--hub", metavar="URL", help="address of the hub's API")
    parser.add_argument("--zone", help="IANA time zone of all times, e.g. Asia/Manila")
    commands = parser.add_subparsers(metavar="command", required=True)

    web = commands.add_parser(
        "web",
        help="serve the console to browsers until SIGTERM or Ctrl-C",
        description="Serve the console to browsers. Everybody who reaches it sees what the token\n"
        "may see: leave it on 127.0.0.1, or put a proxy with a log-in before it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    web.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    web.add_argument("--port", type=int, help="TCP port (default 8501)")
    web.set_defaults(command=_web)

    tui = commands.add_parser(
        "tui",
        help="show the console in this terminal; ? shows the keys, q leaves",
        description="Show the console in this terminal, 80 x 24 or more. It reads only.\n"
        "NO_COLOR=1 is honoured: every state also has a word and a mark.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tui.add_argument("--faults", action="store_true", help="start with faults only")
    tui.set_defaults(command=_tui)

    status = commands.add_parser(
        "status",
        help="say in a few lines how everything is, and leave",
        description="Say how everything is. Exit code 0: ok; 1: degraded; 2: down, or the token\n"
        "is refused; 3: the hub is away.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    status.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    status.set_defaults(command=_status)
    return parser


def _settings(args: argparse.Namespace) -> config.ConsoleSettings:
    found = config.load(args.config)
    hub, screen, web = found.hub, found.screen, found.web
    if args.hub:
        hub = dataclasses.replace(hub, url=args.hub)
    if args.zone:
        screen = dataclasses.replace(screen, zone=args.zone)
    if getattr(args, "host", None):
        web = dataclasses.replace(web, host=args.host)
    if getattr(args, "port", None) is not None:
        web = dataclasses.replace(web, port=args.port)
    if not hub.token:
        raise ConfigError(
            "there is no token for the hub",
            "set the environment variable SCOUT_HUB_TOKEN; `scout-hub token` makes one",
        )
    return config.checked(config.ConsoleSettings(hub=hub, screen=screen, web=web))


def _client(settings: config.ConsoleSettings) -> HubClient:
    hub = settings.hub
    return HubClient(hub.url, hub.token, timeout=hub.timeout_seconds)


def _web(args: argparse.Namespace) -> int:
    from scout_console.web import server

    server.serve(_settings(args))


def _tui(args: argparse.Namespace) -> int:
    settings = _settings(args)
    if importlib.util.find_spec("textual") is None:
        raise ConfigError("textual is not installed", "pip install 'scout-console[tui]'")
    # Textual draws on stderr
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(
            "this is not a terminal", "use `scout-console status` in scripts and pipes"
        )
    from scout_console.tui.app import Terminal

    with _client(settings) as client:
        app = Terminal(
            Feed(client),
            zone=settings.screen.zone,
            environment=settings.screen.environment,
            refresh_seconds=settings.screen.refresh_seconds,
            faults=args.faults,
        )
        app.run()
    return app.return_code or 0


def _status(args: argparse.Namespace) -> int:
    settings = _settings(args)
    clock = Clock(settings.screen.zone)
    with _client(settings) as client:
        feed = Feed(client)
        overview, fleet, tables = feed.overview(), feed.fleet(), feed.tables()
    head = views.headline(overview, fleet, tables, clock)
    if args.json:
        print(json.dumps(_report(head, overview), indent=2))
        return head.exit_code
    since = ""
    if head.since is not None and overview.value is not None:
        since = f" since {clock.moment(head.since, overview.now)}"
    print(f"{head.word}{since}: {head.sentence}")
    if head.ages:
        print(head.ages)
    for concern in head.concerns:
        print(f"- {concern.text}")
    if head.advice:
        print(f"hint: {head.advice}", file=sys.stderr)
    if overview.value is not None:
        print(f"as of {clock.full(overview.value.as_of)} ({clock.zone})")
    return head.exit_code


def _report(head: views.Headline, overview: Any) -> dict[str, Any]:
    """What a script reads; keys are added, never renamed."""
    seen = overview.value
    return {
        "status": head.word,
        "since": head.since.isoformat() if head.since else None,
        "sentence": head.sentence,
        "as_of": seen.as_of.isoformat() if seen else None,
        "adds_up": seen.adds_up if seen else None,
        "devices": dataclasses.asdict(seen.fleet) if seen else None,
        "reconciliation": [
            {
                k: v
                for k, v in dataclasses.asdict(row).items()
                if k not in ("device_id", "store_id", "business_date")
            }
            for row in (seen.reconciliation if seen else ())
        ],
        "quarantine_records": seen.quarantine_records if seen else None,
        "newest_row_at": {
            tile.layer: tile.newest_at.isoformat() if tile.newest_at else None
            for tile in (seen.layers if seen else ())
        },
        "concerns": [
            {
                "incident": concern.tone is Tone.BAD,
                "text": concern.text,
                "since": concern.since.isoformat() if concern.since else None,
            }
            for concern in head.concerns
        ],
        "advice": head.advice,
    }
