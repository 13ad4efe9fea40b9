"""Order and column lineage of the datasets, parsed from their SQL; nobody writes either down.

A model that reads a table or column that does not exist, gives other columns than its table has,
or stands in a circle, is an error here, before anything runs.
Not its job: storing the edges (``journal``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, traverse_scope

from scout_central.database import Connection
from scout_central.medallion.model import BOOKKEEPING, JUDGED, Model
from scout_shared.errors import ConfigError

Catalogue = Mapping[str, Mapping[str, Mapping[str, str]]]
"""schema → table → column → type."""

_CATALOGUE = """
select namespace.nspname, class.relname, attribute.attname,
       format_type(attribute.atttypid, attribute.atttypmod)
from pg_attribute as attribute
inner join pg_class as class on attribute.attrelid = class.oid
inner join pg_namespace as namespace on class.relnamespace = namespace.oid
where namespace.nspname = any(%s)
  and class.relkind in ('r', 'p', 'v') and not class.relispartition
  and attribute.attnum > 0 and not attribute.attisdropped
order by namespace.nspname, class.relname, attribute.attnum
"""
_SCHEMAS = ["azure_data", "bronze", "silver", "gold", "platinum", "metadata"]
_LOCAL = "local_rows"
"""Made-up schema for ``touched`` and ``changed``, which exist only within a step."""
_STRENGTH = {"identity": 0, "transformation": 1, "aggregation": 2}


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """A column of a dataset comes from a column of another."""

    source_dataset: str
    source_column: str
    target_dataset: str
    target_column: str
    transformation: str
    """identity, transformation, aggregation; ``table`` for the edge between two tables (``*``)."""


@dataclass(frozen=True, slots=True)
class Node:
    """A model with what its SQL says."""

    model: Model
    inputs: tuple[str, ...]
    """Datasets whose changes it follows."""
    reads: tuple[str, ...]
    """All tables in its select, look-ups in metadata included."""
    columns: tuple[str, ...]
    """Columns of its table that the select gives, in the table's order."""
    types: Mapping[str, str]
    """Type of each column of its table."""
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """All models, inputs before what is made of them."""

    nodes: Mapping[str, Node]
    """In the order in which they must run."""

    def consumers(self, dataset: str) -> list[str]:
        """Models that follow ``dataset`` directly."""
        return [name for name, node in self.nodes.items() if dataset in node.inputs]


def catalogue(connection: Connection) -> dict[str, dict[str, dict[str, str]]]:
    """Tables and columns as the database has them now."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for schema, table, column, kind in connection.execute(_CATALOGUE, (_SCHEMAS,)).fetchall():
        found.setdefault(schema, {}).setdefault(table, {})[column] = kind
    return found


def build(models: Mapping[str, Model], tables: Catalogue) -> Graph:
    """Read each model's SQL against the catalogue and put them in order.

    Raises:
        ConfigError: unknown table or column, other columns than the table's, or a circle.
    """
    nodes = {name: _read(model, models, tables) for name, model in models.items()}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, node in sorted(nodes.items()):
        sorter.add(name, *(i for i in node.reads if i in nodes))
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        raise ConfigError(
            f"the models read each other in a circle: {' → '.join(error.args[1])}",
            "take one table out of one of their selects",
        ) from error
    return Graph({name: nodes[name] for name in order})


def _read(model: Model, models: Mapping[str, Model], tables: Catalogue) -> Node:
    target = tables.get(model.layer, {}).get(model.table)
    if target is None:
        raise ConfigError(f"{model.dataset}: there is no such table", "make it in a migration")
    scope_types = {column: target.get(column, "text") for column in model.scope}
    select = _qualified(model.sql, model.dataset, tables, {"touched": scope_types})
    reads = _tables(select)
    inputs = _inputs(model, reads)
    given = [projection.alias_or_name for projection in select.selects]
    columns = _columns(model, given, list(target))
    reader = _Reader(model, models, tables, scope_types)
    edges = reader.edges(select, columns)
    edges |= {Edge(source, "*", model.dataset, "*", "table") for source in reads}
    return Node(model, inputs, reads, columns, target, tuple(sorted(edges)))


def _columns(model: Model, given: list[str], table: list[str]) -> tuple[str, ...]:
    filled = BOOKKEEPING + (JUDGED if model.strategy == "append" else ())
    wanted = [column for column in table if column not in filled]
    if missing := [column for column in wanted if column not in given]:
        raise ConfigError(
            f"{model.dataset}: the select does not give {', '.join(missing)}",
            "each column of the table must be in the select",
        )
    if model.strategy != "append" and (extra := [c for c in given if c not in wanted]):
        raise ConfigError(
            f"{model.dataset}: the table has no column {', '.join(extra)}",
            "add it by a migration, or take it out of the select",
        )
    return tuple(wanted)


def _inputs(model: Model, reads: tuple[str, ...]) -> tuple[str, ...]:
    followed = tuple(name for name in reads if not name.startswith("metadata."))
    if model.strategy != "keyed":
        if len(followed) != 1:
            raise ConfigError(
                f"{model.dataset}: strategy {model.strategy} reads {len(followed)} inputs",
                "it must read exactly one, and only its window of xid",
            )
        for parameter in ("from_xid", "to_xid"):
            if f"%({parameter})s" not in model.sql:
                raise ConfigError(
                    f"{model.dataset}: the select does not use %({parameter})s",
                    "without the window each run would read everything again",
                )
        return followed
    unfollowed = set(followed) - set(model.touched)
    unread = set(model.touched) - set(followed)
    if unfollowed or unread:
        raise ConfigError(
            f"{model.dataset}: 'touched' and the select name different inputs:"
            f" {', '.join(sorted(unfollowed | unread))}",
            "each input needs its touched select, or its changes would be missed",
        )
    return tuple(model.touched)


def _tables(expression: exp.Expr) -> tuple[str, ...]:
    return tuple(
        sorted(
            {
                f"{table.db}.{table.name}"
                for table in expression.find_all(exp.Table)
                if table.db and table.db != _LOCAL
            }
        )
    )


def _qualified(
    sql: str, name: str, tables: Catalogue, local: Mapping[str, Mapping[str, str]]
) -> exp.Query:
    """The select with each column's table named."""
    try:
        parsed = sqlglot.parse_one(sql, dialect="postgres")
    except SqlglotError as error:
        raise ConfigError(f"{name}: the SQL cannot be read: {error}", "") from error
    if not isinstance(parsed, exp.Query):
        raise ConfigError(f"{name}: not a select", "a model is one select")
    ctes = {cte.alias for cte in parsed.find_all(exp.CTE)}
    for table in parsed.find_all(exp.Table):
        if table.db:
            if table.name not in tables.get(table.db, {}):
                raise ConfigError(
                    f"{name}: there is no table {table.db}.{table.name}", "make it in a migration"
                )
        elif table.name in local:
            table.set("db", exp.to_identifier(_LOCAL))
        elif table.name and table.name not in ctes:
            raise ConfigError(f"{name}: {table.name} has no schema", "write schema.table")
    schema: dict[str, Any] = {**tables, _LOCAL: local}
    try:
        result = qualify(
            parsed,
            dialect="postgres",
            schema=schema,
            quote_identifiers=False,
        )
    except SqlglotError as error:
        raise ConfigError(f"{name}: {error}", "compare with the table's columns") from error
    assert isinstance(result, exp.Query)
    return result


class _Reader:
    """Walks the scopes of one select from its columns back to tables."""

    def __init__(
        self,
        model: Model,
        models: Mapping[str, Model],
        tables: Catalogue,
        scope_types: Mapping[str, str],
    ) -> None:
        self._model = model
        self._scopes: dict[int, Scope] = {}
        self._known: dict[tuple[int, str], dict[tuple[str, str], str]] = {}
        self._touched: dict[str, dict[tuple[str, str], str]] = {c: {} for c in scope_types}
        for source, sql in model.touched.items():
            self._read_touched(source, sql, models, tables, list(scope_types))

    def _read_touched(
        self,
        source: str,
        sql: str,
        models: Mapping[str, Model],
        tables: Catalogue,
        wanted: list[str],
    ) -> None:
        where = f"{self._model.dataset}, touched by {source}"
        layer, _, table = source.partition(".")
        rows = tables.get(layer, {}).get(table)
        if rows is None:
            raise ConfigError(f"{where}: there is no such table", "make it in a migration")
        select = _qualified(sql, where, tables, {"changed": rows})
        given = {projection.alias_or_name for projection in select.selects}
        if given != set(wanted):
            raise ConfigError(
                f"{where}: gives {', '.join(sorted(given))}", f"it must give {', '.join(wanted)}"
            )
        aliases = {t.alias_or_name: t for t in select.find_all(exp.Table) if t.db == _LOCAL}
        followed = models.get(source)
        for column in select.find_all(exp.Column):
            if (
                followed is not None
                and followed.strategy == "keyed"
                and column.table in aliases
                and column.name not in followed.key
            ):
                raise ConfigError(
                    f"{where}: uses {column.name}, which is not in the key of {source}",
                    "an update may change it, and the old value's rows would go stale;"
                    " derive the touched keys from the input's key",
                )
        root = self._root(select)
        for name in wanted:
            for (origin, origin_column), how in self._projection(root, name).items():
                actual = source if origin == f"{_LOCAL}.changed" else origin
                _stronger(self._touched[name], (actual, origin_column), how)

    def edges(self, select: exp.Query, columns: Iterable[str]) -> set[Edge]:
        """Where each of ``columns`` comes from."""
        root = self._root(select)
        found = set()
        for column in columns:
            for (dataset, source), how in self._projection(root, column).items():
                found.add(Edge(dataset, source, self._model.dataset, column, how))
        return found

    def _root(self, select: exp.Query) -> Scope:
        scopes = traverse_scope(select)
        self._scopes.update((id(scope.expression), scope) for scope in scopes)
        return scopes[-1]

    def _inside(self, scope: Scope) -> Scope | None:
        """The query of ``lateral (select …)``; None for a set-returning function."""
        if not isinstance(scope.expression, exp.Lateral):
            return None
        return self._scopes.get(id(scope.expression.this.unnest()))

    def _projection(self, scope: Scope, name: str) -> dict[tuple[str, str], str]:
        key = (id(scope.expression), name)
        if key in self._known:
            return self._known[key]
        found: dict[tuple[str, str], str] = {}
        self._known[key] = found
        if scope.is_udtf and (query := self._inside(scope)):
            found.update(self._projection(query, name))
            return found
        if scope.is_udtf:
            # a column of a set-returning function comes from all of its arguments
            self._columns(scope.expression, scope.parent or scope, "transformation", found)
            return found
        if isinstance(scope.expression, exp.SetOperation):
            for part in scope.set_operation_scopes:
                for origin, how in self._projection(part, name).items():
                    _stronger(found, origin, how)
            return found
        assert isinstance(scope.expression, exp.Select)
        for projection in scope.expression.selects:
            if projection.alias_or_name == name:
                inner = projection.unalias()
                if isinstance(inner, exp.Column):
                    how = "identity"
                elif inner.find(exp.AggFunc):
                    how = "aggregation"
                else:
                    how = "transformation"
                self._columns(inner, scope, how, found)
        return found

    def _columns(
        self, part: exp.Expr, scope: Scope, how: str, found: dict[tuple[str, str], str]
    ) -> None:
        inner_scopes = {id(s.expression): s for s in scope.subquery_scopes}
        for column in part.find_all(exp.Column):
            query = column.find_ancestor(exp.Query)
            for origin, deeper in self._origin(column, inner_scopes.get(id(query), scope)).items():
                _stronger(found, origin, max(how, deeper, key=_STRENGTH.__getitem__))

    def _origin(self, column: exp.Column, scope: Scope) -> dict[tuple[str, str], str]:
        holder: Scope | None = scope
        while holder is not None:
            source = holder.sources.get(column.table)
            if isinstance(source, Scope):
                return self._projection(source, column.name)
            if isinstance(source, exp.Table):
                if source.db == _LOCAL and source.name == "touched":
                    return self._touched.get(column.name, {})
                return {(f"{source.db}.{source.name}", column.name): "identity"}
            holder = holder.parent
        return {}


def _stronger(found: dict[tuple[str, str], str], origin: tuple[str, str], how: str) -> None:
    found[origin] = max(how, found.get(origin, "identity"), key=_STRENGTH.__getitem__)


__all__ = ["Catalogue", "Edge", "Graph", "Node", "build", "catalogue"]
