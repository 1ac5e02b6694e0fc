"""Prompts to embeddings, with the same result as diffusers' Stable Diffusion pipelines.

Knows tokenizers and engines, nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tessera.codec.tokenizer import open_tokenizer
from tessera.engines.base import Engine


@dataclass(frozen=True)
class Embeddings:
    """Text embeddings for the UNet, one row per prompt.

    Attributes:
        hidden: (n, tokens, width); `width` is the sum of the encoders' widths.
        pooled: (n, width) from the last encoder. A variant without it has (n, 1) zeros, since all
            requests have to carry the same tensors.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor

    def zeroed(self, row: int) -> Embeddings:
        """A copy of these embeddings with one row set to zero."""
        hidden, pooled = self.hidden.clone(), self.pooled.clone()
        hidden[row], pooled[row] = 0, 0
        return Embeddings(hidden, pooled)


class TextEncoder:
    """A tokenizer and a text encoder's engine.

    Args:
        tokenizer: folder of the tokenizer's files.
        engine: takes `input_ids` (n, tokens) int64. It returns `penultimate_hidden_state` or
            `last_hidden_state` (n, tokens, width), and for some encoders `text_embeds` (n, width).
    """

    def __init__(self, tokenizer: Path, engine: Engine) -> None:
        self._tokenizer = open_tokenizer(tokenizer)
        self._engine = engine

    def encode(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states and pooled embeddings, if the encoder has any.

        Prompts are padded or truncated to the encoder's window.
        """
        ids = torch.tensor(self._tokenizer.encode(prompts))
        outputs = self._engine.run({"input_ids": ids})
        hidden = outputs.get("penultimate_hidden_state", outputs.get("last_hidden_state"))
        assert hidden is not None, "a text encoder returns one of the two"
        pooled = outputs.get("text_embeds")
        return hidden.float().cpu(), None if pooled is None else pooled.float().cpu()

    def dropped_tokens(self, prompt: str) -> int:
        """How many of a prompt's tokens lie beyond the encoder's window."""
        return self._tokenizer.dropped(prompt)


def embed(encoders: Sequence[TextEncoder], prompts: Sequence[str]) -> Embeddings:
    """Embeddings of prompts from all encoders of a variant."""
    encoded = [encoder.encode(prompts) for encoder in encoders]
    pooled = encoded[-1][1]
    return Embeddings(
        hidden=torch.cat([hidden for hidden, _ in encoded], dim=-1),
        pooled=torch.zeros(len(prompts), 1) if pooled is None else pooled,
    )
