"""Prompts -> text embeddings, as diffusers' StableDiffusionPipeline makes them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from tessera.engines.base import Engine


class TextEncoder:
    """A tokenizer and the text encoder's engine.

    Args:
        tokenizer: folder with the tokenizer's files.
        engine: takes `input_ids` (n, tokens) int64, gives `last_hidden_state` (n, tokens, width).
    """

    def __init__(self, tokenizer: Path, engine: Engine) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._engine = engine

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Embeddings (n, tokens, width); prompts are padded and cut to the encoder's window."""
        ids = self._tokenizer(
            prompts,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self._engine.run({"input_ids": ids})["last_hidden_state"]

    def dropped_tokens(self, prompt: str) -> int:
        """How many of a prompt's tokens lie beyond the encoder's window."""
        count = len(self._tokenizer(prompt, truncation=False).input_ids)
        return max(0, count - int(self._tokenizer.model_max_length))
