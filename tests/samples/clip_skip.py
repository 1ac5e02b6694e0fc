"""Diffusers' `clip_skip` beside a transformers that it does not know yet."""

from __future__ import annotations

from typing import Any


def mended(pipe: Any) -> Any:
    """The pipeline, in which `clip_skip` works: diffusers 0.42.1 looks for the final layer norm in
    `text_model`, which transformers 5 no longer has.
    """
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)  # not as a child of itself
    return pipe
