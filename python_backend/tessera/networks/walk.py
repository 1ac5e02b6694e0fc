"""Reads off a network what a bundle keeps of its structure: a UNet's program, the weights that a
LoRA may change.

One walk of the module tree gives the program. Any `UNet2DConditionModel` of resnets and
(cross-attention) transformers will do; nothing here knows a Stable Diffusion version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tessera.networks.outline import Outline
from tessera.networks.program import Op, Program, Site


def outline_of(network: nn.Module) -> Outline:
    """Of a UNet or a text encoder; its weights may be on the meta device."""
    program = program_of(network) if isinstance(network, UNet2DConditionModel) else None
    return Outline(weights_of(network), others_of(network), program)


def outline_from_config(part: str, config: dict[str, Any]) -> Outline:
    """Of a network that is made without weights for it.

    Unlike `graphs.new_network`, which has every thread make modules without weights meanwhile, this
    may be done beside other threads.
    """
    kinds = {c.__name__: c for c in (CLIPTextModel, CLIPTextModelWithProjection)}
    with torch.device("meta"):
        if part == "unet":
            return outline_of(UNet2DConditionModel.from_config(config))
        return outline_of(kinds[config["architectures"][0]](CLIPTextConfig.from_dict(config)))


def weights_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of linear layers and convolutions, by name."""
    return {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def others_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of biases, norms and embeddings, by name."""
    weights = weights_of(network)
    return {n: tuple(p.shape) for n, p in network.named_parameters() if n not in weights}


def program_of(unet: UNet2DConditionModel) -> Program:
    """What a UNet does, as a list; only its structure is read.

    Raises:
        ValueError: it has parts that the sparse network does not know.
    """
    modules = dict(unet.named_modules())
    _check(unet, modules)
    ops = tuple(_walk(unet))
    return Program(
        ops=ops,
        paddings=tuple(
            int(block.downsamplers[0].padding) for block in unet.down_blocks if block.downsamplers
        ),
        sites=tuple(site for op in ops for site in _sites(op, modules)),
        attentions=tuple(
            (f"{op.name}.transformer_blocks.{i}", op.level)
            for op in ops
            if op.kind == "transformer"
            for i in range(len(_blocks(op, modules)))
        ),
        residuals=_residuals(ops, modules),
    )


def _residuals(ops: tuple[Op, ...], modules: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    level = width = 0
    for op in ops:
        if op.kind == "push":
            found[f"residual_{len(found)}"] = level, width
        elif op.kind == "join":
            found["residual_mid"] = level, width
        elif op.kind != "pop":
            level, width = op.level, _width(op, width, modules)
    return found


def _width(op: Op, before: int, modules: dict[str, nn.Module]) -> int:
    """Of the rows behind an entry."""
    if op.kind == "transformer":
        return before
    module: Any = modules[f"{op.name}.conv2" if op.kind == "resnet" else op.name]
    return int(module.out_channels)


def _blocks(op: Op, modules: dict[str, nn.Module]) -> Any:
    transformer: Any = modules[op.name]
    return transformer.transformer_blocks


def _sites(op: Op, modules: dict[str, nn.Module]) -> Iterator[Site]:
    """The sites of one entry, in the order in which it meets them."""
    same = f"same_{op.level}"
    if op.kind == "conv" and op.name != "conv_in":
        source = op.level + {"same": 0, "down": -1, "up": 1}[op.table.partition("_")[0]]
        yield _halo(op.name, source, op.table, modules)
    elif op.kind == "resnet":
        for i in (1, 2):
            yield from _norm(f"{op.name}.norm{i}", op.level, modules)
            yield _halo(f"{op.name}.conv{i}", op.level, same, modules)
    elif op.kind == "transformer":
        yield from _norm(f"{op.name}.norm", op.level, modules)
        for i, block in enumerate(_blocks(op, modules)):
            name, attention = f"{op.name}.transformer_blocks.{i}.attn1", block.attn1
            width = attention.to_k.out_features
            yield Site("key", name, op.level, width, attention.heads)
            yield Site("value", name, op.level, width, attention.heads)
    elif op.kind == "out":
        yield from _norm("conv_norm_out", op.level, modules)
        yield _halo("conv_out", op.level, same, modules)


def _halo(module: str, level: int, table: str, modules: dict[str, nn.Module]) -> Site:
    convolution: Any = modules[module]
    return Site("halo", module, level, convolution.in_channels, table=table)


def _norm(module: str, level: int, modules: dict[str, nn.Module]) -> Iterator[Site]:
    norm: Any = modules[module]
    width = 2 * norm.num_groups
    yield Site("norm", module, level, width)
    yield Site("norm_rows", module, level, width)


def _walk(unet: UNet2DConditionModel) -> Iterator[Op]:
    level = 0
    yield Op("conv", "conv_in", 0, "same_0")
    yield Op("push")
    for i, block in enumerate(unet.down_blocks):
        for layer in _layers(f"down_blocks.{i}", block, level):
            yield from layer
            yield Op("push")
        if block.downsamplers:
            level += 1
            table = f"down_{level - 1}"
            yield Op("conv", f"down_blocks.{i}.downsamplers.0.conv", level, table)
            yield Op("push")
    if unet.mid_block is not None:
        for layer in _layers("mid_block", unet.mid_block, level):
            yield from layer
    yield Op("join", level=level)
    for i, block in enumerate(unet.up_blocks):
        for layer in _layers(f"up_blocks.{i}", block, level):
            yield Op("pop")
            yield from layer
        if block.upsamplers:
            level -= 1
            yield Op("conv", f"up_blocks.{i}.upsamplers.0.conv", level, f"up_{level}")
    yield Op("out", "conv_out", level)


def _layers(name: str, block: Any, level: int) -> Iterator[list[Op]]:
    """Each resnet with the transformer behind it; a mid block has one resnet more."""
    resnets = [Op("resnet", f"{name}.resnets.{i}", level) for i in range(len(block.resnets))]
    attentions: Any = getattr(block, "attentions", None) or ()
    transformers = [
        Op("transformer", f"{name}.attentions.{i}", level) for i in range(len(attentions))
    ]
    if name == "mid_block":
        yield resnets[:1]
        resnets = resnets[1:]
        yield from ([t, r] for t, r in zip(transformers, resnets, strict=True))
    elif transformers:
        yield from ([r, t] for r, t in zip(resnets, transformers, strict=True))
    else:
        yield from ([r] for r in resnets)


_KNOWN = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
    "CrossAttnUpBlock2D",
    "UpBlock2D",
}
_EXPECTED: dict[str, dict[str, Any]] = {
    "ResnetBlock2D": {
        "time_embedding_norm": "default",
        "output_scale_factor": 1.0,
        "skip_time_act": False,
        "upsample": None,
        "downsample": None,
    },
    "Downsample2D": {"use_conv": True, "norm": None},
    "Upsample2D": {"use_conv": True, "use_conv_transpose": False, "norm": None},
    "Transformer2DModel": {"is_input_continuous": True},
    "BasicTransformerBlock": {
        "norm_type": "layer_norm",
        "pos_embed": None,
        "only_cross_attention": False,
    },
    "Attention": {
        "group_norm": None,
        "norm_q": None,
        "residual_connection": False,
        "rescale_output_factor": 1.0,
    },
}


def _check(unet: UNet2DConditionModel, modules: dict[str, nn.Module]) -> None:
    middle = () if unet.mid_block is None else (unet.mid_block,)
    for block in (*unet.down_blocks, *middle, *unet.up_blocks):
        if type(block).__name__ not in _KNOWN:
            raise ValueError(
                f"the UNet has a {type(block).__name__}; accepted: {', '.join(sorted(_KNOWN))}"
            )
    for name, module in modules.items():
        for attribute, value in _EXPECTED.get(type(module).__name__, {}).items():
            found = getattr(module, attribute, value)
            if found != value:
                raise ValueError(
                    f"{name} of the UNet has {attribute} {found!r}; accepted: {value!r}"
                )
    activations = {
        type(m.nonlinearity).__name__ for m in modules.values() if hasattr(m, "nonlinearity")
    }
    if activations != {"SiLU"}:
        raise ValueError(f"the UNet's resnets use {sorted(activations)}; accepted: SiLU")
