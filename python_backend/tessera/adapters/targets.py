"""The weights of a bundle's networks that a LoRA may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

from tessera.adapters.formats import PARTS, ParsedAdapter, Unusable, Update
from tessera.engines.bundle import Bundle
from tessera.manifest import network_of
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
        own = [g for g in manifest.graphs if network_of(g) == part]
        if not own:
            continue
        if part == "unet" and variant.pooled:
            config = json.loads(bundle.file(manifest.graphs[own[0]].config).read_text())
            layers = config["layers_per_block"]
        shapes[part] = bundle.outline(part).weights
    return Targets(shapes, variant.title, layers)


def _own_name(name: str, shapes: Mapping[str, object]) -> str | None:
    candidates = (name, name.removeprefix(_TEXT_PREFIX), _TEXT_PREFIX + name)
    return next((n for n in candidates if n in shapes), None)
