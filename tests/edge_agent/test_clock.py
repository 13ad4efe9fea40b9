"""Clocks that are wrong, jump and become known: what is stamped meanwhile can be repaired."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scout_edge import boots, clock, tail
from scout_edge.buffer import Buffer
from scout_edge.metrics import AgentMetrics
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.shaping import ShapeSettings
from scout_shared import wire
from scout_shared.messages import BootClock
from scout_shared.wire import Reading, Span
from tests.edge_agent.records import START_MS, ZONE, outlet_of, stored
from tests.edge_agent.test_exec import python, records, running
from tests.harness.waiting import eventually


@dataclass
class Device:
    """A device whose clocks a test moves; time passes only when told."""

    true_ms: int = START_MS
    booted_ms: int = START_MS - 90_000
    error_ms: int = 0
    """Of the wall clock."""
    is_synced: bool | None = False
    boot: int = 1

    @property
    def boot_id(self) -> bytes:
        return self.boot.to_bytes(16, "big")

    @property
    def right_offset_ms(self) -> int:
        return self.booted_ms

    def reboot(self, error_ms: int) -> None:
        self.boot += 1
        self.true_ms += 30_000
        self.booted_ms, self.error_ms, self.is_synced = self.true_ms - 5_000, error_ms, False

    def sync(self) -> None:
        self.error_ms, self.is_synced = 0, True


@contextmanager
def clocks_of(device: Device) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "wall_ms", lambda: device.true_ms + device.error_ms)
        patch.setattr(clock, "monotonic_ms", lambda: device.true_ms - device.booted_ms)
        patch.setattr(clock, "boot_id", lambda: device.boot_id)
        patch.setattr(clock, "synced", lambda: device.is_synced)
        patch.setattr(clock, "_span", None)
        yield


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    with clocks_of(made):
        yield made


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


def found(buffer: Buffer) -> dict[Reading, Span | None]:
    """Each sealed reading, with the span that its segment says."""
    buffer.seal()
    spans = {}
    for segment in stored(buffer):
        meta, _ = wire.decode_body(wire.decode_header(segment.body), segment.body)
        for reading in wire.decode_readings(segment.body):
            spans[reading] = wire.span_of(meta)
    return spans


def repaired_ms(reading: Reading, span: Span | None, known: dict[bytes, int]) -> int | None:
    """What the hub makes of it (bronze.device_readings_timed); None: nobody knows."""
    if span is None:
        return reading.observed_ms
    if span.boot_id not in known:
        return None
    return reading.observed_ms + known[span.boot_id] - span.offset_ms


@dataclass
class Model:
    """What happened, kept beside the device in plain dictionaries."""

    happened_ms: dict[float, int] = field(default_factory=dict)
    """True time of what the agent stamped, by the value of its reading."""
    stamped_ms: dict[float, int] = field(default_factory=dict)
    boot_of: dict[float, bytes] = field(default_factory=dict)
    doubtful: set[float] = field(default_factory=set)
    known: set[bytes] = field(default_factory=set)
    jumps: int = 0
    looked: int | None = None


OBSERVE, SYNC, LOOK = ("observe", 0), ("sync", 0), ("look", 0)
STEP = st.one_of(
    st.just(OBSERVE),
    st.just(OBSERVE),
    st.just(OBSERVE),
    st.tuples(st.just("source time"), st.integers(-(10**11), 10**11)),
    st.tuples(st.just("pass"), st.integers(1, 600_000)),
    st.tuples(st.just("set by hand"), st.integers(-(10**9), 10**9)),
    st.just(SYNC),
    st.just(LOOK),
    st.tuples(st.just("lose sync"), st.just(0)),
    st.tuples(st.just("reboot"), st.integers(-(10**11), 10**9)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("seal"), st.just(0)),
)


def take(
    told: tuple[str, int], device: Device, model: Model, buffer: Buffer, watch: boots.ClockWatch
) -> None:
    step, value = told
    n = float(len(model.stamped_ms))
    if step == "observe":
        now = clock.stamp()
        buffer.append_readings([Reading("a", now.wall_ms, n)], span=now.span)
        model.happened_ms[n], model.stamped_ms[n] = device.true_ms, now.wall_ms
        model.boot_of[n] = device.boot_id
        if not device.is_synced:
            model.doubtful.add(n)
    elif step == "source time":
        model.stamped_ms[n] = START_MS + value
        buffer.append_readings([Reading("a", START_MS + value, n)])
    elif step == "pass":
        device.true_ms += value
    elif step == "set by hand":  # settimeofday tells the kernel that nobody vouches any more
        device.error_ms, device.is_synced = value, False
    elif step == "sync":
        device.sync()
    elif step == "lose sync":
        device.is_synced = False
    elif step == "look":
        watch.look()
        if model.looked is not None and abs(device.error_ms - model.looked) > boots.JUMP_MS:
            model.jumps += 1
        model.looked = device.error_ms
        if device.is_synced:
            model.known.add(device.boot_id)
    else:
        assert step == "seal"
        buffer.seal()


@given(st.lists(STEP, max_size=40))
@example([OBSERVE, ("set by hand", 60_000), OBSERVE, ("set by hand", -3000), OBSERVE, SYNC, LOOK])
@example(
    [("reboot", -(10**9)), OBSERVE, ("restart", 0), OBSERVE, SYNC, OBSERVE, ("restart", 0), LOOK]
)
@example([OBSERVE, SYNC, ("reboot", -5), OBSERVE, ("reboot", 5), OBSERVE, SYNC, LOOK, OBSERVE])
@settings(deadline=None, max_examples=60)
def test_times_are_repaired_exactly_where_the_clock_of_their_boot_became_known(
    steps: list[tuple[str, int]],
) -> None:
    device, model, jumped = Device(), Model(), []
    with tempfile.TemporaryDirectory() as folder, clocks_of(device):
        path = Path(folder) / "edge.db"
        buffer = Buffer(path, zone=ZONE)
        try:
            watch = boots.ClockWatch(buffer, lambda: jumped.append(1))
            for step, value in steps:
                if step in ("restart", "reboot"):
                    buffer.close()
                    if step == "reboot":
                        device.reboot(value)
                    clock._span = None
                    buffer = Buffer(path, zone=ZONE)
                    watch = boots.ClockWatch(buffer, lambda: jumped.append(1))
                    model.looked = None
                else:
                    take((step, value), device, model, buffer, watch)
            known = {boot.boot_id: boot.offset_ms for boot in boots.known(buffer)}
            spans = found(buffer)
        finally:
            buffer.close()
    assert set(known) == model.known
    assert len(jumped) == model.jumps
    assert {r.value: r.observed_ms for r in spans} == model.stamped_ms, "nothing is re-stamped"
    for reading, span in spans.items():
        n, time_ms = reading.value, repaired_ms(reading, span, known)
        if n not in model.doubtful:
            assert span is None
            assert time_ms == reading.observed_ms == model.happened_ms.get(n, reading.observed_ms)
        else:
            assert span is not None
            assert span.boot_id == model.boot_of[n]
            if span.boot_id in known:
                assert time_ms is not None
                assert abs(time_ms - model.happened_ms[n]) <= clock._SAME_SPAN_MS
            else:
                assert time_ms is None


def test_what_waits_unsealed_keeps_its_mark_over_a_reboot(device: Device, tmp_path: Path) -> None:
    device.error_ms = -86_400_000
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE) as buffer:
        now = clock.stamp()
        buffer.append_readings([Reading("a", now.wall_ms, 1.0)], span=now.span)
    device.reboot(-3_600_000)
    with Buffer(path, zone=ZONE) as buffer:
        later = clock.stamp()
        buffer.append_readings([Reading("a", later.wall_ms, 2.0)], span=later.span)
        assert [s.records for s in stored(buffer)] == [1], "sealed before the next span begins"
        assert list(found(buffer).values()) == [now.span, later.span]
        assert now.span != later.span


def test_a_damaged_tail_row_of_stamped_readings_is_declared_as_readings(
    device: Device, tmp_path: Path
) -> None:
    path = tmp_path / "edge.db"
    with Buffer(path, zone=ZONE) as buffer:
        now = clock.stamp()
        buffer.append_readings([Reading("a", now.wall_ms, 1.0)], span=now.span)
        buffer._submit(lambda: buffer._writer.execute("update tail set crc = crc + 1").rowcount)
    with Buffer(path, zone=ZONE) as buffer:
        (gap,) = stored(buffer)
        assert [part.kind for part in wire.decode_gap(gap.body)] == [wire.READINGS]


def test_a_stamp_of_a_clock_that_the_kernel_vouches_for_has_no_mark(device: Device) -> None:
    device.sync()
    assert clock.stamp() == (START_MS, None)
    device.is_synced = None
    assert clock.stamp().span == Span(device.boot_id, wire.CLOCK_UNKNOWN, device.right_offset_ms)


def test_a_boot_is_told_with_how_far_it_may_be_off(device: Device, buffer: Buffer) -> None:
    jumps: list[int] = []
    watch = boots.ClockWatch(buffer, lambda: jumps.append(1))
    device.error_ms = -86_400_000
    watch.look()
    assert boots.known(buffer) == ()
    device.true_ms += 3_600_000
    device.sync()
    watch.look()
    up_ms = 3_600_000 + 90_000
    expected = BootClock(device.boot_id, device.booted_ms, up_ms // 10_000, device.true_ms)
    assert boots.known(buffer) == (expected,)
    assert jumps == [1]
    watch.look()
    assert jumps == [1], "a clock that runs on has not jumped"


def test_no_more_boots_are_kept_than_a_hello_may_tell(device: Device, buffer: Buffer) -> None:
    for _ in range(boots.BOOTS_KEPT + 5):
        device.reboot(0)
        device.sync()
        boots.ClockWatch(buffer, lambda: None).look()
    kept = [boot.boot_id for boot in boots.known(buffer)]
    assert len(kept) == boots.BOOTS_KEPT
    assert kept[-1] == device.boot_id


def test_only_what_a_command_gave_without_a_time_is_marked(device: Device, buffer: Buffer) -> None:
    with running(outlet_of(buffer), python("print('a 1\\nb 2 1760000000\\nc 3')")):
        eventually(lambda: records(buffer) == 3)
    spans = {reading.metric: span for reading, span in found(buffer).items()}
    span = Span(device.boot_id, wire.CLOCK_UNSYNCED, device.right_offset_ms)
    assert spans == {"a": span, "b": None, "c": span}


def test_a_window_never_holds_the_times_of_two_clocks(device: Device, buffer: Buffer) -> None:
    rule = ShapeSettings("a", window_seconds=3600.0, window_values=("count",))
    outlet = Outlet(buffer, AgentMetrics(buffer), "fridge", [rule])
    before = clock.stamp()
    outlet.append_readings([Reading("a", before.wall_ms, 1.0)], span=before.span)
    # The agent starts again: which clock the open window is of stands in the file.
    outlet = Outlet(buffer, AgentMetrics(buffer), "fridge", [rule])
    device.sync()
    device.error_ms = 60_000
    after = clock.stamp()
    outlet.append_readings([Reading("a", after.wall_ms, 2.0)], span=after.span)
    outlet.flush()
    assert {(r.value, span) for r, span in found(buffer).items()} == {
        (1.0, before.span),
        (1.0, None),
    }


def test_the_clocks_of_this_machine_can_be_read() -> None:
    assert clock.monotonic_ms() <= clock.monotonic_ms()
    assert abs(clock.offset_ms() - clock.offset_ms()) < boots.JUMP_MS
    assert len(clock.boot_id()) == 16
    assert sys.platform != "linux" or clock.stamp().wall_ms > START_MS


def test_a_tail_row_tells_its_span(device: Device) -> None:
    now = SimpleNamespace(span=clock.stamp().span)
    body = tail.pack(tail.STAMPED, [Reading("a", 1, 2.0)], now.span)
    assert tail.unpack(tail.STAMPED, 1, body) == (now.span, [Reading("a", 1, 2.0)])
