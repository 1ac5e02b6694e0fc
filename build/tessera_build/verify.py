"""`tessera-build verify`: compares every graph of a bundle with torch on random inputs, and a whole
picture with diffusers' pipeline.

The reference of a graph is the torch module with the same weights on the CPU, in float32. It is
compared with ONNX Runtime and, on a machine with a GPU, with the kind of engine that would serve
the bundle there. The files are first checked against the manifest. The results are written into
the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tessera.contract import MAX_CHUNKS
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
from tessera.variants import TOKENS, VARIANTS
from tessera_build import pictures
from tessera_build.examples import RANK, decoder_inputs, example_inputs, factor_inputs, run
from tessera_build.precision import PRECISIONS

IN_FLOAT32 = 1e-4
"""Largest accepted difference of ONNX Runtime, which computes in float32, in units of each output's
largest value if that is above one."""
ROUNDINGS = 40
"""Largest accepted difference of an engine that computes in half precision, in units of what one
rounding may change. With every graph of the small checkpoints of all variants, torch's half
precision on the CPU differed from float32 by at most 11, in fp16 as in bf16
(docs/internals/precision.md). This is about four times that, for other ways to add up."""

PICTURE = "picture"
"""Name of the result that is about a whole picture, by ONNX Runtime."""
OF_A_PICTURE = 2 / 255
"""Largest accepted difference of a picture, of the whole range."""

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
        Results by graph (ONNX Runtime) or `graph@kind`, and `PICTURE`.

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
    progress(PICTURE)
    off = pictures.difference(folder, manifest.defaults.scheduler)
    results[PICTURE] = Verification(off, 1)
    write_manifest(folder, dataclasses.replace(manifest, verification=results))
    return results


def tolerance_of(name: str, precision: str) -> float:
    """Largest accepted difference for a result of `verify_bundle`.

    Args:
        name: of the result.
        precision: the bundle's. Engines on a GPU compute in it, or in fp16 if it is fp32.
    """
    if name == PICTURE:
        return OF_A_PICTURE
    if "@" not in name:
        return IN_FLOAT32
    half = PRECISIONS["fp16" if precision == "fp32" else precision]
    return ROUNDINGS * torch.finfo(half).eps / 2


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
        module, engine = open_module(source).float(), open_engine(kind, source)
        if graph in DECODERS:
            extra = [factor_inputs(module, rows, rank) for rows, _, _ in cases]
            inputs = [{**case, **more} for case, more in zip(for_decoder, extra, strict=True)]
        else:
            sizes = [
                {"rows": r, "height": h, "width": w, "tokens": TOKENS * (1 + number % MAX_CHUNKS)}
                for number, (r, h, w) in enumerate(cases)
            ]
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
