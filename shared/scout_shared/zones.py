"""Business days: the calendar day of an instant in a store's time zone.

Used by the agent (ledger of what it produced) and by tests. An unknown instant has no business
day: the answer is ``UNKNOWN_DAY``, never today.
"""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from scout_shared.errors import ConfigError

UNKNOWN_DAY = -(2**31)
"""Day number that says: not known. It is outside what PostgreSQL's ``date`` can hold."""

_QUARTER_MS = 15 * 60 * 1000
_EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()


class BusinessCalendar:
    """Maps instants to business days of one IANA zone, cheaply enough for each record.

    Offsets of all zones in use change at quarter hours of UTC at the finest, so one answer per
    quarter hour is kept (measured: one dict look-up instead of 2 µs of zoneinfo).
    """

    def __init__(self, zone: str) -> None:
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError(
                f"time zone {zone!r} is not known",
                "use an IANA name such as 'Asia/Manila'; on Debian install the package tzdata",
            ) from error
        self.zone = zone
        self._days: dict[int, int] = {}

    def day(self, instant_ms: int | None) -> int:
        """Days since 1970-01-01 in this zone of ``instant_ms`` (ms UTC), or ``UNKNOWN_DAY``."""
        if instant_ms is None:
            return UNKNOWN_DAY
        quarter = instant_ms // _QUARTER_MS
        day = self._days.get(quarter)
        if day is None:
            if len(self._days) >= 100_000:  # 3 years of quarters; a replay may jump around
                self._days.clear()
            local = dt.datetime.fromtimestamp(quarter * _QUARTER_MS / 1000, self._zone)
            day = local.toordinal() - _EPOCH_ORDINAL
            self._days[quarter] = day
        return day


def day_to_iso(day: int) -> str | None:
    """``2026-11-23`` for a day number, ``None`` for an unknown day."""
    if day == UNKNOWN_DAY:
        return None
    return dt.date.fromordinal(day + _EPOCH_ORDINAL).isoformat()
