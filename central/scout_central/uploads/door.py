"""The upload door: keep the file, parse it in a child process, land its lines in one transaction.

The same bytes for the same dataset land once: the second time, the first file is the answer. A
file whose columns do not fit leaves nothing behind. Parsing ends before the transaction begins, so
a slow file never holds back the watermark. Safe to repeat after any failure.
Not its job: judging what the lines say (silver), or who may upload (``api.files``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

from psycopg import sql
from psycopg.rows import dict_row

from scout_central import database
from scout_central.storage import FileStore, Incoming, TooLargeError
from scout_central.uploads import parse
from scout_central.uploads.datasets import DATASETS
from scout_shared import logs
from scout_shared.errors import PermanentError

log = logs.get("uploads")

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
SHOWN_REJECTS = 20
_CHUNK = 1024 * 1024
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one file may cost. Complete Journey's largest has 5 MB and 117,000 lines."""

    upload_bytes: int = 256 * _MIB
    unpacked_bytes: int = 1024 * _MIB
    """Text after decompression; for Parquet, the decoded columns."""
    ratio: int = 100
    """Unpacked to packed: sales and catalogues pack 5 to 20 times, bombs 1000 times."""
    rows: int = 5_000_000
    rejects: int = 100_000
    memory_bytes: int = 512 * _MIB
    """Of the child process, beyond what its libraries map at start."""
    cpu_seconds: int = 300
    wall_seconds: float = 420.0


class UploadError(PermanentError):
    """A file that is not taken, with the HTTP status that says so; nothing of it landed."""

    def __init__(self, status: int, reason: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a file."""

    file: Mapping[str, Any]
    """Row of metadata.files, with the hash in hexadecimal."""
    duplicate: bool
    record_type: str | None = None
    encoding: str | None = None
    columns: tuple[str, ...] = ()
    rejects: tuple[tuple[int, str, str], ...] = ()
    """First SHOWN_REJECTS of line number, reason, message."""


_FIND_FILE = """
select
    file_id, dataset, name, encode(sha256, 'hex') as sha256, bytes, rows, rejected_rows,
    uploaded_by, received_at
from metadata.files
where dataset = %(dataset)s
    and sha256 = %(sha)s
"""
_INSERT_FILE = """
insert into metadata.files (
    dataset, name, sha256, bytes, rows, rejected_rows, storage_key, uploaded_by
)
values (
    %(dataset)s, %(name)s, %(sha)s, %(bytes)s, %(rows)s, %(rejects)s, %(key)s, %(by)s
)
on conflict (dataset, sha256) do nothing
returning
    file_id, dataset, name, encode(sha256, 'hex') as sha256, bytes, rows, rejected_rows,
    uploaded_by, received_at
"""
_TEMPORARY = """
create temporary table uploaded_lines (line_number bigint, record jsonb) on commit drop;
create temporary table uploaded_rejects (
    line_number bigint, reason text, message text, raw bytea
) on commit drop
"""
_COPY_LINES = "copy uploaded_lines (line_number, record) from stdin"
_COPY_REJECTS = "copy uploaded_rejects (line_number, reason, message, raw) from stdin"
_LAND = """
insert into {} (file_id, line_number, record_type, record)
select %(file_id)s, line_number, %(record_type)s, record
from uploaded_lines
order by line_number
"""
_QUARANTINE = """
insert into metadata.quarantine (
    stage, dataset, reason, message, file_id, line_number, raw
)
select 'upload', %(dataset)s, reason, message, %(file_id)s, line_number, raw
from uploaded_rejects
order by line_number
"""
_FIRST_REJECTS = """
select line_number, reason, message
from uploaded_rejects
order by line_number
limit %s
"""


@dataclass(frozen=True, slots=True)
class _Output:
    """Where the child writes: COPY text, on disk."""

    rows: IO[bytes]
    rejects: IO[bytes]


class UploadDoor:
    """Takes files for the database at ``dsn``; any number of threads may call it."""

    def __init__(self, dsn: str, store: FileStore, limits: Limits | None = None) -> None:
        self._dsn = dsn
        self._store = store
        self.limits = limits or Limits()

    def receive(
        self,
        dataset: str,
        name: str,
        content: IO[bytes],
        *,
        uploaded_by: str,
        record_type: str | None = None,
        encoding: str | None = None,
    ) -> Receipt:
        """Keep ``content`` and land its lines in ``bronze.<dataset>``; commits.

        Args:
            dataset: one of DATASETS, with or without ``bronze.`` before it.
            name: file name of the sender; only its ending and its display matter.

        Raises:
            UploadError: the file is not taken; nothing landed.
            TransientError: the database or the disk is away.
        """
        dataset = dataset.removeprefix("bronze.")
        candidates = _candidates(dataset, record_type)
        name = _clean_name(name)
        kind = _format(name)
        try:
            with self._store.receive(content, at_most_bytes=self.limits.upload_bytes) as incoming:
                target = f"bronze.{dataset}"
                known = self._find(target, incoming.sha256)
                if known is not None:
                    return Receipt(known, duplicate=True)
                with self._store.scratch() as rows, self._store.scratch() as rejects:
                    out = _Output(rows, rejects)
                    question = {"format": kind, "encoding": encoding, "candidates": candidates}
                    parsed = self._parse(incoming, question, out)
                    upload = {"dataset": target, "name": name, "by": uploaded_by}
                    return self._load(upload, incoming, parsed, out)
        except TooLargeError as error:
            raise UploadError(413, "too_large", error.message, error.hint) from error

    def _find(self, target: str, sha256: bytes) -> Mapping[str, Any] | None:
        with (
            database.connect(self._dsn, application="scout-upload") as connection,
            database.translated(),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            return cursor.execute(_FIND_FILE, {"dataset": target, "sha": sha256}).fetchone()

    def _parse(
        self, incoming: Incoming, question: Mapping[str, Any], out: _Output
    ) -> dict[str, Any]:
        limits = self.limits
        job = {
            **question,
            "rows_fd": out.rows.fileno(),
            "rejects_fd": out.rejects.fileno(),
            "rows": limits.rows,
            "rejects": limits.rejects,
            "unpacked_bytes": limits.unpacked_bytes,
            # JSON repeats the names of the columns on each line
            "output_bytes": 8 * limits.unpacked_bytes,
            "ratio": limits.ratio,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.cpu_seconds,
        }
        with incoming.path.open("rb") as file:
            try:
                child = subprocess.run(
                    [sys.executable, "-I", parse.__file__, json.dumps(job)],
                    stdin=file,
                    capture_output=True,
                    pass_fds=(out.rows.fileno(), out.rejects.fileno()),
                    # No secret of the hub reaches a process that reads what a stranger wrote.
                    env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                    timeout=limits.wall_seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise _too_costly(f"more than {limits.wall_seconds:g} seconds") from error
        if child.returncode != 0:
            log.warning(
                "file.parse_failed",
                exit_code=child.returncode,
                stderr=child.stderr[-2000:].decode("utf-8", "replace"),
            )
            raise _too_costly("more memory, time or output than it may")
        answer: dict[str, Any] = json.loads(child.stdout)
        if "error" in answer:
            raise UploadError(answer["status"], answer["error"], answer["message"], answer["hint"])
        return answer

    def _load(
        self,
        upload: Mapping[str, str],
        incoming: Incoming,
        parsed: Mapping[str, Any],
        out: _Output,
    ) -> Receipt:
        target = upload["dataset"]
        with (
            database.connect(self._dsn, application="scout-upload") as connection,
            database.translated(),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            file = cursor.execute(
                _INSERT_FILE,
                {
                    **upload,
                    "sha": incoming.sha256,
                    "bytes": incoming.bytes,
                    "rows": parsed["rows"],
                    "rejects": parsed["rejects"],
                    "key": incoming.keep(),
                },
            ).fetchone()
            if file is None:  # someone else's upload of the same bytes was first
                known = cursor.execute(
                    _FIND_FILE, {"dataset": target, "sha": incoming.sha256}
                ).fetchone()
                assert known is not None
                return Receipt(known, duplicate=True)
            cursor.execute(_TEMPORARY)
            _copy(connection, _COPY_LINES, out.rows)
            _copy(connection, _COPY_REJECTS, out.rejects)
            ids = {"file_id": file["file_id"]}
            schema, _, table = target.partition(".")
            landed = cursor.execute(
                sql.SQL(_LAND).format(sql.Identifier(schema, table)),
                {**ids, "record_type": parsed["record_type"]},
            ).rowcount
            aside = cursor.execute(_QUARANTINE, {**ids, "dataset": target}).rowcount
            if (landed, aside) != (parsed["rows"], parsed["rejects"]):
                raise PermanentError(
                    f"{upload['name']}: {landed} lines landed and {aside} were put aside, but the "
                    f"parser counted {parsed['rows']} and {parsed['rejects']}",
                    "nothing was kept; report this as a defect",
                )
            first = cursor.execute(_FIRST_REJECTS, (SHOWN_REJECTS,)).fetchall()
        log.info(
            "file.landed",
            dataset=target,
            file_id=file["file_id"],
            file_bytes=incoming.bytes,
            rows=landed,
            rejected_rows=aside,
            uploaded_by=upload["by"],
        )
        return Receipt(
            file,
            duplicate=False,
            record_type=parsed["record_type"],
            encoding=parsed["encoding"],
            columns=tuple(parsed["columns"]),
            rejects=tuple((r["line_number"], r["reason"], r["message"]) for r in first),
        )


def _copy(connection: database.Connection, statement: str, file: IO[bytes]) -> None:
    file.seek(0)
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        while chunk := file.read(_CHUNK):
            copy.write(chunk)


def _candidates(dataset: str, record_type: str | None) -> Mapping[str, tuple[str, ...]]:
    kinds = DATASETS.get(dataset)
    if kinds is None:
        raise UploadError(
            404,
            "unknown_dataset",
            f"there is no upload of {dataset!r}",
            f"use one of: {', '.join(DATASETS)}",
        )
    if record_type is None:
        return kinds
    if record_type not in kinds:
        raise UploadError(
            422,
            "unknown_record_type",
            f"{dataset} has no records of type {record_type!r}",
            f"use one of: {', '.join(kinds)}; or leave it out",
        )
    return {record_type: kinds[record_type]}


def _clean_name(name: str) -> str:
    """The last part of a path of any system, printable, for display only."""
    last = PurePath(name.replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:200]


def _format(name: str) -> str:
    suffixes = [s.lower() for s in PurePath(name).suffixes[-2:]]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    found = FORMATS.get(suffixes[-1]) if suffixes else None
    if found is None:
        raise UploadError(
            422,
            "unknown_format",
            f"the format of {name!r} is not known",
            f"name it with one of: {', '.join(FORMATS)}; .gz may follow",
        )
    return found


def _too_costly(what: str) -> UploadError:
    return UploadError(
        413,
        "too_large",
        f"reading the file took {what}",
        "split it; or it is made to unpack to something huge",
    )
