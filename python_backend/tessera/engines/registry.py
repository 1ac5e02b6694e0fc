"""Opens engines by kind; a kind's library is imported only when one is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tessera.engines.base import Engine
from tessera.errors import BundleError, listing

ENGINE_VARIABLE = "TESSERA_ENGINE"


@dataclass(frozen=True)
class Source:
    """What an engine is made of.

    Attributes:
        graph: the graph's name in the bundle.
        path: of its .onnx file.
        layout: how its initializers differ from the checkpoint's weights.
        config: the configuration file of the network that the graph is a part of.
        variant: the bundle's.
        threads: threads of one call on the CPU; 0 is one per core.
    """

    graph: str
    path: Path
    layout: Mapping[str, Mapping[str, list[int]]]
    config: Path
    variant: str
    threads: int = 0


def _onnxruntime(source: Source) -> Engine:
    from tessera.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(source.path, threads=source.threads)


def _torch(source: Source) -> Engine:
    import torch

    from tessera import modules, weights
    from tessera.engines.torch import TorchEngine
    from tessera.variants import VARIANTS

    config = json.loads(source.config.read_text())
    network = modules.new_network(modules.network_of(source.graph), config)
    module = modules.wrap(source.graph, network, VARIANTS[source.variant])
    weights.load_weights(module, source.path, source.layout)
    if not torch.cuda.is_available():
        torch.set_num_threads(source.threads or len(os.sched_getaffinity(0)))
        return TorchEngine(module)
    upcast = source.graph.startswith("vae") and config.get("force_upcast", False)
    return TorchEngine(module, device="cuda", dtype=torch.float32 if upcast else torch.float16)


_KINDS: dict[str, Callable[[Source], Engine]] = {"onnxruntime": _onnxruntime, "torch": _torch}
KINDS = ("auto", *_KINDS)


def chosen_kind() -> str:
    """The kind that `TESSERA_ENGINE` names; by default (`auto`) torch where there is a GPU, else
    ONNX Runtime.

    Raises:
        BundleError: there is no such kind.
    """
    kind = os.environ.get(ENGINE_VARIABLE) or "auto"
    if kind not in KINDS:
        raise BundleError(f"{ENGINE_VARIABLE} is {kind!r}; accepted: {listing(KINDS)}")
    if kind != "auto":
        return kind
    import torch

    return "torch" if torch.cuda.is_available() else "onnxruntime"


def open_engine(kind: str, source: Source) -> Engine:
    """An engine of that kind.

    Raises:
        BundleError: there is no such kind.
    """
    if kind not in _KINDS:
        raise BundleError(f"engine kind {kind!r} is not one of {listing(_KINDS)}")
    return _KINDS[kind](source)
