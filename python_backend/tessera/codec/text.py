"""Prompts to embeddings; those of plain ones are those of diffusers' Stable Diffusion pipelines.

Knows tokenizers and engines, nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tessera.codec.chunks import Chunks, chunks_of, empty_chunk
from tessera.codec.tokenizer import open_tokenizer
from tessera.codec.words import NO_WORDS, Words
from tessera.contract import PromptSyntax
from tessera.engines.base import Engine

_ROWS = 2
"""Rows of a call of a text encoder's engine: compiled ones take no more."""


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
        engine: takes the inputs of `networks.text_modules`, or `input_ids` (n, tokens) int64 only
            if an older builder exported its graph; of at most `_ROWS` rows. It returns
            `penultimate_hidden_state` or `last_hidden_state` (n, tokens, width), and for some
            encoders `text_embeds` (n, width).
        width: of its token embeddings.
    """

    def __init__(self, tokenizer: Path, engine: Engine, *, width: int) -> None:
        self._tokenizer = open_tokenizer(tokenizer)
        self._engine = engine
        self._width = width
        self._takes = engine.describe().inputs

    def chunks(self, prompt: str, syntax: str, words: Words = NO_WORDS) -> Chunks:
        """The tokens of a prompt, see `chunks_of`."""
        return chunks_of(self._tokenizer, prompt, syntax, words)

    def encode(
        self,
        prompts: Sequence[Chunks],
        *,
        clip_skips: Sequence[int] = (),
        vectors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states (n, chunks * window, width), and the pooled embeddings (n, width) of the
        first chunks, if the encoder has any.

        Args:
            prompts: their tokens.
            clip_skips: how many of the last layers each prompt skips; none by default.
            vectors: (k, width); a token of -1 - i is the i-th.

        Prompts with fewer chunks than others get empty ones. A weight w of a token moves its
        hidden state h to e + w (h - e), with e of an empty prompt at the same place, as ComfyUI
        and compel do it.
        """
        most = max(len(prompt.ids) for prompt in prompts)
        empty = empty_chunk(self._tokenizer)
        rows = [row for p in prompts for row in [*p.ids, *[empty] * (most - len(p.ids))]]
        skips = [skip for skip in clip_skips or [0] * len(prompts) for _ in range(most)]
        weighted = any(prompt.weighted for prompt in prompts)
        different = sorted(set(skips)) if weighted else []
        hidden, pooled = self._run(
            [*rows, *[empty] * len(different)], [*skips, *different], vectors
        )
        if weighted:
            empties = hidden[len(rows) :][[different.index(skip) for skip in skips]]
            hidden = _weighed(hidden[: len(rows)], empties, _weights(prompts, most))
        first = None if pooled is None else pooled[: len(rows) : most]
        return hidden.reshape(len(prompts), -1, hidden.shape[-1]), first

    def _run(
        self, rows: list[list[int]], skips: list[int], vectors: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden, pooled = [], []
        pairs = zip(torch.tensor(rows).split(_ROWS), torch.tensor(skips).split(_ROWS), strict=True)
        for ids, skip in pairs:
            inputs = {"input_ids": ids, "clip_skip": skip}
            inputs["vectors"] = _placed(ids, vectors, self._width)
            taken = {n: i for n, i in inputs.items() if n == "input_ids" or n in self._takes}
            outputs = self._engine.run(taken)
            state = outputs.get("penultimate_hidden_state", outputs.get("last_hidden_state"))
            assert state is not None, "a text encoder returns one of the two"
            hidden.append(state.float().cpu())
            if "text_embeds" in outputs:
                pooled.append(outputs["text_embeds"].float().cpu())
        return torch.cat(hidden), torch.cat(pooled) if pooled else None


def embed(
    encoders: Sequence[TextEncoder],
    prompts: Sequence[str],
    syntax: str = PromptSyntax.PLAIN,
    *,
    clip_skips: Sequence[int] = (),
    words: Words = NO_WORDS,
) -> Embeddings:
    """Embeddings of prompts from all encoders of a variant; all have as many tokens as the one
    with the most chunks.

    Args:
        encoders: of the variant.
        prompts: texts.
        syntax: one of `PROMPT_SYNTAXES`.
        clip_skips: how many of the last layers each prompt skips; none by default.
        words: of textual inversion.
    """
    encoded = [
        encoder.encode(
            [encoder.chunks(prompt, syntax, words) for prompt in prompts],
            clip_skips=clip_skips,
            vectors=words.vectors[number] if words.vectors else None,
        )
        for number, encoder in enumerate(encoders)
    ]
    pooled = encoded[-1][1]
    return Embeddings(
        hidden=torch.cat([hidden for hidden, _ in encoded], dim=-1),
        pooled=torch.zeros(len(prompts), 1) if pooled is None else pooled,
    )


def _placed(ids: torch.Tensor, vectors: torch.Tensor | None, width: int) -> torch.Tensor:
    """(n, tokens, width): vectors where tokens are below 0, else zeros."""
    placed = torch.zeros(*ids.shape, width)
    if vectors is not None:
        inserted = ids < 0
        placed[inserted] = vectors[-1 - ids[inserted]]
    return placed


def _weights(prompts: Sequence[Chunks], most: int) -> torch.Tensor:
    """(n * most, window); empty chunks have the weight 1."""
    window = len(prompts[0].ids[0])
    weights = torch.ones(len(prompts), most, window)
    for row, prompt in zip(weights, prompts, strict=True):
        row[: len(prompt.weights)] = torch.tensor(prompt.weights)
    return weights.flatten(0, 1)


def _weighed(hidden: torch.Tensor, empty: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Hidden states (n, window, width), of prompts and of the empty one; those of weight 1 are not
    touched.
    """
    weights = weights[..., None]
    return torch.where(weights == 1, hidden, empty + (hidden - empty) * weights)
