"""Opens the ControlNets of a bundle: diffusers folders and single files.

Each is checked against the checkpoint's UNet, which has to take what it returns.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError

from tessera.errors import BundleError
from tessera.manifest import ControlKind, Latents
from tessera.networks.controlnets import is_union
from tessera_build.audit import check_config
from tessera_build.checkpoint import first_line, only_half_files
from tessera_build.control_files import config_of, load_file, read_file
from tessera_build.graphs import latents_of
from tessera_build.precision import PRECISIONS

Network: TypeAlias = ControlNetModel | ControlNetUnionModel

_CLASSES = {kind.__name__: kind for kind in (ControlNetModel, ControlNetUnionModel)}
_BY_BLOCK = ("cross_attention_dim", "layers_per_block")
"""Configuration that is one value for all blocks, or a list."""
_FAMILY = (
    "in_channels",
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
"""Configuration that decides a ControlNet's inputs and the number and widths of its residuals."""


def open_controlnets(
    paths: Mapping[str, Path], pipe: DiffusionPipeline, *, precision: str
) -> dict[str, Network]:
    """The ControlNets of a bundle by name; see `open_controlnet`."""
    latents = latents_of(pipe)
    return {
        name: open_controlnet(name, path, pipe.unet, latents, precision=precision)
        for name, path in paths.items()
    }


def open_controlnet(
    name: str, path: Path, unet: UNet2DConditionModel, latents: Latents, *, precision: str = "fp32"
) -> Network:
    """Open a ControlNet, its weights rounded to a precision, and check that it fits the UNet.

    Raises:
        BundleError: the ControlNet cannot be read, is of a kind that is not supported, or belongs
            to another family.
    """
    dtype = PRECISIONS[precision]
    try:
        if path.is_dir():
            network = _open_folder(name, path, dtype)
        else:
            network = _open_file(name, path, unet, latents, dtype)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BundleError(
            f"ControlNet {name} cannot be read from {path}: {first_line(error)}"
        ) from error
    _check_family(name, network.config, unet.config, latents)
    check_config(f"ControlNet {name}", type(network).__name__, network.config)
    return network


def kinds_of(networks: Mapping[str, Network]) -> dict[str, ControlKind]:
    """What the manifest says of ControlNets; nothing of usual ones."""
    kinds = {
        name: ControlKind(
            modes=network.config.num_control_type if is_union(network) else 0,
            pooled=bool(network.config.global_pool_conditions),
        )
        for name, network in networks.items()
    }
    return {name: kind for name, kind in kinds.items() if kind != ControlKind()}


def _open_folder(name: str, path: Path, dtype: torch.dtype) -> Network:
    kind = json.loads((path / "config.json").read_text()).get("_class_name")
    if kind not in _CLASSES:
        raise BundleError(f"ControlNet {name} is a {kind}; accepted: {', '.join(_CLASSES)}")
    options = {"variant": "fp16"} if only_half_files(path) else {}
    network: Network = _CLASSES[kind].from_pretrained(
        str(path), use_safetensors=True, dtype=dtype, **options
    )
    return network


def _open_file(
    name: str, path: Path, unet: UNet2DConditionModel, latents: Latents, dtype: torch.dtype
) -> Network:
    """A ControlNet of the size that its file has; what a file cannot say follows from the UNet."""
    layers = unet.config.layers_per_block
    file = read_file(name, path, layers if isinstance(layers, int) else layers[0])
    if file.lora and unet.mid_block is None:
        raise BundleError(
            f"ControlNet {name} is a Control-LoRA, which changes a mid block; accepted: "
            "ControlNets, since the checkpoint's UNet has none"
        )
    if file.lora and unet.config.in_channels != latents.channels:
        raise BundleError(
            f"ControlNet {name} is a Control-LoRA, which changes a UNet of {latents.channels} "
            f"input channels; accepted: ControlNets, since the checkpoint's UNet has "
            f"{unet.config.in_channels}"
        )
    kind = ControlNetUnionModel if file.union else ControlNetModel
    fields = inspect.signature(kind.__init__).parameters
    config = {field: unet.config[field] for field in fields if field in unet.config}
    config |= config_of(name, file) | {"in_channels": latents.channels}
    _check_family(name, config, unet.config, latents)
    with init_empty_weights():
        network: Network = kind.from_config(config)
    load_file(name, file, network, unet, dtype)
    return network.eval()


def _check_family(
    name: str, config: Mapping[str, Any], unet: Mapping[str, Any], latents: Latents
) -> None:
    """Compare a ControlNet's configuration with the UNet's.

    Raises:
        BundleError: they differ; the message has the first difference.
    """
    expected = {key: _plain(key, unet) for key in _FAMILY}
    actual = {key: _plain(key, config) for key in _FAMILY}
    actual["pixels per latent"] = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    expected["pixels per latent"] = latents.pixels
    expected["in_channels"] = latents.channels  # of an inpainting UNet, too
    for key, value in expected.items():
        if actual[key] != value:
            raise BundleError(
                f"ControlNet {name} is of another family than the checkpoint: its {key} is "
                f"{actual[key]}; accepted: {value}"
            )


def _plain(key: str, config: Mapping[str, Any]) -> Any:
    """A value as JSON has it; one number, if it is the same for all blocks."""
    value = config.get(key)
    if not isinstance(value, tuple | list):
        return value
    return value[0] if key in _BY_BLOCK and len(set(value)) == 1 else list(value)
