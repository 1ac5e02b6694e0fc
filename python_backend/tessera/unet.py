"""The dense UNet: encoder half and decoder half as one batched call.

Knows engines and tensors, nothing of requests.
"""

from __future__ import annotations

import torch

from tessera.engines.base import Engine


class UNet:
    """Two engines that share a batch.

    Args:
        encoder: `sample` (n, c, h, w), `timestep` (n,), `encoder_hidden_states` (n, tokens, width)
            -> `mid`, `emb`, `skip_0` ... `skip_k`.
        decoder: those and `encoder_hidden_states` -> `prediction` (n, c, h, w).
        max_rows: largest batch of one engine call.
    """

    def __init__(self, encoder: Engine, decoder: Engine, *, max_rows: int) -> None:
        self._encoder, self._decoder, self._max_rows = encoder, decoder, max_rows

    def predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """The network's prediction (n, c, h, w).

        Args:
            sample: scaled latents (n, c, h, w), float32.
            timestep: (n,) float32.
            text: embeddings (n, tokens, width), float32.
        """
        if sample.shape[0] <= self._max_rows:
            return self._call(sample, timestep, text)
        rows = zip(*(t.split(self._max_rows) for t in (sample, timestep, text)), strict=True)
        return torch.cat([self._call(*chunk) for chunk in rows])

    def _call(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        encoded = self._encoder.run(
            {"sample": sample, "timestep": timestep, "encoder_hidden_states": text}
        )
        return self._decoder.run({**encoded, "encoder_hidden_states": text})["prediction"]
