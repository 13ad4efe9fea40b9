"""Does everything that went in come out? The hub's account against the tills' own.

The tills' books are kept without asking Scout: baskets and lines that an agent said OK to. The
rest is what the hub's API says. Not its job: waiting, printing a screen.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scout_shared import answers

TABLES = (
    "bronze.transaction_logs",
    "bronze.product_catalog",
    "bronze.demographic_data",
    "bronze.campaign_data",
    "bronze.store_locations",
    "bronze.device_readings",
    "silver.transactions_cleaned",
    "silver.customer_profiles",
    "silver.product_hierarchy",
    "silver.device_readings_hourly",
    "gold.customer_360",
    "gold.product_performance",
    "gold.seasonal_patterns",
    "platinum.demand_forecasting",
)
"""What must hold rows at the end of a replay; the data set has input for each of them."""


FORECASTS = "platinum.demand_forecasting"
FORECAST_DAYS = 35
"""With so many days of sales the baseline must answer; with few it rightly abstains."""


@dataclass(frozen=True, slots=True)
class Sold:
    """What the tills were told OK, by their own books."""

    baskets: int
    lines: int


@dataclass(frozen=True, slots=True)
class TableLine:
    """One table in the closing list."""

    dataset: str
    rows: int | None
    age_seconds: float | None
    why_empty: str = ""
    """Why it rightly holds nothing."""


@dataclass(frozen=True, slots=True)
class Account:
    """The closing account; ``missing`` is empty when nothing is missing."""

    sold: Sold
    equation: tuple[answers.ReconciliationRow, ...]
    tables: tuple[TableLine, ...]
    silver_lines: int | None
    quarantined_lines: int
    missing: tuple[str, ...]
    as_of: dt.datetime

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "ok": not self.missing,
            "missing": list(self.missing),
            "as_of": self.as_of.isoformat(),
            "sold": {"baskets": self.sold.baskets, "lines": self.sold.lines},
            "silver_lines": self.silver_lines,
            "quarantined_lines": self.quarantined_lines,
            "equation": {row.kind: _counts(row) for row in self.equation},
            "tables": {
                line.dataset: {
                    "rows": line.rows,
                    "age_seconds": line.age_seconds,
                    "why_empty": line.why_empty,
                }
                for line in self.tables
            },
        }


def _counts(row: answers.ReconciliationRow) -> dict[str, int]:
    return {k: v for k, v in dataclasses.asdict(row).items() if type(v) is int}


def equation(row: answers.ReconciliationRow) -> str:
    """The reconciliation of one kind of record in one line."""
    unreported = f" + unreported {row.unreported:,}" if row.unreported else ""
    return (
        f"{row.kind}: produced {row.produced:,}{unreported} = landed {row.landed:,}"
        f" + duplicate {row.duplicate:,} + quarantined {row.quarantined:,}"
        f" + excluded {row.excluded:,} + given up {row.given_up:,} + in transit {row.in_transit:,}"
        f" + pending {row.pending:,} + remainder {row.remainder:,}"
    )


def settled(row: answers.ReconciliationRow) -> bool:
    """Whether nothing of this kind is under way."""
    return not (row.unreported or row.in_transit or row.pending or row.remainder)


def close(
    *,
    sold: Sold,
    history_days: int,
    reconciliation: answers.Reconciliation,
    tables: answers.Tables,
    quarantined: Iterable[answers.QuarantineGroup],
    files: Sequence[tuple[str, int, int]],
) -> Account:
    """The closing account.

    Args:
        history_days: from the first to the last sale of the store with the longest history.
        files: dataset, rows in the file, rows that landed or were rejected; per uploaded file.
    """
    missing: list[str] = []
    rows = {row.kind: row for row in reconciliation.totals}
    documents = rows.get("documents")
    if documents is None:
        missing.append("the hub has heard of no document")
    elif documents.produced != sold.baskets:
        missing.append(
            f"the tills were told OK for {sold.baskets:,} baskets, the agents account for "
            f"{documents.produced:,}"
        )
    if not reconciliation.adds_up:
        missing.append("the equation has a remainder")
    missing += [f"not settled: {equation(row)}" for row in rows.values() if not settled(row)]
    found = {table.dataset: table for table in tables.tables}
    lines = tuple(_table_line(name, found.get(name), history_days) for name in TABLES)
    missing += [f"{line.dataset} is empty" for line in lines if not (line.rows or line.why_empty)]
    silver = next(line.rows for line in lines if line.dataset == "silver.transactions_cleaned")
    put_aside = sum(
        group.rows for group in quarantined if group.dataset == "silver.transactions_cleaned"
    )
    if documents is not None and documents.duplicate == 0 and documents.excluded == 0:
        if (silver or 0) + put_aside != sold.lines:
            missing.append(
                f"the tills were told OK for {sold.lines:,} lines, silver has {silver or 0:,} and "
                f"quarantine {put_aside:,}"
            )
    else:
        missing.append("documents were doubled or left out on the way")
    missing += [
        f"{dataset}: {given:,} rows were uploaded, the hub accounts for {kept:,}"
        for dataset, given, kept in files
        if given != kept
    ]
    return Account(
        sold=sold,
        equation=tuple(rows.values()),
        tables=lines,
        silver_lines=silver,
        quarantined_lines=put_aside,
        missing=tuple(missing),
        as_of=reconciliation.as_of,
    )


def _table_line(name: str, table: answers.Table | None, history_days: int) -> TableLine:
    rows, age = (table.rows, table.age_seconds) if table else (None, None)
    why = ""
    if name == FORECASTS and rows == 0 and history_days < FORECAST_DAYS:
        why = f"abstains: {history_days} days of sales are too few for a back-test"
    return TableLine(name, rows, age, why)
