"""Answers of the hub made by hand, for what a database cannot be brought to say in a test."""

from __future__ import annotations

import datetime as dt
from typing import Any

from scout_console.feed import Seen
from scout_shared import answers
from scout_shared.errors import ScoutError

NOW = dt.datetime(2026, 11, 23, 6, 3, 7, tzinfo=dt.UTC)
"""14:03:07 in Manila."""


def device(store_id: str = "343", status: str = "online", **given: Any) -> answers.Device:
    values: dict[str, Any] = {
        "device_id": f"till-{store_id}",
        "store_id": store_id,
        "zone": "Asia/Manila",
        "version": "0.1.0",
        "lifecycle": "active",
        "status": status,
        "since": NOW - dt.timedelta(minutes=12),
        "first_seen_at": NOW - dt.timedelta(days=40),
        "last_seen_at": NOW - dt.timedelta(seconds=3),
        "hello_received_at": NOW - dt.timedelta(minutes=12),
        "heartbeat_seconds": 5.0,
        "backlog_records": 0,
        "oldest_unsent_seconds": None,
        "buffer_bytes": 1_900_000,
        "clock_skew_seconds": 0.1,
        "clock_synced": True,
        "quarantine_open": 0,
        "given_up_records": 0,
        "damaged_files": 0,
    }
    return answers.Device(**{**values, **given})


def fleet(*devices: answers.Device) -> answers.Fleet:
    words = [d.status for d in devices if d.lifecycle != "retired"]
    return answers.Fleet(
        as_of=NOW,
        counts=answers.FleetCounts(
            devices=len(words),
            online=words.count("online"),
            late=words.count("late"),
            dark=words.count("dark"),
            unknown=words.count("unknown"),
            retired=len(devices) - len(words),
        ),
        devices=devices,
    )


def sums(kind: str = "documents", **given: Any) -> answers.ReconciliationRow:
    """A row whose figures obey the hub's two identities, unless ``given`` breaks them."""
    parts = {
        name: given.get(name, 0)
        for name in (
            "unreported",
            "landed",
            "duplicate",
            "quarantined",
            "excluded",
            "given_up",
            "undated",
            "in_transit",
            "pending",
            "remainder",
        )
    }
    received = sum(
        parts[n] for n in ("landed", "duplicate", "quarantined", "excluded", "given_up", "pending")
    )
    values: dict[str, Any] = {
        "kind": kind,
        "device_id": None,
        "store_id": None,
        "business_date": None,
        "received": received,
        "produced": received + parts["undated"] + parts["in_transit"] - parts["unreported"],
        "adds_up": parts["remainder"] == 0,
        **parts,
    }
    return answers.ReconciliationRow(**{**values, **given})


def forecast(**given: Any) -> answers.ForecastStatus:
    values: dict[str, Any] = {
        "status": "baseline",
        "label": "",
        "rows": 56,
        "methods": ("seasonal_naive",),
        "backends": ("hub",),
        "as_of_date": NOW.date(),
        "training_from": NOW.date() - dt.timedelta(days=56),
        "training_to": NOW.date() - dt.timedelta(days=1),
        "wape_ratio": 0.21,
        "coverage_ratio": 0.8,
        "loaded_at": NOW,
    }
    return answers.ForecastStatus(**{**values, **given})


def overview(**given: Any) -> answers.Overview:
    values: dict[str, Any] = {
        "as_of": NOW,
        "status": "ok",
        "reasons": (),
        "version": "0.1.0",
        "fleet": fleet(device()).counts,
        "layers": (),
        "adds_up": True,
        "reconciliation": (sums(landed=15_212),),
        "quarantine_open": 0,
        "quarantine_records": 0,
        "errors_open": 0,
        "errors_worst": None,
        "errors_since": None,
        "forecast": forecast(),
        "components": (),
    }
    return answers.Overview(**{**values, **given})


def seen(value: Any, *, age_seconds: float = 0.0, failure: ScoutError | None = None) -> Seen[Any]:
    return Seen(value=value, age_seconds=age_seconds, failure=failure)
