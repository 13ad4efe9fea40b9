"""Orders at the hub: versions, what is due, what reports may change, and who may order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scout_central import database as databases
from scout_central.config import Broker, Mqtt
from scout_central.fleet import orders
from scout_central.fleet.door import FleetDoor
from scout_shared.errors import ConfigError
from scout_shared.fleet import CommandRequest, ConfigRequest, EnrolRequest, TokenRequest
from scout_shared.orders import CommandOrder, ConfigOrder, Report
from tests.central.api.living import empty_hub
from tests.central.fleet.test_enrolment import KEY, PASSWORD, ZONE, refused

__all__ = ["empty_hub"]

DEBUG = {"log": {"level": "debug"}}


@pytest.fixture
def door(database: str) -> FleetDoor:
    made = FleetDoor(database, Broker(), Mqtt(password=""))
    enrol(made)
    return made


def enrol(door: FleetDoor) -> None:
    token = door.new_token(TokenRequest(store_id="s1", device_id="d", zone=ZONE), by="t").token
    door.enrol(EnrolRequest(token=token, request_id=uuid4(), password=PASSWORD, signing_key=KEY))


@pytest.fixture
def connection(database: str) -> Iterator[databases.Connection]:
    with databases.connect(database, application="test", autocommit=True) as made:
        yield made


def configure(door: FleetDoor, settings: dict[str, dict[str, Any]]) -> int:
    version = door.configure("d", ConfigRequest(settings=settings, reason="r"), by="me").version
    assert version is not None
    return version


def states(door: FleetDoor) -> list[tuple[int, str]]:
    return [(c.version, c.state) for c in door.life("d").configurations]


def test_a_newer_configuration_replaces_the_older_and_only_it_is_due(
    door: FleetDoor, connection: databases.Connection
) -> None:
    assert [configure(door, DEBUG), configure(door, {})] == [1, 2]
    assert states(door) == [(2, "desired"), (1, "superseded")]
    (one,) = orders.due(connection)
    key = bytes.fromhex(KEY)
    assert ConfigOrder.decode(one.payload, device_id="d", key=key) == ConfigOrder("d", 2, "{}")
    assert one.store_id == "s1"
    orders.sent(connection, one)
    assert orders.due(connection) == []
    assert len(orders.due(connection, again_seconds=0)) == 1, "it is not answered yet"
    orders.reported(connection, "d", Report("config", "2", "good"))
    assert orders.due(connection, again_seconds=0) == []


def test_a_report_that_comes_late_or_twice_or_for_another_changes_nothing(
    door: FleetDoor, connection: databases.Connection
) -> None:
    configure(door, DEBUG)
    for report in (
        Report("config", "1", "trying"),
        Report("config", "1", "rejected", "no\0receipts"),
        Report("config", "1", "trying"),
        Report("config", "7", "good"),
    ):
        assert orders.reported(connection, "d", report)
    assert not orders.reported(connection, "d", Report("config", "x", "good"))
    assert not orders.reported(connection, "d", Report("config", "1", "desired"))
    assert not orders.reported(connection, "d", Report("secret", "1", "good"))
    (only,) = door.life("d").configurations
    assert (only.state, only.message) == ("rejected", "noreceipts")


def test_a_command_is_sent_until_it_is_answered_or_expired(
    door: FleetDoor, connection: databases.Connection
) -> None:
    made = door.command("d", CommandRequest(command="drain"), by="me").command_id
    late = door.command("d", CommandRequest(command="restart"), by="me").command_id
    connection.execute(
        "update metadata.device_commands set expires_at = now() - interval '1 s'"
        " where command_id = %s",
        (late,),
    )
    (one,) = orders.due(connection)
    order = CommandOrder.decode(one.payload, device_id="d", key=bytes.fromhex(KEY))
    assert (order.command_id, order.command) == (made, "drain")
    orders.sent(connection, one)
    assert len(orders.due(connection, again_seconds=0)) == 1
    for result in ({"left_records": 3}, {"left_records": 9}):
        report = Report("command", made or "", "done", "a\0b", result)
        assert orders.reported(connection, "d", report)
    assert orders.due(connection, again_seconds=0) == []
    found = {c.command_id: (c.state, c.result) for c in door.life("d").commands}
    assert made is not None
    assert found[made] == ("done", {"message": "ab", "left_records": 3})


def test_another_device_answers_for_nobody_else(
    door: FleetDoor, connection: databases.Connection
) -> None:
    made = door.command("d", CommandRequest(command="drain"), by="me").command_id
    configure(door, DEBUG)
    orders.reported(connection, "thief", Report("command", made or "", "done"))
    orders.reported(connection, "thief", Report("config", "1", "good"))
    assert states(door) == [(1, "desired")]
    assert [c.state for c in door.life("d").commands] == ["waiting"]


def test_what_cannot_be_ordered_is_refused_at_the_hub(door: FleetDoor, database: str) -> None:
    with pytest.raises(ConfigError, match=r"\[mqtt\] host may not be set from afar"):
        configure(door, {"mqtt": {"host": "thief"}})
    for what, minutes in (("format", 10.0), ("drain", 0.0), ("drain", 1e9)):
        with refused("bad_request"):
            door.command("d", CommandRequest(command=what, minutes=minutes), by="me")
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into metadata.devices (device_id, store_id) values ('by-hand', 's1')"
        )
    with refused("device_refused"):
        door.command("by-hand", CommandRequest(command="drain"), by="me")


def test_orders_need_their_role_and_are_written_down(empty_hub: Any) -> None:
    enrol(FleetDoor(empty_hub.dsn, Broker(), Mqtt(password="")))

    def post(what: str, bearer: str, **body: Any) -> int:
        answer = empty_hub.request("POST", f"/v1/devices/d/{what}", bearer, json=body)
        return int(answer.status_code)

    wanted = {"settings": DEBUG, "reason": "look"}
    assert post("config", "operator-all", **wanted) == 403
    assert post("config", "admin-all", settings={"mqtt": {"host": "x"}}, reason="r") == 422
    assert post("config", "admin-all", **wanted) == 202
    assert post("commands", "viewer-all", command="drain") == 403
    assert post("commands", "operator-north", command="drain") == 404
    assert post("commands", "operator-all", command="drain") == 202
    life = empty_hub.get("/v1/devices/d/life").json()
    assert [(e["event"], e["done_by"]) for e in life["events"][:2]] == [
        ("commanded", "operator-all"),
        ("configured", "admin-all"),
    ]
    device = empty_hub.get("/v1/fleet/d").json()["device"]
    assert (device["config_version"], device["config_wanted"]) == (None, 1)
