"""The demo model's training: that it resumes, and what its loss looks at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera_build.demo import networks, unet_training
from tessera_build.demo.readouts import Readouts, label_maps
from tessera_build.demo.scenes import COLOURS, SHAPES, SIZES, Item, Scene, vocabulary
from tessera_build.demo.tokenizer import build_tokenizer
from tessera_build.demo.unet_training import LatentSet, Networks, make_latents, train_unet

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


def new_networks() -> Networks:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary())
    return Networks.of(networks.new_unet(), networks.new_text_encoder(tokenizer))


def train(data: LatentSet, checkpoint: Path, *, stop_after: int | None = None) -> Networks:
    def report(done: int, note: str) -> None:
        if done == stop_after:
            raise Interrupted

    trained = new_networks()
    options: dict[str, Any] = {"seed": 0, "device": CPU, "checkpoint": checkpoint}
    train_unet(
        trained,
        build_tokenizer(vocabulary()),
        data,
        3,
        report=report,
        sample=lambda step: None,
        **options,
    )
    return trained


@pytest.fixture(scope="module")
def data() -> LatentSet:
    torch.manual_seed(0)
    return make_latents(networks.new_vae(), 8, seed=1, device=CPU, report=lambda done: None)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    data: LatentSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet_training, "SAVE_EVERY", 1)
    monkeypatch.setattr(unet_training, "BATCH", 4)
    whole = train(data, tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        train(data, tmp_path / "parts.pt", stop_after=2)
    parts = train(data, tmp_path / "parts.pt")
    before = new_networks()
    for one, other, start in zip(
        whole.parameters(), parts.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert one.shape == start.shape
    assert not torch.equal(whole.parameters()[0], before.parameters()[0])


def test_every_outline_weighs_the_same_whatever_its_size_and_shape(data: LatentSet) -> None:
    shares = data.shares.float()
    for scene, share in zip(data.scenes, shares, strict=True):
        assert float(share.sum()) == pytest.approx(len(scene.items), rel=0.01)
    small, large = (
        unet_training._shares(Scene((Item("circle", "red", size, "center"),), "blue"))
        for size in ("small", "large")
    )
    assert 2 * int((small > 0).sum()) < int((large > 0).sum())
    square = unet_training._shares(Scene((Item("square", "red", "large", "center"),), "blue"))
    assert torch.equal(square, large), "the weights tell which shape it is"


def test_label_maps_say_what_is_where() -> None:
    item = Item("star", "red", "large", "top left")
    labels = label_maps([Scene((item,), "blue")])[0]
    expected = [1 + SHAPES.index("star"), 1 + COLOURS.index("red"), 1 + list(SIZES).index("large")]
    assert labels[:, 9, 9].tolist() == expected  # pixel 38
    assert labels[:, 24, 24].tolist() == [0, 0, 0]


def test_readouts_that_know_nothing_cost_what_chance_costs(data: LatentSet) -> None:
    torch.manual_seed(0)
    unet = networks.new_unet()
    readouts = Readouts(unet)
    for parameter in readouts.parameters():
        torch.nn.init.zeros_(parameter)
    text = torch.zeros(2, 77, networks.TEXT_WIDTH)
    unet(torch.randn(2, 4, 32, 32), torch.tensor([999, 999]), text)
    place, things = readouts.loss(label_maps(data.scenes[:2]))
    classes = [1 + len(words) for words in (SHAPES, COLOURS, SIZES)]
    assert place.item() == pytest.approx(1, abs=1e-4)
    assert things.item() == pytest.approx(sum(math.log(n) for n in classes) / 3, abs=1e-4)


def test_readouts_reach_into_the_network(data: LatentSet) -> None:
    torch.manual_seed(0)
    unet = networks.new_unet()
    readouts = Readouts(unet)
    text = torch.zeros(1, 77, networks.TEXT_WIDTH)
    unet(torch.randn(1, 4, 32, 32), torch.tensor([999]), text)
    sum(readouts.loss(label_maps(data.scenes[:1]))).backward()  # type: ignore[union-attr]
    assert unet.conv_in.weight.grad.abs().max() > 0


def test_timesteps_are_dense_where_layout_is_decided() -> None:
    torch.manual_seed(0)
    drawn = torch.cat([unet_training._stratified_timesteps(16, 0) for _ in range(200)])
    assert 0.8 < float((drawn > 400).float().mean()) < 0.88
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 999
    assert int(unet_training._stratified_timesteps(16, 850).min()) >= 850
