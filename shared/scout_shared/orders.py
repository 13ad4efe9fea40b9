"""What the hub orders a device to do, signed; and what the device reports of it.

    dn/cfg   ConfigOrder    retained: the settings that the hub wants; the version only grows
    dn/cmd   CommandOrder   not retained: do this once, before it expires
    up/r     Report         what became of either

The signature is HMAC-SHA256 with a key that the device made at its enrolment: it shows that the
hub that enrolled it (or the device itself) wrote the order, for this device. It is no public-key
signature: whoever reads the hub's table of keys can forge orders. The broker cannot.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scout_shared.errors import ConfigError, WireError

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "buffer": ("seal_seconds", "group_commit_seconds"),
    "mqtt": (
        "heartbeat_seconds",
        "ack_timeout_seconds",
        "reconnect_cap_seconds",
        "live_share_ratio",
        "storm_guard_seconds",
        "budget_bytes_per_day",
        "drain_seconds",
    ),
    "system": ("enabled", "interval_seconds"),
    "log": ("level", "json"),
}
"""Table → keys that may be set from afar. Nothing that could cut the device off or run a program:
not who it is, not its broker, not a password, a path, an address, a command."""
ALLOWED_SOURCE = ("interval_seconds", "shape")
"""Keys of a source that the device has in its own settings."""

COMMANDS = ("drain", "diagnostics", "restart")

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_MAX_BODY = 64 * 1024
_BIGINT = 2**63


def overlay(document: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The device's settings ``document`` with what the hub wants of it in their place.

    Raises:
        ConfigError: ``body`` names a key that may not be set from afar, or an unknown source.
    """
    made = {key: dict(v) if isinstance(v, Mapping) else v for key, v in document.items()}
    for table, values in check_allowed(body).items():
        if table != "sources":
            made[table] = {**made.get(table, {}), **values}
            continue
        sources = made.setdefault("sources", {})
        for name, changed in values.items():
            if name not in sources:
                raise ConfigError(
                    f"there is no source {name!r} on this device",
                    "a source is written into the device's own settings first",
                )
            sources[name] = {**sources[name], **changed}
    return made


def check_allowed(body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """``body`` if it names only what may be set from afar. Raises ConfigError."""
    for table, values in body.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{table!r} must be a table of settings, not {values!r}")
        named = (
            {table: values}
            if table != "sources"
            else {f"sources.{name}": keys for name, keys in values.items()}
        )
        for where, keys in named.items():
            known = ALLOWED_SOURCE if table == "sources" else ALLOWED.get(table, ())
            if not isinstance(keys, Mapping):
                raise ConfigError(f"{where!r} must be a table of settings, not {keys!r}")
            for key in keys:
                if key not in known:
                    raise ConfigError(
                        f"[{where}] {key} may not be set from afar",
                        f"of [{where}] only: {', '.join(known)}"
                        if known
                        else f"only of: {', '.join([*ALLOWED, 'sources.<name>'])}",
                    )
    return body


@dataclass(frozen=True, slots=True)
class ConfigOrder:
    """The settings that the hub wants on a device."""

    device_id: str
    version: int
    """Grows with each change; an older one is refused."""
    body: str
    """JSON: table → key → value; byte for byte what was signed."""

    def encode(self, key: bytes) -> bytes:
        """JSON for ``dn/cfg``, signed with the device's ``key``."""
        message = {"v": 1, "d": self.device_id, "n": self.version, "b": self.body}
        return _sealed(message, self._signature(key))

    @classmethod
    def decode(cls, payload: bytes, *, device_id: str, key: bytes) -> ConfigOrder:
        """Raises WireError: ``bad_order``, ``bad_signature``."""
        message = _opened(payload)
        try:
            order = cls(device_id, int(message["n"]), str(message["b"]))
            if not 0 < order.version < _BIGINT:
                raise ValueError("no version")
        except _UNREADABLE as error:
            raise WireError("bad_order", f"order {payload[:80]!r} cannot be read") from error
        _check(message, order._signature(key))
        return order

    def _signature(self, key: bytes) -> str:
        return _sign(key, "config", self.device_id, str(self.version), self.body)


@dataclass(frozen=True, slots=True)
class CommandOrder:
    """Something that a device shall do once."""

    device_id: str
    command_id: str
    command: str
    expires_ms: int
    """Hub's wall clock, ms UTC: after it the device refuses."""

    def encode(self, key: bytes) -> bytes:
        """JSON for ``dn/cmd``, signed with the device's ``key``."""
        message = {
            "v": 1,
            "d": self.device_id,
            "i": self.command_id,
            "c": self.command,
            "x": self.expires_ms,
        }
        return _sealed(message, self._signature(key))

    @classmethod
    def decode(cls, payload: bytes, *, device_id: str, key: bytes) -> CommandOrder:
        """Raises WireError: ``bad_order``, ``bad_signature``."""
        message = _opened(payload)
        try:
            order = cls(device_id, str(message["i"]), str(message["c"]), int(message["x"]))
        except _UNREADABLE as error:
            raise WireError("bad_order", f"order {payload[:80]!r} cannot be read") from error
        _check(message, order._signature(key))
        return order

    def _signature(self, key: bytes) -> str:
        return _sign(
            key, "command", self.device_id, self.command_id, str(self.expires_ms), self.command
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an order."""

    kind: str
    """``config`` or ``command``."""
    of: str
    """Version of the configuration, or id of the command."""
    state: str
    """trying, good, rejected; done, failed, refused."""
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON for ``up/r``."""
        return json.dumps(self.as_dict(), separators=(",", ":")).encode()

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "v": 1,
            "kind": self.kind,
            "of": self.of,
            "state": self.state,
            "message": self.message,
            "result": dict(self.result),
        }

    @classmethod
    def decode(cls, payload: bytes) -> Report:
        """Raises WireError (``bad_report``)."""
        try:
            message = json.loads(payload)
            result = message.get("result") or {}
            if not isinstance(result, dict):
                raise TypeError("result is no object")
            kind, of, state = (str(message[key]) for key in ("kind", "of", "state"))
            return cls(kind, of, state, str(message.get("message", "")), result)
        except _UNREADABLE as error:
            raise WireError("bad_report", f"report {payload[:80]!r} cannot be read") from error


def _sign(key: bytes, *parts: str) -> str:
    # A length before each part: no two lists of parts are the same bytes.
    text = b"".join(b"%d:%b" % (len(p.encode()), p.encode()) for p in ("scout-1", *parts))
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def _sealed(message: dict[str, Any], signature: str) -> bytes:
    return json.dumps({**message, "h": signature}, separators=(",", ":")).encode()


def _opened(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload[: _MAX_BODY * 2])
    except _UNREADABLE as error:
        raise WireError("bad_order", f"order {payload[:80]!r} cannot be read") from error
    if not isinstance(message, dict):
        raise WireError("bad_order", f"order {payload[:80]!r} is no object")
    return message


def _check(message: Mapping[str, Any], signature: str) -> None:
    given = message.get("h")
    # compare_digest takes ASCII only
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), signature.encode()):
        raise WireError("bad_signature", "the order is not signed by the hub that enrolled us")
