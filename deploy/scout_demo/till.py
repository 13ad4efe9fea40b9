"""One store's point of sale: posts its baskets, in time order, to the HTTP door of its agent.

A basket counts as sold only when the agent said OK. Before a batch is posted, its range stands in
the till's book on disk; after any crash the same range is posted again under the same
Idempotency-Key, so that a sale whose OK got lost is not sold twice. The book is also the demo's own
account of what went in, made without asking Scout.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from scout_demo.folder import write_atomically
from scout_demo.journey import Baskets
from scout_shared.errors import PermanentError

_BATCH = 100  # documents; about 140 KB
_ANSWER_SECONDS = 60.0
_MOST_PAUSE_SECONDS = 2.0
_MOST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Book:
    """What a till was told OK, and the range that it posted without an answer yet."""

    baskets: int = 0
    lines: int = 0
    sending: tuple[int, int] | None = None
    """First basket, and the one after the last."""

    @classmethod
    def read(cls, path: Path) -> Book:
        """The book; an empty one when there is no file yet. Raises PermanentError."""
        try:
            kept = json.loads(path.read_bytes())
            sending = kept["sending"]
            return cls(kept["baskets"], kept["lines"], sending and (sending[0], sending[1]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(
                f"the till's book {path} cannot be read: {error}", "start over with --fresh"
            ) from error

    def write(self, path: Path) -> None:
        """Durable on return."""
        kept = {"baskets": self.baskets, "lines": self.lines, "sending": self.sending}
        write_atomically(path, json.dumps(kept).encode())


class Pace:
    """When a basket is due: its own time, ``speed`` times as fast; ``inf``: at once."""

    def __init__(self, speed: float, from_second: int) -> None:
        self.speed = speed
        self._from_second = from_second
        self._started = time.monotonic()

    def second(self) -> float:
        """The replayed clock, seconds since 1970 UTC."""
        return self._from_second + (time.monotonic() - self._started) * self.speed


class Till(threading.Thread):
    """Sells ``count`` baskets, then ends; ``failure`` says why it ended earlier.

    Args:
        path: of the till's book.
    """

    def __init__(
        self,
        baskets: Baskets,
        count: int,
        *,
        path: Path,
        pace: Pace,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"till-{baskets.store_id}", daemon=True)
        self.baskets = baskets
        self.count = count
        self.book = Book.read(path)
        self.door = 0
        """Port of the agent's HTTP door on this machine; set before ``start``."""
        self.retries = 0
        """Requests that got no OK and were repeated."""
        self.failure: PermanentError | None = None
        self._path = path
        self._pace = pace
        self._stop_event = stop
        self._connection: http.client.HTTPConnection | None = None

    @property
    def done(self) -> bool:
        """Whether everything planned was told OK."""
        return self.book.baskets >= self.count and self.book.sending is None

    def run(self) -> None:
        """Post what is due until all is sold or the till is told to stop."""
        try:
            while not self._stop_event.is_set() and not self.done:
                if self.book.sending is None:
                    end = self._due_end()
                    if end == self.book.baskets:
                        self._stop_event.wait(0.05)
                        continue
                    self._keep(Book(self.book.baskets, self.book.lines, (self.book.baskets, end)))
                self._sell()
        except PermanentError as error:
            self.failure = error
        finally:
            if self._connection is not None:
                self._connection.close()

    def _due_end(self) -> int:
        """One after the last basket that is due and fits into a batch."""
        first = self.book.baskets
        end = min(first + _BATCH, self.count)
        if self._pace.speed == float("inf"):
            return end
        now = self._pace.second()
        while end > first and self.baskets.second[end - 1] > now:
            end -= 1
        return end

    def _sell(self) -> None:
        """Post the range in the book until it is OK; then move the book on, in one write."""
        assert self.book.sending is not None
        first, end = self.book.sending
        body = f"[{','.join(map(self.baskets.document, range(first, end)))}]".encode()
        key = f"complete-journey-{self.baskets.store_id}-{first}-{end}"
        pause = 0.1
        while not self._stop_event.is_set():
            wait = self._post(body, key, end - first)
            if wait is None:
                lines = self.book.lines + self.baskets.line_count(first, end)
                self._keep(Book(end, lines))
                return
            self.retries += 1
            self._stop_event.wait(wait or random.uniform(0, pause))
            pause = min(pause * 2, _MOST_PAUSE_SECONDS)

    def _keep(self, book: Book) -> None:
        book.write(self._path)
        self.book = book

    def _post(self, body: bytes, key: str, documents: int) -> float | None:
        """None when told OK; else the seconds to wait (0: as we think best)."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                "127.0.0.1", self.door, timeout=_ANSWER_SECONDS
            )
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        try:
            self._connection.request("POST", "/v1/documents", body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):  # the agent is away, or died in between
            self._connection.close()
            self._connection = None
            return 0.0
        if response.status == http.HTTPStatus.OK:
            accepted = json.loads(answer)["accepted"]
            if accepted != documents:
                raise PermanentError(f"{self.name} posted {documents} documents, OK for {accepted}")
            return None
        if response.status in (
            http.HTTPStatus.SERVICE_UNAVAILABLE,
            http.HTTPStatus.TOO_MANY_REQUESTS,
        ):
            return min(float(response.headers.get("Retry-After", 1)), _MOST_WAIT_SECONDS)
        if response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return 0.0
        raise PermanentError(
            f"{self.name}: the agent refused baskets with {response.status}: {answer[:300]!r}"
        )
