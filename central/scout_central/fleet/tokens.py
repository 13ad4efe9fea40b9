"""One-time tokens, and the enrolment that one of them admits: all in one transaction.

The device makes its own password and its own signing key and sends them with the token; the hub
keeps the password's hash only and answers with no secret. So a repeated request needs no kept
answer: within REPEAT_SECONDS the same token, request id, password and key get what they got.
Of a token the hub knows the SHA-256 of its secret part: 16 letters of 30 are 78 random bits, which
nobody tries out in its hours of life, and a technician can still type them.
Not its job: how often somebody may try (``api.devices``), the broker's accounts (``accounts``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from uuid import UUID

from scout_central import database
from scout_central.fleet import credentials, lifecycle
from scout_central.fleet.lifecycle import FleetError
from scout_shared import topics
from scout_shared.zones import BusinessCalendar

REPEAT_SECONDS = 900
"""How long a lost answer may be asked for again."""
MAX_HOURS = 24 * 30
_ALPHABET = "ABCDEFGHJKMNPQRSTVWXYZ23456789"  # without what is taken for one another
_ID_LETTERS, _SECRET_LETTERS = 6, 16
_KEY_BYTES = 32
_PASSWORD_LETTERS = 32

_ZONE = """
select zone
from metadata.devices
where store_id = %(store)s
    and zone is not null
order by last_seen_at desc
limit 1
"""
_MAKE = """
insert into metadata.enrolment_tokens (
    token_id, secret_sha256, store_id, device_id, replaces, zone, created_by, expires_at
)
values (
    %(token)s, %(sha256)s, %(store)s, %(device)s, %(replaces)s, %(zone)s, %(by)s,
    now() + %(hours)s * interval '1 hour'
)
returning expires_at
"""
_FIND = """
select
    secret_sha256,
    store_id,
    device_id,
    replaces,
    zone,
    created_by,
    expires_at < now() as expired,
    used_at,
    used_by,
    request_id,
    used_at > now() - %(repeat)s * interval '1 second' as used_just_now
from metadata.enrolment_tokens
where token_id = %(token)s
for update
"""
_USE = """
update metadata.enrolment_tokens
set
    used_at = now(),
    used_by = %(device)s,
    request_id = %(request)s
where token_id = %(token)s
"""
_GIVE = """
insert into scout_secrets.device_credentials (device_id, password_hash, signing_key)
values (%(device)s, %(hash)s, %(key)s)
on conflict (device_id) do update set
    password_hash = excluded.password_hash,
    signing_key = excluded.signing_key,
    made_at = now()
"""
_GIVEN = """
select
    password_hash,
    signing_key
from scout_secrets.device_credentials
where device_id = %(device)s
"""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token, shown once."""

    token: str
    token_id: str
    store_id: str
    zone: str
    device_id: str | None
    replaces: str | None
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Who the device is from now on."""

    device_id: str
    store_id: str
    zone: str
    repeated: bool
    """The answer was given before; nothing was changed."""


def create(
    connection: database.Connection,
    *,
    store_id: str,
    by: str,
    device_id: str | None = None,
    replaces: str | None = None,
    zone: str | None = None,
    hours: float = 24.0,
) -> NewToken:
    """A token that admits one device to ``store_id`` once; only its hash is kept.

    Args:
        device_id: the id it will have; without one the hub makes one at enrolment.
        replaces: the device that is retired when this one enrols, in the same transaction.
        zone: of the store; without one, as the store's other devices say.

    Raises:
        ConfigError: a name or zone that cannot be, or no zone is known for the store.
        FleetError: ``replaces`` is not known, or stands in another store.
    """
    topics.check_name("store", store_id)
    if device_id is not None:
        topics.check_name("device", device_id)
    if not 0 < hours <= MAX_HOURS:
        raise FleetError(
            "bad_request", f"{hours:g} hours cannot be", f"give more than 0, at most {MAX_HOURS}"
        )
    if replaces is not None:
        old = lifecycle.find(connection, replaces)
        if old.store_id != store_id or replaces == device_id:
            raise FleetError(
                "device_refused",
                f"device {replaces} of store {old.store_id} cannot be replaced by {device_id}"
                f" of store {store_id}",
                "a replacement is another device for the same store",
            )
    if zone is None:
        row = connection.execute(_ZONE, {"store": store_id}).fetchone()
        if row is None:
            raise FleetError(
                "zone_unknown",
                f"no device has said yet in which time zone store {store_id} is",
                "give it, e.g. --zone Asia/Manila: a wrong zone moves sales to another day",
            )
        zone = row[0]
    assert zone is not None
    BusinessCalendar(zone)
    token_id, secret = _letters(_ID_LETTERS), _letters(_SECRET_LETTERS)
    made = connection.execute(
        _MAKE,
        {
            "token": token_id,
            "sha256": _sha256(secret),
            "store": store_id,
            "device": device_id,
            "replaces": replaces,
            "zone": zone,
            "by": by,
            "hours": hours,
        },
    ).fetchone()
    assert made is not None
    lifecycle.note(
        connection, device_id or replaces or "", store_id, "token", by=by, reason=token_id
    )
    groups = [token_id, *(secret[i : i + 4] for i in range(0, _SECRET_LETTERS, 4))]
    return NewToken("-".join(groups), token_id, store_id, zone, device_id, replaces, made[0])


def enrol(
    connection: database.Connection,
    *,
    token: str,
    request_id: UUID,
    password: str,
    signing_key: bytes,
    device_id: str | None = None,
) -> Enrolled:
    """Admit a device: credentials, binding, state, and the end of the device that it replaces.

    Call it in a transaction, which is all or nothing; two requests with one token queue at its row.

    Args:
        device_id: what the device wants to be called, where the token names nobody.

    Raises:
        FleetError: ``token_unknown``, ``token_expired``, ``token_used``, ``device_refused`` or
            ``bad_request``; nothing was changed.
    """
    _check(password, signing_key, device_id)
    letters = "".join(c for c in token.upper() if c.isalnum())
    token_id, secret = letters[:_ID_LETTERS], letters[_ID_LETTERS:]
    found = connection.execute(_FIND, {"token": token_id, "repeat": REPEAT_SECONDS}).fetchone()
    expected = bytes(found[0]) if found else bytes(32)
    if not hmac.compare_digest(_sha256(secret), expected) or found is None:
        raise FleetError(
            "token_unknown",
            "the hub does not know this token",
            "check its letters, or ask for another: scout-hub device token",
        )
    _, store_id, named, replaces, zone, created_by, expired, used_at, used_by, request, fresh = (
        found
    )
    if used_at is not None:
        if request == request_id and fresh and _same(connection, used_by, password, signing_key):
            return Enrolled(used_by, store_id, zone, repeated=True)
        raise FleetError(
            "token_used",
            f"this token has admitted device {used_by} at {used_at:%Y-%m-%d %H:%M} UTC",
            "a token serves once: ask for another; if nobody here used it, retire that device",
        )
    if expired:
        raise FleetError(
            "token_expired", "this token has expired", "ask for another: scout-hub device token"
        )
    if named is not None and device_id not in (None, named):
        raise FleetError(
            "device_refused",
            f"the token is for device {named}, not for {device_id}",
            "leave --device out, or ask for a token for that device",
        )
    device = named or device_id or f"{store_id[:48]}-{_letters(6).lower()}"
    lifecycle.admit(
        connection,
        device,
        store_id,
        zone,
        by=f"token {token_id} of {created_by}",
        named=bool(named),
    )
    connection.execute(
        _GIVE,
        {"device": device, "hash": credentials.hash_password(password), "key": signing_key},
    )
    if replaces is not None:
        lifecycle.replaced(connection, replaces, device, by=f"token {token_id} of {created_by}")
    connection.execute(_USE, {"token": token_id, "device": device, "request": request_id})
    return Enrolled(device, store_id, zone, repeated=False)


def _check(password: str, signing_key: bytes, device_id: str | None) -> None:
    if device_id is not None:
        topics.check_name("device", device_id)
    if not _PASSWORD_LETTERS <= len(password) <= 128 or not password.isascii():
        raise FleetError(
            "bad_request", "the password has not 32 to 128 ASCII letters", "let the device make it"
        )
    if len(signing_key) != _KEY_BYTES:
        raise FleetError(
            "bad_request", f"the signing key has {len(signing_key)} bytes, not {_KEY_BYTES}"
        )


def _same(
    connection: database.Connection, device_id: str, password: str, signing_key: bytes
) -> bool:
    """Whether these are the credentials that the device was given."""
    row = connection.execute(_GIVEN, {"device": device_id}).fetchone()
    return (
        row is not None
        and credentials.matches(password, row[0])
        and hmac.compare_digest(signing_key, bytes(row[1]))
    )


def _letters(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
