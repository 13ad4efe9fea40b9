"""Counters of the agent, for Prometheus and for the hello. Units end the names.

Not its job: reading the buffer at other times than a scrape.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from scout_edge.buffer import Buffer
from scout_shared.errors import TransientError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AgentMetrics:
    """One set per agent, in a registry of its own."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.registry = CollectorRegistry()
        self.started = time.monotonic()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"scout_edge_{name}", text, labels, registry=self.registry)

        self.accepted_records = counter(
            "accepted_records_total", "Records accepted from sources.", ("kind",)
        )
        self.duplicate_records = counter(
            "duplicate_records_total", "Records of repeated requests, stored before."
        )
        self.refused_requests = counter(
            "refused_requests_total", "Requests refused at the HTTP door.", ("status",)
        )
        self.sent_segments = counter("sent_segments_total", "Segments sent, repetitions included.")
        self.sent_bytes = counter("sent_bytes_total", "Bytes of the segments sent.")
        self.timeouts = counter(
            "receipt_timeouts_total", "Receipts that did not come in time: sent again."
        )
        self.reconnects = counter("reconnects_total", "Connections to the broker that ended.")
        self.fallback_posts = counter(
            "fallback_posts_total", "Requests that the hub answered over HTTPS, MQTT being blocked."
        )
        self.incidents = counter(
            "receipt_incidents_total", "Receipts that cannot be: a twin or an old copy."
        )
        self.source_failures = counter(
            "source_failures_total", "Times a source failed and was started again.", ("source",)
        )
        self.unreadable_records = counter(
            "unreadable_records_total", "What a source could not read; no value given.", ("source",)
        )
        self.dropped_rejects = counter(
            "dropped_rejects_total", "Kept unreadable lines, dropped at the limit.", ("source",)
        )
        self.clock_jumps = counter(
            "clock_jumps_total", "Jumps of the wall clock, either way, against the monotonic one."
        )
        self.shaped_readings = counter(
            "shaped_readings_total", "Readings that shaping left out or merged.", ("source",)
        )
        self.connected = Gauge(
            "scout_edge_connected_ratio",
            "1 while connected to the broker.",
            registry=self.registry,
        )
        self.fallback = Gauge(
            "scout_edge_fallback_ratio",
            "1 while HTTPS is used because MQTT does not get through.",
            registry=self.registry,
        )
        self.budget = Gauge(
            "scout_edge_budget_bytes",
            "Bytes that the metered link may carry in a day; 0: no limit.",
            registry=self.registry,
        )
        self.budget_used = Gauge(
            "scout_edge_budget_used_bytes",
            "Bytes of it that are used today.",
            registry=self.registry,
        )
        self.receipt_seconds = Histogram(
            "scout_edge_receipt_seconds",
            "From the broker's acknowledgement of a segment to the hub's receipt.",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120),
            registry=self.registry,
        )
        self.registry.register(_BufferCollector(buffer))

    def text(self) -> bytes:
        """The exposition text of ``GET /metrics``."""
        return generate_latest(self.registry)

    def counters(self) -> dict[str, int]:
        """Event counts since the start, for the hello."""
        personal = self._buffer.privacy.counted
        return {
            **{f"privacy_{what}_fields": count for what, count in sorted(personal.items())},
            "refused_requests": _total(self.refused_requests),
            "duplicate_records": _total(self.duplicate_records),
            "sent_segments": _total(self.sent_segments),
            "receipt_timeouts": _total(self.timeouts),
            "receipt_incidents": _total(self.incidents),
            "fallback_posts": _total(self.fallback_posts),
            "reconnects": _total(self.reconnects),
            "source_failures": _total(self.source_failures),
            "unreadable_records": _total(self.unreadable_records),
            "clock_jumps": _total(self.clock_jumps),
            **self._of_budget(),
        }

    def _of_budget(self) -> dict[str, int]:
        """Nothing where there is none."""
        (budget,) = self.budget.collect()
        (used,) = self.budget_used.collect()
        if not (most := int(budget.samples[0].value)):
            return {}
        return {"budget_bytes": most, "budget_used_bytes": int(used.samples[0].value)}


class _BufferCollector(Collector):
    """Asks the buffer at each scrape."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Gauges of the buffer; none while it is closed."""
        try:
            status = self._buffer.status()
        except TransientError:
            return
        oldest = status.oldest_unsent_ms
        for name, text, value in (
            ("backlog_records", "Records the hub has not confirmed.", status.backlog_records),
            ("unsealed_records", "Records that have no sequence yet.", status.unsealed_records),
            ("buffer_bytes", "Size of the buffer file with its WAL.", status.buffer_bytes),
            ("buffer_max_bytes", "Size that the file may have.", status.max_bytes),
            (
                "oldest_unsent_seconds",
                "Age of the oldest record that the hub has not confirmed, by the wall clock.",
                0.0 if oldest is None else time.time() - oldest / 1000,
            ),
            *(
                (
                    f"privacy_{what}_fields",
                    f"Personal fields {what} before they were stored.",
                    count,
                )
                for what, count in sorted(self._buffer.privacy.counted.items())
            ),
            ("fenced_ratio", "1: the file is an old copy or has a twin.", int(status.fenced)),
            ("damaged_segments", "Segments whose bytes changed.", status.damaged_segments),
            (
                "given_up_records",
                "Records accepted and lost, each declared to the hub.",
                status.given_up_records,
            ),
        ):
            yield GaugeMetricFamily(f"scout_edge_{name}", text, value)
        yield CounterMetricFamily(
            "scout_edge_watermark_sequence",
            "Sequence up to which the hub has all.",
            status.watermark,
        )

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: else the registry would collect once, at registration."""
        return ()


def _total(metric: Counter) -> int:
    return int(
        sum(
            sample.value
            for family in metric.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        )
    )
