"""Device credentials: passwords as mosquitto hashes them, and the one check of all other doors.

The format is that of a mosquitto password file (``$7$iterations$salt$hash``, PBKDF2 with SHA-512),
so that the broker and the hub admit by the same hash. A device makes its own password of 256 random
bits; against that, more iterations protect nothing and cost the broker, which checks in its only
thread, at each connection of a chain that comes back after an outage.
Not its job: who may do what (``registry``), writing the broker's file (``accounts``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from scout_central import database

ITERATIONS = 101  # mosquitto_passwd's own default
_SALT_BYTES = 12  # mosquitto 2.0 refuses any other length
_HASH_BYTES = 64

_FIND = """
select
    devices.store_id,
    devices.state,
    credentials.password_hash
from metadata.devices
inner join scout_secrets.device_credentials as credentials using (device_id)
where devices.device_id = %(device)s
"""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A device that gave its right password."""

    device_id: str
    store_id: str
    """Store of its binding: the device may speak for this one only."""
    state: str
    """pending, active or maintenance."""


def hash_password(password: str) -> str:
    """``password`` as mosquitto's password file takes it, with a fresh salt."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"$7${ITERATIONS}${_text(salt)}${_text(_derived(password, salt, ITERATIONS))}"


def matches(password: str, password_hash: str) -> bool:
    """Whether ``password`` is the one; False for a hash in another format."""
    try:
        empty, kind, iterations, salt, expected = password_hash.split("$")
        if (empty, kind) != ("", "7"):
            return False
        derived = _derived(password, base64.b64decode(salt, validate=True), int(iterations))
        return hmac.compare_digest(derived, base64.b64decode(expected, validate=True))
    except (ValueError, OverflowError, binascii.Error):
        return False


def check(connection: database.Connection, device_id: str, password: str) -> Admitted | None:
    """The device that these credentials admit; None: unknown, retired, or a wrong password.

    The credentials are those of MQTT: user name = device id, and the password that the device made
    when it was enrolled. For any door beside the broker, e.g. HTTP basic authentication. The work
    is the same whether the device exists or not. One read, no write: the caller's transaction.

    Raises:
        psycopg.Error: translated by the caller.
    """
    row = connection.execute(_FIND, {"device": device_id.replace("\0", "")}).fetchone()
    right = matches(password, row[2] if row else _NOBODY)
    if row is None or not right or row[1] == "retired":
        return None
    return Admitted(device_id, row[0], row[1])


def _derived(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, _HASH_BYTES)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


_NOBODY = hash_password(secrets.token_urlsafe(32))
"""What an unknown device's password is compared with, so that it takes as long."""
