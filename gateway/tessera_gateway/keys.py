"""Keys: who may use the gateway, and how much.

A key is a random token of 256 bits; the file has its SHA-256. (A slow hash is for passwords, which
can be guessed.) Knows the file's form and counts what each key does. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.contract import JOB_ACTIONS
from tessera.contract.limits import DEFAULT_PRIORITY, PRIORITIES
from tessera.errors import TesseraError, brief

PREFIX = "tsr-"
WINDOW_S = 60.0
EVERYBODYS = {
    "templates": ("register",),
    "jobs": tuple(action for action in JOB_ACTIONS if action != "load"),
}
"""What keys may do that are no operator's, by the model: no action that tells ids of others."""


class Key(BaseModel):
    """A key of the file.

    Attributes:
        name: for the operator; the log has it.
        sha256: of the token, in hexadecimal.
        in_flight: most pictures at a time.
        per_minute: most pictures within a minute.
        priority: 1 (first) to 3.
        operator: whether it may list, evict and read templates, which are everybody's, and ask for
            the load, which has ids of all jobs and templates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    in_flight: int | None = Field(default=None, ge=1)
    per_minute: int | None = Field(default=None, ge=1)
    priority: int = Field(default=DEFAULT_PRIORITY, ge=1, le=PRIORITIES)
    operator: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    keys: list[Key]


class KeysError(TesseraError):
    """The file of keys cannot be used."""


class LimitReached(Exception):
    """A key has reached a limit; `seconds` is when to try again."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass
class _Use:
    in_flight: int = 0
    times: deque[float] = field(default_factory=deque)


ANYONE = Key(name="anyone", sha256="0" * 64, operator=True)
"""Stands for every caller of a gateway without keys."""


class Keyring:
    """The keys of a file, and what each of them does now.

    Args:
        file: of keys; without one, everybody is let in.
        clock: seconds; tests have another.

    Raises:
        KeysError: the file cannot be read, or has something that is not accepted.
    """

    def __init__(
        self, file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._keys = read_keys(file) if file else ()

    @property
    def open(self) -> bool:
        """Whether everybody is let in."""
        return self._file is None

    def reload(self) -> int:
        """Read the file again; how many keys there are now. The old ones stay if it fails.

        Raises:
            KeysError: see `Keyring`.
        """
        if self._file:
            self._keys = read_keys(self._file)
        return len(self._keys)

    def find(self, token: str) -> Key | None:
        """The key of a token. How long it takes says nothing of which one, or how much of it, was
        right.
        """
        digest, found = digest_of(token), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    @contextmanager
    def turn(self, key: Key, pictures: int) -> Iterator[None]:
        """Count a request for so many pictures as long as the body takes.

        Raises:
            LimitReached: one of the key's limits is.
        """
        use = self._uses.setdefault(key.name, _Use())
        now = self._clock()
        while use.times and use.times[0] <= now - WINDOW_S:
            use.times.popleft()
        self._check(key, use, pictures, now)
        use.in_flight += pictures
        if key.per_minute is not None:
            use.times.extend([now] * pictures)
        try:
            yield
        finally:
            use.in_flight -= pictures

    def _check(self, key: Key, use: _Use, pictures: int, now: float) -> None:
        if key.in_flight is not None and use.in_flight + pictures > key.in_flight:
            raise LimitReached(
                f"key {key.name} has {use.in_flight} pictures in flight and asks for {pictures} "
                f"more; accepted: {key.in_flight} at a time",
                1.0,
            )
        if key.per_minute is not None and len(use.times) + pictures > key.per_minute:
            over = len(use.times) + pictures - key.per_minute
            free_at = use.times[min(over, len(use.times)) - 1] + WINDOW_S if use.times else now
            raise LimitReached(
                f"key {key.name} has asked for {len(use.times)} pictures within a minute and asks "
                f"for {pictures} more; accepted: {key.per_minute} a minute",
                free_at - now,
            )


def refusal(key: Key, model: str, action: str) -> str | None:
    """Why a key may not do something, if so."""
    accepted = EVERYBODYS.get(model)
    if accepted is None or key.operator or action in accepted:
        return None
    return (
        f"ACTION is {brief(action)}; accepted: {', '.join(accepted)} with key {key.name}, and "
        "every ACTION with an operator's key"
    )


def digest_of(token: str) -> str:
    """The SHA-256 of a token, in hexadecimal."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def make_key(name: str) -> tuple[str, str]:
    """A new token, and the lines of the file that let it in."""
    token = PREFIX + secrets.token_urlsafe(32)
    key = Key(name=name, sha256=digest_of(token))
    return token, f'[[keys]]\nname = "{key.name}"\nsha256 = "{key.sha256}"\n'


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of a file (TOML).

    Raises:
        KeysError: it cannot be read, or has something that is not accepted.
    """
    try:
        content = _File.model_validate(tomllib.loads(file.read_text()))
    except (OSError, ValueError) as error:  # pydantic's and TOML's errors are ValueErrors, too
        raise KeysError(f"keys {file}: {_reason(error)}") from None
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in content.keys]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise KeysError(f"keys {file}: two keys have the {what} {twice[0]}")
    return tuple(content.keys)


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
