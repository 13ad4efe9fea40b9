"""Power cuts of a buffer, simulated: what a disk holds when the current goes.

``python -m tests.edge_agent.power LOG SEED [SYNCHRONOUS]`` works with a real ``Buffer`` and writes
down, in order, what SQLite asks of the disk and what the source was told. ``image`` makes of such a
log the files that a cut leaves: bytes that were synced are there; of those written since, each
sector is there or not, by chance; so are directory entries.

The operations are observed inside the SQLite library that Python uses, at its own VFS: no package,
no tracer, no root. Not its job: a disk that lies about a sync; nothing can help against that.
"""

from __future__ import annotations

import ctypes
import importlib
import pickle
import random
import sys
from collections.abc import Iterable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scout_edge import database
from scout_edge.buffer import Buffer
from scout_shared.messages import Receipt
from tests.edge_agent.records import ZONE, documents, readings

Event = tuple[Any, ...]
"""write name offset data | truncate name size | sync name | create name | delete name |
dirsync | told kind first count | hub body | epoch bytes"""

# A name stays a pointer: SQLite keeps it, and reads beyond its end.
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_SetCall = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GetCall = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_OpenDirectory = CFUNCTYPE(c_int, c_char_p, c_void_p)


class _Vfs(ctypes.Structure):
    """``struct sqlite3_vfs``, version 3."""

    _fields_ = (
        ("version", c_int),
        ("file_bytes", c_int),
        ("path_bytes", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _Open),
        ("delete", _Delete),
        ("others", c_void_p * 11),
        ("set_system_call", _SetCall),
        ("get_system_call", _GetCall),
        ("next_system_call", c_void_p),
    )


class _Methods(ctypes.Structure):
    """``struct sqlite3_io_methods``, version 3."""

    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", _Write),
        ("truncate", _Truncate),
        ("sync", _Sync),
        ("others", c_void_p * 13),
    )


class Recorder:
    """Notes each change of a file under ``folder`` in ``events``, for the rest of the process."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        self._folder = folder.resolve()
        self._names: dict[int, str] = {}
        self._kept: list[object] = []  # what C points to must not be collected
        module = importlib.import_module("_sqlite3")
        library = ctypes.CDLL(getattr(module, "__file__", None))
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self._vfs = library.sqlite3_vfs_find(None).contents
        assert self._vfs.version >= 3, "SQLite's own VFS for Unix has version 3"
        self._hook_vfs()

    def _keep(self, function: Any) -> Any:
        self._kept.append(function)
        return function

    def _hook_vfs(self) -> None:
        vfs = self._vfs
        # Copies: reading a field gives a view of it, which would call our own function.
        open_file = _Open(ctypes.cast(vfs.open, c_void_p).value or 0)
        delete = _Delete(ctypes.cast(vfs.delete, c_void_p).value or 0)
        this = ctypes.addressof(vfs)
        open_directory = _OpenDirectory(vfs.get_system_call(this, b"openDirectory"))

        def opened(vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
            path = Path(ctypes.string_at(name).decode()) if name else Path()
            new = not path.exists()
            code = int(open_file(vfs, name, file, flags, out))
            if code == 0 and path.parent == self._folder:
                self._names[file] = path.name
                if new:
                    self.events.append(("create", self._names[file]))
                self._hook_file(file)
            return code

        def deleted(vfs: int, name: bytes, sync: int) -> int:
            self.events.append(("delete", Path(name.decode()).name))
            return int(delete(vfs, name, sync))

        def directory(name: bytes, handle: int) -> int:
            # SQLite opens a directory only to sync it.
            self.events.append(("dirsync",))
            return int(open_directory(name, handle))

        vfs.open = self._keep(_Open(opened))
        vfs.delete = self._keep(_Delete(deleted))
        hook = self._keep(_OpenDirectory(directory))
        vfs.set_system_call(this, b"openDirectory", ctypes.cast(hook, c_void_p))

    def _hook_file(self, file: int) -> None:
        slot = c_void_p.from_address(file)
        original = _Methods.from_address(slot.value or 0)
        methods = self._keep(_Methods.from_buffer_copy(original))

        def write(file: int, data: int, size: int, offset: int) -> int:
            self.events.append(("write", self._names[file], offset, ctypes.string_at(data, size)))
            return int(original.write(file, data, size, offset))

        def truncate(file: int, size: int) -> int:
            self.events.append(("truncate", self._names[file], size))
            return int(original.truncate(file, size))

        def sync(file: int, flags: int) -> int:
            code = int(original.sync(file, flags))
            self.events.append(("sync", self._names[file]))
            return code

        methods.write = self._keep(_Write(write))
        methods.truncate = self._keep(_Truncate(truncate))
        methods.sync = self._keep(_Sync(sync))
        slot.value = ctypes.addressof(methods)


def work(path: Path, seed: int, recorder: Recorder, steps: int) -> None:
    """What a device does, chosen by the seed: accept, seal, hear receipts, start again."""
    rng = random.Random(seed)
    note = recorder.events.append
    first, steps_left = 0, steps
    while steps_left:
        with Buffer(path, zone=ZONE) as buffer:
            note(("epoch", buffer.epoch))
            while steps_left:
                steps_left -= 1
                choice = rng.random()
                count = rng.choice([1, 3, 30, 300])
                if choice < 0.45:
                    buffer.append_readings(readings(count, first))
                    note(("told", "r", first, count))
                elif choice < 0.75:
                    buffer.append_documents(documents(buffer, count, first), key=str(first))
                    note(("told", "d", first, count))
                elif choice < 0.9:
                    buffer.seal()
                elif choice < 0.97:
                    segments = buffer.segments_after(buffer.watermark, 1 << 20)
                    for segment in segments[: rng.randint(1, 16)]:
                        note(("hub", segment.body))
                        if rng.random() < 0.7:
                            buffer.apply_receipt(Receipt(buffer.epoch, segment.last_sequence))
                else:
                    break
                first += count


@dataclass
class _File:
    """One file of the device: what is safe, and what was done to it since."""

    synced: bytearray = field(default_factory=bytearray)
    since: list[Event] = field(default_factory=list)


@dataclass
class Disk:
    """What the disk holds for sure, and what it may hold, after some events."""

    entries: dict[str, _File] = field(default_factory=dict)
    safe_entries: dict[str, _File] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Take over one operation; events that are none change nothing."""
        kind = event[0]
        if kind == "create":
            self.entries[event[1]] = _File()
        elif kind == "delete":
            self.entries.pop(event[1], None)
        elif kind == "dirsync":
            self.safe_entries = dict(self.entries)
        elif kind in ("write", "truncate"):
            self.entries[event[1]].since.append(event)
        elif kind == "sync":
            file = self.entries[event[1]]
            for change in file.since:
                _change(file.synced, change)
            file.since.clear()

    def cut(self, rng: random.Random, folder: Path) -> None:
        """Write the files that a power cut leaves."""
        sector = rng.choice((512, 4096))
        survives = rng.choice((0.0, 1.0, 0.5, 0.9, 0.1))
        for name in sorted(self.entries.keys() | self.safe_entries.keys()):
            before, now = self.safe_entries.get(name), self.entries.get(name)
            file = now if before is now or rng.random() < survives else before
            if file is None:
                continue
            content = bytearray(file.synced)
            for change in file.since:
                for part in _sectors(change, sector):
                    if rng.random() < survives:
                        _change(content, part)
            (folder / name).write_bytes(content)


def _sectors(change: Event, sector: int) -> Iterable[Event]:
    if change[0] == "truncate":
        yield change
        return
    _, name, offset, data = change
    at = 0
    while at < len(data):
        size = min(sector - (offset + at) % sector, len(data) - at)
        yield ("write", name, offset + at, data[at : at + size])
        at += size


def _change(content: bytearray, change: Event) -> None:
    if change[0] == "truncate":
        del content[change[2] :]
        content.extend(bytes(change[2] - len(content)))
        return
    _, _, offset, data = change
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def main() -> None:
    """Record one run; SYNCHRONOUS weakens the buffer on purpose."""
    log, seed = Path(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3:]:
        strong = "pragma synchronous = full;"
        assert strong in database._PRAGMAS
        database._PRAGMAS = database._PRAGMAS.replace(
            strong, f"pragma synchronous = {sys.argv[3]};"
        )
    folder = log.with_suffix(".device")
    folder.mkdir()
    recorder = Recorder(folder)
    work(folder / "edge.db", seed, recorder, steps=120)
    log.write_bytes(pickle.dumps(recorder.events))


if __name__ == "__main__":
    main()
