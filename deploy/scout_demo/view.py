"""What a person sees while the demo runs: a calm live picture, or plain lines off a terminal.

Numbers that are not known yet are shown as such, never as 0. Not its job: deciding anything.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scout_demo import account
from scout_shared import answers

_PLAIN_SECONDS = 5.0
_MESSAGES = 6
_RATE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StoreLine:
    """One till with its agent."""

    store_id: str
    baskets_sold: int
    baskets_planned: int
    waiting_records: int | None
    """In the agent's buffer; None: the agent does not answer."""
    hub_answers: bool | None
    agent: str
    """State of its process."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment."""

    phase: str
    urls: tuple[tuple[str, str], ...]
    lines_sold: int
    lines_planned: int
    baskets_sold: int
    baskets_planned: int
    stores_done: int
    stores: int
    files_loaded: int
    files: int
    equation: tuple[answers.ReconciliationRow, ...]
    """Empty: the hub has not said yet."""
    hub_silence_seconds: float | None
    """Since the hub last answered; None: it never did."""
    active: tuple[StoreLine, ...]
    programs: tuple[tuple[str, str], ...]
    restarts: int

    @property
    def documents(self) -> answers.ReconciliationRow | None:
        """The documents' row of the equation."""
        return next((row for row in self.equation if row.kind == "documents"), None)


class View(Protocol):
    """Where the demo shows itself."""

    def say(self, text: str) -> None:
        """Something happened that a person should know."""

    def show(self, picture: Picture) -> None:
        """A new moment; called several times a second."""

    def close(self) -> None:
        """The last picture stays; from now on only ``say``."""


def open_view(stream: TextIO = sys.stdout) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveView(stream) if stream.isatty() else PlainView(stream)


class _Rate:
    """Lines per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, count: int) -> float:
        now = time.monotonic()
        self._seen.append((now, count))
        while self._seen[0][0] < now - _RATE_SECONDS:
            self._seen.popleft()
        first, before = self._seen[0]
        return (count - before) / (now - first) if now > first else 0.0


class PlainView:
    """A line every five seconds, and one for each event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown_at = 0.0
        self._rate = _Rate()

    def say(self, text: str) -> None:
        """One line with the time."""
        now = dt.datetime.now(dt.UTC)
        self._stream.write(f"{now:%H:%M:%S}Z {text}\n")
        self._stream.flush()

    def show(self, picture: Picture) -> None:
        """At most one line in five seconds."""
        rate = self._rate.at(picture.lines_sold)
        if time.monotonic() - self._shown_at < _PLAIN_SECONDS:
            return
        self._shown_at = time.monotonic()
        waiting = [line.waiting_records for line in picture.active]
        known = sum(n for n in waiting if n is not None)
        documents = picture.documents
        equation = account.equation(documents) if documents else "the hub has not said yet"
        stores = ""
        if picture.stores > len(picture.active):
            stores = f" · stores {picture.stores_done}/{picture.stores}"
        self.say(
            f"{picture.phase} · sold {picture.lines_sold:,} of {picture.lines_planned:,} lines "
            f"({rate:,.0f}/s){stores} · waiting at agents {known:,}"
            f"{'' if None not in waiting else ' and unknown'} · {equation}"
        )

    def close(self) -> None:
        """Nothing to tidy."""


class LiveView:
    """The picture in place, redrawn four times a second."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._messages: deque[str] = deque(maxlen=_MESSAGES)
        self._rate = _Rate()
        self._live: Live | None = Live(
            console=self._console, refresh_per_second=4, auto_refresh=False
        )
        self._live.start()

    def say(self, text: str) -> None:
        """Shown below the picture; printed once there is none any more."""
        line = f"{dt.datetime.now(dt.UTC):%H:%M:%S}Z {text}"
        if self._live is None:
            self._console.print(line, markup=False, highlight=False)
        else:
            self._messages.append(line)

    def show(self, picture: Picture) -> None:
        """Draw it."""
        if self._live is not None:
            rate = self._rate.at(picture.lines_sold)
            self._live.update(self._draw(picture, rate), refresh=True)

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, picture: Picture, rate: float) -> RenderableType:
        parts: list[RenderableType] = [
            Text.assemble(("Scout demo", "bold"), "  ", (picture.phase, "cyan")),
            *(Text(f"  {name:<9}{url}") for name, url in picture.urls),
            Text(),
            _bars(picture, rate),
            Text(),
            _equation(picture),
            Text(),
            _stores(picture),
            Text(),
            _programs(picture),
        ]
        if self._messages:
            parts += [Text(), *(Text(f"  {m}", style="dim") for m in self._messages)]
        return Padding(Group(*parts), (1, 1))


def _bars(picture: Picture, rate: float) -> RenderableType:
    documents = picture.documents
    table = Table.grid(padding=(0, 2))
    planned = picture.baskets_planned
    judged = received = None
    if documents is not None:
        received = documents.received
        judged = documents.landed + documents.duplicate + documents.quarantined
    rows: list[tuple[str, int | None, int, str]] = [
        ("sold at the tills", picture.lines_sold, picture.lines_planned, f"lines  {rate:,.0f}/s"),
        ("received by the hub", received, planned, "baskets"),
        ("in silver", judged, planned, "baskets"),
        ("reference files", picture.files_loaded, picture.files, "files"),
    ]
    if picture.stores > len(picture.active):
        rows.insert(1, ("stores finished", picture.stores_done, picture.stores, "stores"))
    for name, done, of, unit in rows:
        known = done is not None
        table.add_row(
            f"  {name}",
            ProgressBar(total=max(of, 1), completed=done or 0, width=36),
            Text(f"{done:,} of {of:,} {unit}" if known else f"unknown, of {of:,} {unit}"),
        )
    return table


def _equation(picture: Picture) -> RenderableType:
    if not picture.equation:
        return Text("  the hub has not given an account yet", style="yellow")
    table = Table.grid(padding=(0, 2))
    heads = ("", "produced", "=", "landed", "duplicate", "quarantined", "excluded", "given up")
    table.add_row(
        *(
            Text(h, style="dim")
            for h in ("  account", *heads[1:], "in transit", "pending", "remainder")
        )
    )
    for row in picture.equation:
        table.add_row(
            f"  {row.kind}",
            f"{row.produced + row.unreported:,}",
            "=",
            *(f"{n:,}" for n in (row.landed, row.duplicate, row.quarantined)),
            *(f"{n:,}" for n in (row.excluded, row.given_up)),
            *(f"{n:,}" for n in (row.in_transit, row.pending)),
            Text(f"{row.remainder:,}", style="green" if row.adds_up else "bold red"),
        )
    for column in table.columns[1:]:
        column.justify = "right"
    silence = picture.hub_silence_seconds
    if silence is not None and silence > _RATE_SECONDS:
        return Group(table, Text(f"  as of {silence:.0f} s ago: the hub is away", style="yellow"))
    return table


def _stores(picture: Picture) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    heads = ("  store", "baskets sold", "waiting for receipt", "link", "agent")
    table.add_row(*(Text(h, style="dim") for h in heads))
    for line in picture.active:
        link = {None: "-", True: "hub answers", False: "no answer"}[line.hub_answers]
        waiting = "unknown" if line.waiting_records is None else f"{line.waiting_records:,}"
        table.add_row(
            f"  {line.store_id}",
            f"{line.baskets_sold:,} of {line.baskets_planned:,}",
            waiting,
            Text(link, style="" if line.hub_answers else "yellow"),
            Text(line.agent, style="" if line.agent == "up" else "yellow"),
        )
    for column in table.columns[1:3]:
        column.justify = "right"
    return table


def _programs(picture: Picture) -> RenderableType:
    text = Text("  ")
    for name, state in picture.programs:
        text.append(f"{name} ")
        text.append(state, style="green" if state == "up" else "yellow")
        text.append("   ")
    if picture.restarts:
        text.append(f"restarts {picture.restarts}", style="yellow")
    return text
