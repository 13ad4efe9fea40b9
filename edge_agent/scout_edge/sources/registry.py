"""The kinds of sources, and the ``[sources.<name>]`` tables decoded with them.

A module is imported when a table names its kind: a device without meters carries no Modbus.
Not its job: making sources (``agent``); what a kind's keys mean (its own module).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scout_edge.sources import SourceKind
from scout_edge.sources.shaping import ShapeSettings
from scout_shared import settings
from scout_shared.errors import ConfigError

GROUP = "scout_edge.sources"
"""Entry-point group of third parties."""
PASSWORD = "SCOUT_SOURCE_PASSWORD"  # noqa: S105 - a name
"""For ``settings.secret``: stands for ``SCOUT_SOURCE_<NAME>_PASSWORD`` of the table at hand."""
RESERVED = ("http", "system")
"""Names of the sources that ``[http]`` and ``[system]`` make."""
BUILT_IN = ("http", "system", "files", "exec", "mqtt", "modbus")
_MODULES = {"exec": "command"}

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """One ``[sources.<name>]`` table."""

    kind: str
    """Which source it is."""
    settings: Any
    """The kind's own keys, decoded."""
    enabled: bool = True
    """Whether it runs. Default true."""
    shape: tuple[ShapeSettings, ...] = ()
    """Rules for its readings. Default none: they go as they come."""


def find(kind: str) -> SourceKind:
    """The kind of that name; a third party's never hides a built-in one.

    Raises:
        ConfigError: there is none, or its package does not load.
    """
    if kind in BUILT_IN:
        found = importlib.import_module(f"scout_edge.sources.{_MODULES.get(kind, kind)}").KIND
    else:
        # Late: with zipfile, csv and email it takes 0.9 MB, and most devices name no such kind.
        from importlib.metadata import entry_points

        points = entry_points(group=GROUP)
        if kind not in points.names:
            known = sorted({*BUILT_IN, *points.names})
            near = difflib.get_close_matches(kind, known, n=1)
            raise ConfigError(
                f"kind {kind!r} is not known",
                f"did you mean {near[0]!r}?" if near else f"known kinds: {', '.join(known)}",
            )
        try:
            found = points[kind].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"kind {kind!r} cannot be loaded from {points[kind].value}: {error}",
                "install its package again, or disable the source",
            ) from error
    if not isinstance(found, SourceKind):
        raise ConfigError(f"kind {kind!r} gives {found!r}, which is no SourceKind")
    return found


def decode(tables: Any, environ: Mapping[str, str], where: str) -> Mapping[str, SourceSettings]:
    """The ``[sources]`` table, by name. Raises ConfigError naming the table and the key."""
    if not isinstance(tables, Mapping):
        raise ConfigError(f"{where} must be tables [sources.<name>], not {tables!r}")
    return {name: _decode(name, table, environ, where) for name, table in tables.items()}


def _decode(name: str, table: Any, environ: Mapping[str, str], where: str) -> SourceSettings:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ConfigError(
            f"{where}: {name!r} cannot be the name of a source",
            "use small letters, digits, '_' and '-'; 'http' and 'system' are the tables [http] and"
            " [system]",
        )
    where = f"{where}: {name}"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table [sources.{name}], not {table!r}")
    rest = dict(table)
    kind, enabled = rest.pop("kind", None), rest.pop("enabled", True)
    if not isinstance(kind, str):
        raise ConfigError(f"{where}: 'kind' must be set to a text", f"one of {', '.join(BUILT_IN)}")
    if not isinstance(enabled, bool):
        raise ConfigError(f"{where}: enabled must be true or false, not {enabled!r}")
    try:
        found = find(kind)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.hint) from error
    variable = f"SCOUT_SOURCE_{re.sub('[^A-Z0-9]', '_', name.upper())}_PASSWORD"
    for field in dataclasses.fields(found.settings):
        if field.metadata.get("variable") == PASSWORD and field.name in rest:
            raise ConfigError(
                f"{where}: {field.name!r} is a secret and must not stand in a file",
                f"set the environment variable {variable}",
            )
    own = {**environ, PASSWORD: environ.get(variable, "")}
    shape = settings.decode(_Shape, {"shape": rest.pop("shape", [])}, environ, where).shape
    if shape and not found.shapes:
        raise ConfigError(
            f"{where}: a source of kind {kind!r} has no 'shape'",
            "what is posted there is stored as it comes",
        )
    return SourceSettings(kind, settings.decode(found.settings, rest, own, where), enabled, shape)


@dataclass(frozen=True, slots=True)
class _Shape:
    shape: tuple[ShapeSettings, ...]
