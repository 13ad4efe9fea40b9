"""What waits in a buffer, as tables of a new SQLite file that a person can ask.

    readings    sequence, metric, observed_at, value
    documents   sequence, type, observed_at, business_day, body
    given_up    first_sequence, records, kind, reason
    damaged     first_sequence, records, kind, reason: here, in this file, not yet declared

``sequence`` is null where the record is not sealed yet; times are ISO 8601 in UTC, null where they
are not known. The contents are what the buffer keeps: privacy rules were applied before. Made with
sqlite-utils, which the agent itself does not need.
Not its job: carrying records to the hub (``buffer export``); changing the buffer.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scout_edge.tail import unpack
from scout_shared import wire
from scout_shared.errors import ConfigError, TransientError, WireError
from scout_shared.wire import DOCUMENTS, GAP, READINGS, Document, Reading

_COLUMNS: dict[str, dict[str, type]] = {
    "readings": {"sequence": int, "metric": str, "observed_at": str, "value": float},
    "documents": {
        "sequence": int,
        "type": str,
        "observed_at": str,
        "business_day": str,
        "body": str,
    },
    "given_up": {"first_sequence": int, "records": int, "kind": str, "reason": str},
    "damaged": {"first_sequence": int, "records": int, "kind": str, "reason": str},
}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DAY = dt.date(1970, 1, 1)

Row = tuple[str, list[Any]]
"""Table, and its columns."""


def write(
    reader: sqlite3.Connection, target: Path, progress: Callable[[int], None]
) -> dict[str, int]:
    """Make ``target`` of all that stands in a buffer; returns rows per table.

    One segment at a time is in memory. ``target`` appears when it is whole.

    Args:
        reader: within a read transaction.
        progress: told the records so far, after each segment.

    Raises:
        ConfigError: sqlite-utils is not installed, or ``target`` exists.
        TransientError: ``target`` cannot be written.
    """
    try:
        from sqlite_utils import Database  # late: 32 MB, for a person's question only
    except ImportError as error:
        raise ConfigError(
            "buffer tables needs sqlite-utils", "pip install 'scout-edge[tools]'"
        ) from error
    if target.exists():
        raise ConfigError(f"{target} is there already", "give a new name, or remove it")
    part = target.with_name(target.name + ".part")
    counts = Counter(dict.fromkeys(_COLUMNS, 0))
    try:
        made = Database(part, recreate=True)
        with contextlib.closing(made.conn):
            for table, columns in _COLUMNS.items():
                made.create_table(table, columns)
            for rows in _contents(reader):
                for table, lines in _by_table(rows):
                    names = list(_COLUMNS[table])
                    made.table(table).insert_all([names, *lines], batch_size=1000)
                    counts[table] += len(lines)
                progress(counts["readings"] + counts["documents"])
            made.table("readings").create_index(["metric", "observed_at"])
            made.table("documents").create_index(["type", "observed_at"])
        part.replace(target)
    except (OSError, sqlite3.OperationalError) as error:
        raise TransientError(
            f"{target} cannot be written: {error}", "give a folder with enough room"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return dict(counts)


def _by_table(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[Any]]]]:
    for table in _COLUMNS:
        lines = [line for name, line in rows if name == table]
        if lines:
            yield table, lines


def _contents(reader: sqlite3.Connection) -> Iterator[list[Row]]:
    """The rows of each segment, then those of each unsealed row."""
    for first, records, kind, crc, body in reader.execute(
        "select first_sequence, records, kind, crc, body from segments order by first_sequence"
    ):
        try:
            yield _sealed(first, kind, body)
        except WireError as error:
            reason = error.message if zlib.crc32(body) != crc else f"not readable: {error.message}"
            yield [("damaged", [first, records, _name(kind), reason])]
    for kind, records, crc, body in reader.execute(
        "select kind, records, crc, body from tail order by id"
    ):
        if zlib.crc32(body) == crc:
            yield _unsealed(unpack(kind, records, body)[1])
        else:
            yield [("damaged", [None, records, _name(kind), "its bytes changed"])]


def _sealed(first: int, kind: int, body: bytes) -> list[Row]:
    if kind == READINGS:
        return [_reading(first + i, r) for i, r in enumerate(wire.decode_readings(body))]
    if kind == DOCUMENTS:
        return [_document(first + i, d) for i, d in enumerate(wire.decode_documents(body))]
    rows: list[Row] = []
    for part in wire.decode_gap(body):
        rows.append(("given_up", [first, part.records, _name(part.kind), part.reason]))
        first += part.records
    return rows


def _unsealed(records: Sequence[Reading | Document]) -> list[Row]:
    return [
        _reading(None, record) if isinstance(record, Reading) else _document(None, record)
        for record in records
    ]


def _reading(sequence: int | None, reading: Reading) -> Row:
    return "readings", [sequence, reading.metric, _time(reading.observed_ms), reading.value]


def _document(sequence: int | None, document: Document) -> Row:
    try:
        body: str | bytes = document.body.decode("utf-8")
    except UnicodeDecodeError:
        body = document.body
    day = document.business_day
    known = None if day == wire.UNKNOWN_DAY else (_DAY + dt.timedelta(days=day)).isoformat()
    return "documents", [sequence, document.type, _time(document.observed_ms), known, body]


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return (_EPOCH + dt.timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")


def _name(kind: int) -> str:
    return {**wire.KIND_NAMES, GAP: "given up"}.get(kind & 0xFF, str(kind))
