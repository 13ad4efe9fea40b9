"""Gives a box records over its door and in a file, and remembers each that it was told OK.

A document whose OK did not come is given again under the same key until it does. A reading cannot
be repeated safely: one without OK may be stored or not, but never twice. A complete line of the
followed file counts as told. Each record carries an id of its own; its time is computed from the
id, so that a time that no source gave is seen. Each OK is also written to a file beside the logs.
"""

from __future__ import annotations

import datetime as dt
import http.client
import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BASE = dt.datetime(2026, 11, 20, 3, tzinfo=dt.UTC)
_STEP_SECONDS = 37
_UNTIMED = 7
"""Every seventh document has no time."""


@dataclass(slots=True)
class Told:
    """What one feeder gave, in the order in which it gave it."""

    label: str
    """Of the box."""
    metric: str
    documents: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Documents, too, in a file."""
    readings: list[int] = field(default_factory=list)
    unsure_documents: set[int] = field(default_factory=set)
    """Given, and nobody said OK."""
    unsure_readings: set[int] = field(default_factory=set)

    @property
    def records(self) -> int:
        """How many were told OK."""
        return len(self.documents) + len(self.lines) + len(self.readings)


def instant(number: int) -> dt.datetime:
    """When record ``number`` was observed: over two days, so that business days differ."""
    return BASE + dt.timedelta(seconds=number * _STEP_SECONDS % 172_800)


def document_instant(number: int) -> dt.datetime | None:
    """When document ``number`` happened, if its source knows it."""
    return None if number % _UNTIMED == 0 else instant(number)


def document_id(label: str, number: int) -> str:
    """What identifies a document in bronze."""
    return f"{label}/{number}"


def _text(moment: dt.datetime | None) -> str | None:
    return moment.isoformat() if moment else None


class Feeder(threading.Thread):
    """Feeds one box until ``rest``; then what was begun is carried to its OK, unless ``leave``.

    Args:
        inbox: the file that the box follows; None: it follows none.
        journal: where each OK is written.
    """

    def __init__(
        self,
        label: str,
        store: str,
        door: int,
        *,
        seed: int,
        pause_seconds: float,
        inbox: Path | None,
        journal: Path,
    ) -> None:
        super().__init__(name=f"feeder-{label}", daemon=True)
        self.told = Told(label, f"chaos.{label}")
        self.failure: BaseException | None = None
        self._store, self._door, self._pause = store, door, pause_seconds
        self._inbox = inbox
        self._journal = journal
        self._random = random.Random(seed)
        self._number = 0
        self._resting = threading.Event()
        self._leaving = threading.Event()
        self._nap = threading.Event()
        """Set when the feeder must not wait any more."""

    def rest(self) -> None:
        """Begin nothing new."""
        self._resting.set()

    def leave(self) -> None:
        """The box is gone: begin nothing new, and repeat nothing at another one."""
        self._leaving.set()
        self._resting.set()
        self._nap.set()

    def run(self) -> None:
        """Feed."""
        try:
            with self._journal.open("a", encoding="ascii") as journal:
                while not self._resting.is_set():
                    chance = self._random.random()
                    if chance < 0.4:
                        said = self._sell()
                    elif chance < 0.9 or self._inbox is None:
                        said = self._read()
                    else:
                        said = self._write(self._inbox)
                    journal.write(said)
                    self._nap.wait(self._random.uniform(0, 2 * self._pause))
        except BaseException as error:  # noqa: BLE001  # the schedule shows it
            self.failure = error

    def _numbers(self, most: int) -> list[int]:
        first = self._number + 1
        self._number += self._random.randint(1, most)
        return list(range(first, self._number + 1))

    def _body(self, number: int) -> dict[str, object]:
        return {
            "transaction_id": document_id(self.told.label, number),
            "store_id": self._store,
            "customer_id": None,
            "transaction_timestamp": _text(document_instant(number)),
            "currency": "PHP",
            "lines": [{"product_id": "1", "quantity": 1, "sales_value": 1.25}],
        }

    def _sell(self) -> str:
        numbers = self._numbers(8)
        documents = [
            {
                "type": "transaction",
                "observed_at": _text(document_instant(number)),
                "body": self._body(number),
            }
            for number in numbers
        ]
        self.told.unsure_documents |= set(numbers)
        key = {"Idempotency-Key": f"{self.told.label}-{numbers[0]}"}
        while not self._leaving.is_set():
            if self._post("/v1/documents", documents, key):
                self.told.unsure_documents -= set(numbers)
                self.told.documents += numbers
                return f"documents {numbers[0]} {numbers[-1]}\n"
            self._nap.wait(0.05)
        return ""

    def _read(self) -> str:
        numbers = self._numbers(120)
        readings = [
            {"metric": self.told.metric, "observed_at": _text(instant(n)), "value": n}
            for n in numbers
        ]
        self.told.unsure_readings |= set(numbers)
        if not self._post("/v1/readings", readings, {}):
            self._nap.wait(0.05)
            return ""
        self.told.unsure_readings -= set(numbers)
        self.told.readings += numbers
        return f"readings {numbers[0]} {numbers[-1]}\n"

    def _write(self, inbox: Path) -> str:
        numbers = self._numbers(5)
        lines = "".join(json.dumps(self._body(number)) + "\n" for number in numbers)
        with inbox.open("a", encoding="utf-8") as file:
            file.write(lines)
        self.told.lines += numbers
        return f"lines {numbers[0]} {numbers[-1]}\n"

    def _post(self, path: str, body: object, headers: Mapping[str, str]) -> bool:
        """Whether it was told OK; a refusal or a broken connection is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._door, timeout=5)
        try:
            connection.request(
                "POST", path, json.dumps(body), {"Content-Type": "application/json", **headers}
            )
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return False
        if response.status != http.HTTPStatus.OK:
            raise AssertionError(f"{path} was answered {response.status}: {answer[:300]!r}")
        return True


def joined(feeders: list[Feeder], seconds: float) -> list[str]:
    """Wait until they have ended; returns what went wrong."""
    deadline = time.monotonic() + seconds
    wrong = []
    for feeder in feeders:
        feeder.join(max(0.0, deadline - time.monotonic()))
        if feeder.is_alive():
            feeder.leave()
            feeder.join(6)
            wrong.append(f"{feeder.name}: what it gave was not told OK in {seconds:g} s")
        elif feeder.failure is not None:
            wrong.append(f"{feeder.name}: {feeder.failure!r}")
    return wrong
