"""A recorded step as the sparse UNet reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessera.networks.program import Site
from tessera.templates.packing import take, unpack
from tessera.types import Tensors


@dataclass(frozen=True)
class StepCache:
    """`tessera.sparse.batch.Cache` of the arrays of one kept step, in whatever form they are
    kept.
    """

    arrays: Tensors

    def whole(self, site: Site) -> torch.Tensor:
        """All of a site, float32."""
        return unpack(self.arrays, site.name).float()

    def rows(self, site: Site, index: torch.Tensor, out: torch.Tensor) -> None:
        """Write a site's rows of the tokens `index` into `out`."""
        out.copy_(take(self.arrays, site.name, index))
