"""The dense UNet: its encoder half and decoder half as one batched call.

Knows engines and tensors, nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from tessera import trace
from tessera.engines.base import Engine
from tessera.types import Conditions
from tessera.variants import Variant


class Join(Protocol):
    """Adds residuals to the encoder half's outputs before the decoder half runs."""

    def add(self, encoded: dict[str, torch.Tensor], first: int = 0) -> None:
        """Add residuals to the encoder half's outputs in place.

        Args:
            encoded: the outputs, for rows of the batch from `first` on.
            first: index of the first row.
        """
        ...

    def maps(self, shapes: Sequence[torch.Size], rows: int) -> list[torch.Tensor]:
        """The residuals themselves, for a UNet that is not cut into halves.

        Returns:
            (rows, c, h, w) for each of the `shapes` (c, h, w).
        """
        ...


class UNet:
    """Two engines that share a batch.

    Args:
        encoder: `sample` (n, c, h, w), `timestep` (n,) and the conditions -> `mid`, `emb`, `skip_0`
            ... `skip_k`.
        decoder: those and `encoder_hidden_states` -> `prediction` (n, c, h, w).
        max_rows: largest batch of one engine call.
    """

    def __init__(self, encoder: Engine, decoder: Engine, *, max_rows: int) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._max_rows = max_rows

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: Conditions,
        join: Join | None = None,
    ) -> torch.Tensor:
        """The network's prediction (n, c, h, w).

        Args:
            sample: scaled latents (n, c, h, w), float32.
            timestep: (n,) float32.
            conditions: the result of `conditions_of`, n rows each.
            join: adds the residuals of ControlNets between the halves.
        """
        inputs = {"sample": sample, "timestep": timestep, **conditions}
        rows = sample.shape[0]
        if rows <= self._max_rows:
            return self._call(inputs, join, 0)
        starts = range(0, rows, self._max_rows)
        chunks = [(i, {k: v[i : i + self._max_rows] for k, v in inputs.items()}) for i in starts]
        return torch.cat([self._call(chunk, join, first) for first, chunk in chunks])

    def _call(self, inputs: Conditions, join: Join | None, first: int) -> torch.Tensor:
        with trace.span("encoder half", rows=inputs["sample"].shape[0]):
            encoded = self._encoder.run(inputs)
        if join:
            with trace.span("join"):
                join.add(encoded, first)
        text = inputs["encoder_hidden_states"]
        with trace.span("decoder half"):
            outputs = self._decoder.run({**encoded, "encoder_hidden_states": text})
            return outputs["prediction"].float().cpu()


def conditions_of(
    text: torch.Tensor, pooled: torch.Tensor, *, width: int, height: int, variant: Variant
) -> Conditions:
    """The inputs that are the same in all UNet calls of an image, by name of the input.

    Args:
        text: embeddings (branches, tokens, width).
        pooled: embeddings (branches, width).
        width: of the image, in pixels.
        height: of the image, in pixels. A variant that conditions on sizes gets this size as both
            the original and the target size, without a crop, as in diffusers' pipeline.
        variant: determines which inputs there are.
    """
    conditions = {"encoder_hidden_states": text}
    if variant.pooled:
        sizes = torch.tensor([float(n) for n in (height, width, 0, 0, height, width)])
        conditions |= {"text_embeds": pooled, "time_ids": sizes.repeat(text.shape[0], 1)}
    return conditions
