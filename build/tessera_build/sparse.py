"""Example inputs, dynamic axes and ranges of shapes of the graph `unet_sparse`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tessera.contract import MAX_CHUNKS
from tessera.networks.program import Program, Site
from tessera.networks.sparse_unet import SparseUNet
from tessera.sparse.batch import ArrayCache, Batch, Part
from tessera.sparse.tables import Mask, level_sizes, make_tables
from tessera.types import Tensors
from tessera.variants import TOKENS

_BY_BRANCH = ("timestep", "time_ids", "text_embeds", "timestep_cond", "part", "norms")


def sparse_inputs(module: SparseUNet, live: Tensors) -> Tensors:
    """Inputs of `unet_sparse` with random caches and a different mask for each branch.

    Args:
        module: the module, with or without weights.
        live: inputs of the UNet's encoder half, one row per branch.
    """
    program, sample = module.program, live["sample"]
    height, width = sample.shape[2:]
    masks = example_masks(len(sample), height, width)
    batch = Batch(program, [Part(make_tables(mask, program.paddings)) for mask in masks])
    caches = [ArrayCache(_random_arrays(program, (height, width))) for _ in masks]
    inputs = live | batch.sample(sample) | batch.fixed | batch.cached(caches)
    inputs |= batch.residuals(_random_maps(program, len(masks), (height, width)))
    text = live["encoder_hidden_states"]
    missing = [name for name in module.inputs if name not in inputs]
    inputs |= {name: _random_text(module, name, text) for name in missing}
    return {name: inputs[name] for name in module.inputs}


def example_masks(rows: int, height: int, width: int) -> list[Mask]:
    """Rectangles of about a third of the sides, at different places and of different sizes."""
    masks = []
    for row in range(rows):
        mask = np.zeros((height, width), bool)
        mask[row % 3 : row % 3 + height // 3, row % 2 : row % 2 + width // 3 + row % 4] = True
        masks.append(mask)
    return masks


def sparse_axes(program: Program, name: str) -> dict[int, str]:
    """The dynamic axes of an input of `unet_sparse`, by name. Axes with equal names have equal
    lengths.
    """
    kind, _, level = name.partition("_")
    if name in _BY_BRANCH:
        return {0: "branches"}
    if name.startswith(("text_key", "text_value")):
        return {0: "branches", 2: "text"}
    if name == "sample":
        return {0: "branches", 1: "rows_0"}
    if kind in ("share", "tokens", "same", "up"):
        return {0: "branches", 1: f"rows_{level}"}
    if kind == "down":
        return {0: "branches", 1: f"rows_{int(level) + 1}"}
    if name in program.residuals:
        return {0: f"rows_of_{name}"}
    if name == "halo.conv_in":
        return {0: "halo_same_0"}
    site = next(s for s in program.sites if s.name == name)
    if site.kind == "halo":
        return {0: f"halo_{site.table}"}
    return {0: "parts", 2: f"tokens_{site.level}"}


def axes_of(module: SparseUNet) -> dict[str, dict[int, str]]:
    """The dynamic axes of all inputs and outputs."""
    axes = {name: sparse_axes(module.program, name) for name in module.inputs}
    return axes | {"prediction": axes["sample"]}


def sparse_ranges(
    program: Program,
    *,
    smallest: tuple[int, int],
    usual: tuple[int, int],
    largest: tuple[int, int],
    most: int,
) -> list[dict[str, int]]:
    """Smallest, most likely and largest length of every dynamic axis.

    The most likely call is a guided request whose mask is a square of a fifth of the image. Each
    length has its own maximum; no mask reaches all of them at once.

    Args:
        program: the UNet's program.
        smallest: smallest size in latents (height, width).
        usual: default size in latents.
        largest: largest size in latents.
        most: largest number of branches.
    """
    least = _lengths(program, smallest, branches=1)
    likely = _lengths(program, usual, branches=2)
    limit = _lengths(program, largest, branches=most)
    limit["text"] *= MAX_CHUNKS
    tables = make_tables(_square(usual, 0.2), program.paddings)
    for i, entry in enumerate(tables.levels):
        least[f"rows_{i}"], likely[f"rows_{i}"] = 1, entry.count
        limit[f"rows_{i}"] = limit[f"tokens_{i}"]
    for name, (level, _) in program.residuals.items():
        least[f"rows_of_{name}"] = likely[f"rows_of_{name}"] = 1
        limit[f"rows_of_{name}"] = most * limit[f"tokens_{level}"]
    for name in {s.table for s in program.sites if s.table}:
        source = {s.table: s.level for s in program.sites}[name]
        least[f"halo_{name}"] = 1
        likely[f"halo_{name}"] = 1 + 2 * len(tables[name].halo)
        limit[f"halo_{name}"] = 1 + most * limit[f"tokens_{source}"]
    return [least, likely, limit]


def shapes_with(
    axes: Mapping[str, Mapping[int, str]],
    example: Mapping[str, torch.Tensor],
    lengths: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    """The example's shapes, with `lengths` for the dynamic axes."""
    return {
        name: tuple(
            lengths[axes[name][i]] if i in axes[name] else n for i, n in enumerate(value.shape)
        )
        for name, value in example.items()
    }


def _lengths(program: Program, size: tuple[int, int], *, branches: int) -> dict[str, int]:
    sizes = enumerate(level_sizes(size, program.paddings))
    fixed = {"branches": branches, "parts": branches, "text": TOKENS}
    return fixed | {f"tokens_{i}": h * w for i, (h, w) in sizes}


def _square(size: tuple[int, int], ratio: float) -> Mask:
    height, width = (round(n * ratio**0.5) for n in size)
    mask = np.zeros(size, bool)
    mask[:height, :width] = True
    return mask


def _random_arrays(program: Program, size: Sequence[int]) -> Tensors:
    tokens = [h * w for h, w in level_sizes((size[0], size[1]), program.paddings)]
    return {site.name: _random(site, (1, *site.shape(tokens))) for site in program.sites}


def _random_maps(program: Program, branches: int, size: tuple[int, int]) -> list[torch.Tensor]:
    sizes = level_sizes(size, program.paddings)
    return [
        torch.randn(branches, width, *sizes[level]) for level, width in program.residuals.values()
    ]


def _random(site: Site, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(shape)
    if site.kind in ("norm", "norm_rows"):
        values = 1 + 0.1 * values.abs()
        values.select(-2, 0).mul_(0.1)  # means far below the root mean squares, as in a network
    return values


def _random_text(module: SparseUNet, name: str, text: torch.Tensor) -> torch.Tensor:
    attention: Any = module.source.get_submodule(name.partition(".")[2])
    return torch.randn(
        len(text), attention.heads, text.shape[1], attention.to_k.out_features // attention.heads
    )
