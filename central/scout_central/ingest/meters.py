"""Prometheus metrics of the ingest; the API's ``/metrics`` and ``scout-hub ingest`` serve them."""

from prometheus_client import Counter, Gauge, Histogram

from scout_central.ingest.committer import Committed
from scout_shared import logs

log = logs.get("ingest")

ARRIVALS = Counter(
    "scout_ingest_arrivals_total", "Messages committed, by what became of them", ["outcome"]
)
ROWS = Counter("scout_ingest_rows_total", "Rows landed in bronze")
QUARANTINED_RECORDS = Counter(
    "scout_ingest_quarantined_records_total", "Records that went to the quarantine"
)
DROPPED = Counter(
    "scout_ingest_dropped_total",
    "Messages dropped without receipt (the device sends them again), by reason",
    ["reason"],
)
QUEUE_BYTES = Gauge("scout_ingest_queue_bytes", "Bytes received and not committed yet")
COMMIT_SECONDS = Histogram(
    "scout_ingest_commit_seconds",
    "Time of one transaction",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
DATABASE_AWAY = Gauge("scout_ingest_database_away", "1 while commits fail and are tried again")
CONNECTED = Gauge("scout_ingest_broker_connected", "1 while the MQTT connection stands")
RECEIPTS = Counter("scout_ingest_receipts_total", "Receipts published")


def count(committed: Committed, seconds: float) -> None:
    """A commit that took so long, by whichever door its batch came."""
    COMMIT_SECONDS.observe(seconds)
    ROWS.inc(committed.rows)
    QUARANTINED_RECORDS.inc(committed.quarantined_records)
    for outcome in set(committed.outcomes):
        ARRIVALS.labels(outcome).inc(committed.outcomes.count(outcome))
    log.debug(
        "batch.committed",
        arrivals=len(committed.outcomes),
        rows=committed.rows,
        quarantined_records=committed.quarantined_records,
        seconds=round(seconds, 4),
    )
