"""A recorded step as the sparse UNet reads it. Knows no files and no requests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessera.networks.program import Site
from tessera.templates.packing import take, unpack
from tessera.types import Tensors


@dataclass(frozen=True)
class StepCache:
    """Implements `tessera.sparse.batch.Cache` on one kept step's arrays, in any `Storage` form."""

    arrays: Tensors

    def whole(self, site: Site) -> torch.Tensor:
        """All values of a site, float32."""
        return unpack(self.arrays, site.name).float()

    def rows(self, site: Site, index: torch.Tensor, out: torch.Tensor) -> None:
        """Write a site's rows for the tokens `index` into `out`."""
        out.copy_(take(self.arrays, site.name, index))
