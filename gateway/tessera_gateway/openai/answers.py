"""Answers: pictures as OpenAI's API has them, with seed and INFO in `tessera`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from tessera_client import Result
from tessera_gateway.openai.orders import Order
from tessera_gateway.pictures import base64_of, encode

TOKEN_PIXELS = 8 * 8
"""What `usage` counts as one token of a picture."""


def file_of(order: Order, result: Result, *, metadata: bool) -> bytes:
    """A picture's file."""
    texts = result.texts() if metadata else {}
    return encode(result.image, order.form, order.compression, texts)


def partial_of(order: Order, image: Image.Image) -> str:
    """A preview as JSON has it."""
    return base64_of(encode(image, order.form, order.compression))


def said_of(result: Result) -> dict[str, Any]:
    """What we add to a picture."""
    info = result.info
    return {"job_id": info.job_id, "seed": info.seed, "info": asdict(info)}


def head_of(order: Order, drawn: tuple[int, int]) -> dict[str, Any]:
    """What an answer and each event say of all pictures.

    Args:
        order: what was asked for.
        drawn: (width, height) of a picture or a preview, if the order does not know it.
    """
    width, height = order.size or drawn
    return {
        "background": "opaque",
        "output_format": str(order.form),
        "quality": order.quality,
        "size": f"{width}x{height}",
    }


def answer(
    order: Order, results: Sequence[Result], *, metadata: bool, keep: Callable[[bytes], str]
) -> bytes:
    """The answer to a request without a stream, as JSON; work for a thread.

    Args:
        order: what was asked for.
        results: the pictures, in its order.
        metadata: whether files say how they were made.
        keep: keeps a file and returns its URL.
    """
    data = []
    for result in results:
        file = file_of(order, result, metadata=metadata)
        shown = {"url": keep(file)} if order.as_url else {"b64_json": base64_of(file)}
        data.append({**shown, "tessera": said_of(result)})
    content = {
        "created": int(time.time()),
        "data": data,
        **head_of(order, results[0].image.size),
        "usage": usage_of(order, results),
    }
    return json.dumps(content).encode()


def usage_of(order: Order, results: Sequence[Result]) -> dict[str, Any]:
    """Tokens of the prompt, which counts once, and of pictures, by their size."""
    width, height = order.size or results[0].image.size
    of_picture = width * height // TOKEN_PIXELS
    text = results[0].info.prompt_tokens
    image = of_picture if order.drawings[0].edits else 0
    output = of_picture * len(results)
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": output,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
        "total_tokens": text + image + output,
    }
