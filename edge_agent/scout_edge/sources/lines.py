"""One line of JSONL or CSV → documents or readings. A line is taken whole or refused whole.

A document keeps a JSON line byte for byte; a CSV line becomes an object of texts, as they stand
(1.10 stays "1.10"). Readings come by mapping: each mapped field a metric, or one field with the
metric's name and one with the value. An empty field or null is no reading, never a zero.
Not its job: files, offsets; whether a document makes sense.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from scout_edge import acceptance
from scout_edge.sources.instants import AmbiguousTimeError, InstantFormat
from scout_shared.errors import ConfigError, PermanentError
from scout_shared.wire import Document, Reading
from scout_shared.zones import BusinessCalendar

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """What a line means."""

    format: str
    """'jsonl' or 'csv'. No default."""
    document_type: str = ""
    """Each line is a document of this type. Default: lines are readings."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Field (in JSON also 'a.b' for one within another) → metric. Default none."""
    metric_field: str = ""
    """Field that holds a metric's name, where each line is one reading. Default none."""
    value_field: str = ""
    """Field that holds its value. Default none."""
    time_field: str = ""
    """Field with the time of observation. Default: none; documents have no known time then."""
    time_format: str = "iso"
    """'iso', 'epoch_seconds', 'epoch_milliseconds' or a strptime format. Default 'iso'."""
    zone: str = ""
    """IANA zone or offset of times without one, e.g. 'Asia/Manila'. Default: they are refused."""
    delimiter: str = ","
    """Between the fields of CSV. Default ','."""
    columns: tuple[str, ...] = ()
    """Names of the CSV columns. Default: the first line of each file."""

    def __post_init__(self) -> None:
        if self.format not in ("jsonl", "csv"):
            raise ConfigError(f"format {self.format!r} is not known", "use 'jsonl' or 'csv'")
        mapped = bool(self.metrics)
        long = bool(self.metric_field or self.value_field)
        if [bool(self.document_type), mapped, long].count(True) != 1:
            raise ConfigError(
                "what a line is must be said in one way",
                "give document_type, or metrics, or metric_field with value_field",
            )
        if long and not (self.metric_field and self.value_field):
            raise ConfigError("metric_field and value_field belong together", "give both")
        if not self.document_type and not self.time_field:
            raise ConfigError(
                "time_field must be set for readings: one without a time says nothing",
                "name the field with the time, or take the lines as documents",
            )
        if len(self.delimiter) != 1 or self.delimiter in '\r\n"':
            raise ConfigError(f"delimiter {self.delimiter!r} must be one character")
        if len(set(self.columns)) != len(self.columns):
            raise ConfigError("columns has a name twice", "give each column a name of its own")
        try:
            if self.document_type:
                acceptance.check_documents([Document(self.document_type, None, 0, b"")])
            for metric in self.metrics.values():
                _check_metric(metric)
        except PermanentError as error:
            raise ConfigError(error.message, error.hint) from error
        InstantFormat.of(self.time_format, self.zone)


class LineReader:
    """Turns lines into records, for one source."""

    def __init__(self, settings: RecordSettings, calendar: BusinessCalendar) -> None:
        self._settings = settings
        self._calendar = calendar
        self._instants = InstantFormat.of(settings.time_format, settings.zone)
        self._metrics: set[str] = set()
        self.documents = bool(settings.document_type)
        """Whether lines are documents, not readings."""
        self.needs_header = settings.format == "csv" and not settings.columns

    def header(self, line: bytes) -> tuple[str, ...]:
        """Column names of a CSV file's first line. Raises PermanentError."""
        names = tuple(
            name.strip() for name in self._cells(_text(line.removeprefix(b"\xef\xbb\xbf")))
        )
        if len(set(names)) != len(names):
            raise PermanentError("the header has a column twice")
        return names

    def records(
        self, line: bytes, header: Sequence[str] = ()
    ) -> tuple[list[Document], list[Reading]]:
        """What a line (without its end) says; one of the two lists is empty.

        Raises:
            PermanentError: it is not what the settings say it is.
        """
        settings, text = self._settings, _text(line)
        fields: Mapping[str, Any]
        if settings.format == "csv":
            names, cells = settings.columns or header, self._cells(text)
            if len(cells) != len(names):
                raise PermanentError(f"{len(cells)} fields, the header has {len(names)}")
            fields = dict(zip(names, cells, strict=True))
            body = line if not self.documents else _dump(fields)
        else:
            fields, body = _object(text), line.strip()
        instant_ms = self._instant(fields)
        if self.documents:
            day = self._calendar.day(instant_ms)
            document = Document(settings.document_type, instant_ms, day, body)
            acceptance.check_documents([document])
            return [document], []
        return [], self._readings(fields, instant_ms)

    def _readings(self, fields: Mapping[str, Any], instant_ms: int | None) -> list[Reading]:
        settings = self._settings
        if settings.metric_field:
            metric = _find(fields, settings.metric_field)
            if not isinstance(metric, str):
                raise PermanentError(f"{settings.metric_field} {metric!r} is no metric's name")
            if metric not in self._metrics:
                _check_metric(metric)
                if len(self._metrics) < 10_000:
                    self._metrics.add(metric)
            pairs = [(settings.value_field, metric)]
        else:
            pairs = list(settings.metrics.items())
        values = [(metric, number(name, _find(fields, name))) for name, metric in pairs]
        known = [(metric, value) for metric, value in values if value is not None]
        if known and instant_ms is None:
            raise PermanentError(f"{settings.time_field} is empty: a reading needs its time")
        return [Reading(metric, instant_ms or 0, value) for metric, value in known]

    def _instant(self, fields: Mapping[str, Any]) -> int | None:
        if not self._settings.time_field:
            return None
        value = _find(fields, self._settings.time_field)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            return self._instants.parse(value)
        except AmbiguousTimeError:
            if self.documents:  # its own text of the time is in the body
                return None
            raise

    def _cells(self, text: str) -> list[str]:
        try:
            rows = list(csv.reader([text], delimiter=self._settings.delimiter, strict=True))
        except csv.Error as error:
            raise PermanentError(f"not CSV: {error}") from error
        return rows[0] if rows else []


def number(name: str, value: Any) -> float | None:
    """The value of a field as a number; None when it is empty. Raises PermanentError."""
    if value is None:
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        if not _NUMBER.fullmatch(value.strip()):
            raise PermanentError(f"{name} {value[:60]!r} is no number")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise PermanentError(f"{name} {json.dumps(value)[:60]} is no number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise PermanentError(f"{name} {str(value)[:60]!r} is more than a float64 holds")
    return found


def parse_json(text: str) -> Any:
    """Any JSON value. Raises PermanentError, also for NaN, a key given twice, deep nesting."""
    try:
        return _DECODER.decode(text)
    except ValueError as error:
        raise PermanentError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise PermanentError("not JSON: nested too deeply") from error


def find(value: Any, path: str) -> Any:
    """The value at 'a.b' within objects, the whole value at ''; None when it is not there."""
    return value if not path else _find(value, path)


def _find(fields: Any, path: str) -> Any:
    if isinstance(fields, Mapping) and path in fields:
        return fields[path]
    for name in path.split("."):
        if not isinstance(fields, Mapping):
            return None
        fields = fields.get(name)
    return fields


def _object(text: str) -> dict[str, Any]:
    found = parse_json(text)
    if not isinstance(found, dict):
        raise PermanentError(f"a JSON object is needed, not {text[:60]!r}")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_pairs)


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def _check_metric(metric: str) -> None:
    acceptance.check_readings([Reading(metric, 0, 0.0)], set())
