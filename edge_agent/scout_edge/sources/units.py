"""Named units, and conversion that keeps decimal numbers decimal.

Computed with fractions and rounded once: 25.3 from 253 × 0.1, not 25.300000000000001, because
false digits cost bytes and are no observation.
"""

from __future__ import annotations

import difflib
import math
import struct
from dataclasses import dataclass
from fractions import Fraction

from scout_shared.errors import ConfigError

# unit: (quantity, scale, offset) so that base = value * scale + offset
_UNITS: dict[str, tuple[str, Fraction, Fraction]] = {
    unit: (quantity, Fraction(scale), Fraction(offset))
    for quantity, units in {
        "temperature": {
            "celsius": ("1", "0"),
            "fahrenheit": ("5/9", "-160/9"),
            "kelvin": ("1", "-273.15"),
        },
        "pressure": {
            "pascal": ("1", "0"),
            "hectopascal": ("100", "0"),
            "kilopascal": ("1000", "0"),
            "bar": ("100000", "0"),
            "psi": ("6894.757293168", "0"),
        },
        "energy": {
            "joule": ("1", "0"),
            "watt_hour": ("3600", "0"),
            "kilowatt_hour": ("3600000", "0"),
            "megawatt_hour": ("3600000000", "0"),
        },
        "power": {"watt": ("1", "0"), "kilowatt": ("1000", "0"), "milliwatt": ("1/1000", "0")},
        "voltage": {"volt": ("1", "0"), "millivolt": ("1/1000", "0"), "kilovolt": ("1000", "0")},
        "current": {"ampere": ("1", "0"), "milliampere": ("1/1000", "0")},
        "mass": {"gram": ("1", "0"), "kilogram": ("1000", "0"), "pound": ("453.59237", "0")},
        "length": {"metre": ("1", "0"), "millimetre": ("1/1000", "0"), "foot": ("0.3048", "0")},
        "volume": {
            "litre": ("1", "0"),
            "cubic_metre": ("1000", "0"),
            "gallon": ("3.785411784", "0"),
        },
        "time": {
            "second": ("1", "0"),
            "millisecond": ("1/1000", "0"),
            "minute": ("60", "0"),
            "hour": ("3600", "0"),
        },
        "share": {"ratio": ("1", "0"), "percent": ("1/100", "0")},
        "size": {"byte": ("1", "0"), "kilobyte": ("1000", "0"), "kibibyte": ("1024", "0")},
    }.items()
    for unit, (scale, offset) in units.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversion:
    """``value * scale + offset``."""

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def __call__(self, value: float) -> float:
        """The nearest float; infinite when it is more than one holds."""
        if self == _SAME:
            return value
        # repr: the decimal number that was meant, 0.1 and not its binary neighbour.
        exact = Fraction(repr(value)) * self.scale + self.offset
        try:
            return float(exact)
        except OverflowError:
            return float("inf") if exact > 0 else float("-inf")


_SAME = Conversion()


def conversion(source: str, target: str, scale: float, offset: float) -> Conversion:
    """``scale`` and ``offset`` first, then from unit to unit; empty names: no unit conversion.

    Raises:
        ConfigError: a unit is not known, or the two measure different things.
    """
    own = Conversion(Fraction(repr(scale)), Fraction(repr(offset)))
    if not source and not target:
        return own
    (quantity, up, above), (other, down, below) = _unit(source), _unit(target)
    if quantity != other:
        raise ConfigError(
            f"{source} ({quantity}) cannot become {target} ({other})", "give units of one quantity"
        )
    return Conversion(own.scale * up / down, (own.offset * up + above - below) / down)


def shortest_float32(value: float) -> float:
    """4.1, not 4.099999904632568: the shortest decimal that the same float32 stands for.

    The digits behind are not the meter's. Args: value: exactly a float32; any NaN or infinity is
    given back.
    """
    if not math.isfinite(value):
        return value
    data = struct.pack(">f", value)
    for digits in (6, 7, 8, 9):
        short = float(f"{value:.{digits}g}")
        # Rounding may leave the range of a float32 at its very end.
        if abs(short) <= 3.4028234663852886e38 and struct.pack(">f", short) == data:
            return short
    return value


def _unit(name: str) -> tuple[str, Fraction, Fraction]:
    if name not in _UNITS:
        near = difflib.get_close_matches(name, _UNITS, n=1)
        raise ConfigError(
            f"unit {name!r} is not known",
            f"did you mean {near[0]!r}?" if near else f"known units: {', '.join(_UNITS)}",
        )
    return _UNITS[name]
