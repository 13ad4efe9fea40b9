"""What devices, operators and the hub say to one another about a device's life, over HTTP.

Answers are ``scout_shared.answers`` of their own kind; requests carry what the caller must say and
ignore what they do not know. Not its job: readings, receipts (``messages``).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from scout_shared.answers import Answer


class Request:
    """What all requests share."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {"use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest(Request):
    """A device asks to be admitted. Send it over TLS: it carries the device's new secrets."""

    token: str
    """The one-time token, as it was typed; case and dashes do not count."""
    request_id: UUID
    """Made by the device; the same one again gets the same answer, for some minutes."""
    password: str
    """Made by the device, 32 to 128 ASCII letters; the hub keeps its hash only."""
    signing_key: str
    """Made by the device, 64 hexadecimal digits: the hub signs with it what it sends."""
    device_id: str | None = None
    """What it wants to be called, where the token names nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolAnswer(Answer):
    """Who the device is from now on, and where its broker is. No secret stands in it."""

    device_id: str
    store_id: str
    zone: str
    broker_host: str
    broker_port: int
    broker_tls: bool
    broker_ca: str
    """Certificates to trust for the broker, PEM; empty: those of the system."""
    hub_time: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest(Request):
    """Somebody wants to enrol a device."""

    store_id: str
    device_id: str | None = None
    """The id it will have; without one the hub makes one."""
    replaces: str | None = None
    """The device of this store that is retired when the new one enrols."""
    zone: str | None = None
    """IANA zone of the store; without one, what its other devices say."""
    hours: float = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer(Answer):
    """A token: shown once, the hub cannot show it again."""

    token: str
    store_id: str
    zone: str
    device_id: str | None
    replaces: str | None
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRequest(Request):
    """A device shall be in another state."""

    state: str
    """active, maintenance or retired."""
    reason: str
    store_id: str | None = None
    """Where a pending device stands, if not where it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRequest(Request):
    """A device shall have these settings beside those in its file."""

    settings: dict[str, dict[str, Any]]
    """Table → key → value, of those that may be set from afar; replaces what was wanted before."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest(Request):
    """A device shall do something once."""

    command: str
    """drain, diagnostics or restart."""
    minutes: float = 10.0
    """After this time it is not done any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered(Answer):
    """An order that the hub will carry to the device."""

    device_id: str
    version: int | None
    """Of a configuration."""
    command_id: str | None
    """Of a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState(Answer):
    """How a device stands with the hub."""

    device_id: str
    store_id: str
    state: str
    """pending, active, maintenance or retired."""
    enrolled: bool
    """It has credentials of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBinding(Answer):
    """A device stood in a store from then until then (None: until now)."""

    store_id: str
    valid_from: dt.datetime
    valid_to: dt.datetime | None
    bound_by: str
    reason: str
    ended_by: str | None
    end_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent(Answer):
    """Who did what to a device."""

    event: str
    store_id: str
    done_by: str
    reason: str
    happened_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfiguration(Answer):
    """Settings that were wanted of a device, and what became of them."""

    version: int
    body: str
    """JSON, as it was signed."""
    state: str
    """desired, trying, good, rejected or superseded."""
    message: str
    """Why it was rejected."""
    made_by: str
    reason: str
    made_at: dt.datetime
    reported_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCommand(Answer):
    """A command, and what became of it."""

    command_id: str
    command: str
    state: str
    """waiting, sent, done, failed or refused."""
    made_by: str
    made_at: dt.datetime
    expires_at: dt.datetime
    finished_at: dt.datetime | None
    result: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLife(Answer):
    """A device's state and its history, newest first."""

    as_of: dt.datetime
    device: DeviceState
    bindings: tuple[DeviceBinding, ...]
    events: tuple[DeviceEvent, ...]
    configurations: tuple[DeviceConfiguration, ...]
    commands: tuple[DeviceCommand, ...]
