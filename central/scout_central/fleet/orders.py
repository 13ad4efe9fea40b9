"""What the hub wants of devices: settings with versions, commands with an end, and their reports.

Orders are rows until a device has said what became of them; ``downlink`` carries them. A command
is sent again until it is answered or has expired: the device does each at most once.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from scout_central import database
from scout_central.fleet import lifecycle
from scout_central.fleet.lifecycle import FleetError, Standing
from scout_shared.orders import COMMANDS, CommandOrder, ConfigOrder, Report, check_allowed

RESEND_SECONDS = 10.0
MAX_MINUTES = 24 * 60

_CONFIGURE = """
with superseded as (
    update metadata.device_configurations
    set state = 'superseded'
    where device_id = %(device)s
        and state in ('desired', 'trying')
)

insert into metadata.device_configurations (device_id, store_id, version, body, made_by, reason)
select
    %(device)s,
    %(store)s,
    coalesce(max(version), 0) + 1,
    %(body)s,
    %(by)s,
    %(reason)s
from metadata.device_configurations
where device_id = %(device)s
returning version
"""
_COMMAND = """
insert into metadata.device_commands (device_id, store_id, command, made_by, expires_at)
values (%(device)s, %(store)s, %(command)s, %(by)s, now() + %(minutes)s * interval '1 minute')
returning command_id
"""
# The newest one of each device, until the device has decided.
_DUE_CONFIGURATIONS = """
select
    configurations.device_id,
    devices.store_id,
    configurations.version,
    configurations.body,
    credentials.signing_key
from metadata.device_configurations as configurations
inner join metadata.devices using (device_id)
inner join scout_secrets.device_credentials as credentials using (device_id)
where configurations.state in ('desired', 'trying')
    and (
        configurations.sent_at is null
        or configurations.sent_at < now() - %(again)s * interval '1 second'
    )
order by configurations.made_at
limit 200
for update of configurations skip locked
"""
_DUE_COMMANDS = """
select
    commands.command_id::text,
    commands.device_id,
    devices.store_id,
    commands.command,
    (extract(epoch from commands.expires_at) * 1000)::bigint,
    credentials.signing_key
from metadata.device_commands as commands
inner join metadata.devices using (device_id)
inner join scout_secrets.device_credentials as credentials using (device_id)
where commands.state in ('waiting', 'sent')
    and commands.expires_at > now()
    and (commands.sent_at is null or commands.sent_at < now() - %(again)s * interval '1 second')
order by commands.made_at
limit 200
for update of commands skip locked
"""
_SENT_CONFIGURATION = """
update metadata.device_configurations
set sent_at = now()
where device_id = %(device)s
    and version = %(version)s
"""
_SENT_COMMAND = """
update metadata.device_commands
set
    state = 'sent',
    sent_at = now()
where command_id = %(command)s
    and state in ('waiting', 'sent')
"""
# A report may come twice or late: "trying" never follows what was decided.
_CONFIGURED = """
update metadata.device_configurations
set
    state = %(state)s,
    message = %(message)s,
    reported_at = now()
where device_id = %(device)s
    and version = %(version)s
    and state <> %(state)s
    and (%(state)s <> 'trying' or state = 'desired')
"""
_COMMANDED = """
update metadata.device_commands
set
    state = %(state)s,
    result = %(result)s,
    finished_at = now()
where device_id = %(device)s
    and command_id = %(command)s
    and state in ('waiting', 'sent')
"""

# What was ordered while it stood in another store is that store's business.
_CONFIGURATIONS = """
select
    configurations.version,
    configurations.body,
    configurations.state,
    configurations.message,
    configurations.made_by,
    configurations.reason,
    configurations.made_at,
    configurations.reported_at
from metadata.device_configurations as configurations
inner join metadata.devices using (device_id, store_id)
where configurations.device_id = %(device)s
order by configurations.version desc
limit 20
"""
_COMMANDS = """
select
    commands.command_id::text,
    commands.command,
    commands.state,
    commands.made_by,
    commands.made_at,
    commands.expires_at,
    commands.finished_at,
    commands.result
from metadata.device_commands as commands
inner join metadata.devices using (device_id, store_id)
where commands.device_id = %(device)s
order by commands.made_at desc
limit 20
"""


@dataclass(frozen=True, slots=True)
class Due:
    """An order that is to be published now."""

    store_id: str
    device_id: str
    order: ConfigOrder | CommandOrder
    payload: bytes


def configure(
    connection: database.Connection,
    device_id: str,
    body: Mapping[str, Any],
    *,
    by: str,
    reason: str,
) -> int:
    """The settings that the device shall have beside its file; returns their version.

    They replace what was wanted before, whole. To go back, order the former ones again.

    Raises:
        ConfigError: a key that may not be set from afar.
        FleetError: no such device, or one without credentials.
    """
    check_allowed(body)
    now = _enrolled(connection, device_id)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    row = connection.execute(
        _CONFIGURE,
        {"device": device_id, "store": now.store_id, "body": text, "by": by, "reason": reason},
    ).fetchone()
    assert row is not None
    lifecycle.note(
        connection, device_id, now.store_id, "configured", by=by, reason=f"{row[0]}: {reason}"
    )
    return int(row[0])


def command(
    connection: database.Connection, device_id: str, what: str, *, by: str, minutes: float
) -> UUID:
    """Order a device to do something once, within some minutes; returns the command's id.

    Raises:
        FleetError: no such command or device, or one without credentials.
    """
    if what not in COMMANDS or not 0 < minutes <= MAX_MINUTES:
        raise FleetError(
            "bad_request",
            f"{what!r} within {minutes:g} minutes is no order",
            f"use {', '.join(COMMANDS)}, within at most {MAX_MINUTES} minutes",
        )
    now = _enrolled(connection, device_id)
    row = connection.execute(
        _COMMAND,
        {
            "device": device_id,
            "store": now.store_id,
            "command": what,
            "by": by,
            "minutes": minutes,
        },
    ).fetchone()
    assert row is not None
    lifecycle.note(connection, device_id, now.store_id, "commanded", by=by, reason=what)
    return UUID(str(row[0]))


def due(connection: database.Connection, *, again_seconds: float = RESEND_SECONDS) -> list[Due]:
    """What is to be published now, locked for this transaction; other hubs skip it.

    Args:
        again_seconds: what was published so long ago and is not answered, is due again.
    """
    again = {"again": again_seconds}
    found = []
    for device_id, store_id, version, body, key in connection.execute(_DUE_CONFIGURATIONS, again):
        order = ConfigOrder(device_id, version, body)
        found.append(Due(store_id, device_id, order, order.encode(bytes(key))))
    for command_id, device_id, store_id, what, expires_ms, key in connection.execute(
        _DUE_COMMANDS, again
    ):
        made = CommandOrder(device_id, command_id, what, expires_ms)
        found.append(Due(store_id, device_id, made, made.encode(bytes(key))))
    return found


def sent(connection: database.Connection, one: Due) -> None:
    """The broker has it."""
    if isinstance(one.order, ConfigOrder):
        connection.execute(
            _SENT_CONFIGURATION, {"device": one.device_id, "version": one.order.version}
        )
    else:
        connection.execute(_SENT_COMMAND, {"command": one.order.command_id})


def reported(connection: database.Connection, device_id: str, report: Report) -> bool:
    """Note what a device says became of an order; False: there is no such order or state."""
    text = report.message[:2000].replace("\0", "")
    if report.kind == "config" and report.state in ("trying", "good", "rejected"):
        if not report.of.isdecimal() or len(report.of) > 18:
            return False
        values = {
            "device": device_id,
            "version": int(report.of),
            "state": report.state,
            "message": text,
        }
        connection.execute(_CONFIGURED, values)
        return True
    if report.kind == "command" and report.state in ("done", "failed", "refused"):
        try:
            command_id = UUID(report.of)
        except ValueError:
            return False
        result = json.dumps({"message": report.message, **report.result})
        connection.execute(
            _COMMANDED,
            {
                "device": device_id,
                "command": command_id,
                "state": report.state,
                # jsonb takes no NUL, escaped or not
                "result": Jsonb(json.loads(result.replace("\\u0000", ""))),
            },
        )
        return True
    return False


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings that were wanted, and what became of them."""

    version: int
    body: str
    state: str
    message: str
    made_by: str
    reason: str
    made_at: dt.datetime
    reported_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and what became of it."""

    command_id: str
    command: str
    state: str
    made_by: str
    made_at: dt.datetime
    expires_at: dt.datetime
    finished_at: dt.datetime | None
    result: Any


def configurations(connection: database.Connection, device_id: str) -> list[Configuration]:
    """The newest first."""
    rows = connection.execute(_CONFIGURATIONS, {"device": device_id})
    return [Configuration(*row) for row in rows]


def commands(connection: database.Connection, device_id: str) -> list[Command]:
    """The newest first."""
    rows = connection.execute(_COMMANDS, {"device": device_id})
    return [Command(*row) for row in rows]


def _enrolled(connection: database.Connection, device_id: str) -> Standing:
    now = lifecycle.find(connection, device_id)
    if not now.enrolled:
        raise FleetError(
            "device_refused",
            f"device {device_id} ({now.state}) is not enrolled: there is no key to sign with",
            f"scout-hub device token --store {now.store_id} --device {device_id}",
        )
    return now
