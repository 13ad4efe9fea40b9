"""The storages of ``tests/bench/peer.py``, each in a process of its own, driven in the same way.

Standard library and the storage's own package only: it runs in the peer's environment too.

    fill STORAGE FOLDER READINGS EACH     accept so many, EACH in a message; then give all out
    accept STORAGE FOLDER A_SECOND        accept numbered readings until killed; FOLDER/accepted
                                          holds how many were told to be accepted
    count STORAGE FOLDER                  open again, give all out: the numbers, as JSON
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

START_MS = 1_760_000_000_000
PEER = "thingsboard_gateway.storage"


class Storage(Protocol):
    """What is measured of each."""

    def messages(self, readings: list[tuple[str, int, float]], each: int) -> list[Any]:
        """What ``put`` takes, ready: made before the clock starts."""

    def put(self, message: Any) -> bool:
        """True: accepted."""

    def stored(self, messages: int) -> bool:
        """Whether all that was accepted has left the memory of the process."""

    def packs(self) -> Iterator[list[float]]:
        """Give out all, each pack confirmed before the next: its values, or zeros."""


class Ours:
    """``scout_edge.buffer``: ``append_readings`` returns after the fsync."""

    def __init__(self, folder: Path) -> None:
        from scout_edge.buffer import Buffer

        self.buffer = Buffer(folder / "edge.db", zone="Asia/Manila")

    def messages(self, readings: list[tuple[str, int, float]], each: int) -> list[Any]:
        from scout_shared.wire import Reading

        made = [Reading(*reading) for reading in readings]
        return [made[i : i + each] for i in range(0, len(made), each)]

    def put(self, message: Any) -> bool:
        return bool(self.buffer.append_readings(message).records)

    def stored(self, messages: int) -> bool:
        return True  # it was when put returned

    def packs(self) -> Iterator[list[float]]:
        from scout_shared import wire
        from scout_shared.messages import Receipt

        self.buffer.seal()
        while segments := self.buffer.segments_after(self.buffer.watermark, 512 * 1024):
            values = []
            for segment in segments:
                decoded = wire.decode_readings(segment.body) if COUNTING else []
                values += [reading.value for reading in decoded]
            self.buffer.apply_receipt(Receipt(self.buffer.epoch, segments[-1].last_sequence))
            yield values if COUNTING else [0.0] * sum(s.records for s in segments)


class Theirs:
    """A storage class of the peer with the settings that it ships."""

    def __init__(self, module: str, name: str, config: dict[str, Any]) -> None:
        # Its own logger has this level; where it is off, a call costs the same.
        logging.Logger.trace = logging.Logger.debug  # type: ignore[attr-defined]
        logging.disable(logging.CRITICAL)
        kind = getattr(importlib.import_module(f"{PEER}.{module}"), name)
        self.storage = kind(config, logging.getLogger("storage"), threading.Event())

    def messages(self, readings: list[tuple[str, int, float]], each: int) -> list[Any]:
        packs = [readings[i : i + each] for i in range(0, len(readings), each)]
        return [json.dumps(_message(pack), separators=(",", ":")) for pack in packs]

    def put(self, message: Any) -> bool:
        return bool(self.storage.put(message))

    def stored(self, messages: int) -> bool:
        queue = getattr(self.storage, "write_queue", None)
        return queue is None or (queue.empty() and self.storage.len() >= messages)

    def packs(self) -> Iterator[list[float]]:
        silent_since = time.monotonic()
        while time.monotonic() - silent_since < 0.5:  # its reader may look away for a moment
            pack = self.storage.get_event_pack()
            if not pack:
                time.sleep(0.01)
                continue
            # Taken from the pack before it is confirmed: the storage uses its list again.
            items = [json.loads(text)["telemetry"] for text in pack] if COUNTING else []
            values = [v for item in itertools.chain(*items) for v in item["values"].values()]
            given = len(pack)
            self.storage.event_pack_processing_done()
            silent_since = time.monotonic()
            yield values if COUNTING else [0.0] * given


def _message(pack: list[tuple[str, int, float]]) -> dict[str, Any]:
    """As the gateway's ``ConvertedData.to_dict``: values of one instant together."""
    items = [
        {"ts": ms, "values": {metric: value for metric, _, value in same}}
        for ms, same in itertools.groupby(pack, key=lambda reading: reading[1])
    ]
    return {"deviceName": "till-9", "deviceType": "default", "telemetry": items, "attributes": []}


def opened(kind: str, folder: Path) -> Storage:
    """Open a storage in the folder."""
    place = f"{folder}/"
    if kind == "sqlite":
        config: dict[str, Any] = {"data_file_path": place}
        return Theirs("sqlite.sqlite_event_storage", "SQLiteEventStorage", config)
    if kind == "file":
        config = {
            "data_folder_path": place,
            "max_file_count": 10,
            "max_read_records_count": 10,
            "max_records_per_file": 10000,
        }
        return Theirs("file.file_event_storage", "FileEventStorage", config)
    if kind == "memory":
        config = {"read_records_count": 100, "max_records_count": 100000}
        return Theirs("memory.memory_event_storage", "MemoryEventStorage", config)
    return Ours(folder)


def _fill(kind: str, folder: Path, count: int, each: int) -> dict[str, float]:
    storage = opened(kind, folder)
    made = json.loads(sys.stdin.read())[:count]
    messages = storage.messages([tuple(reading) for reading in made], each)
    written = _written()
    began = time.perf_counter()
    accepted = sum(storage.put(message) for message in messages)
    told = time.perf_counter() - began
    while not storage.stored(accepted):
        time.sleep(0.001)
    stored = time.perf_counter() - began
    written = _written() - written
    size = sum(path.stat().st_size for path in folder.iterdir())
    last = began = time.perf_counter()
    out = 0
    for pack in storage.packs():
        out += len(pack)
        last = time.perf_counter()
    return {
        "messages": len(messages),
        "accepted": accepted,
        "told_seconds": told,
        "stored_seconds": stored,
        "written_bytes": written,
        "size_bytes": size,
        "out": out,
        "out_seconds": last - began,
    }


def _accept(kind: str, folder: Path, a_second: int) -> None:
    storage = opened(kind, folder / "data")
    with (folder / "accepted").open("w+b") as file:
        file.truncate(8)
        # Shared memory of the file: it holds what was last noted, however the process ends.
        told = mmap.mmap(file.fileno(), 8)
        began = time.perf_counter()
        for number in itertools.count(1):
            time.sleep(max(0.0, began + number / a_second - time.perf_counter()))
            reading = ("store.sensor.1.value", START_MS + number, float(number))
            if storage.put(storage.messages([reading], 1)[0]):
                told[:] = number.to_bytes(8, "little")


def _count(kind: str, folder: Path) -> list[float]:
    storage = opened(kind, folder / "data")
    return [value for pack in storage.packs() for value in pack]


def _written() -> int:
    """Bytes that this process made the block layer write."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    fields = dict(line.split(": ") for line in lines)
    return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])


COUNTING = False


def main() -> None:
    """One task; the answer is JSON on stdout. Ends at once: some threads of storages do not."""
    global COUNTING  # noqa: PLW0603 - the packs are decoded only where their values are asked for
    task, kind, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    COUNTING = task == "count"
    answer: Any = None
    if task == "fill":
        answer = _fill(kind, folder, int(sys.argv[4]), int(sys.argv[5]))
    elif task == "accept":
        _accept(kind, folder, int(sys.argv[4]))
    else:
        answer = _count(kind, folder)
    print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
