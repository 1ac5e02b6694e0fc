"""`tessera-build verify`: every graph of a bundle in ONNX Runtime against the torch module with the
same weights, on random inputs.

The files are compared with the manifest first; what was found is written into the manifest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch

from tessera import modules
from tessera.engines.registry import Source, open_engine
from tessera.errors import BundleError
from tessera.manifest import (
    Manifest,
    Verification,
    check_files,
    read_manifest,
    write_manifest,
)
from tessera.variants import VARIANTS

TOLERANCE = 1e-4
CASES = ((1, 16, 16), (3, 10, 14))
"""(rows, latent height, latent width) of the random inputs."""

Tensors = dict[str, torch.Tensor]


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
    decoder_inputs: list[Tensors] = []
    for graph in sorted(
        manifest.graphs, key="unet_decoder".__eq__
    ):  # last: eats the encoder's outputs
        progress(graph)
        cases = (
            decoder_inputs if graph == "unet_decoder" else _random_cases(folder, manifest, graph)
        )
        pairs = [open_engine(kind, _source(folder, manifest, graph)) for kind in _COMPARED]
        outputs = [[engine.run(case) for engine in pairs] for case in cases]
        found[graph] = Verification(max(_difference(*o) for o in outputs), len(cases))
        if graph == "unet_encoder":
            decoder_inputs = [
                {**expected, "encoder_hidden_states": case["encoder_hidden_states"]}
                for case, (expected, _) in zip(cases, outputs, strict=True)
            ]
    write_manifest(folder, dataclasses.replace(manifest, verification=found))
    return found


_COMPARED = ("torch", "onnxruntime")


def _source(folder: Path, manifest: Manifest, graph: str) -> Source:
    entry = manifest.graphs[graph]
    return Source(graph, folder / entry.file, entry.layout, folder / entry.config, manifest.variant)


def _random_cases(folder: Path, manifest: Manifest, graph: str) -> list[Tensors]:
    """Random inputs of a graph for each of `CASES`."""
    config = json.loads((folder / manifest.graphs[graph].config).read_text())
    network = modules.new_network(modules.network_of(graph), config)
    module = modules.wrap(graph, network, VARIANTS[manifest.variant])
    return [
        {name: _random(name, config, manifest, case) for name in module.inputs} for case in CASES
    ]


def _random(
    name: str, config: dict[str, object], manifest: Manifest, case: tuple[int, int, int]
) -> torch.Tensor:
    rows, height, width = case
    number: dict[str, int] = {k: v for k, v in config.items() if isinstance(v, int)}
    if name == "input_ids":
        ids = torch.randint(0, number["vocab_size"], (rows, number["max_position_embeddings"]))
        ids[:, -1] = number["eos_token_id"]
        return ids
    if name == "timestep":
        return torch.linspace(1, 900, rows)
    if name == "time_ids":
        return torch.tensor([[float(height), float(width), 0, 0, height, width]] * rows) * 8
    if name == "image":
        pixels = manifest.latents.pixels
        return torch.rand(rows, 3, height * pixels, width * pixels) * 2 - 1
    shapes = {
        "sample": (manifest.latents.channels, height, width),
        "latents": (manifest.latents.channels, height, width),
        "encoder_hidden_states": (77, number.get("cross_attention_dim", 0)),
        "text_embeds": (_pooled_width(number),),
    }
    return torch.randn(rows, *shapes[name])


def _pooled_width(config: dict[str, int]) -> int:
    sizes = 6 * config.get("addition_time_embed_dim", 0)
    return config.get("projection_class_embeddings_input_dim", 0) - sizes


def _difference(expected: Tensors, output: Tensors) -> float:
    """Largest difference, in units of each output's largest value where that is above one."""
    return max(
        float((output[name] - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in expected.items()
    )
