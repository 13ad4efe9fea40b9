"""Waiting without sleeping blindly: poll a condition, fail with a sentence."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 10.0, message: str = "") -> T:
    """The first true value of ``condition``; AssertionError with ``message`` after ``timeout`` s.

    An AssertionError or OSError inside ``condition`` counts as "not yet" and is shown at the end.
    """
    deadline = time.monotonic() + timeout
    pause = 0.005
    last: object = None
    while True:
        try:
            last = value = condition()
            if value:
                return value
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() > deadline:
            what = message or getattr(condition, "__name__", "condition")
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {last!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False
