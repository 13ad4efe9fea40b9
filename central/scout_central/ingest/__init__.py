"""The hub's door: segments in, one transaction for many, receipts back after the commit."""

from scout_central.ingest.committer import Committed, Committer
from scout_central.ingest.ledger import Outcome, StreamReceipt
from scout_central.ingest.receiver import Receiver
from scout_central.ingest.stored import Imported, import_export, ingest_segments

__all__ = [
    "Committed",
    "Committer",
    "Imported",
    "Outcome",
    "Receiver",
    "StreamReceipt",
    "import_export",
    "ingest_segments",
]
