"""Opens engines by kind. A kind's library is imported only when an engine of it is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.engines.base import Engine
from tessera.engines.compiled import FOLDER, canary_path, find_compiled, read_record
from tessera.errors import BundleError, listing
from tessera.manifest import CONTROLNET, HINT, LOWRANK, Manifest, network_of, read_manifest
from tessera.shared.settings import EngineKind

if TYPE_CHECKING:
    from tessera.networks.modules import GraphModule

_TAKES_LORAS = ("text_encoder", "unet")
_HALVES = ("unet_encoder", "unet_decoder")
_GRAPHS = 8
"""How many sets of shapes CUDA graphs are kept for, in engines that run in every step. Engines that
run once per request are not captured: it gains little, and text encoders may not allow it."""


@dataclass(frozen=True)
class Source:
    """Everything from which an engine is opened.

    Attributes:
        graph: the graph's name in the bundle.
        path: its .onnx file.
        layout: how its initializers differ from the checkpoint's weights.
        config: the configuration file of the network that the graph is a part of.
        variant: the bundle's.
        threads: threads of one call on the CPU; 0 is one per core.
        compiled: whether a torch engine compiles it, if it runs at every step.
    """

    graph: str
    path: Path
    layout: Mapping[str, Mapping[str, list[int]]]
    config: Path
    variant: str
    threads: int = 0
    compiled: bool = False

    @classmethod
    def of(
        cls,
        folder: Path,
        manifest: Manifest,
        graph: str,
        *,
        threads: int = 0,
        compiled: bool = False,
    ) -> Source:
        """A graph of the bundle in `folder`, its files unchecked."""
        entry = manifest.graphs[graph]
        path, config = folder / entry.file, folder / entry.config
        return cls(graph, path, entry.layout, config, manifest.variant, threads, compiled)


def _onnxruntime(source: Source) -> Engine:
    from tessera.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(
        source.path,
        layout=source.layout,
        threads=source.threads,
        refittable=source.graph.startswith(_TAKES_LORAS) and not source.graph.endswith(LOWRANK),
        packed=source.graph == "unet_sparse",
    )


def open_module(source: Source) -> GraphModule:
    """The torch module that a graph was exported from, with the graph's weights."""
    from tessera.networks import graphs, weights
    from tessera.variants import VARIANTS

    config = json.loads(source.config.read_text())
    network = graphs.new_network(network_of(source.graph), config)
    module = graphs.wrap(source.graph, network, VARIANTS[source.variant])
    weights.load_weights(module, source.path, source.layout)
    return module


def _torch(source: Source) -> Engine:
    import torch

    from tessera.engines.torch import TorchEngine

    module = open_module(source)
    every_step = _runs_every_step(source.graph)
    compiled = every_step and source.compiled
    if not torch.cuda.is_available():
        torch.set_num_threads(source.threads or len(os.sched_getaffinity(0)))
        return TorchEngine(module, compiled=compiled)
    upcast = overflows_in_half(source)
    return TorchEngine(
        module,
        device="cuda",
        dtype=torch.float32 if upcast else torch.float16,
        graphs=_GRAPHS if every_step else 0,
        compiled=compiled,
    )


def overflows_in_half(source: Source) -> bool:
    """Whether a graph needs float32 where others run in half precision.

    This holds for Stable Diffusion XL's VAE, unless its configuration says that it has been fixed.
    """
    from tessera.variants import VARIANTS

    if not source.graph.startswith("vae") or not VARIANTS[source.variant].pooled:
        return False
    return bool(json.loads(source.config.read_text()).get("force_upcast", True))


def _tensorrt(source: Source) -> Engine:
    import torch

    from tessera.engines.canary import Canary, WatchedEngine
    from tessera.networks.weights import Initializers

    try:
        from tessera.engines.tensorrt import TensorRtEngine, version
    except ImportError as error:
        raise BundleError(f"the tensorrt engine needs TensorRT: {error}") from None
    if not torch.cuda.is_available():
        raise BundleError("the tensorrt engine needs an NVIDIA GPU, but torch finds none")
    major, minor = torch.cuda.get_device_capability()
    folder = source.path.parents[1]
    engine_file = find_compiled(
        folder,
        read_manifest(folder),
        source.graph,
        architecture=f"sm_{major}{minor}",
        tensorrt=version(),
    )
    engine = TensorRtEngine(
        engine_file,
        layout=source.layout,
        base=Initializers(source.path),
        stripped=read_record(engine_file.with_suffix(".json")).key.stripped,
        graphs=_GRAPHS if _runs_every_step(source.graph) else 0,
    )
    return WatchedEngine(engine, Canary.read(canary_path(engine_file)), name=engine_file.name)


def _runs_every_step(graph: str) -> bool:
    dense = graph.startswith(_HALVES)  # the shapes of sparse steps depend on masks
    return dense or (graph.startswith(CONTROLNET) and not graph.endswith(HINT))


_KINDS: dict[str, Callable[[Source], Engine]] = {
    EngineKind.ONNXRUNTIME: _onnxruntime,
    EngineKind.TENSORRT: _tensorrt,
    EngineKind.TORCH: _torch,
}


def chosen_kind(folder: Path, setting: EngineKind = EngineKind.AUTO) -> EngineKind:
    """The kind that a setting stands for; `auto` is ONNX Runtime where there is no GPU, else
    TensorRT if the bundle in `folder` has been compiled, else torch.
    """
    if setting is not EngineKind.AUTO:
        return setting
    import torch

    if not torch.cuda.is_available():
        return EngineKind.ONNXRUNTIME
    compiled = any((folder / FOLDER).glob("*.plan"))
    return EngineKind.TENSORRT if compiled and find_spec("tensorrt") else EngineKind.TORCH


def open_engine(kind: str, source: Source) -> Engine:
    """Open an engine of a kind.

    Raises:
        BundleError: the kind is unknown.
    """
    if kind not in _KINDS:
        raise BundleError(f"engine kind is {kind!r}; accepted: {listing(_KINDS)}")
    return _KINDS[kind](source)
