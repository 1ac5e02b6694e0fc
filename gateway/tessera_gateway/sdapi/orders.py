"""A request as drawings."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from tessera_client import ServedBundle
from tessera_client.messages import EditOptions
from tessera_gateway.drawing import Drawing, numbered
from tessera_gateway.errors import invalid
from tessera_gateway.pictures import decode_url
from tessera_gateway.sdapi.edits import Edit, read_edit
from tessera_gateway.sdapi.fields import Img2Img, Txt2Img, check_fields, check_size
from tessera_gateway.sdapi.lists import check_checkpoint
from tessera_gateway.sdapi.prompts import read_prompt
from tessera_gateway.sdapi.samplers import scheduler_of
from tessera_gateway.sdapi.scripts import read_controls

_SEEDS = 2**32
"""Random seeds are below; JavaScript keeps larger ones inexactly."""
_NO_VAE = ("", "None", "Automatic")


@dataclass(frozen=True)
class Order:
    """What a request asks for.

    Attributes:
        edit: how pictures are finished; `None` for generations.
    """

    sent: Txt2Img
    drawings: Sequence[Drawing]
    edit: Edit | None = None


def read_order(sent: Txt2Img, bundle: ServedBundle, max_pixels: int) -> Order:
    """The order of a request; work for a thread.

    Raises:
        ApiError: something in it is not accepted.
    """
    check_fields(sent)
    check_size(sent.width, sent.height, bundle)
    settings = sent.override_settings or {}
    _check_settings(settings, bundle)
    prompt, loras = read_prompt(sent.prompt)
    edit = read_edit(sent, bundle, max_pixels) if isinstance(sent, Img2Img) else None
    given: dict[str, Any] = {
        "negative_prompt": sent.negative_prompt,
        "seed": secrets.randbelow(_SEEDS) if sent.seed in (None, -1) else sent.seed,
        "steps": sent.steps,
        "guidance": sent.cfg_scale,
        "scheduler": scheduler_of(
            sent.sampler_name or sent.sampler_index,
            sent.scheduler,
            bundle.schedulers,
            bundle.defaults["scheduler"],
        ),
        "clip_skip": _clip_skip(settings, bundle),
        "loras": loras,
        "controls": read_controls(
            sent.alwayson_scripts or {},
            partial(decode_url, max_pixels=max_pixels),
            Image.fromarray(edit.image) if edit else None,
        ),
    }
    if isinstance(sent, Img2Img) and edit:
        given |= edit.options | sent.beyond | {"strength": sent.denoising_strength}
    else:
        given |= {"width": sent.width, "height": sent.height}
    options = EditOptions(**{k: v for k, v in given.items() if v not in (None, [])})  # type: ignore[typeddict-item]
    drawing = Drawing(prompt, uuid.uuid4().hex, options)
    if edit:
        drawing = Drawing(prompt, drawing.job_id, options, edit.image, edit.mask)
    return Order(sent, numbered(drawing, sent.count), edit)


def _check_settings(settings: dict[str, Any], bundle: ServedBundle) -> None:
    """Settings of webui that would change the picture; all others are left out."""
    checkpoint = settings.get("sd_model_checkpoint")
    if checkpoint is not None:
        check_checkpoint("override_settings.sd_model_checkpoint", checkpoint, bundle)
    vae = settings.get("sd_vae")
    if vae is not None and vae not in _NO_VAE:
        raise invalid("override_settings.sd_vae", vae, "Automatic, None: the bundle has one VAE")


def _clip_skip(settings: dict[str, Any], bundle: ServedBundle) -> int | None:
    """Layers to skip. Webui counts the last one as 1, and leaves XL's encoders as they are."""
    layers = settings.get("CLIP_stop_at_last_layers")
    if layers in (None, 0, 1) or bundle.variant == "sdxl":
        return None
    if not isinstance(layers, int) or not 1 <= layers <= bundle.clip_skip + 1:
        accepted = f"an integer from 1 to {bundle.clip_skip + 1}"
        raise invalid("override_settings.CLIP_stop_at_last_layers", layers, accepted)
    return layers - 1
