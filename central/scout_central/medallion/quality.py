"""What a step measures of the rows that it published or kept apart.

Names and definitions of DESIGN §7; dimensions are ODCS's. A metric of nothing (no rows) is not
written: unknown is not perfect.
Not its job: judging rows (``contracts``), stopping a step (``strategies``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from psycopg import sql

from scout_central.database import Connection
from scout_central.medallion.contracts import Contract

COMPLETENESS_TARGET = Decimal("0.95")
"""Specification: more than 95 % of the critical fields of silver."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number with the target that it should meet, if any."""

    dimension: str
    metric: str
    value: Decimal
    unit: str
    threshold: Decimal | None = None
    operator: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.threshold is None:
            return None
        return (
            self.value >= self.threshold if self.operator == ">=" else self.value <= self.threshold
        )


def completeness(connection: Connection, table: str, columns: Sequence[str]) -> list[Metric]:
    """Share of known values per critical column of a temporary table."""
    if not columns:
        return []
    counts = [sql.SQL("count({})").format(sql.Identifier(column)) for column in columns]
    row = connection.execute(
        sql.SQL("select count(*), {} from {}").format(
            sql.SQL(", ").join(counts), sql.Identifier(table)
        )
    ).fetchone()
    assert row is not None
    if not row[0]:
        return []
    return [
        Metric(
            "completeness",
            f"completeness_ratio.{column}",
            round(Decimal(known) / row[0], 6),
            "ratio",
            COMPLETENESS_TARGET,
            ">=",
        )
        for column, known in zip(columns, row[1:], strict=True)
    ]


def judged_metrics(connection: Connection, contract: Contract) -> list[Metric]:
    """What the contract found: shares of lines and documents, and each rule that was broken."""
    bits = sql.SQL(", ").join(
        sql.SQL("count(*) filter (where (failed | excluded | warned) & {} <> 0)").format(
            sql.Literal(1 << bit)
        )
        for bit in range(len(contract.rules))
    )
    row = connection.execute(
        sql.SQL("select count(*), count(*) filter (where failed = 0), {} from judged").format(bits)
    ).fetchone()
    documents = connection.execute(
        "select count(*), count(*) filter (where outcome = 'duplicate'),"
        " count(*) filter (where outcome = 'quarantined') from outcomes"
    ).fetchone()
    assert row is not None
    assert documents is not None
    if not row[0]:
        return []
    metrics = [
        Metric("conformity", "conformity_ratio.lines", round(Decimal(row[1]) / row[0], 6), "ratio"),
        Metric(
            "uniqueness",
            "duplicate_ratio.documents",
            round(Decimal(documents[1]) / documents[0], 6),
            "ratio",
        ),
        Metric(
            "conformity",
            "quarantined_ratio.documents",
            round(Decimal(documents[2]) / documents[0], 6),
            "ratio",
        ),
    ]
    metrics += [
        Metric(rule.dimension, f"broken_lines.{rule.name}", Decimal(broken), "lines")
        for rule, broken in zip(contract.rules, row[2:], strict=True)
        if broken
    ]
    return metrics + completeness(connection, "judged", contract.critical)
