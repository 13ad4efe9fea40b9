"""What state a device is in and in which store it stands, with the history of both.

    (unknown) ──► pending ──► active ◄──► maintenance
                                │             │
                                └──► retired ◄┘      back only by a token that names the device

Invariant: a device is active or in maintenance if and only if it has one open binding, and
``devices.store_id`` is the store of that binding. Each change is one transaction of the caller's
and leaves a row in ``device_events``. Not its job: credentials (``credentials``, ``tokens``).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from scout_central import database
from scout_shared import topics
from scout_shared.errors import PermanentError

_LOCK = """
select
    store_id,
    state,
    exists (
        select from scout_secrets.device_credentials as credentials
        where credentials.device_id = devices.device_id
    ) as enrolled
from metadata.devices
where device_id = %(device)s
for update
"""
_MAKE = """
insert into metadata.devices (device_id, store_id, zone, state)
values (%(device)s, %(store)s, %(zone)s, 'pending')
on conflict (device_id) do nothing
"""
_SET = """
update metadata.devices
set
    state = %(state)s,
    store_id = %(store)s
where device_id = %(device)s
"""
_BIND = """
insert into metadata.device_bindings (device_id, store_id, bound_by, reason)
values (%(device)s, %(store)s, %(by)s, %(reason)s)
on conflict (device_id) where valid_to is null do nothing
"""
# greatest: a clock that was set back must not end a binding before it began.
_UNBIND = """
update metadata.device_bindings
set
    valid_to = greatest(now(), valid_from),
    ended_by = %(by)s,
    end_reason = %(reason)s
where device_id = %(device)s
    and valid_to is null
"""
_NOTE = """
insert into metadata.device_events (device_id, store_id, event, done_by, reason)
values (%(device)s, %(store)s, %(event)s, %(by)s, %(reason)s)
"""
_FORGET = "delete from scout_secrets.device_credentials where device_id = %(device)s"
# What the hub knows that the device has and the hub has not.
_OWED = """
select coalesce(sum(
    greatest(
        next_sequence - 1
        - coalesce((select sum(upper(held) - lower(held)) from unnest(received) as held), 0),
        0
    )
    + coalesce(unsealed_records, 0)
), 0)::bigint
from metadata.streams
where device_id = %(device)s
"""


class FleetError(PermanentError):
    """The fleet refuses this; ``word`` says why, for programs."""

    def __init__(self, word: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.word = word


@dataclass(frozen=True, slots=True)
class Standing:
    """How a device stands with the hub."""

    device_id: str
    store_id: str
    state: str
    enrolled: bool
    """It has credentials of its own."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A device stood in a store from then until then (None: until now)."""

    store_id: str
    valid_from: dt.datetime
    valid_to: dt.datetime | None
    bound_by: str
    reason: str
    ended_by: str | None
    end_reason: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """Who did what to a device."""

    event: str
    store_id: str
    done_by: str
    reason: str
    happened_at: dt.datetime


def find(connection: database.Connection, device_id: str) -> Standing:
    """The device, locked until the transaction ends. Raises FleetError (``not_found``)."""
    row = connection.execute(_LOCK, {"device": device_id}).fetchone()
    if row is None:
        raise FleetError(
            "not_found", f"there is no device {device_id!r}", "list them: scout-hub device list"
        )
    return Standing(device_id, *row)


def admit(
    connection: database.Connection,
    device_id: str,
    store_id: str,
    zone: str,
    *,
    by: str,
    named: bool,
) -> None:
    """Make the device an active one of ``store_id``; ``named``: the token was made for it.

    Raises:
        FleetError: it is another's (``device_refused``), or still owes records of another store.
    """
    connection.execute(_MAKE, {"device": device_id, "store": store_id, "zone": zone})
    now = find(connection, device_id)
    if (now.enrolled or now.state == "retired") and not named:
        raise FleetError(
            "device_refused",
            f"there is a device {device_id} already ({now.state}, store {now.store_id})",
            "choose another id, or name it in the token: scout-hub device token"
            f" --store {store_id} --device {device_id}",
        )
    if now.store_id != store_id:
        owed = connection.execute(_OWED, {"device": device_id}).fetchone()
        assert owed is not None
        if owed[0]:
            raise FleetError(
                "device_refused",
                f"device {device_id} has {owed[0]} records of store {now.store_id} not sent yet",
                "send them first (scout-edge drain), or give the box a new id",
            )
        _unbind(connection, device_id, by, f"moved to store {store_id}")
    _bind(connection, device_id, store_id, "active", by=by, reason="enrolled")
    note(connection, device_id, store_id, "enrolled", by=by)


def replaced(connection: database.Connection, old: str, new: str, *, by: str) -> None:
    """The end of ``old``: ``new`` stands in its store now. Safe when it has ended before."""
    if find(connection, old).state != "retired":
        retire(connection, old, by=by, reason=f"replaced by {new}")


def activate(
    connection: database.Connection,
    device_id: str,
    *,
    by: str,
    reason: str,
    store_id: str | None = None,
) -> Standing:
    """Let a pending device in, or end its maintenance. Safe to repeat.

    Args:
        store_id: where it stands, if not where it says.

    Raises:
        FleetError: not known, or retired.
    """
    now = find(connection, device_id)
    _not_retired(now)
    if store_id is not None and now.state != "pending" and store_id != now.store_id:
        raise FleetError(
            "device_refused",
            f"device {device_id} is bound to store {now.store_id}",
            f"to move it: scout-hub device token --store {store_id} --device {device_id}",
        )
    store = topics.check_name("store", store_id or now.store_id)
    _bind(connection, device_id, store, "active", by=by, reason=reason)
    if now.state != "active":
        note(connection, device_id, store, "activated", by=by, reason=reason)
    return Standing(device_id, store, "active", now.enrolled)


def maintain(connection: database.Connection, device_id: str, *, by: str, reason: str) -> Standing:
    """Its data lands, its silence is nobody's alarm. Safe to repeat. Raises FleetError."""
    now = find(connection, device_id)
    _not_retired(now)
    _bind(connection, device_id, now.store_id, "maintenance", by=by, reason=reason)
    if now.state != "maintenance":
        note(connection, device_id, now.store_id, "maintenance", by=by, reason=reason)
    return Standing(device_id, now.store_id, "maintenance", now.enrolled)


def retire(connection: database.Connection, device_id: str, *, by: str, reason: str) -> Standing:
    """Its credentials and its binding end. Late data still lands. Safe to repeat.

    Raises:
        FleetError: not known.
    """
    now = find(connection, device_id)
    if now.state != "retired":
        connection.execute(_SET, {"device": device_id, "store": now.store_id, "state": "retired"})
        _unbind(connection, device_id, by, reason)
        note(connection, device_id, now.store_id, "retired", by=by, reason=reason)
    connection.execute(_FORGET, {"device": device_id})
    return Standing(device_id, now.store_id, "retired", enrolled=False)


def note(
    connection: database.Connection,
    device_id: str,
    store_id: str,
    event: str,
    *,
    by: str,
    reason: str = "",
) -> None:
    """Write down who did what."""
    connection.execute(
        _NOTE, {"device": device_id, "store": store_id, "event": event, "by": by, "reason": reason}
    )


def bindings(connection: database.Connection, device_id: str) -> list[Binding]:
    """Where it stood, newest first."""
    rows = connection.execute(
        "select store_id, valid_from, valid_to, bound_by, reason, ended_by, end_reason"
        " from metadata.device_bindings where device_id = %(device)s order by binding_id desc",
        {"device": device_id},
    )
    return [Binding(*row) for row in rows]


def events(connection: database.Connection, device_id: str) -> list[Event]:
    """What was done to it, newest first."""
    rows = connection.execute(
        "select event, store_id, done_by, reason, happened_at from metadata.device_events"
        " where device_id = %(device)s order by event_id desc limit 100",
        {"device": device_id},
    )
    return [Event(*row) for row in rows]


def _bind(
    connection: database.Connection,
    device_id: str,
    store_id: str,
    state: str,
    *,
    by: str,
    reason: str,
) -> None:
    connection.execute(_SET, {"device": device_id, "store": store_id, "state": state})
    connection.execute(_BIND, {"device": device_id, "store": store_id, "by": by, "reason": reason})


def _unbind(connection: database.Connection, device_id: str, by: str, reason: str) -> None:
    connection.execute(_UNBIND, {"device": device_id, "by": by, "reason": reason})


def _not_retired(now: Standing) -> None:
    if now.state == "retired":
        raise FleetError(
            "device_refused",
            f"device {now.device_id} is retired, and has no credentials any more",
            "enrol it again: scout-hub device token"
            f" --store {now.store_id} --device {now.device_id}",
        )
