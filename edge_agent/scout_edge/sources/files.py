"""Lines of local files: tail of growing files, or a drop folder. Each line once.

    tail    files that programs append to; rotation by rename, by copy and truncate, or by date
    drop    files that programs put there whole; taken when they no longer change, then moved away

The place in each file is committed in the transaction of the records before it (``Checkpoints``),
so kill -9 neither loses nor doubles a line. A line that cannot be read is kept in the reject file,
counted, and holds nothing up. No file is deleted or moved before its last byte was taken or kept.

What rotation can still lose: lines of a file that was deleted while the agent was down, or that
came and was rotated to a name outside the pattern in that time (so let the pattern cover those
names), and what the rotating program itself loses when it truncates.
Not its job: what a line means (``lines``); how a file is known again (``checkpoints``).
"""

from __future__ import annotations

import fnmatch
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scout_edge.sources import SourceContext, SourceKind
from scout_edge.sources.checkpoints import Checkpoint, Checkpoints, holds, print_of
from scout_edge.sources.lines import LineReader, RecordSettings
from scout_edge.sources.outlet import Outlet
from scout_edge.sources.rejects import MIN_BYTES, Reject, RejectFile
from scout_shared import logs
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.settings import check_seconds
from scout_shared.wire import Document, Reading

_CHUNK_BYTES = 256 * 1024  # one transaction; also the longest line, as a document may not be longer
_BOM = b"\xef\xbb\xbf"
_CHUNK_LINES = 1000
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~")
_ORPHAN_SECONDS = 60.0  # a copy stands beside the truncated file at once; later it is another file
_NOTHING = Checkpoints({})
_IDLE_SECONDS = 600.0  # a file that rests so long is closed, and opened when it changes
_OPEN_FILES = 128  # descriptors are shared with the buffer and the network; the others wait

log = logs.get("files")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSettings(RecordSettings):
    """A ``[sources.<name>]`` table of kind ``files``."""

    path: Path
    """Which files: a folder and a pattern, e.g. '/var/log/pos/sales*.jsonl'. No default."""
    mode: str = "tail"
    """'tail' or 'drop'. Default 'tail'."""
    poll_seconds: float = 1.0
    """Seconds between two looks. Default 1."""
    settle_seconds: float = 5.0
    """Seconds without a change after which a dropped file, or the last line of one that was rotated
    away, is whole. Default 5; 0 where dropped files are always renamed into place."""
    when_done: str = "move"
    """What is done with a dropped file after its last line: 'move' to the folder 'done' beside it,
    or 'delete'. Default 'move'."""
    reject_path: Path | None = None
    """Where unreadable lines are kept. Default: '<name>.rejects' in the folder of the files."""
    reject_max_bytes: int = 32 << 20
    """Room for them; then the oldest are dropped and counted. Default 33554432 (32 MB)."""

    def __post_init__(self) -> None:
        RecordSettings.__post_init__(self)  # super() does not work in a class with slots
        if self.mode not in ("tail", "drop"):
            raise ConfigError(f"mode {self.mode!r} is not known", "use 'tail' or 'drop'")
        if self.when_done not in ("move", "delete"):
            raise ConfigError(f"when_done {self.when_done!r} is not known", "use 'move', 'delete'")
        if any(c in str(self.path.parent) for c in "*?["):
            raise ConfigError(
                f"path {str(self.path)!r} has a pattern in its folder",
                "only the last part may have '*', '?' or '[…]'; give each folder its own source",
            )
        if self.reject_max_bytes < MIN_BYTES:
            raise ConfigError(
                f"reject_max_bytes {self.reject_max_bytes} is too small",
                f"give {MIN_BYTES} or more",
            )
        check_seconds("poll_seconds", self.poll_seconds, 0.01)
        check_seconds("settle_seconds", self.settle_seconds, 0.0)


@dataclass(slots=True)
class _File:
    """An open file, as it was at the last look."""

    descriptor: int
    path: Path
    listed: bool = True
    """Whether its name still fits the pattern; else it was rotated away."""
    seen: tuple[int, int] = (-1, -1)
    """Size and mtime."""
    since: float = 0.0
    """Monotonic seconds when it was first seen so."""

    def rests(self, seconds: float) -> bool:
        return time.monotonic() - self.since >= seconds


@dataclass(slots=True)
class _Parsed:
    """What the lines of a chunk say."""

    end: int
    """Offset behind them."""
    taken: int = 0
    documents: list[Document] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


class FilesSource:
    """Reads the files of one table; see the module."""

    def __init__(self, outlet: Outlet, settings: FilesSettings, *, name: str = "files") -> None:
        self.name = name
        self._outlet = outlet
        self._settings = settings
        self._folder = settings.path.parent.absolute()
        self._reader = LineReader(settings, outlet.buffer.calendar)
        path = settings.reject_path or self._folder / f"{name}.rejects"
        self._rejects = RejectFile(
            path.absolute(),
            settings.reject_max_bytes,
            contents=not outlet.buffer.privacy.active,
        )
        self._files: dict[int, _File] = {}
        self._resting: dict[int, tuple[int, int]] = {}
        self._marks = _NOTHING
        self._orphaned = time.monotonic()
        self._troubled: set[str] = set()

    def open(self) -> None:
        """Raises ConfigError: the folder is not there, or rejects cannot be kept."""
        if not self._folder.is_dir():
            raise ConfigError(
                f"source {self.name!r}: there is no folder {self._folder}",
                "make it, or correct path",
            )
        writable = self._rejects.path.parent
        moves = [self._folder] if self._settings.mode == "drop" else []
        for folder in (writable, *moves):
            if not os.access(folder, os.W_OK):
                raise ConfigError(
                    f"source {self.name!r}: {folder} cannot be written to by this user",
                    "set reject_path to a place that can; a drop folder must be writable,"
                    " because files leave it",
                )

    def run(self, stop: threading.Event) -> None:
        """Look until stopped. Raises TransientError: the buffer is full, the folder is away."""
        if self._marks is _NOTHING:  # else it goes on after a failure: files stay open
            self._marks = Checkpoints.decode(self._outlet.state())
        while True:
            took = self.poll(stop)
            self._outlet.beat(0.0 if took else self._settings.poll_seconds)
            if not took and stop.wait(self._settings.poll_seconds):
                return
            if stop.is_set():
                return

    def close(self) -> None:
        """Close all files."""
        for inode in list(self._files):
            self._forget(inode)

    def poll(self, stop: threading.Event) -> bool:
        """Take what is new in all files once; whether anything was."""
        self._outlet.tick()
        self._look()
        took = False
        for inode in list(self._files):
            if stop.is_set():
                break
            self._outlet.beat()
            took = self._take(inode) or took
        return took

    # -- which files ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Open what fits the pattern, find again what was rotated, notice what changed."""
        found = dict(self._entries())
        fitting = {i: e for i, e in found.items() if self._fits(e.name)}
        self._find_again(found, fitting)
        for inode, file in self._files.items():
            file.listed = inode in fitting
            if inode in found:
                file.path = Path(found[inode].path)
            self._notice(inode, file)
        for inode, entry in fitting.items():
            if len(self._files) >= _OPEN_FILES:
                break
            if inode not in self._marks.files and self._open(inode, entry, listed=True):
                self._welcome(inode)
        if self._marks.orphans and time.monotonic() - self._orphaned > _ORPHAN_SECONDS:
            self._marks = Checkpoints(self._marks.files)
        if self._marks.orphans:
            for inode, entry in found.items():
                if inode not in self._marks.files and self._open(inode, entry, listed=False):
                    self._adopt(inode)

    def _find_again(
        self, found: dict[int, os.DirEntry[str]], fitting: dict[int, os.DirEntry[str]]
    ) -> None:
        """Open what is known by its checkpoint only."""
        for inode in self._marks.files.keys() - self._files.keys():
            # Known from before: under its old name, or under another one in the same folder.
            entry = found.get(inode)
            if entry is not None and inode in self._resting:
                try:
                    now = entry.stat()
                except FileNotFoundError:
                    continue
                if inode in fitting and self._resting[inode] == (now.st_size, now.st_mtime_ns):
                    continue
            if entry is not None and len(self._files) >= _OPEN_FILES:
                continue
            self._resting.pop(inode, None)
            if entry is None or not self._open(inode, entry, listed=inode in fitting):
                continue
            if not holds(self._files[inode].descriptor, self._marks.files[inode]):
                self._anew(inode, keep=inode in fitting)
        for inode in self._marks.files.keys() - self._files.keys() - found.keys():
            log.warning(
                "file.vanished", source=self.name, read_bytes=self._marks.files[inode].offset
            )
            self._lost(inode)

    def _entries(self) -> Iterator[tuple[int, os.DirEntry[str]]]:
        try:
            with os.scandir(self._folder) as entries:
                ours = (str(self._rejects.path), str(self._rejects.older))
                for entry in entries:
                    if entry.path not in ours and entry.is_file(follow_symlinks=False):
                        yield entry.inode(), entry
        except OSError as error:
            raise TransientError(
                f"{self._folder} cannot be listed: {error.strerror}", "is its disk mounted?"
            ) from error

    def _fits(self, name: str) -> bool:
        return (
            fnmatch.fnmatchcase(name, self._settings.path.name)
            and not name.startswith(".")
            and not name.endswith(_UNFINISHED)
        )

    def _open(self, inode: int, entry: os.DirEntry[str], *, listed: bool) -> bool:
        """Open it, if it is still the same file; a trouble is logged once and tried again."""
        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError as error:
            if entry.path not in self._troubled:
                self._troubled.add(entry.path)
                self._outlet.unreadable(f"{entry.path} cannot be opened: {error.strerror}", 0)
            return False
        now = os.fstat(descriptor)
        if now.st_ino != inode or not stat.S_ISREG(now.st_mode):
            os.close(descriptor)
            return False
        self._troubled.discard(entry.path)
        file = _File(descriptor, Path(entry.path), listed)
        file.seen, file.since = (now.st_size, now.st_mtime_ns), time.monotonic()
        self._files[inode] = file
        return True

    def _notice(self, inode: int, file: _File) -> None:
        """See whether it changed, and whether it is still what was read."""
        now = os.fstat(file.descriptor)
        if (now.st_size, now.st_mtime_ns) == file.seen:
            return
        file.seen, file.since = (now.st_size, now.st_mtime_ns), time.monotonic()
        if not holds(file.descriptor, self._marks.files[inode]):
            self._anew(inode, keep=True)

    def _anew(self, inode: int, *, keep: bool) -> None:
        """What was read is no longer in the file: it was truncated, or the inode is another's."""
        log.info("file.truncated", source=self.name, file=str(self._files[inode].path))
        self._lost(inode)
        if keep:
            self._marks = self._marks.moved(inode, Checkpoint())
        else:
            self._forget(inode)

    def _lost(self, inode: int) -> None:
        """Its lines may go on in a copy; a dropped file has none."""
        self._orphaned = time.monotonic()
        self._marks = self._marks.without(inode, orphan=self._settings.mode == "tail")

    def _welcome(self, inode: int) -> None:
        """A file never seen: new, or a copy that goes on where its original was truncated."""
        file = self._files[inode]
        if self._settings.mode == "tail":
            for mark in self._marks.orphans:
                if holds(file.descriptor, mark):
                    self._marks = self._marks.adopted(inode, mark)
                    return
            for other, mark in self._marks.files.items():
                if (
                    mark.lines
                    and file.seen[0] <= self._size(other)
                    and holds(file.descriptor, mark)
                ):
                    # A copy of a file that is still whole, which has all of its lines: wait until
                    # that one is truncated (then this goes on) or this one has more.
                    self._forget(inode)
                    return
        self._marks = self._marks.moved(inode, Checkpoint())

    def _size(self, inode: int) -> int:
        """Of a known file; -1 when it was not found again yet."""
        if inode in self._files:
            return os.fstat(self._files[inode].descriptor).st_size
        return self._resting.get(inode, (-1, 0))[0]

    def _adopt(self, inode: int) -> None:
        """A file outside the pattern: read only when it is the copy of one that was truncated."""
        for mark in self._marks.orphans:
            if holds(self._files[inode].descriptor, mark):
                self._marks = self._marks.adopted(inode, mark)
                return
        self._forget(inode)

    def _forget(self, inode: int) -> None:
        os.close(self._files.pop(inode).descriptor)

    # -- what is in them ------------------------------------------------------------------------

    def _take(self, inode: int) -> bool:
        """Take one chunk of a file, or finish with it; whether there may be more at once."""
        file, mark = self._files[inode], self._marks.files[inode]
        drop, settled = self._settings.mode == "drop", file.rests(self._settings.settle_seconds)
        if drop and file.listed and not settled:
            return False
        chunk = os.pread(file.descriptor, _CHUNK_BYTES, mark.offset)
        if not holds(file.descriptor, mark):
            self._anew(inode, keep=True)  # truncated since the look: what was read is not its own
            return True
        last = settled and (drop or not file.listed)
        if chunk and self._chunk(inode, chunk, last=last):
            return True
        if os.fstat(file.descriptor).st_size == self._marks.files[inode].offset:
            if last:
                self._finish(inode)
            elif file.listed and file.rests(
                _IDLE_SECONDS if len(self._files) < _OPEN_FILES else self._settings.settle_seconds
            ):
                self._resting[inode] = file.seen
                self._forget(inode)
        return False

    def _chunk(self, inode: int, chunk: bytes, *, last: bool) -> bool:
        """Take the whole lines of a chunk; whether there were any."""
        file, mark = self._files[inode], self._marks.files[inode]
        lines, skipping = _whole_lines(chunk, last=last and len(chunk) < _CHUNK_BYTES)
        if not lines:
            return False
        parsed = self._parse(inode, lines, chunk, skipping)
        if dropped := self._rejects.keep(parsed.rejects):
            self._outlet.rejects_dropped(dropped, self._rejects.path)
        at, taken = parsed.end, mark.lines + parsed.taken
        place = Checkpoint(at, print_of(file.descriptor, at), taken, skipping)
        marks = self._marks.moved(inode, place)
        if self._reader.documents:
            self._outlet.append_documents(parsed.documents, state=marks.encode())
        else:
            self._outlet.append_readings(parsed.readings, state=marks.encode())
        self._marks = marks
        self._rejects.committed()
        if parsed.rejects:
            kept = str(self._rejects.path)
            first, count = parsed.rejects[0], len(parsed.rejects)
            self._outlet.unreadable(
                first.reason, count, file=first.file, offset=first.offset, kept=kept
            )
        return True

    def _parse(self, inode: int, lines: list[bytes], chunk: bytes, skipping: bool) -> _Parsed:
        file, mark = self._files[inode], self._marks.files[inode]
        header: tuple[str, ...] = ()
        trouble = ""
        if self._reader.needs_header:
            try:
                header = self._header(file, None if mark.offset else chunk)
            except PermanentError as error:
                trouble = f"the header: {error.message}"
        found = _Parsed(mark.offset)
        for i, line in enumerate(lines):
            try:
                if (mark.skipping and i == 0) or (skipping and i == len(lines) - 1):
                    raise PermanentError(f"part of a line longer than {_CHUNK_BYTES} bytes")
                if trouble:
                    raise PermanentError(trouble)
                text = line.rstrip(b"\r\n")
                if not found.end:
                    text = b"" if self._reader.needs_header else text.removeprefix(_BOM)
                if text.strip():
                    documents, readings = self._reader.records(text, header)
                    found.documents += documents
                    found.readings += readings
                    found.taken += 1
            except PermanentError as error:
                where = file.path.name, inode, found.end
                found.rejects.append(Reject(*where, error.message, line))
            found.end += len(line)
        return found

    def _header(self, file: _File, chunk: bytes | None) -> tuple[str, ...]:
        head = os.pread(file.descriptor, _CHUNK_BYTES, 0) if chunk is None else chunk
        return self._reader.header(head.partition(b"\n")[0].rstrip(b"\r"))

    def _finish(self, inode: int) -> None:
        """All of it is committed or kept: a dropped file leaves, a rotated one is forgotten."""
        file = self._files[inode]
        if self._settings.mode == "drop" and file.listed:
            try:
                self._clear(file)
            except OSError as error:
                if str(file.path) not in self._troubled:
                    self._troubled.add(str(file.path))
                    log.warning("file.stuck", file=str(file.path), reason=error.strerror)
                return
            log.info("file.finished", source=self.name, file=str(file.path))
            if self._settings.when_done == "move":
                # Watched for as long again: a program that paused may still write to it.
                file.listed, file.since = False, time.monotonic()
                if self._settings.settle_seconds:
                    return
        marks = self._marks.without(inode, orphan=False)
        self._outlet.append_readings([], state=marks.encode())
        self._marks = marks
        self._forget(inode)

    def _clear(self, file: _File) -> None:
        if self._settings.when_done == "delete":
            file.path.unlink()
            return
        done = self._folder / "done"
        done.mkdir(exist_ok=True)
        target, count = done / file.path.name, 0
        while target.exists():
            count += 1
            target = done / f"{file.path.name}.{count}"
        file.path.rename(target)


def _whole_lines(chunk: bytes, *, last: bool) -> tuple[list[bytes], bool]:
    """The lines of a chunk with their ends, and whether the last one goes on beyond it.

    A half line at the end is left for later, unless it is the file's ``last`` or fills the chunk.
    """
    end = chunk.rfind(b"\n") + 1
    if not end and len(chunk) == _CHUNK_BYTES:
        return [chunk], True
    lines = chunk[:end].split(b"\n", _CHUNK_LINES)
    rest = lines.pop()
    whole = [line + b"\n" for line in lines]
    if not rest and last and end < len(chunk):
        whole.append(chunk[end:])
    return whole, False


def _make(context: SourceContext, settings: FilesSettings) -> FilesSource:
    return FilesSource(context.outlet, settings, name=context.name)


KIND = SourceKind(FilesSettings, _make)
