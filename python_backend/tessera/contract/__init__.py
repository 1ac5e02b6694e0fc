"""The public contract: models, tensors, ranges and names.

Checked against `model_repository/*/config.pbtxt` by a test. Every tensor carries a leading batch
dimension of 1 on the wire; `dims` here leave it out; -1 is any size. Standard library only, so that
the client can import it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.contract.checksum import checksum as checksum
from tessera.contract.controls import CONTROL_MODES as CONTROL_MODES
from tessera.contract.controls import MAX_CANNY as MAX_CANNY
from tessera.contract.controls import MAX_CONTROL_SCALE as MAX_CONTROL_SCALE
from tessera.contract.controls import MAX_CONTROL_SIDE as MAX_CONTROL_SIDE
from tessera.contract.controls import MAX_CONTROLS as MAX_CONTROLS
from tessera.contract.controls import PREPROCESSORS as PREPROCESSORS
from tessera.contract.controls import RESIZES as RESIZES
from tessera.contract.controls import modes_of as modes_of
from tessera.contract.info import Info as Info
from tessera.contract.info import Stats as Stats
from tessera.contract.limits import FIFTHS as FIFTHS
from tessera.contract.limits import MAX_EDIT_SIDE as MAX_EDIT_SIDE
from tessera.contract.schedulers import SCHEDULERS as SCHEDULERS
from tessera.contract.schedulers import SPREAD_TITLES as SPREAD_TITLES
from tessera.contract.schedulers import SPREADS as SPREADS
from tessera.contract.schedulers import Scheduler as Scheduler
from tessera.contract.schedulers import SchedulerSpec as SchedulerSpec
from tessera.contract.schedulers import scheduler_list as scheduler_list
from tessera.contract.words import EDIT_QUALITIES as EDIT_QUALITIES
from tessera.contract.words import LORA_POLICIES as LORA_POLICIES
from tessera.contract.words import MASK_FILLS as MASK_FILLS
from tessera.contract.words import MASK_KINDS as MASK_KINDS
from tessera.contract.words import MASK_TONES as MASK_TONES
from tessera.contract.words import MODES as MODES
from tessera.contract.words import PROMPT_SYNTAXES as PROMPT_SYNTAXES
from tessera.contract.words import EditQuality as EditQuality
from tessera.contract.words import LoraPolicy as LoraPolicy
from tessera.contract.words import MaskFill as MaskFill
from tessera.contract.words import MaskKind as MaskKind
from tessera.contract.words import MaskTone as MaskTone
from tessera.contract.words import Mode as Mode
from tessera.contract.words import PromptSyntax as PromptSyntax


@dataclass(frozen=True)
class TensorSpec:
    """Name, Triton data type and dimensions of one input or output."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


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
        _optional("PROMPT_SYNTAX", "BYTES"),
        _optional("CLIP_SKIP", "INT32"),
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
        _optional("MASK", "UINT8", -1, -1),
        _optional("STRENGTH", "FP32"),
        _optional("MODE", "BYTES"),
        _optional("MASK_KIND", "BYTES"),
        _optional("MASK_FILL", "BYTES"),
        _optional("REGION_PROMPTS", "BYTES", -1),
        _optional("REGION_MASKS", "UINT8", -1, -1, -1),
        _optional("PADDING_MASK_CROP", "INT32"),
        _optional("EXTEND", "INT32", 4),
        _optional("EDIT_QUALITY", "BYTES"),
        _optional("MASK_FEATHER", "INT32"),
        _optional("MASK_TONE", "BYTES"),
    ),
    outputs=GENERATE.outputs,
)
JOBS = ModelSpec(
    inputs=(
        TensorSpec("ACTION", "BYTES", (1,)),
        _optional("JOB_ID", "BYTES"),
        _optional("DECODER", "BYTES"),
    ),
    outputs=(TensorSpec("RESULT", "BYTES", (1,)), TensorSpec("IMAGE", "UINT8", (-1, -1, 3))),
)
TEMPLATES = ModelSpec(
    inputs=(
        TensorSpec("ACTION", "BYTES", (1,)),
        _optional("IMAGE", "UINT8", -1, -1, 3),
        _optional("TEMPLATE", "BYTES"),
        _optional("STEPS", "INT32"),
        _optional("SCHEDULER", "BYTES"),
        _optional("COPIES", "INT32"),
        _optional("PROMPT", "BYTES"),
        _optional("NEGATIVE_PROMPT", "BYTES"),
        _optional("PROMPT_SYNTAX", "BYTES"),
        _optional("CLIP_SKIP", "INT32"),
        _optional("LORAS", "BYTES"),
        _optional("CONTROLS", "BYTES"),
        _optional("CONTROL_IMAGES", "UINT8", -1, -1, -1, 3),
    ),
    outputs=JOBS.outputs,
)
ADAPTERS = ModelSpec(
    inputs=(TensorSpec("ACTION", "BYTES", (1,)),), outputs=(TensorSpec("RESULT", "BYTES", (1,)),)
)
MODELS = {
    "generate": GENERATE,
    "edit": EDIT,
    "jobs": JOBS,
    "templates": TEMPLATES,
    "adapters": ADAPTERS,
}


MAX_PROMPT = 2000
"""Characters in PROMPT and NEGATIVE_PROMPT."""


MAX_CHUNKS = 4
"""Windows of a text encoder that a weighted prompt may fill."""

MAX_TOKEN_WEIGHT = 10.0
"""Weights in a prompt are from minus this to this."""

MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
RANDOM_SEEDS = 2**53
"""Seeds that are made up are below: JavaScript and JSON tools round larger integers."""
SIZE_STEP = 8
"""WIDTH, HEIGHT and the sides of an image to edit are multiples of this many pixels."""

EDITED = 128
"""Pixels of MASK from this value on are edited."""


MAX_LORAS = 8
MAX_LORA_WEIGHT = 100.0


MAX_JOB_ID = 64
"""Bytes in JOB_ID."""

LIMITS: dict[str, float] = {
    "size_step": SIZE_STEP,
    "guidance": MAX_GUIDANCE,
    "prompt": MAX_PROMPT,
    "seed": MAX_SEED,
    "loras": MAX_LORAS,
    "lora_weight": MAX_LORA_WEIGHT,
    "controls": MAX_CONTROLS,
    "control_scale": MAX_CONTROL_SCALE,
    "canny": MAX_CANNY,
    "edit_side": MAX_EDIT_SIDE,
}
"""What a server tells of its limits, beside those of its bundle."""

JOB_ACTIONS = ("status", "cancel", "preview", "load")
PREVIEW_DECODERS = ("linear", "vae")
"""Values of DECODER: what turns a job's latents into the pixels of a preview; the first is the
default."""

ADAPTER_ACTIONS = ("list", "bundle")
TEMPLATE_ACTIONS = ("register", "list", "evict", "picture")

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
        place: among those that wait, by priority and arrival; `None` for one that does not wait.
        seconds_left: until it is done, estimated; `None` if it has ended or cannot be told yet.
    """

    job_id: str
    phase: str
    step: int
    total: int
    cancelled: bool
    seconds: float
    place: int | None
    seconds_left: float | None

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.phase in ("done", "failed", "cancelled")
