"""The door for devices whose network blocks MQTT: who may, what is refused, receipt when."""

from __future__ import annotations

import http.client
from pathlib import Path

import httpx
import psycopg
import pytest

from scout_central.fleet.credentials import hash_password
from scout_shared import parcel, topics
from scout_shared.errors import WireError
from scout_shared.messages import Receipt
from tests.central.api.living import LiveHub, empty_hub, serving
from tests.central.segments import DEVICE, EPOCH, FAILING_COMMIT, STORE, hello, readings

__all__ = ["empty_hub"]

PASSWORD = "a password of this device's own, no other's"
OTHER, OTHER_PASSWORD = "device-2", "another password, of the other device"


@pytest.fixture
def hub(empty_hub: LiveHub) -> LiveHub:
    with psycopg.connect(empty_hub.dsn) as connection:
        for device, store, password in (
            (DEVICE, STORE, PASSWORD),
            (OTHER, "store-of-2", OTHER_PASSWORD),
        ):
            admit(connection, device, store, password)
    return empty_hub


def admit(
    connection: psycopg.Connection, device: str, store: str, password: str, state: str = "active"
) -> None:
    connection.execute(
        "insert into metadata.devices (device_id, store_id, state) values (%s, %s, %s)",
        (device, store, state),
    )
    connection.execute(
        "insert into scout_secrets.device_credentials (device_id, password_hash, signing_key)"
        " values (%s, %s, %s)",
        (device, hash_password(password), b"k" * 32),
    )


def parts(*segments: bytes) -> bytes:
    return parcel.encode([(topics.HELLO, hello()), *((topics.DATA, s) for s in segments)])


def post(
    hub: LiveHub,
    body: bytes,
    user: str = DEVICE,
    password: str = PASSWORD,
    kind: str = parcel.MEDIA_TYPE,
) -> httpx.Response:
    return httpx.post(
        hub.url + parcel.PATH,
        content=body,
        auth=(user, password),
        headers={"content-type": kind},
        trust_env=False,
        timeout=30,
    )


def stored(hub: LiveHub) -> list[tuple[object, ...]]:
    with psycopg.connect(hub.dsn) as connection:
        return connection.execute(
            "select device_id, store_id, sequence from bronze.device_readings"
            " inner join metadata.streams using (stream_id, store_id) order by sequence"
        ).fetchall()


def test_the_answer_is_the_receipt_and_a_repetition_stores_nothing(hub: LiveHub) -> None:
    body = parts(readings(1, 5), readings(6, 5))
    for _ in range(2):
        answer = post(hub, body)
        assert answer.status_code == 200
        (line,) = parcel.decode_answer(answer.content)
        receipt = Receipt.decode(line)
        assert (receipt.epoch, receipt.watermark) == (EPOCH, 10)
        assert receipt.credit > 0
        assert stored(hub) == [(DEVICE, STORE, i) for i in range(1, 11)]


@pytest.mark.parametrize(
    "user, password",
    [
        (DEVICE, "wrong"),
        (OTHER, PASSWORD),  # the right password of another device
        ("nobody", PASSWORD),
        ("", ""),
    ],
)
def test_a_device_speaks_for_itself_only(hub: LiveHub, user: str, password: str) -> None:
    answer = post(hub, parts(readings(1, 5)), user, password)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert answer.json()["error"] == "unknown_device"
    assert stored(hub) == []


def test_the_store_is_that_of_the_binding(hub: LiveHub) -> None:
    assert post(hub, parts(readings(1, 1)), OTHER, OTHER_PASSWORD).status_code == 200
    assert stored(hub) == [(OTHER, "store-of-2", 1)]


def test_wrong_passwords_are_slowed_down_and_right_ones_never_are(hub: LiveHub) -> None:
    seen = [post(hub, b"", DEVICE, "wrong").status_code for _ in range(11)]
    assert seen == [401] * 10 + [429]
    assert post(hub, parts(readings(1, 1))).status_code == 200


def wrong_from(hub: LiveHub, forwarded: str) -> int:
    answer = httpx.post(
        hub.url + parcel.PATH,
        content=b"",
        auth=(DEVICE, "wrong"),
        headers={"x-forwarded-for": forwarded, "content-type": parcel.MEDIA_TYPE},
        trust_env=False,
    )
    return answer.status_code


def test_behind_a_proxy_each_address_is_slowed_down_for_itself(hub: LiveHub) -> None:
    """What a stranger writes in front of his own address changes nothing."""
    seen = [wrong_from(hub, f"10.9.9.{i}, 198.51.100.7") for i in range(11)]
    assert seen == [401] * 10 + [429]
    assert wrong_from(hub, "198.51.100.8") == 401


def test_who_is_no_proxy_is_not_believed(empty_hub: LiveHub, tmp_path: Path) -> None:
    with serving(empty_hub.dsn, tmp_path, proxies=["10.0.0.1"]) as open_hub:
        seen = [wrong_from(open_hub, f"198.51.100.{i}") for i in range(11)]
    assert seen == [401] * 10 + [429]


def test_what_is_no_request_of_ours_is_refused_whole(hub: LiveHub) -> None:
    good = parts(readings(1, 5))
    for body in (b"", b"garbage", good[:-1], good + b"\x01", b"\x07\0\0\0\0", good * 33):
        answer = post(hub, body)
        assert (answer.status_code, answer.json()["error"]) == (422, "bad_parcel"), body[:20]
    assert post(hub, good, kind="application/json").status_code == 415
    assert post(hub, b"x" * (parcel.MAX_BYTES + 1)).status_code == 413
    assert httpx.post(hub.url + parcel.PATH, content=good, trust_env=False).status_code == 401
    assert stored(hub) == []


def test_a_body_of_unknown_length_is_refused(hub: LiveHub) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=20)
    try:
        token = httpx.BasicAuth(DEVICE, PASSWORD)._auth_header
        headers = {"Content-Type": parcel.MEDIA_TYPE, "Authorization": token}
        connection.request("POST", parcel.PATH, iter([b"x"]), headers, encode_chunked=True)
        assert connection.getresponse().status == 411
    finally:
        connection.close()


def test_a_damaged_segment_costs_the_others_nothing(hub: LiveHub) -> None:
    answer = post(hub, parts(b"no segment", readings(1, 5)))
    (line,) = parcel.decode_answer(answer.content)
    assert Receipt.decode(line).watermark == 5


def test_a_commit_that_fails_gives_no_receipt(hub: LiveHub) -> None:
    body = parts(readings(1, 5))
    with psycopg.connect(hub.dsn) as connection:
        connection.execute(FAILING_COMMIT.encode())
    answer = post(hub, body)
    assert (answer.status_code, answer.json()["error"]) == (503, "database_away")
    assert int(answer.headers["retry-after"]) > 0
    assert stored(hub) == []
    with psycopg.connect(hub.dsn) as connection:
        connection.execute("drop trigger fail on metadata.segments")
    assert post(hub, body).status_code == 200
    assert len(stored(hub)) == 5


def test_a_retired_device_is_not_admitted(hub: LiveHub) -> None:
    with psycopg.connect(hub.dsn) as connection:
        connection.execute("update metadata.devices set state = 'retired'")
    assert post(hub, parts(readings(1, 5))).status_code == 401


def test_a_request_is_read_as_it_was_made() -> None:
    made = [(topics.HELLO, b"h" * 300), (topics.DATA, b""), (topics.DATA, b"d")]
    assert parcel.decode(parcel.encode(made)) == made
    with pytest.raises(WireError, match="at most 64"):
        parcel.decode(parcel.encode([(topics.DATA, b"d")] * 65))
