"""Graphs of small checkpoints, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from diffusers import UNet2DConditionModel

from tessera.networks import graphs
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.examples import decoder_inputs, example_inputs, factor_inputs, run
from tessera_build.graphs import GraphSpec, graphs_of, latents_of
from tests.fakes.checkpoint import topology
from tests.samples.bundles import Small

Make = Callable[[str], Small]


@cache
def specs_of(made: Small) -> dict[str, GraphSpec]:
    """All graphs of a bundle, by name."""
    specs = graphs_of(made.pipe, VARIANTS[made.variant], {"edges": made.control})
    return {spec.name: spec for spec in specs}


def spec_of(made: Small, graph: str) -> GraphSpec:
    return specs_of(made)[graph]


def unet_and_inputs(
    variant: str, rows: int, height: int, width: int
) -> tuple[UNet2DConditionModel, dict[str, torch.Tensor]]:
    pipe = topology(variant)
    module = graphs.wrap("unet_encoder", pipe.unet, VARIANTS[variant])
    size = {"rows": rows, "height": height, "width": width}
    return pipe.unet, example_inputs(module, latents_of(pipe), **size)


def whole(
    unet: UNet2DConditionModel, inputs: dict[str, torch.Tensor], **residuals: object
) -> torch.Tensor:
    added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs}
    basic = [inputs[k] for k in ("sample", "timestep", "encoder_hidden_states")]
    guidance = inputs.get("timestep_cond")
    out: torch.Tensor = unet(
        *basic, added_cond_kwargs=added or None, timestep_cond=guidance, **residuals
    ).sample
    return out


def resized(made: Small, graph: str, rows: int, height: int, width: int) -> Tensors:
    """Random inputs of another batch and size than those the graph was traced with."""
    torch.manual_seed(rows)
    size = {"rows": rows, "height": height, "width": width}
    latents = latents_of(made.pipe)
    module = spec_of(made, graph).module
    if not graph.startswith("unet_decoder"):
        return example_inputs(module, latents, **size)
    encoder = spec_of(made, "unet_encoder").module
    inputs = example_inputs(encoder, latents, **size)
    return decoder_inputs(inputs, run(encoder, inputs)) | factor_inputs(module, rows)
