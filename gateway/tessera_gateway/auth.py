"""Who calls: every route but the documentation's depends on `caller`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from tessera_gateway.errors import ApiError, invalid, too_many
from tessera_gateway.keys import ANYONE, Key, Keyring, LimitReached
from tessera_gateway.state import gateway_of

_bearer = HTTPBearer(auto_error=False, description="A key of the operator's, if there are any.")


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key: Key
    keyring: Keyring

    @contextmanager
    def turn(self, pictures: int = 1, param: str = "n") -> Iterator[None]:
        """Count a request against the key's limits as long as the body takes.

        Args:
            pictures: that it asks for.
            param: the field that says how many.

        Raises:
            ApiError: 429 with Retry-After; 400 if it can never be let in.
        """
        for limit in (self.key.in_flight, self.key.per_minute):
            if limit is not None and pictures > limit:
                raise invalid(param, pictures, f"up to {limit} with key {self.key.name}")
        try:
            with self.keyring.turn(self.key, pictures):
                yield
        except LimitReached as reached:
            raise too_many(str(reached), reached.seconds) from None


async def caller(
    request: Request,
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The caller of a request.

    Raises:
        ApiError: 401, its key is missing or unknown.
    """
    keyring = gateway_of(request).keyring
    if keyring.open:
        return Caller(ANYONE, keyring)
    key = keyring.find(sent.credentials) if sent else None
    if key is None:
        raise ApiError(
            401,
            "the header Authorization has no known key; accepted: Bearer and a key of this server",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Caller(key, keyring)


Authenticated = Annotated[Caller, Depends(caller)]
"""The type of a route's parameter that is the caller."""
