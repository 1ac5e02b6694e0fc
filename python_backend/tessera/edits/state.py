"""What a request keeps while it is denoised sparsely. Knows tensors and recordings, no engines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import max_pool2d

from tessera.contract import Stats
from tessera.denoise.running import Running
from tessera.edits.chooser import Kinds
from tessera.plan import AdapterUse
from tessera.sparse.batch import Part
from tessera.templates.nearest import Chosen
from tessera.templates.store import Recording
from tessera.types import Conditions

_numbers = itertools.count()


@dataclass
class SparseState:
    """The state of a request that is denoised sparsely.

    Attributes:
        parts: the request's mask, once for each recording.
        chosen: the recordings of its template.
        conditions: the network's conditions, one row per branch.
        kinds: for each evaluation of the network, whether it is sparse.
        planned: for each evaluation, whether the wanted quality lets it be sparse.
        adapted: whether the edit has LoRAs in the UNet.
        margin: how many latents the computed tokens extend beyond the mask.
        number: unique number of this state and of what its text has been projected with.
    """

    parts: tuple[Part, ...]
    chosen: Chosen
    conditions: Conditions
    kinds: Kinds
    planned: Kinds
    adapted: bool
    margin: int
    number: int = field(default_factory=lambda: next(_numbers))
    _projected: tuple[tuple[AdapterUse, ...], Conditions] | None = None

    @property
    def active_latents(self) -> int:
        """How many latents a sparse step computes."""
        return self.parts[0].tables.levels[0].count

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """In the order of the branches, of which neighbours may share one."""
        return self.chosen.recordings

    @property
    def projected(self) -> Conditions:
        """The conditions, with the text's keys and values instead of the text."""
        assert self._projected is not None, "a group's texts have been projected"
        return self._projected[1]

    def project(
        self, adapters: tuple[AdapterUse, ...], projection: Callable[[Conditions], Conditions]
    ) -> None:
        """Project the text, unless that has been done with the adapter set that is in the
        engines.
        """
        if self._projected is None or self._projected[0] != adapters:
            self._projected = adapters, projection(self.conditions)
            self.number = next(_numbers)

    def tell(self, stats: Stats) -> None:
        """What stats say of the recordings."""
        stats.recording, stats.margin = self.chosen.nearness, self.margin
        stats.recorded_controls = self.chosen.with_controls
        if self.adapted:
            stats.recorded_loras = not self.chosen.without_loras

    def sparse_from(self, step: int) -> list[int]:
        """The request's sparse steps from `step` on."""
        return [i for i in range(step, len(self.kinds)) if self.kinds[i]]

    def uses(self, digest: str) -> bool:
        """Whether it reads a recording."""
        return any(recording.key.digest == digest for recording in self.recordings)


def widened(active: torch.Tensor, margin: int) -> npt.NDArray[np.bool_]:
    """Grow a mask of latents (1, 1, h, w) by `margin` latents; returns it as (h, w)."""
    wide = max_pool2d(active.float(), 2 * margin + 1, 1, margin)
    mask: npt.NDArray[np.bool_] = wide[0, 0].bool().numpy()
    return mask


def state_of(request: Running) -> SparseState:
    """A request's sparse state, which it has to have."""
    assert isinstance(request.sparse, SparseState), "only requests with a sparse state come here"
    return request.sparse


def active_of(request: Running) -> int:
    """How many latents a sparse step of a request computes."""
    return state_of(request).active_latents


def key_of(group: Sequence[Running]) -> tuple[int, ...]:
    """Identifies a group's states."""
    return tuple(state_of(request).number for request in group)
