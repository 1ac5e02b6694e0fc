"""Opens engines by kind. A kind's library is imported only when an engine of it is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.engines.base import Engine
from tessera.engines.compiled import FOLDER, canary_path, find_compiled, read_record
from tessera.errors import BundleError, listing
from tessera.manifest import CONTROLNET, HINT, LOWRANK, Manifest, network_of, read_manifest
from tessera.shared.settings import EngineKind

if TYPE_CHECKING:
    import torch

    from tessera.networks.modules import GraphModule
    from tessera.variants import Variant

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
        device: where it runs: `cpu`, `cuda:0` ...; empty for the first GPU, or the CPU without one.
    """

    graph: str
    path: Path
    layout: Mapping[str, Mapping[str, list[int]]]
    config: Path
    variant: str
    threads: int = 0
    compiled: bool = False
    device: str = ""

    @classmethod
    def of(
        cls,
        folder: Path,
        manifest: Manifest,
        graph: str,
        *,
        threads: int = 0,
        compiled: bool = False,
        device: str = "",
    ) -> Source:
        """A graph of the bundle in `folder`, its files unchecked."""
        entry = manifest.graphs[graph]
        path, config = folder / entry.file, folder / entry.config
        of_graph = (graph, path, entry.layout, config, manifest.variant)
        return cls(*of_graph, threads=threads, compiled=compiled, device=device)

    @property
    def on(self) -> str:
        """The device where it runs."""
        import torch

        return self.device or ("cuda:0" if torch.cuda.is_available() else "cpu")


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


def open_placed(source: Source) -> GraphModule:
    """The torch module of a graph on the source's device, in the precision of engines there."""
    module = open_module(source)
    placed: GraphModule = module.to(source.on, _precision(source, module))
    return placed


def _precision(source: Source, module: GraphModule) -> torch.dtype:
    import torch

    if source.on == "cpu" or overflows_in_half(source):
        return torch.float32
    stored = next(module.parameters()).dtype
    return torch.float16 if stored == torch.float32 else stored


def _torch(source: Source) -> Engine:
    import torch

    from tessera.engines.torch import TorchEngine
    from tessera.networks.weights import Initializers

    module, places = open_module(source), Initializers(source.path).places()
    every_step = _runs_every_step(source.graph)
    compiled = every_step and source.compiled
    if source.on == "cpu":
        torch.set_num_threads(source.threads or len(os.sched_getaffinity(0)))
        return TorchEngine(module, compiled=compiled, places=places)
    return TorchEngine(
        module,
        device=source.on,
        dtype=_precision(source, module),
        graphs=_GRAPHS if every_step else 0,
        compiled=compiled,
        places=places,
    )


def overflows_in_half(source: Source) -> bool:
    """Whether a graph needs float32 where others run in half precision."""
    from tessera.variants import VARIANTS

    return overflows(source.graph, VARIANTS[source.variant], json.loads(source.config.read_text()))


def overflows(graph: str, variant: Variant, config: Mapping[str, Any]) -> bool:
    """Whether a graph overflows in fp16.

    This holds for Stable Diffusion XL's VAE, unless its configuration says that it has been fixed.

    Args:
        graph: its name.
        variant: the bundle's.
        config: configuration of the graph's network.
    """
    return graph.startswith("vae") and variant.pooled and bool(config.get("force_upcast", True))


def _tensorrt(source: Source) -> Engine:
    import torch

    from tessera.engines.canary import Canary, WatchedEngine
    from tessera.networks.weights import Initializers

    try:
        from tessera.engines.tensorrt import TensorRtEngine, version
    except ImportError as error:
        raise BundleError(f"the tensorrt engine needs TensorRT: {error}") from None
    if source.on == "cpu":
        found = f"{source.graph} is placed on the CPU" if source.device else "torch finds none"
        raise BundleError(
            f"the tensorrt engine needs an NVIDIA GPU, but {found}; serve with --engine auto"
        )
    major, minor = torch.cuda.get_device_capability(source.on)
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
        device=source.on,
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


def runs_on_gpu(setting: EngineKind) -> bool:
    """Whether engines of this setting can run on a GPU."""
    return setting is not EngineKind.ONNXRUNTIME


def chosen_kind(
    folder: Path, setting: EngineKind = EngineKind.AUTO, *, device: str = ""
) -> EngineKind:
    """The kind that a setting stands for on a device (see `Source`).

    `auto` is ONNX Runtime on the CPU. On a GPU it is TensorRT if the bundle in `folder` has been
    compiled, else torch.
    """
    if setting is not EngineKind.AUTO:
        return setting
    import torch

    if device == "cpu" or not (device or torch.cuda.is_available()):
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
