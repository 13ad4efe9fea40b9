"""The way of one source's records into the buffer: shaped, counted, with the place to go on at.

Not its job: reading anything; deciding what a failed append means for the origin.
"""

from __future__ import annotations

from collections.abc import Sequence

from scout_edge.buffer import Buffer, Offset
from scout_edge.metrics import AgentMetrics
from scout_shared import logs
from scout_shared.wire import Document, Reading

log = logs.get("source")


class Outlet:
    """Of one source, used by its thread only.

    Args:
        name: of the source; its state stands under it in the buffer.
    """

    def __init__(self, buffer: Buffer, measured: AgentMetrics, name: str) -> None:
        self.buffer = buffer
        self.name = name
        self._metrics = measured

    def state(self) -> str | None:
        """What was committed with the last records that came with a state, or None."""
        return self.buffer.offset(self.name)

    def append_readings(self, readings: Sequence[Reading], *, state: str | None = None) -> None:
        """Store readings, all or none; returns when they are durable.

        Args:
            readings: in the order in which they were observed; may be empty.
            state: where the source goes on; committed with the readings.

        Raises:
            PermanentError: a reading cannot be stored; none was.
            TransientError: the buffer or the disk is full or failing; none was stored.
        """
        if readings or state is not None:
            self.buffer.append_readings(readings, offset=self._offset(state))
        if readings:
            self._metrics.accepted_records.labels("readings").inc(len(readings))

    def append_documents(self, documents: Sequence[Document], *, state: str | None = None) -> None:
        """The same for documents; their ``business_day`` is that of ``buffer.calendar``."""
        if documents or state is not None:
            self.buffer.append_documents(documents, offset=self._offset(state))
        if documents:
            self._metrics.accepted_records.labels("documents").inc(len(documents))

    def unreadable(self, reason: str, records: int = 1, **where: object) -> None:
        """Count and log what the origin gave and nobody can read; no value stands in for it."""
        self._metrics.unreadable_records.labels(self.name).inc(records)
        log.warning("record.unreadable", source=self.name, reason=reason, records=records, **where)

    def _offset(self, state: str | None) -> Offset | None:
        return None if state is None else Offset(self.name, state)
