"""Times as local programs write them → milliseconds UTC. Never guessed.

    iso                  2026-11-23T08:15:00+08:00; without offset only when a zone is given
    epoch_seconds        1763856900.25
    epoch_milliseconds   1763856900250
    %d/%m/%Y %H:%M:%S    any strptime format, with a zone or with %z

A local time that the zone has twice or not at all (the hour of a clock change) is no instant:
``AmbiguousTimeError``. Not its job: the device's own clock.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from scout_shared.errors import ConfigError, PermanentError

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_FIRST_MS, _END_MS = -62_135_596_800_000, 253_402_300_800_000  # the years 1 to 9999
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
_OFFSET = re.compile(r"([+-])([0-9]{2}):([0-9]{2})")
_PER_UNIT = {"epoch_seconds": 1000, "epoch_milliseconds": 1}


class AmbiguousTimeError(PermanentError):
    """A local time that stands for two instants, or for none."""


@dataclass(frozen=True, slots=True)
class InstantFormat:
    """How a program writes its times.

    Raises:
        ConfigError: the format says no instant, or the zone is not known.
    """

    format: str
    zone: dt.tzinfo | None

    @classmethod
    def of(cls, format: str, zone: str) -> InstantFormat:  # noqa: A002 - the settings' name
        """Checked. ``zone``: IANA name, offset such as '+08:00', or empty."""
        if format not in ("iso", *_PER_UNIT) and "%" not in format:
            raise ConfigError(
                f"time_format {format!r} is not known",
                "use 'iso', 'epoch_seconds', 'epoch_milliseconds' or one such as '%Y-%m-%d %H:%M'",
            )
        if "%" in format and not zone and "%z" not in format:
            raise ConfigError(
                f"time_format {format!r} says no instant without a zone",
                "give zone = 'Asia/Manila' or '+08:00', or %z in the format",
            )
        return cls(format, _zone(zone) if zone else None)

    def parse(self, value: Any) -> int:
        """Milliseconds UTC; what is below one is cut.

        Raises:
            AmbiguousTimeError: the zone has that local time twice, or not at all.
            PermanentError: it is no such time.
        """
        per_unit = _PER_UNIT.get(self.format)
        if per_unit is not None:
            instant_ms = self._number(value, per_unit)
        else:
            instant_ms = (self._text(value) - _EPOCH) // _MILLISECOND
        if not _FIRST_MS <= instant_ms < _END_MS:
            raise PermanentError(f"time {value!r} is outside the years 1 to 9999")
        return instant_ms

    def _number(self, value: Any, per_unit: int) -> int:
        text = value.strip() if isinstance(value, str) else repr(value)
        if isinstance(value, bool) or not _NUMBER.fullmatch(text):
            raise PermanentError(f"time {str(value)[:60]!r} is not in {self.format}")
        return int(Decimal(text) * per_unit // 1)

    def _text(self, value: Any) -> dt.datetime:
        if not isinstance(value, str):
            raise PermanentError(f"time {str(value)[:60]!r} is not a text in {self.format!r}")
        text = value.strip()
        try:
            if self.format == "iso":
                found = dt.datetime.fromisoformat(text)
            else:
                found = dt.datetime.strptime(text, self.format)  # noqa: DTZ007 - zoned below
        except ValueError as error:
            raise PermanentError(f"time {text[:60]!r} is not in {self.format!r}") from error
        if found.tzinfo is not None:
            return found
        if self.zone is None:
            raise PermanentError(f"time {text[:60]!r} has no offset, and no zone is set")
        first, second = (found.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() != second.utcoffset():
            raise AmbiguousTimeError(f"time {text[:60]!r} is within a clock change of {self.zone}")
        return first.astimezone(dt.UTC)


def _zone(name: str) -> dt.tzinfo:
    offset = _OFFSET.fullmatch(name)
    if offset:
        sign, hours, minutes = offset.groups()
        away = dt.timedelta(hours=int(hours), minutes=int(minutes))
        if away < dt.timedelta(hours=24):
            return dt.timezone(-away if sign == "-" else away)
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"zone {name!r} is not known", "use an IANA name such as 'Asia/Manila', or '+08:00'"
        ) from error
