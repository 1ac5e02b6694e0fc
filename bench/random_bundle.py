"""Bundles with random weights in the published configurations, for measurements.

Speed does not depend on the values of weights. A graph's file has its weights by name and no
operators, so only the torch engine can run it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import nn
from transformers import AutoTokenizer

from tessera.manifest import (
    Defaults,
    FileEntry,
    Graph,
    Latents,
    Limits,
    Manifest,
    file_digest,
    network_of,
    read_manifest,
    write_manifest,
)
from tessera.networks.graphs import new_network, wrap
from tessera.networks.weights import load_weights
from tessera.variants import VARIANTS
from tessera_build.demo.scenes import vocabulary
from tessera_build.demo.tokenizer import build_tokenizer

Configs = Mapping[str, Mapping[str, Any]]
_HALVES = ("unet_encoder", "unet_decoder", "vae_encoder", "vae_decoder")
_PIXELS = 8
_SCALES = {"sd15": 0.18215, "sdxl": 0.13025}


def write_random_bundle(
    folder: Path,
    variant: str,
    configs: Configs,
    *,
    max_size: int,
    extra: Sequence[str] = (),
) -> None:
    """Write a bundle in fp16.

    Args:
        folder: the bundle's folder; must not exist.
        variant: name of a row of the table of variants.
        configs: configurations of its networks, by part.
        max_size: largest width and height in pixels.
        extra: further graphs of the UNet, which share the halves' weights.
    """
    (folder / "graphs").mkdir(parents=True)
    row = VARIANTS[variant]
    tokenizer = build_tokenizer(vocabulary())
    for name in row.tokenizers:
        tokenizer.save_pretrained(folder / name)
    EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    graphs, stored = {}, dict[str, onnx.TensorProto]()
    for graph in (*row.text_encoders, *_HALVES, *extra):
        part = network_of(graph)
        config = dict(configs[part])
        if part.startswith("text_encoder"):
            config["eos_token_id"] = tokenizer.eos_token_id
        network: Any = new_network(part, config)
        if not part.startswith("text_encoder"):
            config = dict(network.config)  # with all defaults, as a checkpoint's is
        path = folder / "networks" / part / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        file = f"graphs/{graph}.onnx"
        _write_weights(wrap(graph, network, row), folder / file, stored if part == "unet" else {})
        shares = _HALVES[:2] if graph in extra else ()
        graphs[graph] = Graph(file, f"networks/{part}/config.json", shares=shares)
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    sample_size = int(configs["unet"]["sample_size"])
    smallest = min(sample_size * _PIXELS, max_size)
    write_manifest(
        folder,
        Manifest(
            name=folder.name,
            variant=variant,
            tessera="random",
            defaults=Defaults(30, row.guidance, smallest, smallest, "euler"),
            limits=Limits(smallest // 2, max_size, 16),
            latents=Latents(4, _PIXELS, _SCALES[variant]),
            graphs=graphs,
            files={n: FileEntry(p.stat().st_size, file_digest(p)) for n, p in files.items()},
            versions={},
            source="",
            precision="fp16",
        ),
    )


def pipeline_of(folder: Path) -> DiffusionPipeline:
    """Diffusers' pipeline on the same weights, on the CPU."""
    manifest = read_manifest(folder)
    row = VARIANTS[manifest.variant]
    networks: dict[str, nn.Module] = {}
    for graph, entry in manifest.graphs.items():
        part = network_of(graph)
        if part not in networks:
            config = json.loads((folder / entry.config).read_text())
            networks[part] = new_network(part, config).eval()
        load_weights(wrap(graph, networks[part], row), folder / entry.file, entry.layout)
    tokenizers = {name: AutoTokenizer.from_pretrained(folder / name) for name in row.tokenizers}
    scheduler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    if row.pooled:
        return StableDiffusionXLPipeline(
            **networks, **tokenizers, scheduler=scheduler, add_watermarker=False
        )
    return StableDiffusionPipeline(
        **networks,
        **tokenizers,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _write_weights(module: nn.Module, path: Path, stored: dict[str, onnx.TensorProto]) -> None:
    """An ONNX file of initializers, their values in a file beside it, or where they are `stored`
    already.
    """
    data = path.with_name(path.name + ".data")
    graph, offset = onnx.GraphProto(name=path.stem), 0
    with ExitStack() as stack:
        out: BinaryIO | None = None
        for name, parameter in module.named_parameters():
            if name not in stored:
                out = out or stack.enter_context(data.open("wb"))
                array = _random(name, parameter.shape).numpy()
                stored[name] = onnx.TensorProto(
                    name=name,
                    data_type=onnx.TensorProto.FLOAT16,
                    dims=array.shape,
                    data_location=onnx.TensorProto.EXTERNAL,
                )
                place = {"location": data.name, "offset": offset, "length": array.nbytes}
                for key, value in place.items():
                    stored[name].external_data.add(key=key, value=str(value))
                out.write(array.tobytes())
                offset += array.nbytes
            graph.initializer.append(stored[name])
    onnx.save(onnx.helper.make_model(graph), str(path))


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    """A weight as in a newly initialised network, so that nothing overflows in half precision."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if len(shape) < 2:
        return torch.full(shape, float("norm" in name and name.endswith("weight"))).half()
    fan_in = shape[1:].numel()
    return (torch.randn(shape, device=device) / fan_in**0.5).half().cpu()
