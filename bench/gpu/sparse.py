"""One sparse UNet step of a guided request against the dense step of the same engines, over mask
ratios; and where its cached rows come from.

Both branches share one recorded step, and their inputs are those that were recorded. So inside the
mask the sparse step has to give what the dense one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from bench.gpu import networks
from bench.gpu.timing import Options, Place, medians, milliseconds, options, place
from tessera.denoise.unet import UNet
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.walk import program_of
from tessera.sparse.batch import Batch, Part
from tessera.sparse.engines import SparseUNetEngines
from tessera.sparse.record import record
from tessera.sparse.tables import Mask, make_tables
from tessera.templates.cache import StepCache
from tessera.templates.packing import pack
from tessera.types import Tensors

RATIOS = (0.05, 0.11, 0.2, 0.35, 0.5)
TINY_RATIOS = (0.2,)
BRANCHES = 2
STEPS = 8
"""Of a run in which the next step's rows are gathered meanwhile."""


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each ratio."""
    chosen, where = options(arguments), place()
    sides = Sides(chosen, where)
    chosen.report.details["recorded step MB"] = sides.recorded_mb
    for ratio in TINY_RATIOS if chosen.tiny else RATIOS:
        chosen.report.add(mask=ratio, **measure(sides, ratio))


class Sides:
    """Dense and sparse engines, and a recorded step on the device and in pinned memory."""

    def __init__(self, chosen: Options, where: Place) -> None:
        self.effort = chosen.effort(9, 5.0)
        config = networks.configs(chosen.variant, tiny=chosen.tiny)["unet"]
        self.side = networks.side_of(chosen.variant, tiny=chosen.tiny)
        unet, own = (networks.random_network("unet", config, where) for _ in range(2))
        self.program = program_of(unet)
        row = networks.unet_inputs(unet, chosen.variant, rows=1, side=self.side)
        self.inputs: Tensors = {n: t.repeat(BRANCHES, *[1] * (t.ndim - 1)) for n, t in row.items()}
        halves = UNetEncoder(unet).eval(), UNetDecoder(unet).eval()
        sites = self.program.sites
        kept, _ = record(*halves, networks.placed(row, where), sites=sites)
        packed = pack(kept, "float16" if where.on_gpu else "float32")
        self._kept = {name: array[0] for name, array in packed.items()}
        self._pinned = {
            n: a.cpu().pin_memory() if where.on_gpu else a for n, a in self._kept.items()
        }
        engines = (
            networks.engine(half, unet, chosen.variant, where)
            for half in ("unet_encoder", "unet_decoder")
        )
        self._dense = UNet(*engines, max_rows=BRANCHES)
        self._sparse = SparseUNetEngines(
            networks.engine("unet_sparse", own, chosen.variant, where, graphs=0),
            networks.engine("unet_text", own, chosen.variant, where, graphs=0),
        )
        self._where = where
        conditions = {n: t for n, t in self.inputs.items() if n not in ("sample", "timestep")}
        self._text = dict(self._sparse.project_text(conditions))
        self._pool = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream() if where.on_gpu else None

    @property
    def recorded_mb(self) -> float:
        """Megabytes of the recorded step."""
        return sum(array.nbytes for array in self._kept.values()) / 1e6

    def dense(self) -> torch.Tensor:
        """The dense step, as served."""
        inputs = dict(self.inputs)
        return self._dense.predict(inputs.pop("sample"), inputs.pop("timestep"), inputs)

    def sparse(self, batch: Batch, cached: Tensors) -> torch.Tensor:
        """The sparse step, as served."""
        sample, timestep = self.inputs["sample"], self.inputs["timestep"]
        return self._sparse.predict(batch, sample, timestep, self._text, cached)

    def from_device(self, batch: Batch) -> Tensors:
        """Gather what a step needs from the recorded step on the device."""
        return batch.cached([StepCache(self._kept)], device=self._where.device)

    def from_pinned(self, batch: Batch) -> Tensors:
        """The same from pinned memory: copied whole, as the device tier does, then gathered."""
        copied = {n: a.to(self._where.device, non_blocking=True) for n, a in self._pinned.items()}
        return batch.cached([StepCache(copied)], device=self._where.device)

    def overlapped(
        self, batch: Batch, gather: Callable[[Batch], Tensors], *, own_stream: bool
    ) -> float:
        """Milliseconds of a step while a thread gathers for the next one.

        Args:
            batch: of the call.
            gather: one of the two above.
            own_stream: whether the thread queues on a stream of its own; served is without.
        """

        def run() -> None:
            ahead = self._gathered(batch, gather, own_stream)
            for _ in range(STEPS):
                coming = self._pool.submit(self._gathered, batch, gather, own_stream)
                self.sparse(batch, ahead)
                ahead = coming.result()

        return milliseconds(run) / STEPS

    @torch.inference_mode()
    def _gathered(
        self, batch: Batch, gather: Callable[[Batch], Tensors], own_stream: bool
    ) -> Tensors:
        if not own_stream or self._stream is None:
            return gather(batch)
        with torch.cuda.stream(self._stream):
            found = gather(batch)
            self._stream.synchronize()
        return found


def measure(sides: Sides, ratio: float) -> dict[str, Any]:
    """Columns of one ratio: milliseconds, and the largest error inside the mask."""
    mask = square(sides.side, ratio)
    batch = Batch(sides.program, [Part(make_tables(mask, sides.program.paddings), BRANCHES)])
    with torch.inference_mode():
        cached = sides.from_device(batch)
        wanted, rows = sides.dense(), sides.sparse(batch, cached)
    active = torch.from_numpy(mask).expand_as(wanted)
    error = (batch.scatter(rows, wanted) - wanted)[active].abs().max() / wanted.abs().max()
    found = medians(
        {
            "dense": sides.dense,
            "sparse": lambda: sides.sparse(batch, cached),
            "gather": lambda: sides.from_device(batch),
            "copy+gather": lambda: sides.from_pinned(batch),
        },
        sides.effort,
    )
    with torch.inference_mode():
        both = {
            "both": sides.overlapped(batch, sides.from_device, own_stream=False),
            "both, stream": sides.overlapped(batch, sides.from_device, own_stream=True),
            "pinned": sides.overlapped(batch, sides.from_pinned, own_stream=False),
            "pinned, stream": sides.overlapped(batch, sides.from_pinned, own_stream=True),
        }
    best = min(both.values())
    return {**found, **both, "speed-up": found["dense"] / best, "error": float(error)}


def square(side: int, ratio: float) -> Mask:
    """A square in the middle that covers this share of the latents."""
    width = max(round(side * ratio**0.5), 1)
    first = (side - width) // 2
    mask = np.zeros((side, side), bool)
    mask[first : first + width, first : first + width] = True
    return mask


if __name__ == "__main__":
    main()
