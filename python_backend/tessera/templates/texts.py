"""What prompts are to the network: embeddings, kept beside the recordings that were made with them.

They serve two purposes. The recorder needs them, and an edit whose own prompt has not been recorded
finds the recording of the nearest one by them. The prompts themselves are not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tessera.templates.files import age, read, write
from tessera.types import Tensors

ZEROED = "0" * 16
"""The text id of embeddings of zeros. SDXL has them where a negative prompt is left out; an empty
one that is given is encoded."""


def text_id(
    prompt: str,
    *,
    syntax: str = "weighted",
    clip_skip: int = 0,
    words: Sequence[str] = (),
    loras: Sequence[tuple[str, float]] = (),
) -> str:
    """Identifies a prompt among those of recordings; "" is the empty one.

    Args:
        prompt: its text.
        syntax: how it is read.
        clip_skip: how many of the text encoders' last layers it skips.
        words: textual inversions in it, see `Words.versions_in`.
        loras: digest and weight of each LoRA in the text encoders.
    """
    if not prompt.strip():
        return ""
    content = json.dumps([prompt, syntax, clip_skip, sorted(words), sorted(loras)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def zeroed(text: Tensors) -> Tensors:
    """What `ZEROED` stands for, in the shapes of a prompt's embeddings."""
    return {name: tensor.new_zeros(tensor.shape) for name, tensor in text.items()}


class Texts:
    """Embeddings of prompts in a folder, by the names of their recordings."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, text: Tensors) -> None:
        """Write a prompt's `hidden` (tokens, width) and `pooled` (width,), unless they are there.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        import safetensors.torch

        if self.get(name) is None:
            content = {key: tensor.contiguous() for key, tensor in text.items()}
            write(self._path(name), safetensors.torch.save(content))
        else:
            with contextlib.suppress(OSError):
                os.utime(self._path(name))  # it is about to be needed

    def get(self, name: str) -> Tensors | None:
        """Inverse of `put`; `None` if it is not there, or damaged."""
        import safetensors.torch

        try:
            return dict(safetensors.torch.load(read(self._path(name))))
        except (OSError, ValueError, safetensors.SafetensorError):
            return None

    def sweep(self, used: Callable[[str], bool], seconds: float) -> None:
        """Remove what is not used and older than some seconds."""
        for path in self._folder.glob("[!.]*.safetensors"):
            if age(path) > seconds and not used(path.stem):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
