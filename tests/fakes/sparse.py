"""Small UNets in every topology, masks of every kind, and the dense answer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from tessera.manifest import Latents
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.program import Site
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.sparse.batch import ArrayCache, Batch, Part
from tessera.sparse.record import Recording, record
from tessera.sparse.tables import Mask, level_sizes, make_tables
from tessera.types import Tensors
from tessera_build.examples import example_inputs
from tests.fakes.checkpoint import TOPOLOGIES, randomised, topology

DEMO = Path(__file__).resolve().parents[2] / "build" / "demo_model" / "base" / "unet"
NAMES = (*TOPOLOGIES, "demo", "demo-padding-0", "demo-inpainting")
MASKS = ("pixel", "full", "borders", "islands", "checkerboard")


@cache
def small_unet(name: str) -> UNet2DConditionModel:
    """The UNet of a topology, with random norms and biases; the same object at every call."""
    if name.partition("-")[0] in TOPOLOGIES:
        return topology(name).unet
    torch.manual_seed(0)
    config = json.loads((DEMO / "config.json").read_text())
    config |= {"block_out_channels": (16, 32, 48), "norm_num_groups": 8, "cross_attention_dim": 24}
    config |= {"downsample_padding": 0 if name.endswith("padding-0") else 1}
    config |= {"in_channels": 9 if name.endswith("inpainting") else 4}
    unet: UNet2DConditionModel = randomised(UNet2DConditionModel.from_config(config))
    return unet


def mask_of(kind: str, height: int, width: int) -> Mask:
    """One of `MASKS`."""
    mask = np.zeros((height, width), bool)
    if kind == "pixel":
        mask[height // 2, width - 2] = True
    elif kind == "full":
        mask[:] = True
    elif kind == "borders":
        mask[[0, -1]] = mask[:, [0, -1]] = True
    elif kind == "islands":
        mask[1:3, 1:4] = mask[-3:, -2:] = mask[height // 2, 0] = True
    else:
        mask[::2, ::2] = mask[1::2, 1::2] = True
    return mask


def random_residuals(
    unet: UNet2DConditionModel, *, rows: int, height: int, width: int
) -> list[torch.Tensor]:
    """What a ControlNet could add to the skips and the mid block's result."""
    program = SparseUNet(unet).program
    sizes = level_sizes((height, width), program.paddings)
    places = program.residuals.values()
    return [torch.randn(rows, channels, *sizes[level]) for level, channels in places]


def dense_pass(
    unet: UNet2DConditionModel,
    *,
    rows: int,
    height: int,
    width: int,
    residuals: list[torch.Tensor] | None = None,
) -> tuple[Tensors, Recording, torch.Tensor]:
    """Random inputs, the recording of all sites, and diffusers' own answer, with residuals or
    without.
    """
    torch.manual_seed(rows)
    encoder, decoder = UNetEncoder(unet).eval(), UNetDecoder(unet).eval()
    size = {"rows": rows, "height": height, "width": width}
    inputs = example_inputs(encoder, Latents(4, 8, 1.0), **size)
    sites = SparseUNet(unet).program.sites
    if residuals:
        recording = _record_with(residuals, encoder, decoder, inputs, sites)
    else:
        recording, _ = record(encoder, decoder, inputs, sites=sites)
    added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs}
    basic = [inputs[k] for k in ("sample", "timestep", "encoder_hidden_states")]
    controls: dict[str, Any] = {"timestep_cond": inputs.get("timestep_cond")}
    if residuals:
        controls["down_block_additional_residuals"] = tuple(residuals[:-1])
        controls["mid_block_additional_residual"] = residuals[-1]
    with torch.no_grad():
        answer: torch.Tensor = unet(*basic, added_cond_kwargs=added or None, **controls).sample
    return inputs, recording, answer


def _record_with(
    residuals: list[torch.Tensor],
    encoder: UNetEncoder,
    decoder: UNetDecoder,
    inputs: Tensors,
    sites: tuple[Site, ...],
) -> Recording:
    """`record`, with the decoder half given what the encoder half found and the residuals."""

    def joined(
        mid: torch.Tensor, emb: torch.Tensor, text: torch.Tensor, *skips: torch.Tensor
    ) -> Any:
        pairs = zip(skips, residuals[:-1], strict=True)
        return forward(mid + residuals[-1], emb, text, *(a + b for a, b in pairs))

    forward = decoder.forward
    decoder.forward = joined  # type: ignore[assignment,method-assign]
    return record(encoder, decoder, inputs, sites=sites)[0]


def batch_of(unet: UNet2DConditionModel, masks: list[Mask], *, live_norms: bool = True) -> Batch:
    """A part of one branch for each mask."""
    program = SparseUNet(unet).program
    parts = [Part(make_tables(m, program.paddings), live_norms=live_norms) for m in masks]
    return Batch(program, parts)


def sparse_feed(
    unet: UNet2DConditionModel, inputs: Tensors, batch: Batch, caches: list[ArrayCache]
) -> Tensors:
    """All inputs of `unet_sparse`, in its order."""
    text = TextProjections(unet).eval()
    with torch.no_grad():
        projected = text(inputs["encoder_hidden_states"])
    made = inputs | batch.fixed | batch.cached(caches) | batch.sample(inputs["sample"])
    made |= dict(zip(text.outputs, projected, strict=True))
    return {name: made[name] for name in SparseUNet(unet).inputs}


def largest_difference(
    batch: Batch, prediction: torch.Tensor, answer: torch.Tensor, masks: list[Mask]
) -> float:
    """Between a sparse prediction and the dense answer, over the active latents."""
    found = batch.scatter(prediction, torch.full_like(answer, torch.nan))
    active = torch.from_numpy(np.stack(masks))[:, None].expand_as(answer)
    assert torch.equal(torch.isnan(found), ~active)
    return float((found - answer)[active].abs().max())
