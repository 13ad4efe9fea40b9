"""Fewer and better readings: conversion, windows, deadband, per metric. Pure: state in, state out.

In this order: scale, offset and unit; then, when a window is set, the readings of each window
become one reading per named value; then on-change or deadband. Nothing is invented: each value that
comes out is one that came in (converted), or the count or mean of such; each time is that of a
reading that came in; without a reading nothing comes out. A late reading opens its window again,
which then comes out in two parts: their counts add up.
Not its job: keeping the state durable (``outlet``).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from scout_edge.sources.units import Conversion, conversion
from scout_shared.errors import ConfigError
from scout_shared.settings import check_seconds
from scout_shared.wire import Reading

WINDOW_VALUES = ("min", "max", "mean", "count", "last")


@dataclass(frozen=True, slots=True)
class ShapeSettings:
    """One ``[[sources.<name>.shape]]`` table; the first that fits a metric is used."""

    metric: str
    """The metric, or a pattern such as 'fridge.*.temperature'. No default."""
    scale: float = 1.0
    """Factor. Default 1."""
    offset: float = 0.0
    """Added after the factor. Default 0."""
    convert_from: str = ""
    """Unit after scale and offset, e.g. 'fahrenheit'. Default: no conversion."""
    convert_to: str = ""
    """Unit that is wanted, e.g. 'celsius'. Default: no conversion."""
    on_change: bool = False
    """Only readings that differ from the last one sent. Default false."""
    deadband: float = 0.0
    """Only readings that differ by more than this from the last one sent. Default 0: none."""
    max_silence_seconds: float = 600.0
    """After so long an unchanged reading is sent all the same. Default 600."""
    window_seconds: float = 0.0
    """Length of a window; windows begin at whole multiples of it, UTC. Default 0: none."""
    window_values: tuple[str, ...] = ("min", "max", "mean", "count")
    """What of a window is sent, as '<metric>.<value>': min, max, mean, count, last."""

    def __post_init__(self) -> None:
        if not self.metric:
            raise ConfigError("metric must be set", "name a metric or a pattern such as 'fridge.*'")
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale):
            raise ConfigError(f"scale {self.scale} and offset {self.offset} cannot be")
        if not 0 <= self.deadband < math.inf:
            raise ConfigError(f"deadband {self.deadband} cannot be", "give 0 or more")
        check_seconds("max_silence_seconds", self.max_silence_seconds, 0.001)
        check_seconds("window_seconds", self.window_seconds, 0.0)
        if 0 < self.window_seconds < 0.001:
            raise ConfigError(f"window_seconds {self.window_seconds} is below a millisecond")
        unknown = set(self.window_values) - set(WINDOW_VALUES)
        if unknown or not self.window_values:
            raise ConfigError(
                f"window_values {sorted(unknown)} cannot be", f"use {', '.join(WINDOW_VALUES)}"
            )
        self.conversion()

    def conversion(self) -> Conversion:
        """Of scale, offset and units."""
        return conversion(self.convert_from, self.convert_to, self.scale, self.offset)


class Window(NamedTuple):
    """The readings of one metric in one window so far."""

    start_ms: int
    readings: int
    low: float
    low_ms: int
    high: float
    high_ms: int
    total: Fraction
    last: float
    last_ms: int


class Shaped(NamedTuple):
    """What came out, and the states after it."""

    readings: list[Reading]
    states: Mapping[str, MetricState]
    overflowed: int
    """Readings whose converted value no float64 holds."""


@dataclass(frozen=True, slots=True)
class MetricState:
    """What is remembered of one metric of the source."""

    window: Window | None = None
    sent: Mapping[str, tuple[int, float]] | None = None
    """Time and value of the last reading sent, by the metric's name outside."""

    def encode(self) -> list[Any]:
        """As JSON values."""
        window = self.window and [*self.window[:6], str(self.window.total), *self.window[7:]]
        return [window, self.sent]

    @classmethod
    def decode(cls, fields: list[Any]) -> MetricState:
        """From JSON values."""
        window, sent = fields
        if window is not None:
            window = Window._make([*window[:6], Fraction(window[6]), *window[7:]])
        return cls(window, sent and {metric: (ms, value) for metric, (ms, value) in sent.items()})


class Shaper:
    """The rules of one source."""

    def __init__(self, rules: Sequence[ShapeSettings]) -> None:
        self._rules = [(rule, rule.conversion()) for rule in rules]
        self._known: dict[str, tuple[ShapeSettings, Conversion] | None] = {}

    def rule(self, metric: str) -> ShapeSettings | None:
        """The rule of a metric."""
        found = self._find(metric)
        return None if found is None else found[0]

    def _find(self, metric: str) -> tuple[ShapeSettings, Conversion] | None:
        if metric not in self._known:
            if len(self._known) >= 10_000:
                self._known.clear()
            self._known[metric] = next(
                (r for r in self._rules if fnmatch.fnmatchcase(metric, r[0].metric)), None
            )
        return self._known[metric]

    def apply(self, states: Mapping[str, MetricState], readings: Sequence[Reading]) -> Shaped:
        """Shape readings in their order."""
        out: list[Reading] = []
        after = dict(states)
        overflowed = 0
        for reading in readings:
            found = self._find(reading.metric)
            if found is None:
                out.append(reading)
                continue
            rule, convert = found
            value = convert(reading.value)
            if not math.isfinite(value):
                overflowed += 1
                continue
            state = after.get(reading.metric, MetricState())
            converted = reading if value == reading.value else reading._replace(value=value)
            if rule.window_seconds:
                state, made = _into_window(rule, state, converted)
            else:
                made = [converted]
            state, sent = _changed(rule, state, made)
            after[reading.metric] = state
            out += sent
        return Shaped(out, after, overflowed)

    def close(self, states: Mapping[str, MetricState], metrics: Sequence[str]) -> Shaped:
        """End the open windows of these metrics."""
        out: list[Reading] = []
        after = dict(states)
        for metric in metrics:
            state = after[metric]
            if state.window is not None:
                # A metric that lost its rule still gives what its window holds.
                rule = self.rule(metric) or ShapeSettings(metric)
                made = _values(rule, metric, state.window)
                after[metric], sent = _changed(rule, replace(state, window=None), made)
                out += sent
        return Shaped(out, after, 0)


def _into_window(
    rule: ShapeSettings, state: MetricState, reading: Reading
) -> tuple[MetricState, list[Reading]]:
    metric, ms, value = reading
    length_ms = round(rule.window_seconds * 1000)
    start_ms = ms - ms % length_ms
    window, made = state.window, list[Reading]()
    if window is not None and window.start_ms != start_ms:
        made, window = _values(rule, metric, window), None
    if window is None:
        window = Window(start_ms, 1, value, ms, value, ms, Fraction(value), value, ms)
    else:
        low = min((window.low, window.low_ms), (value, ms), key=lambda pair: pair[0])
        high = max((window.high, window.high_ms), (value, ms), key=lambda pair: pair[0])
        last = max((window.last_ms, window.last), (ms, value), key=lambda pair: pair[0])
        if ms == window.last_ms:
            last = ms, value  # the later of two at one instant
        total = window.total + Fraction(value)
        window = Window(start_ms, window.readings + 1, *low, *high, total, last[1], last[0])
    return replace(state, window=window), made


def _values(rule: ShapeSettings, metric: str, window: Window) -> list[Reading]:
    made = {
        "min": (window.low_ms, window.low),
        "max": (window.high_ms, window.high),
        "mean": (window.last_ms, float(window.total / window.readings)),
        "count": (window.last_ms, float(window.readings)),
        "last": (window.last_ms, window.last),
    }
    return [Reading(f"{metric}.{name}", *made[name]) for name in rule.window_values]


def _changed(
    rule: ShapeSettings, state: MetricState, readings: list[Reading]
) -> tuple[MetricState, list[Reading]]:
    """Leave out what did not change; a count always counts."""
    if not (rule.on_change or rule.deadband) or not readings:
        return state, readings
    sent, out = dict(state.sent or {}), []
    for reading in readings:
        before = sent.get(reading.metric)
        counts = rule.window_seconds and reading.metric.endswith(".count")
        if (
            before is None
            or counts
            or not abs(reading.value - before[1]) <= rule.deadband
            or not 0 <= reading.observed_ms - before[0] < rule.max_silence_seconds * 1000
        ):
            out.append(reading)
            sent[reading.metric] = reading.observed_ms, reading.value
    return replace(state, sent=sent), out
