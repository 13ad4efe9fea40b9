"""Enrolment: a one-time token becomes credentials of the device's own.

The device makes its password and signing key itself, writes them down, and only then asks. An
answer that is lost costs nothing: the same command again sends the same request, and the hub gives
the same answer to it. What was written down first is gone when the credentials are there.
Not its job: keeping the credentials (``identity``), using them (``config``, ``forwarder``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import http.client
import json
import secrets
import ssl
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scout_edge import identity
from scout_edge.identity import Identity
from scout_shared import topics
from scout_shared.errors import ConfigError, PermanentError, ScoutError, TransientError
from scout_shared.zones import BusinessCalendar

_TIMEOUT_SECONDS = 30.0
_MAX_ANSWER_BYTES = 1 << 20
_SKEW_SECONDS = 120.0
_LOCAL = ("127.0.0.1", "::1", "localhost")

_HINTS = {
    "token_unknown": "compare it letter by letter with the one that you were given",
    "token_used": "ask the operator for another: scout-hub device token",
    "token_expired": "ask the operator for another: scout-hub device token",
}


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The identity that is kept now, and how far the device's clock is off."""

    identity: Identity
    skew_seconds: float
    """Device clock minus hub clock."""

    @property
    def clock_is_wrong(self) -> bool:
        """Whether somebody should set it."""
        return abs(self.skew_seconds) > _SKEW_SECONDS


def enrol(
    buffer: Path,
    *,
    hub: str,
    token: str,
    device_id: str | None = None,
    ca: Path | None = None,
    again: bool = False,
) -> Enrolled:
    """Ask the hub to admit this device, and keep what it says beside ``buffer``. Safe to repeat.

    Args:
        hub: where the hub's API is, https://…; plain http only on this machine.
        device_id: what the device wants to be called, where the token names nobody.
        ca: certificates to trust for the hub, PEM; default: those of the system.
        again: make new credentials although there are some; the id stays.

    Raises:
        ConfigError: a setting, the token, the clock or the trust must be mended by a person.
        TransientError: the hub is not reachable or its database is away; the token is not lost.
    """
    before = identity.read(buffer)
    draft = _Draft.of(buffer, token)
    if before is not None and not again:
        if draft.found:  # the power failed between the two writes
            draft.forget()
        raise ConfigError(
            f"this device is enrolled already, as {before.device_id} of store {before.store_id}",
            "nothing is to be done; new credentials for the same id: --again, with a token that"
            " names it",
        )
    if before is not None:
        device_id = device_id or before.device_id
    try:
        hub_ca = ca.read_text("ascii") if ca is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not PEM"
        raise ConfigError(
            f"--ca {ca} cannot be used: {why}", "give a PEM file that the agent's user may read"
        ) from error
    draft.keep()
    said = _ask(hub, ca, draft.request(token, device_id))
    try:
        made = Identity(
            device_id=topics.check_name("the device id of the hub", said["device_id"]),
            store_id=topics.check_name("the store of the hub", said["store_id"]),
            zone=BusinessCalendar(said["zone"]).zone,
            broker_host=str(said["broker_host"]),
            broker_port=int(said["broker_port"]),
            broker_tls=bool(said["broker_tls"]),
            broker_ca=str(said["broker_ca"]),
            password=draft.password,
            signing_key=bytes.fromhex(draft.signing_key),
            hub_url=hub,
            hub_ca=hub_ca,
        )
        hub_time = dt.datetime.fromisoformat(said["hub_time"]).timestamp()
    except (KeyError, TypeError, ValueError) as error:
        raise PermanentError(
            f"the hub's answer cannot be read: {error!r}", "is the hub as new as this agent?"
        ) from error
    identity.write(buffer, made)
    draft.forget()
    return Enrolled(made, time.time() - hub_time)


class _Draft:
    """What the device has made for itself and for one token, before the hub has answered."""

    def __init__(self, path: Path, document: dict[str, str], *, found: bool) -> None:
        self._path = path
        self._document = document
        self.found = found
        self.password = document["password"]
        self.signing_key = document["signing_key"]

    @classmethod
    def of(cls, buffer: Path, token: str) -> _Draft:
        """The one that was begun with this token, or a new one."""
        path = buffer.with_name(buffer.name + ".enrolment")
        letters = "".join(c for c in token.upper() if c.isalnum())
        print_of_token = hashlib.sha256(letters.encode()).hexdigest()
        try:
            found = json.loads(path.read_bytes())
            if found["token_sha256"] == print_of_token:
                return cls(path, found, found=True)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, unreadable, or of another token: a new one serves as well
        return cls(
            path,
            {
                "token_sha256": print_of_token,
                "request_id": str(uuid.uuid4()),
                "password": secrets.token_urlsafe(32),
                "signing_key": secrets.token_hex(32),
            },
            found=False,
        )

    def keep(self) -> None:
        """Write it down: the hub must never know a password that the device has forgotten."""
        if not self.found:
            identity.write_durably(self._path, json.dumps(self._document).encode())

    def forget(self) -> None:
        """The credentials are there."""
        self._path.unlink(missing_ok=True)

    def request(self, token: str, device_id: str | None) -> dict[str, str | None]:
        """The body of the request."""
        return {
            "token": token,
            "request_id": self._document["request_id"],
            "password": self.password,
            "signing_key": self.signing_key,
            "device_id": device_id,
        }


def _ask(hub: str, ca: Path | None, body: dict[str, str | None]) -> dict[str, Any]:
    where = urllib.parse.urlsplit(hub)
    if where.scheme not in ("https", "http") or not where.hostname:
        raise ConfigError(f"--hub {hub!r} is no address", "write it as https://hub.example")
    if where.scheme == "http" and where.hostname not in _LOCAL:
        raise ConfigError(
            f"--hub {hub} is not encrypted: the device's password would be read on its way",
            "use https://…; the hub stands behind a proxy with TLS",
        )
    place = where.netloc
    connection = _connection(where, ca)
    try:
        connection.request(
            "POST",
            where.path.rstrip("/") + "/v1/enrol",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        status, content = response.status, response.read(_MAX_ANSWER_BYTES)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(place, error) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"{place} does not speak TLS as it should: {error.reason or error}",
            "check the address and the port of --hub",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(
            f"the hub at {place} is not reachable: {error}",
            "check the network cable, the address and its port; then the same command again: the"
            " token is not lost",
        ) from error
    finally:
        connection.close()
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ConfigError(
            f"what answers at {place} is not the hub (status {status})",
            "check the address of --hub; a proxy must hand /v1/enrol on",
        )
    if status == 200:
        return said
    raise _refusal(place, status, said)


def _connection(where: urllib.parse.SplitResult, ca: Path | None) -> http.client.HTTPConnection:
    assert where.hostname is not None
    try:
        port = where.port
    except ValueError as error:
        raise ConfigError(f"--hub: {error}", "write it as https://hub.example:8443") from error
    if where.scheme == "http":
        return http.client.HTTPConnection(where.hostname, port, timeout=_TIMEOUT_SECONDS)
    try:
        context = ssl.create_default_context(cafile=ca and str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--ca {ca} cannot be used: {error}", "give a PEM file that the agent's user may read"
        ) from error
    return http.client.HTTPSConnection(
        where.hostname, port, timeout=_TIMEOUT_SECONDS, context=context
    )


def _untrusted(place: str, error: ssl.SSLCertVerificationError) -> ConfigError:
    now = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    if error.verify_code in (9, 10):  # not yet valid, expired
        return ConfigError(
            f"the certificate of {place} does not count today: {error.verify_message}; this"
            f" device's clock says {now}",
            "if the clock is wrong, set it: sudo timedatectl set-time …; else tell the operator",
        )
    if error.verify_code in (62, 64):  # host name, IP address
        return ConfigError(
            f"the certificate of {place} is for another name: {error.verify_message}",
            "use the hub's name as it stands in its certificate",
        )
    return ConfigError(
        f"the certificate of {place} is not trusted: {error.verify_message}",
        "if your company has a CA of its own, give its PEM file with --ca; else stop, and tell the"
        " operator: somebody may listen",
    )


def _refusal(place: str, status: int, said: dict[str, Any]) -> ScoutError:
    word, message = said.get("error"), str(said.get("message") or f"status {status}")
    hint = _HINTS.get(str(word), str(said.get("hint") or ""))
    text = f"the hub at {place} refuses: {message}"
    if status >= 500 or status == 429:
        return TransientError(text, hint or "try the same command again later")
    return ConfigError(text, hint)
