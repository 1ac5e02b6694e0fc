"""What a request asks for, as far as it decides where the request is served best.

A peek never fails because of what a tensor says: a value that cannot be read is left out, and the
worker answers with the error that one server would answer with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessera.contract import MAX_JOB_ID, MaskKind
from tessera.contract.crops import Box, filled
from tessera.contract.limits import MAX_EDIT_SIDE, MAX_REGIONS
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.masks import Edited, check_room, edited_of
from tessera_gateway.fleet.wire import Tensor
from tessera_gateway.kserve.head import read_inference
from tessera_gateway.kserve.limits import LIMITS, Limits

WORDS = ("PROMPT", "NEGATIVE_PROMPT", "PROMPT_SYNTAX", "CLIP_SKIP", "LORAS")
"""Inputs of edits that recordings with a prompt depend on, without ControlNets."""


@dataclass(frozen=True)
class Peek:
    """A request. What it does not say is `None` or empty.

    Attributes:
        action: of `jobs`, `templates` and `adapters`.
        width, height: in pixels; of an edit its picture's with the room around it, but of one that
            draws a crop what is asked for.
        template: id of the template; of an image that came with the request, the id that the worker
            will give it.
        image: whether that image came along.
        mask: share of the pixels that may change; `None` for a generation.
        edited: which ones; `None` if the bytes do not say.
        padding: pixels around the mask, of an edit that draws a crop.
        room: EXTEND.
        regions: further masks with a prompt of their own.
        soft: whether masks say how strongly.
        loras: (name, weight) of each, sorted.
        controls: names, sorted, each once.
        copies: workers that are to have a template that is registered.
        words: of an edit and a registration, what recordings of its own depend on: `WORDS`.
    """

    model: str = ""
    action: str = ""
    job: str = ""
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    guidance: float | None = None
    strength: float | None = None
    scheduler: str = ""
    mode: str = ""
    template: str = ""
    image: bool = False
    mask: float | None = None
    edited: Edited | None = None
    padding: int | None = None
    room: Box | None = None
    regions: int = 0
    soft: bool = False
    quality: str = ""
    loras: tuple[tuple[str, float], ...] = ()
    controls: tuple[str, ...] = ()
    copies: int | None = None
    words: tuple[Tensor, ...] = field(default=(), compare=False, repr=False)

    @property
    def draws(self) -> bool:
        """Whether it asks for a picture."""
        return self.model in ("generate", "edit")

    @property
    def framed(self) -> bool:
        """Whether what is drawn is another picture than the template: a recording of that is of no
        use to it.
        """
        return self.padding is not None or (self.room is not None and not self.image)

    @property
    def registers(self) -> bool:
        """Whether it has a template recorded."""
        return self.model == "templates" and self.action == "register"


def peek_grpc(data: bytes | memoryview) -> Peek:
    """A peek at the bytes of a `ModelInferRequest`.

    Raises:
        wire.Malformed: they are none.
    """
    read = wire.read_inference(data)
    return peek(read.model, read.inputs)


def peek_http(
    model: str, head: int | None, body: bytes | memoryview, limits: Limits = LIMITS
) -> Peek:
    """A peek at the body of an inference over HTTP; see `tensors_in`."""
    return peek(model, tensors_in(model, head, body, limits))


def tensors_in(
    model: str, head: int | None, body: bytes | memoryview, limits: Limits = LIMITS
) -> list[Tensor]:
    """The tensors of an inference over HTTP.

    Args:
        model: its name, from the path.
        head: bytes of JSON in front of binary tensors; `None` if all of it is JSON.
        body: the body.
        limits: how much it may bring.

    Raises:
        InvalidInput: the JSON is not accepted.
    """
    view = memoryview(body)
    at = len(view) if head is None else head
    tensors = []
    for each in read_inference(model, bytes(view[:at]), limits).inputs:
        data: memoryview | bytes | None = each.data
        if data is None:
            data, at = view[at : at + each.size], at + each.size
        tensors.append(Tensor(each.spec.name, each.shape, data))
    return tensors


def peek(model: str, tensors: Sequence[Tensor]) -> Peek:
    """A peek at a request's tensors."""
    found = Peek(model)
    for tensor in tensors:
        reader = _READERS.get(tensor.name)
        if reader is None or tensor.data is None:
            continue
        try:
            found = replace(found, **reader(tensor))
        except (ValueError, TypeError, LookupError, AttributeError, struct.error, RecursionError):
            continue
    by_name = {tensor.name: tensor for tensor in tensors}
    if model in ("edit", "templates"):
        found = replace(found, words=_words(by_name))
    with contextlib.suppress(ValueError, LookupError):
        if model == "edit":
            found = _edit(found, by_name)
    with contextlib.suppress(ValueError, LookupError):
        if "IMAGE" in by_name and found.padding is None:
            found = replace(found, **_image(by_name["IMAGE"], found.room))
    return found


def _words(tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Copies, so that nobody keeps a whole request for them."""
    there = (tensors[name] for name in WORDS if name in tensors)
    return tuple(replace(each, data=bytes(each.data)) for each in there if each.data is not None)


def _edit(found: Peek, tensors: Mapping[str, Tensor]) -> Peek:
    """What an edit may change, and the size of its picture."""
    edited = edited_of(tensors, soft=found.soft, room=found.room)
    if edited is None:  # all of a template, whose size is not known here
        of_template = "TEMPLATE" in tensors and "MASK" not in tensors
        return replace(found, mask=1.0) if of_template else found
    found = replace(found, edited=edited, mask=edited.share)
    return (
        found
        if found.padding is not None
        else replace(found, width=edited.width, height=edited.height)
    )


def peek_values(model: str, values: Mapping[str, Any]) -> Peek:
    """A peek at the values of a call of KServe's generate extension, which has no tensors."""
    return peek(model, tensors_of(values))


def tensors_of(values: Mapping[str, Any]) -> list[Tensor]:
    """Of such values, what would be their tensors. Those that have none are left out."""
    tensors = []
    for name, value in values.items():
        try:
            data = struct.pack(_FORMS[name], value) if name in _FORMS else _bytes_of(value)
        except (struct.error, AttributeError, TypeError):
            continue
        tensors.append(Tensor(name, (1, 1), data))
    return tensors


def _bytes_of(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


def _number(name: str) -> Callable[[Tensor], dict[str, Any]]:
    form = struct.Struct(_FORMS[name])
    return lambda tensor: {name.lower(): form.unpack_from(tensor.data or b"")[0]}


def _text_of(tensor: Tensor) -> str:
    data = tensor.data or b""
    (length,) = struct.unpack_from("<I", data)
    if length != len(data) - 4:
        raise ValueError("the length of a text is wrong")
    return str(data[4:], "utf-8")


def _text(name: str) -> Callable[[Tensor], dict[str, Any]]:
    return lambda tensor: {name: _text_of(tensor)}


def _job(tensor: Tensor) -> dict[str, Any]:
    """An id that no worker accepts is left out: a router remembers ids."""
    job = _text_of(tensor)
    return {"job": job} if len(job) <= MAX_JOB_ID else {}


def _loras(tensor: Tensor) -> dict[str, Any]:
    listed = [(str(e["name"]), float(e.get("weight", 1.0))) for e in json.loads(_text_of(tensor))]
    return {"loras": tuple(sorted(listed))}


def _controls(tensor: Tensor) -> dict[str, Any]:
    return {"controls": tuple(sorted({str(e["name"]) for e in json.loads(_text_of(tensor))}))}


def _strength(tensor: Tensor) -> dict[str, Any]:
    """The number that a caller wrote, as a worker reads it: 0.7, where FP32 holds 0.699999988."""
    return {"strength": float(str(np.float32(struct.unpack_from("<f", tensor.data or b"")[0])))}


def _room(tensor: Tensor) -> dict[str, Any]:
    left, top, right, bottom = struct.unpack("<4i", tensor.data or b"")
    within = all(0 <= side <= MAX_EDIT_SIDE for side in (left, top, right, bottom))
    return {"room": (left, top, right, bottom)} if within else {}


def _padding(tensor: Tensor) -> dict[str, Any]:
    (padding,) = struct.unpack_from("<i", tensor.data or b"")
    return {"padding": padding} if 0 <= padding <= MAX_EDIT_SIDE else {}


def _image(tensor: Tensor, room: Box | None) -> dict[str, Any]:
    """The id that a worker gives an image with the room around it and filled up, see
    `tessera.requests.edit.template_id`.
    """
    height, width = tensor.shape[1:3]
    left, top, right, bottom = room = room or (0, 0, 0, 0)
    check_room((height, width), room)
    taller, wider = height + top + bottom, width + left + right
    more = (filled(taller) - taller, filled(wider) - wider)
    data, shape = tensor.data or b"", tensor.shape[1:]
    if any((*room, *more)) and height and width:
        pixels = np.frombuffer(data, np.uint8).reshape(shape)
        pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), "symmetric")
        pixels = np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), "symmetric")
        data, shape = pixels.tobytes(), pixels.shape
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    digest.update(data)
    return {"template": digest.hexdigest()[:16], "image": True}


_FORMS = {
    "STEPS": "<i",
    "WIDTH": "<i",
    "HEIGHT": "<i",
    "GUIDANCE": "<f",
    "STRENGTH": "<f",
    "PADDING_MASK_CROP": "<i",
    "COPIES": "<i",
}
"""Numbers, by the names of their tensors."""

_READERS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "ACTION": _text("action"),
    "JOB_ID": _job,
    "STEPS": _number("STEPS"),
    "WIDTH": _number("WIDTH"),
    "HEIGHT": _number("HEIGHT"),
    "GUIDANCE": _number("GUIDANCE"),
    "STRENGTH": _strength,
    "SCHEDULER": _text("scheduler"),
    "MODE": _text("mode"),
    "TEMPLATE": _text("template"),
    "LORAS": _loras,
    "CONTROLS": _controls,
    "MASK_KIND": lambda tensor: {"soft": _text_of(tensor) == MaskKind.SOFT},
    "EDIT_QUALITY": _text("quality"),
    "PADDING_MASK_CROP": _padding,
    "EXTEND": _room,
    "REGION_PROMPTS": lambda tensor: {"regions": min(max(0, tensor.shape[-1]), MAX_REGIONS)},
    "COPIES": _number("COPIES"),
}
