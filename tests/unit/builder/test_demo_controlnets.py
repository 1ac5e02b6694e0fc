"""The demo ControlNets: their control pictures, the committed files, and the training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from bench.server import DEMO_CHECKPOINT
from tessera_build.addons import AddOns
from tessera_build.cli import app
from tessera_build.controlnets import open_controlnet
from tessera_build.demo import controlnet_training
from tessera_build.demo.controlnet_training import new_controlnet
from tessera_build.demo.controls import CONTROLS, Judged, overlap
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import (
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    describe_colours,
    held_out_scenes,
)
from tessera_build.demo.training import generate
from tessera_build.graphs import latents_of

FOLDER = DEMO_CHECKPOINT.parent / "controlnets"
MAX_BYTES = 5_000_000


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float32)


def test_edges_run_along_silhouettes() -> None:
    for scene in held_out_scenes(40):
        around = cv2.morphologyEx(
            CONTROLS["silhouette"](scene)[:, :, 0], cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
        near = cv2.dilate(CONTROLS["edges"](scene)[:, :, 0], np.ones((5, 5), np.uint8))
        assert (near[around > 0] > 0).mean() > 0.95


def test_the_judge_finds_everything_in_the_renderer_s_pictures() -> None:
    scenes = held_out_scenes(20)
    pictures = [render(scene) for scene in scenes]
    right = Judged.of(pictures, scenes)
    assert right.score.fraction == 1
    assert right.overlap > 0.95
    wrong = Judged.of(pictures[1:] + pictures[:1], scenes)
    assert wrong.score.fraction < 0.5
    assert wrong.overlap < 0.2


@pytest.mark.parametrize("scene", held_out_scenes(4), ids=describe_colours)
def test_prompts_without_geometry_name_nothing_that_controls_decide(scene: Scene) -> None:
    words = set(describe_colours(scene).split())
    assert not words & {*SHAPES, *SIZES, *" ".join(POSITIONS).split()}


def test_a_new_controlnet_is_the_unet_s_encoder_half_and_changes_nothing(
    pipe: StableDiffusionPipeline,
) -> None:
    network = new_controlnet(pipe.unet)
    theirs = pipe.unet.state_dict()
    copied = {k: v for k, v in network.state_dict().items() if k in theirs}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in copied.items())
    assert any(name.startswith("mid_block.resnets.0.") for name in copied)
    text = torch.randn(1, 77, pipe.unet.config.cross_attention_dim)
    down, mid = network(
        torch.randn(1, 4, 32, 32), 500, text, torch.rand(1, 3, 128, 128), return_dict=False
    )
    assert not any(residual.any() for residual in (*down, mid))


def test_there_is_one_for_each_control_picture() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(CONTROLS)


@pytest.mark.parametrize("name", CONTROLS)
def test_files_are_small_and_fit_the_demo_model(name: str, pipe: StableDiffusionPipeline) -> None:
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118
    AddOns({name: folder}).check()
    network = open_controlnet(name, folder, pipe.unet, latents_of(pipe))
    assert network.controlnet_mid_block.weight.abs().max() > 0  # they begin at zero


@pytest.mark.parametrize("name", CONTROLS)
def test_pictures_follow_their_control_picture(name: str, pipe: StableDiffusionPipeline) -> None:
    controlled = StableDiffusionControlNetPipeline.from_pipe(
        pipe, controlnet=ControlNetModel.from_pretrained(FOLDER / name, dtype=torch.float32)
    )
    scenes = held_out_scenes(6)
    prompts = [describe_colours(scene) for scene in scenes]
    controls = [Image.fromarray(CONTROLS[name](scene)) for scene in scenes]
    with_it = generate(controlled, prompts, controls, steps=12)
    without = generate(pipe, prompts, steps=12)
    assert np.median([overlap(p, s) for p, s in zip(with_it, scenes, strict=True)]) > 0.6
    assert np.median([overlap(p, s) for p, s in zip(without, scenes, strict=True)]) < 0.3


@pytest.mark.filterwarnings("ignore")
def test_training_writes_folders_that_diffusers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlnet_training, "STEPS", dict.fromkeys(CONTROLS, 2))
    for name, small in {
        "BATCH": 2,
        "SCENES": 4,
        "JUDGED": 1,
        "SAMPLED": 1,
        "SAMPLE_EVERY": 1,
    }.items():
        monkeypatch.setattr(controlnet_training, name, small)
    (tmp_path / "base").symlink_to(DEMO_CHECKPOINT)
    line = ["train-demo", "--only-controlnets", "-o", str(tmp_path / "base")]
    line += ["--work", str(tmp_path / "work")]
    first = CliRunner().invoke(app, line, catch_exceptions=False)
    for name in CONTROLS:
        assert f"{name}: " in first.stdout
        network = ControlNetModel.from_pretrained(tmp_path / "controlnets" / name)
        for block in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            assert 0 < block.weight.abs().max() < 0.1  # they begin at zero
    assert (tmp_path / "work/controlnets/controlnets.png").exists()
    assert not (tmp_path / "loras").exists()

    monkeypatch.delattr(controlnet_training, "_Training")  # what is there is not trained again
    again = CliRunner().invoke(app, line, catch_exceptions=False)
    assert again.exit_code == 0
