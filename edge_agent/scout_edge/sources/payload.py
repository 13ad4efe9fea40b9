"""Request bodies of the HTTP door → records. All of a body or nothing of it.

A document's ``body`` is kept byte for byte as it was sent (spaces, order and number texts too:
1.10 stays 1.10), so nothing is rounded or re-ordered on the way to bronze. Nothing is guessed: a
time without offset, an unknown field or a field given twice is refused, with the item, the field
and the value.
Not its job: whether a document makes sense (contracts at silver decide that).
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from scout_shared.errors import PermanentError
from scout_shared.wire import Document, Reading
from scout_shared.zones import BusinessCalendar

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_SPACE = " \t\n\r"


def documents(payload: bytes, calendar: BusinessCalendar, *, lines: bool) -> list[Document]:
    """Documents of a JSON object or array of ``{"type", "observed_at", "body"}``.

    Args:
        lines: the payload is NDJSON: one object per line.

    Raises:
        PermanentError: names the item, the field and the value.
    """
    made = []
    for i, (fields, spans) in enumerate(_items(payload, lines)):
        _check_fields(i, fields, ("type", "observed_at", "body"), optional="observed_at")
        if not isinstance(fields["body"], dict):
            _refuse(i, "body", fields["body"], "must be a JSON object")
        kind = _name(i, "type", fields["type"])
        observed_ms = _instant(i, fields.get("observed_at"))
        made.append(Document(kind, observed_ms, calendar.day(observed_ms), spans["body"]))
    return made


def readings(payload: bytes, *, lines: bool) -> list[Reading]:
    """Readings of a JSON object or array of ``{"metric", "observed_at", "value"}``.

    Raises:
        PermanentError: names the item, the field and the value.
    """
    made = []
    for i, (fields, _) in enumerate(_items(payload, lines)):
        _check_fields(i, fields, ("metric", "observed_at", "value"))
        value = fields["value"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse(i, "value", value, "must be a number; leave the reading out when there is none")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            _refuse(i, "value", value, "is more than a float64 holds")
        observed_ms = _instant(i, fields["observed_at"])
        if observed_ms is None:
            _refuse(i, "observed_at", None, "must be a time: a reading without one says nothing")
        made.append(Reading(_name(i, "metric", fields["metric"]), observed_ms, number))
    return made


_Item = tuple[dict[str, Any], dict[str, bytes]]


def _items(payload: bytes, lines: bool) -> Iterator[_Item]:
    """Each object's parsed fields and their texts."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentError(f"the request body is not UTF-8: {error}") from error
    try:
        if lines:
            for line in text.split("\n"):
                if line.strip(_SPACE):
                    item, end = _object(line, _skip(line, 0))
                    _end(line, end)
                    yield item
            return
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            item, end = _object(text, at)
            _end(text, end)
            yield item
            return
        at = _skip(text, at + 1)
        if text[at : at + 1] == "]":
            _end(text, at + 1)
            return
        while True:
            item, at = _object(text, at)
            yield item
            at = _skip(text, at)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
        _expect(text, at, "]")
        _end(text, at + 1)
    except json.JSONDecodeError as error:
        raise PermanentError(f"the request body is not JSON: {error}") from error
    except RecursionError as error:
        raise PermanentError("the request body is nested too deeply") from error
    except ValueError as error:  # NaN, Infinity, an integer of thousands of digits
        raise PermanentError(f"the request body is not JSON: {error}") from error


def _object(text: str, at: int) -> tuple[_Item, int]:
    """The JSON object at ``at`` and where it ends, with the text of each value as it was sent."""
    _expect(text, at, "{")
    fields: dict[str, Any] = {}
    spans: dict[str, bytes] = {}
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return (fields, spans), at + 1
    while True:
        _expect(text, at, '"')
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        _expect(text, at, ":")
        start = _skip(text, at + 1)
        value, at = _DECODER.raw_decode(text, start)
        if key in fields:
            raise json.JSONDecodeError(f"field {key!r} is given twice", text, start)
        fields[key], spans[key] = value, text[start:at].encode()
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    _expect(text, at, "}")
    return (fields, spans), at + 1


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE and at < len(text):
        at += 1
    return at


def _expect(text: str, at: int, character: str) -> None:
    if text[at : at + 1] != character:
        raise json.JSONDecodeError(f"expected {character!r}", text, at)


def _end(text: str, at: int) -> None:
    at = _skip(text, at)
    if at != len(text):
        raise json.JSONDecodeError("more text after the end", text, at)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _check_fields(
    i: int, fields: dict[str, Any], known: tuple[str, ...], optional: str = ""
) -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise PermanentError(
                f"item {i}: unknown field {key!r}",
                f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}",
            )
    for key in known:
        if key not in fields and key != optional:
            raise PermanentError(f"item {i}: field {key!r} is missing")


def _name(i: int, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        _refuse(i, field, value, "must be a text")
    return value


def _instant(i: int, value: Any) -> int | None:
    """Milliseconds UTC of an ISO-8601 text with offset (below a millisecond: cut); None of null."""
    if value is None:
        return None
    if not isinstance(value, str):
        _refuse(i, "observed_at", value, "must be a text such as '2026-11-23T08:15:00+08:00'")
    try:
        instant = dt.datetime.fromisoformat(value)
    except ValueError:
        _refuse(i, "observed_at", value, "is not a time such as '2026-11-23T08:15:00+08:00'")
    if instant.tzinfo is None:
        _refuse(i, "observed_at", value, "has no offset: add '+08:00' or 'Z', or send null")
    return (instant - _EPOCH) // _MILLISECOND


def _refuse(i: int, field: str, value: Any, why: str) -> NoReturn:
    raise PermanentError(f"item {i}: {field} {json.dumps(value)[:100]} {why}")
