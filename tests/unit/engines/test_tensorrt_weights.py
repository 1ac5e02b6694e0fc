"""Weights of a `tensorrt` engine, which replaces fused ones together. TensorRT is a fake."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tessera.adapters import merge
from tessera.adapters.merge import BASE, Patchable, Patcher
from tessera.adapters.store import Adapter
from tessera.adapters.updates import LowRank, Update
from tessera.networks.modules import GraphModule
from tessera.networks.weights import Initializers, to_layout
from tessera.plan import AdapterUse
from tessera_build.export import Signature, export_graph
from tests.fakes.tensorrt import FakeRefitter, fake_tensorrt

FUSED = frozenset({"first.weight", "second.weight"})


class Network(GraphModule):
    inputs, outputs = ("x",), ("y",)
    first: torch.nn.Linear
    second: torch.nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x).relu())
        return out


def network() -> Network:
    torch.manual_seed(0)
    inner = torch.nn.Module()
    inner.first, inner.second = torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)
    return Network(inner).eval()


@pytest.mark.parametrize("stripped", [False, True])
def test_a_weight_fused_with_others_keeps_what_was_set_last(
    stripped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged weights are passed in memory that the next chunk of them overwrites."""
    signature = Signature((torch.randn(2, 8),), ("x",), ("y",), ({0: torch.export.Dim.AUTO},))
    layout = export_graph(network(), signature, tmp_path / "network.onnx")
    (tmp_path / "plan").write_bytes(b"plan")
    refitter = FakeRefitter([FUSED])
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(refitter))
    monkeypatch.delitem(sys.modules, "tessera.engines.tensorrt", raising=False)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(merge, "CHUNK_BYTES", 1)
    engine = import_module("tessera.engines.tensorrt").TensorRtEngine(
        tmp_path / "plan",
        layout=layout,
        base=Initializers(tmp_path / "network.onnx"),
        stripped=stripped,
        device="cpu",
    )
    monkeypatch.delitem(sys.modules, "tessera.engines.tensorrt")
    base = {name: network().get_parameter(name).detach() for name in FUSED}
    updates: dict[str, Update] = {
        name: LowRank(torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2), 1.0)
        for name, weight in base.items()
    }
    adapter = Adapter("a", "a", "peft", (2, 2), {"unet": 2}, {"unet": updates})
    patcher = Patcher("unet", [Patchable(engine, FUSED, base.__getitem__)], budget=0)
    for weight in (1.0, -0.5, 0.0):
        chosen = (AdapterUse("a", "a", weight),) if weight else BASE
        patcher.apply(chosen, lambda use: adapter)
        for name, update in updates.items():
            wanted = base[name] + (update.delta(base[name], weight) if weight else 0)
            held = torch.from_numpy(refitter.held[name])
            torch.testing.assert_close(held, to_layout(name, wanted, layout).flatten())
