"""The SQL of the API's reads: one file per question, in ``sql/``.

All run as ``authenticated`` (see ``reading``). Parameters are bound by name; a null cursor or
filter means "none". Paging is by key, never by offset.
"""

from __future__ import annotations

from importlib import resources


def _read(name: str) -> bytes:
    return (resources.files("scout_central.api") / "sql" / f"{name}.sql").read_bytes()


HEALTH = _read("health")
FLEET = _read("fleet")
STREAMS = _read("streams")
GAPS = _read("gaps")
LATEST_READINGS = _read("latest_readings")
RECONCILIATION = _read("reconciliation")
RUNS = _read("runs")
STEPS = _read("steps")
LAST_RUNS = _read("last_runs")
CATALOGUE = _read("catalogue")
COLUMNS = _read("columns")
SLAS = _read("slas")
LANDED_AT = _read("landed_at")
QUALITY = _read("quality")
FORECAST = _read("forecast")
QUARANTINE_GROUPS = _read("quarantine_groups")
QUARANTINE_ITEMS = _read("quarantine_items")
QUARANTINE_TOTAL = _read("quarantine_total")
ERRORS = _read("errors")
ERRORS_TOTAL = _read("errors_total")
DATASET_EXISTS = _read("dataset_exists")
UPSTREAM = _read("upstream")
DOWNSTREAM = _read("downstream")
ORIGIN_DOCUMENT = _read("origin_document")
ORIGIN_READINGS = _read("origin_readings")
ORIGIN_PRODUCT = _read("origin_product")
ORIGIN_CUSTOMER = _read("origin_customer")
UPLOADS = _read("uploads")
