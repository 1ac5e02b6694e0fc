"""Sparse edits beside dense ones, on a folder of one's own pictures and masks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessera.contract import EditQuality, Info
from tessera.types import Array
from tessera_client.client import Client
from tessera_client.edits import mask_of
from tessera_client.fitting import hard
from tessera_client.messages import EditOptions
from tessera_client.pictures import picture_of
from tessera_client.results import Result

WAYS = ("dense", "sparse")
_MASK = ".mask"
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_RADIUS, _SIGMA = 5, 1.5


@dataclass(frozen=True)
class Pair:
    """A picture `name.png`, its mask `name.mask.png`, and the prompt of `name.txt`."""

    name: str
    picture: Path
    mask: Path
    prompt: str


@dataclass(frozen=True, eq=False)
class Compared:
    """A pair that has been drawn both ways.

    Attributes:
        pair: the pair.
        picture: the picture.
        mask: (h, w) of UINT8, 255 where it is edited.
        pictures: by way.
        milliseconds: INFO's `total_ms` of each time, by way.
        info: of the sparse edit whose picture this is.
        recordings: what each of the sparse edits read, as INFO says it, each once.
        seconds: that the recording took; 0 if it was there, `None` of a crop, for which a first
            sparse edit has made it.
    """

    pair: Pair
    picture: Image.Image
    mask: Array
    pictures: dict[str, Image.Image]
    milliseconds: dict[str, list[float]]
    info: Info
    recordings: tuple[str, ...]
    seconds: float | None

    @property
    def ssim(self) -> float:
        """Of the two ways, inside the mask."""
        return ssim(*self._both, self.mask)

    @property
    def psnr(self) -> float:
        """Of the two ways, inside the mask, in decibels."""
        return psnr(*self._both, self.mask)

    @property
    def ratio(self) -> float:
        """Share of the pixels that are edited."""
        return float((self.mask > 0).mean())

    @property
    def recording(self) -> str:
        """What the sparse edits read; several words if this changed meanwhile."""
        return ", ".join(self.recordings) or "none"

    def median_ms(self, way: str) -> float:
        """Of all times."""
        return statistics.median(self.milliseconds[way])

    @property
    def _both(self) -> tuple[Array, Array]:
        one, other = (np.asarray(self.pictures[way].convert("RGB")) for way in WAYS)
        return one, other

    @property
    def report(self) -> dict[str, Any]:
        """As the JSON file has it."""
        return {
            "name": self.pair.name,
            "prompt": self.pair.prompt,
            "mask_ratio": round(self.ratio, 4),
            "ssim": round(self.ssim, 4),
            "psnr": round(self.psnr, 2),
            "quality": self.info.edit_quality,
            "sparse_steps": round(self.info.sparse_ticks / max(self.info.ticks, 1), 3),
            "recording": self.recording,
            "recorded_loras": self.info.recorded_loras,
            "recorded_controls": self.info.recorded_controls,
            "margin": self.info.margin,
            "recording_s": None if self.seconds is None else round(self.seconds, 3),
            "milliseconds": self.milliseconds,
            "faster": round(self.median_ms("dense") / self.median_ms("sparse"), 3),
        }


def pairs_in(folder: Path, prompt: str | None) -> list[Pair]:
    """The pairs of a folder, by name.

    Args:
        folder: of pictures and masks.
        prompt: of pictures without a text of their own.

    Raises:
        ValueError: there is none, or a picture or a prompt is missing.
        OSError: the folder cannot be read.
    """
    kinds = Image.registered_extensions()
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in kinds]
    pictures = {p.stem: p for p in files if not p.stem.endswith(_MASK)}
    pairs = []
    for mask in (p for p in files if p.stem.endswith(_MASK)):
        name = mask.stem[: -len(_MASK)]
        if name not in pictures:
            raise ValueError(f"{mask} has no picture; accepted: {name}.png beside it")
        text = folder / f"{name}.txt"
        said = text.read_text(encoding="utf-8").strip() if text.exists() else prompt
        if not said:
            raise ValueError(f"{pictures[name]} has no prompt; accepted: {text}, or --prompt")
        pairs.append(Pair(name, pictures[name], mask, said))
    if not pairs:
        raise ValueError(f"{folder} has no pairs; accepted: name.png with name.mask.png")
    return pairs


def compare(
    client: Client,
    pair: Pair,
    options: EditOptions,
    *,
    repeats: int = 1,
    on_drawn: Callable[[], None] = lambda: None,
) -> Compared:
    """Record a picture as its edits read it, and edit it both ways, in turn.

    Args:
        client: of the server.
        pair: the picture.
        options: of the edits.
        repeats: how often each way is drawn, for its times.
        on_drawn: called after the recording and after each edit.

    Raises:
        TesseraError, TypeError, ValueError: see `Client.edit`.
    """
    picture = picture_of(str(pair.picture), pair.picture)
    mask = hard(mask_of(pair.mask, picture, options), soft=options.get("mask_kind") == "soft")
    drawn: dict[str, list[Result]] = {way: [] for way in WAYS}

    def draw(way: str) -> Result:
        own = options.copy()
        own["mode"] = way
        return client.edit(picture, pair.mask, pair.prompt, **own)

    seconds: float | None = None
    for turn in range(repeats):
        for way in WAYS:
            if way == "sparse" and not turn:  # the dense edit has said of what quality edits are
                quality = drawn["dense"][0].info.edit_quality
                if options.get("padding_mask_crop") is None:
                    seconds = _record(client, picture, pair.prompt, options, quality)
                else:  # only the server knows the picture of the crop
                    draw(way)
                on_drawn()
            drawn[way].append(draw(way))
            on_drawn()
    read = (result.info.recording for result in drawn["sparse"])
    return Compared(
        pair,
        picture,
        mask,
        {way: results[-1].image for way, results in drawn.items()},
        {way: [round(r.info.total_ms, 1) for r in results] for way, results in drawn.items()},
        drawn["sparse"][-1].info,
        tuple(dict.fromkeys(filter(None, read))),
        seconds,
    )


def _record(
    client: Client, picture: Image.Image, prompt: str, options: EditOptions, quality: str | None
) -> float:
    """Register a picture with what its edits read: with their prompts and ControlNets, unless they
    are `fast`. Returns seconds that took; 0 if it had been recorded before.
    """
    names = ["steps", "scheduler", "loras"]
    asked: Any = options
    given: dict[str, Any] = {}
    if quality != EditQuality.FAST:
        names += ["negative_prompt", "prompt_syntax", "clip_skip", "controls"]
        given["prompt"] = prompt
    given |= {name: asked[name] for name in names if asked.get(name) is not None}
    recorded = client.register_template(picture.convert("RGB"), **given)
    return recorded.seconds if recorded.recorded else 0.0


def ssim(one: Array, other: Array, mask: Array) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13; Gaussian window of 1.5) of pictures (h, w,
    3): the mean of its map inside the mask (h, w), on luminance in 0..255.
    """
    a, b = (_luminance(picture) for picture in (one, other))
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance: Array = _blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    below = (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    return float((above / below)[mask > 0].mean())


def psnr(one: Array, other: Array, mask: Array) -> float:
    """Peak signal to noise of pictures (h, w, 3) inside the mask (h, w), in decibels, 99 at
    most.
    """
    difference = one[mask > 0].astype(np.float64) - other[mask > 0]
    error = float(np.square(difference).mean())
    return min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def _luminance(picture: Array) -> Array:
    return np.asarray(Image.fromarray(picture).convert("L"), np.float64)


def _blurred(values: Array) -> Array:
    """By the Gaussian window, mirrored at the borders."""
    places = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(places**2) / (2 * _SIGMA**2))
    for axis in (0, 1):
        room = [(_RADIUS, _RADIUS) if i == axis else (0, 0) for i in range(2)]
        padded = np.moveaxis(np.pad(values, room, "reflect"), axis, 0)
        length = values.shape[axis]
        total = sum(w * padded[i : i + length] for i, w in enumerate(weights / weights.sum()))
        values = np.moveaxis(np.asarray(total), 0, axis)
    return values
