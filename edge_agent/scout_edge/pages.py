"""Reads the rows of a damaged SQLite file from its pages, without SQLite; never writes.

SQLite refuses a file whose first page or tree is damaged, all of it. The rows are still there: a
leaf page lists its own, and a large row is a chain of overflow pages. What is read here is not
trusted: who asks checks each row by a checksum of its own. Format: sqlite.org/fileformat2.html.

Not its job: what the rows mean (``recovery``).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PAGE_BYTES = 4096
_TABLE_LEAF, _TABLE_INNER, _INDEX_LEAF, _INDEX_INNER = 0x0D, 0x05, 0x0A, 0x02
_MAX_ROW_BYTES = 32 * 1024 * 1024
_WAL_HEADER, _FRAME_HEADER = 32, 24

Row = tuple[Any, ...]


class Pages:
    """The pages of a file as its WAL leaves them: committed frames replace pages of the file.

    Args:
        path: the file; also one that is cut anywhere.
        use_wal: False: the pages as they stand in the file. Where a frame itself is damaged the
            page below it may hold what a chain needs.
    """

    def __init__(self, path: Path, *, use_wal: bool = True) -> None:
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self._map = (
            mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if self._size else None
        )
        self._frames = _frames(path.with_name(path.name + "-wal")) if use_wal else {}
        self.count = max([(self._size + PAGE_BYTES - 1) // PAGE_BYTES, *self._frames])
        """Pages are 1 to ``count``; the last may be cut."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._map is not None:
            self._map.close()
        self._file.close()

    def page(self, number: int) -> bytes:
        """A page; what is cut off is zero."""
        if number in self._frames:
            return self._frames[number]
        at = (number - 1) * PAGE_BYTES
        if self._map is None or not 0 <= at < self._size:
            return bytes(PAGE_BYTES)
        return self._map[at : at + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")

    def leaf_rows(self) -> Iterator[tuple[int, Row]]:
        """(rowid, columns) of every row in every page that looks like a leaf of a table.

        Also rows that were deleted and not written over. Any of them may be garbage.
        """
        for number in range(1, self.count + 1):
            yield from self._table_rows(self.page(number), 100 if number == 1 else 0)

    def table(self, root: int) -> list[tuple[int, Row]]:
        """(rowid, columns) of the live rows of the table whose tree starts at ``root``."""
        return [
            row
            for page in self._leaves(root, _TABLE_LEAF, _TABLE_INNER)
            for row in self._table_rows(page, 0)
        ]

    def index(self, root: int) -> list[Row]:
        """The live rows of a table without rowid."""
        found = []
        for page in self._leaves(root, _INDEX_LEAF, _INDEX_INNER):
            inner = page[0] == _INDEX_INNER
            for at in _cells(page, 0):
                cell = at + 4 if inner else at
                size, cell = _varint(page, cell)
                row = _record(self._payload(page, cell, size, _index_local(size)))
                if row is not None:
                    found.append(row)
        return found

    def holds_index(self, root: int) -> bool:
        """Whether a table without rowid still begins at ``root``: one that is lost looks empty."""
        return self.page(root)[0] in (_INDEX_LEAF, _INDEX_INNER)

    def _leaves(self, root: int, leaf: int, inner: int) -> Iterator[bytes]:
        """The pages of a tree; of an index also the inner ones, which hold rows too."""
        waiting, seen = [root], set[int]()
        while waiting:
            number = waiting.pop()
            if number in seen or not 1 < number <= self.count:
                continue
            seen.add(number)
            page = self.page(number)
            if page[0] == inner:
                children = [struct.unpack_from(">I", page, at)[0] for at in _cells(page, 0)]
                waiting += [*children, struct.unpack_from(">I", page, 8)[0]]
            if page[0] == leaf or (page[0] == inner and inner == _INDEX_INNER):
                yield page

    def _table_rows(self, page: bytes, start: int) -> Iterator[tuple[int, Row]]:
        if page[start] != _TABLE_LEAF:
            return
        for at in _cells(page, start):
            size, cell = _varint(page, at)
            rowid, cell = _varint(page, cell)
            row = _record(self._payload(page, cell, size, _table_local(size)))
            if row is not None:
                yield rowid, row

    def _payload(self, page: bytes, at: int, size: int, local: int) -> bytes:
        """The bytes of a row, as far as they can be followed."""
        if not 0 < size <= _MAX_ROW_BYTES:
            return b""
        parts = [page[at : at + local]]
        left = size - local
        if left <= 0 or at + local + 4 > PAGE_BYTES:
            return parts[0]
        (following,) = struct.unpack_from(">I", page, at + local)
        while left > 0 and 1 < following <= self.count:
            overflow = self.page(following)
            parts.append(overflow[4 : 4 + min(left, PAGE_BYTES - 4)])
            left -= PAGE_BYTES - 4
            (following,) = struct.unpack_from(">I", overflow)
        return b"".join(parts)


def _cells(page: bytes, start: int) -> list[int]:
    """Where the cells of a page begin; those that cannot be are left out."""
    (count,) = struct.unpack_from(">H", page, start + 3)
    first = start + (12 if page[start] in (_TABLE_INNER, _INDEX_INNER) else 8)
    count = min(count, (PAGE_BYTES - first) // 2)
    pointers = struct.unpack_from(f">{count}H", page, first)
    return [at for at in pointers if first <= at < PAGE_BYTES - 4]


def _table_local(size: int) -> int:
    """Bytes of a row that stand in its leaf page."""
    most = PAGE_BYTES - 35
    return size if size <= most else _spilled(size, most)


def _index_local(size: int) -> int:
    most = (PAGE_BYTES - 12) * 64 // 255 - 23
    return size if size <= most else _spilled(size, most)


def _spilled(size: int, most: int) -> int:
    least = (PAGE_BYTES - 12) * 32 // 255 - 23
    local = least + (size - least) % (PAGE_BYTES - 4)
    return local if local <= most else least


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(9):
        if at + i >= len(page):
            return 0, len(page)
        byte = page[at + i]
        if i == 8:
            value = value << 8 | byte
            return value - (1 << 64) if value >> 63 else value, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    raise AssertionError


_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _record(payload: bytes) -> Row | None:
    """The columns of a row, or None when they do not fit its bytes."""
    if not payload:
        return None
    size, at = _varint(payload, 0)
    types = []
    while at < size <= len(payload):
        kind, at = _varint(payload, at)
        types.append(kind)
    if not types or at != size:
        return None
    columns: list[Any] = []
    for kind in types:
        if kind in _INTEGER_BYTES:
            end = at + _INTEGER_BYTES[kind]
            columns.append(int.from_bytes(payload[at:end], "big", signed=True))
        elif kind == 7:
            end = at + 8
            columns.append(None)
        elif kind in (0, 8, 9):
            end = at
            columns.append({0: None, 8: 0, 9: 1}[kind])
        elif kind >= 12:
            end = at + (kind - 12) // 2
            piece = payload[at:end]
            columns.append(piece.decode("utf-8", "replace") if kind % 2 else piece)
        else:
            return None
        if end > len(payload):
            return None
        at = end
    return tuple(columns)


def _frames(wal: Path) -> dict[int, bytes]:
    """Page number → page, of the frames up to the last commit whose checksums hold."""
    try:
        content = wal.read_bytes()
    except FileNotFoundError:
        return {}
    if len(content) < _WAL_HEADER:
        return {}
    magic, _, page_bytes, _, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", content)
    if magic & ~1 != 0x377F0682 or page_bytes != PAGE_BYTES:
        return {}
    order = ">" if magic & 1 else "<"
    sums = _checksum(content[:24], order, (0, 0))
    if sums != (sum1, sum2):
        return {}
    committed: dict[int, bytes] = {}
    waiting: dict[int, bytes] = {}
    for at in range(_WAL_HEADER, len(content) - _FRAME_HEADER - PAGE_BYTES + 1, 4120):
        number, size_after, *salts, sum1, sum2 = struct.unpack_from(">6I", content, at)
        page = content[at + _FRAME_HEADER : at + _FRAME_HEADER + PAGE_BYTES]
        sums = _checksum(content[at : at + 8] + page, order, sums)
        if salts != [salt1, salt2] or sums != (sum1, sum2):
            break
        waiting[number] = page
        if size_after:
            committed |= waiting
            waiting = {}
    return committed


def _checksum(content: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for i in range(0, len(words), 2):
        one = (one + words[i] + two) & 0xFFFFFFFF
        two = (two + words[i + 1] + one) & 0xFFFFFFFF
    return one, two
