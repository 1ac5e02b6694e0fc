"""The public contract: models, tensors, ranges and names.

Checked against `model_repository/*/config.pbtxt` by a test. Every tensor carries a leading batch
dimension of 1 on the wire; `dims` here leave it out; -1 is any size. Standard library only, so that
the client can import it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Self


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


@dataclass(frozen=True)
class JobStatus:
    """How far a job is, as `jobs` answers it.

    Attributes:
        phase: queued, denoising, decoding, done, failed or cancelled.
        step, total: denoising steps that are done, and all of them.
        cancelled: whether somebody asked for its end.
        seconds: since it began, up to its end.
    """

    job_id: str
    phase: str
    step: int
    total: int
    cancelled: bool
    seconds: float

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.phase in ("done", "failed", "cancelled")


@dataclass(kw_only=True)
class Stats:
    """What `denoise` measures of one job: the part of INFO that it fills in. Times are in
    milliseconds.

    Attributes:
        mode: `dense`, `sparse`, or `mixed`: dense steps behind the first sparse one.
        queue_ms: from the end of `encode` to the first tick.
        denoise_ms: from the first tick to the end of the last.
        engine_ms: inside the engines; a call that requests share counts in full for each.
        ticks: steps that were run.
        mean_batch: requests that shared an engine call, on the average of the ticks.
        queued_tick, first_tick, last_tick: the server's number of the tick under way when the job
            was queued, and of those that ran its first and last step.
        sparse_ticks: sparse steps.
        cache_load_ms: time that these waited for recorded activations.
        control_load_ms: time until the ControlNets were loaded.
        control_ticks: steps that asked a ControlNet.
        control_wait_ms: time that these waited beyond the encoder half's own.
        refit_ms: refits that its turns began with, text encoders' included.
        switches: how many refits of the UNet these were.
        passed_over: ticks in which another adapter set had the engine.
        adapted_at: first step that was run with its LoRAs; `None` if it has none in the UNet.
        lora_path: `refit`, `side` or `mixed`; `None` if it has none in the UNet.
        side_ticks: steps that went by the low-rank side path.
    """

    mode: str = "dense"
    queue_ms: float = 0.0
    denoise_ms: float = 0.0
    engine_ms: float = 0.0
    ticks: int = 0
    mean_batch: float = 0.0
    queued_tick: int = 0
    first_tick: int = 0
    last_tick: int = 0
    sparse_ticks: int = 0
    cache_load_ms: float = 0.0
    control_load_ms: float = 0.0
    control_ticks: int = 0
    control_wait_ms: float = 0.0
    refit_ms: float = 0.0
    switches: int = 0
    passed_over: int = 0
    adapted_at: int | None = None
    lora_path: str | None = None
    side_ticks: int = 0

    def add_tick(self, number: int, batch: int) -> None:
        """Count a step that was run in tick `number` together with others, `batch` in all."""
        self.first_tick = self.first_tick or number
        self.last_tick = number
        self.ticks += 1
        self.mean_batch += (batch - self.mean_batch) / self.ticks

    def to_json(self) -> bytes:
        """As it travels: one JSON object, what was measured with three decimals."""
        content = asdict(self)
        for name, value in content.items():
            if name.endswith("_ms") or name == "mean_batch":
                content[name] = round(value, 3)
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of `to_json`; fields of another version that are not known here are left out.

        Raises:
            ValueError: it is no JSON.
            TypeError: it lacks a field that has no default.
        """
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in json.loads(text).items() if k in known})


@dataclass(kw_only=True)
class Info(Stats):
    """INFO: what was done for a picture, and how long each stage took, in milliseconds.

    Attributes:
        job_id: the caller's, or a made one.
        bundle: its name.
        seed, steps, guidance, width, height, scheduler: as used, defaults filled in.
        mask_ratio: share of the pixels that an edit may change; `None` for a generation.
        template: id of the edited image; `None` for a generation.
        loras: name, weights and digest of each LoRA.
        controls: name, scale, start, end of each ControlNet, and what was done to its image.
        prompt_tokens_dropped: tokens beyond the text encoder's window, which had no effect.
        encode_ms: checks, text encoders, an edit's image, control images.
        decode_ms: VAE and pasting.
        total_ms: from the beginning of `encode` to the end of `decode`.
    """

    job_id: str
    bundle: str = ""
    seed: int
    steps: int
    guidance: float = 0.0
    width: int
    height: int
    scheduler: str
    mask_ratio: float | None = None
    template: str | None = None
    loras: list[dict[str, Any]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens_dropped: int = 0
    encode_ms: float
    decode_ms: float
    total_ms: float
