"""A picture, with what the server says about it and what was asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tessera.contract import Info
from tessera.errors import brief
from tessera_client.metadata import texts_of

PNG = "PNG"


@dataclass(frozen=True)
class Result:
    """A picture and what the server says about it.

    Attributes:
        image: the picture.
        info: what was done for it.
        prompt: what was asked for.
        settings: keywords that draw the same picture again: those that were given, and the seed,
            steps, guidance, scheduler and size that were used.
    """

    image: Image.Image
    info: Info
    prompt: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """How it was made, as text chunks of a PNG by their keyword."""
        return texts_of(self.prompt, self.settings, self.info)

    def to_bytes(
        self, form: str = PNG, *, more: Mapping[str, str] | None = None, **options: Any
    ) -> bytes:
        """The picture as a file; a PNG says how it was made (`texts`).

        Args:
            form: of the file, as Pillow calls it.
            more: further text chunks of a PNG, by keyword.
            options: of Pillow's writer, as `quality`.
        """
        if form.upper() == PNG:
            chunks = PngInfo()
            for keyword, text in {**self.texts(), **(more or {})}.items():
                chunks.add_itxt(keyword, text)
            options = {"pnginfo": chunks} | options
        sink = io.BytesIO()
        self.image.save(sink, form, **options)
        return sink.getvalue()

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the picture to a file of the kind that its name says; see `to_bytes`.

        Raises:
            ValueError: the name says none.
            OSError: it cannot be written.
        """
        Path(path).write_bytes(self.to_bytes(format_of(path), **options))


def format_of(path: str | os.PathLike[str]) -> str:
    """The kind of file that a name stands for, as Pillow calls it.

    Raises:
        ValueError: it stands for none that pictures can be written to.
    """
    suffix = Path(path).suffix.lower()
    form = Image.registered_extensions().get(suffix, "")
    if form not in Image.SAVE:
        name = brief(os.fspath(path))
        raise ValueError(f"the file is {name}; accepted: a name like out.png, .jpg or .webp")
    return form
