"""Logs: structlog events ``noun.verb_past`` on stderr, one line each.

Data goes to stdout, logs to stderr, secrets nowhere. ``json=True`` for machines (systemd, files),
else a line for people.
"""

from __future__ import annotations

import sys
import time
from collections.abc import MutableMapping
from typing import Any

import structlog

REPEAT_SECONDS = 30.0
_counts: dict[tuple[str, str], tuple[float, int]] = {}


def configure(*, json: bool = False, level: str = "info") -> None:
    """Set up logging for this process; call once, from ``cli.py``."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _thin_repeats,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get(name: str) -> Any:
    """A logger whose lines carry ``component=name``."""
    return structlog.get_logger(component=name)


def _thin_repeats(
    _logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A repeated warning or error is written once per REPEAT_SECONDS, with the count in between."""
    if method not in ("warning", "error"):
        return event
    key = (str(event.get("component")), str(event.get("event")))
    now = time.monotonic()
    since, held = _counts.get(key, (-REPEAT_SECONDS, 0))
    if now - since < REPEAT_SECONDS:
        _counts[key] = (since, held + 1)
        raise structlog.DropEvent
    _counts[key] = (now, 0)
    if held:
        event["repeated"] = held
    return event
