"""Finds the weights that updates may change in a bundle's engines, and reads their base values.

Knows bundles and engines, nothing of adapters or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import torch

from tessera.adapters.merge import Patchable
from tessera.adapters.targets import Targets
from tessera.engines.base import Refittable
from tessera.engines.bundle import Bundle
from tessera.manifest import network_of
from tessera.networks.weights import Initializers, Layout


def patchables_of(
    bundle: Bundle, targets: Targets, engines: Mapping[str, Refittable]
) -> list[Patchable]:
    """The patchables of some engines.

    Args:
        bundle: the bundle.
        targets: the weights that updates may change.
        engines: engines by graph.
    """
    patchables = []
    for graph, engine in engines.items():
        entry = bundle.manifest.graphs[graph]
        shapes = targets.shapes[network_of(graph)]
        initializers = _opened(bundle, graph)
        base = _reader(initializers, entry.layout, shapes)
        names = engine.describe().refittable & shapes.keys()
        patchables.append(Patchable(engine, names, base, partial(_has, initializers)))
    return patchables


def _has(initializers: Callable[[], Initializers], name: str) -> bool:
    return name in initializers()


def _opened(bundle: Bundle, graph: str) -> Callable[[], Initializers]:
    """Opens a graph's weights on first use, unless the bundle has been built again since."""

    @cache
    def initializers() -> Initializers:
        """By name, in the shapes that the graph has them in.

        Raises:
            BundleError: a file of the graph is missing or is not the one that was served.
        """
        for name in bundle.manifest.files_of(graph):
            bundle.file(name)
        opened = Initializers(bundle.folder / bundle.manifest.graphs[graph].file)
        for name in {place[:3]: name for name, place in opened.places().items()}.values():
            opened[name]  # maps its file, which may be replaced later
        return opened

    return initializers


def _reader(
    initializers: Callable[[], Initializers],
    layout: Layout,
    shapes: Mapping[str, tuple[int, ...]],
) -> Callable[[str], torch.Tensor]:
    """Reads weights in the checkpoint's shapes and the graph's memory order: a transposed weight is
    a view.
    """

    def read(name: str) -> torch.Tensor:
        initializer = initializers()[name]
        perm = layout.get(name, {}).get("perm")
        if perm is not None:
            return initializer.permute([int(i) for i in np.argsort(perm)])
        return initializer.reshape(shapes[name])

    return read
