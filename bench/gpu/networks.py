"""Networks with random weights in the published configurations, made where they are to run; and
small ones of the same topology.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.gpu.timing import Place
from tessera.engines.torch import TorchEngine
from tessera.manifest import Latents
from tessera.networks.graphs import new_network, wrap
from tessera.networks.modules import GraphModule, keeps_type
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.examples import example_inputs
from tests.fakes.true_configs import CONFIGS

SIZES = {"sd15": 512, "sdxl": 1024}
"""Pixels of a side at which each variant is measured."""
TINY_SIZE = 64
LATENTS = Latents(4, 8, 0.18215)
GRAPHS = 8
"""CUDA graphs per engine, as served."""
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_TINY: dict[str, dict[str, Any]] = {
    "text_encoder": {**_TEXT, "num_hidden_layers": 2, "projection_dim": 32},
    "text_encoder_2": {**_TEXT, "num_hidden_layers": 2, "projection_dim": 32},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
}
_TINY_UNET = {"layers_per_block": 1, "sample_size": 16}
_TINY_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32},
    "sdxl": {
        "block_out_channels": (32, 32, 64),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "transformer_layers_per_block": (1, 1, 1),
    },
}


def configs(variant: str, *, tiny: bool) -> dict[str, dict[str, Any]]:
    """Configurations by part."""
    found = {part: dict(config) for part, config in CONFIGS[variant].items()}
    if tiny:
        changes = _TINY | {"unet": {**_TINY_UNETS[variant], **_TINY_UNET}}
        found = {part: config | changes[part] for part, config in found.items()}
    return found


def side_of(variant: str, *, tiny: bool) -> int:
    """Latents of a side."""
    return (TINY_SIZE if tiny else SIZES[variant]) // LATENTS.pixels


def random_network(
    part: str, config: dict[str, Any], where: Place, *, dtype: torch.dtype | None = None
) -> Any:
    """A network with random weights, the same ones whenever it is made on that device."""
    network = new_network(part, config)
    generator = torch.Generator(where.device).manual_seed(0)
    state = {
        name: _random(name, parameter, generator).to(dtype or where.dtype)
        for name, parameter in network.named_parameters()
    }
    network.load_state_dict(state, strict=False, assign=True)
    return network.to(where.device).eval().requires_grad_(False)


def control_config(unet: dict[str, Any]) -> dict[str, Any]:
    """Of a ControlNet for a UNet."""
    own = {k: v for k, v in unet.items() if k not in ("sample_size", "up_block_types")}
    return own | {"conditioning_embedding_out_channels": (16, 32, 96, 256)}


def module(graph: str, network: nn.Module, variant: str) -> GraphModule:
    """The module of a graph around a network."""
    return wrap(graph, network, VARIANTS[variant])


def engine(
    graph: str, network: nn.Module, variant: str, where: Place, *, graphs: int = GRAPHS, **more: Any
) -> TorchEngine:
    """A torch engine as a server opens it; CUDA graphs are for GPUs only."""
    return TorchEngine(
        module(graph, network, variant),
        device=where.device,
        dtype=where.dtype,
        graphs=graphs if where.on_gpu else 0,
        **more,
    )


def unet_inputs(network: nn.Module, variant: str, *, rows: int, side: int) -> Tensors:
    """Inputs of a UNet's encoder half, float32 on the CPU, all rows at one timestep."""
    torch.manual_seed(1)
    half = module("unet_encoder", network, variant)
    inputs = example_inputs(half, LATENTS, rows=rows, height=side, width=side)
    return inputs | {"timestep": torch.full((rows,), 500.0)}


def placed(inputs: Tensors, where: Place) -> dict[str, torch.Tensor]:
    """Inputs where networks run, numbers that a half cannot hold as they are."""
    return {n: where.put(t, exact=keeps_type(n, t)) for n, t in inputs.items()}


def diffusers_call(unet: Any, inputs: Tensors) -> torch.Tensor:
    """A call of diffusers' own UNet."""
    added = {n: inputs[n] for n in ("text_embeds", "time_ids") if n in inputs}
    return unet(
        inputs["sample"],
        inputs["timestep"],
        inputs["encoder_hidden_states"],
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]


def _random(name: str, parameter: nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    """A weight as networks start out with, so that nothing overflows in half precision."""
    shape = parameter.shape
    if len(shape) < 2:
        one = float("norm" in name and name.endswith("weight"))
        return torch.full(shape, one, device=generator.device)
    values = torch.randn(shape, generator=generator, device=generator.device)
    return values / shape[1:].numel() ** 0.5
