"""Columns of numbers in few bytes: decimal scaling, deltas, byte shuffle; and back.

Exact both ways: a scaled value is integer / 10**scale by one correctly rounded division, and what
has no such form stands as float64. Only the sign of a negative zero is not kept.
Not its job: what a column means, compression, the frame around it (``wire``).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import compress, count
from operator import ne, sub
from typing import Any

from scout_shared.errors import WireError

RAW = 255
"""Scale of a series that has no exact decimal form: its values stand as float64."""
MAX_SCALE = 9
TYPECODES = {1: "b", 2: "h", 4: "i", 8: "q"}
"""Width of a delta in bytes → its type for ``array``."""

_EXACT = 2**53


def scale_of(values: Sequence[float]) -> tuple[int, list[int]]:
    """The smallest scale at which every value is integer / 10**scale exactly, with the integers.

    What is exact at one scale is exact at the next too, so the scale only has to grow at the first
    value that does not fit: mostly one pass instead of one per scale.
    """
    scale, at = 0, 0
    scaled: list[int] = []
    try:
        while True:
            factor = float(10**scale)
            if round(values[at] * factor) / factor == values[at]:
                scaled = [round(v * factor) for v in values]
                at = next(compress(count(), map(ne, [i / factor for i in scaled], values)), -1)
                if at < 0:
                    break
            scale += 1
            if scale > MAX_SCALE:
                return RAW, []
    except (OverflowError, ValueError):  # infinity, NaN
        return RAW, []
    if max(scaled) >= _EXACT or min(scaled) <= -_EXACT:
        return RAW, []
    return scale, scaled


def append_deltas(blocks: dict[int, array[int]], values: Sequence[int]) -> int:
    """Append the deltas of a column to the block of its width; returns that width (0: all zero)."""
    deltas = [0, *map(sub, values[1:], values)]
    low, high = min(deltas), max(deltas)
    if low == high == 0:
        return 0
    for width in (1, 2, 4, 8):
        limit = 1 << (8 * width - 1)
        if -limit <= low and high < limit:
            blocks[width].extend(deltas)
            return width
    raise WireError("bad_columns", f"steps of {low} .. {high} do not fit 64 bits")


def column_bytes(column: array[Any]) -> bytes:
    """The column, little-endian."""
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def shuffle(block: bytes, width: int) -> bytes:
    """All first bytes, then all second bytes …: like bytes stand together and compress."""
    return block if width == 1 else b"".join(block[i::width] for i in range(width))


def _unshuffle(block: bytes, width: int) -> bytes:
    if width == 1:
        return block
    n = len(block) // width
    out = bytearray(len(block))
    for i in range(width):
        out[i::width] = block[i * n : (i + 1) * n]
    return bytes(out)


class ColumnReader:
    """Takes typed columns off a buffer, in order."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._at = 0

    def take_bytes(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises WireError: there are fewer."""
        end = self._at + size
        if size < 0 or end > len(self._buffer):
            raise WireError("bad_columns", f"columns end at {len(self._buffer)}, {end} was needed")
        piece = bytes(self._buffer[self._at : end])
        self._at = end
        return piece

    def take(self, typecode: str, n: int) -> list[int]:
        """The next ``n`` numbers. Raises WireError."""
        column = array(typecode)
        column.frombytes(self.take_bytes(n * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column.tolist()

    def take_shuffled(self, typecode: str, n: int) -> list[Any]:
        """The next ``n`` numbers of a shuffled block. Raises WireError."""
        column = array(typecode)
        column.frombytes(_unshuffle(self.take_bytes(n * column.itemsize), column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column.tolist()

    def finish(self) -> None:
        """Raise WireError when bytes are left."""
        if self._at != len(self._buffer):
            raise WireError("bad_columns", f"{len(self._buffer) - self._at} bytes too many")


def read_blocks(reader: ColumnReader, counts: list[int], widths: list[int]) -> list[list[int]]:
    """Deltas of each series; series of one width share a block."""
    if any(width not in (0, 1, 2, 4, 8) for width in widths):
        raise WireError("bad_columns", f"widths {sorted(set(widths))} are not 0, 1, 2, 4 or 8")
    deltas: list[list[int]] = [[0] * count for count in counts]
    for width, typecode in TYPECODES.items():
        members = [i for i, w in enumerate(widths) if w == width]
        block = reader.take_shuffled(typecode, sum(counts[i] for i in members))
        at = 0
        for i in members:
            deltas[i] = block[at : at + counts[i]]
            at += counts[i]
    return deltas


def accumulate(first: int, deltas: list[int]) -> list[int]:
    """The column that starts at ``first`` and has these deltas; the leading one is zero."""
    out = []
    for delta in deltas:
        first += delta
        out.append(first)
    return out
