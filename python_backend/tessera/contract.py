"""The public contract: models, tensors, ranges and names.

Checked against `model_repository/*/config.pbtxt` by a test. Every tensor carries a leading batch
dimension of 1 on the wire; `dims` here leave it out; -1 is any size. Standard library only, so that
the client can import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class TensorSpec:
    """Name, Triton data type and dimensions of one input or output."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class SchedulerSpec:
    """A sampler that requests may name: a diffusers class and the settings that make the
    variant.
    """

    cls: str
    settings: tuple[tuple[str, object], ...] = ()
    max_steps: int = 1000


@dataclass(frozen=True)
class ModelSpec:
    """Inputs and outputs of one public model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _optional(name: str, dtype: str, *dims: int) -> TensorSpec:
    return TensorSpec(name, dtype, dims or (1,), optional=True)


GENERATE = ModelSpec(
    inputs=(
        TensorSpec("PROMPT", "BYTES", (1,)),
        _optional("NEGATIVE_PROMPT", "BYTES"),
        _optional("SEED", "INT64"),
        _optional("STEPS", "INT32"),
        _optional("GUIDANCE", "FP32"),
        _optional("WIDTH", "INT32"),
        _optional("HEIGHT", "INT32"),
        _optional("SCHEDULER", "BYTES"),
        _optional("LORAS", "BYTES"),
        _optional("CONTROLS", "BYTES"),
        _optional("CONTROL_IMAGES", "UINT8", -1, -1, -1, 3),
        _optional("JOB_ID", "BYTES"),
    ),
    outputs=(TensorSpec("IMAGE", "UINT8", (-1, -1, 3)), TensorSpec("INFO", "BYTES", (1,))),
)
EDIT = ModelSpec(
    inputs=(
        *GENERATE.inputs,
        _optional("IMAGE", "UINT8", -1, -1, 3),
        _optional("TEMPLATE", "BYTES"),
        TensorSpec("MASK", "UINT8", (-1, -1)),
        _optional("STRENGTH", "FP32"),
        _optional("MODE", "BYTES"),
    ),
    outputs=GENERATE.outputs,
)
JOBS = ModelSpec(
    inputs=(TensorSpec("ACTION", "BYTES", (1,)), TensorSpec("JOB_ID", "BYTES", (1,))),
    outputs=(TensorSpec("RESULT", "BYTES", (1,)),),
)
TEMPLATES = ModelSpec(
    inputs=(
        TensorSpec("ACTION", "BYTES", (1,)),
        _optional("IMAGE", "UINT8", -1, -1, 3),
        _optional("TEMPLATE", "BYTES"),
        _optional("STEPS", "INT32"),
        _optional("SCHEDULER", "BYTES"),
    ),
    outputs=(TensorSpec("RESULT", "BYTES", (1,)),),
)
ADAPTERS = ModelSpec(
    inputs=(TensorSpec("ACTION", "BYTES", (1,)),),
    outputs=(TensorSpec("RESULT", "BYTES", (1,)),),
)
MODELS = {
    "generate": GENERATE,
    "edit": EDIT,
    "jobs": JOBS,
    "templates": TEMPLATES,
    "adapters": ADAPTERS,
}


class Scheduler(StrEnum):
    """Values of SCHEDULER."""

    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DDIM = "ddim"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    UNIPC = "unipc"
    LCM = "lcm"


_KARRAS = (("use_karras_sigmas", True),)
_UNCLIPPED = (("clip_sample", False),)
"""DDIM's own default would clip latents as if they were pixels, where a config does not say (as one
that was written for another sampler). Diffusers' pipelines correct that, too."""

SCHEDULERS: dict[str, SchedulerSpec] = {
    Scheduler.EULER: SchedulerSpec("EulerDiscreteScheduler"),
    Scheduler.EULER_ANCESTRAL: SchedulerSpec("EulerAncestralDiscreteScheduler"),
    Scheduler.DDIM: SchedulerSpec("DDIMScheduler", _UNCLIPPED),
    Scheduler.DPMPP_2M: SchedulerSpec("DPMSolverMultistepScheduler"),
    Scheduler.DPMPP_2M_KARRAS: SchedulerSpec("DPMSolverMultistepScheduler", _KARRAS),
    Scheduler.UNIPC: SchedulerSpec("UniPCMultistepScheduler"),
    Scheduler.LCM: SchedulerSpec("LCMScheduler", max_steps=50),
}
"""Value of SCHEDULER -> sampler.

Each is `cls.from_config(the bundle's scheduler config, **settings)`.
"""

MAX_PROMPT = 2000
"""Characters in PROMPT and NEGATIVE_PROMPT."""

MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
SIZE_STEP = 8
"""WIDTH, HEIGHT and the sides of an image to edit are multiples of this many pixels."""

EDITED = 128
"""Pixels of MASK from this value on are edited."""


class Mode(StrEnum):
    """Values of MODE."""

    AUTO = "auto"
    SPARSE = "sparse"
    DENSE = "dense"


MODES = tuple(Mode)
"""The first is the default."""

MAX_LORAS = 8
MAX_LORA_WEIGHT = 100.0


class LoraPolicy(StrEnum):
    """Values of the request parameter `lora_policy`: LoRAs from the first step on, or without them
    for some steps if they are not at hand.
    """

    EXACT = "exact"
    BOUNDED = "bounded"


LORA_POLICIES = tuple(LoraPolicy)
"""The first is the default."""

MAX_CONTROLS = 4
MAX_CONTROL_SCALE = 100.0
MAX_CONTROL_SIDE = 8192
"""Pixels in a side of CONTROL_IMAGES."""

PREPROCESSORS = ("none", "canny", "grey", "invert")
"""Values of `preprocess` in CONTROLS: what is made of an image; the first is the default."""

RESIZES = ("none", "stretch", "fit", "fill")
"""Values of `resize` in CONTROLS: how an image gets the picture's size; the first is the default
and accepts no other size."""

MAX_CANNY = 2040.0
"""Largest threshold of canny: no gradient of a picture of 8 bits is above it."""

MAX_JOB_ID = 64
"""Bytes in JOB_ID."""

JOB_ACTIONS = ("status", "cancel")
ADAPTER_ACTIONS = ("list",)
TEMPLATE_ACTIONS = ("register", "list", "evict")

SPARSE_GRAPHS = ("unet_sparse", "unet_text")
"""What a bundle needs for token-sparse edits."""
