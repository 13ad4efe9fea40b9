"""Makes an answer (``scout_shared.answers``) of the JSON that the hub sent.

Fields that are not known are ignored (a newer hub), ISO times become aware UTC datetimes, decimals
become ``Decimal``, and an answer that lacks a field is refused (an older hub).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import types
import typing
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from scout_shared.answers import Column, Rows
from scout_shared.errors import PermanentError

T = TypeVar("T")


def decode(cls: type[T], value: Any) -> T:
    """Make a ``cls`` of parsed JSON.

    Raises:
        PermanentError: a field is missing or has another type: hub and console do not fit.
    """
    try:
        made: T = _decode(cls, value)
    except (KeyError, TypeError, ValueError, InvalidOperation, AttributeError) as error:
        raise PermanentError(
            f"the hub's answer is not a {cls.__name__}: {type(error).__name__} {error}",
            "hub and console must be of the same version",
        ) from error
    return made


def typed_rows(page: Rows) -> Rows:
    """The page with each value in the type that its column says."""
    readers = {c.name: _READERS[c.type.partition("(")[0]] for c in page.columns if _read_as(c)}
    rows = tuple(
        {
            name: readers[name](value) if name in readers and value is not None else value
            for name, value in row.items()
        }
        for row in page.rows
    )
    return dataclasses.replace(page, rows=rows)


def _read_as(column: Column) -> bool:
    return column.type.partition("(")[0] in _READERS


_READERS: dict[str, Any] = {
    "numeric": Decimal,
    "date": dt.date.fromisoformat,
    "timestamp with time zone": lambda text: _time(text),  # noqa: PLW0108  # defined below
}


def _time(text: str) -> dt.datetime:
    value = dt.datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(f"time {text!r} has no zone")
    return value.astimezone(dt.UTC)


@functools.cache
def _shape(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        (
            f.name,
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    )


def _decode(hint: Any, value: Any) -> Any:
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        return None if value is None else _decode(inner, value)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_decode(item, v) for v in value)
    if origin is dict:
        item = typing.get_args(hint)[1]
        return {str(k): _decode(item, v) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint(
            **{
                name: _decode(kind, value[name])
                for name, kind, required in _shape(hint)
                if required or name in value
            }
        )
    return _scalar(hint, value)


def _scalar(hint: Any, value: Any) -> Any:
    if hint is dt.datetime:
        return _time(value)
    if hint is dt.date:
        return dt.date.fromisoformat(value)
    if hint is Decimal:
        return Decimal(str(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is not {hint.__name__}")
    return value
