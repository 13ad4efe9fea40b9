"""What operators and devices may do to the fleet: each method is one transaction, with its author.

Used by the API and by ``scout-hub device``; who may call which is theirs to decide. After a change
of credentials the broker's accounts are brought up to date; where that fails the change stands, is
logged, and the hub tries again (``keep_accounts``).
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from scout_central import database
from scout_central.config import Broker, Mqtt
from scout_central.fleet import accounts, lifecycle, orders, tokens
from scout_central.fleet.lifecycle import FleetError, Standing
from scout_shared import logs
from scout_shared.errors import ConfigError
from scout_shared.fleet import (
    CommandRequest,
    ConfigRequest,
    DeviceBinding,
    DeviceCommand,
    DeviceConfiguration,
    DeviceEvent,
    DeviceLife,
    DeviceState,
    EnrolAnswer,
    EnrolRequest,
    Ordered,
    StateRequest,
    TokenAnswer,
    TokenRequest,
)

log = logs.get("fleet")

_LOOK_SECONDS = 5.0


class FleetDoor:
    """The fleet in the database at ``dsn``."""

    def __init__(self, dsn: str, broker: Broker, mqtt: Mqtt) -> None:
        self._dsn = dsn
        self._broker = broker
        self._mqtt = mqtt

    @contextmanager
    def _transaction(self) -> Iterator[database.Connection]:
        # A connection for each: enrolments and operators are rare, and must not wait for readers.
        with (
            database.translated(),
            database.connect(self._dsn, application="scout-fleet") as connection,
            connection.transaction(),
        ):
            connection.execute("select set_config('lock_timeout', '10s', true)")
            yield connection

    def new_token(self, asked: TokenRequest, *, by: str) -> TokenAnswer:
        """A one-time token. Raises ConfigError or FleetError."""
        with self._transaction() as connection:
            made = tokens.create(
                connection,
                store_id=asked.store_id,
                device_id=asked.device_id,
                replaces=asked.replaces,
                zone=asked.zone,
                hours=asked.hours,
                by=by,
            )
        shown = asdict(made)
        del shown["token_id"]
        return TokenAnswer(**shown)

    def enrol(self, asked: EnrolRequest) -> EnrolAnswer:
        """Admit a device. Raises FleetError, or ConfigError when a name in it cannot be."""
        host, port, tls, ca_file = self._broker_address()
        try:
            ca = ca_file.read_text("utf-8") if ca_file is not None else ""
        except OSError as error:
            raise ConfigError(
                f"[broker] ca_file {ca_file} cannot be read: {error.strerror}", "correct it"
            ) from error
        with self._transaction() as connection:
            done = tokens.enrol(
                connection,
                token=asked.token,
                request_id=asked.request_id,
                password=asked.password,
                signing_key=_key(asked.signing_key),
                device_id=asked.device_id,
            )
        log.info(
            "device.enrolled",
            device_id=done.device_id,
            store_id=done.store_id,
            repeated=done.repeated,
        )
        self._sync()
        return EnrolAnswer(
            device_id=done.device_id,
            store_id=done.store_id,
            zone=done.zone,
            broker_host=host,
            broker_port=port,
            broker_tls=tls,
            broker_ca=ca,
            hub_time=dt.datetime.now(dt.UTC),
        )

    def find(self, device_id: str) -> DeviceState:
        """How it stands. Raises FleetError."""
        with self._transaction() as connection:
            return _state(lifecycle.find(connection, device_id))

    def change(self, device_id: str, asked: StateRequest, *, by: str) -> DeviceState:
        """Activate, put into maintenance, or retire. Safe to repeat. Raises FleetError."""
        if not asked.reason.strip():
            raise FleetError(
                "bad_request", "there is no reason", "say why: it stands in the history"
            )
        with self._transaction() as connection:
            if asked.state == "active":
                now = lifecycle.activate(
                    connection, device_id, by=by, reason=asked.reason, store_id=asked.store_id
                )
            elif asked.state == "maintenance":
                now = lifecycle.maintain(connection, device_id, by=by, reason=asked.reason)
            elif asked.state == "retired":
                now = lifecycle.retire(connection, device_id, by=by, reason=asked.reason)
            else:
                raise FleetError(
                    "bad_request",
                    f"{asked.state!r} is no state to be in",
                    "use active, maintenance or retired",
                )
        log.info("device.changed", device_id=device_id, state=now.state, done_by=by)
        self._sync()
        return _state(now)

    def life(self, device_id: str) -> DeviceLife:
        """Its state and history. Raises FleetError."""
        with self._transaction() as connection:
            return DeviceLife(
                as_of=dt.datetime.now(dt.UTC),
                device=_state(lifecycle.find(connection, device_id)),
                bindings=tuple(
                    DeviceBinding(**asdict(b)) for b in lifecycle.bindings(connection, device_id)
                ),
                events=tuple(
                    DeviceEvent(**asdict(e)) for e in lifecycle.events(connection, device_id)
                ),
                configurations=tuple(
                    DeviceConfiguration(**asdict(c))
                    for c in orders.configurations(connection, device_id)
                ),
                commands=tuple(
                    DeviceCommand(**asdict(c)) for c in orders.commands(connection, device_id)
                ),
            )

    def configure(self, device_id: str, asked: ConfigRequest, *, by: str) -> Ordered:
        """The settings that a device shall have. Raises ConfigError or FleetError."""
        with self._transaction() as connection:
            version = orders.configure(
                connection, device_id, asked.settings, by=by, reason=asked.reason
            )
        return Ordered(device_id=device_id, version=version, command_id=None)

    def command(self, device_id: str, asked: CommandRequest, *, by: str) -> Ordered:
        """Order a device to do something once. Raises FleetError."""
        with self._transaction() as connection:
            made = orders.command(
                connection, device_id, asked.command, by=by, minutes=asked.minutes
            )
        return Ordered(device_id=device_id, version=None, command_id=str(made))

    def keep_accounts(self, stop: threading.Event) -> None:
        """Bring the broker's accounts up to date again and again: another hub may have changed."""
        while not stop.wait(_LOOK_SECONDS):
            accounts.sync(self._dsn, self._broker)

    def _sync(self) -> None:
        try:
            accounts.sync(self._dsn, self._broker)
        except ConfigError as error:
            # The change stands; the operator must mend the file, and the hub tries again.
            log.error("accounts.failed", error=error.message, hint=error.hint)  # noqa: TRY400  # ours

    def _broker_address(self) -> tuple[str, int, bool, Path | None]:
        if self._broker.host:
            return self._broker.host, self._broker.port, self._broker.tls, self._broker.ca_file
        return self._mqtt.host, self._mqtt.port, self._mqtt.tls, self._mqtt.ca_file


def _state(now: Standing) -> DeviceState:
    return DeviceState(**asdict(now))


def _key(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FleetError("bad_request", "signing_key is not hexadecimal") from error
