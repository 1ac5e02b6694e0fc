"""Pictures as front ends read them, and `info`: JSON in a text. Work for a thread."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tessera_client import Result
from tessera_client.metadata import PARAMETERS
from tessera_gateway.drawing import Drawing
from tessera_gateway.pictures import base64_of, encode
from tessera_gateway.sdapi.fields import Img2Img
from tessera_gateway.sdapi.orders import Order
from tessera_gateway.sdapi.samplers import names_of
from tessera_gateway.sdapi.scripts import without_pictures

_PICTURES = ("init_images", "mask")


def answer(order: Order, results: Sequence[Result | None], *, metadata: bool) -> bytes:
    """The answer, as JSON.

    Args:
        order: what was asked for.
        results: the pictures in its order; `None` for one that was interrupted.
        metadata: whether files say how they were made.
    """
    drawn = [(d, r) for d, r in zip(order.drawings, results, strict=True) if r is not None]
    texts = [result.texts() for _, result in drawn]
    images = []
    if order.sent.send_images:
        for (_, result), said in zip(drawn, texts, strict=True):
            picture = order.edit.finished(result.image) if order.edit else result.image
            images.append(base64_of(encode(picture, texts=said if metadata else None)))
    parameters = order.sent.model_dump(exclude={*_PICTURES, "alwayson_scripts"})
    parameters["alwayson_scripts"] = without_pictures(order.sent.alwayson_scripts)
    info = _info(order, drawn, [said[PARAMETERS] for said in texts])
    content = {"images": images, "parameters": parameters, "info": json.dumps(info)}
    return json.dumps(content).encode()


def _info(
    order: Order, drawn: Sequence[tuple[Drawing, Result]], infotexts: list[str]
) -> dict[str, Any]:
    sent, first = order.sent, order.drawings[0]
    seeds = [result.info.seed for _, result in drawn]
    content: dict[str, Any] = {
        "prompt": sent.prompt,
        "all_prompts": [sent.prompt] * len(drawn),
        "negative_prompt": sent.negative_prompt or "",
        "all_negative_prompts": [sent.negative_prompt or ""] * len(drawn),
        "seed": first.options["seed"],
        "all_seeds": seeds,
        "subseed": first.options["seed"],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "batch_size": sent.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": sent.denoising_strength if isinstance(sent, Img2Img) else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"tessera {version('tessera')}",
        "interrupted": len(drawn) < len(order.drawings),
    }
    return content | (_used(drawn[0][1]) if drawn else {})


def _used(result: Result) -> dict[str, Any]:
    info = result.info
    sampler, _ = names_of(info.scheduler)
    return {
        "width": info.width,
        "height": info.height,
        "sampler_name": sampler,
        "cfg_scale": info.guidance,
        "steps": info.steps,
        "clip_skip": info.clip_skip + 1,
        "sd_model_name": info.bundle,
        "sd_model_hash": None,
    }
