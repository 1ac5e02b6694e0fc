"""Checks what an edit has beside the inputs of a generation: the image or template, mask, strength
and mode.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tessera import contract
from tessera.contract.limits import FEATHER
from tessera.errors import InvalidInput
from tessera.manifest import Manifest
from tessera.requests.fields import Inputs, pixels_of, scalar_of, text_of
from tessera.requests.masks import read_feather, read_fill, read_mask, read_tone
from tessera.types import Array

FindTemplate = Callable[[str], Array]
"""The picture (h, w, 3) of a template; raises `InvalidInput` for an id that is not known."""


@dataclass(frozen=True)
class EditChoice:
    """Accepted values of an edit.

    Attributes:
        template: id of the image: the same pixels have the same id.
        image: (h, w, 3) of UINT8.
        mask: (h, w) of UINT8.
        first_step: steps that are skipped at this strength.
        mode: one of `contract.MODES`.
        fill: what the masked part is before it is noised, one of `contract.MASK_FILLS`.
        strengths: (h, w) of UINT8, how strongly each pixel is edited; `None` of a hard mask.
        owners: (h, w) of UINT8, whose prompt draws each pixel; `None` without regions.
        quality: one of `contract.EDIT_QUALITIES`.
        feather: pixels inside the border of the mask within which the edit fades in.
        tone: one of `contract.MASK_TONES`.
    """

    template: str
    image: Array
    mask: Array
    first_step: int
    mode: str
    fill: str = contract.MASK_FILLS[0]
    strengths: Array | None = None
    owners: Array | None = None
    quality: str = contract.EditQuality.FAST
    feather: int = FEATHER
    tone: str = contract.MASK_TONES[0]

    @property
    def mask_ratio(self) -> float:
        """Share of the pixels that are edited."""
        return float((self.mask >= contract.EDITED).mean())


def read_edit(
    inputs: Inputs, manifest: Manifest, steps: int, find_template: FindTemplate, quality: str
) -> EditChoice:
    """Check the inputs that only edits have. `quality` is that of an edit that names none.

    Raises:
        InvalidInput: the first field whose value is not accepted.
    """
    image = read_image(inputs, manifest, find_template)
    mask = read_mask(inputs, image)
    return EditChoice(
        template=template_id(image),
        image=image,
        mask=mask.edited,
        first_step=_first_step(inputs, steps),
        mode=_mode(inputs, manifest),
        fill=read_fill(inputs),
        strengths=mask.strengths,
        owners=mask.owners,
        quality=_quality(inputs, quality),
        feather=read_feather(inputs),
        tone=read_tone(inputs),
    )


def read_image(inputs: Inputs, manifest: Manifest, find_template: FindTemplate) -> Array:
    """The picture (h, w, 3) of IMAGE or of TEMPLATE.

    Raises:
        InvalidInput: both or none are given, the size is not accepted, or the template is not
            known.
    """
    given = [name for name in ("IMAGE", "TEMPLATE") if name in inputs]
    if len(given) != 1:
        problem = "is given as well as TEMPLATE" if given else "is missing, and so is TEMPLATE"
        raise InvalidInput.described("IMAGE", problem, "one of the two, IMAGE or TEMPLATE")
    (name,) = given
    known = name == "TEMPLATE"
    image = find_template(text_of(inputs, name, "", 100)) if known else inputs[name][0]
    low, high, step = manifest.limits.min_size, manifest.limits.max_size, contract.SIZE_STEP
    if any(not low <= side <= high or side % step for side in image.shape[:2]):
        accepted = f"sides that are multiples of {step} from {low} to {high} pixels"
        raise InvalidInput.described(name, f"has {pixels_of(image)}", accepted)
    return image


def size_of_edit(inputs: Inputs, edit: EditChoice) -> tuple[int, int]:
    """(width, height) of the image.

    Raises:
        InvalidInput: WIDTH or HEIGHT is given and is another.
    """
    height, width = edit.image.shape[:2]
    for name, side in (("WIDTH", width), ("HEIGHT", height)):
        if name in inputs and int(scalar_of(inputs[name])) != side:
            accepted = f"the image's own, {side}, or nothing"
            raise InvalidInput(name, int(scalar_of(inputs[name])), accepted)
    return width, height


def template_id(image: Array) -> str:
    """Names a picture by its size and pixels."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:16]


def no_templates(identity: str) -> Array:
    """A `FindTemplate` that knows none."""
    raise InvalidInput("TEMPLATE", identity, "nothing, since none is known")


def _first_step(inputs: Inputs, steps: int) -> int:
    """As diffusers' img2img and inpainting pipelines: `int(steps * strength)` steps are run."""
    strength = _decimal(inputs["STRENGTH"]) if "STRENGTH" in inputs else 1.0
    if not math.isfinite(strength) or not 0 < strength <= 1:
        raise InvalidInput("STRENGTH", strength, "a number above 0 and up to 1")
    run = int(steps * strength)
    if run < 1:
        accepted = (
            f"a number up to 1 that makes at least 1 of STEPS * STRENGTH, and STEPS is {steps}"
        )
        raise InvalidInput("STRENGTH", strength, accepted)
    return steps - run


def _decimal(array: Array) -> float:
    """The number that a caller wrote: 0.7, where FP32 holds 0.699999988 (and 10 steps would be
    6).
    """
    return float(str(np.float32(scalar_of(array))))


def _mode(inputs: Inputs, manifest: Manifest) -> str:
    mode = text_of(inputs, "MODE", contract.MODES[0], 100)
    if mode not in contract.MODES:
        raise InvalidInput("MODE", mode, ", ".join(contract.MODES))
    if mode == "sparse" and not manifest.can_be_sparse:
        raise InvalidInput("MODE", mode, "auto, dense, since the bundle has no graph for it")
    return mode


def _quality(inputs: Inputs, default: str) -> str:
    quality = text_of(inputs, "EDIT_QUALITY", default, 100)
    if quality not in contract.EDIT_QUALITIES:
        raise InvalidInput("EDIT_QUALITY", quality, ", ".join(contract.EDIT_QUALITIES))
    return quality
