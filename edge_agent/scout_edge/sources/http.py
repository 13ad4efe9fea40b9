"""The local door: a point of sale on this machine posts documents and readings over HTTP.

    POST /v1/documents  {"type", "observed_at", "body"}, an array of them, or NDJSON
    POST /v1/readings   {"metric", "observed_at", "value"}, an array of them, or NDJSON
    GET  /              the agent as a page for people
    GET  /v1/status     the agent as JSON (what ``scout-edge status`` shows)
    GET  /metrics       for Prometheus

200 ``{"accepted": n, "duplicate": false}`` comes only after the durable commit. A request is taken
whole or not at all. To make a retry safe send ``Idempotency-Key``: 1 to 200 characters, a new one
for each request, the same one to repeat it.

    400 the body, the item, the field, the value    409 the key came with other documents before
    404, 405 no such thing to ask                   411 no Content-Length
    413 too large: send smaller requests            415 not JSON
    503 with Retry-After: the buffer is full; keep the sale and send it again

JSON only, also because a web page that is open on the same machine cannot send that here without
asking first. It has no password: bind it to 127.0.0.1.
Not its job: what the documents mean.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from scout_edge import metrics
from scout_edge import status as pages
from scout_edge.buffer import Accepted, Buffer, KeyReusedError
from scout_edge.config import HttpSettings
from scout_edge.privacy import PrivacyError
from scout_edge.sources import SourceContext, SourceKind, payload
from scout_shared import logs
from scout_shared.errors import ConfigError, PermanentError, ScoutError, TransientError

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_KEY_CHARACTERS = 200
RETRY_AFTER_SECONDS = 10
_IDLE_SECONDS = 60.0  # a connection that says nothing for so long is closed
_REQUESTS_AT_ONCE = 4  # a body of 4 MB needs about 40 MB while it is parsed
_CONNECTIONS = 64

log = logs.get("http")


class HttpDoor:
    """The door as a source.

    Args:
        status: makes the answer of ``GET /v1/status``.
    """

    def __init__(
        self,
        buffer: Buffer,
        measured: metrics.AgentMetrics,
        status: Callable[[], dict[str, Any]],
        *,
        host: str,
        port: int,
        name: str = "http",
    ) -> None:
        self.name = name
        self.buffer = buffer
        self.metrics = measured
        self.status = status
        self.at_once = threading.BoundedSemaphore(_REQUESTS_AT_ONCE)
        self._host, self._port = host, port
        self._server: _Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once open."""
        assert self._server is not None
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def open(self) -> None:
        """Take the port. Raises ConfigError when it cannot be had."""
        try:
            self._server = _Server((self._host, self._port), self)
        except OSError as error:
            raise ConfigError(
                f"the HTTP door cannot listen on {self._host}:{self._port}: {error.strerror}",
                f"set the port of the source {self.name!r} to a free one; another agent may be"
                " running",
            ) from error
        log.info("door.opened", source=self.name, host=self.address[0], port=self.address[1])

    def run(self, stop: threading.Event) -> None:
        """Take connections until stopped; those that are open are answered while the agent is."""
        assert self._server is not None
        serving = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="http-accept",
            daemon=True,
        )
        serving.start()
        stop.wait()
        self._server.shutdown()
        serving.join()

    def close(self) -> None:
        """Give the port back."""
        if self._server is not None:
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # an idle keep-alive connection must not hold the agent up
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], door: HttpDoor) -> None:
        self.door = door
        self._connections = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client went away in the middle: its own matter, and it got no OK.
        log.debug("connection.dropped", reason=repr(sys.exc_info()[1]))


class _Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    def __init__(self, status: HTTPStatus, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "scout-edge"
    sys_version = ""
    timeout = _IDLE_SECONDS
    # Head and body leave in one packet: else Nagle and the delayed ACK cost 40 ms per request.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def handle_expect_100(self) -> bool:
        """Say "go on" at once: buffered, the client would wait for it."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _other(self) -> None:
        self._answer(self._not_allowed)

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _other  # noqa: N815 - as above

    def _answer(self, respond: Callable[[], tuple[bytes, str]]) -> None:
        self._unread = True
        try:
            body, content_type = respond()
        except _Refused as refused:
            self._refuse(refused)
        except KeyReusedError as error:
            self._refuse(_Refused(HTTPStatus.CONFLICT, error.message, error.hint))
        except PrivacyError as error:
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            self._refuse(_Refused(status, error.message, error.hint))
        except TransientError as error:
            self._refuse(_Refused(HTTPStatus.SERVICE_UNAVAILABLE, error.message, error.hint))
        except ScoutError as error:
            self._refuse(_Refused(HTTPStatus.BAD_REQUEST, error.message, error.hint))
        else:
            self._send(HTTPStatus.OK, body, content_type)

    def _get(self) -> tuple[bytes, str]:
        self._read_body()
        door = self.server.door
        if self.path == "/":
            return pages.page(door.status()).encode(), pages.PAGE_TYPE
        if self.path == "/v1/status":
            return json.dumps(door.status()).encode(), "application/json"
        if self.path == "/metrics":
            return door.metrics.text(), metrics.CONTENT_TYPE
        if self.path in _POSTS:
            return self._not_allowed()
        raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {self.path}", _KNOWN)

    def _post(self) -> tuple[bytes, str]:
        append = _POSTS.get(self.path)
        if append is None:
            if self.path in _GETS:
                return self._not_allowed()
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {self.path}", _KNOWN)
        content_type = self.headers.get_content_type()
        if content_type not in ("application/json", "application/x-ndjson"):
            raise _Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"content type {content_type!r} is not JSON",
                "send application/json or application/x-ndjson",
            )
        with self.server.door.at_once:
            body = self._read_body()
            accepted = append(self, body, content_type == "application/x-ndjson")
        self._count(accepted)
        answer = {"accepted": accepted.records, "duplicate": accepted.duplicate}
        return json.dumps(answer).encode(), "application/json"

    def documents(self, body: bytes, lines: bool) -> Accepted:
        """Append the documents of a request."""
        key = self.headers.get("Idempotency-Key")
        if key is not None and not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isprintable()):
            raise PermanentError(f"Idempotency-Key {key[:80]!r} is not 1 to 200 characters")
        buffer = self.server.door.buffer
        documents = payload.documents(body, buffer.calendar, lines=lines)
        return buffer.append_documents(documents, key)

    def readings(self, body: bytes, lines: bool) -> Accepted:
        """Append the readings of a request."""
        if self.headers.get("Idempotency-Key") is not None:
            raise PermanentError(
                "Idempotency-Key is for documents",
                "leave it out: a reading that is sent twice is two readings",
            )
        return self.server.door.buffer.append_readings(payload.readings(body, lines=lines))

    def _count(self, accepted: Accepted) -> None:
        measured = self.server.door.metrics
        if accepted.duplicate:
            measured.duplicate_records.inc(accepted.records)
        else:
            kind = self.path.rpartition("/")[2]
            measured.accepted_records.labels(kind).inc(accepted.records)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") is not None:
            raise _Refused(
                HTTPStatus.LENGTH_REQUIRED, "chunked requests are not taken", "give Content-Length"
            )
        given = self.headers.get("Content-Length")
        if given is None and self.command == "POST":
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length")
        if not (given or "0").isascii() or not (given or "0").isdigit():
            raise _Refused(HTTPStatus.BAD_REQUEST, f"Content-Length {given!r} is no number")
        size = int(given or "0")
        if size > MAX_REQUEST_BYTES:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{size} bytes are more than the {MAX_REQUEST_BYTES} of one request",
                "send the records in several requests",
            )
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            raise _Refused(HTTPStatus.BAD_REQUEST, f"only {len(body)} of {size} bytes came")
        self._unread = False
        return body

    def _not_allowed(self) -> tuple[bytes, str]:
        known = "POST" if self.path in _POSTS else "GET" if self.path in _GETS else ""
        if not known:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {self.path}", _KNOWN)
        raise _Refused(
            HTTPStatus.METHOD_NOT_ALLOWED, f"{self.path} knows no {self.command}", f"use {known}"
        )

    def _refuse(self, refused: _Refused) -> None:
        status = refused.status
        self.server.door.metrics.refused_requests.labels(str(int(status))).inc()
        log.warning("request.refused", status=int(status), path=self.path, reason=refused.message)
        answer = {"error": refused.message, "hint": refused.hint}
        self._send(status, json.dumps(answer).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST" if self.path in _POSTS else "GET")
        if self._unread and self.command != "GET":
            # What was not read would be taken for the next request.
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        with contextlib.suppress(OSError):  # gone before the answer: a retry asks again
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        log.debug("request.served", line=format % args)


_POSTS: dict[str, Callable[[_Handler, bytes, bool], Accepted]] = {
    "/v1/documents": _Handler.documents,
    "/v1/readings": _Handler.readings,
}
_GETS = ("/", "/v1/status", "/metrics")
_KNOWN = "known: POST /v1/documents, POST /v1/readings, GET /, GET /v1/status, GET /metrics"


def _make(context: SourceContext, settings: HttpSettings) -> HttpDoor:
    return HttpDoor(
        context.buffer,
        context.metrics,
        context.status,
        host=settings.host,
        port=settings.port,
        name=context.name,
    )


KIND = SourceKind(HttpSettings, _make, shapes=False)
