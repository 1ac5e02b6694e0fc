"""What requests look like: OpenAI's fields, and ours in `tessera`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tessera.contract import (
    EDIT_QUALITIES,
    LORA_POLICIES,
    MASK_FILLS,
    MASK_KINDS,
    MASK_TONES,
    MAX_CANNY,
    MAX_CONTROL_SCALE,
    MAX_CONTROLS,
    MAX_GUIDANCE,
    MAX_JOB_ID,
    MAX_LORA_WEIGHT,
    MAX_LORAS,
    MAX_PROMPT,
    MAX_SEED,
    MODES,
    PREPROCESSORS,
    PROMPT_SYNTAXES,
    RESIZES,
    SCHEDULERS,
)
from tessera.contract.limits import MAX_EDIT_SIDE, MAX_FEATHER, MAX_REGIONS
from tessera_gateway.pictures import Format

MAX_N = 10
MAX_PARTIALS = 3
_SUFFIX = len(f"-{MAX_N}")
"""Several pictures have `-1`, `-2` ... behind their job id."""
_LAST_SEED = MAX_SEED - MAX_N
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"

Weight = Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Threshold = Annotated[float, Field(ge=0, le=MAX_CANNY, allow_inf_nan=False)]
Room = Annotated[int, Field(ge=0, le=MAX_EDIT_SIDE)]
DataUrl = Annotated[str, Field(min_length=1, description="A data URL: data:image/png;base64,...")]


def _one_of(names: Iterable[str]) -> str:
    return "^(" + "|".join(names) + ")$"


class LoraField(BaseModel):
    """A LoRA to apply; `GET /v1/models` of the server's bundle lists them."""

    model_config = ConfigDict(extra="forbid")
    name: str
    weight: Weight = 1.0
    text_weight: Weight | None = None


class ControlField(BaseModel):
    """A ControlNet to apply, and the picture that guides it."""

    model_config = ConfigDict(extra="forbid")
    name: str
    image: DataUrl
    scale: Annotated[
        float, Field(ge=-MAX_CONTROL_SCALE, le=MAX_CONTROL_SCALE, allow_inf_nan=False)
    ] = 1.0
    start: Share = 0.0
    end: Share = 1.0
    preprocess: str | None = Field(default=None, pattern=_one_of(PREPROCESSORS))
    resize: str | None = Field(default=None, pattern=_one_of(RESIZES))
    low: Threshold | None = None
    high: Threshold | None = None
    mode: int | str | None = Field(
        default=None, description="What the image is, for a ControlNet-Union: a name or a number."
    )
    guess_mode: bool = False


class RegionField(BaseModel):
    """A further mask of an edit, white where to edit, and the prompt that draws there."""

    model_config = ConfigDict(extra="forbid")
    mask_image: DataUrl
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)


class Extra(BaseModel):
    """What Tessera takes beyond OpenAI's API; in Python, `extra_body={"tessera": {...}}`."""

    model_config = ConfigDict(extra="forbid")
    seed: int | None = Field(default=None, ge=0, le=_LAST_SEED)
    steps: int | None = Field(default=None, ge=1, le=1000, description="Instead of `quality`.")
    guidance: float | None = Field(default=None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    scheduler: str | None = Field(default=None, pattern=_one_of(SCHEDULERS))
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    prompt_syntax: str | None = Field(default=None, pattern=_one_of(PROMPT_SYNTAXES))
    clip_skip: int | None = Field(default=None, ge=0, le=100)
    loras: list[LoraField] = Field(default_factory=list, max_length=MAX_LORAS)
    lora_policy: str | None = Field(default=None, pattern=_one_of(LORA_POLICIES))
    controls: list[ControlField] = Field(default_factory=list, max_length=MAX_CONTROLS)
    job_id: str | None = Field(
        default=None, pattern=r"^[!-~]+$", min_length=1, max_length=MAX_JOB_ID - _SUFFIX
    )


class EditExtra(Extra):
    """What Tessera takes beyond OpenAI's API, for an edit."""

    strength: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    mode: str | None = Field(default=None, pattern=_one_of(MODES))
    edit_quality: str | None = Field(
        default=None,
        pattern=_one_of(EDIT_QUALITIES),
        description="How near a sparse edit is to the dense one.",
    )
    template: str | None = Field(
        default=None, description="Id of an image that the server knows, instead of an image."
    )
    mask_kind: str | None = Field(default=None, pattern=_one_of(MASK_KINDS))
    mask_fill: str | None = Field(default=None, pattern=_one_of(MASK_FILLS))
    mask_feather: int | None = Field(default=None, ge=1, le=MAX_FEATHER)
    mask_tone: str | None = Field(default=None, pattern=_one_of(MASK_TONES))
    padding_mask_crop: int | None = Field(default=None, ge=0, le=MAX_EDIT_SIDE)
    width: int | None = Field(default=None, description="To enlarge the crop to, in pixels.")
    height: int | None = Field(default=None, description="Likewise.")
    extend: list[Room] | None = Field(
        default=None,
        min_length=4,
        max_length=4,
        description="Pixels to draw at the left, top, right and bottom of the image.",
    )
    regions: list[RegionField] = Field(default_factory=list, max_length=MAX_REGIONS)
    mask_image: DataUrl | None = Field(
        default=None, description="A mask that is white where to edit, instead of `mask`."
    )


class PictureFields(BaseModel):
    """The fields that generations and edits share."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    model: str | None = Field(default=None, description="The bundle's name.")
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    size: str | None = Field(default=None, pattern=SIZE, description="WxH in pixels, or auto.")
    quality: str | None = Field(
        default=None, description="How many steps: low, medium, high, xhigh, max, ..."
    )
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        default=None, description="`transparent` is refused."
    )
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=MAX_PARTIALS)
    moderation: Literal["low", "auto"] | None = Field(default=None, description="No effect.")
    user: str | None = Field(default=None, description="No effect.")
    safety_identifier: str | None = Field(default=None, description="No effect.")


class GenerationRequest(PictureFields):
    """Body of `POST /v1/images/generations`."""

    style: Literal["vivid", "natural"] | None = Field(default=None, description="No effect.")
    tessera: Extra = Extra()


class ImageReference(BaseModel):
    """A picture in a JSON body."""

    model_config = ConfigDict(extra="forbid")
    image_url: DataUrl


class EditFields(PictureFields):
    """Fields of `POST /v1/images/edits`, in a form or in JSON."""

    input_fidelity: Literal["high", "low"] | None = Field(
        default=None, description="Of an edit without a mask: how much of the picture stays."
    )
    tessera: EditExtra = EditExtra()


class EditRequest(EditFields):
    """Body of `POST /v1/images/edits` in JSON."""

    images: list[ImageReference] = Field(default_factory=list)
    mask: ImageReference | None = None
