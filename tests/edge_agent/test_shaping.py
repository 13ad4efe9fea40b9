"""Shaping: what comes out was observed; what is left out, was allowed to be."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_edge.buffer import Buffer
from scout_edge.metrics import AgentMetrics
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.shaping import MetricState, Shaper, ShapeSettings
from scout_edge.sources.units import conversion
from scout_shared.errors import ConfigError, TransientError
from scout_shared.wire import Reading
from tests.edge_agent.records import ZONE, contents, stored

VALUES = st.floats(-1e6, 1e6).map(lambda v: round(v, 3))
READINGS = st.lists(
    st.builds(
        Reading,
        metric=st.sampled_from(["a", "b"]),
        observed_ms=st.integers(0, 30_000),  # also backwards: clocks jump, lines come late
        value=VALUES,
    ),
    max_size=40,
)
ALL = ("min", "max", "mean", "count", "last")


def shape(rule: ShapeSettings, readings: list[Reading]) -> list[Reading]:
    shaper = Shaper([rule])
    out, states, _ = shaper.apply({}, readings)
    return out + shaper.close(states, list(states)).readings


@given(READINGS, st.floats(0, 1e5), st.integers(1, 20))
def test_a_deadband_leaves_out_only_what_is_near_the_last_one_sent(
    readings: list[Reading], deadband: float, silence: int
) -> None:
    rule = ShapeSettings("*", on_change=True, deadband=deadband, max_silence_seconds=silence)
    out = shape(rule, readings)
    rest = iter(out)
    last: dict[str, Reading] = {}
    following = next(rest, None)
    for reading in readings:
        if reading is following:
            last[reading.metric] = reading
            following = next(rest, None)
        else:
            before = last[reading.metric]  # the first of a metric is always sent
            assert abs(reading.value - before.value) <= deadband
            assert 0 <= reading.observed_ms - before.observed_ms < silence * 1000
    assert following is None, "what came out is a part of what came in, in its order"


@given(READINGS, st.sampled_from([0.5, 1.0, 7.0]))
def test_windows_add_up_and_their_values_were_observed(
    readings: list[Reading], seconds: float
) -> None:
    out = shape(ShapeSettings("*", window_seconds=seconds, window_values=ALL), readings)
    seen = {(r.metric, r.observed_ms, r.value) for r in readings}
    length = round(seconds * 1000)
    totals: dict[tuple[str, int], list[Reading]] = defaultdict(list)
    for reading in readings:
        totals[reading.metric, reading.observed_ms // length].append(reading)
    counts: dict[tuple[str, int], float] = defaultdict(float)
    sums: dict[tuple[str, int], Fraction] = defaultdict(Fraction)
    extremes: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for i in range(0, len(out), len(ALL)):
        low, high, mean, count, last = out[i : i + len(ALL)]
        metric = low.metric.removesuffix(".min")
        key = metric, last.observed_ms // length
        for one in (low, high, last):
            assert (metric, one.observed_ms, one.value) in seen
        assert low.value <= mean.value <= high.value
        counts[key] += count.value
        sums[key] += Fraction(mean.value) * int(count.value)
        extremes[*key, "min"].append(low.value)
        extremes[*key, "max"].append(high.value)
    assert counts == {key: len(some) for key, some in totals.items()}
    for key, some in totals.items():
        assert min(extremes[*key, "min"]) == min(r.value for r in some)
        assert max(extremes[*key, "max"]) == max(r.value for r in some)
        assert math.isclose(sums[key], math.fsum(r.value for r in some), abs_tol=1e-6)


@given(READINGS, st.lists(st.integers(0, 40), max_size=4))
def test_a_restart_at_any_moment_changes_nothing(readings: list[Reading], cuts: list[int]) -> None:
    rules = [
        ShapeSettings("a", window_seconds=2, window_values=ALL, deadband=10.0),
        ShapeSettings("b", on_change=True, max_silence_seconds=3),
    ]
    whole = Shaper(rules).apply({}, readings)
    states: dict[str, MetricState] = {}
    out = []
    at = 0
    for cut in [*sorted(cuts), len(readings)]:
        shaped = Shaper(rules).apply(states, readings[at:cut])
        out += shaped.readings
        text = json.dumps({m: s.encode() for m, s in shaped.states.items()})
        states = {m: MetricState.decode(fields) for m, fields in json.loads(text).items()}
        at = max(at, cut)
    assert out == whole.readings
    assert states == whole.states


@given(READINGS)
def test_without_a_rule_nothing_changes(readings: list[Reading]) -> None:
    assert Shaper([ShapeSettings("c")]).apply({}, readings).readings == readings


@pytest.mark.parametrize(
    "convert, value, expected",
    [
        (("fahrenheit", "celsius", 1.0, 0.0), 41.0, 5.0),
        (("fahrenheit", "celsius", 0.1, 0.0), 395.0, 4.166666666666667),
        (("celsius", "kelvin", 1.0, 0.0), -0.15, 273.0),
        (("percent", "ratio", 1.0, 0.0), 7.0, 0.07),
        (("watt_hour", "kilowatt_hour", 1.0, 0.0), 1234.0, 1.234),
        (("", "", 0.1, 0.0), 253.0, 25.3),
        (("", "", 0.1, -40.0), 3.0, -39.7),
        (("", "", 1.0, 0.0), 0.1, 0.1),
    ],
)
def test_conversion_rounds_once(
    convert: tuple[str, str, float, float], value: float, expected: float
) -> None:
    assert conversion(*convert)(value) == expected


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"convert_from": "celsius", "convert_to": "bar"}, "temperature.*cannot become"),
        ({"convert_from": "celsius"}, "unit ''"),
        ({"window_values": ("median",)}, "median"),
        ({"deadband": -1.0}, "deadband -1"),
        ({"scale": 0.0}, "scale 0"),
        ({"window_seconds": 0.0001}, "below a millisecond"),
    ],
)
def test_a_wrong_rule_is_named(rule: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShapeSettings("a", **rule)  # type: ignore[arg-type]  # wrong on purpose


def test_open_windows_are_durable_and_a_refused_append_changes_nothing(tmp_path: Path) -> None:
    rule = ShapeSettings("a", window_seconds=60, window_values=("count", "mean"))
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE) as buffer:
        outlet = Outlet(buffer, AgentMetrics(buffer), "fridge", [rule])
        outlet.append_readings([Reading("a", 1000, 1.0)], state="one")
        assert buffer.status().unsealed_records == 0
    with pytest.raises(TransientError):
        outlet.append_readings([Reading("a", 2000, 9.0)], state="two")
    assert outlet.state() == "one"
    with Buffer(path, zone=ZONE) as buffer:
        outlet = Outlet(buffer, AgentMetrics(buffer), "fridge", [rule])
        assert outlet.state() == "one"
        outlet.append_readings([Reading("a", 3000, 2.0)])
        outlet = Outlet(buffer, AgentMetrics(buffer), "fridge", [rule])
        outlet.tick()
        assert buffer.status().unsealed_records == 0, "its time is not over"
        outlet.append_readings([Reading("a", 61_000, 5.0)])
        # Without its rule the open window is still delivered.
        outlet = Outlet(buffer, AgentMetrics(buffer), "fridge")
        outlet.tick()
        buffer.seal()
        found, _ = contents(stored(buffer))
    assert found == {
        Reading("a.count", 3000, 2.0): 1,
        Reading("a.mean", 3000, 1.5): 1,
        Reading("a.min", 61_000, 5.0): 1,
        Reading("a.max", 61_000, 5.0): 1,
        Reading("a.mean", 61_000, 5.0): 1,
        Reading("a.count", 61_000, 1.0): 1,
    }


def test_a_value_beyond_float64_is_counted_not_stored(tmp_path: Path) -> None:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        measured = AgentMetrics(buffer)
        outlet = Outlet(buffer, measured, "fridge", [ShapeSettings("a", scale=10.0)])
        outlet.append_readings([Reading("a", 1, 1e308), Reading("a", 2, 2.0)])
        buffer.seal()
        assert contents(stored(buffer))[0] == {Reading("a", 2, 20.0): 1}
        assert measured.counters()["unreadable_records"] == 1
