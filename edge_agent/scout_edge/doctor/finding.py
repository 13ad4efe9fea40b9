"""One finding of the doctor: what was looked at, how it is, and the next step."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``scout-edge doctor``."""

    check: str
    """Step and part, e.g. ``network.dns``; stable, for scripts."""
    level: str
    """OK, WARN (it works; look at it) or FAIL (it does not work)."""
    message: str
    """What was found, with the values."""
    next_step: str = ""
    """What a technician does; empty only when OK."""

    def __str__(self) -> str:
        line = f"{self.level:<4}  {self.check:<17} {self.message}"
        return f"{line}. Next: {self.next_step}" if self.next_step else line


def ok(check: str, message: str) -> Finding:
    """It works."""
    return Finding(check, OK, message)


def warn(check: str, message: str, next_step: str) -> Finding:
    """It works, and somebody should look at it."""
    return Finding(check, WARN, message, next_step)


def fail(check: str, message: str, next_step: str) -> Finding:
    """It does not work."""
    return Finding(check, FAIL, message, next_step)
