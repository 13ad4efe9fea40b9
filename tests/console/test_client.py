"""The typed client against the real API: what it gives, and what each failure becomes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import re
import socket
import threading
import time
import types
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scout_console import client as client_module
from scout_console.client import (
    DatabaseAwayError,
    HubAwayError,
    HubClient,
    HubFailedError,
    NotFoundError,
    NotPermittedError,
    NotSignedInError,
    RefusedError,
)
from scout_shared import answers
from scout_shared.errors import ConfigError, PermanentError, ScoutError, TransientError
from tests.central.api.living import LiveHub, empty_hub, hub, serving
from tests.harness.waiting import free_port

__all__ = ["empty_hub", "hub"]


@pytest.fixture
def client(hub: LiveHub) -> Iterator[HubClient]:
    with HubClient(hub.url, "viewer-all") as found:
        yield found


def test_every_read_gives_its_typed_answer_and_when_it_was_read(client: HubClient) -> None:
    assert client.as_of is None
    walk = {"store_id": "north", "transaction_id": "transaction_id-north", "line_number": 1}
    for answer in (
        client.health(),
        client.me(),
        client.overview(),
        client.fleet(),
        client.fleet(status="online"),
        client.device("till-north"),
        client.runs(),
        client.runs(status="completed", task="medallion", limit=1),
        client.tables(),
        client.tables(exact=True),
        client.rows("gold.store_hour"),
        client.reconciliation(),
        client.reconciliation(by="device"),
        client.reconciliation(by="day", device_id="till-north"),
        client.quarantine(),
        client.quarantine(state="all", dataset="silver.transactions_cleaned"),
        client.errors(),
        client.errors(state=None),
        client.quality(),
        client.lineage("gold.product_store_day"),
        client.row_lineage("silver.transactions_cleaned", walk),
        client.uploads(),
    ):
        assert dataclasses.is_dataclass(answer)
        assert answer.as_of.utcoffset() == dt.timedelta(0)
        assert client.as_of is not None
        assert client.as_of >= answer.as_of
    age = client.answer_age_seconds
    assert age is not None
    assert age < 5


def test_rows_have_their_types(client: HubClient) -> None:
    page = client.rows("gold.product_store_day", filters=["store_id:eq:north"])
    (row,) = page.rows
    assert row["sales_value"] == Decimal("1.00")
    assert isinstance(row["sales_value"], Decimal)
    assert row["business_date"] == dt.date(2026, 1, 5)
    assert row["loaded_at"].tzinfo is dt.UTC
    assert [c.type for c in page.columns if c.name == "sales_value"] == ["numeric(16,2)"]
    assert len(list(client.all_rows("gold.product_store_day"))) == 2
    assert len(list(client.all_rows("gold.product_store_day", at_most=1))) == 1


def test_pages_follow_one_another(client: HubClient) -> None:
    first = client.reconciliation(by="day", limit=3)
    second = client.reconciliation(by="day", limit=3, cursor=first.next_cursor)
    assert (len(first.rows), len(second.rows), second.next_cursor) == (3, 1, None)
    keys = [(r.device_id, r.kind, r.business_date) for r in first.rows + second.rows]
    assert len(set(keys)) == 4
    items = client.quarantine(limit=1)
    more = client.quarantine(limit=1, cursor=items.next_cursor)
    assert items.items[0].quarantine_id > more.items[0].quarantine_id


def test_an_upload_by_path_and_by_bytes(empty_hub: LiveHub, tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_bytes(b"product_id\n00123\n1,2\n")
    with HubClient(empty_hub.url, "uploader-all") as client:
        result = client.upload("product_catalog", path)
        assert (result.file.name, result.file.rows, result.duplicate) == ("products.csv", 1, False)
        assert result.rejects[0].line_number == 3
        again = client.upload("product_catalog", path.read_bytes(), name="again.csv")
        assert again.duplicate
        assert again.file.file_id == result.file.file_id
        assert client.uploads().files == (result.file,)
        with pytest.raises(ConfigError):
            client.upload("product_catalog", b"x")
        with pytest.raises(RefusedError, match="product_id"):
            client.upload("product_catalog", b"sku\n1\n", name="p.csv")


def test_each_failure_has_its_kind_and_says_what_to_do(hub: LiveHub) -> None:
    cases: list[tuple[str, type[ScoutError], type[ScoutError], Any]] = [
        ("", NotSignedInError, ConfigError, lambda c: c.overview()),
        ("unknown", NotSignedInError, ConfigError, lambda c: c.overview()),
        ("uploader-all", NotPermittedError, PermanentError, lambda c: c.overview()),
        ("viewer-north", NotFoundError, PermanentError, lambda c: c.device("till-south")),
        ("viewer-all", NotFoundError, PermanentError, lambda c: c.device("../runs")),
        ("viewer-all", RefusedError, PermanentError, lambda c: c.rows("gold.store_hour", sort="x")),
    ]
    for token, kind, family, call in cases:
        with HubClient(hub.url, token) as client, pytest.raises(kind) as raised:
            call(client)
        assert isinstance(raised.value, family)
        assert raised.value.hint


def test_no_permission_and_empty_are_different_things(hub: LiveHub) -> None:
    with HubClient(hub.url, "viewer-nowhere") as client:
        assert client.fleet().devices == ()
    with HubClient(hub.url, "uploader-all") as client, pytest.raises(NotPermittedError):
        client.fleet()


def test_a_hub_that_is_away_is_transient_and_fast() -> None:
    started = time.monotonic()
    with (
        HubClient(f"http://127.0.0.1:{free_port()}", "viewer-all") as client,
        pytest.raises(HubAwayError) as raised,
    ):
        client.overview()
    assert isinstance(raised.value, TransientError)
    assert "scout-hub" in raised.value.hint
    assert time.monotonic() - started < 3


def test_a_hub_that_hangs_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with HubClient(url, "x", timeout=0.2) as client, pytest.raises(HubAwayError):
            client.health()


def test_a_database_that_is_away_is_not_a_hub_that_is_away(tmp_path: Path) -> None:
    with (
        serving("host=127.0.0.1 port=1 dbname=nothing", tmp_path) as live,
        HubClient(live.url, "viewer-all") as client,
    ):
        health = client.health()
        assert health.status == "down"
        assert [c.status for c in health.components] == ["down", "unknown", "unknown"]
        with pytest.raises(DatabaseAwayError) as raised:
            client._get(answers.Overview, "/overview", attempts=1)
        assert raised.value.retry_after_seconds == 2


def test_many_threads_share_one_client(client: HubClient) -> None:
    with ThreadPoolExecutor(8) as threads:
        names = set(threads.map(lambda _: client.me().name, range(40)))
    assert names == {"viewer-all"}


class Scripted(BaseHTTPRequestHandler):
    """Answers what the test says, one after another, and remembers what was asked."""

    script: typing.ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
    asked: typing.ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, headers, body = self.script.pop(0)
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[str]:
    Scripted.script[:] = answers
    Scripted.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ME = b'{"as_of": "2026-01-05T00:00:00Z", "name": "n", "role": "viewer", "stores": ["*"], "new": 1}'
AWAY = (503, {"retry-after": "0"}, b'{"error": "database_away", "message": "m", "hint": "h"}')


def test_a_read_is_repeated_and_then_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_SECONDS", 0.001)
    with scripted(AWAY, (502, {}, b"bad gateway"), (200, {}, ME)) as url, HubClient(url, "t") as c:
        assert c.me().name == "n"
    assert len(Scripted.asked) == 3


def test_a_read_is_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_SECONDS", 0.001)
    with (
        scripted(AWAY, AWAY, AWAY, (200, {}, ME)) as url,
        HubClient(url, "t") as c,
        pytest.raises(DatabaseAwayError),
    ):
        c.me()
    assert len(Scripted.asked) == client_module.ATTEMPTS


def test_an_upload_is_never_repeated() -> None:
    with (
        scripted(AWAY, (200, {}, ME)) as url,
        HubClient(url, "t") as c,
        pytest.raises(DatabaseAwayError),
    ):
        c.upload("product_catalog", b"x", name="x.csv")
    assert len(Scripted.asked) == 1


def test_a_long_retry_after_is_told_and_not_waited_for() -> None:
    slow = (503, {"retry-after": "30"}, b'{"error": "query_too_slow", "message": "m", "hint": "h"}')
    started = time.monotonic()
    with scripted(slow) as url, HubClient(url, "t") as c, pytest.raises(HubAwayError):
        c.me()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "status,body,kind",
    [
        (200, b"<html>log in</html>", HubFailedError),
        (200, b'{"name": "n"}', PermanentError),
        (
            200,
            b'{"as_of": "2026-01-05T00:00:00", "name": "n", "role": "", "stores": []}',
            PermanentError,
        ),
        (500, b"oops", HubFailedError),
        (413, b"Content Too Large", RefusedError),
        (302, b"", RefusedError),
    ],
    ids=["not JSON", "a field is missing", "a time without zone", "defect", "plain", "redirect"],
)
def test_strange_answers(status: int, body: bytes, kind: type[ScoutError]) -> None:
    with scripted((status, {}, body)) as url, HubClient(url, "t") as c, pytest.raises(kind) as e:
        c.me()
    assert e.value.hint


def test_an_address_that_is_none_is_a_setting() -> None:
    for url, token in (("http://[::1", "t"), ("http://h", "é")):
        with pytest.raises(ConfigError):
            HubClient(url, token)


def test_the_hub_describes_the_answers_that_the_client_reads(hub: LiveHub) -> None:
    schemas = hub.get("/v1/openapi.json", None).json()["components"]["schemas"]
    described = 0
    for name, cls in vars(answers).items():
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            continue
        schema = schemas[name]
        hints = typing.get_type_hints(cls)
        assert schema["description"], name
        assert list(schema["properties"]) == [field.name for field in dataclasses.fields(cls)]
        for field, shown in schema["properties"].items():
            nullable = any(kind.get("type") == "null" for kind in shown.get("anyOf", ()))
            assert nullable == isinstance(hints[field], types.UnionType), (name, field)
            described += "description" in shown
    written = re.findall(r'^    \w+: .+\n    """', inspect.getsource(answers), re.MULTILINE)
    assert described == len(written) > 70, "the texts under the fields are OpenAPI's descriptions"
