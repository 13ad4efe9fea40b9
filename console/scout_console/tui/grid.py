"""A sheet as a table of the terminal: a window of lines, and only what changed is drawn anew.

A line keeps its cursor by key across refreshes. Not more than ``WINDOW`` lines are in the widget: a
line costs 0.35 ms of CPU there (measured: 100,000 lines took 35 s).
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from scout_console.sheets import Line, Sheet
from scout_console.values import Said, Tone

WINDOW = 200

STYLES = {
    Tone.PLAIN: "",
    Tone.QUIET: "dim",
    Tone.GOOD: "green",
    Tone.WARN: "yellow",
    Tone.BAD: "bold red",
}
"""Bold and dim survive NO_COLOR; every state also has its own mark and word."""


class Grid(DataTable[Text]):
    """A table that shows a ``Sheet``."""

    def __init__(self, *, id: str) -> None:  # noqa: A002  # Textual's name for it
        super().__init__(
            id=id,
            cursor_type="row",
            cell_padding=1,
            # a failed run under the cursor stays red
            cursor_foreground_priority="renderable",
        )
        self._all: tuple[Line, ...] = ()
        self._shown: tuple[Line, ...] = ()
        self._names: tuple[str, ...] = ()
        self._numeric: tuple[bool, ...] = ()
        self._widths: tuple[int, ...] = ()
        self._kept = False
        self.sorted_by = -1
        """Index of the column that a person sorted by; -1: the sheet's own order."""
        self.start = 0
        """Place in the sheet of the first line of the window."""

    @property
    def total(self) -> int:
        """Lines of the sheet, in the window or not."""
        return len(self._all)

    @property
    def chosen(self) -> Line | None:
        """The line under the cursor."""
        if not self._shown or not 0 <= self.cursor_row < len(self._shown):
            return None
        return self._shown[self.cursor_row]

    def show(self, sheet: Sheet, *, kept: bool) -> bool:
        """Show ``sheet``; ``kept``: an old answer, in grey. Returns whether anything changed."""
        names = tuple(column.name for column in sheet.columns)
        self._all = self._ordered(sheet.lines)
        window = self._all[self.start : self.start + WINDOW]
        if self.start and not window:
            self.start = 0
            window = self._all[:WINDOW]
        numeric = tuple(column.numeric for column in sheet.columns)
        widths = self._grown(names, window)
        same = (
            names == self._names
            and kept == self._kept
            and widths == self._widths
            and [line.key for line in window] == [line.key for line in self._shown]
        )
        self._widths = widths
        changed = self._update(window) if same else self._rebuild(names, numeric, window, kept)
        self._shown = window
        return changed

    def action_page_down(self) -> None:
        """A page down, past the end of the window too."""
        self._step(self._page())

    def action_page_up(self) -> None:
        """A page up."""
        self._step(-self._page())

    def _page(self) -> int:
        return max(1, self.scrollable_content_region.height - self.header_height)

    def _step(self, lines: int) -> None:
        if self._all:
            self.go(max(0, min(self.start + self.cursor_row + lines, len(self._all) - 1)))

    def sort_next(self) -> str:
        """Sort by the next column, and after the last by none; the name of it."""
        self.sorted_by = self.sorted_by + 1 if self.sorted_by + 1 < len(self._names) else -1
        return "the sheet's own order" if self.sorted_by < 0 else self._names[self.sorted_by]

    def find(self, text: str, *, backwards: bool = False) -> bool:
        """Move the cursor to the next line that has ``text`` in it, all lines of the sheet."""
        needle = text.casefold()
        if not needle or not self._all:
            return False
        here = self.start + max(0, self.cursor_row)
        step = -1 if backwards else 1
        for distance in range(1, len(self._all) + 1):
            at = (here + step * distance) % len(self._all)
            if any(needle in cell.text.casefold() for cell in self._all[at].cells):
                self.go(at)
                return True
        return False

    def go(self, at: int) -> None:
        """Move the cursor to the line at place ``at`` of the sheet."""
        if not self.start <= at < self.start + len(self._shown):
            self.start = max(0, min(at - WINDOW // 2, len(self._all) - WINDOW))
            window = self._all[self.start : self.start + WINDOW]
            self._widths = self._grown(self._names, window)
            self._rebuild(self._names, self._numeric, window, self._kept)
            self._shown = window
        self.move_cursor(row=at - self.start, animate=False)

    def _grown(self, names: tuple[str, ...], window: tuple[Line, ...]) -> tuple[int, ...]:
        """Widths of the columns. They grow with what they hold, and do not shrink.

        Left to itself the widget measures when it is idle; on a busy machine its columns were seen
        to stay as narrow as their names.
        """
        before = self._widths if names == self._names else (0,) * len(names)
        return tuple(
            max(cell_len(name), least, *(cell_len(line.cells[place].text) for line in window))
            for place, (name, least) in enumerate(zip(names, before, strict=True))
        )

    def _ordered(self, lines: tuple[Line, ...]) -> tuple[Line, ...]:
        if not 0 <= self.sorted_by < len(self._names):
            return lines
        return tuple(sorted(lines, key=lambda line: _rank(line.cells[self.sorted_by])))

    def _update(self, window: tuple[Line, ...]) -> bool:
        changed = False
        for row, (old, new) in enumerate(zip(self._shown, window, strict=True)):
            for column, (before, after) in enumerate(zip(old.cells, new.cells, strict=True)):
                if before != after:
                    self.update_cell_at(Coordinate(row, column), self._text(after, column))
                    changed = True
        return changed

    def _rebuild(
        self,
        names: tuple[str, ...],
        numeric: tuple[bool, ...],
        window: tuple[Line, ...],
        kept: bool,
    ) -> bool:
        chosen, row = self.chosen, self.cursor_row
        self._names, self._numeric, self._kept = names, numeric, kept
        self.clear(columns=True)
        for name, right, width in zip(names, numeric, self._widths, strict=True):
            label = Text(name, style="dim", justify="right" if right else "left", no_wrap=True)
            self.add_column(label, width=width)
        for line in window:
            self.add_row(
                *(self._text(cell, column) for column, cell in enumerate(line.cells)), key=line.key
            )
        if window:
            keys = [line.key for line in window]
            at = keys.index(chosen.key) if chosen and chosen.key in keys else row
            self.move_cursor(row=max(0, min(at, len(window) - 1)), animate=False)
        return True

    def _text(self, said: Said, column: int) -> Text:
        style = "dim" if self._kept else STYLES[said.tone]
        return Text(
            said.text,
            style=style,
            justify="right" if self._numeric[column] else "left",
            no_wrap=True,
        )


def _rank(said: Said) -> tuple[int, float, str]:
    """Numbers by their value, then words by their letters."""
    digits = said.text.replace(",", "").replace("−", "-").lstrip("≈ ").split(" ")[0]
    try:
        return (0, float(digits), said.text)
    except ValueError:
        return (1, 0.0, said.text.casefold())
