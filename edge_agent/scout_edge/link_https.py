"""The way to the hub where MQTT is blocked: the same messages by HTTPS, for the same session.

``HttpsLink`` offers of ``aiomqtt.Client`` what a session uses. What is published while a request is
under way waits and goes with the next one, together; the answer, which the hub gives after its
commit only, is the acknowledgement of each and the receipts that then come in. What has no meaning
here (online status, orders, reports) is not sent: orders wait until MQTT is back.

Redirects are not followed: the password goes to no other place than the settings say.
Not its job: when this way is taken (``forwarder``), what is sent and deleted (its session).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiomqtt

from scout_edge.config import DeviceSettings, HubSettings
from scout_edge.metrics import AgentMetrics
from scout_shared import logs, parcel, topics
from scout_shared.errors import ConfigError, TransientError, WireError
from scout_shared.messages import Receipt

CONNECT_SECONDS = 10.0
_MAX_ANSWER_BYTES = 1 << 20
_MAX_PAUSE_SECONDS = 60.0  # whatever Retry-After says

log = logs.get("forwarder")


@dataclass(slots=True)
class _Letter:
    """A message that waits for its request."""

    channel: str
    payload: bytes
    done: asyncio.Future[None]


class HttpsLink:
    """One use of the way, until it fails; ``async with``. Raises ConfigError: ``[hub] ca``."""

    def __init__(
        self,
        device: DeviceSettings,
        hub: HubSettings,
        password: str,
        measured: AgentMetrics,
        answer_seconds: float,
    ) -> None:
        self._device = device
        self._post = Post(hub, device.id, password, answer_seconds)
        self._metrics = measured
        self._letters: asyncio.Queue[_Letter] = asyncio.Queue()
        self._incoming: asyncio.Queue[aiomqtt.Message | TransientError] = asyncio.Queue()

    async def __aenter__(self) -> HttpsLink:
        self._working = asyncio.create_task(self._work(), name="https")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._working.cancel()
        self._post.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self._working

    @property
    def messages(self) -> AsyncIterator[aiomqtt.Message]:
        """The receipts. Raises TransientError when the way has failed."""
        return self._receive()

    async def subscribe(self, topic: str, qos: int = 0) -> None:
        """Nothing: each answer brings its receipts."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        timeout: float = 0,  # noqa: ASYNC109  # as aiomqtt
    ) -> None:
        """Return once the hub has answered the request with it. Raises TransientError."""
        _, _, channel = topics.parse_up(topic)
        if channel not in (topics.DATA, topics.HELLO):
            return
        if self._working.done():
            raise TransientError("the way by HTTPS has ended")
        letter = _Letter(channel, payload, asyncio.get_running_loop().create_future())
        self._letters.put_nowait(letter)
        await letter.done

    async def _receive(self) -> AsyncIterator[aiomqtt.Message]:
        while True:
            found = await self._incoming.get()
            if isinstance(found, TransientError):
                raise found
            yield found

    async def _work(self) -> None:
        waiting: list[_Letter] = []
        try:
            while True:
                if not waiting:
                    waiting.append(await self._letters.get())
                while not self._letters.empty():
                    waiting.append(self._letters.get_nowait())
                count = _fitting(waiting)
                letters = waiting[:count]
                answer = await asyncio.to_thread(
                    self._post.send, parcel.encode((x.channel, x.payload) for x in letters)
                )
                del waiting[:count]
                self._metrics.fallback_posts.inc()
                for letter in letters:
                    if not letter.done.done():
                        letter.done.set_result(None)
                for receipt in parcel.decode_answer(answer):
                    self._incoming.put_nowait(self._message(receipt))
        except TransientError as error:
            self._incoming.put_nowait(error)
            # Nobody is left waiting for a request that will not be.
            while not self._letters.empty():
                waiting.append(self._letters.get_nowait())
            for letter in waiting:
                if not letter.done.done():
                    letter.done.set_exception(error)

    def _message(self, payload: bytes) -> aiomqtt.Message:
        try:
            epoch = Receipt.decode(payload).epoch
        except WireError as error:
            raise TransientError(f"the hub's answer cannot be read: {error.message}") from error
        topic = topics.receipt(self._device.store, self._device.id, epoch)
        return aiomqtt.Message(topic, payload, qos=1, retain=False, mid=0, properties=None)


def _fitting(letters: list[_Letter]) -> int:
    """How many of the first go into one request: at least one."""
    size = count = 0
    for letter in letters[: parcel.MAX_PARTS]:
        size += parcel.cost_bytes(letter.payload)
        if count and size > parcel.MAX_BYTES:
            break
        count += 1
    return count


class Post:
    """Requests to the hub's door, over one connection that is kept; for one thread at a time."""

    def __init__(self, hub: HubSettings, user: str, password: str, answer_seconds: float) -> None:
        where = urllib.parse.urlsplit(hub.url)
        assert where.hostname is not None
        self.place = where.netloc
        self.path = where.path.rstrip("/") + parcel.PATH
        self._seconds = answer_seconds
        self._asking = threading.Lock()
        self._ended = False
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {secret}", "Content-Type": parcel.MEDIA_TYPE}
        if where.scheme == "http":
            self._connection = http.client.HTTPConnection(
                where.hostname, where.port, timeout=CONNECT_SECONDS
            )
        else:
            self._connection = http.client.HTTPSConnection(
                where.hostname, where.port, timeout=CONNECT_SECONDS, context=tls_context(hub)
            )

    def send(self, body: bytes) -> bytes:
        """POST ``body``; the answer's body. Blocks.

        Raises:
            TransientError: the hub is not reachable, or refuses; nothing is known to be stored.
        """
        status, content, pause = self.ask(body)
        if status == 200:
            return content
        word, message = _said(content)
        raise RefusedError(
            f"the hub at {self.place} refuses: {message or f'status {status}'}",
            word,
            status,
            pause,
        )

    def ask(self, body: bytes) -> tuple[int, bytes, float]:
        """POST ``body``: status, answer, Retry-After in seconds. Raises TransientError."""
        with self._asking:
            try:
                return self._try(body)
            finally:
                if self._ended:
                    self._connection.close()

    def _try(self, body: bytes) -> tuple[int, bytes, float]:
        try:
            response, content = self._exchange(body)
        except ssl.SSLCertVerificationError as error:
            self._connection.close()
            raise TransientError(
                f"the certificate of {self.place} is not trusted: {error.verify_message}",
                "check [hub] url and ca, and the clock: scout-edge doctor",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise TransientError(f"no answer over HTTPS from {self.place}: {error}") from error
        if response.status != 200:
            self._connection.close()  # the hub may have left the body unread
        after = response.headers.get("Retry-After", "")
        pause = min(float(after), _MAX_PAUSE_SECONDS) if after.isdecimal() else 0.0
        return response.status, content, pause

    def _exchange(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        if self._connection.sock is not None:
            # The hub closes what was idle for a while, and that shows only now. Safe to repeat.
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError):
                return self._once(body)
            self._connection.close()
        return self._once(body)

    def _once(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection
        if connection.sock is None:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(self._seconds)
        connection.request("POST", self.path, body, self._headers)
        response = connection.getresponse()
        return response, response.read(_MAX_ANSWER_BYTES)

    def close(self) -> None:
        """End the connection; a request of another thread ends with an error."""
        self._ended = True
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        if self._asking.acquire(blocking=False):
            self._connection.close()
            self._asking.release()


class RefusedError(TransientError):
    """The hub answered, and it was no receipt."""

    def __init__(self, message: str, word: str, status: int, pause_seconds: float) -> None:
        super().__init__(message)
        self.word = word
        self.status = status
        self.pause_seconds = pause_seconds


def _said(content: bytes) -> tuple[str, str]:
    """The error's word and message; both empty when it is no answer of a hub."""
    try:
        found: Any = json.loads(content)
        return str(found["error"]), str(found["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""


def tls_context(hub: HubSettings) -> ssl.SSLContext:
    """What ``[hub] ca`` asks for. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=hub.ca and str(hub.ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"[hub] ca {hub.ca} cannot be used: {error}",
            "give a PEM file that the agent's user may read",
        ) from error
