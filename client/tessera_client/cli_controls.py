"""The option that names ControlNets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from tessera.contract import PREPROCESSORS, RESIZES
from tessera_client.controls import Control
from tessera_client.pictures import read_picture
from tessera_client.terminal import ADDONS, option

_FORM = (
    "NAME=FILE[,scale=S][,start=A][,end=B][,preprocess=P][,resize=R][,low=L][,high=H][,mode=M]"
    "[,guess_mode=true]"
)


def _mode(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() else text


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_KINDS: dict[str, Callable[[str], Any]] = {
    "scale": float,
    "start": float,
    "end": float,
    "preprocess": str,
    "resize": str,
    "low": float,
    "high": float,
    "mode": _mode,
    "guess_mode": _flag,
}

Controls = Annotated[
    list[str] | None,
    option(
        ADDONS,
        "--control",
        metavar=_FORM.partition("[")[0] + "[,KEY=VALUE]...",
        help="Apply a ControlNet with its control image (repeatable). Keys: scale (1), start and "
        f"end (shares of the steps), preprocess ({', '.join(PREPROCESSORS)}), low and high (of "
        f"canny), resize ({', '.join(RESIZES)}), mode (of a ControlNet-Union), guess_mode (true).",
    ),
]


def read_controls(texts: Sequence[str] | None) -> list[Control]:
    """What `--control` stands for.

    Raises:
        ValueError: one is not of that form.
        OSError: a picture cannot be read.
    """
    return [_read(text) for text in texts or ()]


def _read(text: str) -> Control:
    name, _, rest = text.partition("=")
    file, *parts = rest.split(",")
    if not name or not file:
        raise _wrong(text)
    settings: dict[str, Any] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in _KINDS or key in settings:
            raise _wrong(text)
        try:
            settings[key] = _KINDS[key](value)
        except ValueError:
            raise _wrong(text) from None
    return Control(name, read_picture(Path(file)), **settings)


def _wrong(text: str) -> ValueError:
    return ValueError(f"--control is {text!r}; accepted: {_FORM}, each key once")
