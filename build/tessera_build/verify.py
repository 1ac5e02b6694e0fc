"""`tessera-build verify`: every graph of a bundle in ONNX Runtime against the torch module with the
same weights, on random inputs.

The files are compared with the manifest first; what was found is written into the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from tessera.engines.registry import Source, open_engine, open_module
from tessera.errors import BundleError
from tessera.manifest import Verification, check_files, read_manifest, write_manifest
from tessera.variants import VARIANTS
from tessera_build.examples import Tensors, decoder_inputs, example_inputs, run

TOLERANCE = 1e-4
CASES = ((1, 16, 16), (3, 10, 14))
"""(rows, latent height, latent width) of the random inputs."""


def verify_bundle(
    folder: Path, *, progress: Callable[[str], None] = lambda graph: None
) -> dict[str, Verification]:
    """Compare all graphs, write the result into the manifest, return it by graph.

    Raises:
        BundleError: a file is not the one of the manifest, or the variant is unknown.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if manifest.variant not in VARIANTS:
        raise BundleError(f"{folder} is of variant {manifest.variant!r}, which is unknown here")
    torch.manual_seed(0)
    found = {}
    for_decoder: list[Tensors] = []
    for graph in sorted(manifest.graphs, key="unet_decoder".__eq__):  # it eats what others give
        progress(graph)
        source = Source.of(folder, manifest, graph)
        module, engine = open_module(source), open_engine("onnxruntime", source)
        cases = (
            for_decoder
            if graph == "unet_decoder"
            else [
                example_inputs(module, manifest.latents, rows=r, height=h, width=w)
                for r, h, w in CASES
            ]
        )
        expected = [run(module, case) for case in cases]
        differences = [_difference(e, engine.run(c)) for c, e in zip(cases, expected, strict=True)]
        found[graph] = Verification(max(differences), len(cases))
        if graph == "unet_encoder":
            for_decoder = [decoder_inputs(c, e) for c, e in zip(cases, expected, strict=True)]
    write_manifest(folder, dataclasses.replace(manifest, verification=found))
    return found


def _difference(expected: Tensors, output: Tensors) -> float:
    """Largest difference, in units of each output's largest value where that is above one."""
    return max(
        float((output[name] - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in expected.items()
    )
