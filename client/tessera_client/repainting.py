"""Boxes of a picture, drawn anew: each on its own, enlarged, and all of them put back."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from tessera.types import Array
from tessera_client.checks import wrong_type, wrong_value
from tessera_client.edits import Rectangle, mask_of
from tessera_client.messages import EditOptions
from tessera_client.orders import Wish, edit, seeds_of
from tessera_client.pictures import Picture, picture_of
from tessera_client.results import Result

PADDING = 32
"""Pixels around a box that are drawn with it, if `padding_mask_crop` is left out."""

NOT_OF_BOXES = ("extend", "regions", "resize", "template")
"""Options of edits that do not go with boxes, which are drawn and put back one by one."""


@dataclass(frozen=True, eq=False)
class Repainted:
    """A picture with its boxes drawn anew.

    Attributes:
        image: the picture; pixels outside the boxes are as they were, bit for bit.
        results: the edit of each box, in their order.
    """

    image: Image.Image
    results: tuple[Result, ...]


@dataclass(frozen=True, eq=False)
class Repaint:
    """What a caller asks for.

    Attributes:
        picture: (h, w, 3), whole.
        masks: (h, w), one for each box.
        wishes: the edit of each box, by its job's id.
    """

    picture: Array
    masks: tuple[Array, ...]
    wishes: dict[str, Wish]

    def done(self, results: Sequence[Result]) -> Repainted:
        """The picture with the boxes of all results in it; a later box is on top."""
        whole = self.picture.copy()
        for mask, result in zip(self.masks, results, strict=True):
            inside = mask > 0
            whole[inside] = np.asarray(result.image.convert("RGB"))[inside]
        return Repainted(Image.fromarray(whole), tuple(results))


def repaint_of(
    image: Picture,
    boxes: Sequence[Rectangle],
    prompt: str | Sequence[str],
    options: Mapping[str, Any],
    job_id: str | None,
) -> Repaint:
    """One edit for each box.

    Args:
        image: a picture of any size.
        boxes: (x, y, width, height) in pixels.
        prompt: of all boxes, or a list with one for each.
        options: as `edit` has them, without `NOT_OF_BOXES`.
        job_id: of the jobs, with -1, -2 ... behind it.

    Raises:
        TypeError, ValueError: something is of no accepted form; the sentence names it.
    """
    for name in NOT_OF_BOXES:
        if options.get(name) is not None:
            raise wrong_value(name, options[name], "nothing in repaint; edit takes it")
    picture = picture_of("image", image)
    accepted = "a list of x, y, width, height"
    if isinstance(boxes, str | bytes | Mapping) or not isinstance(boxes, Sequence | np.ndarray):
        raise wrong_type("boxes", boxes, accepted)
    for index, box in enumerate(boxes):
        if isinstance(box, str | bytes) or not isinstance(box, Sequence | np.ndarray):
            raise wrong_type(f"boxes[{index}]", box, accepted)
    prompts = [prompt] * len(boxes) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(boxes):
        raise ValueError(
            f"prompt has {len(prompts)} elements; accepted: one text, or one for each of the "
            f"{len(boxes)} boxes"
        )
    masks = tuple(mask_of(box, picture) for box in boxes)
    first = uuid.uuid4().hex if job_id is None else job_id
    seeds = seeds_of(len(boxes), options.get("seed")) if len(boxes) else []
    wishes = {}
    for number, (mask, text, seed) in enumerate(zip(masks, prompts, seeds, strict=True), 1):
        own = {"padding_mask_crop": PADDING, **options, "seed": seed}
        wishes[f"{first}-{number}"] = edit(picture, mask, text, cast(EditOptions, own))
    return Repaint(np.asarray(picture.convert("RGB")), masks, wishes)
