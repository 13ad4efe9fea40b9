"""Scout's central hub: ingest, medallion, contracts, quality, lineage, predictions and the API."""

__version__ = "7.1.0"
