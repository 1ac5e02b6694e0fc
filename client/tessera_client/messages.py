"""What goes to a server and what comes back, without any network: requests as calls, answers as
dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from tessera.contract import GENERATE, JOBS, Info, JobStatus, ModelSpec, TensorSpec
from tessera.types import Array
from tessera_client.controls import Control, control_inputs
from tessera_client.wire import Call

_NUMPY = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8}


@dataclass(frozen=True)
class Lora:
    """A LoRA to apply; `text_weight` replaces `weight` in the text encoders."""

    name: str
    weight: float = 1.0
    text_weight: float | None = None


class GenerateOptions(TypedDict, total=False):
    """Keywords of `generate`; what is left out (or `None`) is the server's default.

    `seed` means what diffusers means by `torch.Generator("cpu").manual_seed(seed)`; sizes are in
    pixels; `lora_policy` is exact, or bounded: the first steps may do without LoRAs that are not at
    hand.
    """

    negative_prompt: str | None
    seed: int | None
    steps: int | None
    guidance: float | None
    width: int | None
    height: int | None
    scheduler: str | None
    loras: Sequence[Lora]
    lora_policy: str | None
    controls: Sequence[Control]


class EditOptions(GenerateOptions, total=False):
    """Keywords of `edit`: those of `generate`, and

    `strength`, above 0 and up to 1: the share of the steps that is run, from the template noised to
    that level; `mode`: auto, sparse or dense; `template`: id of a known image instead of an image.
    """

    strength: float | None
    mode: str | None
    template: str | None


@dataclass(frozen=True)
class Result:
    """A picture and what the server says about it."""

    image: Image.Image
    info: Info


@dataclass(frozen=True)
class Health:
    """Readiness of the server and of each public model; see `Client.health`."""

    server: bool
    models: dict[str, bool]

    @property
    def ready(self) -> bool:
        """Whether the server and all public models are ready."""
        return self.server and all(self.models.values())


def generate_call(prompt: str, job_id: str, options: GenerateOptions) -> Call:
    """The call of `generate`.

    Raises:
        TypeError: an option is not one of `GenerateOptions`, or has the wrong type.
        ValueError: the images of ControlNets have several sizes.
    """
    given = {"PROMPT": prompt, "JOB_ID": job_id}
    return picture_call("generate", GENERATE, given, options, GenerateOptions)


def picture_call(
    name: str,
    model: ModelSpec,
    given: dict[str, Any],
    options: GenerateOptions,
    known: type[GenerateOptions],
) -> Call:
    """The call of a model that answers with a picture: what is given by input's name, and options
    by keyword.

    Raises:
        TypeError: an option is not one of the `known`, or something has the wrong type.
        ValueError: the images of ControlNets have several sizes.
    """
    unknown = set(options) - set(known.__annotations__)
    if unknown:
        raise TypeError(
            f"unknown option {sorted(unknown)[0]!r}; known: {', '.join(known.__annotations__)}"
        )
    given = given | {key.upper(): value for key, value in options.items() if value is not None}
    if "LORAS" in given:
        given["LORAS"] = json.dumps([_without_none(lora) for lora in given["LORAS"]])
    given |= control_inputs(given.pop("CONTROLS", ()))
    policy = options.get("lora_policy")
    parameters = {} if policy is None else {"lora_policy": policy}
    return Call(name, encode_all(model, given), ("IMAGE", "INFO"), parameters)


def job_call(action: str, job_id: str) -> Call:
    """The call of `jobs`."""
    return Call("jobs", encode_all(JOBS, {"ACTION": action, "JOB_ID": job_id}))


def read_result(outputs: Mapping[str, Array]) -> Result:
    """The answer of `generate` and `edit`."""
    info = Info.from_json(outputs["INFO"].reshape(-1)[0])
    return Result(Image.fromarray(outputs["IMAGE"][0]), info)


def read_status(outputs: Mapping[str, Array]) -> JobStatus:
    """The answer of `jobs`."""
    return JobStatus(**_json(outputs["RESULT"]))


def encode_all(model: ModelSpec, given: Mapping[str, Any]) -> dict[str, Array]:
    """Values by input's name as the tensors of a model; those that are `None` are left out."""
    wanted = {name: value for name, value in given.items() if value is not None}
    return {s.name: encode(s, wanted[s.name]) for s in model.inputs if s.name in wanted}


def encode(spec: TensorSpec, value: Any) -> Array:
    """A value as the tensor that `spec` describes, with its batch dimension.

    Raises:
        TypeError: a text is expected and it is none.
    """
    if spec.dtype == "BYTES":
        if not isinstance(value, str):
            raise TypeError(f"{spec.name.lower()} must be a str, not {type(value).__name__}")
        return np.array([[value.encode()]], object)
    array = np.asarray(value, _NUMPY[spec.dtype])
    return array.reshape(1, 1) if spec.dims == (1,) else array[None]


def _json(array: Array) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(array.reshape(-1)[0])
    return content


def _without_none(lora: Lora) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(lora).items() if v is not None}
