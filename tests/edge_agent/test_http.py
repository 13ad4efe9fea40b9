from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scout_edge.buffer import Buffer
from scout_edge.metrics import AgentMetrics
from scout_edge.room import Limits
from scout_edge.sources import http as door_module
from scout_edge.sources.http import HttpDoor
from scout_shared.errors import ConfigError
from tests.edge_agent.records import ZONE, contents, stored

SALE = b'{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00","body":{"total":12.50}}'
JSON = {"Content-Type": "application/json"}


class Client:
    """One keep-alive connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=10)

    def __call__(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        self.connection.request(method, path, body, headers if headers is not None else JSON)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.headers.get_content_type() == "application/json" and text:
            return answer.status, json.loads(text), answer.headers
        return answer.status, text, answer.headers


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE, limits=Limits(1 << 19)) as opened:
        yield opened


@pytest.fixture
def door(buffer: Buffer) -> Iterator[HttpDoor]:
    made = HttpDoor(
        buffer, AgentMetrics(buffer), lambda: {"running": True}, host="127.0.0.1", port=0
    )
    made.open()
    stop = threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    yield made
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    made.close()


@pytest.fixture
def ask(door: HttpDoor) -> Iterator[Client]:
    client = Client(door.address)
    yield client
    client.connection.close()


def test_documents_are_answered_after_they_are_durable(ask: Client, buffer: Buffer) -> None:
    status, answer, _ = ask("POST", "/v1/documents", SALE)
    assert (status, answer) == (200, {"accepted": 1, "duplicate": False})
    assert buffer.status().unsealed_records == 1
    status, answer, _ = ask("POST", "/v1/documents", b"[" + SALE + b"," + SALE + b"]")
    assert (status, answer["accepted"]) == (200, 2)
    lines = {"Content-Type": "application/x-ndjson; charset=utf-8"}
    status, answer, _ = ask("POST", "/v1/documents", SALE + b"\n" + SALE + b"\n", lines)
    assert (status, answer["accepted"]) == (200, 2)
    buffer.seal()
    _, bodies = contents(stored(buffer))
    assert [d.body for d in bodies] == [b'{"total":12.50}'] * 5


def test_readings_are_accepted(ask: Client, buffer: Buffer) -> None:
    body = b'[{"metric":"m","observed_at":"2026-11-23T08:15:00Z","value":1.5}]'
    assert ask("POST", "/v1/readings", body)[:2] == (200, {"accepted": 1, "duplicate": False})
    status, answer, _ = ask("POST", "/v1/readings", body, {**JSON, "Idempotency-Key": "k"})
    assert status == 400
    assert "Idempotency-Key" in answer["error"]
    assert buffer.status().unsealed_records == 1


def test_one_connection_serves_many_requests_without_delay(ask: Client, buffer: Buffer) -> None:
    ask("POST", "/v1/documents", SALE)
    before = ask.connection.sock
    for _ in range(50):
        assert ask("POST", "/v1/documents", SALE)[0] == 200
        assert ask("GET", "/v1/status")[0] == 200
        assert ask("POST", "/v1/documents", b"not json")[0] == 400
    assert ask.connection.sock is before
    assert buffer.status().unsealed_records == 51


def test_a_retry_under_the_same_key_is_answered_and_not_stored_again(
    ask: Client, buffer: Buffer
) -> None:
    key = {**JSON, "Idempotency-Key": "till-1:0001"}
    assert ask("POST", "/v1/documents", SALE, key)[1] == {"accepted": 1, "duplicate": False}
    assert ask("POST", "/v1/documents", SALE, key)[1] == {"accepted": 1, "duplicate": True}
    status, answer, _ = ask("POST", "/v1/documents", SALE.replace(b"12.50", b"13.50"), key)
    assert status == 409
    assert "till-1:0001" in answer["error"]
    assert buffer.status().unsealed_records == 1
    for bad in ("x" * 201, ""):
        assert ask("POST", "/v1/documents", SALE, {**JSON, "Idempotency-Key": bad})[0] == 400


@pytest.mark.parametrize(
    "body, error",
    [
        (b"{", "not JSON"),
        (b"[" + SALE + b"," + SALE.replace(b"+08:00", b"") + b"]", "item 1: observed_at"),
        (SALE.replace(b"12.50", b"NaN"), "NaN"),
        (SALE.replace(b"transaction", b"x" * 65), "document 0: type"),
        (SALE.replace(b"12.50", b'"' + b"x" * 300_000 + b'"'), "document 0: 300"),
        (b"[" * 50_000, "not JSON"),
    ],
)
def test_a_wrong_body_is_refused_whole(
    ask: Client, buffer: Buffer, body: bytes, error: str
) -> None:
    status, answer, _ = ask("POST", "/v1/documents", body)
    assert status == 400
    assert error in answer["error"]
    assert buffer.status().backlog_records == 0


def test_other_requests_get_the_fitting_refusal(ask: Client, buffer: Buffer) -> None:
    assert ask("GET", "/nothing")[0] == 404
    assert ask("POST", "/nothing", SALE)[0] == 404
    status, _, headers = ask("GET", "/v1/documents")
    assert (status, headers["Allow"]) == (405, "POST")
    assert ask("PUT", "/v1/documents", SALE)[0] == 405
    assert ask("POST", "/v1/status", b"{}")[0] == 405
    assert ask("DELETE", "/metrics")[0] == 405
    assert ask("POST", "/v1/documents", SALE, {"Content-Type": "text/plain"})[0] == 415
    assert ask("POST", "/v1/documents", SALE, {})[0] == 415
    assert ask("POST", "/v1/documents", SALE, {**JSON, "Transfer-Encoding": "chunked"})[0] == 411
    assert ask("POST", "/v1/documents", SALE, {**JSON, "Content-Length": "-5"})[0] == 400
    assert buffer.status().backlog_records == 0
    assert ask("POST", "/v1/documents", SALE)[0] == 200


def test_a_request_that_is_too_large_is_refused_before_it_is_read(
    ask: Client, buffer: Buffer
) -> None:
    ask.connection.putrequest("POST", "/v1/documents")
    ask.connection.putheader("Content-Type", "application/json")
    ask.connection.putheader("Content-Length", str(door_module.MAX_REQUEST_BYTES + 1))
    ask.connection.endheaders()
    answer = ask.connection.getresponse()
    assert answer.status == 413
    assert answer.headers["Connection"] == "close"
    assert "several requests" in json.loads(answer.read())["hint"]


def test_a_client_that_waits_to_be_told_to_go_on_is_told(door: HttpDoor, buffer: Buffer) -> None:
    with socket.create_connection(door.address, timeout=5) as raw:
        head = f"POST /v1/documents HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
Content-Length: {len(SALE)}\r\nExpect: 100-continue\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 100 ")
        raw.sendall(SALE)
        assert raw.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert buffer.status().unsealed_records == 1


def test_a_request_that_breaks_off_stores_nothing(door: HttpDoor, buffer: Buffer) -> None:
    with socket.create_connection(door.address, timeout=5) as raw:
        raw.sendall(
            b"POST /v1/documents HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n" + SALE
        )
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert buffer.status().backlog_records == 0


def test_a_full_buffer_refuses_with_retry_after_and_loses_nothing(
    ask: Client, buffer: Buffer
) -> None:
    rng = random.Random(1)
    accepted = 0
    while True:
        text = json.dumps(rng.randbytes(20_000).hex()).encode()
        status, answer, headers = ask("POST", "/v1/documents", SALE.replace(b"12.50", text))
        if status != 200:
            break
        accepted += 1
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert "full" in answer["error"]
    buffer.seal()
    assert len(contents(stored(buffer))[1]) == accepted == buffer.status().backlog_records


def test_many_clients_at_once_lose_and_double_nothing(door: HttpDoor, buffer: Buffer) -> None:
    def sell(till: int) -> None:
        client = Client(door.address)
        for i in range(15):
            sale = SALE.replace(b"12.50", b"%d" % (till * 100 + i))
            key = {**JSON, "Idempotency-Key": f"{till}:{i}"}
            for _ in range(2):
                assert client("POST", "/v1/documents", sale, key)[0] == 200
        client.connection.close()

    threads = [threading.Thread(target=sell, args=(till,)) for till in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    buffer.seal()
    totals = [json.loads(d.body)["total"] for d in contents(stored(buffer))[1]]
    assert sorted(totals) == sorted(till * 100 + i for till in range(10) for i in range(15))


def test_status_and_metrics_are_read(ask: Client) -> None:
    ask("POST", "/v1/documents", SALE)
    ask("POST", "/v1/documents", b"{")
    assert ask("GET", "/v1/status")[1] == {"running": True}
    status, text, headers = ask("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    lines = text.decode().splitlines()
    assert 'scout_edge_accepted_records_total{kind="documents"} 1.0' in lines
    assert 'scout_edge_refused_requests_total{status="400"} 1.0' in lines
    assert "scout_edge_backlog_records 1.0" in lines


def test_a_busy_port_is_a_setting_to_change(door: HttpDoor, buffer: Buffer) -> None:
    host, port = door.address
    other = HttpDoor(buffer, door.metrics, dict, host=host, port=port)
    with pytest.raises(ConfigError, match=str(port)):
        other.open()
    other.close()
