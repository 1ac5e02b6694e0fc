"""Pictures that a caller asks for: checked first, then calls of a model, one for each seed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from tessera.contract import (
    EDIT,
    GENERATE,
    MAX_SEED,
    RANDOM_SEEDS,
    Info,
    MaskKind,
    ModelSpec,
)
from tessera.contract.limits import FEATHER, PRIORITIES
from tessera.types import Array
from tessera_client.bundle import ServedBundle
from tessera_client.checks import choice_of, integer_of, text_of, wrong_type, wrong_value
from tessera_client.controls import ReadControl, control_inputs, controls_of, sizes_differ
from tessera_client.edits import Mask, ReadRegion, mask_of_edit, regions_of
from tessera_client.fitting import PAD, RESIZES, Frame, frame_of, hard, needs_limits, whole_frame
from tessera_client.messages import (
    EditManyOptions,
    EditOptions,
    GenerateOptions,
    ManyOptions,
    encode_all,
    loras_of,
)
from tessera_client.pictures import Picture, picture_of
from tessera_client.results import Result
from tessera_client.wire import Call

FRAMED = ("padding_mask_crop", "extend")
"""Options of an edit whose image the server fits itself."""
_USED = ("seed", "steps", "guidance", "scheduler")


@dataclass(frozen=True, eq=False)
class Order:
    """One picture: the call that asks for it, and what becomes of the answer.

    Attributes:
        call: of the model.
        job_id: of its job.
        prompt, settings: as `Result` has them, without what only the server knows.
        size: whether the settings include width and height.
        frame: where an edit's drawing belongs; `None` where nothing has to be put back.
        picture, mask: of such an edit, whole.
    """

    call: Call
    job_id: str
    prompt: str
    settings: Mapping[str, Any]
    size: bool
    frame: Frame | None = None
    picture: Array | None = None
    mask: Array | None = None

    def result(self, outputs: Mapping[str, Array]) -> Result:
        """The answer of `generate` or `edit`."""
        info = Info.from_json(outputs["INFO"].reshape(-1)[0])
        image = Image.fromarray(outputs["IMAGE"][0])
        if self.frame is not None and self.picture is not None and self.mask is not None:
            feather = int(self.settings.get("mask_feather", FEATHER))
            image = self.frame.put_back(image, self.picture, self.mask, feather)
        used = {name: getattr(info, name) for name in _USED}
        if self.size:
            used |= {"width": info.width, "height": info.height}
        return Result(image, info, self.prompt, {**self.settings, **used})


@dataclass(frozen=True, eq=False)
class Wish:
    """Pictures of one prompt that differ in their seeds: everything is read and checked.

    Attributes:
        name, model: of the model.
        prompt: what they show.
        options: as the caller gave them, without those that are `None`.
        loras: as LORAS has them.
        controls: with their pictures.
        image: of an edit, the right way up; `None` for a template and for a generation.
        mask: of an edit, (h, w) of UINT8; `None` for a generation, and for a template that is
            edited without one.
        regions: of an edit, with their masks.
    """

    name: str
    model: ModelSpec
    prompt: str
    options: dict[str, Any]
    loras: list[dict[str, Any]] = field(default_factory=list)
    controls: list[ReadControl] = field(default_factory=list)
    image: Image.Image | None = None
    mask: Array | None = None
    regions: list[ReadRegion] = field(default_factory=list)

    @property
    def needs_bundle(self) -> bool:
        """Whether an order depends on what the server says of its bundle."""
        if self.image is not None:
            fits = self._framed_there
            return not fits and needs_limits(self.options.get("resize", PAD))
        sized = {"width", "height"} <= set(self.options)
        return sizes_differ(self.controls) and not self._edits and not sized

    def order(self, job_id: str, bundle: ServedBundle | None = None) -> Order:
        """The order of one picture.

        Args:
            job_id: of its job.
            bundle: what is served, if it `needs_bundle`.

        Raises:
            TypeError, ValueError: something cannot be sent.
        """
        given = {k.upper(): v for k, v in self.options.items() if k not in ("loras", "controls")}
        given |= {"PROMPT": self.prompt, "JOB_ID": job_id}
        given["EDIT_QUALITY"] = self.options.get("quality")
        if self.loras:
            given["LORAS"] = json.dumps(self.loras)
        frame = self._frame(bundle)
        back: dict[str, Any] = {}
        if self.mask is not None:
            given["MASK"] = self.mask
        if self.regions:
            given["REGION_PROMPTS"] = [region.prompt for region in self.regions]
            given["REGION_MASKS"] = self._region_masks(frame)
        if self.image is not None and self.mask is not None and frame is not None:
            pixels = np.asarray(self.image.convert("RGB"))
            given["IMAGE"] = pixels if frame.whole else frame.shown(pixels)
            if not frame.whole:
                given["MASK"] = frame.masked(self.mask, soft=self._soft)
                edited = self._edited(self.mask)
                back = {"frame": frame, "picture": pixels, "mask": edited}
        given |= control_inputs(self.controls, frame)
        policy = self.options.get("lora_policy")
        call = Call(
            self.name,
            encode_all(self.model, given),
            ("IMAGE", "INFO"),
            {} if policy is None else {"lora_policy": policy},
            self.options.get("priority", 0),
        )
        settings = self.options | ({"loras": self.loras} if self.loras else {})
        return Order(call, job_id, self.prompt, settings, not self._edits, **back)

    def with_seed(self, seed: int) -> Wish:
        """The same with a seed."""
        options = self.options | {"seed": seed}
        more = (self.loras, self.controls, self.image, self.mask, self.regions)
        return Wish(self.name, self.model, self.prompt, options, *more)

    @property
    def _edits(self) -> bool:
        return self.model is EDIT

    @property
    def _soft(self) -> bool:
        return bool(self.options.get("mask_kind") == MaskKind.SOFT)

    def _edited(self, mask: Array) -> Array:
        """Where the edit changes anything: 255 in the mask and in every region, (h, w)."""
        masks = [mask, *(region.mask for region in self.regions)]
        together: Array = np.maximum.reduce([hard(each, soft=self._soft) for each in masks])
        return together

    def _region_masks(self, frame: Frame | None) -> Array:
        masks = [region.mask for region in self.regions]
        if frame is not None and not frame.whole:
            masks = [frame.masked(mask, soft=self._soft) for mask in masks]
        return np.stack(masks)

    @property
    def _framed_there(self) -> bool:
        """Whether the server decides what is drawn of the image."""
        return any(name in self.options for name in FRAMED)

    def _frame(self, bundle: ServedBundle | None) -> Frame | None:
        """What is drawn of which picture; `None` if there is no picture to go by."""
        if self.image is not None and self.mask is not None:
            if bundle is None or self._framed_there:
                return whole_frame(self.image.size)
            return frame_of(self._edited(self.mask), self.options.get("resize", PAD), bundle)
        if self._edits or not sizes_differ(self.controls):
            return None
        defaults = bundle.defaults if bundle else {}
        width, height = (
            int(self.options.get(side) or defaults.get(side) or 0) for side in ("width", "height")
        )
        return whole_frame((width, height)) if width and height else None


def generation(prompt: str, options: GenerateOptions | ManyOptions) -> Wish:
    """Pictures of a prompt.

    Raises:
        TypeError, ValueError: something is of no accepted form; the sentence names it.
    """
    return _wish("generate", GENERATE, GenerateOptions, prompt, options)


def edit(
    image: Picture | None, mask: Mask, prompt: str, options: EditOptions | EditManyOptions
) -> Wish:
    """Edits of a picture.

    Raises:
        TypeError, ValueError: something is of no accepted form; the sentence names it.
    """
    picture = None if image is None else picture_of("image", image)
    make = partial(_wish, "edit", EDIT, EditOptions, prompt, options)
    regions = regions_of(options.get("regions") or (), picture, options.get("mask_kind"))
    return make(image=picture, mask=mask_of_edit(mask, picture, options), regions=regions)


def seeds_of(n: Any, seed: Any) -> list[int]:
    """The seeds of several pictures: those given, or so many that count up from one.

    Args:
        n: how many; `None` for as many as there are seeds, or else one.
        seed: the first one, `None` for a random one, or a list of all.

    Raises:
        TypeError, ValueError: something is no number, or the two do not fit.
    """
    several = isinstance(seed, Sequence | np.ndarray | range) and not isinstance(seed, str | bytes)
    count = None if n is None else integer_of("n", n, 1, 2**31 - 1)
    if several:
        seeds = [integer_of(f"seed[{i}]", each, 0, MAX_SEED) for i, each in enumerate(seed)]
        if not seeds or count not in (None, len(seeds)):
            raise wrong_value("n", n, f"the {len(seeds)} that seed has, or nothing")
        return seeds
    count = count or 1
    if seed is None:
        first = secrets.randbelow(RANDOM_SEEDS - count)
    else:
        first = integer_of("seed", seed, 0, MAX_SEED - count + 1)
    return list(range(first, first + count))


def numbered(first: str, seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Ids of jobs, and their seeds."""
    for number, seed in enumerate(seeds, start=1):
        yield (f"{first}-{number}" if len(seeds) > 1 else first), seed


def _wish(
    name: str,
    model: ModelSpec,
    known: type[GenerateOptions],
    prompt: str,
    options: Mapping[str, Any],
    **picture: Any,
) -> Wish:
    unknown = sorted(set(options) - set(known.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; known: {', '.join(known.__annotations__)}")
    given = {key: value for key, value in options.items() if value is not None}
    if "resize" in given:
        given["resize"] = choice_of("resize", given["resize"], RESIZES)
        if any(name in given for name in FRAMED):
            raise wrong_value("resize", given["resize"], f"nothing with {' or '.join(FRAMED)}")
    if "lora_policy" in given:
        given["lora_policy"] = text_of("lora_policy", given["lora_policy"])
    if "priority" in given:
        given["priority"] = integer_of("priority", given["priority"], 1, PRIORITIES)
    if isinstance(given.get("seed"), Sequence | np.ndarray):
        many = f"an integer; {name}_many takes several"
        raise wrong_type("seed", given["seed"], many)
    if not isinstance(prompt, str):
        raise wrong_type("prompt", prompt, "a str")
    loras, controls = loras_of(given.get("loras", ())), controls_of(given.get("controls", ()))
    wish = Wish(name, model, prompt, given, loras, controls, **picture)
    encode_all(model, {k.upper(): v for k, v in given.items() if k not in ("loras", "controls")})
    return wish
