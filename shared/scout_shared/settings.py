"""Settings: one TOML file per program, decoded into frozen dataclasses.

A key that no dataclass has is an error naming the nearest key. Every field has its default and, in
the string below it, its unit. Secrets never stand in a file: a field made with ``secret()`` is read
from an environment variable ``SCOUT_*`` only. A field with ``metadata={"decode": f}`` is decoded by
``f(value, environ, where)``: for tables whose keys depend on one of them. A dataclass checks its
values in ``__post_init__``; its ConfigError gets the file and the table in front.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from scout_shared.errors import ConfigError

T = TypeVar("T")


def secret(variable: str) -> Any:
    """A field that is read from the environment variable ``variable`` (default: empty)."""
    return dataclasses.field(default="", repr=False, metadata={"variable": variable})


def check_seconds(key: str, seconds: float, least: float, most: float = 86_400) -> None:
    """Raise ConfigError naming the key when ``seconds`` is not within the bounds (or NaN)."""
    if not least <= seconds <= most:
        raise ConfigError(f"{key} {seconds} cannot be", f"give {least} to {most} seconds")


def check_port(key: str, port: int, least: int = 1) -> None:
    """Raise ConfigError naming the key when ``port`` is no port."""
    if not least <= port <= 65_535:
        raise ConfigError(f"{key} {port} cannot be", f"give {least} to 65535")


def load(cls: type[T], path: Path | None, environ: Mapping[str, str] = os.environ) -> T:
    """Decode the TOML file at ``path`` into ``cls``; without a path, the defaults.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value has the wrong type.
    """
    if path is None:
        return decode(cls, {}, environ)
    return decode(cls, read(path), environ, where=str(path))


def read(path: Path) -> dict[str, Any]:
    """The TOML file at ``path`` as it is. Raises ConfigError: it cannot be read, or is not TOML."""
    try:
        # -sig: editors on Windows put a byte order mark in front.
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"settings file {path} cannot be read: {error.strerror}",
            "give an existing file with --config",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"settings file {path} is not UTF-8: byte {error.object[error.start]:#04x}"
            f" at position {error.start}",
            "save it as UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:  # an integer of 5,000 digits; 5,000 brackets
        raise ConfigError(
            f"settings file {path} is not TOML: {error}", "correct it there, or see the sample file"
        ) from error


_WANTED: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    Path: "a path in quotes",
}


def decode(
    cls: type[T],
    document: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    where: str = "settings",
) -> T:
    """Decode a mapping into the dataclass ``cls``. Raises ConfigError."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ConfigError(
                f"{where}: unknown key {key!r}",
                f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}",
            )
        if "variable" in fields[key].metadata:
            raise ConfigError(
                f"{where}: {key!r} is a secret and must not stand in a file",
                f"set the environment variable {fields[key].metadata['variable']}",
            )
        special = fields[key].metadata.get("decode")
        if special is not None:
            values[key] = special(value, environ, f"{where}: {key}")
        else:
            values[key] = _value(hints[key], value, environ, f"{where}: {key}")
    for name, field in fields.items():
        variable = field.metadata.get("variable")
        if variable:
            values[name] = environ.get(variable, "")
        elif name not in values and dataclasses.is_dataclass(hints[name]):
            values[name] = _value(hints[name], {}, environ, f"{where}: {name}")
    missing = [
        n
        for n, f in fields.items()
        if n not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {', '.join(map(repr, missing))} must be set")
    try:
        return cls(**values)
    except ConfigError as error:  # of __post_init__, which does not know where it stands
        raise ConfigError(f"{where}: {error.message}", error.hint) from error


def _value(hint: Any, value: Any, environ: Mapping[str, str], where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        fitting = [option for option in options if type(value) is option]
        return None if value is None else _value((fitting or options)[0], value, environ, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        return decode(hint, value, environ, where)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_value(item, v, environ, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        item = typing.get_args(hint)[1]
        return {k: _value(item, v, environ, f"{where}: {k}") for k, v in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    wanted = _WANTED.get(hint, getattr(hint, "__name__", hint))
    raise ConfigError(f"{where} must be {wanted}, not {value!r}")
