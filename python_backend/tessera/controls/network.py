"""One ControlNet behind its model: the embedding of a control picture is made once per request and
kept; a step's residuals come as one flat tensor.

Knows engines and tensors, nothing of Triton.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from tessera.contract import MAX_CONTROLS
from tessera.engines.base import Engine
from tessera.errors import TesseraError
from tessera.types import Tensors

CONDITIONS = {"TEXT": "encoder_hidden_states", "POOLED": "text_embeds", "SIZES": "time_ids"}
"""Inputs of a ControlNet's model that stay the same from step to step, and what they are called in
the network."""

KEPT = 8 * MAX_CONTROLS
"""Requests that a ControlNet remembers: as many as can ask it in one call, since a model of eight
slots may give every one of them as many uses of it as a request can have."""


class Forgotten(TesseraError):
    """A key that was never told, or too long ago."""

    status = "NOT_FOUND"


class ControlNetwork:
    """A ControlNet and what it remembers of requests.

    Args:
        step: engine of the graph `controlnet_NAME`.
        hint: engine of the graph `controlnet_NAME_hint`.
        max_rows: largest batch of one engine call.
        kept: how many requests to remember, the latest asked for.
    """

    def __init__(self, step: Engine, hint: Engine, *, max_rows: int, kept: int = KEPT) -> None:
        self._step = step
        self._hint = hint
        self._max_rows = max_rows
        self._kept = kept
        self._known: OrderedDict[int, dict[str, torch.Tensor]] = OrderedDict()

    def tell(self, key: int, image: torch.Tensor, conditions: Tensors) -> None:
        """Remember a request.

        Args:
            key: what `residuals` will call it.
            image: its control picture (h, w, 3), UINT8.
            conditions: its text and what else the network takes, by name, a row for each branch.
        """
        pixels = image.permute(2, 0, 1)[None].float() / 255
        hint = self._hint.run({"image": pixels})["hint"]
        rows = conditions["encoder_hidden_states"].shape[0]
        self._known[key] = {**conditions, "hint": hint.expand(rows, -1, -1, -1)}
        self._known.move_to_end(key)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)

    def residuals(
        self, keys: Sequence[int], sample: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """What one step adds to the UNet's skips and its mid block's result, unscaled: those of all
        branches (rows, c, h, w), flattened, one after the other.

        Args:
            keys: of n requests that have been told.
            sample: scaled latents (n, c, h, w).
            timestep: (n,).

        Raises:
            Forgotten: a key is not known.
        """
        found = [self._find(key) for key in keys]
        branches = torch.tensor([f["hint"].shape[0] for f in found])
        inputs = {
            "sample": sample.repeat_interleave(branches, 0),
            "timestep": timestep.repeat_interleave(branches),
            **{name: torch.cat([f[name] for f in found]) for name in found[0]},
        }
        rows = len(inputs["sample"])
        starts = range(0, rows, self._max_rows)
        chunks = [{k: v[i : i + self._max_rows] for k, v in inputs.items()} for i in starts]
        outputs = [list(self._step.run(chunk).values()) for chunk in chunks]
        return torch.cat([part.flatten() for parts in zip(*outputs, strict=True) for part in parts])

    def _find(self, key: int) -> dict[str, torch.Tensor]:
        if key not in self._known:
            raise Forgotten(f"the control picture {key} is not known here")
        self._known.move_to_end(key)
        return self._known[key]
