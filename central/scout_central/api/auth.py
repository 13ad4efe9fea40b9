"""Who is calling: a bearer token, its role and its stores.

A token is compared by its SHA-256, with every known one, in a time that does not tell how nearly.
The stores go with each transaction as claims (``reading``); roles say which doors open at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from scout_central.api.failures import RefusalError
from scout_central.config import ALL_STORES, Token

RANK = {"viewer": 1, "operator": 2, "admin": 3}
"""An uploader stands beside these: it may give files and see what became of them, nothing else."""

_bearer = HTTPBearer(auto_error=False, description="A token made by `scout-hub token`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request is done for."""

    name: str
    role: str
    stores: tuple[str, ...]

    @property
    def sees_all(self) -> bool:
        """Whether no store is hidden from it."""
        return ALL_STORES in self.stores

    @property
    def claims(self) -> str:
        """For ``request.jwt.claims``, as PostgREST and Supabase set it."""
        return json.dumps(
            {
                "role": "authenticated",
                "sub": self.name,
                "stores": list(self.stores),
                "scout_role": self.role,
            }
        )


HUB = Caller("scout-hub", "viewer", (ALL_STORES,))
"""The hub itself, for what it says about its own health."""


@dataclass(frozen=True, slots=True)
class TokenBook:
    """The tokens that are admitted."""

    tokens: tuple[Token, ...]

    @classmethod
    def of(cls, tokens: Sequence[Token]) -> TokenBook:
        """A book of these tokens."""
        return cls(tuple(tokens))

    def find(self, secret: str) -> Caller | None:
        """The bearer of ``secret``; every token is looked at, whatever matches."""
        found = [token for token in self.tokens if token.matches(secret)]
        if not found:
            return None
        return Caller(found[0].name, found[0].role, found[0].stores)


def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The bearer of the request's token. Raises RefusalError (401)."""
    if credentials is None:
        raise RefusalError(
            401,
            "not_signed_in",
            "the request carries no bearer token",
            "send 'Authorization: Bearer <token>'; make a token with: scout-hub token",
        )
    book: TokenBook = request.app.state.tokens
    found = book.find(credentials.credentials)
    if found is None:
        raise RefusalError(
            401,
            "unknown_token",
            "the hub does not know this token",
            "it may have been removed from hub.toml; make one with: scout-hub token",
        )
    return found


def needs(role: str, *, or_uploader: bool = False) -> Callable[[Caller], Caller]:
    """A dependency that admits ``role`` and those above it, and uploaders if said so."""

    def check(found: Annotated[Caller, Depends(caller)]) -> Caller:
        if RANK.get(found.role, 0) >= RANK[role] or (or_uploader and found.role == "uploader"):
            return found
        needed = f"{role} or uploader" if or_uploader else role
        raise RefusalError(
            403,
            "forbidden",
            f"this needs the role {needed}; the token {found.name!r} has the role {found.role}",
            f"ask an administrator for a token with the role {needed}",
        )

    return check


def _all_stores(found: Annotated[Caller, Depends(needs("viewer"))]) -> Caller:
    if found.sees_all:
        return found
    raise RefusalError(
        403,
        "forbidden",
        f"this shows figures of all stores; the token {found.name!r} may see some of them only",
        'ask an administrator for a token with stores = ["*"]',
    )


Viewer = Annotated[Caller, Depends(needs("viewer"))]
FleetViewer = Annotated[Caller, Depends(_all_stores)]
UploadViewer = Annotated[Caller, Depends(needs("viewer", or_uploader=True))]
Uploader = Annotated[Caller, Depends(needs("operator", or_uploader=True))]
Anybody = Annotated[Caller, Depends(caller)]
