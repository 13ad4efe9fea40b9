"""``scout-edge buffer``: look into a buffer file, check it, carry it to the hub by hand.

None of these deletes anything. ``export`` also takes what was recovered from damaged files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scout_edge import boots, buffer_tables, clock, config, database, journal, recovery
from scout_edge.buffer import Buffer
from scout_edge.buffer_status import BufferStatus, peek
from scout_edge.room import Limits
from scout_shared import __version__, wire
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.export import ExportHead, write_export
from scout_shared.messages import BootClock, Hello

Load = Callable[[argparse.Namespace], config.EdgeSettings]
_KINDS = {**wire.KIND_NAMES, wire.GAP: "given up"}


def add_to(commands: Any, with_config: Callable[..., argparse.ArgumentParser], load: Load) -> None:
    """Add ``buffer`` and its actions to the commands of ``scout-edge``."""
    parser = commands.add_parser(
        "buffer",
        help="look into the buffer file, check it, carry it to the hub by hand",
        description="Look into the buffer file, check it, or carry it to the hub by hand.",
    )
    actions = parser.add_subparsers(metavar="action", required=True)

    def action(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(command=lambda args: run(args, load(args)))
        sub.add_argument("--json", action="store_true", help="one JSON object, for scripts")
        return with_config(sub)

    action("inspect", _inspect, "show what waits in the buffer, by kind, and what was given up")
    action("verify", _verify, "read every segment and check it; exit code 65: something is damaged")
    export = action("export", _export, "write all that waits to a file for 'scout-hub import'")
    export.add_argument("file", type=Path, help="the file to write, e.g. on a USB stick")
    tables = action("tables", _tables, "write all that waits to tables that a person can ask")
    tables.add_argument("file", type=Path, help="the SQLite file to make; it must not exist")
    tables.formatter_class = argparse.RawDescriptionHelpFormatter
    tables.epilog = """\
tables: readings, documents, given_up, damaged. For example, the coldest moment of each fridge:
  scout-edge buffer tables --config edge.toml waiting.db
  sqlite-utils query waiting.db 'select metric, min(value), observed_at from readings group by 1'
Needs: pip install 'scout-edge[tools]'"""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """One read transaction; also while the agent runs."""
    if not path.is_file():
        raise ConfigError(f"there is no buffer file {path}", "it is made by 'scout-edge run'")
    with database.kept(path), contextlib.closing(database.open_reader(path)) as reader:
        database.check(reader, path)
        reader.execute("begin")
        yield reader


def _inspect(args: argparse.Namespace, settings: config.EdgeSettings) -> int:
    path = settings.buffer.path
    with _reading(path) as reader:
        kinds = [
            {
                "kind": _KINDS.get(kind, str(kind)),
                "segments": segments,
                "records": records,
                "bytes": size,
                "first_sequence": first,
                "last_sequence": last,
            }
            for kind, segments, records, size, first, last in reader.execute(
                "select kind, count(*), sum(records), sum(length(body)), min(first_sequence),"
                " max(first_sequence + records - 1) from segments group by kind order by kind"
            )
        ]
        gaps = [
            {"first_sequence": first, "parts": [list(part[:3]) for part in wire.decode_gap(body)]}
            for first, body in reader.execute(
                "select first_sequence, body from segments where kind = ? order by first_sequence",
                (wire.GAP,),
            )
        ]
    status = peek(path, settings.buffer.max_bytes)
    shown = {
        "path": str(path),
        "epoch": status.epoch.hex(),
        "watermark": status.watermark,
        "next_sequence": status.next_sequence,
        "unsealed_records": status.unsealed_records,
        "backlog_records": status.backlog_records,
        "given_up_records": status.given_up_records,
        "buffer_bytes": status.buffer_bytes,
        "sealed": kinds,
        "gaps": gaps,
        "damaged_files": [str(found) for found in recovery.damaged_files(path)],
        "recovered_files": [str(found) for found in recovery.waiting(path)],
    }
    if args.json:
        print(json.dumps(shown))
        return 0
    print(f"file      {path}, {status.buffer_bytes:,} bytes")
    print(f"epoch     {status.epoch.hex()}")
    print(f"confirmed sequence {status.watermark:,} of {status.next_sequence - 1:,}")
    print(f"unsealed  {status.unsealed_records:,} records")
    for row in kinds:
        print(
            f"{row['kind']:9} {row['records']:,} records in {row['segments']:,} segments, "
            f"{row['bytes']:,} bytes, sequences {row['first_sequence']:,} to "
            f"{row['last_sequence']:,}"
        )
    for found in shown["damaged_files"]:  # type: ignore[attr-defined]  # a list of names
        print(f"DAMAGED   {found}")
    for found in shown["recovered_files"]:  # type: ignore[attr-defined]  # a list of names
        print(f"recovered {found}, not yet confirmed by the hub")
    return 0


def _verify(args: argparse.Namespace, settings: config.EdgeSettings) -> int:
    path = settings.buffer.path
    findings: list[str] = []
    checked = 0
    with _reading(path) as reader:
        findings += [
            f"SQLite: {text}"
            for (text,) in reader.execute("pragma quick_check(20)")
            if text != "ok"
        ]
        meta = dict(reader.execute("select key, value from meta"))
        expected = meta["watermark"] + 1
        for first, records, crc, body in reader.execute(
            "select first_sequence, records, crc, body from segments order by first_sequence"
        ):
            checked += 1
            if zlib.crc32(body) != crc or not journal.is_segment(
                bytes(meta["epoch"]), first, records, body
            ):
                findings.append(f"segment {first} with {records} records: its bytes changed")
            if first > expected:
                findings.append(f"sequences {expected} to {first - 1} are missing")
            expected = max(expected, first + records)
        if expected < meta["next_sequence"]:
            findings.append(f"sequences {expected} to {meta['next_sequence'] - 1} are missing")
        for row_id, crc, body in reader.execute("select id, crc, body from tail"):
            checked += 1
            if zlib.crc32(body) != crc:
                findings.append(f"unsealed records in row {row_id}: their bytes changed")
    if args.json:
        print(json.dumps({"path": str(path), "checked": checked, "findings": findings}))
    else:
        print("\n".join(findings) or f"{path}: all {checked} segments and rows are whole")
    return PermanentError.exit_code if findings else 0


def _export(args: argparse.Namespace, settings: config.EdgeSettings) -> int:
    """Seal, unless the agent does, and write; nothing is deleted: only a receipt does that."""
    path = settings.buffer.path
    if not path.is_file():
        raise ConfigError(f"there is no buffer file {path}", "it is made by 'scout-edge run'")
    running = _seal(path, settings)
    sources = [path, *recovery.waiting(path)]
    statuses = [peek(source, settings.buffer.max_bytes) for source in sources]
    head = ExportHead(
        settings.device.id,
        settings.device.store,
        tuple(_hello(settings, source, s) for source, s in zip(sources, statuses, strict=True)),
    )
    part = args.file.with_name(args.file.name + ".part")
    try:
        with part.open("wb") as file:
            segments = write_export(file, head, (body for s in sources for body in _bodies(s)))
            file.flush()
            os.fsync(file.fileno())
        part.replace(args.file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise TransientError(
            f"{args.file} cannot be written: {error.strerror}",
            "use a stick with enough room, formatted so that this user may write to it",
        ) from error
    left = sum(s.unsealed_records for s in statuses)
    size = args.file.stat().st_size
    if args.json:
        report = {"segments": segments, "bytes": size, "unsealed_records": left}
        print(json.dumps({"file": str(args.file), **report}))
    else:
        print(f"{args.file}: {segments:,} segments, {size:,} bytes; now: scout-hub import FILE")
        if running and left:
            print(f"{left:,} records are not sealed yet; stop the agent to export them too")
    return 0


def _tables(args: argparse.Namespace, settings: config.EdgeSettings) -> int:
    """Copy what waits, also while the agent runs; the buffer stays as it is."""
    path = settings.buffer.path
    told = time.monotonic()

    def progress(records: int) -> None:
        nonlocal told
        if sys.stderr.isatty() and time.monotonic() - told > 1.0:
            told = time.monotonic()
            print(f"{records:,} records", end="\r", file=sys.stderr, flush=True)

    with _reading(path) as reader:
        counts = buffer_tables.write(reader, args.file, progress)
    if args.json:
        print(json.dumps({"file": str(args.file), "rows": counts}))
    else:
        print(f"{args.file}: " + ", ".join(f"{n:,} {table}" for table, n in counts.items()))
    for waiting in recovery.waiting(path):
        print(f"not in it: {waiting}, recovered, not yet confirmed", file=sys.stderr)
    return PermanentError.exit_code if counts["damaged"] else 0


def _seal(path: Path, settings: config.EdgeSettings) -> bool:
    """Seal what a stopped agent left; returns whether one is running."""
    try:
        with database.locked(path):
            pass
    except ConfigError:
        return True
    for found in [path, *recovery.waiting(path)]:
        zone = settings.device.zone if found == path else recovery.zone_of(found)
        with Buffer(found, zone=zone, limits=Limits(settings.buffer.max_bytes)) as opened:
            opened.seal()
            # Also finds what is damaged, and puts a gap in its place.
            after = opened.watermark
            while segments := opened.segments_after(after, 1 << 20):
                after = segments[-1].last_sequence
    return False


def _bodies(path: Path) -> Iterator[bytes]:
    with _reading(path) as reader:
        for (body,) in reader.execute("select body from segments order by first_sequence"):
            yield body


def _hello(settings: config.EdgeSettings, path: Path, status: BufferStatus) -> bytes:
    return Hello(
        epoch=status.epoch,
        boot_id=clock.boot_id().hex(),
        zone=recovery.zone_of(path),
        version=__version__,
        acked=status.watermark,
        next_sequence=status.next_sequence,
        unsealed_records=status.unsealed_records,
        buffer_bytes=status.buffer_bytes,
        oldest_unsent_ms=status.oldest_unsent_ms,
        device_time_ms=clock.wall_ms(),
        interval_seconds=settings.mqtt.heartbeat_seconds,
        ledger_version=status.ledger_version,
        ledger=status.ledger,
        clock_synced=clock.synced(),
        # It is not the device that speaks now: its own hello says how it is.
        recovered=True,
        boots=_boots(path),
    ).encode()


def _boots(path: Path) -> tuple[BootClock, ...]:
    with _reading(path) as reader:
        row = reader.execute("select state from sources where name = ?", (boots.STATE,)).fetchone()
    return boots.decode(None if row is None else row[0])
