"""The UNet on rows of tokens: the graphs `unet_sparse` and `unet_text`.

A call has `b` branches (two for a guided request), each with its own mask. At every level each
branch has as many rows as the branch with the most active tokens. Its last row is repeated as
padding. Rows are stored branch after branch, (b * n, channels), so that convolutions and
projections are plain matrix products.

Everything that differs between masks is an input: index tables and cached values. The weights are
the UNet's, with the same names. Knows no requests and no recordings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional

from tessera.networks.modules import GraphModule, added_inputs, embed_conditions
from tessera.networks.program import Op, Program
from tessera.networks.walk import program_of

_LIVE = ("sample", "timestep")


class SparseUNet(GraphModule):
    """One denoising step of the active tokens.

    `docs/internals/sparse.md` has the table of inputs. `prediction` is (b, n_0, channels): of the
    active latents, in the order of `Level.tokens`.
    """

    source: UNet2DConditionModel
    outputs = ("prediction",)
    program: Program

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet, tree=_pruned(unet, lambda name: not _projects_text(name)))
        self.program = program_of(unet)
        self.inputs = input_names(unet, self.program)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """See the class. Tensors are in the order of `inputs`."""
        step = _Step(self, dict(zip(self.inputs, tensors, strict=True)))
        rows = step.inputs["sample"].flatten(0, 1)
        skips: list[torch.Tensor] = []
        for op in self.program.ops:
            if op.kind == "push":
                skips.append(rows + step.inputs[f"residual_{len(skips)}"])
            elif op.kind == "join":
                rows = rows + step.inputs["residual_mid"]
            elif op.kind == "pop":
                rows = torch.cat([rows, skips.pop()], 1)
            else:
                rows = getattr(step, op.kind)(op, rows)
        return rows.unflatten(0, step.inputs["sample"].shape[:2])


class TextProjections(GraphModule):
    """Keys and values of all cross-attentions: `encoder_hidden_states` (b, tokens, width) ->
    `text_key.<attention>`, `text_value.<attention>` (b, heads, tokens, channels of a head).

    Runs once per request.
    """

    source: UNet2DConditionModel
    inputs = ("encoder_hidden_states",)

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet, tree=_pruned(unet, _projects_text))
        self._blocks = [name for name, _ in program_of(unet).attentions]
        self.outputs = text_names(self._blocks)

    def forward(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        outputs = []
        for block in self._blocks:
            attention: Any = self.source.get_submodule(f"{block}.attn2")
            for projection in (attention.to_k, attention.to_v):
                rows = projection(encoder_hidden_states)
                outputs.append(rows.unflatten(-1, (attention.heads, -1)).transpose(1, 2))
        return tuple(outputs)


def text_names(blocks: list[str]) -> tuple[str, ...]:
    """Names of the cached keys and values of the text, in order."""
    return tuple(f"text_{kind}.{block}.attn2" for block in blocks for kind in ("key", "value"))


def input_names(unet: UNet2DConditionModel, program: Program) -> tuple[str, ...]:
    """Input names of `unet_sparse`, in order."""
    steps = range(program.levels - 1)
    attending = sorted({level for _, level in program.attentions})
    cached = [s.name for s in program.sites if s.kind in ("halo", "key", "value")]
    return (
        *_LIVE,
        *added_inputs(unet),
        "part",
        *(f"share_{level}" for level in range(program.levels)),
        *(f"tokens_{level}" for level in attending),
        *(f"same_{level}" for level in range(program.levels)),
        *(f"down_{level}" for level in steps),
        *(f"up_{level}" for level in steps),
        "norms",
        *text_names([name for name, _ in program.attentions]),
        *program.residuals,
        "halo.conv_in",
        *cached,
    )


class _Step:
    """The operations of one call. Public methods are named after the kinds of `Op`."""

    def __init__(self, network: SparseUNet, inputs: Mapping[str, torch.Tensor]) -> None:
        self.inputs = inputs
        self._network = network
        self._norms = {name: i for i, name in enumerate(network.program.norms)}
        self._tables: dict[tuple[str, int], torch.Tensor] = {}
        emb = embed_conditions(network.source, inputs["sample"], inputs["timestep"], inputs)
        self._emb = functional.silu(emb)

    @cached_property
    def _branches(self) -> int:
        return self.inputs["sample"].shape[0]

    def conv(self, op: Op, rows: torch.Tensor) -> torch.Tensor:
        """A convolution outside of resnets."""
        return self._conv(op.name, rows, op.table)

    def resnet(self, op: Op, rows: torch.Tensor) -> torch.Tensor:
        """A resnet. The time embedding is added to the second norm's shift, not to the rows."""
        block: Any = self._module(op.name)
        same = f"same_{op.level}"
        time = block.time_emb_proj(self._emb)
        hidden = functional.silu(self._norm(f"{op.name}.norm1", rows, op.level))
        hidden = self._conv(f"{op.name}.conv1", hidden, same)
        hidden = functional.silu(self._norm(f"{op.name}.norm2", hidden, op.level, added=time))
        hidden = self._conv(f"{op.name}.conv2", hidden, same)
        if block.conv_shortcut is not None:
            rows = _product(block.conv_shortcut, rows)
        return rows + hidden

    def transformer(self, op: Op, rows: torch.Tensor) -> torch.Tensor:
        """A transformer with its projections, which are linear layers or 1x1 convolutions."""
        module: Any = self._module(op.name)
        hidden = _product(module.proj_in, self._norm(f"{op.name}.norm", rows, op.level))
        for i, block in enumerate(module.transformer_blocks):
            name = f"{op.name}.transformer_blocks.{i}"
            normed = block.norm1(hidden)
            hidden = hidden + self._self_attention(f"{name}.attn1", normed, op.level)
            hidden = hidden + self._cross_attention(f"{name}.attn2", block.norm2(hidden))
            hidden = hidden + block.ff(block.norm3(hidden))
        return _product(module.proj_out, hidden) + rows

    def out(self, op: Op, rows: torch.Tensor) -> torch.Tensor:
        """The last norm and convolution."""
        hidden = functional.silu(self._norm("conv_norm_out", rows, op.level))
        return self._conv("conv_out", hidden, f"same_{op.level}")

    def _module(self, name: str) -> nn.Module:
        return self._network.get_submodule(name)

    def _conv(self, name: str, rows: torch.Tensor, table: str) -> torch.Tensor:
        """Gather nine rows per token, side by side, and multiply by the weight."""
        near = torch.cat([self.inputs[f"halo.{name}"], rows])
        gathered = near.index_select(0, self.inputs[table].flatten())
        return _product(self._module(name), gathered.view(-1, 9 * rows.shape[1]))

    def _norm(
        self, name: str, rows: torch.Tensor, level: int, *, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        """GroupNorm of the rows (+ `added`, per branch).

        Its mean and mean square are the cached ones of the tokens that are not computed, plus
        `share` times those of the rows. Where `share` is zero, the cached ones are of all tokens.
        """
        norm: Any = self._module(name)
        groups, width = norm.num_groups, norm.num_channels
        values = rows.view(self._branches, -1, width)
        share = self.inputs[f"share_{level}"][:, None]  # (b, 1, n)
        exact = values.to(share.dtype)
        mean, square = share @ exact, share @ (exact * exact)  # (b, 1, channels)
        if added is not None:
            more, weight = added.to(share.dtype)[:, None], share.sum(2, keepdim=True)
            square = square + more * (2 * mean + more * weight)
            mean = mean + more * weight
        cached = self.inputs["norms"][:, self._norms[name]]  # (b, 2, groups)
        mean = cached[:, 0] + mean.view(-1, groups, width // groups).mean(2)
        square = cached[:, 1] + square.view(-1, groups, width // groups).mean(2)
        spread = (square - mean * mean).clamp(min=0)
        scale = torch.rsqrt(spread + norm.eps)[:, :, None] * norm.weight.view(groups, -1)
        shift = norm.bias.view(groups, -1) - mean[:, :, None] * scale
        scale, shift = (v.reshape(-1, 1, width).to(rows.dtype) for v in (scale, shift))
        if added is not None:
            shift = shift + added[:, None] * scale
        return (values * scale + shift).view(-1, width)

    def _self_attention(self, name: str, rows: torch.Tensor, level: int) -> torch.Tensor:
        """Queries of the rows; keys and values of all tokens."""
        attention: Any = self._module(name)
        key, value = (
            self._merged(f"{kind}.{name}", projection(rows), level)
            for kind, projection in (("key", attention.to_k), ("value", attention.to_v))
        )
        return self._attend(attention, rows, key, value)

    def _cross_attention(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        key, value = (self.inputs[f"text_{kind}.{name}"] for kind in ("key", "value"))
        return self._attend(self._module(name), rows, key, value)

    def _attend(
        self, attention: Any, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        query = self._by_head(attention.to_q(rows) * attention.scale, attention.heads)
        weights = torch.softmax(query @ key.transpose(2, 3), -1)
        mixed = (weights @ value).transpose(1, 2).reshape(rows.shape[0], -1)
        return attention.to_out[0](mixed)

    def _merged(self, name: str, rows: torch.Tensor, level: int) -> torch.Tensor:
        """Keys or values of all tokens (b, heads, tokens, channels): the cached ones, with active
        tokens replaced by the live rows.
        """
        cached = self.inputs[name]  # (parts, heads, tokens, channels)
        _, heads, tokens, width = cached.shape
        every = cached.flatten(0, 1).index_select(0, self._heads_of_branches(heads))
        live = self._by_head(rows, heads).reshape(-1, width)
        places = self._places(level, heads, tokens)
        return every.view(-1, width).index_put((places,), live).view(-1, heads, tokens, width)

    def _heads_of_branches(self, heads: int) -> torch.Tensor:
        """Index of the cached values of each branch and head: (b * heads,)."""
        key = ("part", heads)
        if key not in self._tables:
            part = self.inputs["part"][:, None]
            numbers = torch.arange(heads, dtype=part.dtype, device=part.device)
            self._tables[key] = (part * heads + numbers).flatten()
        return self._tables[key]

    def _places(self, level: int, heads: int, tokens: int) -> torch.Tensor:
        """Index of each branch's, head's and row's token among all: (b * heads * n,)."""
        key = (f"tokens_{level}", heads)
        if key not in self._tables:
            active = self.inputs[key[0]].long()[:, None]  # (b, 1, n)
            first = torch.arange(self._branches * heads, device=active.device) * tokens
            self._tables[key] = (active + first.view(-1, heads, 1)).flatten()
        return self._tables[key]

    def _by_head(self, rows: torch.Tensor, heads: int) -> torch.Tensor:
        """(b * n, heads * channels) -> (b, heads, n, channels)."""
        return rows.view(self._branches, -1, heads, rows.shape[1] // heads).transpose(1, 2)


def _pruned(module: nn.Module, keep: Callable[[str], bool], prefix: str = "") -> Any:
    """The module tree without the leaves whose names `keep` rejects; `None` if none remain.

    Modules that lose no leaf are the same objects, the others are copies.
    """
    if not module._modules:
        return module if keep(prefix) else None
    children = {
        name: _pruned(child, keep, f"{prefix}.{name}" if prefix else name)
        for name, child in module._modules.items()
        if child is not None
    }
    kept = {name: child for name, child in children.items() if child is not None}
    if all(kept.get(name) is child for name, child in module._modules.items()):
        return module
    if not kept:
        return None
    twin = copy.copy(module)
    object.__setattr__(twin, "_modules", kept)
    return twin


def _projects_text(name: str) -> bool:
    return name.endswith(("attn2.to_k", "attn2.to_v"))


def _product(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer, or a convolution whose taps are side by side in the rows."""
    if isinstance(module, nn.Linear):
        return module(rows)
    if module.kernel_size == (1, 1):
        return functional.linear(rows, module.weight.view(module.out_channels, -1), module.bias)
    weight = module.weight.permute(2, 3, 1, 0)
    weight = weight.reshape(-1, weight.shape[-1])
    return torch.addmm(module.bias, rows, weight)
