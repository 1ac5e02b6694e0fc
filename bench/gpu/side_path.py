"""Where the low-rank side path becomes cheaper than refits in turns: one step of n guided requests
with n different LoRAs of rank 32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.gpu import networks
from bench.gpu.loras import BUDGET, RANK, Engines, loader, set_of, write_lora
from bench.gpu.timing import Options, Place, medians, milliseconds, options, place
from tessera.adapters.factors import FactorStore
from tessera.adapters.side import GRAPHS, SET, SidePath
from tessera.denoise.unet import UNet
from tessera.engines.devices import Device, Devices
from tessera.manifest import LOWRANK
from tessera.networks.slots import slots_of
from tessera.networks.walk import outline_of

SETS = (1, 2, 4, 8)
STEPS = 30
"""Of a request: a refit in turns is spread over them."""
ROWS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each number of sets."""
    chosen, where = options(arguments), place()
    counts = (1, 2) if chosen.tiny else SETS
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(chosen, Path(folder), where, max(counts))
        for count in counts:
            chosen.report.add(**sides.measure(count))


class Sides:
    """Both paths on true networks."""

    def __init__(self, chosen: Options, folder: Path, where: Place, count: int) -> None:
        self._effort = chosen.effort(9, 6.0)
        config = networks.configs(chosen.variant, tiny=chosen.tiny)["unet"]
        unet = networks.random_network("unet", config, where)
        self._names = [f"lora{number}" for number in range(count)]
        for seed, name in enumerate(self._names):
            write_lora(folder / f"{name}.safetensors", unet, seed=seed)
        self._unet, self._variant = unet, chosen.variant
        self._side = networks.side_of(chosen.variant, tiny=chosen.tiny)
        engines = Engines(folder, unet, chosen.variant, where)
        self._store = engines.store()
        self._sets = [set_of(self._store, name) for name in self._names]
        self._patcher = engines.patcher()
        self._dense = UNet(*engines.halves, max_rows=ROWS)
        own = networks.random_network("unet", config, where)
        outline = outline_of(unet)
        slots = [slots_of(outline.half(graph.removesuffix(LOWRANK))) for graph in GRAPHS]
        load = loader(self._store)
        factors = FactorStore(slots, load, budget=BUDGET, device=where.device, dtype=where.dtype)
        self._path = SidePath(
            lambda: [[networks.engine(g, own, chosen.variant, where, graphs=0)] for g in GRAPHS],
            factors,
            Devices([Device(where.device, where.device)]),
            max_rows=ROWS * count,
            max_rank=2 * RANK,
            background=False,
        )

    def measure(self, count: int) -> dict[str, Any]:
        """Milliseconds of a step of `count` requests by both paths."""
        sets = self._sets[:count]
        members: Any = [(SimpleNamespace(branches=ROWS, side={}, error=None), s) for s in sets]
        pair, batch = (self._inputs(rows) for rows in (ROWS, ROWS * count))

        def side() -> None:
            self._path.enter(members)
            numbers = torch.cat([request.side[SET] for request, _ in members])
            inputs = {**batch, SET: numbers}
            self._path.predict(inputs.pop("sample"), inputs.pop("timestep"), inputs, None)

        def dense() -> None:
            inputs = dict(pair)
            self._dense.predict(inputs.pop("sample"), inputs.pop("timestep"), inputs)

        found = medians({"pair": dense, "side": side}, self._effort)
        refit = milliseconds(lambda: self._switch(count)) / 2
        turns = count * (found["pair"] + (refit / STEPS if count > 1 else 0.0))
        row = {"sets": count, "one call": found["pair"], "refit": refit, "turns": turns}
        return {**row, "side path": found["side"], "side / turns": found["side"] / turns}

    def _switch(self, count: int) -> None:
        load = loader(self._store)
        for own in (self._sets[count - 1], self._sets[count % len(self._sets)]):
            self._patcher.apply(own, load)

    def _inputs(self, rows: int) -> dict[str, torch.Tensor]:
        side = self._side
        return dict(networks.unet_inputs(self._unet, self._variant, rows=rows, side=side))


if __name__ == "__main__":
    main()
