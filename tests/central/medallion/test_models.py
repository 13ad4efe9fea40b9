"""Given / expect: each folder of ``cases`` has what bronze holds and what the tables must say.

``given.yaml``: sales (store, at, document) and files (table → records). ``expect.yaml``: per table
the rows, with the columns that matter to the case; no other rows may be there.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg.rows import dict_row

from scout_central.database import connect
from tests.central.medallion.tills import Tills, run

CASES = sorted((Path(__file__).parent / "cases").iterdir())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_given_expect(database: str, case: Path) -> None:
    given = yaml.safe_load((case / "given.yaml").read_text())
    tills = Tills(database)
    streams: dict[str, int] = {}
    for entry in given.get("sales", ()):
        store = entry["store"]
        if store not in streams:
            streams[store] = tills.stream(store)
        for day in range(entry.get("repeat_days", 1)):
            document = dict(entry["document"])
            document.setdefault("currency", "PHP")
            document.setdefault("transaction_id", f"{store}-{entry['at']}-{day}")
            at = dt.datetime.fromisoformat(entry["at"]) + dt.timedelta(days=day)
            tills.post(streams[store], document, at=at)
    for table, records in given.get("files", {}).items():
        tills.upload(table, records)
    run(database)
    expect = yaml.safe_load((case / "expect.yaml").read_text())
    with connect(database, application="test") as connection:
        for table, wanted in expect.items():
            cursor = connection.cursor(row_factory=dict_row)
            found = cursor.execute(f"select * from {table}".encode()).fetchall()
            columns = sorted({column for row in wanted for column in row})
            actual = [{c: plain(row[c]) for c in columns} for row in found]
            assert ordered(actual) == ordered([{c: r.get(c) for c in columns} for r in wanted]), (
                table
            )


def plain(value: Any) -> Any:
    """As YAML would write it."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    return value


def ordered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order that does not depend on the table's."""
    return sorted(found, key=lambda row: [str(value) for value in row.values()])
