"""Precisions of bundles and of compiled engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tessera.engines.registry import overflows
from tessera.variants import Variant

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def stored_type(
    graph: str, precision: str, variant: Variant, config: Mapping[str, Any]
) -> torch.dtype:
    """The type in which a graph's weights are stored, of a bundle in `precision`: float32 for a
    network that overflows in fp16. In bf16 it would lose quality for a small part of the bytes.

    Args:
        graph: its name.
        precision: the bundle's.
        variant: the bundle's.
        config: configuration of the graph's network.
    """
    return torch.float32 if overflows(graph, variant, config) else PRECISIONS[precision]
