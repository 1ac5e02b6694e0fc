"""The token-sparse UNet as engines: one batched call for several requests, on one device or
several.

The sparse counterpart of `tessera.denoise.unet`. Knows engines and tensors, nothing of requests or
stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tessera.engines.base import Engine, Refittable
from tessera.engines.devices import Devices
from tessera.networks.program import Program
from tessera.sparse.batch import Batch, Part
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


@dataclass(frozen=True)
class Share:
    """The rows of a call that one device computes.

    Attributes:
        device: index of the device.
        rows: rows of the call.
        parts: indices of the call's parts that these rows use.
        batch: those parts, with as many branches as there are rows of each.
    """

    device: int
    rows: slice
    parts: tuple[int, ...]
    batch: Batch


class SparseUNets:
    """The token-sparse UNet on all devices of the UNet.

    Args:
        engines: one for each device.
        devices: the devices.
        program: of the UNet.
        graphs: its graphs, each on all devices, for refits.
    """

    def __init__(
        self,
        engines: Sequence[SparseUNetEngines],
        devices: Devices,
        program: Program,
        graphs: Mapping[str, Refittable],
    ) -> None:
        self._engines = tuple(engines)
        self._devices = devices
        self.program = program
        self.graphs = graphs

    @property
    def devices(self) -> list[str]:
        """What torch calls each device."""
        return [engines.device for engines in self._engines]

    def project_text(self, conditions: Conditions) -> Tensors:
        """See `SparseUNetEngines.project_text`. Computed by the first device in use."""
        return self._engines[self._devices.in_use[0]].project_text(conditions)

    def shares(self, parts: Sequence[Part]) -> list[Share]:
        """Split the branches of a call over the devices in use."""
        shares = []
        for device, chosen in self._devices.split(sum(p.branches for p in parts), _cost(parts)):
            within = list(_within(parts, chosen))
            batch = Batch(self.program, [replace(parts[i], branches=n) for i, n in within])
            shares.append(Share(device, chosen, tuple(i for i, _ in within), batch))
        return shares

    def place(self, share: Share, conditions: Conditions) -> Tensors:
        """A share's rows of the call's conditions, on its device."""
        device = self._engines[share.device].device
        return {name: tensor[share.rows].to(device) for name, tensor in conditions.items()}

    def predict(
        self,
        shares: Sequence[Share],
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: Sequence[Tensors],
        cached: Sequence[Tensors],
        maps: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The network's prediction (rows, channels, height, width), zero outside the active
        latents.

        Args:
            shares: the call's shares.
            sample: scaled latents of all rows, with the template's latents outside the masks.
            timestep: (rows,) float32.
            conditions: what `place` returned for each share.
            cached: the result of `Batch.cached` for each share.
            maps: residuals of ControlNets (see `Batch.residuals`), of all rows.

        Raises:
            DeviceLost: a device failed. The requests whose rows it computed have to end.
        """

        def part(device: int, rows: slice, index: int) -> torch.Tensor:
            """The prediction of one device's rows (n, c, h, w), zero where nothing is live."""
            own, batch = sample[rows], shares[index].batch
            of_rows = [m[rows] for m in maps] if maps else None
            live = self._engines[device].predict(
                batch, own, timestep[rows], conditions[index], cached[index], of_rows
            )
            return batch.scatter(live, own.new_zeros(len(own), live.shape[2], *own.shape[2:]))

        if len(shares) == 1 and len(self._devices) == 1:
            return part(0, shares[0].rows, 0)
        placed = [(share.device, share.rows) for share in shares]
        parts = [p for share in shares for p in share.batch.parts]
        return torch.cat(self._devices.run(placed, part, _cost(parts)))


def _cost(parts: Sequence[Part]) -> tuple[str, int]:
    """Kind and active tokens of a row of a call: padding makes all rows as long as the longest."""
    return "sparse", max(part.tables.levels[0].count for part in parts)


def _within(parts: Sequence[Part], rows: slice) -> Iterator[tuple[int, int]]:
    """The parts that some rows of a call use, and how many of the rows use each."""
    first = 0
    for index, part in enumerate(parts):
        end = first + part.branches
        count = min(end, rows.stop) - max(first, rows.start)
        if count > 0:
            yield index, count
        first = end
