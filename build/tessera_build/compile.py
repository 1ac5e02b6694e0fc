"""`tessera-build compile`: compiles a bundle's graphs into refittable TensorRT engines.

Compiled engines are strongly typed: a graph is exported again in the chosen precision, and TensorRT
keeps it. Listing the jobs needs neither a GPU nor TensorRT; only `Compiler` does. Existing compiled
engines are kept, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from tessera.contract import MAX_CHUNKS
from tessera.engines.base import Engine
from tessera.engines.canary import Canary, difference, refit_difference
from tessera.engines.compiled import (
    FOLDER,
    CompiledKey,
    CompiledRecord,
    Shapes,
    canary_path,
    check_version,
    weights_digest,
    write_compiled,
)
from tessera.engines.registry import Source, open_module, overflows_in_half
from tessera.errors import BundleError, listing
from tessera.manifest import CONTROLNET, HINT, Manifest, file_digest, network_of, read_manifest
from tessera.networks import graphs
from tessera.networks.modules import GraphModule, keeps_type
from tessera.networks.sparse_unet import SparseUNet
from tessera.types import Tensors
from tessera.variants import TOKENS, VARIANTS
from tessera_build.examples import RANK, decoder_inputs, example_inputs, factor_inputs, run
from tessera_build.export import export_graph
from tessera_build.graphs import signature_of
from tessera_build.precision import PRECISIONS
from tessera_build.sparse import axes_of, shapes_with, sparse_ranges

TOLERANCE = {"fp16": 2e-2, "bf16": 6e-2, "fp32": 2e-3}
"""Largest difference of a compiled engine from torch in float32, in units of the largest value."""

_DECODER = "unet_decoder"
_RANK = 16
"""Most likely rank of low-rank inputs."""
_PAIR = 2
"""Rows of a guided request: the usual batch, and the largest one outside the UNet."""


@dataclass(frozen=True)
class Job:
    """A compiled engine to build, or one that exists already.

    Attributes:
        source: the graph.
        key: everything that the compiled engine depends on.
        path: its file.
    """

    source: Source
    key: CompiledKey
    path: Path

    @property
    def done(self) -> bool:
        """Whether the compiled engine exists, with its record and its canary."""
        needed = (self.path, self.path.with_suffix(".json"), canary_path(self.path))
        return all(path.exists() for path in needed)


class Compiler(Protocol):
    """Compiles and opens engines. `tensorrt.PolygraphyCompiler` does so on a GPU."""

    architecture: str
    version: str

    def build(self, graph: Path, key: CompiledKey, timing_cache: Path) -> bytes:
        """Compile an ONNX file; returns the content of the compiled engine's file."""
        ...

    def open(self, engine_file: Path, key: CompiledKey, source: Source) -> Engine:
        """Load a compiled engine of a graph."""
        ...


def plan_jobs(
    folder: Path, *, precision: str, architecture: str, tensorrt: str, stripped: bool = False
) -> list[Job]:
    """The compiled engines of a bundle. Needs no GPU.

    Raises:
        BundleError: the precision is unknown, or this TensorRT is known to be faulty.
    """
    if precision not in PRECISIONS:
        raise BundleError(f"precision {precision!r} is unknown; accepted: {listing(PRECISIONS)}")
    check_version(tensorrt)
    manifest = read_manifest(folder)
    jobs = []
    for graph in manifest.graphs:
        source = Source.of(folder, manifest, graph)
        key = CompiledKey(
            graph=graph,
            weights=weights_digest(manifest, graph),
            precision=_precision(source, precision),
            architecture=architecture,
            tensorrt=tensorrt,
            profile=profile_of(source, manifest),
            stripped=stripped,
        )
        jobs.append(Job(source, key, folder / FOLDER / f"{key.name}.plan"))
    return jobs


def profile_of(source: Source, manifest: Manifest) -> dict[str, Shapes]:
    """Shapes of a graph's inputs within the bundle's limits.

    Runs modules on torch's meta device, which computes shapes without numbers.
    """
    limits, defaults, pixels = manifest.limits, manifest.defaults, manifest.latents.pixels
    denoises = source.graph.startswith(("unet", CONTROLNET)) and not source.graph.endswith(HINT)
    most = max(limits.max_rows, _PAIR) if denoises else _PAIR
    ranks = (1, min(_RANK, limits.lora_rank), limits.lora_rank)
    corners = (
        (1, limits.min_size // pixels, limits.min_size // pixels),
        (_PAIR, defaults.height // pixels, defaults.width // pixels),
        (most, limits.max_size // pixels, limits.max_size // pixels),
    )
    texts = (TOKENS, TOKENS, TOKENS * MAX_CHUNKS)
    module = _meta_module(source, source.graph)
    if isinstance(module, SparseUNet):
        return _sparse_profile(module, manifest, corners)
    shapes = [
        _shapes_at(source, manifest, *corner, rank=rank, tokens=tokens)
        for corner, rank, tokens in zip(corners, ranks, texts, strict=True)
    ]
    return {name: Shapes(*(s[name] for s in shapes)) for name in shapes[0]}


def compile_job(job: Job, compiler: Compiler, folder: Path) -> CompiledRecord:
    """Build a compiled engine, compare it with torch before and after a refit, and store it.

    Raises:
        BundleError: TensorRT rejects the graph, or the compiled engine computes wrong results.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / FOLDER, prefix=".build-") as name:
        work = Path(name)
        module = open_module(job.source)
        inputs = _trace_inputs(job.source, read_manifest(folder), folder)
        layout = _export(module, inputs, PRECISIONS[job.key.precision], work / "graph.onnx")
        if layout != dict(job.source.layout):
            raise BundleError(
                f"{job.key.graph}: the layout of weights in {job.key.precision} differs from the "
                "bundle's; build the bundle again"
            )
        engine_file = work / "engine.plan"
        cache = folder / FOLDER / f"timing-{job.key.architecture}-{job.key.tensorrt}.cache"
        engine_file.write_bytes(compiler.build(work / "graph.onnx", job.key, cache))
        canary = _make_canary(job, inputs)
        canary.write(canary_path(engine_file))
        engine = compiler.open(engine_file, job.key, job.source)
        built, refitted = _check_canary(job, engine, canary)
        record = CompiledRecord(job.key, file_digest(engine_file), built, refitted)
        write_compiled(folder, record, engine_file)
    return record


def _export(
    module: GraphModule, inputs: Tensors, dtype: torch.dtype, path: Path
) -> dict[str, dict[str, list[int]]]:
    cast = {k: v if keeps_type(k, v) else v.to(dtype) for k, v in inputs.items()}
    return export_graph(module.to(dtype), signature_of(module, cast), path)


def _make_canary(job: Job, inputs: Tensors) -> Canary:
    """The outputs of torch with the graph's weights, and with its first matrix doubled."""
    module = open_module(job.source).float()
    built = run(module, inputs)
    name, weight = next(
        (n, p) for n, p in module.named_parameters() if p.ndim >= 2 and n.endswith("weight")
    )
    value = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(2)
    tolerance = TOLERANCE[job.key.precision]
    return Canary(name, value, inputs, built, run(module, inputs), tolerance)


def _check_canary(job: Job, engine: Engine, canary: Canary) -> tuple[float, float]:
    """Differences of an engine from torch, as built and after a refit.

    The latter is the larger one of refitting and undoing the refit.

    Raises:
        BundleError: a difference exceeds the tolerance.
    """
    built = difference(canary.built, engine.run(canary.inputs))
    refitted = max(refit_difference(engine, canary))
    for when, error in (("as built", built), ("after a refit", refitted)):
        if not error <= canary.tolerance:
            raise BundleError(
                f"the compiled engine of {job.key.graph} differs from torch by {error:.1e} {when}; "
                f"accepted: at most {canary.tolerance:.0e}; it is not used"
            )
    return built, refitted


def _precision(source: Source, precision: str) -> str:
    """The chosen precision, or `fp32` if the graph overflows in it."""
    return "fp32" if precision == "fp16" and overflows_in_half(source) else precision


def _sparse_profile(
    module: SparseUNet, manifest: Manifest, corners: tuple[tuple[int, int, int], ...]
) -> dict[str, Shapes]:
    """The profile of `unet_sparse`, where numbers of active tokens and halo rows vary too."""
    (_, *smallest), (_, *usual), (most, *largest) = corners
    ranges = sparse_ranges(
        module.program,
        smallest=(smallest[0], smallest[1]),
        usual=(usual[0], usual[1]),
        largest=(largest[0], largest[1]),
        most=most,
    )
    size = {"rows": _PAIR, "height": smallest[0], "width": smallest[1]}
    example = example_inputs(module, manifest.latents, **size)
    shapes = [shapes_with(axes_of(module), example, lengths) for lengths in ranges]
    return {name: Shapes(*(s[name] for s in shapes)) for name in shapes[0]}


def _meta_module(source: Source, graph: str) -> GraphModule:
    network = graphs.new_network(network_of(graph), json.loads(source.config.read_text()))
    return graphs.wrap(graph, network, VARIANTS[source.variant])


def _shapes_at(
    source: Source,
    manifest: Manifest,
    rows: int,
    height: int,
    width: int,
    *,
    rank: int,
    tokens: int,
) -> dict[str, tuple[int, ...]]:
    size = {"rows": rows, "height": height, "width": width, "tokens": tokens}
    module = _meta_module(source, source.graph)
    if source.graph.startswith(_DECODER):
        encoder = _meta_module(source, "unet_encoder")
        inputs = example_inputs(encoder, manifest.latents, **size)
        inputs = {name: value.to("meta") for name, value in inputs.items()}
        inputs = decoder_inputs(inputs, run(encoder, inputs)) | factor_inputs(module, rows, rank)
    else:
        inputs = example_inputs(module, manifest.latents, **size, rank=rank)
    return {name: tuple(value.shape) for name, value in inputs.items()}


def _trace_inputs(source: Source, manifest: Manifest, folder: Path) -> Tensors:
    """Inputs for export and canary, at the smallest size."""
    torch.manual_seed(0)
    side = manifest.limits.min_size // manifest.latents.pixels
    size = {"rows": _PAIR, "height": side, "width": side}
    module, rank = _meta_module(source, source.graph), min(RANK, manifest.limits.lora_rank)
    if not source.graph.startswith(_DECODER):
        return example_inputs(module, manifest.latents, **size, rank=rank)
    encoder = open_module(Source.of(folder, manifest, "unet_encoder")).float()
    inputs = example_inputs(encoder, manifest.latents, **size)
    return decoder_inputs(inputs, run(encoder, inputs)) | factor_inputs(module, _PAIR, rank)
