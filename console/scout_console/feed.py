"""The newest answers of one hub, shared by all who look at it, with what became of the last try.

A screen never loses what it had: when the hub is away, ``Seen`` keeps the last answer, its age and
why there is no newer one. One fetch per question is under way at a time, however many screens ask,
and nobody asks again within ``hold_seconds``. Not its job: words (``views``).
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from scout_console.client import (
    HubAwayError,
    HubClient,
    NotFoundError,
    NotPermittedError,
    NotSignedInError,
)
from scout_shared import answers
from scout_shared.errors import ScoutError

_MOST_QUESTIONS = 256
_DAYS_SHOWN = 400


class Dated(Protocol):
    """An answer of the hub; each says when the hub read."""

    @property
    def as_of(self) -> dt.datetime:
        """The hub's time of reading."""


A = TypeVar("A", bound=Dated)


@dataclass(frozen=True, slots=True)
class Seen(Generic[A]):
    """What is known of one question."""

    value: A | None
    """The last answer; None: there was none."""
    age_seconds: float
    """Of the answer, by this machine's monotonic clock; without an answer, 0."""
    failure: ScoutError | None
    """Why the last try brought no answer; None: it did."""

    @property
    def away(self) -> bool:
        """The hub or its database did not answer."""
        return isinstance(self.failure, HubAwayError)

    @property
    def forbidden(self) -> bool:
        """The token may not ask this."""
        return isinstance(self.failure, NotPermittedError)

    @property
    def stale(self) -> bool:
        """There is an answer, and it is not the newest that there should be."""
        return self.value is not None and self.failure is not None

    @property
    def now(self) -> dt.datetime:
        """The hub's time that ages on the screen refer to; needs an answer.

        With a live answer it is now. With a kept one it stands still: nobody knows whether a store
        that was dark is dark still.
        """
        assert self.value is not None, "no answer, no time of the hub's"
        moving = 0.0 if self.failure else self.age_seconds
        return self.value.as_of + dt.timedelta(seconds=moving)


@dataclass(slots=True)
class _Kept:
    value: Any = None
    answered_at: float = 0.0
    tried_at: float = float("-inf")
    failure: ScoutError | None = None


class Feed:
    """The questions that the screens ask, with one method for each; thread-safe.

    Args:
        client: the way to the hub.
        hold_seconds: an answer, or a failure, is good for so long.
        monotonic: this machine's clock for ages.
    """

    def __init__(
        self,
        client: HubClient,
        *,
        hold_seconds: float = 2.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self._hold_seconds = hold_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, tuple[threading.Lock, _Kept]] = OrderedDict()
        self._away: tuple[float, HubAwayError] | None = None

    def me(self) -> Seen[answers.Me]:
        """Whom the token stands for."""
        return self.ask("me", self.client.me)

    def overview(self) -> Seen[answers.Overview]:
        """The whole in one answer."""
        return self.ask("overview", self.client.overview)

    def fleet(self) -> Seen[answers.Fleet]:
        """All devices."""
        return self.ask("fleet", self.client.fleet)

    def device(self, device_id: str) -> Seen[answers.DeviceDetail]:
        """One device."""
        return self.ask(("device", device_id), lambda: self.client.device(device_id))

    def days(self, device_id: str) -> Seen[answers.Reconciliation]:
        """Where the records of one device went, by business day."""
        return self.ask(
            ("days", device_id),
            lambda: self.client.reconciliation(by="day", device_id=device_id, limit=_DAYS_SHOWN),
        )

    def reconciliation(self) -> Seen[answers.Reconciliation]:
        """Where the records went, by device."""
        return self.ask("reconciliation", lambda: self.client.reconciliation(by="device"))

    def runs(self, status: str | None = None, limit: int = 30) -> Seen[answers.Runs]:
        """Whole runs, newest first."""
        return self.ask(
            ("runs", status, limit), lambda: self.client.runs(status=status, limit=limit)
        )

    def tables(self) -> Seen[answers.Tables]:
        """All datasets."""
        return self.ask("tables", self.client.tables)

    def quarantine(self) -> Seen[answers.Quarantine]:
        """What was put aside."""
        return self.ask("quarantine", self.client.quarantine)

    def errors(self) -> Seen[answers.Errors]:
        """Open failures."""
        return self.ask("errors", self.client.errors)

    def ask(self, question: object, fetch: Callable[[], A]) -> Seen[A]:
        """The newest answer to ``question``; fetches unless that was just done. Never raises
        ScoutError: a failure is part of what is seen."""
        turn, kept = self._entry(question)
        with turn:
            if self._monotonic() - kept.tried_at >= self._hold_seconds:
                self._fetch(kept, fetch)
            answered = kept.value is not None
            return Seen(
                value=kept.value,
                age_seconds=max(0.0, self._monotonic() - kept.answered_at) if answered else 0.0,
                failure=kept.failure,
            )

    def _entry(self, question: object) -> tuple[threading.Lock, _Kept]:
        with self._lock:
            if question not in self._kept:
                self._kept[question] = (threading.Lock(), _Kept())
                if len(self._kept) > _MOST_QUESTIONS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(question)
            return self._kept[question]

    def _fetch(self, kept: _Kept, fetch: Callable[[], Any]) -> None:
        away = self._away
        if away is not None and self._monotonic() - away[0] < self._hold_seconds:
            # One question has just waited in vain; the others need not.
            kept.failure, kept.tried_at = away[1], self._monotonic()
            return
        try:
            kept.value = fetch()
        except HubAwayError as error:
            kept.failure = error
            self._away = (self._monotonic(), error)
        except ScoutError as error:
            kept.failure = error
            # What the token may not see (any more) must not stay on the screen either.
            if isinstance(error, NotPermittedError | NotSignedInError | NotFoundError):
                kept.value = None
        else:
            kept.failure, kept.answered_at, self._away = None, self._monotonic(), None
        kept.tried_at = self._monotonic()
