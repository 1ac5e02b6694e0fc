"""The recorder: one recording for a key, made once."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tessera.adapters.recorded import RecordedAdapters
from tessera.engines.bundle import Bundle
from tessera.errors import Unavailable
from tessera.networks.sparse_unet import SparseUNet
from tessera.shared.settings import AdapterSettings
from tessera.sparse.record import record
from tessera.templates.recorder import Recorder, open_networks
from tessera.templates.store import Recording, TemplateStore
from tests.fakes.sparse import dense_pass, small_unet
from tests.samples.bundles import IN_HALF, Small
from tests.samples.edits import EMPTY, World
from tests.samples.requests import MANIFEST
from tests.samples.schedulers import DEMO


def test_a_recording_is_made_once_and_again_when_it_is_damaged(world: World) -> None:
    recording, made = world.recorder.ensure(world.key())
    assert made
    assert world.recorder.ensure(world.key()) == (recording, False)
    recording.file(0).write_bytes(b"")
    with pytest.raises(Exception, match="is not what was written"):
        world.store.load(recording, 0)
    assert world.recorder.ensure(world.key())[1]
    assert world.opened == 1


def test_a_recording_with_a_prompt_leaves_what_prompts_are_compared_with(world: World) -> None:
    """Where nobody records the empty prompt, as with SDXL, whose negative one is zeros."""
    key = world.key()
    own = key.with_text("1" * 16)
    with pytest.raises(Unavailable, match=r"the prompt 1{16} of template .* is not known"):
        world.recorder.ensure(own)
    told = {"hidden": torch.ones(7, 24), "pooled": torch.zeros(1)}
    world.store.texts.put(own.digest, told)
    assert world.recorder.ensure(own)[1]
    empty = world.store.texts.get(key.digest)
    assert empty is not None
    assert torch.equal(empty["hidden"], EMPTY[0])
    assert world.store.find(key) is None


def test_two_at_once_record_once(world: World) -> None:
    other = Recorder(world.store, MANIFEST, DEMO, world.open, budget=10**9)
    key, found = world.key(), list[tuple[Recording, bool]]()
    threads = [
        threading.Thread(target=lambda r=r: found.append(r.ensure(key)))
        for r in (world.recorder, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made for _, made in found) == [False, True]


def test_a_recording_for_nobody_is_left_to_whoever_makes_it(world: World) -> None:
    other = TemplateStore(world.store.root, budget=10**9)
    calls: list[int] = []
    with other.locked(world.key()):
        assert not world.recorder.attempt(world.key(), between=lambda: calls.append(1))
    assert world.store.find(world.key()) is None
    assert world.recorder.attempt(world.key(), between=lambda: calls.append(1))
    assert world.store.find(world.key()) is not None
    assert len(calls) == 5  # one for a step


def test_nothing_registered_is_pushed_out_for_what_nobody_waits_for(world: World) -> None:
    registered, _ = world.recorder.ensure(world.key())
    world.store.register(registered)
    world.store.budget = registered.bytes + 1
    other = world.key().with_text("0123")
    world.store.texts.put(other.digest, world.open().embed())
    with pytest.raises(Unavailable, match="no room beside the recordings that clients have regis"):
        world.recorder.attempt(other, between=lambda: None)
    assert world.store.find(other) is None
    assert world.store.find(registered.key) is not None
    assert world.recorder.ensure(other)[1], "a request that waits for it gets it"
    assert [r.key for r in world.store.recordings()] == [other]


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    poor = World(tmp_path, budget=1000)
    with pytest.raises(Unavailable, match=r"does not fit the 1e-06 GB .* see --template-size"):
        poor.recorder.ensure(poor.key())
    gone = poor.key()
    poor.store.evict(gone.template)
    with pytest.raises(Unavailable, match="was evicted; send its image again"):
        poor.recorder.ensure(gone)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
def test_the_networks_get_their_inputs_where_they_are(world: World, precision: torch.dtype) -> None:
    """On a GPU in half precision, but for numbers that it cannot hold."""
    networks = world.open()
    halves = copy.deepcopy(networks.encoder).to("meta", precision)
    networks = dataclasses.replace(networks, encoder=halves)
    inputs = {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 3, 8),
    }
    placed = networks.placed(inputs)
    assert {tensor.device.type for tensor in placed.values()} == {"meta"}
    types = {name: tensor.dtype for name, tensor in placed.items()}
    assert types == dict.fromkeys(inputs, precision) | {"timestep": torch.float32}


def test_networks_that_are_released_are_opened_again(world: World) -> None:
    world.recorder.ensure(world.key())
    world.recorder.release()
    world.recorder.ensure(world.key(scheduler="ddim"))
    assert world.opened == 2


@pytest.mark.parametrize("name", IN_HALF)
def test_bundles_in_half_precision_are_recorded_in_float32(
    small: Callable[[str], Small], name: str
) -> None:
    bundle = Bundle(small(name).bundle, threads=1)
    networks = open_networks(bundle, partial(RecordedAdapters, bundle, AdapterSettings()))
    unet = small_unet(name)
    inputs, expected, answer = dense_pass(unet, rows=2, height=16, width=12)
    sites = SparseUNet(unet).program.sites
    found, prediction = record(networks.encoder, networks.decoder, inputs, sites=sites)
    torch.testing.assert_close(prediction, answer, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    for site, values in expected.items():
        torch.testing.assert_close(found[site], values, atol=1e-4, rtol=1e-4)
    conditions = networks.conditions(networks.embed(), 96, 128)
    assert {tensor.dtype for tensor in conditions.values()} == {torch.float32}
