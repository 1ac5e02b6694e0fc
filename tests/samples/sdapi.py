"""A caller of `/sdapi/v1`."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tessera.types import Array
from tests.samples.raw_http import Answer, send


@dataclass(frozen=True)
class FrontEnd:
    """Sends what a front end would, with its headers."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, method: str, path: str, content: Any = None) -> Answer:
        """The answer, whatever it is."""
        body = None if content is None else json.dumps(content).encode()
        kind = {"Content-Type": "application/json"} if body else {}
        return send(self.url, method, f"/sdapi/v1/{path}", body, {**self.headers, **kind})

    def get(self, path: str) -> Any:
        """The JSON of an answer to GET."""
        return _read(self.send("GET", path))

    def post(self, path: str, content: Any) -> Any:
        """The JSON of an answer to POST."""
        return _read(self.send("POST", path, content))


def _read(answer: Answer) -> Any:
    assert answer.status == 200, answer.body[:500]
    return json.loads(answer.body)


def opened(data: str) -> Image.Image:
    """The picture in base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    picture.load()
    return picture


def pixels(data: str) -> Array:
    """(h, w, 3) of the picture in base64."""
    return np.asarray(opened(data).convert("RGB"))


def file_of(picture: Image.Image | Array) -> str:
    """A PNG in base64."""
    sink = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(sink, "PNG")
    return base64.b64encode(sink.getvalue()).decode()
