"""Lists the graphs of a checkpoint, with the example inputs and names for their export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline
from torch import nn

from tessera.manifest import CONTROLNET, HINT, LOWRANK, Latents
from tessera.networks import graphs
from tessera.networks.lowrank import LowRank
from tessera.networks.modules import GraphModule
from tessera.networks.slots import FACTORS, LINEAR
from tessera.networks.sparse_unet import SparseUNet
from tessera.variants import Variant
from tessera_build.examples import decoder_inputs, example_inputs, factor_inputs, is_picture, run
from tessera_build.export import Signature
from tessera_build.sparse import axes_of
from tessera_build.trace import Axes

_ANY = torch.export.Dim.AUTO
_BATCH, _HEIGHT, _WIDTH = 2, 32, 16


@dataclass(frozen=True)
class GraphSpec:
    """A graph to export: its name in the bundle, its module, its inputs and outputs."""

    name: str
    module: GraphModule
    signature: Signature


def graphs_of(
    pipe: DiffusionPipeline,
    variant: Variant,
    controlnets: Mapping[str, ControlNetModel] = MappingProxyType({}),
    *,
    lowrank: bool = True,
) -> list[GraphSpec]:
    """Every graph of a pipeline and its ControlNets, in the order of export.

    Args:
        pipe: the pipeline.
        variant: its variant.
        controlnets: ControlNets by name.
        lowrank: whether to include the UNet's halves with low-rank inputs, after the plain ones.
    """
    latents = latents_of(pipe)
    size = {"rows": _BATCH, "height": _HEIGHT, "width": _WIDTH}
    parts = {name: getattr(pipe, name) for name in variant.text_encoders}
    parts |= {"unet_encoder": pipe.unet, "vae_encoder": pipe.vae, "vae_decoder": pipe.vae}
    for name, network in controlnets.items():
        parts |= {f"{CONTROLNET}{name}": network, f"{CONTROLNET}{name}{HINT}": network}
    specs = []
    for name, network in parts.items():
        module = graphs.wrap(name, network, variant)
        inputs = example_inputs(module, latents, **size)
        specs.append(GraphSpec(name, module, signature_of(module, inputs)))
        if name == "unet_encoder":
            decoder = graphs.wrap("unet_decoder", network, variant)
            second = decoder_inputs(inputs, run(module, inputs))
            specs.append(GraphSpec("unet_decoder", decoder, signature_of(decoder, second)))
            if lowrank:
                specs += _lowrank(network, variant, (inputs, second))
            for graph in ("unet_text", "unet_sparse"):
                sparse = graphs.wrap(graph, network, variant)
                example = example_inputs(sparse, latents, **size)
                specs.append(GraphSpec(graph, sparse, signature_of(sparse, example)))
    return specs


def _lowrank(
    unet: nn.Module, variant: Variant, inputs: Iterable[Mapping[str, torch.Tensor]]
) -> list[GraphSpec]:
    """The UNet's halves with low-rank inputs. `inputs` are the inputs of the plain halves."""
    specs = []
    for half, of_half in zip(("unet_encoder", "unet_decoder"), inputs, strict=True):
        module = graphs.wrap(half + LOWRANK, unet, variant)
        example = {**of_half, **factor_inputs(module, _BATCH)}
        specs.append(GraphSpec(half + LOWRANK, module, signature_of(module, example)))
    return specs


def signature_of(module: GraphModule, inputs: Mapping[str, torch.Tensor]) -> Signature:
    """Names and dynamic axes of a module: the batch, and height and width where there are any."""
    if isinstance(module, SparseUNet):
        example = tuple(inputs.values())
        return Signature(example, module.inputs, module.outputs, axes=axes_of(module))
    if isinstance(module, LowRank):
        example = tuple(inputs.values())
        return Signature(example, module.inputs, module.outputs, axes=_lowrank_axes(module))
    axes: list[Any] = [
        {0: _ANY, 2: _ANY, 3: _ANY} if is_picture(name) else {0: _ANY} for name in inputs
    ]
    named = sum(
        p.kind is not Parameter.VAR_POSITIONAL
        for p in signature(module.forward).parameters.values()
    )
    if len(axes) > named:  # the rest is one variadic argument
        axes = [*axes[:named], tuple(axes[named:])]
    return Signature(tuple(inputs.values()), module.inputs, module.outputs, tuple(axes))


def _lowrank_axes(module: LowRank) -> Axes:
    """Dynamic axes by name, for a trace: torch.export takes ten times as long."""
    axes = {}
    for name in (*module.inputs, *module.outputs):
        axes[name] = {0: "rows"}
        if is_picture(name):
            axes[name] |= {2: f"height_{name}", 3: f"width_{name}"}
        if name in FACTORS:
            axes[name][1] = "rank" if name in LINEAR else "conv_rank"
    return axes


def latents_of(pipe: DiffusionPipeline) -> Latents:
    """The latent space of a pipeline."""
    config = pipe.vae.config
    return Latents(
        channels=config.latent_channels,
        pixels=2 ** (len(config.block_out_channels) - 1),
        scale=config.scaling_factor,
    )
