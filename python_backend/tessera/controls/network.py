"""One ControlNet behind its Triton model.

It makes the hint of a control image once per request and keeps it. It returns a step's residuals as
one flat tensor. Knows engines and tensors, nothing of Triton.
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
"""How many keys a ControlNet remembers: as many as one call can ask for. `denoise` has eight slots
at most, and each request may use the same ControlNet up to `MAX_CONTROLS` times. Requests that have
lost their slots may be told again."""


class Forgotten(TesseraError):
    """A key that was never sent, or has been dropped since."""

    status = "NOT_FOUND"


class ControlNetwork:
    """A ControlNet, and the hints and conditions of the requests that use it.

    Args:
        step: engine of the graph `controlnet_NAME`.
        hint: engine of the graph `controlnet_NAME_hint`.
        max_rows: largest batch of one engine call.
        kept: how many keys to remember; the least recently used are dropped.
        modes: of a Union: how many it has.
    """

    def __init__(
        self, step: Engine, hint: Engine, *, max_rows: int, kept: int = KEPT, modes: int = 0
    ) -> None:
        self._modes = modes
        self._step = step
        self._hint = hint
        self._max_rows = max_rows
        self._kept = kept
        self._known: OrderedDict[int, dict[str, torch.Tensor]] = OrderedDict()

    def tell(
        self, key: int, image: torch.Tensor, conditions: Tensors, mode: int | None = None
    ) -> None:
        """Remember a request's control image and conditions.

        Args:
            key: identifies the request in `residuals`.
            image: its control image (h, w, 3), UINT8. Where a fourth channel is not 0 the network
                gets -1 instead of colours.
            conditions: the network's other inputs that are the same in every step, by name, one row
                per branch.
            mode: of a Union.
        """
        inputs = {"image": _values(image)}
        if mode is not None:
            inputs["mode"] = torch.nn.functional.one_hot(torch.tensor([mode]), self._modes).float()
        rows = conditions["encoder_hidden_states"].shape[0]
        hints = self._hint.run(inputs)
        expanded = {n: hint.expand(rows, *hint.shape[1:]) for n, hint in hints.items()}
        self._known[key] = {**conditions, **expanded}
        self._known.move_to_end(key)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)

    def residuals(
        self, keys: Sequence[int], sample: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The residuals of one step for the UNet's skips and mid block, unscaled.

        Each residual has all branches, (rows, c, h, w). They are flattened and concatenated.

        Args:
            keys: keys of n requests, sent before by `tell`.
            sample: scaled latents (n, c, h, w).
            timestep: (n,).

        Raises:
            Forgotten: a key is unknown.
        """
        known = [self._find(key) for key in keys]
        branches = torch.tensor([inputs["hint"].shape[0] for inputs in known])
        inputs = {
            "sample": sample.repeat_interleave(branches, 0),
            "timestep": timestep.repeat_interleave(branches),
            **{name: torch.cat([k[name] for k in known]) for name in known[0]},
        }
        rows = len(inputs["sample"])
        starts = range(0, rows, self._max_rows)
        chunks = [{k: v[i : i + self._max_rows] for k, v in inputs.items()} for i in starts]
        outputs = [list(self._step.run(chunk).values()) for chunk in chunks]
        return torch.cat([part.flatten() for parts in zip(*outputs, strict=True) for part in parts])

    def _find(self, key: int) -> dict[str, torch.Tensor]:
        if key not in self._known:
            raise Forgotten(f"control key {key} is unknown; send its control image again")
        self._known.move_to_end(key)
        return self._known[key]


def _values(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, h, w) in 0..1, or -1 where a fourth channel hides a pixel."""
    planes = image.permute(2, 0, 1)[None].float()
    values = planes[:, :3] / 255
    return values if planes.shape[1] == 3 else torch.where(planes[:, 3:] > 0, -1.0, values)
