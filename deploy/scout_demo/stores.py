"""The stores of the demo: for each an agent process and a till, a few at a time.

With no more stores than may run at once, all of them run until the end. Else the busiest come
first; when a till has sold everything and its agent holds nothing any more, the agent is stopped
cleanly and the next store opens in its place.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scout_demo.account import Sold
from scout_demo.journey import Baskets
from scout_demo.ports import HOST
from scout_demo.programs import Programs
from scout_demo.supervisor import Supervisor
from scout_demo.till import Book, Pace, Till
from scout_demo.view import StoreLine

_ASK_SECONDS = 1.0


@dataclass
class Store:
    """One store that is open: its till and its agent."""

    till: Till
    door: int
    status: dict[str, Any] | None = field(default=None)
    """What the agent last said at its door; None: it does not answer."""

    @property
    def store_id(self) -> str:
        """Of the data set."""
        return self.till.baskets.store_id

    @property
    def agent(self) -> str:
        """Name of the agent's process."""
        return f"till-{self.store_id}"

    @property
    def empty(self) -> bool:
        """Everything was sold, and the agent said since then that the hub has all of it."""
        return self.till.done and self.status is not None and self.status["backlog_records"] == 0


class Stores:
    """Opens, watches and closes the stores. Main thread only, but for ``watch``.

    Args:
        counts: baskets that each store is to sell in all.
        doors: ports for the agents' doors; as many stores are open at once.
    """

    def __init__(
        self,
        baskets: Sequence[Baskets],
        counts: dict[str, int],
        *,
        doors: Iterable[int],
        books: Path,
        pace: Pace,
        stop: threading.Event,
    ) -> None:
        self._stop = stop
        self._doors = deque(doors)
        self.tills = [
            Till(
                store,
                counts[store.store_id],
                path=book_path(books, store.store_id),
                pace=pace,
                stop=stop,
            )
            for store in baskets
        ]
        # A store without a share of the replay stays closed, unless there is room for everyone.
        self.rotating = len(self.tills) > len(self._doors)
        self._waiting = deque(t for t in self.tills if not self.rotating or not t.done)
        self.open: dict[str, Store] = {}
        self._closing: dict[str, Store] = {}

    @property
    def sold_out(self) -> bool:
        """Everything planned was told OK."""
        return all(till.done for till in self.tills)

    @property
    def finished(self) -> int:
        """Stores that have sold everything."""
        return sum(till.done for till in self.tills)

    @property
    def planned(self) -> Sold:
        """What is to be sold in all."""
        return Sold(
            sum(till.count for till in self.tills),
            sum(till.baskets.line_count(0, till.count) for till in self.tills),
        )

    @property
    def sold(self) -> Sold:
        """What these tills were told OK, so far."""
        books = [till.book for till in self.tills]
        return Sold(sum(b.baskets for b in books), sum(b.lines for b in books))

    @property
    def history_days(self) -> int:
        """From the first sale to the last, in the store that sells for the longest time."""
        spans = (
            int(till.baskets.second[till.book.baskets - 1] - till.baskets.second[0])
            for till in self.tills
            if till.book.baskets
        )
        return max(spans, default=0) // 86_400

    def advance(self, supervisor: Supervisor, programs: Programs) -> None:
        """Close what is empty, open what waits. Raises PermanentError when a till cannot go on."""
        for store in [s for s in self._closing.values() if s.agent not in supervisor.children]:
            del self._closing[store.store_id]
            self._doors.append(store.door)
        for store in list(self.open.values()):
            if store.till.failure is not None:
                raise store.till.failure
            if self.rotating and store.empty and self._waiting:
                supervisor.begin_stop(store.agent)
                self._closing[store.store_id] = self.open.pop(store.store_id)
        while self._waiting and self._doors:
            till = self._waiting.popleft()
            till.door = self._doors.popleft()
            store = self.open[till.baskets.store_id] = Store(till, till.door)
            supervisor.start(programs.agent(store.store_id, store.door))
            till.start()

    def watch(self) -> None:
        """Ask the agents how they are, until told to stop; a thread of its own."""
        while not self._stop.wait(_ASK_SECONDS):
            for store in list(self.open.values()):
                sold = store.till.done
                status = _status(store.door)
                # An answer from before the last sale must not pass for "empty".
                if sold == store.till.done:
                    store.status = status

    def lines(self, supervisor: Supervisor) -> tuple[StoreLine, ...]:
        """For the view."""
        made = []
        for store in list(self.open.values()):
            child, status = supervisor.children.get(store.agent), store.status
            made.append(
                StoreLine(
                    store_id=store.store_id,
                    baskets_sold=store.till.book.baskets,
                    baskets_planned=store.till.count,
                    waiting_records=None if status is None else int(status["backlog_records"]),
                    hub_answers=None if status is None else bool(status["hub_answers"]),
                    agent="stopped" if child is None else child.state,
                )
            )
        return tuple(made)


def book_path(books: Path, store_id: str) -> Path:
    """The book of a store's till."""
    return books / f"till-{store_id}.json"


def sold_ever(books: Path) -> Sold:
    """What all tills of this data directory were ever told OK, those of other runs too."""
    kept = [Book.read(path) for path in books.glob("till-*.json")]
    return Sold(sum(book.baskets for book in kept), sum(book.lines for book in kept))


def _status(port: int) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/v1/status")
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            return None
        return dict(json.loads(response.read()))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
