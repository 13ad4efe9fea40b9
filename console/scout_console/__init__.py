"""The screens: hub client, presenters, web console, terminal."""

from scout_console.client import (
    DatabaseAwayError,
    HubAwayError,
    HubClient,
    HubFailedError,
    NotFoundError,
    NotPermittedError,
    NotSignedInError,
    RefusedError,
)

__all__ = [
    "DatabaseAwayError",
    "HubAwayError",
    "HubClient",
    "HubFailedError",
    "NotFoundError",
    "NotPermittedError",
    "NotSignedInError",
    "RefusedError",
]
