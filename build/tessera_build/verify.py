"""`tessera-build verify`: compares every graph of a bundle with torch, on random inputs.

The reference is the torch module with the same weights on the CPU. It is compared with ONNX
Runtime and, on a machine with a GPU, with the kind of engine that would serve the bundle there. The
files are first checked against the manifest. The results are written into the manifest.
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
"""Largest accepted difference, in units of each output's largest value if that is above one. ONNX
Runtime computes in float32, the others (on GPUs) in half precision."""

DECODERS = ("unet_decoder", f"unet_decoder{LOWRANK}")
CASES = ((1, 16, 16), (3, 10, 14))
"""(rows, latent height, latent width) of the random inputs."""

Case = tuple[int, int, int]


def kinds_here(folder: Path) -> tuple[str, ...]:
    """The kinds of engines to compare on this machine: ONNX Runtime, and with a GPU also the kind
    that would serve the bundle.
    """
    served = chosen_kind(folder)
    return ("onnxruntime",) if not torch.cuda.is_available() else ("onnxruntime", served)


def verify_bundle(
    folder: Path,
    *,
    kinds: Sequence[str] = ("onnxruntime",),
    progress: Callable[[str], None] = lambda graph: None,
) -> dict[str, Verification]:
    """Compare all graphs of a bundle with torch, and write the results into the manifest.

    Args:
        folder: the bundle.
        kinds: kinds of engines to compare.
        progress: called with the name of each graph and kind.

    Returns:
        Results by graph (ONNX Runtime) or `graph@kind`.

    Raises:
        BundleError: a file differs from the manifest, or the variant is unknown.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if manifest.variant not in VARIANTS:
        raise BundleError(f"{folder} is of variant {manifest.variant!r}, which is unknown here")
    results: dict[str, Verification] = {}
    for kind in kinds:
        torch.manual_seed(0)
        cases = _compiled_cases(manifest) if kind == "tensorrt" else CASES
        differences = _differences(folder, manifest, kind, cases, progress)
        suffix = "" if kind == "onnxruntime" else f"@{kind}"
        results |= {f"{g}{suffix}": Verification(d, len(cases)) for g, d in differences.items()}
    write_manifest(folder, dataclasses.replace(manifest, verification=results))
    return results


def tolerance_of(name: str) -> float:
    """Largest accepted difference for a result of `verify_bundle`, by its name."""
    return TOLERANCE[name.partition("@")[2] or "onnxruntime"]


def _differences(
    folder: Path,
    manifest: Manifest,
    kind: str,
    cases: Sequence[Case],
    progress: Callable[[str], None],
) -> dict[str, float]:
    differences: dict[str, float] = {}
    for_decoder: list[Tensors] = []
    rank = min(RANK, manifest.limits.lora_rank)
    for graph in sorted(manifest.graphs, key=DECODERS.__contains__):  # decoders after encoders
        progress(f"{graph} ({kind})")
        source = Source.of(folder, manifest, graph)
        module, engine = open_module(source), open_engine(kind, source)
        if graph in DECODERS:
            extra = [factor_inputs(module, rows, rank) for rows, _, _ in cases]
            inputs = [{**case, **more} for case, more in zip(for_decoder, extra, strict=True)]
        else:
            sizes = [{"rows": r, "height": h, "width": w} for r, h, w in cases]
            inputs = [example_inputs(module, manifest.latents, **s, rank=rank) for s in sizes]
        expected = [run(module, case) for case in inputs]
        pairs = zip(inputs, expected, strict=True)
        differences[graph] = max(_difference(e, engine.run(case)) for case, e in pairs)
        if graph == "unet_encoder":
            pairs = zip(inputs, expected, strict=True)
            for_decoder = [decoder_inputs(case, e) for case, e in pairs]
    return differences


def _compiled_cases(manifest: Manifest) -> tuple[Case, ...]:
    """Cases within the profile of every compiled engine."""
    pixels, defaults = manifest.latents.pixels, manifest.defaults
    smallest = manifest.limits.min_size // pixels
    return (1, smallest, smallest), (2, defaults.height // pixels, defaults.width // pixels)


def _difference(expected: Tensors, output: Tensors) -> float:
    return max(
        float((output[name].float().cpu() - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in expected.items()
    )
