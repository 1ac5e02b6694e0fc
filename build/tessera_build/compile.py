"""`tessera-build compile`: a bundle's graphs -> refittable TensorRT plans.

Strongly typed: a graph is exported again in the wanted precision and TensorRT keeps to it. What is
planned needs neither a GPU nor TensorRT; `Compiler` is where both come in. Plans that are there
already are left alone, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from tessera import modules
from tessera.engines.base import Engine
from tessera.engines.plans import (
    FOLDER,
    PlanKey,
    PlanRecord,
    Shapes,
    check_version,
    weights_digest,
    write_plan,
)
from tessera.engines.registry import Source, open_module
from tessera.errors import BundleError, listing
from tessera.manifest import Manifest, file_digest, read_manifest
from tessera.modules import GraphModule
from tessera.variants import VARIANTS
from tessera_build.examples import Tensors, decoder_inputs, example_inputs, run
from tessera_build.export import export_graph
from tessera_build.graphs import signature_of

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = {"fp16": 2e-2, "bf16": 6e-2, "fp32": 2e-3}
"""Largest difference of a plan from torch in float32, in units of the largest value."""

_EXACT = ("timestep", "time_ids", "input_ids")
"""Inputs that keep their own type: numbers that a half cannot hold."""

_PAIR = 2
"""Rows of a request with guidance: the usual batch, and the largest outside the UNet."""


@dataclass(frozen=True)
class Job:
    """A plan to build, or one that is there already."""

    source: Source
    key: PlanKey
    path: Path

    @property
    def done(self) -> bool:
        """Whether the plan is there."""
        return self.path.exists() and self.path.with_suffix(".json").exists()


class Compiler(Protocol):
    """TensorRT on a GPU, as far as this module needs it."""

    architecture: str
    version: str

    def build(self, graph: Path, key: PlanKey, timing_cache: Path) -> bytes:
        """Compile an ONNX file into a plan."""
        ...

    def open(self, plan: Path) -> RefittableEngine:
        """Load a plan."""
        ...


class RefittableEngine(Engine, Protocol):
    """An engine whose weights can be replaced."""

    def refit(
        self,
        weights: dict[str, torch.Tensor],
        base: Callable[[str], torch.Tensor],
    ) -> None:
        """Replace weights by name, in the graph's layout; `base` gives those of others that have to
        be set with them.
        """
        ...


def plan_jobs(
    folder: Path, *, precision: str, architecture: str, tensorrt: str, stripped: bool = False
) -> list[Job]:
    """What there is to compile; needs no GPU.

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
        key = PlanKey(
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
    """Shapes of a graph's inputs within the bundle's limits, by a run without numbers (on torch's
    meta device).
    """
    limits, defaults, pixels = manifest.limits, manifest.defaults, manifest.latents.pixels
    most = max(limits.max_rows, _PAIR) if source.graph.startswith("unet") else _PAIR
    corners = (
        (1, limits.min_size // pixels, limits.min_size // pixels),
        (_PAIR, defaults.height // pixels, defaults.width // pixels),
        (most, limits.max_size // pixels, limits.max_size // pixels),
    )
    shapes = [_shapes_at(source, manifest, *corner) for corner in corners]
    return {name: Shapes(*(s[name] for s in shapes)) for name in shapes[0]}


def compile_job(job: Job, compiler: Compiler, folder: Path) -> PlanRecord:
    """Build one plan, compare it with torch as built and after a refit, put it in place.

    Raises:
        BundleError: TensorRT refuses the graph, or the plan computes something else.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / FOLDER, prefix=".build-") as name:
        work = Path(name)
        module = open_module(job.source)
        inputs = _trace_inputs(job.source, read_manifest(folder), folder)
        layout = _export(module, inputs, PRECISIONS[job.key.precision], work / "graph.onnx")
        if layout != dict(job.source.layout):
            raise BundleError(f"{job.key.graph}: weights lie otherwise in {job.key.precision}")
        plan = work / "engine.plan"
        cache = folder / FOLDER / f"timing-{job.key.architecture}-{job.key.tensorrt}.cache"
        plan.write_bytes(compiler.build(work / "graph.onnx", job.key, cache))
        built, refitted = _canary(job, compiler.open(plan), inputs)
        record = PlanRecord(job.key, file_digest(plan), built, refitted)
        write_plan(folder, record, plan)
    return record


def _export(
    module: GraphModule, inputs: Tensors, dtype: torch.dtype, path: Path
) -> dict[str, dict[str, list[int]]]:
    cast = {k: v if k in _EXACT else v.to(dtype) for k, v in inputs.items()}
    return export_graph(module.to(dtype), signature_of(module, cast), path)


def _canary(job: Job, engine: RefittableEngine, inputs: Tensors) -> tuple[float, float]:
    """Differences of an engine from torch in float32: as built, and with one weight doubled.

    Raises:
        BundleError: one is beyond the tolerance.
    """
    from tessera.weights import to_layout

    module = open_module(job.source)
    base = {n: p.detach().clone() for n, p in module.named_parameters()}

    def laid_out(name: str) -> torch.Tensor:
        return torch.from_numpy(to_layout(name, base[name].numpy(), job.source.layout))

    if job.key.stripped:
        engine.refit({name: laid_out(name) for name in base}, laid_out)
    built = _difference(run(module, inputs), engine.run(inputs))
    changed = next(n for n, p in base.items() if p.ndim >= 2 and n.endswith("weight"))
    with torch.no_grad():
        module.get_parameter(changed).mul_(2)
    engine.refit({changed: 2 * laid_out(changed)}, laid_out)
    refitted = _difference(run(module, inputs), engine.run(inputs))
    for what, found in (("as built", built), ("after a refit", refitted)):
        if not found <= TOLERANCE[job.key.precision]:
            raise BundleError(
                f"the plan of {job.key.graph} is {found:.1e} away from torch {what}, more than "
                f"{TOLERANCE[job.key.precision]:.0e}; it is not used"
            )
    return built, refitted


def _difference(expected: Tensors, output: Tensors) -> float:
    return max(
        float((output[n].float().cpu() - v).abs().max() / v.abs().max().clamp(min=1e-6))
        for n, v in expected.items()
    )


def _precision(source: Source, wanted: str) -> str:
    """The wanted one, unless it is the half of a VAE that overflows in it (SDXL's)."""
    config = json.loads(source.config.read_text())
    overflows = source.graph.startswith("vae") and config.get("force_upcast", False)
    return "fp32" if overflows and wanted == "fp16" else wanted


def _meta_module(source: Source, graph: str) -> GraphModule:
    network = modules.new_network(modules.network_of(graph), json.loads(source.config.read_text()))
    return modules.wrap(graph, network, VARIANTS[source.variant])


def _shapes_at(
    source: Source, manifest: Manifest, rows: int, height: int, width: int
) -> dict[str, tuple[int, ...]]:
    size = {"rows": rows, "height": height, "width": width}
    decoding = source.graph == "unet_decoder"
    module = _meta_module(source, "unet_encoder" if decoding else source.graph)
    inputs = example_inputs(module, manifest.latents, **size)
    if decoding:
        inputs = {name: value.to("meta") for name, value in inputs.items()}
        inputs = decoder_inputs(inputs, run(module, inputs))
    return {name: tuple(value.shape) for name, value in inputs.items()}


def _trace_inputs(source: Source, manifest: Manifest, folder: Path) -> Tensors:
    """Inputs for export and canary, at the smallest size."""
    torch.manual_seed(0)
    side = manifest.limits.min_size // manifest.latents.pixels
    size = {"rows": _PAIR, "height": side, "width": side}
    if source.graph != "unet_decoder":
        return example_inputs(_meta_module(source, source.graph), manifest.latents, **size)
    encoder = open_module(Source.of(folder, manifest, "unet_encoder"))
    inputs = example_inputs(encoder, manifest.latents, **size)
    return decoder_inputs(inputs, run(encoder, inputs))
