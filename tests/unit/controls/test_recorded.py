"""Recordings with ControlNets: what the dense network does with them, step by step."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tessera.controls.fanout import Ask, FanOut
from tessera.controls.network import Forgotten
from tessera.controls.recorded import RecordedControls
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.denoise.running import Running, RunningControl
from tessera.denoise.tick import tick
from tessera.edits.state import SparseState
from tessera.errors import Unavailable
from tessera.plan import ControlUse
from tessera.templates.keys import RecordingKey, recorded_controls
from tessera.types import Array, Tensors
from tessera.variants import VARIANTS
from tests.fakes.checkpoint import controlnet
from tests.samples.controls import ask_of
from tests.samples.edits import DENSE, EMPTY, PART, PICTURE, STEPS, UNET, World, edit, world

__all__ = ["world"]

NETWORKS = {
    name: controlnet(UNET, conditioning_embedding_out_channels=(8, 8, 16))
    for name in ("edges", "depth")
}
ASK = ask_of(NETWORKS, VARIANTS["sd15"])
IMAGES: dict[str, Array] = {"0a": PICTURE, "1b": PICTURE[::-1].copy()}
ALWAYS = ControlUse("edges", 0.7, 0.0, 1.0, image="0a")
EARLY = ControlUse("depth", -1.2, 0.0, 0.7, image="1b")
GUESS = ControlUse("depth", 1.0, 0.0, 1.0, guess_mode=True, image="1b")


def recorded(world: World, *uses: ControlUse, ask: Ask = ASK) -> RecordingKey:
    """For a prompt; for the negative one, too, where that is another recording."""
    key = world.key().with_controls(recorded_controls(uses, range(STEPS)))
    for each in (key.of_negative, key):
        world.recorder.ensure(each, RecordedControls(ask, IMAGES))
    return key


def step(world: World, request: Running, *, sparse: bool) -> torch.Tensor:
    """The latents after one step."""
    fanout = FanOut(ASK)
    world.steps._controls = fanout
    steps = world.steps if sparse else None
    with torch.inference_mode():
        tick([request], DENSE.predict, 1, sparse=steps, controls=fanout)
    assert request.error is None, request.error
    assert request.stats.sparse_ticks == int(sparse)
    return request.latents


@pytest.mark.parametrize(
    ("uses", "guidance"),
    [((ALWAYS,), 1.0), ((EARLY, ALWAYS), 3.0), ((GUESS,), 3.0)],
    ids=["one", "two", "of the prompt's branch only"],
)
def test_a_step_with_its_own_input_is_the_dense_one(
    world: World, uses: tuple[ControlUse, ...], guidance: float
) -> None:
    """Its latents are those of the template: nothing but the ControlNets could differ."""
    controls = tuple(
        RunningControl(use, i, torch.from_numpy(IMAGES[use.image])) for i, use in enumerate(uses)
    )
    rows = EMPTY.repeat(2 if guidance > 1 else 1, 1, 1)
    texts = ("",) * len(rows)

    def begun(where: World | None) -> Running:
        given = {"seed": TEMPLATE_SEED, "first": 1, "guidance": guidance}
        return edit(where, PART, text=rows, texts=texts, controls=controls, **given)  # type: ignore[arg-type]

    recorded(world)
    without = begun(world)
    assert isinstance(without.sparse, SparseState)
    assert without.sparse.chosen.with_controls is False
    recorded(world, *uses)
    having = begun(world)
    assert isinstance(having.sparse, SparseState)
    having.sparse.tell(having.stats)
    assert having.stats.recorded_controls is True
    dense = step(world, begun(None), sparse=False)
    torch.testing.assert_close(step(world, having, sparse=True), dense, atol=1e-4, rtol=1e-4)
    assert (step(world, without, sparse=True) - dense).abs().max() > 1e-2


def test_a_controlnet_is_in_the_steps_in_which_it_applies(world: World) -> None:
    """Steps 0 to 2; the batch of the recorder has one more."""
    early = world.store.find(recorded(world, EARLY))
    always = world.store.find(recorded(world, ControlUse("depth", -1.2, 0.0, 1.0, image="1b")))
    base = world.store.find(recorded(world))
    for place in range(STEPS):
        same = always if place < 3 else base
        assert early is not None
        assert same is not None
        found, expected = (world.store.load(each, place) for each in (early, same))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_controlnet_that_has_forgotten_is_told_again(world: World) -> None:
    """As after a restart of its process."""
    asked: list[str] = []

    def forgetful(name: str, inputs: Tensors) -> torch.Tensor:
        asked.append("step" if "SAMPLE" in inputs else "image")
        if asked == ["image", "step"]:
            raise Forgotten("its process is another one")
        return ASK(name, inputs)

    expected = world.store.find(recorded(world, ALWAYS))
    assert expected
    arrays = world.store.load(expected, 0)
    world.store.remove(expected)
    found = world.store.find(recorded(world, ALWAYS, ask=forgetful))
    assert found
    torch.testing.assert_close(world.store.load(found, 0), arrays)
    assert asked == ["image", "step", "image", "step", "step"]  # 5 steps in two batches


def test_without_its_controlnet_nothing_is_recorded(world: World) -> None:
    def gone(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise Unavailable("the controlnet_edges model is being restarted")

    with pytest.raises(Unavailable, match="controlnet_edges model is being restarted"):
        recorded(world, ALWAYS, ask=gone)
    key = world.key().with_controls(recorded_controls([ALWAYS], range(STEPS)))
    assert world.store.find(key) is None
