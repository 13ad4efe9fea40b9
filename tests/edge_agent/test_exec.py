"""The exec source with real commands."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scout_edge.buffer import Buffer
from scout_edge.room import Limits
from scout_edge.sources.command import ExecSettings, ExecSource
from scout_edge.sources.outlet import Outlet
from scout_shared.errors import ConfigError, ScoutError, TransientError
from scout_shared.messages import Receipt
from scout_shared.wire import Document, Reading
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.harness.waiting import eventually


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


@pytest.fixture
def outlet(buffer: Buffer) -> Outlet:
    return outlet_of(buffer, "scales")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@contextmanager
def running(outlet: Outlet, command: tuple[str, ...], **given: Any) -> Iterator[ExecSource]:
    source = ExecSource(outlet, ExecSettings(command, **given))
    source.open()
    stop = threading.Event()
    failures: list[ScoutError] = []

    def run() -> None:
        try:
            source.run(stop)
        except ScoutError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield source
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        source.close()
    if failures:
        raise failures[0]


def found(buffer: Buffer) -> tuple[list[Reading], list[Document]]:
    buffer.seal()
    readings, documents = contents(stored(buffer))
    return sorted(readings.elements()), documents


def records(buffer: Buffer) -> int:
    status = buffer.status()
    return status.unsealed_records + status.next_sequence - 1


def test_values_are_taken_and_only_a_live_one_is_stamped(buffer: Buffer, outlet: Outlet) -> None:
    before = time.time_ns() // 1_000_000
    lines = "a 1.5\n\nb -2e1 2026-11-23T08:15:00+08:00\nb 3 1.25\nc warm\nd\ne 1 yesterday\nf nan\n"
    with running(outlet, python(f"print({lines!r}, end='g 7')")):
        eventually(lambda: records(buffer) == 4)
    stamped, *rest = found(buffer)[0]
    assert (stamped.metric, stamped.value) == ("a", 1.5)
    assert before <= stamped.observed_ms <= time.time_ns() // 1_000_000
    assert rest[:2] == [Reading("b", 1250, 3.0), Reading("b", 1_795_392_900_000, -20.0)]
    assert rest[2].metric == "g", "the last line needs no end when the command has ended"
    assert outlet._metrics.counters()["unreadable_records"] == 4


def test_json_lines_are_readings_and_documents(buffer: Buffer, outlet: Outlet) -> None:
    lines = [
        '{"metric":"a","value":1}',
        '{"metric":"a","value":2,"observed_at":"2026-11-23T08:15:00+08:00"}',
        '{"metric":"a","value":2,"observed_at":null}',
        '{"type":"weighing","body":{"g":1.10},"observed_at":null}',
        '{"metric":"a","value":true}',
        '{"metric":"a","value":2,"unit":"g"}',
        "[1]",
        "{",
    ]
    with running(outlet, python(f"print('\\n'.join({lines!r}))"), format="jsonl"):
        eventually(lambda: records(buffer) == 3)
    readings, (document,) = found(buffer)
    assert [r.value for r in readings] == [2.0, 1.0]
    assert (document.type, document.body, document.observed_ms) == ("weighing", b'{"g":1.10}', None)
    assert outlet._metrics.counters()["unreadable_records"] == 5


def test_it_runs_again_each_interval(buffer: Buffer, outlet: Outlet) -> None:
    with running(outlet, ("echo", "a 1"), interval_seconds=0.05):
        eventually(lambda: records(buffer) >= 3)


@pytest.mark.parametrize(
    "code, given, message",
    [
        ("import sys; sys.exit('no scales')", {}, "ended with 1: no scales"),
        ("print('a 1')", {"interval_seconds": 0.0}, "ended"),
        ("import time; time.sleep(99)", {"timeout_seconds": 0.3}, "said nothing for 0.3 s"),
        (
            "import time; print('a 1', flush=True); time.sleep(99)",
            {"interval_seconds": 0.0, "silence_seconds": 0.5},
            "said nothing for 0.5 s",
        ),
    ],
)
def test_a_command_that_fails_is_a_failure_of_the_source(
    outlet: Outlet, code: str, given: dict[str, Any], message: str
) -> None:
    source = ExecSource(outlet, ExecSettings(python(code), **given))
    with pytest.raises(TransientError, match=message):
        source.run(threading.Event())


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_the_whole_process_group_ends_with_the_source(
    buffer: Buffer, outlet: Outlet, tmp_path: Path
) -> None:
    """Also a grandchild that ignores SIGTERM and holds the pipe."""
    code = (
        "import signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
        " signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)'],"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('a 1', flush=True)\n"
        "time.sleep(99)"
    )
    with running(outlet, python(code), interval_seconds=0.0):
        eventually(lambda: records(buffer) == 1)
    pid = int((tmp_path / "pid").read_text())
    assert os.getpid() != pid
    eventually(lambda: _gone(pid))


def test_a_line_that_is_too_long_is_counted_and_the_next_one_taken(
    buffer: Buffer, outlet: Outlet
) -> None:
    with running(outlet, python("print('x' * 700_000); print('a 1')")):
        eventually(lambda: records(buffer) == 1)
    assert outlet._metrics.counters()["unreadable_records"] == 1


@contextmanager
def full_buffer(folder: Path) -> Iterator[Buffer]:
    with Buffer(folder / "small.db", zone=ZONE, limits=Limits(1 << 19)) as small:
        for _ in range(400):
            try:
                small.append_documents([Document("old", None, 0, os.urandom(2000).hex().encode())])
            except TransientError:
                break
        else:
            pytest.fail("the buffer did not fill")
        yield small


def empty(full: Buffer) -> None:
    """As the hub would: all that is sealed has a receipt."""
    full.seal()
    for segment in stored(full, after=full.watermark):
        full.apply_receipt(Receipt(full.epoch, segment.last_sequence))


def test_a_line_that_waited_is_never_stamped(tmp_path: Path) -> None:
    """It has no time of its own, and was written while the buffer refused the one before."""
    code = (
        "import pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "print('first 1', flush=True)\n"
        "while not (folder / 'refused').exists(): time.sleep(0.01)\n"
        "print('waited 1\\n' * 50, flush=True)\n"
        "print('timed 1 5.0', flush=True)\n"
        "(folder / 'written').touch()\n"
        "while not (folder / 'taken').exists(): time.sleep(0.01)\n"
        "while True:\n"
        "    print('live 1', flush=True)\n"
        "    time.sleep(0.02)\n"
    )
    taken: dict[str, int] = {}
    with full_buffer(tmp_path) as small:
        # readings that fill what documents leave
        with contextlib.suppress(TransientError):
            while True:
                small.append_readings([Reading("filler", i, os.urandom(1)[0]) for i in range(500)])
        outlet = outlet_of(small)
        with running(outlet, python(code), interval_seconds=0.0) as source:
            eventually(lambda: source._live_from == math.inf, 20, "the first line is refused")
            (tmp_path / "refused").touch()
            eventually((tmp_path / "written").exists)
            empty(small)
            after = small.watermark
            eventually(lambda: outlet._metrics.counters()["unreadable_records"] == 50, 20)
            (tmp_path / "taken").touch()

            def seen() -> bool:
                taken.clear()
                small.seal()
                for reading in contents(stored(small, after=after))[0].elements():
                    taken[reading.metric] = taken.get(reading.metric, 0) + 1
                return "live" in taken

            eventually(seen, 20)
    assert taken.keys() == {"first", "timed", "live"}
    assert (taken["first"], taken["timed"]) == (1, 1)


def test_while_the_buffer_refuses_the_command_waits_and_nothing_is_lost(tmp_path: Path) -> None:
    body = "x" * 1000
    code = f'for i in range(600): print(\'{{"type":"t","body":{{"n":%d,"p":"{body}"}}}}\' % i)'
    with full_buffer(tmp_path) as small:
        before = records(small)
        numbers: list[bytes] = []

        def drained() -> bool:
            small.seal()
            for segment in stored(small, after=small.watermark):
                numbers.extend(d.body for d in contents([segment])[1] if d.type == "t")
                small.apply_receipt(Receipt(small.epoch, segment.last_sequence))
            return len(numbers) >= 600

        with running(outlet_of(small), python(code), format="jsonl"):
            assert records(small) == before
            eventually(drained, 20)
    assert len(set(numbers)) == len(numbers) == 600


@pytest.mark.parametrize(
    "given, message",
    [
        ({"command": ()}, "command must name"),
        ({"command": ("/no/such/program",)}, "cannot be run"),
        ({"command": ("true",), "format": "xml"}, "format 'xml'"),
        ({"command": ("true",), "interval_seconds": -1.0}, "interval_seconds -1"),
    ],
)
def test_wrong_settings_are_named(outlet: Outlet, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExecSource(outlet, ExecSettings(**given)).open()
