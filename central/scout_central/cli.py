"""``scout-hub``: the hub's command line. Data goes to stdout, logs to stderr.

Exit codes: 0 done, 1 failed, 2 a setting or the command line is wrong, 65 the input is wrong,
75 try again later.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scout_central import __version__, config, device_cli
from scout_shared import logs, program
from scout_shared.errors import ConfigError, PermanentError, TransientError

EPILOG = """\
On one machine, without PostgreSQL and broker of your own, in three terminals:

  scout-hub database            PostgreSQL in the data directory
  scout-hub broker              MQTT on 127.0.0.1:1883
  scout-hub run                 ingest, medallion and API in one process

With your own PostgreSQL set SCOUT_DATABASE_DSN; secrets are read from the environment only.
To scale out, start `ingest`, `runner` and `api` alone, as many `ingest` as you like.
"""

RECONCILIATION_COLUMNS = (
    "device_id",
    "store_id",
    "kind",
    "business_date",
    "produced",
    "received",
    "landed",
    "duplicate",
    "quarantined",
    "excluded",
    "given_up",
    "in_transit",
    "pending",
    "remainder",
)
RECONCILE = """
select
    device_id,
    store_id,
    kind,
    business_date,
    produced,
    received,
    landed,
    duplicate,
    quarantined,
    excluded,
    given_up,
    in_transit,
    pending,
    remainder
from metadata.reconciliation
where %(day)s::date is null
    or business_date = %(day)s::date
order by
    device_id,
    kind,
    business_date
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    options = _parser().parse_args(arguments)

    def command() -> int:
        settings = config.load(options.config)
        logs.configure(json=settings.log.json, level=settings.log.level)
        return int(options.command(options, settings))

    return program.exit_code("scout-hub", command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scout-hub",
        description="The Scout hub: takes in what the devices send, and keeps it exactly once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, TOML (default: the built-in ones)"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Any, about: str, more: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}. {more}"
        )
        made.set_defaults(command=function)
        return made

    run = command(
        "run",
        _run,
        "migrate, then ingest, run the medallion and serve the API in one process",
        "SIGTERM stops it within seconds; whatever was not receipted, the devices send again.",
    )
    run.add_argument("--no-migrate", action="store_true", help="do not touch the schema")
    for name, about in (
        ("ingest", "only take in segments and receipt them"),
        ("runner", "only carry bronze to silver, gold and platinum, every few seconds"),
        ("api", "only serve the HTTP API"),
    ):
        command(name, _part, about, "The schema must be there: scout-hub migrate.").set_defaults(
            part=name
        )

    database = command(
        "database",
        _database,
        "run the embedded PostgreSQL in the foreground",
        "Makes its data directory at the first start; listens on 127.0.0.1 only.",
    )
    database.add_argument("--data-dir", type=Path, help="default: database.data_dir")
    database.add_argument("--port", type=int, help="default: database.port")
    broker = command(
        "broker",
        _broker,
        "run the embedded MQTT broker in the foreground",
        "For demo, tests and one machine: it has no access control. Use mosquitto in production.",
    )
    broker.add_argument("--port", type=int, help="default: mqtt.port")

    migrate = command(
        "migrate", _migrate, "bring the database to this program's schema", "Safe to repeat."
    )
    _json(migrate)

    medallion = command("medallion", _medallion_run, "plan or run the transformations once")
    actions = medallion.add_subparsers(title="actions", metavar="ACTION", required=True)
    plan = actions.add_parser("plan", help="what a run would do, and what changed since the last")
    plan.set_defaults(command=_medallion_plan)
    _json(plan)
    once = actions.add_parser("run", help="run what is due, once")
    once.set_defaults(command=_medallion_run)
    once.add_argument(
        "--full", action="store_true", help="rebuild everything, not only what is new"
    )
    once.add_argument(
        "--dataset", action="append", metavar="NAME", help="only this table (repeatable)"
    )
    _json(once)

    reconcile = command(
        "reconcile",
        _reconcile,
        "show per device and business day where each record is",
        "produced = received + in transit, received = landed + duplicate + quarantined + excluded "
        "+ given up + pending. Exits with 1 when a remainder is left: that is an incident.",
    )
    reconcile.add_argument("--day", metavar="YYYY-MM-DD", help="only this business day")
    _json(reconcile)

    imported = command(
        "import",
        _import,
        "take in what 'scout-edge buffer export' wrote to a file",
        "Safe to repeat; what also comes by MQTT is stored once. Exits with 65 when a part of the "
        "file is damaged: what was whole is stored, export again.",
    )
    imported.add_argument("file", type=Path, help="the file, e.g. on a USB stick")
    _json(imported)

    token = command(
        "token",
        _token,
        "make an API token and the table for hub.toml that admits it",
        "The token is shown once; the settings hold its SHA-256 only.",
    )
    token.add_argument("--name", required=True, help="whose it is; stands in the audit")
    token.add_argument("--role", choices=config.ROLES, default="viewer")
    token.add_argument(
        "--store", action="append", metavar="ID", help="may see it (repeatable; '*': all)"
    )
    _json(token)

    device_cli.add_to(commands, _show)
    _json(command("check-config", _check_config, "read the settings and say what they come to"))
    command("version", _version, "print the version")
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: JSON on stdout")


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _run(options: argparse.Namespace, settings: config.Settings) -> int:
    stop = _stop_on_signals()
    if not options.no_migrate:
        _apply_migrations(settings, stop)
    enabled = {
        "ingest": settings.ingest.enabled,
        "runner": settings.runner.enabled,
        "api": settings.api.enabled,
    }
    from scout_central import hub

    hub.serve(settings, tuple(part for part in hub.PARTS if enabled[part]), stop)
    return 0


def _part(options: argparse.Namespace, settings: config.Settings) -> int:
    from scout_central import hub

    if settings.ingest.metrics_port and options.part != "api":
        from prometheus_client import start_http_server

        try:
            start_http_server(settings.ingest.metrics_port, addr="127.0.0.1")
        except OSError as error:
            raise ConfigError(
                f"metrics cannot use port {settings.ingest.metrics_port}: {error.strerror}",
                "set another ingest.metrics_port, or 0 for none",
            ) from error
    hub.serve(settings, (options.part,), _stop_on_signals())
    return 0


def _database(options: argparse.Namespace, settings: config.Settings) -> int:
    from scout_central.embedded import run_database

    port = settings.database.port if options.port is None else options.port
    run_database(options.data_dir or settings.database.data_dir, port)
    return 0


def _broker(options: argparse.Namespace, settings: config.Settings) -> int:
    from scout_central.broker import run_broker

    run_broker(settings.mqtt.port if options.port is None else options.port)
    return 0


def _migrate(options: argparse.Namespace, settings: config.Settings) -> int:
    from scout_central import database

    applied = database.migrate(settings.database_dsn())
    if options.json:
        print(json.dumps({"applied": applied}))
    else:
        print("\n".join(f"applied {name}" for name in applied) or "nothing to do")
    return 0


def _apply_migrations(settings: config.Settings, stop: threading.Event) -> None:
    """Wait for a database that is still starting: the hub often starts beside it."""
    from scout_central import database

    log = logs.get("hub")
    while not stop.is_set():
        try:
            applied = database.migrate(settings.database_dsn())
        except TransientError as error:
            log.warning("database.awaited", error=error.message)
            stop.wait(0.5)
        else:
            log.info("database.migrated", applied=applied)
            return


def _medallion_plan(options: argparse.Namespace, settings: config.Settings) -> int:
    from scout_central import medallion

    steps = medallion.plan(settings.database_dsn())
    _show([_plain(step) for step in steps], as_json=options.json)
    return 0


def _medallion_run(options: argparse.Namespace, settings: config.Settings) -> int:
    from scout_central.medallion import Runner

    result = Runner(settings.database_dsn()).run_once(
        trigger="manual", full=options.full, datasets=options.dataset
    )
    if options.json:
        print(json.dumps(result.asdict(), default=str))
    else:
        _show([_plain(step) for step in result.steps], as_json=False)
        print(f"run {result.status}")
    return 0 if result.status == "completed" else 1


def _reconcile(options: argparse.Namespace, settings: config.Settings) -> int:
    import datetime as dt

    from scout_central import database

    try:
        day = dt.date.fromisoformat(options.day) if options.day else None
    except ValueError as error:
        raise ConfigError(
            f"--day {options.day!r} is not a date", "write it as 2026-11-23"
        ) from error
    with (
        database.connect(settings.database_dsn(), application="scout-reconcile") as connection,
        database.translated(),
    ):
        rows = connection.execute(RECONCILE, {"day": day}).fetchall()
    records = [dict(zip(RECONCILIATION_COLUMNS, row, strict=True)) for row in rows]
    _show(records, as_json=options.json)
    return 1 if any(record["remainder"] for record in records) else 0


def _import(options: argparse.Namespace, settings: config.Settings) -> int:
    from contextlib import closing

    from scout_central.ingest import Committer, Outcome, import_export

    try:
        with options.file.open("rb") as file, closing(Committer(settings.database_dsn())) as door:
            done = import_export(door, file)
    except OSError as error:
        raise ConfigError(
            f"{options.file} cannot be read: {error.strerror}", "check the name and the stick"
        ) from error
    if options.json:
        print(json.dumps(_plain(done)))
    else:
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in done.outcomes.items())
        print(f"device {done.device_id} in store {done.store_id}: {said or 'no segments'}")
        if done.damage:
            print(f"the rest of the file cannot be read: {done.damage}; export again")
    refused = done.outcomes.get(str(Outcome.REFUSED), 0)
    return PermanentError.exit_code if done.damage or refused else 0


def _token(options: argparse.Namespace, _settings: config.Settings) -> int:
    token = f"scout_{secrets.token_urlsafe(32)}"
    admitted = {
        "name": options.name,
        "role": options.role,
        "stores": options.store or [],
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
    }
    if options.json:
        print(json.dumps({"token": token, **admitted}))
        return 0
    print(f"# Give this to {options.name}; it is not shown again:\n# {token}\n\n[[api.tokens]]")
    for key, value in admitted.items():
        print(f"{key} = {json.dumps(value, ensure_ascii=False)}")  # JSON of these is TOML too
    return 0


def _check_config(options: argparse.Namespace, settings: config.Settings) -> int:
    if options.json:
        print(json.dumps(_without_secrets(dataclasses.asdict(settings)), default=str))
        return 0
    for section, values in _without_secrets(dataclasses.asdict(settings)).items():
        print(f"[{section}]")
        for key, value in values.items():
            print(f"{key} = {value}")
    return 0


def _version(_options: argparse.Namespace, _settings: config.Settings) -> int:
    print(f"scout-hub {__version__}")
    return 0


def _without_secrets(sections: dict[str, Any]) -> dict[str, Any]:
    for section, key in (("database", "dsn"), ("mqtt", "password")):
        sections[section][key] = "set" if sections[section][key] else "not set"
    return sections


def _plain(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return value
    raise PermanentError(f"{value!r} is not a record that can be shown")


def _show(records: list[dict[str, Any]], *, as_json: bool) -> None:
    """A table for people, or JSON."""
    if as_json:
        print(json.dumps(records, default=str))
        return
    if not records:
        print("nothing")
        return
    rows = [list(records[0]), *([_cell(v) for v in record.values()] for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return "unknown" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
