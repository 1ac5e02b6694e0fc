"""Sparse steps with LoRAs: the dense path with the same LoRAs, whatever had its turn before."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tessera.adapters.merge import Patchable, Patcher
from tessera.adapters.path_chooser import LoraPathChooser
from tessera.adapters.store import Adapter
from tessera.adapters.switch import AdapterSwitch
from tessera.adapters.updates import LowRank, Update
from tessera.denoise.running import Running
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet
from tessera.edits.quality import CAREFUL
from tessera.edits.state import SparseState
from tessera.engines.base import Refittable
from tessera.engines.torch import TorchEngine
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.plan import AdapterUse
from tessera.shared.settings import LoraPath
from tests.samples import edits as of_samples
from tests.samples.edits import FULL, PART, STEPS, UNET, World, only

edit = partial(of_samples.edit, quality="fast")
"""From the recording without LoRAs."""
A, B = ((AdapterUse(name, name, 1.0),) for name in "ab")
WEIGHTS = dict(UNET.named_parameters())
TARGETS = ("to_q.weight", "to_k.weight", "to_v.weight", "conv1.weight", "proj_in.weight")


def adapter(name: str) -> Adapter:
    """A LoRA on both kinds of attention, projections and convolutions."""
    torch.manual_seed(ord(name))
    updates: dict[str, Update] = {}
    for target, weight in WEIGHTS.items():
        if target.endswith(TARGETS):
            down = torch.randn(2, *weight.shape[1:]) * 0.2
            up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2)) * 0.2
            updates[target] = LowRank(down, up, 1.0)
    return Adapter(name, name, "peft", (2, 2), {"unet": len(updates)}, {"unet": updates})


ADAPTERS = {name: adapter(name) for name in "ab"}


class Server:
    """A world with a dense UNet of its own, and LoRAs in turns."""

    def __init__(self, world: World) -> None:
        self.world = world
        network = copy.deepcopy(UNET)
        halves = [TorchEngine(half) for half in (UNetEncoder(network), UNetDecoder(network))]
        self.unet = UNet(*halves, max_rows=16)
        self.patchers = [patcher(engines) for engines in (halves, world.steps.graphs.values())]
        self.switch = self.switch_by(LoraPathChooser(LoraPath.REFIT, None))

    def switch_by(self, paths: LoraPathChooser) -> AdapterSwitch:
        store: Any = SimpleNamespace(
            touch=lambda digest: None,
            reading=lambda digest: False,
            load_digest=lambda name, digest: ADAPTERS[name],
        )
        return AdapterSwitch(self.patchers[0], store, paths, sparse=self.patchers[1])

    def run(self, *requests: Running) -> None:
        """Until all are done."""
        while going := [r for r in requests if not r.finished]:
            with torch.inference_mode():
                turn, predict = self.switch.choose(going, self.unet.predict)
                self.world.steps.adapt(self.switch.in_sparse)
                tick(turn, predict, 1, sparse=self.world.steps)
        assert [r.error for r in requests] == [None] * len(requests)


def patcher(engines: Any) -> Patcher:
    known = WEIGHTS.keys()

    def patchable(engine: Refittable) -> Patchable:
        names = engine.describe().refittable & known
        return Patchable(engine, frozenset(names), lambda name: WEIGHTS[name].detach())

    return Patcher("unet", [patchable(engine) for engine in engines], budget=10**8)


@pytest.fixture
def server(world: World) -> Server:
    world.recorder.ensure(world.key())
    return Server(world)


@pytest.mark.parametrize("adapters", [(), A, (*A, *B)], ids=["none", "a", "a and b"])
def test_with_every_latent_active_sparse_is_dense(server: Server, adapters: Any) -> None:
    sparse = edit(server.world, FULL, adapters=adapters)
    dense = edit(None, FULL, adapters=adapters)
    server.run(sparse)
    server.run(dense)
    assert (sparse.stats.sparse_ticks, dense.stats.sparse_ticks) == (STEPS, 0)
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-3, rtol=0)
    plain = edit(None, FULL)
    server.run(plain)
    assert bool(adapters) != torch.equal(plain.latents, dense.latents)


def test_sets_leave_nothing_behind(server: Server) -> None:
    def made(adapters: tuple[AdapterUse, ...]) -> torch.Tensor:
        request = edit(server.world, PART, adapters=adapters)
        server.run(request)
        assert request.stats.sparse_ticks == STEPS
        return request.latents

    turns = [(), A, B, A, ()]
    first, a, b, again, last = map(made, turns)
    assert torch.equal(first, last)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, first)


def test_eight_at_once_are_what_they_are_alone(server: Server) -> None:
    world = server.world
    kinds = [(adapters, where) for adapters in ((), A, B) for where in (world, None)]
    kinds += [(A, world), ((), world)]

    def requests() -> list[Running]:
        return [
            edit(where, PART, seed=seed, adapters=adapters)
            for seed, (adapters, where) in enumerate(kinds)
        ]

    together = requests()
    server.run(*together)
    for request, alone in zip(together, requests(), strict=True):
        server.run(alone)
        assert request.stats.sparse_ticks == alone.stats.sparse_ticks
        torch.testing.assert_close(request.latents, alone.latents, atol=1e-3, rtol=0)


def test_only_the_engines_of_the_next_steps_are_refitted(server: Server) -> None:
    server.run(edit(server.world, PART, adapters=A))
    assert [patcher.switches for patcher in server.patchers] == [0, 1]
    server.run(edit(None, PART, adapters=A))
    assert [patcher.switches for patcher in server.patchers] == [1, 1]


def test_sparse_steps_with_loras_go_by_refit_beside_the_side_path(server: Server) -> None:
    entered: list[Any] = []

    def enter(members: Any) -> list[Running]:
        entered.append([(request, uses) for request, uses in members])
        return [request for request, _ in members]

    side: Any = SimpleNamespace(
        failed=False,
        takes=lambda uses: True,
        opened=lambda: True,
        ranks=lambda sets: (2, 2),
        enter=enter,
        rest=lambda: None,
        predict=server.unet.predict,
    )
    switch = server.switch_by(LoraPathChooser(LoraPath.SIDE, side))
    sparse, plain = (edit(server.world, PART, adapters=uses) for uses in (A, ()))
    dense = edit(None, PART, adapters=B)
    turn, _ = switch.choose([sparse, dense, plain], server.unet.predict)
    assert (turn, switch.in_sparse) == ([sparse], A)
    assert not entered
    turn, predict = switch.choose([dense, plain], server.unet.predict)
    assert (turn, switch.in_sparse) == ([dense, plain], ())
    assert entered == [[(dense, B), (plain, ())]]
    assert predict == side.predict


def test_an_edit_that_loses_its_recording_goes_on_with_its_loras(server: Server) -> None:
    lost, dense = edit(server.world, FULL, adapters=A), edit(None, FULL, adapters=A)
    assert isinstance(lost.sparse, SparseState)
    for step in range(STEPS):
        lost.sparse.recordings[0].file(step).write_bytes(b"")
    server.run(lost)
    server.run(dense)
    assert lost.sparse is None  # the last steps had not been read ahead
    torch.testing.assert_close(lost.latents, dense.latents, atol=1e-3, rtol=0)


def test_the_recording_with_its_loras_is_taken(world: World) -> None:
    """`fast` takes the one without, if there is no other."""

    def told(quality: str, *adapters: AdapterUse) -> tuple[str | None, bool | None]:
        request = of_samples.edit(world, PART, adapters=adapters, quality=quality)
        if isinstance(request.sparse, SparseState):
            request.sparse.tell(request.stats)
        return request.stats.recording, request.stats.recorded_loras

    world.recorder.ensure(world.key())
    assert told("fast", *A) == ("empty", False)
    assert told("balanced", *A) == (None, None)
    world.recorder.ensure(world.key().with_adapters(A))
    assert world.adapters.applied == [(), A]
    assert [told(quality, *A) for quality in ("fast", "balanced")] == [("empty", True)] * 2
    assert told("fast", *B) == ("empty", False)
    assert told("balanced") == ("empty", None)


def test_where_no_policy_reaches_the_quality_only_sparse_is_sparse(world: World) -> None:
    world.steps.policies = only()
    world.recorder.ensure(world.key().with_adapters(A))
    auto, forced = (edit(world, PART, adapters=A, mode=mode) for mode in ("auto", "sparse"))
    assert auto.sparse is None
    assert isinstance(forced.sparse, SparseState)
    assert forced.sparse.margin == CAREFUL.margin
