"""What goes to a server and what comes back, without any network: values as tensors, answers as
dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, TypedDict

import numpy as np

from tessera.contract import JOBS, MAX_SEED, JobStatus, ModelSpec, TensorSpec
from tessera.errors import brief
from tessera.types import Array
from tessera_client.checks import integer_of, number_of, text_of, wrong_type, wrong_value
from tessera_client.controls import Control
from tessera_client.edits import Region
from tessera_client.wire import Call

_INTEGERS = {"INT32": (np.int32, 2**31 - 1), "INT64": (np.int64, MAX_SEED)}


@dataclass(frozen=True)
class Lora:
    """A LoRA to apply; `text_weight` replaces `weight` in the text encoders."""

    name: str
    weight: float = 1.0
    text_weight: float | None = None


class ManyOptions(TypedDict, total=False):
    """Keywords of `generate_many`, beside the seeds; what is left out (or `None`) is the server's
    default.

    Sizes are in pixels; `prompt_syntax` is weighted (brackets weigh words, long prompts have
    several chunks) or plain (as diffusers' pipelines read prompts); `clip_skip` is how many of the
    text encoders' last layers the prompt skips; `loras` are names, `Lora`s or
    dicts of its fields; `lora_policy` is exact, or bounded: the first steps may do without LoRAs
    that are not at hand; `priority` is 1 (first), 2 (the default) or 3; `controls` are
    `Control`s or dicts of its fields.
    """

    negative_prompt: str | None
    prompt_syntax: str | None
    clip_skip: int | None
    steps: int | None
    guidance: float | None
    width: int | None
    height: int | None
    scheduler: str | None
    loras: Sequence[Lora | str | Mapping[str, Any]]
    lora_policy: str | None
    priority: int | None
    controls: ControlList


class GenerateOptions(ManyOptions, total=False):
    """Keywords of `generate`: those of `generate_many`, and

    `seed`, which means what diffusers means by `torch.Generator("cpu").manual_seed(seed)`.
    """

    seed: int | None


class EditManyOptions(ManyOptions, total=False):
    """Keywords of `edit_many`: those of `generate_many`, and

    `strength`, above 0 and up to 1: the share of the steps that is run, from the template noised to
    that level; `mode`: auto, sparse or dense; `quality`: fast, balanced or best, of sparse edits;
    `template`: id of a known image instead of an image;
    `resize`: how an image that is larger than the server draws is edited (see
    `tessera_client.fitting.frame_of`): crop, scale, or not at all (pad, if left out).

    `mask_kind`: hard (light pixels are edited), or soft (each pixel of the mask says how strongly,
    from 0 to 255). `mask_fill`: what the masked part is before it is noised, at a strength below 1:
    original, blur (the colours around it) or noise. `mask_feather`: pixels inside the border of the
    mask within which the edit fades in, 4 if left out. `mask_tone`: drawn, or matched to the
    colours around the mask near its border. `padding_mask_crop`: only the mask and so many
    pixels around it are drawn, enlarged to `width` and `height` (if left out, to the image's size),
    and put back. `extend`:
    pixels of room to draw at the left, top, right and bottom of the image. With either of the two
    the server takes images of any size, and there is no `resize`. `regions`: further masks, each
    with a prompt of its own: `tessera_client.Region`s or dicts of its fields.
    """

    strength: float | None
    mode: str | None
    mask_kind: str | None
    mask_fill: str | None
    mask_feather: int | None
    mask_tone: str | None
    padding_mask_crop: int | None
    extend: Sequence[int] | None
    regions: Sequence[Region | Mapping[str, Any]] | None
    quality: str | None
    template: str | None
    resize: str | None


class EditOptions(EditManyOptions, GenerateOptions, total=False):
    """Keywords of `edit`: those of `edit_many`, and `seed`."""


@dataclass(frozen=True)
class Health:
    """Readiness of the server and of each public model; see `Client.health`."""

    server: bool
    models: dict[str, bool]

    @property
    def ready(self) -> bool:
        """Whether the server and all public models are ready."""
        return self.server and all(self.models.values())


LoraList: TypeAlias = Sequence["Lora | str | Mapping[str, Any]"]
"""What callers give as `loras`."""

ControlList: TypeAlias = Sequence["Control | Mapping[str, Any]"]
"""What callers give as `controls`."""


def loras_of(loras: Any) -> list[dict[str, Any]]:
    """What callers give as `loras`, as LORAS has it.

    Raises:
        TypeError, ValueError: it is no list of names, `Lora`s and dicts of its fields.
    """
    accepted = "a list of names, of Lora, or of dicts with name, weight and text_weight"
    if isinstance(loras, str | bytes | Mapping | Lora) or not isinstance(loras, Sequence):
        raise wrong_type("loras", loras, accepted)
    return [_lora(f"loras[{i}]", each, accepted) for i, each in enumerate(loras)]


def _lora(name: str, lora: Any, accepted: str) -> dict[str, Any]:
    if isinstance(lora, str):
        lora = Lora(lora)
    if isinstance(lora, Mapping):
        known = [f.name for f in dataclasses.fields(Lora)]
        unknown = [key for key in lora if key not in known]
        if unknown or "name" not in lora:
            problem = f"has the key {brief(unknown[0])}" if unknown else "has no name"
            raise ValueError(f"{name} {problem}; accepted: {', '.join(known)}")
        lora = Lora(**lora)
    if not isinstance(lora, Lora):
        raise wrong_type(name, lora, accepted)
    found: dict[str, Any] = {"name": text_of(f"{name}.name", lora.name)}
    found["weight"] = number_of(f"{name}.weight", lora.weight)
    if lora.text_weight is not None:
        found["text_weight"] = number_of(f"{name}.text_weight", lora.text_weight)
    return found


def job_call(action: str, job_id: str) -> Call:
    """The call of `jobs`."""
    return Call("jobs", encode_all(JOBS, {"ACTION": action, "JOB_ID": job_id}))


def read_status(outputs: Mapping[str, Array]) -> JobStatus:
    """The status in an answer of `jobs`."""
    answer = read_json(outputs)
    return JobStatus(**{f.name: answer[f.name] for f in dataclasses.fields(JobStatus)})


def read_json(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """The RESULT of an answer."""
    content: dict[str, Any] = json.loads(outputs["RESULT"].reshape(-1)[0])
    return content


def encode_all(model: ModelSpec, given: Mapping[str, Any]) -> dict[str, Array]:
    """Values by input's name as the tensors of a model; those that are `None` are left out.

    Raises:
        TypeError, ValueError: see `encode`.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    return {s.name: encode(s, wanted[s.name]) for s in model.inputs if s.name in wanted}


def encode(spec: TensorSpec, value: Any) -> Array:
    """A value as the tensor that `spec` describes, with its batch dimension.

    Raises:
        TypeError: it is of another type; no number is rounded or cut.
        ValueError: it cannot be sent.
    """
    name = spec.name.lower()
    if spec.dtype == "BYTES" and spec.dims != (1,):
        texts = [text_of(f"{name}[{i}]", each).encode() for i, each in enumerate(value)]
        return np.array([texts], object)
    if spec.dtype == "BYTES":
        return np.array([[text_of(name, value).encode()]], object)
    if spec.dtype in _INTEGERS and spec.dims != (1,):
        return _integers(spec, value)
    if spec.dtype in _INTEGERS:
        kind, most = _INTEGERS[spec.dtype]
        if isinstance(value, Integral) and -most <= int(value) < 0:
            return np.array([[int(value)]], kind)  # the server says what it accepts
        return np.array([[integer_of(name, value, 0, most)]], kind)
    if spec.dtype == "FP32":
        return np.array([[number_of(name, value)]], np.float32)
    return np.asarray(value, np.uint8)[None]


def _integers(spec: TensorSpec, value: Any) -> Array:
    """Several integers."""
    name, (kind, most) = spec.name.lower(), _INTEGERS[spec.dtype]
    accepted = f"a list of {spec.dims[0]} integers"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise wrong_type(name, value, accepted)
    if len(value) != spec.dims[0]:
        raise wrong_value(name, list(value), accepted)
    several = [integer_of(f"{name}[{i}]", each, -most, most) for i, each in enumerate(value)]
    return np.array([several], kind)
