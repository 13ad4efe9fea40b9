"""How one value is said: counts, sizes, ages, moments, and the six kinds of nothing.

Both front ends say every value through this module, so that it reads the same everywhere. A value
that is not there says why (``Nothing``); one that is old is grey and carries its age (``aged``).
Not its job: sentences about the whole (``views``), colours and widths (``web``, ``tui``).
"""

from __future__ import annotations

import datetime as dt
import enum
import unicodedata
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from scout_shared.errors import ConfigError

DAY_SECONDS = 86_400


class Tone(enum.StrEnum):
    """What a reader should feel about a text; each front end has its own colours for them."""

    PLAIN = "plain"
    QUIET = "quiet"
    """Old, absent or beside the point: grey."""
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


class Nothing(enum.StrEnum):
    """Why there is no live value; six different things, said in six different ways."""

    EMPTY = "none yet"
    """There could be rows; there are none."""
    ZERO = "0"
    """It was counted, and it is zero. As good a value as any other."""
    UNKNOWN = "unknown"
    """Nobody has told; it is not made up."""
    NO_PERMISSION = "not permitted"
    """It exists perhaps; this token may not see it."""
    SOURCE_DOWN = "no answer"
    """Whoever knows does not answer, and there is no earlier answer either."""
    STALE = "stale"
    """It was so; see its age."""


@dataclass(frozen=True, slots=True)
class Said:
    """A value in words."""

    text: str
    tone: Tone = Tone.PLAIN
    nothing: Nothing | None = None
    """Why it is no live value, if it is none."""
    note: str = ""
    """The same at more length, for who asks (a tooltip, a detail line)."""


UNKNOWN = Said(Nothing.UNKNOWN.value, Tone.QUIET, Nothing.UNKNOWN)
EMPTY = Said(Nothing.EMPTY.value, Tone.QUIET, Nothing.EMPTY)
NO_PERMISSION = Said(Nothing.NO_PERMISSION.value, Tone.QUIET, Nothing.NO_PERMISSION)
SOURCE_DOWN = Said(Nothing.SOURCE_DOWN.value, Tone.WARN, Nothing.SOURCE_DOWN)


def count(number: int, unit: str = "") -> str:
    """``15,212`` or ``15,212 records``; ``1 record``: the unit is given in the plural."""
    text = f"{number:,}".replace("-", "−")
    if not unit:
        return text
    return f"{text} {singular(unit) if abs(number) == 1 else unit}"


def singular(plural: str) -> str:
    """``store`` of ``stores``; ``entry`` of ``entries``. For our own nouns, not for English."""
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    return plural.removesuffix("s")


def counted(number: int | None, unit: str = "") -> Said:
    """A count that may be unknown or zero."""
    if number is None:
        return UNKNOWN
    if number == 0:
        return Said(count(0, unit), Tone.PLAIN, Nothing.ZERO)
    return Said(count(number, unit))


def size(number: int | None) -> Said:
    """Bytes with a decimal prefix, three digits at most: ``12.4 MB``."""
    if number is None:
        return UNKNOWN
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return Said(f"{value:.1f} {unit}" if unit != "B" and value < 99.95 else f"{value:,.0f} {unit}")


def ratio(value: float | None) -> str:
    """``0.21``, or that it is unknown."""
    return Nothing.UNKNOWN.value if value is None else f"{value:.2f}"


def age(seconds: float) -> str:
    """How long ago: ``12 s``, ``12 min``, ``3 h 05 min``, ``4 d 2 h``; never rounded up.

    What lies ahead (a clock that is wrong) says so: ``5 min ahead``.
    """
    if seconds <= -1:
        return f"{age(-seconds)} ahead"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < DAY_SECONDS:
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(whole // 3600, 24)
    return f"{count(days)} d {hours} h" if hours else f"{count(days)} d"


def duration(seconds: float | None) -> Said:
    """How long something took: ``0.4 s``, ``12 s``, ``3 min 20 s``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return Said(f"{max(0.0, seconds):.1f} s")
    if seconds < 59.5:
        return Said(f"{seconds:.0f} s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return Said(f"{minutes} min {rest:02d} s")
    return Said(age(seconds))


def aged(said: Said, seconds: float | None, *, stale: bool) -> Said:
    """``said``, or when it is stale: grey, with its age, and never a bare last number.

    What was never known stays unknown: it has no age.
    """
    if not stale or said.nothing in (
        Nothing.UNKNOWN,
        Nothing.EMPTY,
        Nothing.NO_PERMISSION,
        Nothing.SOURCE_DOWN,
    ):
        return said
    told = "age unknown" if seconds is None else f"{age(seconds)} old"
    return Said(f"{said.text} ({told})", Tone.QUIET, Nothing.STALE, said.note)


def printable(text: str) -> str:
    """``text`` without what moves a cursor or turns the line around: a device may send anything."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


class Clock:
    """All times of all screens in one zone, whose offset is printed beside them.

    ``coarse``: ages that do not change every second, so that a slow line is not woken for them.
    """

    def __init__(self, zone: str, *, coarse: bool = False) -> None:
        try:
            self._zone = ZoneInfo(zone)
        # OSError: '' and '.' name the folder of the zones
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ConfigError(
                f"time zone {zone!r} is not known",
                "use an IANA name such as 'Asia/Manila'; on Debian install the package tzdata",
            ) from error
        self.zone = zone
        self.coarse = coarse

    def age(self, since: dt.datetime, now: dt.datetime) -> str:
        """Time from ``since`` to ``now``, as coarse as this clock is."""
        seconds = (now - since).total_seconds()
        return "<1 min" if self.coarse and -1 < seconds < 60 else age(seconds)

    def ago(self, since: dt.datetime, now: dt.datetime) -> str:
        """The same, with "ago"."""
        return f"{self.age(since, now)} ago"

    def label(self, now: dt.datetime) -> str:
        """``Asia/Manila, UTC+08:00``."""
        return f"{self.zone}, {self.offset(now)}"

    def offset(self, now: dt.datetime) -> str:
        """``UTC+08:00``, as it is at ``now``."""
        seconds = (now.astimezone(self._zone).utcoffset() or dt.timedelta()).total_seconds()
        hours, minutes = divmod(round(abs(seconds) / 60), 60)
        sign = "-" if seconds < 0 else "+"
        return f"UTC{sign}{hours:02d}:{minutes:02d}"

    def moment(self, moment: dt.datetime, now: dt.datetime, *, seconds: bool = False) -> str:
        """``14:03`` on the day of ``now``; else ``22 Nov 14:03``; another year says so."""
        local, today = moment.astimezone(self._zone), now.astimezone(self._zone)
        time = f"{local:%H:%M:%S}" if seconds else f"{local:%H:%M}"
        if local.date() == today.date():
            return time
        if local.year == today.year:
            return f"{local.day} {local:%b} {time}"
        return f"{local.day} {local:%b %Y} {time}"

    def full(self, moment: dt.datetime) -> str:
        """``2026-11-23 14:03:07 UTC+08:00``: to be copied."""
        local = moment.astimezone(self._zone)
        return f"{local:%Y-%m-%d %H:%M:%S} {self.offset(moment)}"
