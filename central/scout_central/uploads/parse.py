"""Reads one untrusted file and writes its lines as COPY text; runs alone, as a program.

Started by ``door`` as ``python -I parse.py <job>`` with the file as standard input, no secrets in
its environment, and limits on memory, time and output that the kernel enforces. It imports nothing
of Scout's. The answer is one JSON object on standard output; rows and rejects go to the two
descriptors that the job names:

    rows       line number <tab> record as JSON of strings
    rejects    line number <tab> reason <tab> message <tab> bytes of the line

Every value stays the text that the file has ('00123' stays); a typed Parquet value becomes its
exact text. A line that cannot be read is rejected with its number, the rest goes on. The encoding
follows a fixed rule, never a guess from statistics of letters: byte order mark; NUL in every second
byte means UTF-16; UTF-8 when no line contradicts it, or when most lines with non-ASCII characters
are UTF-8 (the others are rejected); else cp1252.
"""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import gzip
import io
import json
import math
import os
import resource
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from typing import IO, Any, NamedTuple, NoReturn

LINE_BYTES = 1024 * 1024
RECORD_LINES = 100
"""A quoted field may run over so many lines; a quote that stays open longer is a mistake."""
COLUMNS = 1000
REJECT_BYTES = 64 * 1024
"""So much of a rejected line is kept; the whole file is in storage."""
MIN_SUSPECT_BYTES = 16 * 1024 * 1024
"""Below this size no ratio of compression is suspect."""
_SAMPLE = 64 * 1024
_quote = json.encoder.encode_basestring  # JSON text of a string, non-ASCII characters as they are


class Refusal(Exception):  # noqa: N818  # ends the program with an answer, not with a fault
    """The file as a whole cannot be taken."""

    def __init__(self, status: int, reason: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.answer = {"status": status, "error": reason, "message": message, "hint": hint}


class Line(NamedTuple):
    """A physical line."""

    number: int
    text: str | None
    """None: it cannot be decoded, or is too long."""
    raw: bytes
    reason: str


class Sink:
    """Where rows and rejects go, with their counts and budgets."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._rows_file: IO[bytes] = os.fdopen(job["rows_fd"], "wb", 1024 * 1024)
        self._rejects_file: IO[bytes] = os.fdopen(job["rejects_fd"], "wb")
        self._most_rows: int = job["rows"]
        self._most_rejects: int = job["rejects"]
        self.rows = 0
        self.rejects = 0

    def row(self, number: int, record: str) -> None:
        """One line that lands; ``record`` is JSON."""
        self.rows += 1
        if self.rows > self._most_rows:
            raise Refusal(413, "too_large", f"more than {self._most_rows:,} rows", "split the file")
        escaped = record.replace("\\", "\\\\")
        self._rows_file.write(f"{number}\t{escaped}\n".encode())

    def reject(self, number: int, reason: str, message: str, raw: bytes) -> None:
        """One line that does not land."""
        self.rejects += 1
        if self.rejects > self._most_rejects:
            raise Refusal(
                422,
                "too_many_rejects",
                f"more than {self._most_rejects:,} lines cannot be read; last: {reason}, {message}",
                "is this the right format, and whole?",
            )
        clean = message.encode("ascii", "replace").decode().replace("\\", "/")
        clean = " ".join(clean.split()).replace("\x00", "")[:500]
        kept = raw[:REJECT_BYTES].hex()
        self._rejects_file.write(f"{number}\t{reason}\t{clean}\t\\\\x{kept}\n".encode())

    def close(self) -> None:
        """Everything is written."""
        self._rows_file.close()
        self._rejects_file.close()


def main() -> None:
    """Do the job in the first argument."""
    job = json.loads(sys.argv[1])
    _limit(job)
    try:
        answer = _parse(job)
    except Refusal as refusal:
        answer = refusal.answer
    except MemoryError:
        answer = {
            "status": 413,
            "error": "too_large",
            "message": "reading the file takes more memory than it may",
            "hint": "split it; or it is made to unpack to something huge",
        }
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    # Not sys.exit: after a MemoryError the finalizers may want memory too.
    os._exit(0)


def _limit(job: dict[str, Any]) -> None:
    if job["format"] == "parquet":
        # Its threads and pools take address space that they never touch: before the limit.
        os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
        os.environ["OMP_NUM_THREADS"] = "1"
        import pyarrow.parquet

        pyarrow.set_cpu_count(1)
        pyarrow.set_io_thread_count(1)
    memory = job["memory_bytes"] + _address_space()
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, job["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, job["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """What the interpreter and its libraries have mapped already, in bytes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # no pathlib here
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0


def _parse(job: dict[str, Any]) -> dict[str, Any]:
    sink = Sink(job)
    raw = sys.stdin.buffer
    encoding: str | None = None
    try:
        if job["format"] == "parquet":
            columns, kind = _parquet(raw, job, sink)
        else:
            encoding = job["encoding"] or _encoding(raw, job)
            lines = _lines(_unpacked(raw, job), encoding)
            reader = _jsonl if job["format"] == "jsonl" else _delimited
            columns, kind = reader(lines, job, sink)
    finally:
        sink.close()
    return {
        "columns": columns,
        "record_type": kind,
        "encoding": encoding,
        "rows": sink.rows,
        "rejects": sink.rejects,
    }


def _kind(columns: list[str], job: dict[str, Any]) -> str:
    """The kind of record by its columns. Raises Refusal when none fits."""
    candidates: dict[str, list[str]] = job["candidates"]
    for kind, required in candidates.items():
        if set(required) <= set(columns):
            return kind
    wanted = "; or ".join(f"{', '.join(r)} ({k})" for k, r in candidates.items())
    found = ", ".join(columns[:50])
    missing = {k: [c for c in r if c not in columns] for k, r in candidates.items()}
    nearest = min(missing.values(), key=len)
    hint = "the first line must name the columns, exactly as above"
    if len(columns) == 1 and (";" in found or "\t" in found):
        hint = "columns must be separated by commas (or by tabs, in a file named .tsv)"
    raise Refusal(
        422,
        "missing_columns",
        f"column {', '.join(nearest)} is missing; needed: {wanted}; found: {found}",
        hint,
    )


# --- bytes


class _Budget(io.RawIOBase):
    """Refuses to hand out more bytes than a file may unpack to."""

    def __init__(self, source: Any, packed_bytes: int, job: dict[str, Any]) -> None:
        super().__init__()
        self._source = source
        self._most: int = job["unpacked_bytes"]
        self._suspect = max(MIN_SUSPECT_BYTES, packed_bytes * job["ratio"])
        self._seen = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self._source.read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            raise Refusal(
                422, "bad_compression", f"the file cannot be unpacked: {error}", "upload it again"
            ) from error
        self._seen += len(chunk)
        if self._seen > self._most or self._seen > self._suspect:
            raise Refusal(
                413,
                "too_large",
                f"the file unpacks to more than {min(self._most, self._suspect):,} bytes",
                "split it; or it is made to unpack to something huge",
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _unpacked(raw: IO[bytes], job: dict[str, Any]) -> io.BufferedReader:
    raw.seek(0)
    magic = raw.read(4)
    raw.seek(0)
    packed = os.fstat(raw.fileno()).st_size
    if magic.startswith(b"PK\x03\x04"):
        raise Refusal(422, "is_archive", "the file is a zip archive", "unpack it first")
    if magic.startswith(b"\x1f\x8b"):
        return io.BufferedReader(_Budget(gzip.GzipFile(fileobj=raw), packed, job), 1024 * 1024)
    return io.BufferedReader(_Budget(raw, packed, job), 1024 * 1024)


def _encoding(raw: IO[bytes], job: dict[str, Any]) -> str:
    """See the module's docstring."""
    with _unpacked(raw, job) as data:
        head = data.peek(_SAMPLE)[:_SAMPLE]
        if head.startswith(codecs.BOM_UTF8):
            return "utf-8"
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            half = head[offset::2]
            if len(half) > 1 and half.count(0) > 0.6 * len(half):
                return name
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while chunk := data.read(LINE_BYTES):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    with _unpacked(raw, job) as data:
        good = bad = 0
        while line := data.readline(LINE_BYTES):
            if not line.isascii():
                if _decoded(line, "utf-8") is None:
                    bad += 1
                else:
                    good += 1
        return "utf-8" if good >= bad else "cp1252"


def _decoded(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return None


def _lines(data: io.BufferedReader, encoding: str) -> Iterator[Line]:
    """Physical lines from number 1, without their ends and without a byte order mark."""
    if encoding.startswith("utf-16"):
        yield from _wide_lines(data, encoding)
        return
    number = 0
    while raw := data.readline(LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if len(raw) > LINE_BYTES:
            rest = raw
            while rest and not rest.endswith(b"\n"):
                rest = data.readline(LINE_BYTES)
            yield Line(number, None, raw[:REJECT_BYTES], "line_too_long")
            continue
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield _checked(number, _decoded(raw, encoding), raw)


def _wide_lines(data: io.BufferedReader, encoding: str) -> Iterator[Line]:
    # 'replace': a broken unit becomes U+FFFD and costs its own line only
    text = io.TextIOWrapper(data, encoding, errors="replace", newline="\n")
    number = 0
    while line := text.readline(LINE_BYTES):
        number += 1
        line = line.removesuffix("\n").removesuffix("\r")
        raw = line.encode("utf-8", "replace")
        if number == 1:
            line = line.removeprefix("\ufeff")
        yield _checked(number, None if "\ufffd" in line else line, raw)


def _checked(number: int, text: str | None, raw: bytes) -> Line:
    if text is None:
        return Line(number, None, raw, "invalid_text")
    if "\x00" in text:
        return Line(number, None, raw, "nul_character")
    return Line(number, text, raw, "")


_MEANING = {
    "invalid_text": "the bytes are no text in the file's encoding",
    "nul_character": "the line contains the character NUL",
    "line_too_long": f"the line is longer than {LINE_BYTES:,} bytes",
}


# --- CSV, TSV


class _Records:
    """Lines joined to records where a quoted field runs over a line's end."""

    def __init__(self, lines: Iterator[Line], delimiter: str, sink: Sink) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._delimiter = delimiter
        self._sink = sink
        self._text = ""
        self._reader = csv.reader(self._feed(), delimiter=delimiter, strict=True)

    def _feed(self) -> Iterator[str]:
        while True:
            yield self._text

    def _next(self) -> Line | None:
        while True:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None or line.text is not None:
                return line
            self.reject([line], line.reason, _MEANING[line.reason])

    def reject(self, lines: list[Line], reason: str, message: str) -> None:
        """Reject the first line; the others that were joined to it are read again by themselves."""
        self._again.extendleft(reversed(lines[1:]))
        self._sink.reject(lines[0].number, reason, message, lines[0].raw)

    def __iter__(self) -> Iterator[tuple[list[Line], list[str]]]:
        while (line := self._next()) is not None:
            assert line.text is not None
            if not line.text.strip():
                continue  # an empty line is no record
            lines, text = [line], line.text
            while '"' in text and _is_open(text, self._delimiter):
                more = self._next() if len(lines) < RECORD_LINES else None
                if more is None or len(text) > LINE_BYTES:
                    self.reject(lines, "unterminated_quote", "a quoted field does not end")
                    break
                lines.append(more)
                text += f"\n{more.text}"
            else:
                self._text = text
                try:
                    fields = next(self._reader)
                except csv.Error as error:
                    self.reject(lines, "bad_quoting", str(error))
                    continue
                yield lines, fields


def _is_open(text: str, delimiter: str) -> bool:
    """Whether ``text`` ends inside a quoted field; a quote inside an unquoted one opens nothing."""
    at = 0
    while True:
        if text.startswith('"', at):
            end = at + 1
            while True:
                end = text.find('"', end)
                if end < 0:
                    return True
                if not text.startswith('"', end + 1):
                    break
                end += 2
            at = text.find(delimiter, end)
        else:
            at = text.find(delimiter, at)
        if at < 0:
            return False
        at += len(delimiter)


def _delimited(lines: Iterator[Line], job: dict[str, Any], sink: Sink) -> tuple[list[str], str]:
    csv.field_size_limit(2 * LINE_BYTES)
    records = _Records(lines, "\t" if job["format"] == "tsv" else ",", sink)
    columns: list[str] = []
    kind = ""
    prefixes: list[str] = []
    for joined, fields in records:
        if not columns:
            columns = _header(fields)
            kind = _kind(columns, job)
            prefixes = [f"{_quote(name)}: " for name in columns]
        elif len(fields) != len(columns):
            records.reject(
                joined, "field_count", f"{len(fields)} fields, the header has {len(columns)}"
            )
        else:
            pairs = [p + _quote(f) for p, f in zip(prefixes, fields, strict=True)]
            sink.row(joined[0].number, "{" + ", ".join(pairs) + "}")
    if not columns:
        _empty()
    return columns, kind


def _header(fields: list[str]) -> list[str]:
    columns = [field.strip() for field in fields]
    if len(columns) > COLUMNS:
        raise Refusal(422, "bad_header", f"{len(columns)} columns", f"at most {COLUMNS}")
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice or "" in columns:
        what = f"column {twice[0]!r} stands twice" if twice and twice[0] else "a column has no name"
        raise Refusal(422, "bad_header", what, "the first line must name each column once")
    return columns


def _empty() -> NoReturn:
    raise Refusal(422, "empty_file", "the file has no line that names columns", "is it whole?")


# --- JSON Lines


def _jsonl(lines: Iterator[Line], job: dict[str, Any], sink: Sink) -> tuple[list[str], str]:
    columns: list[str] = []
    kind = ""
    required: list[str] = []
    for line in lines:
        if line.text is None:
            sink.reject(line.number, line.reason, _MEANING[line.reason], line.raw)
            continue
        if not line.text.strip():
            continue
        try:
            record = json.loads(
                line.text,
                parse_int=str,
                parse_float=str,
                parse_constant=_no_constant,
                object_pairs_hook=_object,
            )
        except (ValueError, RecursionError) as error:
            sink.reject(line.number, "bad_json", str(error), line.raw)
            continue
        if not isinstance(record, dict):
            sink.reject(line.number, "not_an_object", "the line is no JSON object", line.raw)
            continue
        if not columns:
            columns = list(record)
            kind = _kind(columns, job)
            required = job["candidates"][kind]
        _json_row(line, record, required, sink)
    if not columns:
        _empty()
    return columns, kind


def _json_row(line: Line, record: dict[str, Any], required: list[str], sink: Sink) -> None:
    missing = [name for name in required if name not in record]
    if missing:
        sink.reject(line.number, "missing_column", f"no {', '.join(missing)}", line.raw)
        return
    text = "{" + ", ".join(f"{_quote(k)}: {_json_value(v)}" for k, v in record.items()) + "}"
    if any("\x00" in part for part in (*record, *record.values()) if isinstance(part, str)):
        sink.reject(line.number, "nul_character", _MEANING["nul_character"], line.raw)
        return
    try:
        sink.row(line.number, text)
    except UnicodeEncodeError:  # half of a surrogate pair
        sink.rows -= 1
        sink.reject(line.number, "invalid_text", _MEANING["invalid_text"], line.raw)


def _json_value(value: Any) -> str:
    """A value as JSON string or null; what is nested becomes its JSON text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return '"true"' if value else '"false"'
    if isinstance(value, str):
        return _quote(value)
    return _quote(json.dumps(value, ensure_ascii=False))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# --- Parquet


def _parquet(raw: IO[bytes], job: dict[str, Any], sink: Sink) -> tuple[list[str], str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(raw)
        columns = _header(list(file.schema_arrow.names))
        kind = _kind(columns, job)
        if file.metadata.num_rows > job["rows"]:
            raise Refusal(413, "too_large", f"{file.metadata.num_rows:,} rows", "split the file")
        number = 0
        seen_bytes = 0
        # Small batches: a footer does not tell how large its dictionaries unpack.
        for batch in file.iter_batches(batch_size=1024, use_threads=False):
            seen_bytes += batch.nbytes
            if seen_bytes > job["unpacked_bytes"]:
                raise Refusal(
                    413,
                    "too_large",
                    f"the file unpacks to more than {job['unpacked_bytes']:,} bytes",
                    "split it; or it is made to unpack to something huge",
                )
            readers = [_reader(field.type) for field in batch.schema]
            values = [batch.column(i).to_pylist() for i in range(len(columns))]
            for row in zip(*values, strict=True):
                number += 1
                _parquet_row(number, columns, row, readers, sink)
    except pyarrow.ArrowMemoryError as error:
        raise MemoryError from error
    except (pyarrow.ArrowException, OSError) as error:
        raise Refusal(
            422, "bad_parquet", f"the file is no Parquet that can be read: {error}", "write it anew"
        ) from error
    return columns, kind


def _parquet_row(
    number: int, columns: list[str], row: tuple[Any, ...], readers: list[Any], sink: Sink
) -> None:
    record: dict[str, str | None] = {}
    for name, value, read in zip(columns, row, readers, strict=True):
        try:
            record[name] = None if value is None else read(value)
        except UnicodeDecodeError:
            sink.reject(number, "invalid_text", f"column {name} holds bytes that are no text", b"")
            return
    if any(value is not None and "\x00" in value for value in record.values()):
        sink.reject(number, "nul_character", _MEANING["nul_character"], b"")
        return
    sink.row(number, json.dumps(record, ensure_ascii=False))


def _reader(kind: Any) -> Any:
    """How a value of this Arrow type becomes its exact text."""
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        return _narrow_float
    if types.is_floating(kind):
        return _float
    return _text


def _float(value: float) -> str | None:
    """The shortest text that means this number; a whole one without '.0'. NaN is not known."""
    if math.isnan(value):
        return None
    if value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


def _narrow_float(value: float) -> str | None:
    """As ``_float``, for a number that was stored in 32 bits: 0.1 is 0.1, not 0.10000000149."""
    if math.isnan(value) or value.is_integer():
        return _float(value)
    import numpy

    return str(numpy.float32(value))


def _text(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case bytes():
            return value.decode("utf-8")
        case Decimal():
            return format(value, "f")
        case dt.datetime() if value.tzinfo is not None:
            return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case list() | dict() | tuple():
            return json.dumps(value, ensure_ascii=False, default=_text)
        case _:
            return str(value)


if __name__ == "__main__":
    main()
