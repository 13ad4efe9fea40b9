"""The error tree of all Scout programs.

    ScoutError(message, hint)
    ├── ConfigError      the operator must change a setting, a file or the machine
    ├── TransientError   trying again later is safe and may help
    └── PermanentError   trying again cannot help; the input or the code must change
        └── WireError    bytes that are not a segment or a receipt of ours

The module that imports a library translates its exceptions into these, once, with ``from``.
"""


class ScoutError(Exception):
    """Scout failed: what failed, with which value, and what to do about it.

    Args:
        message: what failed and with which value.
        hint: the next step for a person, as an instruction; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(ScoutError):
    """A setting, a file or the machine must be changed by a person."""

    exit_code = 2


class TransientError(ScoutError):
    """A retry is safe and may help."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class PermanentError(ScoutError):
    """A retry cannot help."""

    exit_code = 65  # EX_DATAERR of sysexits.h


class WireError(PermanentError):
    """The bytes are not what the wire format says they must be.

    ``reason`` is a short machine-readable word (``crc_mismatch``, ``truncated`` …), used as the
    quarantine reason at the hub.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
