"""The life of devices: enrolment without a bearer, and what operators may do to them.

``POST /v1/enrol`` is the only door without a token of the API's: the one-time token in its body is
the token. Wrong ones are counted, per address and in all, and slowed down; right ones never are,
so a whole chain can be enrolled from behind one address.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from scout_central.api.auth import Caller, Viewer, needs
from scout_central.api.failures import RefusalError
from scout_central.fleet.door import FleetDoor
from scout_central.fleet.lifecycle import FleetError
from scout_shared.errors import ConfigError
from scout_shared.fleet import (
    CommandRequest,
    ConfigRequest,
    DeviceLife,
    DeviceState,
    EnrolAnswer,
    EnrolRequest,
    Ordered,
    StateRequest,
    TokenAnswer,
    TokenRequest,
)

router = APIRouter(tags=["devices"])

Operator = Annotated[Caller, Depends(needs("operator"))]
Admin = Annotated[Caller, Depends(needs("admin"))]

TRIES_PER_ADDRESS = 10
TRIES_IN_ALL = 100
TRIES_SECONDS = 60.0

_STATUS = {
    "token_unknown": 403,
    "token_used": 409,
    "token_expired": 410,
    "device_refused": 409,
    "not_found": 404,
}


class Tries:
    """Wrong tokens (or passwords) of the last TRIES_SECONDS; for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: collections.deque[tuple[float, str]] = collections.deque()

    def check(self, address: str) -> None:
        """Raises RefusalError (429) after too many."""
        with self._lock:
            oldest = time.monotonic() - TRIES_SECONDS
            while self._wrong and self._wrong[0][0] < oldest:
                self._wrong.popleft()
            own = sum(one == address for _, one in self._wrong)
            if own >= TRIES_PER_ADDRESS or len(self._wrong) >= TRIES_IN_ALL:
                raise RefusalError(
                    429,
                    "too_many_tries",
                    f"{own} wrong tokens or passwords came from {address} within"
                    f" {TRIES_SECONDS:g} s, {len(self._wrong)} in all",
                    "wait a minute, and check it before the next try",
                )

    def wrong(self, address: str) -> None:
        """One more."""
        with self._lock:
            self._wrong.append((time.monotonic(), address))


@router.post("/enrol")
def post_enrol(request: Request, body: EnrolRequest) -> EnrolAnswer:
    """Admit a device by its one-time token. Carries no bearer; safe to repeat as it is."""
    tries: Tries = request.app.state.tries
    address = request.client.host if request.client else "unknown"
    tries.check(address)
    try:
        return _door(request).enrol(body)
    except FleetError as error:
        tries.wrong(address)
        raise _refusal(error) from error


@router.post("/devices/tokens", status_code=201)
def post_token(request: Request, admin: Admin, body: TokenRequest) -> TokenAnswer:
    """A one-time token that admits one device to a store; it is shown only here."""
    _must_see(admin, body.store_id)
    try:
        return _door(request).new_token(body, by=admin.name)
    except FleetError as error:
        raise _refusal(error) from error
    except ConfigError as error:  # a name or a zone that cannot be
        raise RefusalError(422, "bad_request", error.message, error.hint) from error


@router.get("/devices/{device_id}/life")
def get_life(request: Request, viewer: Viewer, device_id: str) -> DeviceLife:
    """State, bindings to stores, and who did what to it."""
    _visible(request, viewer, device_id)
    life = _door(request).life(device_id)
    # It may have stood in a store that this caller may not see.
    return dataclasses.replace(
        life,
        bindings=tuple(b for b in life.bindings if _sees(viewer, b.store_id)),
        events=tuple(e for e in life.events if _sees(viewer, e.store_id)),
    )


@router.post("/devices/{device_id}/state")
def post_state(
    request: Request, operator: Operator, device_id: str, body: StateRequest
) -> DeviceState:
    """Activate a device, put it into maintenance, or retire it. Safe to repeat."""
    _visible(request, operator, device_id)
    if body.store_id is not None:
        _must_see(operator, body.store_id)
    try:
        return _door(request).change(device_id, body, by=operator.name)
    except FleetError as error:
        raise _refusal(error) from error
    except ConfigError as error:
        raise RefusalError(422, "bad_request", error.message, error.hint) from error


@router.post("/devices/{device_id}/config", status_code=202)
def post_config(request: Request, admin: Admin, device_id: str, body: ConfigRequest) -> Ordered:
    """Order settings: signed, tried by the device, kept when it is healthy with them."""
    _visible(request, admin, device_id)
    try:
        return _door(request).configure(device_id, body, by=admin.name)
    except FleetError as error:
        raise _refusal(error) from error
    except ConfigError as error:
        raise RefusalError(422, "bad_request", error.message, error.hint) from error


@router.post("/devices/{device_id}/commands", status_code=202)
def post_command(
    request: Request, operator: Operator, device_id: str, body: CommandRequest
) -> Ordered:
    """Order a device to do something once; its answer stands in the device's life."""
    _visible(request, operator, device_id)
    try:
        return _door(request).command(device_id, body, by=operator.name)
    except FleetError as error:
        raise _refusal(error) from error


def _visible(request: Request, found: Caller, device_id: str) -> DeviceState:
    """The device, for a caller who may see it: of another store's it does not say that it is."""
    try:
        device = _door(request).find(device_id)
    except FleetError:
        device = None
    if device is None or not _sees(found, device.store_id):
        raise RefusalError(
            404,
            "not_found",
            f"there is no device {device_id!r}, or this token may not see it",
            "GET /v1/fleet lists the devices of your stores",
        )
    return device


def _sees(found: Caller, store_id: str) -> bool:
    return found.sees_all or store_id in found.stores


def _must_see(found: Caller, store_id: str) -> None:
    if not _sees(found, store_id):
        raise RefusalError(
            403,
            "forbidden",
            f"the token {found.name!r} may not see store {store_id}",
            "ask an administrator for a token of that store",
        )


def _refusal(error: FleetError) -> RefusalError:
    return RefusalError(_STATUS.get(error.word, 422), error.word, error.message, error.hint)


def _door(request: Request) -> FleetDoor:
    door: FleetDoor = request.app.state.fleet
    return door
