"""`tessera-build verify`: every graph of a bundle in ONNX Runtime, and where there is a GPU in the
engine that would serve it there, against the torch module with the same weights on the CPU, on
random inputs.

The files are compared with the manifest first; what was found is written into the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tessera.engines.registry import Source, chosen_kind, open_engine, open_module
from tessera.errors import BundleError
from tessera.manifest import (
    LOWRANK,
    Manifest,
    Verification,
    check_files,
    read_manifest,
    write_manifest,
)
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.examples import RANK, decoder_inputs, example_inputs, factor_inputs, run

TOLERANCE = {"onnxruntime": 1e-4, "torch": 2e-2, "tensorrt": 2e-2}
"""Largest difference, in units of each output's largest value where that is above one: of float32
in ONNX Runtime, of half precision in the others (they are for GPUs)."""

DECODERS = ("unet_decoder", f"unet_decoder{LOWRANK}")
CASES = ((1, 16, 16), (3, 10, 14))
"""(rows, latent height, latent width) of the random inputs."""

Case = tuple[int, int, int]


def kinds_here(folder: Path) -> tuple[str, ...]:
    """The kinds of engines that this machine can compare: ONNX Runtime, and on a GPU the one that
    would serve the bundle.
    """
    served = chosen_kind(folder)
    return ("onnxruntime",) if not torch.cuda.is_available() else ("onnxruntime", served)


def verify_bundle(
    folder: Path,
    *,
    kinds: Sequence[str] = ("onnxruntime",),
    progress: Callable[[str], None] = lambda graph: None,
) -> dict[str, Verification]:
    """Compare all graphs in engines of these kinds, write the result into the manifest, return it
    by graph (ONNX Runtime) or `graph@kind`.

    Raises:
        BundleError: a file is not the one of the manifest, or the variant is unknown.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if manifest.variant not in VARIANTS:
        raise BundleError(f"{folder} is of variant {manifest.variant!r}, which is unknown here")
    found: dict[str, Verification] = {}
    for kind in kinds:
        torch.manual_seed(0)
        cases = _plan_cases(manifest) if kind == "tensorrt" else CASES
        differences = _differences(folder, manifest, kind, cases, progress)
        suffix = "" if kind == "onnxruntime" else f"@{kind}"
        found |= {f"{g}{suffix}": Verification(d, len(cases)) for g, d in differences.items()}
    write_manifest(folder, dataclasses.replace(manifest, verification=found))
    return found


def tolerance_of(name: str) -> float:
    """What is accepted of a result of `verify_bundle`, by its name."""
    return TOLERANCE[name.partition("@")[2] or "onnxruntime"]


def _differences(
    folder: Path,
    manifest: Manifest,
    kind: str,
    cases: Sequence[Case],
    progress: Callable[[str], None],
) -> dict[str, float]:
    found: dict[str, float] = {}
    for_decoder: list[Tensors] = []
    rank = min(RANK, manifest.limits.lora_rank)
    for graph in sorted(manifest.graphs, key=DECODERS.__contains__):  # they eat what others give
        progress(f"{graph} ({kind})")
        source = Source.of(folder, manifest, graph)
        module, engine = open_module(source), open_engine(kind, source)
        if graph in DECODERS:
            extra = [factor_inputs(module, rows, rank) for rows, _, _ in cases]
            inputs = [{**own, **more} for own, more in zip(for_decoder, extra, strict=True)]
        else:
            sizes = [{"rows": r, "height": h, "width": w} for r, h, w in cases]
            inputs = [example_inputs(module, manifest.latents, **s, rank=rank) for s in sizes]
        expected = [run(module, case) for case in inputs]
        pairs = zip(inputs, expected, strict=True)
        found[graph] = max(_difference(e, engine.run(case)) for case, e in pairs)
        if graph == "unet_encoder":
            pairs = zip(inputs, expected, strict=True)
            for_decoder = [decoder_inputs(case, e) for case, e in pairs]
    return found


def _plan_cases(manifest: Manifest) -> tuple[Case, ...]:
    """Sizes that compiled engines are sure to take."""
    pixels, defaults = manifest.latents.pixels, manifest.defaults
    smallest = manifest.limits.min_size // pixels
    return (1, smallest, smallest), (2, defaults.height // pixels, defaults.width // pixels)


def _difference(expected: Tensors, output: Tensors) -> float:
    return max(
        float((output[name].float().cpu() - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in expected.items()
    )
