"""The files source on real files: each line once, whatever rotates, stops or breaks."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scout_edge.buffer import Buffer
from scout_edge.buffer_status import peek
from scout_edge.sources import files as files_module
from scout_edge.sources.checkpoints import Checkpoints
from scout_edge.sources.files import FilesSettings, FilesSource
from scout_edge.sources.outlet import Outlet
from scout_shared.errors import ConfigError, TransientError
from scout_shared.wire import Document, Reading
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.harness.process import Process
from tests.harness.waiting import eventually

NEVER = threading.Event()


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pos"
    made.mkdir()
    return made


class Store:
    """A source that is driven poll by poll, and what arrived."""

    def __init__(self, buffer: Buffer, folder: Path, **given: Any) -> None:
        given = {
            "path": folder / "sales.log",
            "format": "jsonl",
            "document_type": "transaction",
            "settle_seconds": 0.0,
            **given,
        }
        self.buffer = buffer
        self.outlet: Outlet = outlet_of(buffer, "sales")
        self.source = FilesSource(self.outlet, FilesSettings(**given), name="sales")
        self.source.open()
        self.rejects = folder / "sales.rejects"

    def poll(self) -> None:
        """Look until there is nothing more."""
        if self.source._marks is files_module._NOTHING:
            self.source._marks = Checkpoints.decode(self.outlet.state())
        while self.source.poll(NEVER):
            pass

    def documents(self) -> list[Document]:
        self.poll()
        self.buffer.seal()
        return contents(stored(self.buffer))[1]

    def numbers(self) -> list[int]:
        return sorted(json.loads(document.body)["n"] for document in self.documents())

    def readings(self) -> Counter[Reading]:
        self.poll()
        self.buffer.seal()
        return contents(stored(self.buffer))[0]

    def rejected(self) -> list[dict[str, Any]]:
        if not self.rejects.exists():
            return []
        return [json.loads(line) for line in self.rejects.read_bytes().splitlines()]


@pytest.fixture
def start(buffer: Buffer, folder: Path) -> Iterator[Callable[..., Store]]:
    made: list[Store] = []

    def make(**given: Any) -> Store:
        made.append(Store(buffer, folder, **given))
        return made[-1]

    yield make
    for store in made:
        store.source.close()


def write(path: Path, *numbers: int, end: str = "\n", mode: str = "a") -> None:
    with path.open(mode) as file:
        file.write("\n".join(f'{{"n": {n}, "price": 1.10}}' for n in numbers) + end)


Start = Callable[..., Store]


def test_lines_are_kept_byte_for_byte_and_a_missing_time_stays_unknown(
    start: Start, folder: Path
) -> None:
    store = start(time_field="at")
    (folder / "sales.log").write_text(
        '\ufeff{"n": 1, "at": "2026-11-23T08:15:00+08:00", "price": 1.10}\r\n\n{"n":2}\n'
    )
    first, second = store.documents()
    assert first.body == b'{"n": 1, "at": "2026-11-23T08:15:00+08:00", "price": 1.10}'
    assert first.observed_ms == 1_795_392_900_000
    assert (second.observed_ms, second.business_day) == (
        None,
        store.buffer.calendar.day(None),
    )


def test_a_half_line_waits_for_its_end(start: Start, folder: Path) -> None:
    store = start()
    write(folder / "sales.log", 1, 2, end="")
    assert store.numbers() == [1]
    write(folder / "sales.log", 3, mode="a", end="\n")  # "...}{..." would be one broken line
    assert [r["reason"][:8] for r in store.rejected()] == []
    store.poll()
    assert len(store.rejected()) == 1
    write(folder / "sales.log", 4, end="")
    assert store.numbers() == [1]
    with (folder / "sales.log").open("a") as file:
        file.write("\n")
    assert store.numbers() == [1, 4]


def test_after_a_restart_it_goes_on_where_the_last_commit_was(start: Start, folder: Path) -> None:
    write(folder / "sales.log", 1, 2)
    first = start()
    assert first.numbers() == [1, 2]
    first.source.close()
    write(folder / "sales.log", 3)
    assert start().numbers() == [1, 2, 3]


@pytest.mark.parametrize("restarted", [False, True])
def test_rotation_by_rename_loses_and_doubles_nothing(
    start: Start, folder: Path, restarted: bool
) -> None:
    log = folder / "sales.log"
    write(log, 1, 2)
    store = start()
    assert store.numbers() == [1, 2]
    write(log, 3)
    log.rename(folder / "sales.log.1")
    write(log, 4)
    if restarted:
        store.source.close()
        store = start()
    assert store.numbers() == [1, 2, 3, 4]
    write(folder / "sales.log.1", 5, mode="a", end="")  # the program still has it open
    assert store.numbers() == [1, 2, 3, 4], "read again only while it is watched"


def test_a_rotated_file_is_watched_until_it_rests_and_its_last_line_is_taken(
    start: Start, folder: Path
) -> None:
    log = folder / "sales.log"
    write(log, 1)
    store = start(settle_seconds=0.2)
    store.poll()
    log.rename(folder / "sales.log.1")
    write(folder / "sales.log.1", 2, end="")
    store.poll()
    assert store.numbers() == [1], "half a line, and the file may still grow"
    eventually(lambda: store.numbers() == [1, 2])
    eventually(lambda: store.numbers() and not store.source._files)
    assert Checkpoints.decode(store.outlet.state()).files == {}


def test_a_file_deleted_while_it_is_open_is_read_to_its_end(start: Start, folder: Path) -> None:
    log = folder / "sales.log"
    write(log, 1)
    store = start()
    store.poll()
    write(log, 2)
    log.unlink()
    write(log, 3)
    assert store.numbers() == [1, 2, 3]


@pytest.mark.parametrize("pattern", ["sales.log", "sales.log*"])
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("after", [(4,), (4, 5, 6, 7, 8, 9)])
def test_rotation_by_copy_and_truncate_loses_and_doubles_nothing(
    start: Start, folder: Path, pattern: str, restarted: bool, after: tuple[int, ...]
) -> None:
    log = folder / "sales.log"
    write(log, 1, 2)
    store = start(path=folder / pattern)
    assert store.numbers() == [1, 2]
    write(log, 3)
    if restarted:
        store.source.close()
    shutil.copy(log, folder / "sales.log.1")
    if not restarted:
        assert store.numbers() == [1, 2, 3], "the copy is not read while its original is whole"
    os.truncate(log, 0)
    write(log, *after)  # also more than was there before: the size alone tells nothing
    if restarted:
        store = start(path=folder / pattern)
    assert store.numbers() == [1, 2, 3, *after]


def test_a_copy_of_a_file_that_was_closed_for_rest_is_not_read_twice(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_IDLE_SECONDS", 0.0)
    log = folder / "sales.log"
    write(log, 1, 2)
    store = start(path=folder / "sales.log*")
    assert store.numbers() == [1, 2]
    assert not store.source._files
    shutil.copy(log, folder / "sales.log.1")
    assert store.numbers() == [1, 2]
    os.truncate(log, 0)
    write(log, 3)
    assert store.numbers() == [1, 2, 3]


def test_a_new_file_that_begins_like_another_is_no_copy(start: Start, folder: Path) -> None:
    store = start(path=folder / "*.log")
    write(folder / "a.log", 1)
    store.poll()
    write(folder / "b.log", 1, 2)
    assert store.numbers() == [1, 1, 2]


def test_unreadable_lines_are_kept_counted_and_hold_nothing_up(start: Start, folder: Path) -> None:
    bad = [b"{broken", b"[1]", b'{"n": NaN}', b'{"n":1,"n":2}', b"\xff\xfe", b'{"at":"yesterday"}']
    bad.append(b'{"pad":"' + b"x" * 600_000 + b'"}')
    store = start(time_field="at")
    good = [b'{"n":%d}' % n for n in range(8)]
    mixed = [line for pair in zip(good, [*bad, b""], strict=True) for line in pair]
    (folder / "sales.log").write_bytes(b"\n".join(mixed) + b"\n")
    assert store.numbers() == list(range(8))
    rejected = store.rejected()
    assert [r.get("text", r.get("base64")) for r in rejected[:5]] == [
        *("{broken\n", "[1]\n", '{"n": NaN}\n', '{"n":1,"n":2}\n', "//4K"),
    ]
    assert "yesterday" in rejected[5]["reason"]
    kept = "".join(r["text"] for r in rejected[6:])
    assert kept.encode() == bad[6] + b"\n", "a line that is too long is kept in pieces"
    assert store.outlet._metrics.counters()["unreadable_records"] == len(rejected)
    text = (folder / "sales.log").read_bytes()
    for reject in rejected[:5]:
        line = text[reject["offset"] :].partition(b"\n")[0]
        assert line in bad


def test_rejects_are_not_kept_twice_when_the_buffer_refuses(folder: Path, tmp_path: Path) -> None:
    (folder / "sales.log").write_bytes(b"broken\n" + b'{"n":1}\n')
    with Buffer(tmp_path / "other.db", zone=ZONE) as other:
        store = Store(other, folder)
        other.close()
        for _ in range(3):
            with pytest.raises(TransientError):
                store.source.poll(NEVER)
        store.source.close()
    with Buffer(tmp_path / "other.db", zone=ZONE) as other:
        store = Store(other, folder)
        assert store.numbers() == [1]
        assert len(store.rejected()) == 1
        store.source.close()


CSV = (
    "time;fridge;door;note\n"
    "23/11/2026 08:15:00;4.10;;\n"
    '23/11/2026 08:16:00;-1e1;2;"a;b"\n'
    ";1;1;no time\n"
    "23/11/2026 08:17:00;warm;1;\n"
    "23/11/2026 08:18:00;1;1\n"
    '23/11/2026 08:19:00;1;1;"open\n'
    "23/11/2026 08:20:00;nan;;\n"
    "23/11/2026 08:21:00;;;nothing measured\n"
)
MAPPED: dict[str, Any] = {
    "format": "csv",
    "document_type": "",
    "delimiter": ";",
    "time_field": "time",
    "time_format": "%d/%m/%Y %H:%M:%S",
    "zone": "Asia/Manila",
    "metrics": {"fridge": "fridge.celsius", "door": "door.opened"},
}


def test_csv_columns_become_readings_and_empty_fields_do_not(start: Start, folder: Path) -> None:
    store = start(**MAPPED)
    (folder / "sales.log").write_text(CSV)
    at = 1_795_392_900_000
    assert store.readings() == Counter(
        [
            Reading("fridge.celsius", at, 4.1),
            Reading("fridge.celsius", at + 60_000, -10.0),
            Reading("door.opened", at + 60_000, 2.0),
        ]
    )
    reasons = [reject["reason"] for reject in store.rejected()]
    for reason, said in zip(
        reasons, ("its time", "'warm'", "3 fields", "CSV", "'nan'"), strict=True
    ):
        assert said in reason


def test_the_csv_header_is_known_after_a_restart(start: Start, folder: Path) -> None:
    lines = CSV.splitlines(keepends=True)
    (folder / "sales.log").write_text("".join(lines[:2]))
    store = start(**MAPPED)
    assert len(store.readings()) == 1
    store.source.close()
    with (folder / "sales.log").open("a") as file:
        file.write(lines[2])
    assert len(start(**MAPPED).readings()) == 3


def test_csv_lines_as_documents_keep_their_texts(start: Start, folder: Path) -> None:
    (folder / "sales.log").write_text("sku,price\n007,1.10\n")
    (document,) = start(format="csv").documents()
    assert document.body == b'{"sku":"007","price":"1.10"}'


def test_one_reading_per_line_with_its_own_metric(start: Start, folder: Path) -> None:
    store = start(
        document_type="", metric_field="m.name", value_field="v", time_field="t",
        time_format="epoch_milliseconds",
    )  # fmt: skip
    (folder / "sales.log").write_text(
        '{"m":{"name":"a"},"v":1,"t":5}\n{"m":{"name":""},"v":1,"t":5}\n'
        '{"m":{"name":"b"},"v":null,"t":5}\n{"m":{"name":"c"},"v":true,"t":5}\n'
    )
    assert store.readings() == Counter([Reading("a", 5, 1.0)])
    assert len(store.rejected()) == 2


def test_a_local_time_within_a_clock_change_is_unknown(start: Start, folder: Path) -> None:
    store = start(time_field="t", zone="America/New_York", time_format="%Y-%m-%d %H:%M")
    (folder / "sales.log").write_text(
        '{"t":"2026-11-01 00:30"}\n{"t":"2026-11-01 01:30"}\n{"t":"2026-03-08 02:30"}\n'
    )
    assert [d.observed_ms for d in store.documents()] == [1_793_507_400_000, None, None]
    assert not store.rejected()


def test_a_dropped_file_is_taken_only_when_it_rests_and_then_moved_away(
    start: Start, folder: Path
) -> None:
    store = start(path=folder / "*.jsonl", mode="drop", settle_seconds=0.3)
    write(folder / "a.jsonl", 1, end="")
    write(folder / "b.jsonl.tmp", 7)
    write(folder / ".c.jsonl", 8)
    assert store.numbers() == []
    write(folder / "a.jsonl", 2, mode="w", end="")
    eventually(lambda: store.numbers() == [2])
    assert (folder / "done" / "a.jsonl").exists(), "and its last line has no end"
    assert not (folder / "a.jsonl").exists()
    (folder / "b.jsonl.tmp").rename(folder / "a.jsonl")
    eventually(lambda: store.numbers() == [2, 7])
    assert {p.name for p in (folder / "done").iterdir()} == {"a.jsonl", "a.jsonl.1"}
    assert (folder / ".c.jsonl").exists()
    eventually(lambda: store.numbers() and not store.source._files)
    assert store.source._marks.files == {}


def test_a_program_that_goes_on_writing_to_a_moved_file_is_heard(
    start: Start, folder: Path
) -> None:
    store = start(path=folder / "*.jsonl", mode="drop", settle_seconds=0.3)
    with (folder / "a.jsonl").open("w") as slow:
        slow.write('{"n":1}\n')
        slow.flush()
        eventually(lambda: store.numbers() == [1])
        slow.write('{"n":2}\n')
        slow.flush()
        eventually(lambda: store.numbers() == [1, 2])


def test_a_dropped_file_is_deleted_only_when_all_of_it_is_durable(
    start: Start, folder: Path, buffer: Buffer
) -> None:
    store = start(path=folder / "*.jsonl", mode="drop", when_done="delete")
    path = folder / "a.jsonl"
    path.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(3000)) + b"broken")
    while store.source.poll(NEVER):
        status = buffer.status()
        there = status.unsealed_records + status.next_sequence - 1
        assert path.exists() or there == 3000
    assert not path.exists()
    assert store.numbers() == list(range(3000))
    assert [r["text"] for r in store.rejected()] == ["broken"]


def test_the_same_file_dropped_again_is_taken_again(start: Start, folder: Path) -> None:
    store = start(path=folder / "*.jsonl", mode="drop")
    for _ in range(3):
        write(folder / "a.jsonl", 1)
        store.poll()
    assert store.numbers() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["tail", "drop"])
def test_more_files_than_may_be_open_are_all_read(
    start: Start, folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_OPEN_FILES", 3)
    store = start(path=folder / "*.log", mode=mode)
    for n in range(10):
        write(folder / f"{n}.log", n)
    eventually(lambda: store.numbers() == list(range(10)))
    assert len(store.source._files) <= 3
    if mode == "tail":
        for n in range(10):
            write(folder / f"{n}.log", n + 10)
        (folder / "7.log").rename(folder / "7.old")
        eventually(lambda: store.numbers() == list(range(20)))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"format": "xml"}, "format 'xml'"),
        ({"mode": "watch"}, "mode 'watch'"),
        ({"path": Path("/a/*/b")}, "pattern in its folder"),
        ({"metrics": {"a": "b"}}, "in one way"),
        ({"document_type": "", "metrics": {"a": "b"}}, "time_field must be set"),
        ({"document_type": "", "metrics": {"a": ""}, "time_field": "t"}, "metric ''"),
        ({"document_type": "", "metric_field": "m", "time_field": "t"}, "belong together"),
        ({"time_format": "rfc"}, "time_format 'rfc'"),
        ({"time_format": "%H:%M"}, "without a zone"),
        ({"zone": "Asia/Manilla"}, "Asia/Manilla"),
        ({"delimiter": "ab"}, "one character"),
        ({"poll_seconds": 0.0}, "poll_seconds"),
        ({"path": Path("/nowhere/x.log")}, "no folder"),
    ],
)
def test_wrong_settings_are_named(start: Start, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(**given)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tail", "drop"])
def test_each_line_arrives_once_whatever_is_killed(
    mode: str, tmp_path: Path, folder: Path, processes: Callable[..., Process]
) -> None:
    """kill -9 at random moments while a program writes and rotates."""
    rng = random.Random(20261123)
    # With the rotated names: a file may come and be rotated away while nobody looks.
    pattern = folder / ("sales.log*" if mode == "tail" else "*.jsonl")
    written = 4000
    write(folder / ("sales.log" if mode == "tail" else "0.jsonl"), *range(written))
    stop = threading.Event()

    def till() -> None:
        nonlocal written
        while not stop.is_set():
            count = rng.choice([1, 20, 400])
            numbers = range(written, written + count)
            if mode == "tail":
                write(folder / "sales.log", *numbers)
                if rng.random() < 0.1:
                    (folder / "sales.log").rename(folder / f"sales.log.{written}")
            else:
                write(folder / "part.tmp", *numbers)
                (folder / "part.tmp").rename(folder / f"{written}.jsonl")
            written += count
            stop.wait(rng.random() / 20)

    writing = threading.Thread(target=till)
    writing.start()
    command = [sys.executable, "-m", "tests.edge_agent.tailer", tmp_path / "edge.db", pattern, mode]
    root = Path(__file__).parents[2]
    for _ in range(10):
        process = processes(command, cwd=root)
        process.wait_for_output("open")
        time.sleep(rng.random() * 0.5)  # not a wait: the random moment of the crash
        process.kill()
    stop.set()
    writing.join()
    last = processes(command, cwd=root)
    last.wait_for_output("open")

    def all_there() -> bool:
        status = peek(tmp_path / "edge.db", 1 << 30)
        return status.unsealed_records + status.next_sequence - 1 >= written

    eventually(all_there, 60)
    last.kill()
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        buffer.seal()
        found = Counter(json.loads(d.body)["n"] for d in contents(stored(buffer))[1])
    assert found == Counter(range(written))
    assert written > 5000
    assert not (folder / "sales.rejects").exists()
