"""A dataset is one SQL file: a header that says how to keep it current, and one select.

The header is YAML behind ``-- `` at the top of the file; the select's columns are the table's
columns. The same text serves a full rebuild and an incremental step. The tables themselves are
made by migrations, so that policies and grants stay.
Not its job: reading the SQL (``lineage``) or running it (``strategies``).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any, Literal, cast

import yaml

from scout_shared.errors import ConfigError

Strategy = Literal["append", "keyed", "merge"]
LAYERS = ("bronze", "silver", "gold", "platinum")
BOOKKEEPING = ("loaded_at", "xid")
"""Columns that each table fills by its defaults."""
JUDGED = ("warnings", "contract_version")
"""Columns that the runner fills for an ``append`` dataset."""


@dataclass(frozen=True, slots=True)
class Model:
    """One silver, gold or platinum dataset and how it follows its inputs."""

    dataset: str
    """``schema.table``."""
    grain: str
    """What one row is, for people."""
    key: tuple[str, ...]
    """Columns that identify a row: the primary key's."""
    strategy: Strategy
    """append: new input rows are judged and added. keyed: touched keys are computed again.
    merge: new input rows are aggregated and merged into the rows that are there."""
    sql: str
    sla_seconds: int
    """Freshness: the newest row may be this old."""
    limits: str
    """What it does not do, with the size of it."""
    scope: tuple[str, ...] = ()
    """keyed: columns that are computed again together; the key unless said otherwise."""
    touched: Mapping[str, str] = field(default_factory=dict)
    """keyed: per input, a select from ``changed`` (its changed rows) giving the scope columns."""
    guards: Mapping[str, str] = field(default_factory=dict)
    """keyed: per column, a select whose one number the sum of this column must equal; a join that
    fans out, or loses rows, fails the step before anything is published."""
    merge: Mapping[str, str] = field(default_factory=dict)
    """merge: per column, how old and new are combined: sum, least or greatest."""
    landed: str = ""
    """merge: a select of stream_id, business_date, records: what the window's rows count as."""
    document: tuple[str, ...] = ()
    """append: columns that identify a document; its first one wins."""
    payload: str = ""
    """append: an expression over the select's columns: what quarantine keeps of a bad line."""
    outcome_kind: int = 0
    """Kind of record in the reconciliation (``scout_shared.wire``); 0: not reconciled."""
    contract: str = ""
    """append: id of the contract that judges each row."""
    planner: Mapping[str, str] = field(default_factory=dict)
    """Settings of PostgreSQL's planner for this select, where its estimates are hopeless."""
    critical: tuple[str, ...] = ()
    """Columns whose completeness is measured; a contract's own list comes on top."""
    sha256: str = ""
    """Of the file; another text means a full rebuild."""

    @property
    def layer(self) -> str:
        """Schema: silver, gold or platinum."""
        return self.dataset.partition(".")[0]

    @property
    def table(self) -> str:
        """Name without the schema."""
        return self.dataset.partition(".")[2]


_REQUIRED = {f.name for f in fields(Model)} & {
    "dataset",
    "grain",
    "key",
    "strategy",
    "sla_seconds",
    "limits",
}
_NEEDS: Mapping[str, frozenset[str]] = {
    "append": frozenset({"document", "payload", "outcome_kind", "contract"}),
    "keyed": frozenset({"touched"}),
    "merge": frozenset({"merge", "landed", "outcome_kind"}),
}
_ALLOWS: Mapping[str, frozenset[str]] = {
    "append": frozenset({"critical", "planner"}),
    "keyed": frozenset({"scope", "guards", "critical", "planner"}),
    "merge": frozenset({"critical", "planner"}),
}
_LISTS = ("key", "scope", "document", "critical")


def parse(text: str, name: str) -> Model:
    """The model in the text of one SQL file.

    Raises:
        ConfigError: the header lacks a field, has one that nobody knows, or is not YAML.
    """
    lines = text.splitlines()
    header_lines = []
    for line in lines:
        if not line.startswith("--"):
            break
        header_lines.append(line[3:])
    try:
        header = yaml.safe_load("\n".join(header_lines))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{name}: the header is not YAML: {error}", "see another model"
        ) from error
    if not isinstance(header, dict):
        raise ConfigError(f"{name}: no header", "start the file with '-- dataset: …'")
    _check(header, name)
    values: dict[str, Any] = {
        key: tuple(value) if key in _LISTS else value for key, value in header.items()
    }
    values["scope"] = values.get("scope") or values["key"]
    return Model(
        **values,
        sql="\n".join(lines[len(header_lines) :]).strip().rstrip(";"),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _check(header: Mapping[str, Any], name: str) -> None:
    strategy = header.get("strategy")
    if not isinstance(strategy, str) or strategy not in _NEEDS:
        raise ConfigError(
            f"{name}: strategy {strategy!r} is not known", f"use one of {', '.join(_NEEDS)}"
        )
    needed = _REQUIRED | _NEEDS[strategy]
    allowed = needed | _ALLOWS[strategy]
    if missing := sorted(needed - set(header)):
        raise ConfigError(f"{name}: the header lacks {', '.join(missing)}", "see another model")
    for unknown in sorted(set(header) - allowed):
        near = difflib.get_close_matches(unknown, allowed, n=1)
        raise ConfigError(
            f"{name}: the header field {unknown!r} means nothing for strategy {strategy}",
            f"did you mean {near[0]!r}?" if near else "remove it",
        )
    layer, _, table = cast(str, header["dataset"]).partition(".")
    if layer not in LAYERS[1:] or not table:
        raise ConfigError(
            f"{name}: {header['dataset']!r} is not a dataset",
            "name it silver.…, gold.… or platinum.…",
        )
    if how := set(header.get("merge", {}).values()) - {"sum", "least", "greatest"}:
        raise ConfigError(f"{name}: cannot merge by {sorted(how)}", "use sum, least or greatest")


def load() -> dict[str, Model]:
    """All models of the package by dataset; file and dataset must have the same name."""
    root = resources.files("scout_central.medallion") / "sql"
    found: dict[str, Model] = {}
    for layer in LAYERS[1:]:
        for entry in sorted((root / layer).iterdir(), key=lambda e: e.name):
            if not entry.name.endswith(".sql"):
                continue
            model = parse(entry.read_text("utf-8"), f"{layer}/{entry.name}")
            if model.dataset != f"{layer}.{entry.name.removesuffix('.sql')}":
                raise ConfigError(
                    f"{layer}/{entry.name} describes {model.dataset}", "rename one of the two"
                )
            found[model.dataset] = model
    return found


def select(models: Mapping[str, Model], datasets: Iterable[str] | None) -> set[str]:
    """The names asked for, or all.

    Raises:
        ConfigError: a name that no model has.
    """
    if datasets is None:
        return set(models)
    wanted = set(datasets)
    for unknown in sorted(wanted - set(models)):
        near = difflib.get_close_matches(unknown, models, n=1)
        raise ConfigError(
            f"there is no dataset {unknown!r}", f"did you mean {near[0]!r}?" if near else ""
        )
    return wanted
