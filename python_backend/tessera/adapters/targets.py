"""The weights of a bundle's networks that an adapter may change. Knows shapes, no values."""

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
"""Updates by part and name of the weight, each of which is a target."""
_TEXT_PREFIX = "text_model."
"""Prefix in older transformers and in files made with them; newer versions omit it."""


@dataclass(frozen=True)
class Targets:
    """The weights that an adapter may change.

    Attributes:
        shapes: shapes of the weights of linear layers and convolutions, by part and name.
        family: title of the bundle's variant.
        layers_per_block: from the UNet's config, for a variant whose LoRAs may use the names of the
            original SDXL code.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    family: str = ""
    layers_per_block: int | None = None

    def fit(self, file: ParsedAdapter) -> Updates:
        """A parsed adapter's updates, under the names of the weights in these networks.

        Raises:
            Unusable: the adapter changes a weight that does not exist or has another shape.
        """
        return {part: self._fit_part(part, updates) for part, updates in file.updates.items()}

    def _fit_part(self, part: str, updates: Mapping[str, Update]) -> dict[str, Update]:
        shapes = self.shapes.get(part)
        if shapes is None:
            raise Unusable(f"changes the network {part}, which {self.family} does not have")
        fitted = {}
        for name, update in sorted(updates.items(), key=itemgetter(0)):
            weight_name = _name_in(shapes, name)
            if weight_name is None:
                raise Unusable(f"changes {part}.{name}, which {self.family} does not have")
            if update.shape != shapes[weight_name]:
                raise Unusable(
                    f"has shape {update.shape} for {part}.{name}, where this bundle's "
                    f"{self.family} has {shapes[weight_name]}"
                )
            fitted[weight_name] = update
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


def _name_in(shapes: Mapping[str, object], name: str) -> str | None:
    candidates = (name, name.removeprefix(_TEXT_PREFIX), _TEXT_PREFIX + name)
    return next((n for n in candidates if n in shapes), None)
