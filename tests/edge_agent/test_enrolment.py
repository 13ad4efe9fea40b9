"""The device's side of the enrolment: against answers of a real HTTP(S) server, and without one."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scout_edge import config, enrolment, identity
from scout_shared.errors import ConfigError, ScoutError, TransientError
from tests.edge_agent.test_cli import run
from tests.harness.tls import Authority, Issued
from tests.harness.waiting import free_port

ANSWER = {
    "device_id": "till-1",
    "store_id": "s1",
    "zone": "Asia/Manila",
    "broker_host": "broker.example",
    "broker_port": 8883,
    "broker_tls": True,
    "broker_ca": "",
    "hub_time": "",
    "of_a_newer_hub": 1,
}
Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


def admit(_body: dict[str, Any]) -> tuple[int, bytes]:
    now = dt.datetime.now(dt.UTC).isoformat()
    return 200, json.dumps({**ANSWER, "hub_time": now}).encode()


@contextmanager
def hub(reply: Reply, issued: Issued | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers as ``reply`` says; where it is, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/enrol"
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            status, content = reply(body)
            if not status:  # the answer gets lost
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a handshake that the device breaks off

    server = Server(("127.0.0.1", 0), Handler)
    if issued is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.certificate, issued.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        scheme = "https" if issued else "http"
        yield f"{scheme}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


def test_an_answer_that_is_lost_is_asked_for_with_the_same_request(buffer: Path) -> None:
    losses = iter((True, False))

    def reply(body: dict[str, Any]) -> tuple[int, bytes]:
        return (0, b"") if next(losses) else admit(body)

    with hub(reply) as (address, asked):
        with pytest.raises(TransientError, match="not reachable"):
            enrolment.enrol(buffer, hub=address, token="ABCDEF-X")
        assert identity.read(buffer) is None
        done = enrolment.enrol(buffer, hub=address, token="abcdefx")
    assert asked[0]["request_id"] == asked[1]["request_id"]
    assert asked[0]["password"] == asked[1]["password"] == done.identity.password
    assert identity.read(buffer) == done.identity
    assert identity.path_of(buffer).stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in buffer.parent.iterdir()) == ["edge.db.credentials"]
    assert done.identity.password not in repr(done)


def test_another_token_makes_another_password(buffer: Path) -> None:
    with hub(lambda _: (0, b"")) as (address, asked):
        for token in ("AAA", "BBB"):
            with pytest.raises(TransientError):
                enrolment.enrol(buffer, hub=address, token=token)
    assert asked[0]["password"] != asked[1]["password"]


def test_an_enrolled_device_is_not_enrolled_again_by_mistake(buffer: Path) -> None:
    with hub(admit) as (address, asked):
        first = enrolment.enrol(buffer, hub=address, token="AAA")
        with pytest.raises(ConfigError, match="enrolled already, as till-1 of store s1"):
            enrolment.enrol(buffer, hub=address, token="BBB")
        again = enrolment.enrol(buffer, hub=address, token="BBB", again=True)
    assert asked[1]["device_id"] == "till-1"
    assert again.identity.password != first.identity.password


@pytest.mark.parametrize(
    "status, content, error, message",
    [
        (403, {"error": "token_unknown", "message": "m"}, ConfigError, "letter by letter"),
        (409, {"error": "token_used", "message": "used"}, ConfigError, "used\n  hint: ask"),
        (410, {"error": "token_expired", "message": "old"}, ConfigError, "old\n  hint: ask"),
        (409, {"error": "device_refused", "message": "m", "hint": "h"}, ConfigError, "hint: h"),
        (429, {"error": "too_many_tries", "message": "m", "hint": "wait"}, TransientError, "wait"),
        (503, {"error": "database_away", "message": "away"}, TransientError, "away"),
        (404, "a router's page", ConfigError, "is not the hub"),
        (200, "a router's page", ConfigError, "is not the hub"),
        (200, {"device_id": "x"}, ScoutError, "cannot be read"),
        (200, {**ANSWER, "device_id": "a/b"}, ConfigError, "a/b"),
        (200, {**ANSWER, "zone": "Nowhere"}, ConfigError, "Nowhere"),
    ],
)
def test_what_the_hub_says_is_told_with_the_next_step(
    buffer: Path, status: int, content: object, error: type[ScoutError], message: str
) -> None:
    said = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    with hub(lambda _: (status, said)) as (address, _), pytest.raises(error) as caught:
        enrolment.enrol(buffer, hub=address, token="AAA")
    assert message in str(caught.value)
    assert identity.read(buffer) is None


def test_a_hub_that_is_not_there_or_not_encrypted(buffer: Path) -> None:
    with pytest.raises(TransientError, match="not reachable"):
        enrolment.enrol(buffer, hub=f"http://127.0.0.1:{free_port()}", token="A")
    with pytest.raises(ConfigError, match="not encrypted"):
        enrolment.enrol(buffer, hub="http://hub.example", token="A")
    for address in ("hub.example", "ftp://hub.example", "https://"):
        with pytest.raises(ConfigError, match="is no address"):
            enrolment.enrol(buffer, hub=address, token="A")


def test_a_certificate_is_trusted_or_it_is_said_why_not(buffer: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    right = authority.issue("hub", alternative="IP:127.0.0.1")
    for issued, ca, message in (
        (right, None, "not trusted"),
        (authority.issue("other"), authority.certificate, "for another name"),
        (authority.issue("old", days=-1, start_days=-9, alternative="IP:127.0.0.1"),
         authority.certificate, "clock says"),
        (authority.issue("new", days=9, start_days=2, alternative="IP:127.0.0.1"),
         authority.certificate, "clock says"),
    ):  # fmt: skip
        with hub(admit, issued) as (address, asked):
            with pytest.raises(ConfigError, match=message):
                enrolment.enrol(buffer, hub=address, token="A", ca=ca)
            assert not asked, "the password was sent to somebody who is not trusted"
    with hub(admit, right) as (address, _):
        enrolment.enrol(buffer, hub=address, token="A", ca=authority.certificate)
    with pytest.raises(ConfigError, match="--ca"):
        enrolment.enrol(tmp_path / "b.db", hub="https://127.0.0.1:1", token="A", ca=tmp_path / "x")


def test_a_clock_that_is_wrong_is_told(tmp_path: Path) -> None:
    def late(_body: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps({**ANSWER, "hub_time": "2031-01-01T00:00:00+00:00"}).encode()

    settings = tmp_path / "edge.toml"
    settings.write_text(f'[buffer]\npath = "{tmp_path}/edge.db"\n')
    with hub(late) as (address, _):
        done = run("enrol", "--hub", address, "--token", "A", "--config", settings)
    assert done.returncode == 0
    assert "clock is -" in done.stderr


def kept(buffer: Path, **more: Any) -> identity.Identity:
    fields: dict[str, Any] = {
        k: v for k, v in ANSWER.items() if k not in ("hub_time", "of_a_newer_hub")
    }
    fields |= {"password": "secret-1", "signing_key": bytes(32), **more}
    made = identity.Identity(**fields)
    identity.write(buffer, made)
    return made


def load(buffer: Path, text: str, **environ: str) -> config.EdgeSettings:
    path = buffer.with_name("edge.toml")
    path.write_text(f'{text}\n[buffer]\npath = "{buffer}"\n')
    return config.load(path, environ)


def test_the_settings_are_completed_by_the_enrolment_and_win(buffer: Path) -> None:
    kept(buffer, broker_ca="PEM")
    loaded = load(buffer, "", SCOUT_MQTT_PASSWORD="")
    device = loaded.device
    assert (device.id, device.store, device.zone) == ("till-1", "s1", "Asia/Manila")
    mqtt = loaded.mqtt
    assert (mqtt.host, mqtt.port, mqtt.tls, mqtt.password) == (
        "broker.example", 8883, True, "secret-1",
    )  # fmt: skip
    assert mqtt.tls_ca is not None
    assert mqtt.tls_ca.read_text() == "PEM"
    own = load(buffer, '[mqtt]\nhost = "own"', SCOUT_MQTT_PASSWORD="typed").mqtt
    assert (own.host, own.port, own.tls, own.tls_ca, own.password) == (
        "own", 1883, False, None, "typed",
    )  # fmt: skip
    assert load(buffer, "[mqtt]\nport = 443").mqtt.port == 443


def test_a_contradiction_names_both(buffer: Path) -> None:
    kept(buffer)
    for key, value in (("id", "till-2"), ("store", "s2"), ("zone", "Asia/Tokyo")):
        with pytest.raises(ConfigError, match=f"{key} is '{value}', but .* enrolled as"):
            load(buffer, f'[device]\n{key} = "{value}"')


def test_damaged_credentials_are_told_and_kept(buffer: Path) -> None:
    path = identity.path_of(buffer)
    for content in (b"", b"{}", b"[]", b"\xff", b'{"signing_key": 1}'):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="damaged"):
            load(buffer, "")
        assert path.read_bytes() == content
