"""Example inputs and dynamic axes of the graphs of the token-sparse UNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tessera.sparse.batch import ArrayCache, Batch, Part
from tessera.sparse.network import SparseUNet
from tessera.sparse.program import Program, Site
from tessera.sparse.tables import Mask, level_sizes, make_tables
from tessera_build.examples import Tensors
from tessera_build.export import Signature


def sparse_inputs(module: SparseUNet, live: Tensors, masks: list[Mask]) -> Tensors:
    """Inputs of `unet_sparse` with random caches, a branch and a part for each mask.

    Args:
        module: with or without weights.
        live: inputs of the UNet's encoder half, a row for each mask; their size is the masks'.
        masks: on the latent grid.
    """
    program = module.program
    size = (int(live["sample"].shape[2]), int(live["sample"].shape[3]))
    batch = Batch(program, [Part(make_tables(mask, program.paddings)) for mask in masks])
    caches = [ArrayCache(_random_arrays(program, size)) for _ in masks]
    text = live["encoder_hidden_states"]
    made = live | batch.sample(live["sample"]) | batch.fixed | batch.cached(caches)
    made |= {
        name: _random_text(module, name, text)
        for name in module.inputs
        if name.startswith("text_") and name not in live
    }
    return {name: made[name] for name in module.inputs}


def example_masks(rows: int, height: int, width: int) -> list[Mask]:
    """Rectangles of about a third of the sides, each at another place and of another size."""
    masks = []
    for row in range(rows):
        mask = np.zeros((height, width), bool)
        mask[row % 3 : row % 3 + height // 3, row % 2 : row % 2 + width // 3 + row % 4] = True
        masks.append(mask)
    return masks


def sparse_signature(module: SparseUNet, inputs: Tensors) -> Signature:
    """Names and dynamic axes of `unet_sparse`; inputs are what `sparse_inputs` makes."""
    axes = {name: sparse_axes(module.program, name) for name in module.inputs}
    axes["prediction"] = axes["sample"]
    return Signature(tuple(inputs.values()), module.inputs, module.outputs, axes=axes)


def sparse_axes(program: Program, name: str) -> dict[int, str]:
    """The dynamic axes of an input of `unet_sparse`, by name: axes of one name have one length."""
    kind, _, level = name.partition("_")
    if (kind == "text" and not name.startswith("text_embeds")) or name in (
        "norms",
        "timestep",
        "time_ids",
        "text_embeds",
        "part",
    ):
        return {0: "branches"}
    if name == "sample":
        return {0: "branches", 1: "rows_0"}
    if kind in ("share", "tokens", "same", "up"):
        return {0: "branches", 1: f"rows_{level}"}
    if kind == "down":
        return {0: "branches", 1: f"rows_{int(level) + 1}"}
    if name == "halo.conv_in":
        return {0: "halo_same_0"}
    site = next(s for s in program.sites if s.name == name)
    if site.kind == "halo":
        return {0: f"halo_{site.table}"}
    return {0: "parts", 2: f"tokens_{site.level}"}


def _random_arrays(program: Program, size: tuple[int, int]) -> Tensors:
    tokens = [h * w for h, w in level_sizes(size, program.paddings)]
    return {site.name: _random(site, (1, *site.shape(tokens))) for site in program.sites}


def _random(site: Site, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(shape)
    if site.kind in ("norm", "norm_rows"):
        values = torch.ones(shape) + 0.1 * values.abs()
        values.select(-2, 0).mul_(0.1)  # means far below the root mean squares, as in a network
    return values


def _random_text(module: SparseUNet, name: str, text: torch.Tensor) -> torch.Tensor:
    attention: Any = module.source.get_submodule(name.partition(".")[2])
    heads = attention.heads
    return torch.randn(text.shape[0], heads, text.shape[1], attention.to_k.out_features // heads)
