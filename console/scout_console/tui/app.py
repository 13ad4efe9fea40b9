"""The terminal: one screen of 80 × 24, read-only, quiet on the line.

A thread asks the hub every ``refresh_seconds``; the screen changes only where words changed, shows
no seconds, and moves nothing by itself. When the hub is away, the last answers stay, grey, with
their age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import ContentSwitcher, Input, Static

from scout_console import sheets, views
from scout_console.feed import Feed, Seen
from scout_console.sheets import Sheet
from scout_console.tui.grid import STYLES, Grid
from scout_console.values import Clock, Nothing, Said, Tone, age, count, printable
from scout_shared import answers

VIEWS = ("overview", "fleet", "runs", "quarantine", "tables")
_FAULTS = ("dark", "late", "unknown", "failed", "lost", "stale")

HELP = """\
[b]Which stores are dark, how old the data is, whether it adds up.[/b]
This screen only reads; nothing here changes anything.

[b]1[/b] overview  [b]2[/b] fleet  [b]3[/b] runs  [b]4[/b] quarantine  [b]5[/b] tables

[b]j k[/b] or arrows  a line down, up         [b]g G[/b]  first, last line
[b]PgDn PgUp[/b]      a page                  [b]Tab[/b]  the other table
[b]Enter[/b]          a device in detail      [b]Esc[/b]  back
[b]/[/b]              search; Enter finds     [b]n N[/b]  next, previous
[b]f[/b]              faults only, or all     [b]s[/b]    sort by column
[b]t[/b]              UTC, or back            [b]z[/b]    pause, go on
[b]y[/b]              copy the line's id      [b]q[/b]    quit

● well  ◐ late or stale  ○ dark  ✕ failed  ? never heard
Grey is an old answer; its age stands beside it.

Any key closes this page."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the hub."""

    me: Seen[answers.Me]
    overview: Seen[answers.Overview]
    fleet: Seen[answers.Fleet]
    runs: Seen[answers.Runs]
    tables: Seen[answers.Tables]
    quarantine: Seen[answers.Quarantine] | None
    """None: the view that needs it is not open."""
    device: Seen[answers.DeviceDetail] | None


class Help(ModalScreen[None]):
    """The keys."""

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(HELP)

    def on_key(self) -> None:
        """Any key closes it."""
        self.dismiss()


class Terminal(App[None]):
    """The application.

    Args:
        feed: the hub.
        zone: IANA zone of all times; ``t`` changes between it and UTC.
        environment: name of the installation.
        refresh_seconds: time between two looks.
        faults: start with faults only.
    """

    CSS_PATH = "style.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *[(str(number), f"view('{name}')", name) for number, name in enumerate(VIEWS, 1)],
        ("j", "line(1)", "down"),
        ("k", "line(-1)", "up"),
        ("g", "edge(False)", "first"),
        ("G", "edge(True)", "last"),
        ("slash", "search", "search"),
        ("n", "again(False)", "next"),
        ("N", "again(True)", "previous"),
        ("question_mark", "help", "help"),
        ("f", "faults", "faults only"),
        ("s", "sort", "sort"),
        ("t", "zone", "zone"),
        ("z", "pause", "pause"),
        ("y", "copy", "copy id"),
        ("escape", "back", "back"),
        ("q", "quit", "quit"),
    ]

    def __init__(
        self,
        feed: Feed,
        *,
        zone: str,
        environment: str,
        refresh_seconds: float,
        faults: bool = False,
    ) -> None:
        super().__init__()
        self.theme = "ansi-dark"
        self.animation_level = "none"
        self._feed = feed
        self._clocks = [Clock(zone, coarse=True), Clock("UTC", coarse=True)]
        self._environment = environment
        self._refresh_seconds = refresh_seconds
        self._faults = faults
        self._view = "overview"
        self._device = ""
        self._look: Look | None = None
        self._looking = False
        self._paused = False
        self._needle = ""
        self._told = ""
        self._said: dict[str, Text] = {}

    def compose(self) -> ComposeResult:
        """Bar, headline, the views, status line."""
        yield Static(id="top")
        yield Static(id="word")
        yield Static(id="sentence")
        yield Static(id="tabs")
        with ContentSwitcher(initial="overview", id="views"):
            with Vertical(id="overview"):
                yield Grid(id="fleet-few")
                yield Static(id="overview-caption", classes="caption")
                yield Grid(id="runs-few")
            with Vertical(id="fleet"):
                yield Grid(id="devices")
            with Vertical(id="runs"):
                yield Grid(id="all-runs")
                yield Static(id="steps-caption", classes="caption")
                yield Grid(id="steps")
            with Vertical(id="quarantine"):
                yield Grid(id="groups")
            with Vertical(id="tables"):
                yield Grid(id="datasets")
            with Vertical(id="device"):
                yield Static(id="facts")
                yield Grid(id="sums")
                yield Static(id="device-caption", classes="caption")
                yield Grid(id="readings")
        yield Static(id="nothing")
        yield Input(id="search", placeholder="search, Enter finds, Esc leaves", compact=True)
        yield Static(id="status")

    def on_mount(self) -> None:
        """Begin to look."""
        self._say("word", Text("asking the hub …"))
        self._tabs()
        self.set_interval(self._refresh_seconds, self._tick)
        self._tick()
        self._grid().focus()

    def on_resize(self) -> None:
        """Another width has other columns."""
        self._draw()

    # --- looking

    def _tick(self) -> None:
        if not self._looking and not self._paused:
            self._looking = True
            self._ask(self._view, self._device)

    @work(thread=True, exit_on_error=True)
    def _ask(self, view: str, device: str) -> None:
        look = Look(
            me=self._feed.me(),
            overview=self._feed.overview(),
            fleet=self._feed.fleet(),
            runs=self._feed.runs(),
            tables=self._feed.tables(),
            quarantine=self._feed.quarantine() if view == "quarantine" else None,
            device=self._feed.device(device) if view == "device" else None,
        )
        self.call_from_thread(self._arrived, look)

    def _arrived(self, look: Look) -> None:
        self._looking = False
        self._look = look
        self._draw()

    # --- drawing

    @property
    def _clock(self) -> Clock:
        return self._clocks[0]

    def _draw(self) -> None:
        look = self._look
        if look is None or not self.is_running:
            return
        bar = views.top_bar(self._environment, self._clock, look.me, look.overview)
        mode = "paused" if self._paused else "read-only"
        left, right = f"Scout  {bar.environment}", f"{bar.zone}  {mode}"
        self._say("top", _apart(left, right, self.size.width))
        head = views.headline(look.overview, look.fleet, look.tables, self._clock)
        self._headline(head, look)
        self._content(look)
        self._status(bar, look)

    def _headline(self, head: views.Headline, look: Look) -> None:
        word = Text()
        word.append(head.word.upper(), style=STYLES[head.tone])
        if head.since is not None and look.overview.value is not None:
            since = self._clock.moment(head.since, look.overview.now)
            word.append(
                f"  last answer {since}, {age(look.overview.age_seconds)} old"
                if look.overview.failure
                else f"  since {since}",
                style="",
            )
        if self._faults:
            word.append("  faults only (f: all)", style="reverse")
        self._say("word", word)
        sentence = Text()
        for text, tone in (
            (head.advice, Tone.PLAIN),
            (head.stores, head.stores_tone),
            (head.records, head.records_tone),
            (head.ages, Tone.QUIET),
        ):
            if text:
                sentence.append("\n" if sentence else "")
                sentence.append(text, style=STYLES[tone])
        self._say("sentence", sentence)

    def _status(self, bar: views.TopBar, look: Look) -> None:
        known = look.overview.value
        if known is None:
            parts = "hub away" if look.overview.away else "no access"
        else:
            grouped: dict[str, list[str]] = {"away" if look.overview.failure else "ok": ["hub"]}
            if look.overview.failure is None:
                for name, word, _tone in views.components_line(known):
                    grouped.setdefault(word, []).append(name)
            parts = "  ".join(f"{', '.join(names)} {word}" for word, names in grouped.items())
            parts += f"  quarantine {count(known.quarantine_records)}"
        text = self._told or bar.as_of
        self._say("status", _apart(parts, f"{text}  ? keys", self.size.width))

    def _tabs(self) -> None:
        line = Text()
        for number, name in enumerate(VIEWS, 1):
            here = name == self._view or (name == "fleet" and self._view == "device")
            line.append(f" {number} {name} ", style="reverse" if here else "")
            line.append(" ")
        self._say("tabs", line)

    def _content(self, look: Look) -> None:
        draw = {
            "overview": self._overview,
            "fleet": self._fleet,
            "runs": self._runs,
            "quarantine": self._quarantine,
            "tables": self._tables,
            "device": self._detail,
        }[self._view]
        draw(look)

    def _overview(self, look: Look) -> None:
        self._devices("fleet-few", look)
        self._say("overview-caption", Text("Runs, newest first"))
        self._some_runs("runs-few", look, nothing=False)

    def _fleet(self, look: Look) -> None:
        self._devices("devices", look)

    def _devices(self, grid: str, look: Look) -> None:
        seen = look.fleet
        if seen.value is None:
            self._absent(grid, "fleet", seen)
            return
        found = [d for d in seen.value.devices if not self._faults or d.status in _FAULTS]
        self._sheet(grid, sheets.fleet(found, self._clock, seen.now), seen)

    def _runs(self, look: Look) -> None:
        self._some_runs("all-runs", look, nothing=True)
        run = self._chosen_run(look)
        if run is None:
            self._say("steps-caption", Text(""))
            return
        self._say("steps-caption", Text(printable(f"Steps. {run.message or ''}".strip())))
        self._sheet("steps", sheets.steps(run, self._clock, look.runs.now), look.runs, quiet=True)

    def _some_runs(self, grid: str, look: Look, *, nothing: bool) -> None:
        seen = look.runs
        if seen.value is None:
            if nothing:
                self._absent(grid, "runs", seen)
            return
        found = [r for r in seen.value.runs if not self._faults or r.status in _FAULTS]
        self._sheet(grid, sheets.runs(found, self._clock, seen.now), seen, quiet=not nothing)

    def _chosen_run(self, look: Look) -> answers.Run | None:
        chosen = self.query_one("#all-runs", Grid).chosen
        if chosen is None or look.runs.value is None:
            return None
        return next((r for r in look.runs.value.runs if r.run_id == chosen.key), None)

    def _quarantine(self, look: Look) -> None:
        if look.quarantine is None:
            return
        seen = look.quarantine
        if seen.value is None:
            self._absent("groups", "quarantine", seen)
            return
        self._sheet("groups", sheets.quarantine(seen.value.groups, self._clock, seen.now), seen)

    def _tables(self, look: Look) -> None:
        seen = look.tables
        if seen.value is None:
            self._absent("datasets", "tables", seen)
            return
        found = [t for t in seen.value.tables if not self._faults or t.status in _FAULTS]
        self._sheet("datasets", sheets.datasets(found, self._clock, seen.now), seen)

    def _detail(self, look: Look) -> None:
        if look.device is None:
            return
        seen = look.device
        if seen.value is None:
            self._absent("sums", f"device {self._device}", seen)
            return
        device = seen.value.device
        word = sheets.state(device.status, views.status_for(device, seen.now))
        facts = Text(f"{sheets.store_name(device)} · {printable(device.device_id)}  ", style="bold")
        facts.append(word.text, style=STYLES[word.tone])
        facts.append_text(_columns(sheets.device_facts(seen.value, self._clock, seen.now)))
        self._say("facts", facts)
        self._sheet("sums", sheets.reconciliation(seen.value.reconciliation, "kind"), seen)
        telemetry = sheets.readings(seen.value, self._clock, seen.now)
        caption = "Telemetry, latest values" if telemetry.lines else telemetry.nothing
        self._say("device-caption", Text(caption))
        self._sheet("readings", telemetry, seen, quiet=True)

    def _sheet(
        self,
        grid: str,
        sheet: Sheet,
        seen: Seen[answers.Fleet]
        | Seen[answers.Runs]
        | Seen[answers.Tables]
        | Seen[answers.Quarantine]
        | Seen[answers.DeviceDetail],
        *,
        quiet: bool = False,
    ) -> None:
        width = self.size.width
        rank = 1 if width < 100 else 2 if width < 150 else 3
        self.query_one(f"#{grid}", Grid).show(sheet.narrow(rank), kept=seen.failure is not None)
        if not quiet:
            left = "nothing here has a fault" if self._faults else sheet.nothing
            self._nothing("" if sheet.lines else left)

    def _absent(
        self,
        grid: str,
        what: str,
        seen: Seen[answers.Fleet]
        | Seen[answers.Runs]
        | Seen[answers.Tables]
        | Seen[answers.Quarantine]
        | Seen[answers.DeviceDetail],
    ) -> None:
        self.query_one(f"#{grid}", Grid).show(Sheet((), (), ""), kept=True)
        nothing = Nothing.NO_PERMISSION if seen.forbidden else Nothing.SOURCE_DOWN
        self._nothing(f"{what}: {nothing.value}")

    def _nothing(self, text: str) -> None:
        self._say("nothing", Text(text, style="dim"))
        self.query_one("#nothing").display = bool(text)

    def _say(self, where: str, text: Text) -> None:
        """Change a line only when its words change."""
        if self._said.get(where) != text:
            self._said[where] = text
            self.query_one(f"#{where}", Static).update(text)

    def _tell(self, text: str) -> None:
        """A word in the status line, until the next key."""
        self._told = text
        self._draw()

    # --- keys

    def _grid(self) -> Grid:
        here = list(self.query_one(f"#{self._view}").query(Grid))
        return next((grid for grid in here if grid.has_focus), here[0])

    def on_key(self) -> None:
        """What was told has been read."""
        self._told = ""

    def on_data_table_row_selected(self) -> None:
        """Enter: the device in detail."""
        grid = self._grid()
        if grid.id in ("fleet-few", "devices") and grid.chosen is not None:
            self._device = grid.chosen.key
            self._open("device")

    def on_data_table_row_highlighted(self) -> None:
        """The steps belong to the run under the cursor."""
        if self._view == "runs" and self._look is not None:
            self._runs(self._look)

    def action_view(self, name: str) -> None:
        """Open a view."""
        self._open(name)

    def _open(self, view: str) -> None:
        self._view = view
        self.query_one("#views", ContentSwitcher).current = view
        self._nothing("")
        self._tabs()
        self._grid().focus()
        self._draw()
        self._tick()

    async def action_back(self) -> None:
        """From the search to the table, from the device to the fleet."""
        self._leave()

    def _leave(self) -> None:
        search = self.query_one("#search", Input)
        if search.has_class("asked"):
            search.remove_class("asked")
            self._grid().focus()
        elif self._view == "device":
            self._open("fleet")

    def action_line(self, step: int) -> None:
        """A line up or down; at its edge the window moves on."""
        grid = self._grid()
        at = grid.start + grid.cursor_row + step
        if 0 <= at < grid.total:
            grid.go(at)

    def action_edge(self, last: bool) -> None:
        """The first or the last line of the sheet."""
        grid = self._grid()
        if grid.total:
            grid.go(grid.total - 1 if last else 0)

    def action_search(self) -> None:
        """Ask what to search for."""
        search = self.query_one("#search", Input)
        search.add_class("asked")
        search.value = ""
        search.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Find it."""
        self._needle = event.value
        self._leave()
        self.action_again(False)

    def action_again(self, backwards: bool) -> None:
        """The next line with what was searched for."""
        if self._needle and not self._grid().find(self._needle, backwards=backwards):
            self._tell(f"nothing here has {printable(self._needle)!r} in it")

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(Help())

    def action_faults(self) -> None:
        """Only what is not well, or everything."""
        self._faults = not self._faults
        self._draw()

    def action_sort(self) -> None:
        """Sort by the next column."""
        name = self._grid().sort_next()
        self._tell(f"sorted by {name}")

    def action_zone(self) -> None:
        """All times in the other zone."""
        self._clocks.reverse()
        self._draw()

    def action_pause(self) -> None:
        """Stop looking at the hub, or go on."""
        self._paused = not self._paused
        self._draw()
        self._tick()

    def action_copy(self) -> None:
        """The id of the line to the clipboard of the terminal (OSC 52)."""
        chosen = self._grid().chosen
        if chosen is not None:
            self.copy_to_clipboard(chosen.key)
            self._tell(f"copied {printable(chosen.key)}")


def _apart(left: str, right: str, width: int) -> Text:
    """Two texts at the two ends of a line; the right one stays whole."""
    room = max(0, width - len(right) - 2)
    cut = left if len(left) <= room else f"{left[: max(0, room - 1)]}…"
    return Text(f"{cut}{' ' * (width - len(cut) - len(right))}{right}", no_wrap=True)


def _columns(facts: Sequence[tuple[str, Said]]) -> Text:
    """Facts in two columns of a narrow screen."""
    text = Text()
    half = (len(facts) + 1) // 2
    for left in range(half):
        text.append("\n")
        for place in (left, left + half):
            if place < len(facts):
                name, said = facts[place]
                text.append(f"{name:<15}", style="dim")
                text.append(f"{said.text:<24.24} ", style=STYLES[said.tone])
    return text
