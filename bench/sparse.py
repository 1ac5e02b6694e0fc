"""One sparse UNet step against the dense step of the same kind of engine, by mask ratio.

The network has SDXL's topology at half its width (160/320/640 channels, 1/2/4 transformer layers),
random weights, and 128 x 128 latents. The dense side runs the two dense graphs as a server does.
The sparse side runs the graph `unet_sparse`. For each step it gathers the cached inputs from a
recording of some steps in memory.

The sides alternate. Each ratio can be measured in a separate run; results are kept in files until
all are measured. Neither side has been refitted: engines are opened as in a server.

    python -m bench.sparse --prepare           (export the graphs once: minutes)
    python -m bench.sparse 0.02 0.05 0.11      (measure; by default all ratios)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from bench.server import ROOT
from tessera.denoise.unet import UNet
from tessera.engines.onnxruntime import OnnxRuntimeEngine
from tessera.manifest import Latents
from tessera.networks import graphs, modules
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.networks.walk import program_of
from tessera.sparse.batch import ArrayCache, Batch, Part
from tessera.sparse.engines import SparseUNetEngines
from tessera.sparse.record import Recording, record
from tessera.sparse.tables import Mask, make_tables
from tessera.types import Tensors
from tessera_build.digests import code_digest
from tessera_build.examples import decoder_inputs, example_inputs, run
from tessera_build.export import export_graph
from tessera_build.graphs import signature_of

RATIOS = (0.02, 0.05, 0.11, 0.2, 0.35, 0.5, 1.0)
SIDE = 128
STEPS = 3
FOLDER = ROOT / "out" / "bench-sparse"
CONFIG: dict[str, Any] = {
    "sample_size": SIDE,
    "block_out_channels": (160, 320, 640),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 4),
    "attention_head_dim": (5, 5, 10),
    "cross_attention_dim": 512,
    "use_linear_projection": True,
}
_LATENTS = Latents(4, 8, 1.0)
console = Console(highlight=False)


@dataclass(frozen=True)
class Ratio:
    """Milliseconds per step at one mask ratio, a list of turns for each side.

    Attributes:
        ratio: the mask's share of the latents.
        rows: rows per level.
        dense: dense step on the engines.
        eager: dense step in eager diffusers.
        run: sparse step, the engine only.
        assembly: gathering the cached inputs before a sparse step.
        overlapped: a sparse step while the next one's inputs are gathered.
        error: largest difference from the dense prediction.
    """

    ratio: float
    rows: list[int]
    dense: list[float]
    eager: list[float]
    run: list[float]
    assembly: list[float]
    overlapped: list[float]
    error: float

    @property
    def step(self) -> list[float]:
        """Assembly followed by the engine."""
        return [a + b for a, b in zip(self.run, self.assembly, strict=True)]


def prepare() -> None:
    """Export the graphs into `FOLDER` and record some steps, unless this code already did."""
    stamp = code_digest()
    if FOLDER.exists() and (FOLDER / "done").exists() and (FOLDER / "done").read_text() == stamp:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**CONFIG).eval()
    encoder, decoder = modules.UNetEncoder(unet).eval(), modules.UNetDecoder(unet).eval()
    live = example_inputs(encoder, _LATENTS, rows=2, height=32, width=16)
    after = decoder_inputs(live, run(encoder, live))
    export_graph(encoder, signature_of(encoder, live), FOLDER / "unet_encoder.onnx")
    export_graph(decoder, signature_of(decoder, after), FOLDER / "unet_decoder.onnx")
    sparse, text = SparseUNet(unet).eval(), TextProjections(unet).eval()
    example = example_inputs(sparse, _LATENTS, rows=2, height=32, width=16)
    export_graph(sparse, signature_of(sparse, example), FOLDER / "unet_sparse.onnx")
    words = {"encoder_hidden_states": live["encoder_hidden_states"]}
    export_graph(text, signature_of(text, words), FOLDER / "unet_text.onnx")
    torch.save(unet.state_dict(), FOLDER / "weights.pt")
    inputs = example_inputs(encoder, _LATENTS, rows=STEPS, height=SIDE, width=SIDE)
    recording, answers = record(encoder, decoder, inputs, sites=program_of(unet).sites)
    torch.save((inputs, recording, answers), FOLDER / "recording.pt")
    (FOLDER / "done").write_text(stamp)


class Sides:
    """The measured sides, dense and sparse engines and eager diffusers, and their inputs.

    Args:
        threads: threads of each call.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.unet: Any = graphs.new_network("unet", CONFIG).eval()
        weights = torch.load(FOLDER / "weights.pt", mmap=True)
        self.unet.load_state_dict(weights, assign=True)
        self.program = program_of(self.unet)
        found = torch.load(FOLDER / "recording.pt")
        self.inputs: Tensors = found[0]
        self.answers: torch.Tensor = found[2]
        self._recording: Recording = found[1]
        self._threads = threads
        self._pool = ThreadPoolExecutor(1)

    def _engine(self, graph: str) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(FOLDER / f"{graph}.onnx", threads=self._threads)

    @cached_property
    def _dense(self) -> UNet:
        return UNet(self._engine("unet_encoder"), self._engine("unet_decoder"), max_rows=2)

    @cached_property
    def _sparse(self) -> SparseUNetEngines:
        return SparseUNetEngines(self._engine("unet_sparse"), self._engine("unet_text"))

    def one(self, step: int) -> Tensors:
        """The dense network's inputs of one step."""
        return {k: v[step : step + 1] for k, v in self.inputs.items()}

    def dense(self, step: int) -> torch.Tensor:
        """The dense step, on the two dense graphs."""
        inputs = self.one(step)
        return self._dense.predict(inputs.pop("sample"), inputs.pop("timestep"), inputs)

    def eager(self, step: int) -> torch.Tensor:
        """The dense step, in diffusers."""
        with torch.no_grad():
            return self.unet(*self.one(step).values()).sample

    def batch(self, mask: Mask) -> Batch:
        """The batch of one request with one branch."""
        return Batch(self.program, [Part(make_tables(mask, self.program.paddings))])

    @cached_property
    def texts(self) -> list[Tensors]:
        """The steps' conditions, with the text projected. A server does this once per request."""
        names = ("encoder_hidden_states",)
        return [
            dict(self._sparse.project_text({n: self.one(s)[n] for n in names}))
            for s in range(STEPS)
        ]

    def assemble(self, batch: Batch, step: int) -> Tensors:
        """Gather the cached inputs of one step from the recording."""
        return batch.cached([ArrayCache(self._recording, step)])

    def sparse(self, batch: Batch, step: int, cached: Tensors) -> torch.Tensor:
        """The sparse step."""
        one = self.one(step)
        return self._sparse.predict(batch, one["sample"], one["timestep"], self.texts[step], cached)

    def overlapped(self, batch: Batch, steps: int) -> float:
        """Milliseconds per step when each step's inputs are gathered during the step before."""
        ahead = self.assemble(batch, 0)
        began = time.perf_counter()
        for step in range(steps):
            coming = self._pool.submit(self.assemble, batch, (step + 1) % STEPS)
            self.sparse(batch, step % STEPS, ahead)
            ahead = coming.result()
        return 1e3 * (time.perf_counter() - began) / steps


def square(ratio: float) -> Mask:
    """A square in the centre that covers this share of the latents."""
    side = round(SIDE * ratio**0.5)
    first = (SIDE - side) // 2
    mask = np.zeros((SIDE, SIDE), bool)
    mask[first : first + side, first : first + side] = True
    return mask


def measure(sides: Sides, ratio: float, *, turns: int, eager: bool) -> Ratio:
    """Measure turns of every side at one ratio, after a warm-up turn."""
    mask = square(ratio)
    batch = sides.batch(mask)
    _ = batch.fixed
    found: dict[str, list[float]] = {
        k: [] for k in ("dense", "eager", "run", "assembly", "overlapped")
    }
    error = 0.0
    for turn in range(turns + 1):
        step = turn % STEPS
        cached = timed(found["assembly"], sides.assemble, batch, step)
        rows = timed(found["run"], sides.sparse, batch, step, cached)
        del cached
        found["overlapped"].append(sides.overlapped(batch, 2))
        timed(found["dense"], sides.dense, step)
        if eager and turn < 3:  # it takes longest, and no goal depends on it
            timed(found["eager"], sides.eager, step)
        expected = sides.answers[step : step + 1]
        active = torch.from_numpy(mask).expand_as(expected)
        error = max(error, float((batch.scatter(rows, expected) - expected)[active].abs().max()))
    counted = {name: [round(v, 2) for v in values[1:]] for name, values in found.items()}
    return Ratio(ratio, list(batch.counts), error=error, **counted)


def timed(into: list[float], call: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call, append its milliseconds to `into`, and return its result."""
    began = time.perf_counter()
    result = call(*arguments)
    into.append(1e3 * (time.perf_counter() - began))
    return result


def table(found: Sequence[Ratio]) -> Table:
    """A table of medians, and the spread of each turn's speed-up."""
    shown = Table(title="One UNet step, SDXL topology at half width, 128 x 128 latents, float32")
    for name in ("mask", "rows", "dense", "sparse", "assembly in it", "overlapped"):
        shown.add_column(name + (" ms" if name not in ("mask", "rows") else ""), justify="right")
    for name in ("speed-up", "min-max", "overlapped", "over eager diffusers", "largest error"):
        shown.add_column(name, justify="right")
    for entry in found:
        dense, step = statistics.median(entry.dense), statistics.median(entry.step)
        each = [d / s for d, s in zip(entry.dense, entry.step, strict=True)]
        overlapped = statistics.median(entry.overlapped)
        eager = f"{statistics.median(entry.eager) / step:.1f}" if entry.eager else ""
        shown.add_row(
            f"{entry.ratio}",
            " ".join(map(str, entry.rows)),
            f"{dense:.0f}",
            f"{step:.0f}",
            f"{statistics.median(entry.assembly):.0f}",
            f"{overlapped:.0f}",
            f"{dense / step:.1f}",
            f"{min(each):.1f}-{max(each):.1f}",
            f"{dense / overlapped:.1f}",
            eager,
            f"{entry.error:.0e}",
        )
    return shown


def measure_all(
    ratios: Sequence[float] = RATIOS, *, turns: int = 5, eager: bool = True
) -> list[Ratio]:
    """Measure some ratios with a thread per core; returns all results measured so far."""
    sides = Sides(len(os.sched_getaffinity(0)))
    for ratio in ratios:
        entry = measure(sides, ratio, turns=turns, eager=eager)
        (FOLDER / f"ratio-{ratio}.json").write_text(json.dumps(asdict(entry)))
    files = sorted(FOLDER.glob("ratio-*.json"))
    return sorted((Ratio(**json.loads(f.read_text())) for f in files), key=lambda r: r.ratio)


def main() -> None:
    """Measure the requested ratios, and print all results measured so far."""
    parser = argparse.ArgumentParser(description="sparse against dense UNet steps")
    parser.add_argument("ratios", nargs="*", type=float, help="mask ratios; by default all")
    parser.add_argument("--prepare", action="store_true", help="only export the graphs")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side")
    parser.add_argument("--no-eager", action="store_true", help="leave eager diffusers out")
    options = parser.parse_args()
    prepare()
    if not options.prepare:
        ratios = options.ratios or RATIOS
        console.print(table(measure_all(ratios, turns=options.turns, eager=not options.no_eager)))


if __name__ == "__main__":
    main()
