"""The only way from a screen to the hub: its HTTP API, typed, with errors that say what to do.

One ``HubClient`` per process and token holds one connection pool and may be used by any number of
threads. Only reads are repeated (a write that timed out may have happened). The hub checks token,
role and stores again at every call; nothing here decides what somebody may see.

    ScoutError
    ├── ConfigError    NotSignedInError      the hub does not know the token
    ├── TransientError HubAwayError          no answer: the hub or the network is down
    │                  └ DatabaseAwayError   the hub answers, its database does not
    └── PermanentError NotPermittedError     the token may not do this
                       NotFoundError         there is no such thing, or the token may not see it
                       RefusedError          the request itself is wrong
                       HubFailedError        a defect of the hub
"""

from __future__ import annotations

import datetime as dt
import random
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

import httpx

from scout_console import decoding
from scout_shared import answers
from scout_shared.errors import ConfigError, PermanentError, ScoutError, TransientError

T = TypeVar("T")

ATTEMPTS = 3
"""Of a read, the first one included."""
BACKOFF_SECONDS = 0.2
"""Full jitter: the n-th pause is between 0 and this times 2**n."""
MAX_WAIT_SECONDS = 2.0
"""A person sits before the screen: a longer Retry-After is shown, not waited for."""
_RETRIED = (502, 503, 504)
_CONNECTIONS = 16


class NotSignedInError(ConfigError):
    """The hub does not know this token."""


class HubAwayError(TransientError):
    """The hub does not answer."""

    retry_after_seconds: float | None = None
    """What the answer asked for, if there was one."""


class DatabaseAwayError(HubAwayError):
    """The hub answers, but its database is away."""


class NotPermittedError(PermanentError):
    """The token may not do this."""


class NotFoundError(PermanentError):
    """There is no such thing, or the token may not see it."""


class RefusedError(PermanentError):
    """The request is wrong as it is."""


class HubFailedError(PermanentError):
    """The hub failed in a way that it did not foresee."""


class HubClient:
    """The hub at ``base_url``, with the rights of ``token``; thread-safe.

    Args:
        base_url: e.g. ``http://127.0.0.1:8700``, without ``/v1``.
        token: bearer token; empty: only ``health`` will answer.
        timeout: seconds for each attempt; uploads may take as long as the hub takes.
    """

    def __init__(self, base_url: str, token: str, timeout: float = 10.0) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"accept": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            self._http = httpx.Client(
                base_url=f"{self.base_url}/v1",
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=min(timeout, 3.0)),
                limits=httpx.Limits(
                    max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS
                ),
                # the environment's proxies are for the world, not for the machine beside
                trust_env=False,
                verify=ssl.create_default_context() if base_url.startswith("https") else True,
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"hub address {base_url!r} or its token cannot be used: {error}",
                "give an address such as http://127.0.0.1:8700 and a token of plain characters",
            ) from error
        self._lock = threading.Lock()
        self._as_of: dt.datetime | None = None
        self._answered_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pool; no call may follow."""
        self._http.close()

    @property
    def as_of(self) -> dt.datetime | None:
        """The hub's time of the newest answer; None: none yet."""
        with self._lock:
            return self._as_of

    @property
    def answer_age_seconds(self) -> float | None:
        """How long ago, by this machine's monotonic clock, the hub last answered; None: never."""
        with self._lock:
            return None if self._answered_at is None else time.monotonic() - self._answered_at

    def health(self) -> answers.Health:
        """How the hub is; needs no token, is not repeated, answers while the database is away."""
        return self._get(answers.Health, "/health", accept=(503,), attempts=1)

    def me(self) -> answers.Me:
        """Whom the token stands for."""
        return self._get(answers.Me, "/me")

    def overview(self) -> answers.Overview:
        """Everything the first screen needs, in one request."""
        return self._get(answers.Overview, "/overview")

    def fleet(self, *, status: str | None = None) -> answers.Fleet:
        """All devices, worst first; ``status``: online, late, dark or unknown."""
        return self._get(answers.Fleet, "/fleet", status=status)

    def device(self, device_id: str) -> answers.DeviceDetail:
        """One device. Raises NotFoundError."""
        return self._get(answers.DeviceDetail, f"/fleet/{_segment(device_id)}")

    def runs(
        self,
        *,
        task: str | None = None,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> answers.Runs:
        """Whole runs, newest first, each with its steps; ``task`` also finds runs by a step."""
        return self._get(
            answers.Runs, "/runs", task=task, status=status, limit=limit, cursor=cursor
        )

    def tables(self, *, exact: bool = False) -> answers.Tables:
        """All datasets; ``exact`` counts every row (seconds on big tables)."""
        return self._get(answers.Tables, "/tables", exact=exact)

    def rows(
        self,
        dataset: str,
        *,
        filters: Sequence[str] = (),
        sort: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> answers.Rows:
        """A page of a table.

        Args:
            dataset: ``schema.table``.
            filters: ``column:operator:value`` each, all must hold; operators eq, ne, lt, le, gt,
                ge, in (values with commas), prefix, null (``true`` or ``false``).
            sort: a column, with ``-`` before it for descending; the key unless given.
            limit: at most 1000.
            cursor: ``next_cursor`` of the page before.
        """
        page = self._get(
            answers.Rows,
            f"/tables/{_segment(dataset)}/rows",
            filter=list(filters) or None,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )
        return decoding.typed_rows(page)

    def all_rows(
        self,
        dataset: str,
        *,
        filters: Sequence[str] = (),
        sort: str | None = None,
        at_most: int = 10_000,
    ) -> Iterator[dict[str, Any]]:
        """Rows page after page, ``at_most`` of them: a screen never takes a whole table."""
        cursor = None
        left = at_most
        while left > 0:
            page = self.rows(
                dataset, filters=filters, sort=sort, limit=min(left, 1000), cursor=cursor
            )
            yield from page.rows
            left -= len(page.rows)
            cursor = page.next_cursor
            if cursor is None:
                return

    def reconciliation(
        self,
        *,
        by: str = "total",
        device_id: str | None = None,
        limit: int = 1000,
        cursor: str | None = None,
    ) -> answers.Reconciliation:
        """Where the records went; ``by``: total, device or day."""
        return self._get(
            answers.Reconciliation,
            "/reconciliation",
            by=by,
            device_id=device_id,
            limit=limit,
            cursor=cursor,
        )

    def quarantine(
        self,
        *,
        dataset: str | None = None,
        reason: str | None = None,
        state: str = "open",
        limit: int = 50,
        cursor: str | None = None,
    ) -> answers.Quarantine:
        """What was put aside: groups over all that is open, and a page of items."""
        return self._get(
            answers.Quarantine,
            "/quarantine",
            dataset=dataset,
            reason=reason,
            state=state,
            limit=limit,
            cursor=cursor,
        )

    def errors(
        self, *, state: str | None = "open", limit: int = 50, cursor: str | None = None
    ) -> answers.Errors:
        """Failures, newest first; ``state`` None: all. Open includes acknowledged."""
        return self._get(answers.Errors, "/errors", state=state, limit=limit, cursor=cursor)

    def quality(self, *, dataset: str | None = None) -> answers.Quality:
        """Newest quality metrics and service levels."""
        return self._get(answers.Quality, "/quality", dataset=dataset)

    def lineage(self, dataset: str) -> answers.Lineage:
        """Where a dataset comes from and goes to. Raises NotFoundError."""
        return self._get(answers.Lineage, f"/lineage/{_segment(dataset)}")

    def row_lineage(self, dataset: str, key: Mapping[str, Any]) -> answers.RowLineage:
        """Walk one row back to the records, segments, devices and files that it came from."""
        pairs = [f"{name}:{value}" for name, value in key.items()]
        return self._get(answers.RowLineage, "/lineage/row", dataset=dataset, key=pairs)

    def uploads(
        self, *, dataset: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> answers.Uploads:
        """Files given to the hub, newest first."""
        return self._get(answers.Uploads, "/uploads", dataset=dataset, limit=limit, cursor=cursor)

    def upload(
        self,
        dataset: str,
        content: bytes | Path | IO[bytes],
        *,
        name: str | None = None,
        record_type: str | None = None,
    ) -> answers.UploadResult:
        """Give a file to the hub. Safe to repeat by the caller: the same bytes load once.

        Args:
            dataset: product_catalog, demographic_data, campaign_data or store_locations.
            content: the bytes, a path, or an open binary file.
            name: file name; its ending says the format (csv, tsv, jsonl, parquet, with or without
                .gz). A path brings its own.
            record_type: campaign_data only; inferred from the columns unless given.
        """
        if isinstance(content, Path):
            with content.open("rb") as file:
                return self.upload(
                    dataset, file, name=name or content.name, record_type=record_type
                )
        if not name:
            raise ConfigError("an upload needs the name of the file", "its ending says the format")
        response = self._send(
            "POST",
            f"/uploads/{_segment(dataset)}",
            params=_params({"record_type": record_type}),
            files={"file": (name, content, "application/octet-stream")},
            timeout=httpx.Timeout(600.0, connect=3.0),
        )
        return self._answer(answers.UploadResult, response)

    def _get(
        self,
        cls: type[T],
        path: str,
        *,
        accept: tuple[int, ...] = (),
        attempts: int = ATTEMPTS,
        **params: Any,
    ) -> T:
        for attempt in range(1, attempts + 1):
            try:
                response = self._send("GET", path, params=_params(params), accept=accept)
                return self._answer(cls, response)
            except HubAwayError as error:
                wait = random.uniform(0, BACKOFF_SECONDS * 2**attempt)
                wait = max(wait, error.retry_after_seconds or 0.0)
                if attempt == attempts or wait > MAX_WAIT_SECONDS:
                    raise
                time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _send(
        self, method: str, path: str, *, accept: tuple[int, ...] = (), **options: Any
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise HubAwayError(
                f"the hub at {self.base_url} did not answer in time ({type(error).__name__})",
                "it is overloaded or hangs: look at its log, then restart scout-hub",
            ) from error
        except httpx.TransportError as error:
            raise HubAwayError(
                f"the hub at {self.base_url} cannot be reached: {error}",
                "is scout-hub running, and is the address right?",
            ) from error
        if response.is_success or response.status_code in accept:
            return response
        raise self._failure(response)

    def _answer(self, cls: type[T], response: httpx.Response) -> T:
        try:
            value = response.json()
        except ValueError as error:
            raise HubFailedError(
                f"{self.base_url} answers {response.status_code}, but not JSON",
                "is this the address of a Scout hub, without a proxy's log-in page before it?",
            ) from error
        answer = decoding.decode(cls, value)
        as_of = getattr(answer, "as_of", None)
        with self._lock:
            self._answered_at = time.monotonic()
            if as_of is not None and (self._as_of is None or as_of > self._as_of):
                self._as_of = as_of
        return answer

    def _failure(self, response: httpx.Response) -> ScoutError:
        try:
            body = response.json()
            message, hint = str(body["message"]), str(body["hint"])
            word = str(body["error"])
        except (ValueError, KeyError, TypeError):
            word, message = "", f"{self.base_url} answers {response.status_code}"
            hint = "is this the address of a Scout hub?"
        status = response.status_code
        if status == 401:
            return NotSignedInError(message, hint)
        if status == 403:
            return NotPermittedError(message, hint)
        if status == 404:
            return NotFoundError(message, hint)
        if status in _RETRIED or status == 429:
            away = (
                DatabaseAwayError(message, hint)
                if word == "database_away"
                else HubAwayError(message, hint)
            )
            away.retry_after_seconds = _retry_after(response)
            return away
        if status >= 500:
            return HubFailedError(message, hint)
        return RefusedError(message, hint)


def _params(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Only what is set; None when nothing is, because httpx takes {} as "no query at all"."""
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in values.items()
        if value is not None
    }
    return given or None


def _segment(text: str) -> str:
    """One segment of a path: a slash in an id must not change the path."""
    return quote(text, safe="")


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
