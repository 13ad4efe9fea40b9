"""Data contracts: Open Data Contract Standard 3.1 files, compiled to one bitmask per row.

A rule stands in the standard's own extension point: ``type: custom``, ``engine: scout``,
``implementation: {rowPredicate, onFail}``. A predicate must be *true*: null fails. The text of a
published version never changes: the database refuses another text under the same version.
Not its job: what happens to the rows (``strategies``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

import yaml
from open_data_contract_standard.model import OpenDataContractStandard
from psycopg import sql
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from scout_central.database import Connection
from scout_shared.errors import ConfigError

Action = Literal["quarantine", "exclude", "warn", "block"]
MAX_RULES = 62
"""Bits of a bigint that are free of its sign."""

_STORE = """
insert into metadata.data_contracts (contract_id, version, status, dataset, odcs, sha256)
values (%s, %s, %s, %s, %s, %s)
on conflict (contract_id, version) do nothing
"""
_STORED = "select contract_id, version, sha256 from metadata.data_contracts"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row rule."""

    name: str
    predicate: str
    """SQL over the columns and the evidence of the model's select; true: the row passes."""
    on_fail: Action
    dimension: str
    """accuracy, completeness, conformity, consistency, coverage, timeliness or uniqueness."""


@dataclass(frozen=True, slots=True)
class Contract:
    """One version of the contract of one dataset."""

    contract_id: str
    version: str
    status: str
    dataset: str
    rules: tuple[Rule, ...]
    critical: tuple[str, ...]
    """Columns whose completeness is measured."""
    odcs: dict[str, Any]
    sha256: str

    @property
    def names(self) -> list[str]:
        """Rule names; the position is the bit."""
        return [rule.name for rule in self.rules]

    def mask(self, action: Action) -> sql.Composed:
        """An expression: the bits of the rules with this action that a row breaks."""
        terms = [
            sql.SQL("case when ({}) is not true then {} else 0 end").format(
                # the repository's own text; % would be taken for a parameter
                sql.SQL(rule.predicate.replace("%", "%%")),
                sql.Literal(1 << bit),
            )
            for bit, rule in enumerate(self.rules)
            if rule.on_fail == action
        ]
        return sql.SQL("({})::bigint").format(sql.SQL(" + ").join(terms) if terms else sql.SQL("0"))


def parse(text: str, name: str) -> Contract:
    """The contract in the text of one file.

    Raises:
        ConfigError: not a valid ODCS document, or a rule that we cannot compile.
    """
    try:
        raw = yaml.safe_load(text)
        document = OpenDataContractStandard.model_validate(raw)
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{name}: not an ODCS contract: {error}", "see another one") from error
    if not document.schema_ or len(document.schema_) != 1 or not document.schema_[0].physicalName:
        raise ConfigError(f"{name}: needs one schema object with a physicalName", "")
    table = document.schema_[0]
    rules = []
    for check in table.quality or ():
        if check.type != "custom" or check.engine != "scout":
            continue
        action = check.implementation
        if (
            not isinstance(action, dict)
            or set(action) != {"rowPredicate", "onFail"}
            or action["onFail"] not in get_args(Action)
            or not check.name
        ):
            raise ConfigError(
                f"{name}: rule {check.name!r} cannot be compiled",
                "it needs a name and implementation: {rowPredicate, onFail: quarantine | exclude"
                " | warn | block}",
            )
        rules.append(
            Rule(check.name, action["rowPredicate"], action["onFail"], check.dimension or "")
        )
    if len({rule.name for rule in rules}) != len(rules) or len(rules) > MAX_RULES:
        raise ConfigError(f"{name}: rule names must differ, and be at most {MAX_RULES}", "")
    return Contract(
        contract_id=document.id or name,
        version=document.version or "",
        status=document.status or "",
        dataset=str(table.physicalName),
        rules=tuple(rules),
        critical=tuple(p.name for p in table.properties or () if p.criticalDataElement and p.name),
        odcs=raw,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def load() -> dict[str, Contract]:
    """All contracts of the package by id."""
    folder = resources.files("scout_central") / "contracts"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".odcs.yaml"):
            contract = parse(entry.read_text("utf-8"), entry.name)
            found[contract.contract_id] = contract
    return found


def store(connection: Connection, contracts: Iterable[Contract]) -> None:
    """Register each version once; safe to repeat.

    Raises:
        ConfigError: the database has this version with another text.
    """
    wanted = list(contracts)
    stored = {(i, v): sha for i, v, sha in connection.execute(_STORED).fetchall()}
    for contract in wanted:
        known = stored.get((contract.contract_id, contract.version))
        if known is None:
            connection.execute(
                _STORE,
                (
                    contract.contract_id,
                    contract.version,
                    contract.status,
                    contract.dataset,
                    Jsonb(contract.odcs, dumps=_dumps),
                    contract.sha256,
                ),
            )
        elif known != contract.sha256:
            raise ConfigError(
                f"contract {contract.contract_id} {contract.version} has another text than the one"
                " this database knows",
                "raise its version: rows were judged under the old text",
            )


def _dumps(value: Any) -> str:
    import json

    return json.dumps(value, default=str)
