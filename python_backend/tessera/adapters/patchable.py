"""Finds the weights that updates may change in a bundle's engines, and reads their base values.

Knows bundles and engines, nothing of adapters or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tessera.adapters.merge import Patchable
from tessera.adapters.targets import Targets
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.manifest import network_of
from tessera.networks.weights import Initializers, Layout


def patchables_of(
    bundle: Bundle, targets: Targets, engines: Mapping[str, Engine]
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
        base = _reader(bundle.folder / entry.file, entry.layout, shapes)
        patchables.append(Patchable(engine, engine.describe().refittable & shapes.keys(), base))
    return patchables


def _reader(
    graph: Path, layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[str], torch.Tensor]:
    """Reads weights in the checkpoint's shapes and the graph's memory order: a transposed weight is
    a view.
    """
    initializers = cache(lambda: Initializers(graph))

    def read(name: str) -> torch.Tensor:
        initializer = initializers()[name]
        perm = layout.get(name, {}).get("perm")
        if perm is not None:
            return initializer.permute([int(i) for i in np.argsort(perm)])
        return initializer.reshape(shapes[name])

    return read
