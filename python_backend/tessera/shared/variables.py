"""How environment variables hold the values of settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.errors import BundleError, brief


@dataclass(frozen=True)
class Form:
    """How a variable holds a value: `read` raises `ValueError` for what is not `accepted`."""

    accepted: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str

    def parse(self, variable: str, text: str) -> Any:
        """The value that a variable's text stands for."""
        try:
            return self.read(text)
        except ValueError:
            raise BundleError(f"{variable} is {brief(text)}; accepted: {self.accepted}") from None

    def text(self, variable: str, value: Any) -> str:
        """Inverse of `parse`."""
        text = self.write(value)
        if text and self.parse(variable, text) != value:
            raise BundleError(f"{variable} cannot hold {brief(text)}; accepted: {self.accepted}")
        return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _switch(text: str) -> bool:
    return bool(("0", "1").index(text))


def listed(separator: str, element: Callable[[str], Any], accepted: str) -> Form:
    """Several values with a separator between."""
    return Form(
        accepted,
        lambda text: tuple(element(part) for part in text.split(separator) if part),
        lambda values: separator.join(map(str, values)),
    )


COUNT = Form("an integer from 0", _number)
BYTES = Form("a number of bytes, an integer from 0", _number)
PATH = Form("a path", Path)
SWITCH = Form("0, 1", _switch, lambda on: str(int(on)))
