"""Lists the graphs of a checkpoint, with the example inputs and names for their export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from tessera.manifest import CONTROLNET, HINT, LOWRANK, Latents
from tessera.networks import graphs
from tessera.networks.lowrank import LowRank
from tessera.networks.modules import GraphModule
from tessera.networks.slots import FACTORS, LINEAR
from tessera.networks.sparse_unet import SparseUNet
from tessera.networks.text_modules import most_skipped
from tessera.variants import Variant
from tessera_build.examples import decoder_inputs, example_inputs, factor_inputs, is_picture, run
from tessera_build.export import Signature, hollow
from tessera_build.precision import stored_type
from tessera_build.sparse import axes_of
from tessera_build.trace import Axes

_ANY = torch.export.Dim.AUTO
_BATCH, _HEIGHT, _WIDTH = 2, 32, 16


@dataclass(frozen=True)
class GraphSpec:
    """A graph to export.

    Attributes:
        name: its name in the bundle.
        module: the module, with the checkpoint's weights in any precision.
        signature: its inputs and outputs.
        stored: type in which its weights are stored.
    """

    name: str
    module: GraphModule
    signature: Signature
    stored: torch.dtype


def graphs_of(
    pipe: DiffusionPipeline,
    variant: Variant,
    controlnets: Mapping[str, nn.Module] = MappingProxyType({}),
    *,
    lowrank: bool = True,
    precision: str = "fp32",
) -> list[GraphSpec]:
    """Every graph of a pipeline and its ControlNets, in the order of export. No weight is read.

    Args:
        pipe: the pipeline.
        variant: its variant.
        controlnets: ControlNets by name.
        lowrank: whether to include the UNet's halves with low-rank inputs, after the plain ones.
        precision: in which weights are stored, see `stored_type`.
    """
    latents = latents_of(pipe)
    size = {"rows": _BATCH, "height": _HEIGHT, "width": _WIDTH}
    parts = {name: getattr(pipe, name) for name in variant.text_encoders}
    parts |= {"unet_encoder": pipe.unet, "vae_encoder": pipe.vae, "vae_decoder": pipe.vae}
    for name, network in controlnets.items():
        parts |= {f"{CONTROLNET}{name}": network, f"{CONTROLNET}{name}{HINT}": network}
    specs = []

    def add(name: str, module: GraphModule, inputs: Mapping[str, torch.Tensor]) -> None:
        config = dict(module.source.config) if name.startswith("vae") else {}  # type: ignore[arg-type]
        stored = stored_type(name, precision, variant, config)
        specs.append(GraphSpec(name, module, signature_of(module, inputs), stored))

    for name, network in parts.items():
        module = graphs.wrap(name, network, variant)
        inputs = example_inputs(module, latents, **size)
        add(name, module, inputs)
        if name == "unet_encoder":
            decoder = graphs.wrap("unet_decoder", network, variant)
            with hollow(module):
                second = decoder_inputs(inputs, run(module, inputs))
            add("unet_decoder", decoder, second)
            for half, of_half in (("unet_encoder", inputs), ("unet_decoder", second)):
                if lowrank:
                    low = graphs.wrap(half + LOWRANK, network, variant)
                    add(half + LOWRANK, low, {**of_half, **factor_inputs(low, _BATCH)})
            for graph in ("unet_text", "unet_sparse"):
                sparse = graphs.wrap(graph, network, variant)
                add(graph, sparse, example_inputs(sparse, latents, **size))
    return specs


def signature_of(module: GraphModule, inputs: Mapping[str, torch.Tensor]) -> Signature:
    """Names and dynamic axes of a module: the batch, and height and width or the length of a text
    where there are any.
    """
    if isinstance(module, SparseUNet):
        example = tuple(inputs.values())
        return Signature(example, module.inputs, module.outputs, axes=axes_of(module))
    if isinstance(module, LowRank):
        example = tuple(inputs.values())
        return Signature(example, module.inputs, module.outputs, axes=_lowrank_axes(module))
    axes: list[Any] = [dict.fromkeys((0, *_changing(name)), _ANY) for name in inputs]
    named = sum(
        p.kind is not Parameter.VAR_POSITIONAL
        for p in signature(module.forward).parameters.values()
    )
    if len(axes) > named:  # the rest is one variadic argument
        axes = [*axes[:named], tuple(axes[named:])]
    return Signature(tuple(inputs.values()), module.inputs, module.outputs, tuple(axes))


def _changing(name: str) -> tuple[int, ...]:
    """Axes of an input that change from request to request, beside the batch."""
    if is_picture(name):
        return 2, 3
    return (1,) if name == "encoder_hidden_states" else ()


def _lowrank_axes(module: LowRank) -> Axes:
    """Dynamic axes by name, for a trace: torch.export takes ten times as long."""
    axes = {}
    for name in (*module.inputs, *module.outputs):
        axes[name] = {0: "rows"}
        if is_picture(name):
            axes[name] |= {2: f"height_{name}", 3: f"width_{name}"}
        if name == "encoder_hidden_states":
            axes[name][1] = "text"
        if name in FACTORS:
            axes[name][1] = "rank" if name in LINEAR else "conv_rank"
    return axes


def clip_skip_of(pipe: DiffusionPipeline, variant: Variant) -> int:
    """How many layers of all text encoders of a pipeline a request may skip."""
    layers = [getattr(pipe, name).config.num_hidden_layers for name in variant.text_encoders]
    return most_skipped(min(layers), pooled=variant.pooled)


def latents_of(pipe: DiffusionPipeline) -> Latents:
    """The latent space of a pipeline. Diffusers' pipelines of Stable Diffusion 1.x and 2.x do not
    look at means and deviations, so they are left out there.
    """
    config = pipe.vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    normalised = mean and std and "XL" in type(pipe).__name__
    return Latents(
        channels=config.latent_channels,
        pixels=2 ** (len(config.block_out_channels) - 1),
        scale=config.scaling_factor,
        mean=_numbers(mean) if normalised else (),
        std=_numbers(std) if normalised else (),
    )


def _numbers(values: Any) -> tuple[float, ...]:
    """One for each channel; a single file has them as a tensor (1, c, 1, 1)."""
    return tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())
