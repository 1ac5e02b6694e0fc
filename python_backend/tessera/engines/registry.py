"""Opens engines by kind; a kind's library is imported only when one is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.engines.base import Engine
from tessera.engines.plans import FOLDER, find_plan
from tessera.errors import BundleError, listing
from tessera.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from tessera.modules import GraphModule

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

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, graph: str, *, threads: int = 0) -> Source:
        """A graph of the bundle in `folder`, its files unchecked."""
        entry = manifest.graphs[graph]
        path, config = folder / entry.file, folder / entry.config
        return cls(graph, path, entry.layout, config, manifest.variant, threads)


def _onnxruntime(source: Source) -> Engine:
    from tessera.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(source.path, threads=source.threads)


def open_module(source: Source) -> GraphModule:
    """The torch module that a graph was exported from, with the graph's weights."""
    from tessera import modules, weights
    from tessera.variants import VARIANTS

    config = json.loads(source.config.read_text())
    network = modules.new_network(modules.network_of(source.graph), config)
    module = modules.wrap(source.graph, network, VARIANTS[source.variant])
    weights.load_weights(module, source.path, source.layout)
    return module


def _torch(source: Source) -> Engine:
    import torch

    from tessera.engines.torch import TorchEngine

    module = open_module(source)
    if not torch.cuda.is_available():
        torch.set_num_threads(source.threads or len(os.sched_getaffinity(0)))
        return TorchEngine(module)
    config: Any = module.source.config
    upcast = source.graph.startswith("vae") and config.force_upcast
    return TorchEngine(module, device="cuda", dtype=torch.float32 if upcast else torch.float16)


def _tensorrt(source: Source) -> Engine:
    import torch

    try:
        from tessera.engines.tensorrt import TensorRtEngine, version
    except ImportError as error:
        raise BundleError(f"the tensorrt engine needs TensorRT: {error}") from None
    if not torch.cuda.is_available():
        raise BundleError("the tensorrt engine needs an NVIDIA GPU, and torch finds none")
    major, minor = torch.cuda.get_device_capability()
    folder = source.path.parents[1]
    plan = find_plan(
        folder,
        read_manifest(folder),
        source.graph,
        architecture=f"sm_{major}{minor}",
        tensorrt=version(),
    )
    return TensorRtEngine(plan)


_KINDS: dict[str, Callable[[Source], Engine]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "torch": _torch,
}
KINDS = ("auto", *_KINDS)


def chosen_kind(folder: Path) -> str:
    """The kind that `TESSERA_ENGINE` names; by default (`auto`) ONNX Runtime where there is no GPU,
    else TensorRT if the bundle in `folder` has been compiled, else torch.

    Raises:
        BundleError: there is no such kind.
    """
    kind = os.environ.get(ENGINE_VARIABLE) or "auto"
    if kind not in KINDS:
        raise BundleError(f"{ENGINE_VARIABLE} is {kind!r}; accepted: {listing(KINDS)}")
    if kind != "auto":
        return kind
    import torch

    if not torch.cuda.is_available():
        return "onnxruntime"
    compiled = any((folder / FOLDER).glob("*.plan"))
    return "tensorrt" if compiled and find_spec("tensorrt") else "torch"


def open_engine(kind: str, source: Source) -> Engine:
    """An engine of that kind.

    Raises:
        BundleError: there is no such kind.
    """
    if kind not in _KINDS:
        raise BundleError(f"engine kind {kind!r} is not one of {listing(_KINDS)}")
    return _KINDS[kind](source)
