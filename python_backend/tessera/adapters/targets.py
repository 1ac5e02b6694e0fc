"""The weights of a bundle's networks that a LoRA may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tessera.adapters.formats import PARTS, ParsedAdapter, Unusable, Update
from tessera.engines.bundle import Bundle
from tessera.networks import graphs
from tessera.variants import VARIANTS

Updates = dict[str, dict[str, Update]]
"""By part and name of the weight, each of them a target's."""
_TEXT_PREFIX = "text_model."
"""Newer transformers leave it out where older ones, and files made with them, have it."""


@dataclass(frozen=True)
class Targets:
    """What can be changed.

    Attributes:
        shapes: of the weights of linear layers and convolutions, by part and name.
        family: title of the bundle's variant.
        layers_per_block: of the UNet, where LoRAs may use the names of the original SDXL code.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    family: str = ""
    layers_per_block: int | None = None

    def fit(self, file: ParsedAdapter) -> Updates:
        """A file's updates under the names that these networks have.

        Raises:
            Unusable: it changes a weight that is not there or has another shape.
        """
        return {part: self._fit_part(part, own) for part, own in file.updates.items()}

    def _fit_part(self, part: str, updates: Mapping[str, Update]) -> dict[str, Update]:
        shapes = self.shapes.get(part)
        if shapes is None:
            raise Unusable(f"changes the network {part}, which {self.family} does not have")
        fitted = {}
        for name, update in sorted(updates.items(), key=itemgetter(0)):
            own = _own_name(name, shapes)
            if own is None:
                raise Unusable(f"changes {part}.{name}, which {self.family} does not have")
            if update.shape != shapes[own]:
                raise Unusable(
                    f"has shape {update.shape} for {part}.{name}, where this bundle's "
                    f"{self.family} has {shapes[own]}"
                )
            fitted[own] = update
        return fitted


def targets_of(bundle: Bundle) -> Targets:
    """The targets in a bundle's text encoders and UNet."""
    manifest = bundle.manifest
    variant = VARIANTS[manifest.variant]
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    layers = None
    for part in PARTS:
        own = [g for g in manifest.graphs if graphs.network_of(g) == part]
        if not own:
            continue
        config = json.loads(bundle.file(manifest.graphs[own[0]].config).read_text())
        if part == "unet" and variant.pooled:
            layers = config["layers_per_block"]
        shapes[part] = weights_of(outline_of(part, config))
    return Targets(shapes, variant.title, layers)


def outline_of(part: str, config: dict[str, Any]) -> nn.Module:
    """A network without weights. Unlike `graphs.new_network`, which has every thread make modules
    without weights meanwhile, this may be done beside other threads.
    """
    kinds = {c.__name__: c for c in (CLIPTextModel, CLIPTextModelWithProjection)}
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(config)
        return kinds[config["architectures"][0]](CLIPTextConfig.from_dict(config))


def weights_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of linear layers and convolutions, by name."""
    return {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _own_name(name: str, shapes: Mapping[str, object]) -> str | None:
    candidates = (name, name.removeprefix(_TEXT_PREFIX), _TEXT_PREFIX + name)
    return next((n for n in candidates if n in shapes), None)
