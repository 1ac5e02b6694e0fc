"""Recorded networks: buffers, shapes, which captures are kept. CUDA is played by a capturer that
runs the network on its buffers again, as a CUDA graph would.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tessera.engines.cuda_graphs import Call, Replayer
from tessera.engines.torch import TorchEngine
from tessera.errors import BundleError, InternalError
from tessera.networks.modules import GraphModule


class FakeRecording:
    def __init__(self, call: Call, buffers: Sequence[torch.Tensor]) -> None:
        self._call = call
        self._buffers = buffers
        self.outputs = tuple(call(buffers))
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for output, new in zip(self.outputs, self._call(self._buffers), strict=True):
            output.copy_(new)


class FakeRecorder:
    """Remembers what it has captured; `broken` refuses to."""

    def __init__(self, broken: bool = False) -> None:
        self.made: list[FakeRecording] = []
        self._broken = broken

    def __call__(self, call: Call, buffers: Sequence[torch.Tensor]) -> FakeRecording:
        if self._broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.made.append(FakeRecording(call, buffers))
        return self.made[-1]


class Network:
    """Two inputs, two outputs; counts how often a call was prepared."""

    def __init__(self) -> None:
        self.prepared = 0

    def prepare(self) -> Call:
        self.prepared += 1
        return lambda inputs: (inputs[0] + inputs[1], inputs[0] * 2)


def inputs(rows: int, value: float = 1.0) -> list[torch.Tensor]:
    return [torch.full((rows, 3), value), torch.ones(rows, 1)]


def replayer(capturer: FakeRecorder, capacity: int = 2) -> tuple[Replayer, Network]:
    network = Network()
    return Replayer(network.prepare, capacity=capacity, capture=capturer), network


def test_the_second_call_of_a_shape_is_recorded_and_later_ones_replayed() -> None:
    capturer = FakeRecorder()
    run, network = replayer(capturer)
    for number in range(1, 5):
        total, doubled = run(inputs(2, float(number)))
        assert torch.equal(total, torch.full((2, 3), number + 1.0))
        assert torch.equal(doubled, torch.full((2, 3), 2.0 * number))
        assert len(capturer.made) == (number > 1)
    assert capturer.made[0].replays == 3
    assert network.prepared == 1


def test_outputs_are_the_callers_to_keep() -> None:
    run, _ = replayer(FakeRecorder())
    run(inputs(2))
    kept = run(inputs(2, 5.0))[0]
    run(inputs(2, 7.0))
    assert torch.equal(kept, torch.full((2, 3), 6.0))


def test_inputs_are_copied() -> None:
    run, _ = replayer(FakeRecorder())
    given = inputs(2)
    run(given)
    run(given)
    given[0].fill_(100)
    assert run(inputs(2))[0].max() == 2


def test_shapes_and_types_are_recorded_apart() -> None:
    capturer = FakeRecorder()
    run, _ = replayer(capturer, capacity=8)
    halves = [tensor.half() for tensor in inputs(2)]
    for given in (inputs(2), inputs(3), halves, inputs(2), inputs(3), halves):
        assert run(given)[0].dtype == given[0].dtype
    assert [r.outputs[0].shape[0] for r in capturer.made] == [2, 3, 2]


def test_the_recording_that_was_used_longest_ago_goes_first() -> None:
    capturer = FakeRecorder()
    run, network = replayer(capturer, capacity=2)
    for rows in (1, 1, 2, 2, 1, 3, 3):  # 2 has to go for 3
        run(inputs(rows))
    assert (network.prepared, len(capturer.made)) == (3, 3)
    run(inputs(1))
    assert network.prepared == 3
    run(inputs(2))
    assert network.prepared == 4


def test_what_was_forgotten_is_recorded_anew() -> None:
    capturer = FakeRecorder()
    run, _ = replayer(capturer)
    for _ in range(2):
        run(inputs(2))
        run(inputs(2))
        run.forget()
    assert len(capturer.made) == 2


def test_what_cannot_be_recorded_runs_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    run, _ = replayer(FakeRecorder(broken=True))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert run(inputs(2))[0].max() == 2
    assert caplog.text.count("runs without a CUDA graph: operation not permitted") == 1


class Affine(GraphModule):
    """`sample` (n, 4) -> `prediction` (n, 4)."""

    inputs = ("sample",)
    outputs = ("prediction",)
    layer: nn.Linear

    def forward(self, sample: torch.Tensor) -> Any:
        return self.layer(sample)


@pytest.fixture
def affine() -> Affine:
    torch.manual_seed(0)
    return Affine(nn.ModuleDict({"layer": nn.Linear(4, 4)}))


@pytest.mark.parametrize("graphs", [0, 4], ids=["eager", "captured"])
def test_a_refit_is_seen_by_the_next_run_and_undone_exactly(affine: Affine, graphs: int) -> None:
    capturer = FakeRecorder()
    engine = TorchEngine(affine, graphs=graphs, capturer=lambda device: capturer)
    sample = {"sample": torch.randn(3, 4)}
    before = [engine.run(sample)["prediction"] for _ in range(3)][-1]
    weight = affine.layer.weight.detach().clone()
    engine.refit({"layer.weight": 2 * weight})
    expected = nn.functional.linear(sample["sample"], 2 * weight, affine.layer.bias)
    assert torch.allclose(engine.run(sample)["prediction"], expected)
    engine.refit({"layer.weight": weight})
    assert torch.equal(engine.run(sample)["prediction"], before)
    assert len(capturer.made) == (graphs > 0)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"other.weight": torch.ones(4, 4)}, "has no weight 'other.weight' that can be replaced"),
        (
            {"layer.weight": torch.ones(4, 3)},
            r"layer\.weight has shape \(4, 3\); accepted: \(4, 4\)",
        ),
    ],
    ids=["name", "shape"],
)
def test_a_refit_that_does_not_fit_replaces_nothing(
    affine: Affine, weights: dict[str, torch.Tensor], sentence: str
) -> None:
    engine = TorchEngine(affine)
    before = affine.layer.bias.detach().clone()
    with pytest.raises(BundleError, match=sentence):
        engine.refit({"layer.bias": torch.zeros(4)} | weights)
    assert torch.equal(affine.layer.bias, before)
    assert engine.describe().refittable == {"layer.weight", "layer.bias"}


def test_a_failure_of_torch_is_an_internal_error(affine: Affine) -> None:
    engine = TorchEngine(affine)
    with pytest.raises(InternalError, match="torch failed: mat1 and mat2"):
        engine.run({"sample": torch.ones(2, 5)})
