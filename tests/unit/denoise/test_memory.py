"""Calls of the UNet that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from tessera.denoise.running import Running
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet
from tessera.engines.base import OutOfMemory, failed
from tessera.errors import InternalError
from tests.fakes.engine import FakeEngine, unet_engines
from tests.samples.plans import plan, running

ROWS = 3
"""As many of the usual size fit into the memory of `tight`."""


def tight(rows: int = ROWS) -> tuple[UNet, FakeEngine]:
    """A UNet whose decoder half takes so many rows of 16 x 16 latents, and that half."""
    encoder, whole = unet_engines()

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if inputs["mid"][:, 0].numel() > rows * 16 * 16:
            raise OutOfMemory
        return whole.run(inputs)

    decoder = FakeEngine(run)
    return UNet(encoder, decoder, max_rows=16), decoder


def company() -> list[Running]:
    return [running(plan(seed=seed, guidance=7.5, width=64, height=64)) for seed in range(4)]


def test_a_batch_that_does_not_fit_is_drawn_in_parts() -> None:
    whole, parts = company(), company()
    tick(whole, UNet(*unet_engines(), max_rows=16).predict, 1)
    unet, decoder = tight()
    tick(parts, unet.predict, 1)
    assert decoder.batches == [8, 4, 2, 2, 2, 2]
    for one, other in zip(whole, parts, strict=True):
        assert other.error is None
        torch.testing.assert_close(one.latents, other.latents, atol=1e-6, rtol=0)
    decoder.batches.clear()
    tick(parts, unet.predict, 2)
    assert decoder.batches == [2, 2, 2, 2], "what does not fit is tried once"


def test_other_sizes_go_on_as_they_were() -> None:
    unet, decoder = tight()
    tick(company(), unet.predict, 1)
    decoder.batches.clear()
    small = [running(plan(seed=seed, guidance=1.0, width=32, height=32)) for seed in range(8)]
    tick(small, unet.predict, 1)
    assert decoder.batches == [8]


def test_a_row_that_does_not_fit_alone_is_told_so() -> None:
    alone = running(plan(guidance=7.5, width=64, height=64))
    tick([alone], tight(rows=0)[0].predict, 1)
    assert isinstance(alone.error, OutOfMemory)
    assert "try again later, or ask for a smaller one" in str(alone.error)


def error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it has not failed")


def test_runtimes_say_in_their_words_that_memory_is_missing() -> None:
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, [None])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["made"])]
    graph = helper.make_graph(nodes, "large", [shape], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    errors = [
        error_of(lambda: torch.empty(1 << 50)),
        error_of(lambda: session.run(None, {"shape": np.array([1 << 48])})),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ]
    for error in errors:
        assert isinstance(failed("a runtime", error), OutOfMemory), str(error)


def test_other_failures_are_faults() -> None:
    error = failed("torch", RuntimeError("mat1 and mat2 shapes"))
    assert type(error) is InternalError
    assert str(error) == "torch failed: mat1 and mat2 shapes"
