"""From a real broker to committed rows and back: receipts, status, overload, absent database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paho.mqtt.client as mqtt
import psycopg
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from scout_central.config import Ingest, Mqtt
from scout_central.hub import Supervisor
from scout_central.ingest import Receiver, StreamReceipt
from scout_central.ingest.arrivals import Arrival
from scout_central.ingest.intake import Intake, cost_bytes
from scout_central.ingest.receipts import MAX_CREDIT, SEGMENT_BYTES, Receipts
from scout_shared import topics
from scout_shared.messages import Receipt, status_message
from tests.central.segments import DEVICE, EPOCH, FAILING_COMMIT, STORE, hello, readings
from tests.harness.servers import Address
from tests.harness.waiting import eventually

Query = Callable[..., list[tuple[object, ...]]]


@pytest.fixture(params=["broker", "mosquitto_broker"])
def any_broker(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def query(database: str) -> Iterator[Query]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda text, *values: connection.execute(text, values or None).fetchall()


class Device:
    """A plain MQTT client on a device's topics."""

    def __init__(self, broker: Address) -> None:
        self.receipts: list[Receipt] = []
        self._subscribed = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="test-device")
        self.client.on_message = lambda _c, _d, m: self.receipts.append(
            Receipt.decode(bytes(m.payload))
        )
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.connect(*broker)
        self.client.subscribe(topics.receipts(STORE, DEVICE), 1)
        self.client.loop_start()
        assert self._subscribed.wait(10)

    def send(self, channel: str, payload: bytes, *, retain: bool = False) -> None:
        topic = topics.up(STORE, DEVICE, channel)
        self.client.publish(topic, payload, 1, retain).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def device_at(broker: Address) -> Iterator[Device]:
    device = Device(broker)
    try:
        yield device
    finally:
        device.close()


@contextmanager
def hub(dsn: str, broker: Address) -> Iterator[Receiver]:
    receiver = Receiver(dsn, Mqtt(host=broker.host, port=broker.port), Ingest())
    with Supervisor(receiver.tasks()):
        eventually(lambda: receiver.connected, 15, "the hub is connected")
        yield receiver


def sent_again_until_received(device: Device, segment: bytes, watermark: int) -> None:
    """As a device does: send, wait a little, send again, until the receipt covers it."""

    def covered() -> bool:
        return any(r.watermark >= watermark for r in device.receipts)

    for _ in range(30):
        device.send(topics.DATA, segment)
        try:
            eventually(covered, 1)
        except AssertionError:
            continue
        return
    raise AssertionError(f"no receipt up to {watermark}: {device.receipts[-3:]}")


def test_a_segment_is_committed_and_then_receipted(
    database: str, any_broker: Address, query: Query
) -> None:
    with hub(database, any_broker), device_at(any_broker) as device:
        sent_again_until_received(device, readings(1, 50), 50)
        assert query("select count(*) from bronze.device_readings") == [(50,)]
        assert device.receipts[-1].epoch == EPOCH
        assert 1 <= device.receipts[-1].credit <= MAX_CREDIT


def test_a_hello_is_answered_with_a_receipt(database: str, any_broker: Address) -> None:
    with hub(database, any_broker), device_at(any_broker) as device:
        device.send(topics.HELLO, hello(version=3))
        eventually(lambda: [r for r in device.receipts if r.ledger_version == 3])


def test_a_status_retained_before_the_hub_came_is_heard(
    database: str, any_broker: Address, query: Query
) -> None:
    with device_at(any_broker) as device:
        device.send(topics.STATUS, status_message(True, "boot", 1), retain=True)
        with hub(database, any_broker):
            eventually(
                lambda: query("select online from metadata.devices") == [(True,)], 10, "online"
            )
            device.send(topics.STATUS, status_message(False, "boot", None), retain=True)
            eventually(
                lambda: query("select online from metadata.devices") == [(False,)], 10, "offline"
            )


def test_two_hubs_share_the_work_and_store_everything_once(
    database: str, any_broker: Address, query: Query
) -> None:
    with (
        hub(database, any_broker),
        hub(database, any_broker),
        device_at(any_broker) as device,
    ):
        for i in range(40):
            device.send(topics.DATA, readings(1 + 5 * i, 5))
        for i in range(40):
            sent_again_until_received(device, readings(1 + 5 * i, 5), 5 * (i + 1))
    assert query("select count(*), count(distinct sequence) from bronze.device_readings") == [
        (200, 200)
    ]


def test_the_hub_connects_again_when_the_connection_breaks(database: str, broker: Address) -> None:
    with hub(database, broker) as receiver, device_at(broker) as device:
        receiver.drop_connection()
        eventually(lambda: not receiver.connected, 10, "the hub noticed")
        eventually(lambda: receiver.connected, 15, "the hub is connected again")
        sent_again_until_received(device, readings(1, 5), 5)


def no_broker(receiver: Receiver) -> Supervisor:
    tasks = receiver.tasks()
    del tasks["ingest-mqtt"]
    return Supervisor(tasks)


def test_nothing_is_published_for_a_commit_that_fails(database: str, query: Query) -> None:
    published: list[tuple[str, Receipt]] = []
    receiver = Receiver(database, Mqtt(), Ingest(), publish=recording(published))
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(FAILING_COMMIT)
        with no_broker(receiver):
            receiver.offer(Arrival(STORE, DEVICE, topics.DATA, readings(1, 5)))
            eventually(lambda: receiver.failed_commits >= 2, 15, "two commits failed")
            assert published == []
            admin.execute("drop trigger fail on metadata.segments")
            eventually(lambda: published, 30, "receipted after the commit")
    assert published[-1][1].watermark == 5
    assert query("select count(*) from bronze.device_readings") == [(5,)]


def test_an_absent_database_stops_credit_and_bounds_the_queue(database: str, query: Query) -> None:
    published: list[tuple[str, Receipt]] = []
    limit = 256 * 1024
    receiver = Receiver(database, Mqtt(), Ingest(queue_bytes=limit), publish=recording(published))
    with psycopg.connect(database.rpartition("/")[0] + "/postgres", autocommit=True) as admin:
        name = database.rpartition("/")[2]
        with no_broker(receiver):
            receiver.offer(Arrival(STORE, DEVICE, topics.DATA, readings(1, 5)))
            eventually(lambda: published, 15, "receipted")
            assert published[-1][1].credit > 8
            admin.execute(f"alter database {name} allow_connections false")
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s "
                "and application_name = 'scout-ingest'",
                (name,),
            )
            segment = readings(6, 5)
            dropped = 0
            while dropped < 3:
                dropped += not receiver.offer(Arrival(STORE, DEVICE, topics.DATA, segment))
                assert receiver.intake.used_bytes <= limit
            eventually(lambda: published[-1][1].credit == 0, 30, "credit 0")
            assert published[-1][1].watermark == 5, "nothing more is receipted"
            admin.execute(f"alter database {name} allow_connections true")
            eventually(lambda: published[-1][1].watermark == 10, 60, "recovered")
            eventually(lambda: receiver.intake.used_bytes == 0, 30, "the queue is empty")
            receiver.offer(Arrival(STORE, DEVICE, topics.HELLO, hello()))
            eventually(lambda: published[-1][1].credit > 8, 30, "credit again")
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from bronze.device_readings").fetchone() == (10,)


def recording(published: list[tuple[str, Receipt]]) -> Callable[[str, bytes], bool]:
    def publish(topic: str, payload: bytes) -> bool:
        published.append((topic, Receipt.decode(payload)))
        return True

    return publish


def test_the_intake_counts_bytes_until_they_are_released() -> None:
    arrival = Arrival(STORE, DEVICE, topics.DATA, bytes(1000))
    cost = cost_bytes(arrival)
    intake = Intake(2 * cost)
    assert [intake.offer(arrival) for _ in range(3)] == [True, True, False]
    assert intake.take(0) == arrival
    assert not intake.offer(arrival), "taken is not yet done with"
    intake.release(cost)
    assert intake.offer(arrival)


@pytest.mark.parametrize(
    "free_bytes, devices, credit",
    [
        (1000 * SEGMENT_BYTES, 1, MAX_CREDIT),
        (100 * SEGMENT_BYTES, 20, 5),
        (0, 1, 0),
        (2 * SEGMENT_BYTES, 3, 0),
        (1000 * SEGMENT_BYTES, 2000, 1),
    ],
)
def test_credit_shares_the_free_room_among_the_active_devices(
    free_bytes: int, devices: int, credit: int
) -> None:
    receipts = Receipts(lambda *_: True, lambda: (free_bytes, 1000 * SEGMENT_BYTES))
    receipts.send(
        StreamReceipt(STORE, f"device-{i}", Receipt(epoch=EPOCH, watermark=1))
        for i in range(devices)
    )
    assert receipts.credit() == credit
    receipts.pause()
    assert receipts.credit() == 0
