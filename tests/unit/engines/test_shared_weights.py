"""Torch engines of one process share the weights that are stored in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from tessera.engines.bundle import Bundle
from tessera.engines.cuda_graphs import Call, Positional
from tessera.engines.registry import Source, open_module
from tessera.engines.torch import TorchEngine
from tessera.manifest import read_manifest
from tessera.networks.weights import Initializers
from tessera.shared.settings import EngineKind
from tessera_build.examples import example_inputs
from tests.samples.bundles import IN_HALF, Small

Make = Callable[[str], Small]
GRAPHS = ("unet_encoder", "unet_decoder", "unet_encoder_lowrank", "unet_sparse", "unet_text")


def weights_of(engine: TorchEngine) -> Mapping[str, torch.nn.Parameter]:
    return engine._parameters


def opened(bundle: Path, graph: str) -> TorchEngine:
    engine = Bundle(bundle, threads=1).engine(graph, EngineKind.TORCH)
    assert isinstance(engine, TorchEngine)
    return engine


@pytest.mark.parametrize("name", ["sd15", *IN_HALF])
def test_graphs_of_the_unet_hold_one_copy(small: Make, name: str) -> None:
    bundle = small(name).bundle
    engines = {graph: opened(bundle, graph) for graph in GRAPHS}
    places: dict[str, set[int]] = {}
    for engine in engines.values():
        for weight, parameter in weights_of(engine).items():
            assert parameter.dtype == torch.float32
            if parameter.numel() > 512:
                places.setdefault(weight, set()).add(parameter.data_ptr())
    assert all(len(addresses) == 1 for addresses in places.values())
    assert sum(len(weights_of(e)) for e in engines.values()) > 2 * len(places)


def test_a_refit_is_seen_by_one_engine_only(small: Make) -> None:
    bundle, name = small("sd15-fp16").bundle, "mid_block.resnets.0.conv1.weight"
    dense, low = (opened(bundle, graph) for graph in ("unet_encoder", "unet_encoder_lowrank"))
    base = weights_of(dense)[name].detach().clone()
    with torch.inference_mode():  # as ticks do
        dense.refit({name: 2 * base})
    assert torch.equal(weights_of(dense)[name], 2 * base)
    assert torch.equal(weights_of(low)[name], base)
    later = opened(bundle, "unet_sparse")
    assert torch.equal(weights_of(later)[name], base)
    place = weights_of(dense)[name].data_ptr()
    dense.refit({name: base})
    assert weights_of(dense)[name].data_ptr() == place
    assert weights_of(later)[name].data_ptr() == weights_of(low)[name].data_ptr() != place


def test_captures_that_refer_to_shared_weights_are_dropped(small: Make) -> None:
    """With the first refit of a weight, and not with the next."""
    made: list[int] = []

    class Capture:
        def __init__(self, call: Call, buffers: Positional) -> None:
            made.append(1)
            self.outputs = call(buffers)
            self._run, self._buffers = call, buffers

        def replay(self) -> None:
            for output, new in zip(self.outputs, self._run(self._buffers), strict=True):
                output.copy_(new)

    bundle = small("sd15").bundle
    manifest = read_manifest(bundle)
    source = Source.of(bundle, manifest, "unet_text")
    module, places = open_module(source), Initializers(source.path).places()
    engine = TorchEngine(module, graphs=2, capturer=lambda device: Capture, places=places)
    inputs = example_inputs(module, manifest.latents, rows=1, height=8, width=8)
    name, weight = next(iter(module.named_parameters()))
    base = weight.detach().clone()
    for number, factor in enumerate((1, 2, 3)):
        if number:
            engine.refit({name: factor * base})
        for _ in range(2):
            engine.run(inputs)
        assert len(made) == (1 if not number else 2)
