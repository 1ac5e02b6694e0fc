"""The weights of a bundle's networks that an adapter may change. Knows shapes, no values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tessera.adapters.names import Names
from tessera.adapters.updates import PARTS, Shape, Update
from tessera.engines.bundle import Bundle
from tessera.manifest import network_of
from tessera.variants import VARIANTS

Updates = dict[str, dict[str, Update]]
"""Updates by part and name of the weight, each of which is a target."""


@dataclass(frozen=True)
class Targets:
    """The weights that an adapter may change.

    Attributes:
        shapes: shapes of all weights, biases, norms and embeddings, by part and name.
        family: title of the bundle's variant.
    """

    shapes: Mapping[str, Mapping[str, Shape]]
    family: str = ""

    @cached_property
    def names(self) -> Names:
        """What files call the modules."""
        return Names({part: list(leaves) for part, leaves in self._leaves.items()}, self.family)

    def leaves(self, part: str, module: str) -> Mapping[str, Shape]:
        """Shapes of a module's `weight` and `bias`."""
        return self._leaves[part][module]

    @cached_property
    def _leaves(self) -> dict[str, dict[str, dict[str, Shape]]]:
        leaves: dict[str, dict[str, dict[str, Shape]]] = {}
        for part, shapes in self.shapes.items():
            of_part = leaves.setdefault(part, {})
            for name, shape in shapes.items():
                module, _, leaf = name.rpartition(".")
                of_part.setdefault(module, {})[leaf] = shape
        return leaves


def targets_of(bundle: Bundle) -> Targets:
    """The targets in a bundle's text encoders and UNet."""
    manifest = bundle.manifest
    present = {network_of(graph) for graph in manifest.graphs}
    shapes = {part: bundle.outline(part).all_weights for part in PARTS if part in present}
    return Targets(shapes, VARIANTS[manifest.variant].title)
