"""The way of one source's records into the buffer: shaped, counted, with the place to go on at.

The open windows of the shaping are committed with each append: what a source was told is durable
is, also when it waits in a window for others.
Not its job: reading anything; deciding what a failed append means for the origin.
"""

from __future__ import annotations

import itertools
import json
import operator
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scout_edge.buffer import Buffer, Offset
from scout_edge.metrics import AgentMetrics
from scout_edge.privacy import PrivacyError
from scout_edge.sources.shaping import MetricState, Shaped, Shaper, ShapeSettings, Window
from scout_shared import logs
from scout_shared.wire import Document, Reading, Span

PATIENCE_SECONDS = 60.0
"""Without a beat after which a source counts as hanging, unless its kind says otherwise."""

_CONTENTS = ("line", "payload", "start")
_QUOTED = re.compile(r"""(['"]).*\1""", re.DOTALL)

log = logs.get("source")


def runs(
    stamped: Iterable[tuple[Span | None, Reading]],
) -> list[tuple[Span | None, list[Reading]]]:
    """Readings, each with the span of its stamp, as one run per span, in their order."""
    return [
        (span, [reading for _, reading in run])
        for span, run in itertools.groupby(stamped, operator.itemgetter(0))
    ]


class Outlet:
    """Of one source, used by its thread only.

    Args:
        name: of the source; its state stands under it in the buffer.
        shape: rules for its readings.
        patience_seconds: without a beat after which the source counts as hanging.
    """

    def __init__(
        self,
        buffer: Buffer,
        measured: AgentMetrics,
        name: str,
        shape: Sequence[ShapeSettings] = (),
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.buffer = buffer
        self.name = name
        self.patience_seconds = patience_seconds
        self._beaten: float | None = None  # monotonic; ahead of now while it may wait
        self._metrics = measured
        self._shaper = Shaper(shape)
        stored = buffer.offset(name)
        state = {} if stored is None else json.loads(stored)
        self._at: str | None = state.get("at")
        self._states: Mapping[str, MetricState] = {
            metric: MetricState.decode(fields) for metric, fields in state.get("shape", {}).items()
        }
        self._opened: dict[str, float] = {}
        span = state.get("span")
        self._span = None if span is None else Span.decode(span)

    def beat(self, wait_seconds: float = 0.0) -> None:
        """The source moves; it may now wait for so long before its patience begins."""
        self._beaten = time.monotonic() + wait_seconds

    def wait(self, seconds: float) -> None:
        """The supervisor lets the source rest; one that never beat stays unjudged."""
        if self._beaten is not None:
            self.beat(seconds)

    @property
    def silent_seconds(self) -> float:
        """Since the last beat, from any thread; 0: never beaten, or it may still wait."""
        beaten = self._beaten
        return 0.0 if beaten is None else max(0.0, time.monotonic() - beaten)

    def state(self) -> str | None:
        """What was committed with the last records that came with a state, or None."""
        return self._at

    def append_readings(
        self,
        readings: Sequence[Reading],
        *,
        state: str | None = None,
        span: Span | None = None,
    ) -> None:
        """Store readings, all or none; returns when they, or the windows with them, are durable.

        Args:
            readings: in the order in which they were observed; may be empty.
            state: where the source goes on; committed with the readings.
            span: of the ``clock.stamp`` that the source took for them; None where they came with
                times of their own. All readings of one append have the same.

        Raises:
            PermanentError: a reading cannot be stored; none was.
            TransientError: the buffer or the disk is full or failing; none was stored.
        """
        self.wait(0.0)
        if readings and span != self._span:
            self.flush()  # a window holds the times of one clock
            self._span = span
        shaped = self._shaper.apply(self._states, readings)
        self._append(shaped, state)
        if shaped.overflowed:
            self.unreadable("a converted value is more than a float64 holds", shaped.overflowed)
        left_out = len(readings) - len(shaped.readings)
        if left_out > 0:
            self._metrics.shaped_readings.labels(self.name).inc(left_out)

    def append_documents(self, documents: Sequence[Document], *, state: str | None = None) -> None:
        """The same for documents; their ``business_day`` is that of ``buffer.calendar``.

        One that its privacy block or rules forbid is counted as unreadable and left out.
        """
        self.wait(0.0)
        documents = list(documents)
        while documents or state is not None:
            offset = None if state is None else self._offset(state, self._states)
            try:
                self.buffer.append_documents(documents, offset=offset)
            except PrivacyError as error:
                self.unreadable(error.message)
                del documents[error.document]
            else:
                self._at = self._at if state is None else state
                break
        if documents:
            self._metrics.accepted_records.labels("documents").inc(len(documents))

    def tick(self) -> None:
        """End windows that nothing came to for their length. Call it about once a second: it beats.

        Raises TransientError: the buffer refuses; the windows stay open.
        """
        self.beat()
        now, old = time.monotonic(), []
        for metric, state in self._states.items():
            if state.window is not None:
                rule = self._shaper.rule(metric)
                length = 0.0 if rule is None else rule.window_seconds
                if now - self._opened.setdefault(metric, now) >= length:
                    old.append(metric)
        if old:
            self._append(self._shaper.close(self._states, old), None)

    def flush(self) -> None:
        """End all windows: the source stops. Raises TransientError."""
        waiting = [metric for metric, state in self._states.items() if state.window is not None]
        if waiting:
            self._append(self._shaper.close(self._states, waiting), None)

    def unreadable(self, reason: str, records: int = 1, **where: object) -> None:
        """Count and log what the origin gave and nobody can read; no value stands in for it.

        With privacy rules nothing that it said is logged: what cannot be read may be personal.
        """
        if self.buffer.privacy.active:
            reason = _QUOTED.sub("'…'", reason)
            where = {key: value for key, value in where.items() if key not in _CONTENTS}
        self._metrics.unreadable_records.labels(self.name).inc(records)
        log.warning("record.unreadable", source=self.name, reason=reason, records=records, **where)

    def rejects_dropped(self, records: int, path: Path) -> None:
        """Count and log kept rejects that had to leave: their file is at its limit."""
        self._metrics.dropped_rejects.labels(self.name).inc(records)
        log.warning("rejects.dropped", source=self.name, records=records, kept=str(path))

    def _append(self, shaped: Shaped, state: str | None) -> None:
        changed = {m: s for m, s in shaped.states.items() if s is not self._states.get(m)}
        windows = any(s.window is not self._window(m) for m, s in changed.items())
        if shaped.readings or state is not None or windows:
            at = self._at if state is None else state
            keep = at is not None or bool(shaped.states)
            offset = self._offset(at, shaped.states) if keep else None
            self.buffer.append_readings(shaped.readings, offset=offset, span=self._span)
            self._at = at
        now = time.monotonic()
        for metric, after in changed.items():
            before = self._window(metric)
            if after.window is None:
                self._opened.pop(metric, None)
            elif before is None or before.start_ms != after.window.start_ms:
                self._opened[metric] = now
        self._states = shaped.states
        if shaped.readings:
            self._metrics.accepted_records.labels("readings").inc(len(shaped.readings))

    def _window(self, metric: str) -> Window | None:
        known = self._states.get(metric)
        return None if known is None else known.window

    def _offset(self, at: str | None, states: Mapping[str, MetricState]) -> Offset:
        shape = {metric: state.encode() for metric, state in states.items()}
        fields: dict[str, Any] = {"at": at, "shape": shape}
        if self._span is not None:
            fields["span"] = self._span.encode()
        return Offset(self.name, json.dumps(fields, separators=(",", ":")))
