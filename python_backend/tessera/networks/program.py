"""A UNet's operations in order, and its sites.

A walk of the module tree gives the program, a flat list. The sparse network runs it, and the sites
are derived from it. Any `UNet2DConditionModel` of resnets and (cross-attention) transformers works.
Nothing here knows a Stable Diffusion version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from diffusers import UNet2DConditionModel
from torch import nn

Kind = Literal["conv", "resnet", "transformer", "push", "join", "pop", "out"]
SiteKind = Literal["halo", "key", "value", "norm", "norm_rows"]


@dataclass(frozen=True)
class Op:
    """One entry of a program.

    Attributes:
        kind: the operation. `push` puts the rows on the stack of skips, `pop` concatenates them
            with its top, `join` adds residuals to the mid block's rows.
        name: name of the module.
        level: level of the rows that come out.
        table: the index table, of a convolution outside of resnets.
    """

    kind: Kind
    name: str = ""
    level: int = 0
    table: str = ""


@dataclass(frozen=True)
class Site:
    """A place in the UNet that needs values of tokens that are not computed.

    Attributes:
        kind: `halo` (input rows of a convolution), `key`, `value` (of a self-attention), `norm`
            (statistics of a GroupNorm over all tokens), `norm_rows` (each token's share of them).
        module: name of the convolution, attention or norm.
        level: the level of its tokens.
        width: numbers per token; for `norm`, numbers in total.
        heads: heads of an attention. Its tokens are stored head by head.
        table: for a `halo`, the index table that says which rows a mask needs.
    """

    kind: SiteKind
    module: str
    level: int
    width: int
    heads: int = 1
    table: str = ""

    @cached_property
    def name(self) -> str:
        """Name of the recorded array and of the graph's input that is made from it."""
        return f"{self.kind}.{self.module}"

    def shape(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Shape of one recorded row (one timestep of one branch).

        Args:
            tokens: number of all tokens of each level.
        """
        total = tokens[self.level]
        if self.kind == "norm":
            return (2, self.width // 2)
        if self.kind == "norm_rows":
            return (total, 2, self.width // 2)
        if self.kind == "halo":
            return (total, self.width)
        return (self.heads, total, self.width // self.heads)


class Program:
    """The operations of a UNet, as a list.

    Args:
        unet: the network. Only its structure is read, so its weights may be on the meta device.

    Raises:
        ValueError: the UNet has parts that the sparse network does not support.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._modules = dict(unet.named_modules())
        _check(unet, self._modules)
        self.ops = tuple(_walk(unet))
        self.paddings = tuple(
            int(block.downsamplers[0].padding) for block in unet.down_blocks if block.downsamplers
        )

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.paddings) + 1

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in the order of the program. The halo of `conv_in` is not a site: its rows
        are known without a recording.
        """
        return tuple(site for op in self.ops for site in self.sites_of(op))

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Names of the GroupNorms, in the order in which the graph takes their statistics."""
        return tuple(s.module for s in self.sites if s.kind == "norm")

    @cached_property
    def attentions(self) -> tuple[tuple[str, int], ...]:
        """Name and level of every transformer block."""
        return tuple(
            (f"{op.name}.transformer_blocks.{i}", op.level)
            for op in self.ops
            if op.kind == "transformer"
            for i in range(len(self._modules[op.name].transformer_blocks))
        )

    @cached_property
    def residuals(self) -> dict[str, tuple[int, int]]:
        """Level and width of the ControlNet residuals, by name of the input.

        In the order of the UNet's skips, then its mid block.
        """
        residuals: dict[str, tuple[int, int]] = {}
        level = width = 0
        for op in self.ops:
            if op.kind == "push":
                residuals[f"residual_{len(residuals)}"] = level, width
            elif op.kind == "join":
                residuals["residual_mid"] = level, width
            elif op.kind != "pop":
                level, width = op.level, self._width(op, width)
        return residuals

    def _width(self, op: Op, before: int) -> int:
        """Width of the rows after an entry."""
        if op.kind == "transformer":
            return before
        module: Any = self._modules[f"{op.name}.conv2" if op.kind == "resnet" else op.name]
        return int(module.out_channels)

    def sites_of(self, op: Op) -> Iterator[Site]:
        """The sites of one entry, in the order in which it uses them."""
        same = f"same_{op.level}"
        if op.kind == "conv" and op.name != "conv_in":
            source = op.level + {"same": 0, "down": -1, "up": 1}[op.table.partition("_")[0]]
            yield self._halo(op.name, source, op.table)
        elif op.kind == "resnet":
            for i in (1, 2):
                yield from self._norm(f"{op.name}.norm{i}", op.level)
                yield self._halo(f"{op.name}.conv{i}", op.level, same)
        elif op.kind == "transformer":
            yield from self._norm(f"{op.name}.norm", op.level)
            blocks: Any = self._modules[op.name].transformer_blocks
            for i, block in enumerate(blocks):
                name, attention = f"{op.name}.transformer_blocks.{i}.attn1", block.attn1
                width = attention.to_k.out_features
                yield Site("key", name, op.level, width, attention.heads)
                yield Site("value", name, op.level, width, attention.heads)
        elif op.kind == "out":
            yield from self._norm("conv_norm_out", op.level)
            yield self._halo("conv_out", op.level, same)

    def _halo(self, module: str, level: int, table: str) -> Site:
        return Site("halo", module, level, self._modules[module].in_channels, table=table)

    def _norm(self, module: str, level: int) -> Iterator[Site]:
        width = 2 * self._modules[module].num_groups
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
    """Each resnet with the transformer after it. A mid block has one more resnet."""
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
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for block in blocks:
        if type(block).__name__ not in _KNOWN:
            raise ValueError(
                f"the UNet has a {type(block).__name__}; accepted: {', '.join(sorted(_KNOWN))}"
            )
    for name, module in modules.items():
        for attribute, value in _EXPECTED.get(type(module).__name__, {}).items():
            actual = getattr(module, attribute, value)
            if actual != value:
                raise ValueError(
                    f"{name} of the UNet has {attribute} {actual!r}; accepted: {value!r}"
                )
    activations = {
        type(m.nonlinearity).__name__ for m in modules.values() if hasattr(m, "nonlinearity")
    }
    if activations != {"SiLU"}:
        raise ValueError(f"the UNet's resnets use {sorted(activations)}; accepted: SiLU")
