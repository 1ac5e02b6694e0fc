"""What requests may say: fields that have an effect, fields that are refused unless they ask for
nothing, and fields that are known to have no effect here. Any other field is left out, as webui
does.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tessera.contract import MAX_GUIDANCE, MAX_SEED, SIZE_STEP, EditQuality, MaskTone, Mode
from tessera.contract.limits import MAX_FEATHER
from tessera_client import ServedBundle
from tessera_gateway.errors import invalid

MAX_PICTURES = 16
"""batch_size times n_iter."""
MAX_BLUR = 64
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
_OF_MASKS = ("mask_feather", "mask_tone")
"""Of `tessera`: what needs a mask."""

REFUSED = (
    "enable_hr",
    "firstphase_height",
    "firstphase_width",
    "infotext",
    "latent_mask",
    "refiner_checkpoint",
    "restore_faces",
    "script_args",
    "script_name",
    "seed_resize_from_h",
    "seed_resize_from_w",
    "styles",
    "subseed_strength",
    "tiling",
)
"""Fields that would change the picture in a way that this server does not have. They may be there
with a value that asks for nothing: `null`, `false`, 0, an empty text or list.
"""
_ALSO_NOTHING: dict[str, tuple[Any, ...]] = {
    "refiner_checkpoint": ("None",),
    "script_name": ("None",),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
}
IGNORED = (
    "clip_skip",
    "comments",
    "do_not_save_grid",
    "do_not_save_samples",
    "eta",
    "force_task_id",
    "hr_additional_modules",
    "hr_scale",
    "hr_second_pass_steps",
    "hr_upscaler",
    "include_init_images",
    "override_settings_restore_afterwards",
    "s_churn",
    "s_min_uncond",
    "s_noise",
    "s_tmax",
    "s_tmin",
    "save_images",
    "subseed",
)
"""Fields that front ends send and that have no effect here."""


class Txt2Img(BaseModel):
    """The body of txt2img."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = Field(default=-1, ge=-1, le=MAX_SEED - MAX_PICTURES)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    steps: int | None = Field(default=None, ge=1, le=1000)
    cfg_scale: float | None = Field(default=None, ge=0, le=MAX_GUIDANCE)
    width: int | None = Field(default=None, ge=1, multiple_of=SIZE_STEP)
    height: int | None = Field(default=None, ge=1, multiple_of=SIZE_STEP)
    batch_size: int = Field(default=1, ge=1, le=MAX_PICTURES)
    n_iter: int = Field(default=1, ge=1, le=MAX_PICTURES)
    override_settings: dict[str, Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool = True

    @property
    def count(self) -> int:
        """Pictures in all."""
        return self.batch_size * self.n_iter


class Beyond(BaseModel):
    """What Tessera takes beyond webui's API, for an edit: `tessera`, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid")

    edit_quality: EditQuality | None = None
    mode: Mode | None = None
    mask_feather: int | None = Field(default=None, ge=1, le=MAX_FEATHER)
    mask_tone: MaskTone | None = None


class Img2Img(Txt2Img):
    """The body of img2img."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str | None = None
    denoising_strength: float = Field(default=0.75, gt=0, le=1)
    resize_mode: int = Field(default=0, ge=0, le=2)
    mask_blur: int | None = Field(default=None, ge=0, le=MAX_BLUR)
    mask_blur_x: int = Field(default=4, ge=0, le=MAX_BLUR)
    mask_blur_y: int = Field(default=4, ge=0, le=MAX_BLUR)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=8192)
    inpainting_mask_invert: int = Field(default=0, ge=0, le=1)
    inpainting_fill: int = Field(default=0, ge=0, le=2)
    tessera: Beyond | None = None

    @property
    def blur(self) -> tuple[int, int]:
        """Radius of the mask's blur along x and y, in pixels."""
        if self.mask_blur is not None:
            return self.mask_blur, self.mask_blur
        return self.mask_blur_x, self.mask_blur_y

    @property
    def beyond(self) -> dict[str, Any]:
        """`tessera`, as the SDK has it."""
        given = self.tessera.model_dump() if self.tessera else {}
        return {"quality" if k == "edit_quality" else k: v for k, v in given.items()}


def check_fields(sent: Txt2Img) -> None:
    """Nothing is asked for that is not here.

    Raises:
        ApiError: something is, or too many pictures are.
    """
    for name, value in (sent.model_extra or {}).items():
        if name in REFUSED and value not in (*_NOTHING, *_ALSO_NOTHING.get(name, ())):
            raise invalid(name, value, "nothing: this server does not have it")
    if not isinstance(sent, Img2Img):
        if (given := (sent.model_extra or {}).get("tessera")) not in _NOTHING:
            raise invalid("tessera", given, "nothing, unless it is img2img")
    elif sent.mask is None and sent.tessera:
        for name, value in sent.tessera.model_dump(include=set(_OF_MASKS)).items():
            if value is not None:
                raise invalid(f"tessera.{name}", value, "nothing without mask")
    if sent.count > MAX_PICTURES:
        raise invalid("batch_size times n_iter", sent.count, f"up to {MAX_PICTURES}")


def check_size(width: int | None, height: int | None, bundle: ServedBundle) -> None:
    """A size can be drawn, as far as it is given.

    Raises:
        ApiError: it cannot.
    """
    for name, side in (("width", width), ("height", height)):
        if side is not None and not bundle.min_size <= side <= bundle.max_size:
            raise invalid(name, side, f"{bundle.min_size} to {bundle.max_size}")
