"""Opens the dense UNet of a bundle on its devices.

Knows bundles and engines, nothing of requests or Triton.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tessera.denoise.unet import SpreadUNet, UNet
from tessera.engines.base import Refittable
from tessera.engines.bundle import Bundle
from tessera.engines.devices import Devices
from tessera.engines.replicas import refitted_together
from tessera.types import Conditions
from tessera.variants import TOKENS

HALVES = ("unet_encoder", "unet_decoder")


@dataclass(frozen=True)
class OpenUNet:
    """The dense UNet of a bundle.

    Attributes:
        devices: where it is.
        unet: runs it.
        halves: its graphs, each on all devices, for refits.
    """

    devices: Devices
    unet: UNet | SpreadUNet
    halves: dict[str, Refittable]


def open_unet(bundle: Bundle) -> OpenUNet:
    """Open the halves on each device, and measure what each device costs if there are several.

    Raises:
        BundleError: the bundle or its places do not fit this machine.
    """
    devices = bundle.unet_devices()
    engines = {graph: bundle.engines(graph, devices) for graph in HALVES}
    pairs = zip(*engines.values(), strict=True)
    unets = [UNet(*pair, max_rows=bundle.manifest.limits.max_rows) for pair in pairs]
    halves = {graph: refitted_together(each, devices) for graph, each in engines.items()}
    if len(devices) == 1:
        return OpenUNet(devices, unets[0], halves)
    _measure(bundle, devices, unets)
    return OpenUNet(devices, SpreadUNet(unets, devices), halves)


def example_inputs(
    config: dict[str, Any], size: tuple[int, int], *, rows: int
) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    """Random inputs of a UNet: sample, timestep, conditions.

    Args:
        config: the UNet's.
        size: (height, width) of the latents.
        rows: of the batch.
    """
    width = config["cross_attention_dim"]
    conditions = {"encoder_hidden_states": torch.randn(rows, TOKENS, width)}
    if config.get("addition_embed_type"):
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= 6 * config["addition_time_embed_dim"]
        conditions |= {"text_embeds": torch.randn(rows, pooled), "time_ids": torch.ones(rows, 6)}
    if config.get("time_cond_proj_dim"):
        conditions["timestep_cond"] = torch.randn(rows, config["time_cond_proj_dim"])
    return torch.randn(rows, config["in_channels"], *size), torch.full((rows,), 500.0), conditions


def unet_config(bundle: Bundle) -> dict[str, Any]:
    """The UNet's `config.json`."""
    content: dict[str, Any] = json.loads(
        bundle.file(bundle.manifest.graphs[HALVES[0]].config).read_text()
    )
    return content


def _measure(bundle: Bundle, devices: Devices, unets: list[UNet]) -> None:
    """Measure each device's pace while the others work too, on one row of the smallest size. The
    same call is the probe of a device that has failed.
    """
    side = bundle.manifest.limits.min_size // bundle.manifest.latents.pixels
    inputs = example_inputs(unet_config(bundle), (side, side), rows=1)

    def measure(index: int) -> None:
        """Time a call of one device's UNet, after a first one that is not counted."""
        probe = partial(unets[index].predict, *inputs)
        probe()
        times = []
        for _ in range(3):
            began = time.perf_counter()
            probe()
            times.append(1e3 * (time.perf_counter() - began))
        devices[index].pace = min(times) / side**2
        devices[index].probe = probe

    devices.each(measure)
