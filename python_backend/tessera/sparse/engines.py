"""The token-sparse UNet as engines: one batched call for several requests.

The sparse counterpart of `tessera.denoise.unet`. Knows engines and tensors, nothing of requests or
stores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tessera.engines.base import Engine
from tessera.sparse.batch import Batch
from tessera.types import Conditions, Tensors


class SparseUNetEngines:
    """The engines of the graphs `unet_sparse` and `unet_text`.

    Args:
        step: runs `unet_sparse`.
        text: runs `unet_text`.
    """

    def __init__(self, step: Engine, text: Engine) -> None:
        self._step = step
        self._text = text
        self.device = step.describe().device

    def project_text(self, conditions: Conditions) -> Tensors:
        """Replace the text embeddings by their keys and values. Rows remain branches.

        Call it once per request and adapter set.
        """
        text = {"encoder_hidden_states": conditions["encoder_hidden_states"]}
        others = {k: v for k, v in conditions.items() if k not in text}
        return others | self._text.run(text)

    def predict(
        self,
        batch: Batch,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: Conditions,
        cached: Tensors,
        maps: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The network's prediction for the active latents: (branches, n_0, channels), float32.

        `Batch.scatter` puts it back into latents.

        Args:
            batch: the requests' masks.
            sample: scaled latents (branches, channels, height, width), with the template's latents
                outside the masks.
            timestep: (branches,) float32.
            conditions: the result of `project_text`, one row per branch.
            cached: the result of `Batch.cached` for the step's caches.
            maps: residuals of ControlNets (see `Batch.residuals`).
        """
        inputs = {
            **conditions,
            **batch.fixed,
            **cached,
            **batch.sample(sample),
            **(batch.residuals(maps) if maps else {}),
            "timestep": timestep,
        }
        return self._step.run(inputs)["prediction"].float().cpu()
