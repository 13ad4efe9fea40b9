"""Tokens, enrolment, states and swap: on a real database, through the functions and the API."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from scout_central import database as databases
from scout_central.config import Broker, Mqtt
from scout_central.fleet import credentials, lifecycle, tokens
from scout_central.fleet.door import FleetDoor
from scout_central.fleet.lifecycle import FleetError
from scout_shared.errors import ConfigError
from scout_shared.fleet import EnrolRequest, StateRequest, TokenRequest
from tests.central.api.living import empty_hub

__all__ = ["empty_hub"]

ZONE = "Asia/Manila"
PASSWORD = "p" * 43
KEY = "ab" * 32


@pytest.fixture
def door(database: str) -> FleetDoor:
    return FleetDoor(database, Broker(host="broker.example"), Mqtt(password=""))


def token(door: FleetDoor, **asked: Any) -> str:
    return door.new_token(TokenRequest(**{"store_id": "s1", "zone": ZONE, **asked}), by="t").token


def request(text: str, **more: Any) -> EnrolRequest:
    given = {"request_id": uuid4(), "password": PASSWORD, "signing_key": KEY, **more}
    return EnrolRequest(token=text, **given)


def refused(word: str) -> Any:
    return pytest.raises(FleetError, check=lambda error: error.word == word)


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def test_an_enrolled_device_is_active_bound_and_admitted_by_its_password(
    door: FleetDoor, database: str
) -> None:
    answer = door.enrol(request(token(door, device_id="till-1").lower().replace("-", " ")))
    assert (answer.device_id, answer.store_id, answer.zone) == ("till-1", "s1", ZONE)
    assert (answer.broker_host, answer.broker_port, answer.broker_tls) == (
        "broker.example",
        8883,
        True,
    )
    with databases.connect(database, application="test") as connection:
        admitted = credentials.check(connection, "till-1", PASSWORD)
        assert admitted == credentials.Admitted("till-1", "s1", "active")
        assert credentials.check(connection, "till-1", PASSWORD + "x") is None
        assert credentials.check(connection, "till-2", PASSWORD) is None
    life = door.life("till-1")
    assert [(b.store_id, b.valid_to) for b in life.bindings] == [("s1", None)]
    assert [event.event for event in life.events] == ["enrolled", "token"]


def test_no_secret_is_stored_in_clear(door: FleetDoor, database: str) -> None:
    made = token(door)
    door.enrol(request(made))
    secret = "".join(made.split("-")[1:])
    stored = str(rows(database, "select * from metadata.enrolment_tokens"))
    stored += str(rows(database, "select password_hash from scout_secrets.device_credentials"))
    stored += str(rows(database, "select * from metadata.device_events"))
    assert PASSWORD not in stored
    assert secret not in stored.replace("-", "")
    with psycopg.connect(database) as connection:
        connection.execute("set role authenticated")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select * from scout_secrets.device_credentials")


def test_a_token_serves_once(door: FleetDoor) -> None:
    made = token(door)
    first = door.enrol(request(made))
    with refused("token_used") as caught:
        door.enrol(request(made))
    assert first.device_id in caught.value.message


def test_a_lost_answer_may_be_asked_for_again_and_nothing_changes(
    door: FleetDoor, database: str
) -> None:
    asked = request(token(door))
    first = door.enrol(asked)
    again = door.enrol(asked)
    assert again.device_id == first.device_id
    assert rows(database, "select count(*) from metadata.device_bindings") == [(1,)]
    # the same request id with another password is somebody else
    with refused("token_used"):
        door.enrol(request(asked.token, request_id=asked.request_id, password="q" * 43))


def test_a_lost_answer_is_given_for_some_minutes_only(door: FleetDoor, database: str) -> None:
    asked = request(token(door))
    door.enrol(asked)
    with psycopg.connect(database) as connection:
        connection.execute(
            "update metadata.enrolment_tokens set used_at = used_at - interval '16 minutes'"
        )
    with refused("token_used"):
        door.enrol(asked)


def test_of_many_at_once_one_is_admitted(door: FleetDoor) -> None:
    made = token(door)
    outcomes: list[str] = []

    def try_it(number: int) -> None:
        try:
            door.enrol(request(made, device_id=f"box-{number}"))
            outcomes.append("admitted")
        except FleetError as error:
            outcomes.append(error.word)

    threads = [threading.Thread(target=try_it, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["admitted", *["token_used"] * 5]


def test_the_second_waits_for_the_first_and_is_refused(door: FleetDoor, database: str) -> None:
    made = token(door)
    outcomes: list[str] = []

    def second() -> None:
        try:
            door.enrol(request(made, device_id="second"))
            outcomes.append("admitted")
        except FleetError as error:
            outcomes.append(error.word)

    with databases.connect(database, application="test") as connection:
        tokens.enrol(
            connection,
            token=made,
            request_id=uuid4(),
            password=PASSWORD,
            signing_key=bytes(32),
            device_id="first",
        )
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        assert not outcomes
        connection.commit()
    thread.join(20)
    assert outcomes == ["token_used"]


def test_unknown_and_expired_tokens_are_told_apart_only_with_the_secret(
    door: FleetDoor, database: str
) -> None:
    made = token(door)
    with psycopg.connect(database) as connection:
        connection.execute(
            "update metadata.enrolment_tokens set expires_at = now() - interval '1s'"
        )
    for wrong in ("", "AAAAAA", made[:-1] + ("A" if made[-1] != "A" else "B"), made[7:]):
        with refused("token_unknown"):
            door.enrol(request(wrong))
    with refused("token_expired"):
        door.enrol(request(made))


def test_an_id_that_is_somebodys_is_not_given_by_a_token_that_does_not_name_it(
    door: FleetDoor,
) -> None:
    door.enrol(request(token(door, device_id="till-1")))
    with refused("device_refused"):
        door.enrol(request(token(door), device_id="till-1"))
    with refused("device_refused"):
        door.enrol(request(token(door, device_id="till-2"), device_id="till-3"))
    again = door.enrol(request(token(door, device_id="till-1"), password="n" * 43))
    assert again.device_id == "till-1"


def test_a_swapped_box_takes_over_the_store_in_one_transaction(
    door: FleetDoor, database: str
) -> None:
    door.enrol(request(token(door, device_id="old")))
    made = token(door, replaces="old")
    assert door.find("old").state == "active"  # until the new one is there
    new = door.enrol(request(made, device_id="new"))
    assert (new.device_id, new.store_id) == ("new", "s1")
    assert door.find("old").state == "retired"
    assert not door.find("old").enrolled
    (binding,) = door.life("old").bindings
    (follower,) = door.life("new").bindings
    assert binding.end_reason == "replaced by new"
    assert binding.valid_to == follower.valid_from
    with databases.connect(database, application="test") as connection:
        assert credentials.check(connection, "old", PASSWORD) is None


def test_a_swap_that_fails_changes_nothing(door: FleetDoor, database: str) -> None:
    door.enrol(request(token(door, device_id="old")))
    door.enrol(request(token(door, device_id="taken")))
    made = token(door, replaces="old")
    with refused("device_refused"):
        door.enrol(request(made, device_id="taken"))
    assert door.find("old").state == "active"
    assert rows(database, "select count(*) from metadata.device_bindings") == [(2,)]
    assert door.enrol(request(made, device_id="new")).device_id == "new"  # the token is not burnt


def test_a_device_that_moves_has_a_history_and_takes_no_records_along(
    door: FleetDoor, database: str
) -> None:
    door.enrol(request(token(door, device_id="d")))
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into metadata.streams (device_id, epoch, store_id, next_sequence)"
            " values ('d', %s, 's1', 8)",
            (bytes(16),),
        )
    made = token(door, device_id="d", store_id="s2")
    with refused("device_refused") as caught:
        door.enrol(request(made))
    assert "7 records of store s1" in caught.value.message
    with psycopg.connect(database) as connection:
        connection.execute("update metadata.streams set received = '{[1,8)}'")
    assert door.enrol(request(made)).store_id == "s2"
    assert [(b.store_id, b.valid_to is None) for b in door.life("d").bindings] == [
        ("s2", True),
        ("s1", False),
    ]


def test_states_go_only_where_they_may(door: FleetDoor, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "insert into metadata.devices (device_id, store_id, state)"
            " values ('d', 's9', 'pending')"
        )

    def change(state: str, **more: Any) -> str:
        asked = StateRequest(state=state, reason="because", **more)
        return door.change("d", asked, by="me").state

    assert change("active", store_id="s1") == "active"
    assert change("active") == "active"
    with refused("device_refused"):
        change("active", store_id="s2")
    assert change("maintenance") == "maintenance"
    assert change("active") == "active"
    assert change("retired") == change("retired") == "retired"
    for state in ("active", "maintenance"):
        with refused("device_refused"):
            change(state)
    with refused("bad_request"):
        change("asleep")
    life = door.life("d")
    assert [e.event for e in life.events] == ["retired", "activated", "maintenance", "activated"]
    assert [(b.store_id, b.bound_by, b.ended_by) for b in life.bindings] == [("s1", "me", "me")]
    # only a token that names it brings it back
    assert door.enrol(request(token(door, device_id="d"))).device_id == "d"


def test_a_zone_is_never_guessed(door: FleetDoor) -> None:
    with refused("zone_unknown"):
        token(door, zone=None)
    door.enrol(request(token(door)))
    assert door.enrol(request(token(door, zone=None))).zone == ZONE


def test_a_hash_is_that_of_mosquitto_and_another_format_is_no_match() -> None:
    hashed = credentials.hash_password("secret")
    assert hashed.startswith("$7$101$")
    assert credentials.matches("secret", hashed)
    assert not credentials.matches("Secret", hashed)
    for wrong in ("", "$6$x$y", "$7$a$b$c", "$7$101$%%$%%", hashed.rpartition("$")[0]):
        assert not credentials.matches("secret", wrong)


def test_the_api_enrols_without_a_bearer_and_slows_guessing_down(empty_hub: Any) -> None:
    def post(path: str, bearer: str | None, **body: Any) -> Any:
        return empty_hub.request("POST", path, bearer, json=body)

    for bearer in ("operator-all", "viewer-all", None):
        assert post("/v1/devices/tokens", bearer, store_id="s1", zone=ZONE).status_code in (
            401,
            403,
        )
    made = post("/v1/devices/tokens", "admin-all", store_id="s1", zone=ZONE, device_id="till-1")
    assert made.status_code == 201
    given = {"request_id": str(uuid4()), "password": PASSWORD, "signing_key": KEY}
    done = post("/v1/enrol", None, token=made.json()["token"], **given)
    assert done.status_code == 200, done.text
    assert done.json()["device_id"] == "till-1"
    assert PASSWORD not in done.text
    life = empty_hub.get("/v1/devices/till-1/life", "viewer-all").json()
    assert life["events"][1]["done_by"] == "admin-all"
    state = {"state": "maintenance", "reason": "the card is changed"}
    assert post("/v1/devices/till-1/state", "viewer-all", **state).status_code == 403
    assert post("/v1/devices/till-1/state", "operator-north", **state).status_code == 404
    assert (
        post("/v1/devices/till-1/state", "operator-all", **state).json()["state"] == "maintenance"
    )
    wrong = [post("/v1/enrol", None, token="AAAAAA-AAAA", **given) for _ in range(11)]
    assert [answer.status_code for answer in wrong] == [403] * 10 + [429]
    assert wrong[0].json()["error"] == "token_unknown"


def test_enrolment_locks_what_it_reads(door: FleetDoor, database: str) -> None:
    """A retirement that is under way is waited for: nobody is admitted and retired at once."""
    door.enrol(request(token(door, device_id="d")))
    made = token(door, device_id="d")
    done: list[object] = []
    with databases.connect(database, application="test") as connection:
        lifecycle.retire(connection, "d", by="t", reason="lost")
        thread = threading.Thread(target=lambda: done.append(door.enrol(request(made))))
        thread.start()
        thread.join(0.3)
        assert not done
        connection.commit()
    thread.join(20)
    assert done
    assert door.find("d").state == "active"
    assert [b.valid_to is None for b in door.life("d").bindings] == [True, False]


def test_a_token_of_another_hub_is_unknown(door: FleetDoor, database: str) -> None:
    with databases.connect(database, application="test") as connection, refused("token_unknown"):
        tokens.enrol(
            connection,
            token="ABCDEF-ABCD-ABCD-ABCD-ABCD",
            request_id=UUID(int=1),
            password=PASSWORD,
            signing_key=bytes(32),
        )


def test_a_lost_ca_file_is_the_hubs_fault_and_burns_no_token(
    door: FleetDoor, database: str, tmp_path: Path
) -> None:
    made = token(door)
    blind = FleetDoor(database, Broker(host="b", ca_file=tmp_path / "none.pem"), Mqtt(password=""))
    with pytest.raises(ConfigError, match="ca_file"):
        blind.enrol(request(made))
    assert door.enrol(request(made)).store_id == "s1"
