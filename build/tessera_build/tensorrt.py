"""Compiles ONNX files with TensorRT through polygraphy, on this machine's GPU.

The only builder module that knows TensorRT.
"""

from __future__ import annotations

from pathlib import Path

import torch
from polygraphy.backend.trt import (
    CreateConfig,
    EngineBytesFromNetwork,
    NetworkFromOnnxPath,
    Profile,
)

from tessera.engines.compiled import CompiledKey
from tessera.engines.registry import Source
from tessera.engines.tensorrt import TensorRtEngine, version
from tessera.errors import BundleError
from tessera.networks.weights import Initializers


class PolygraphyCompiler:
    """`compile.Compiler` on the current GPU.

    Raises:
        BundleError: there is no GPU.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise BundleError("compiling needs an NVIDIA GPU, but torch finds none")
        major, minor = torch.cuda.get_device_capability()
        self.architecture = f"sm_{major}{minor}"
        self.version = version()

    def build(self, graph: Path, key: CompiledKey, timing_cache: Path) -> bytes:
        """See `Compiler.build`. The timing cache is read and extended."""
        profile = Profile()
        for name, shapes in key.profile.items():
            profile.add(name, min=shapes.smallest, opt=shapes.likeliest, max=shapes.largest)
        config = CreateConfig(
            profiles=[profile],
            refittable=True,
            strip_plan=key.stripped,
            tf32=True,
            load_timing_cache=str(timing_cache) if timing_cache.exists() else None,
        )
        network = NetworkFromOnnxPath(str(graph), strongly_typed=True)
        build = EngineBytesFromNetwork(network, config=config, save_timing_cache=str(timing_cache))
        return bytes(build())

    def open(self, engine_file: Path, key: CompiledKey, source: Source) -> TensorRtEngine:
        """See `Compiler.open`."""
        base = Initializers(source.path)
        return TensorRtEngine(engine_file, layout=source.layout, base=base, stripped=key.stripped)
