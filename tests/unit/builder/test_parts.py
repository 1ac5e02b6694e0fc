"""Checkpoints with a part too few or too many, as people have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tessera.errors import BundleError
from tessera.variants import VARIANTS
from tessera_build.bundle import Choices, source_digest
from tessera_build.checkpoint import find_checkpoint, open_checkpoint, variant_of
from tessera_build.parts import plain_pipeline
from tests.fakes.single_file import write_single_file
from tests.samples.checkpoints import Saved

Make = Callable[[str], Saved]
PREFIXES = {
    "vae": "first_stage_model.",
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": "conditioner.embedders.1.",
}


def change_index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def single_file(made: Saved, folder: Path, *without: str) -> Path:
    """The checkpoint as one file that lacks some parts."""
    path = folder / "file.safetensors"
    write_single_file(made.pipe, path)
    weights = load_file(path)
    for part in without:
        weights = {n: t for n, t in weights.items() if not n.startswith(PREFIXES[part])}
    save_file(weights, path)
    return path


def assert_same(pipe: Any, other: Any, variant: str) -> None:
    for name in ("unet", "vae", *VARIANTS[variant].text_encoders):
        held, expected = (getattr(p, name).state_dict() for p in (pipe, other))
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[key], expected[key]) for key in expected), name


@pytest.mark.parametrize(
    ("pipeline", "plain"),
    [
        ("StableDiffusionImg2ImgPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionControlNetInpaintPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionXLControlNetPipeline", "StableDiffusionXLPipeline"),
        ("StableDiffusionUpscalePipeline", "StableDiffusionUpscalePipeline"),
    ],
)
def test_pipelines_of_the_same_networks(pipeline: str, plain: str) -> None:
    assert plain_pipeline(pipeline) == plain


def test_a_folder_that_another_pipeline_has_saved(saved: Make, copy: Path) -> None:
    kinds = {"_class_name": "StableDiffusionControlNetPipeline"}
    change_index(copy, **kinds, controlnet=["diffusers", "ControlNetModel"])
    said: list[str] = []
    pipe, variant = open_checkpoint(copy, say=said.append)
    assert variant == "sd15"
    assert_same(pipe, saved("sd15").pipe, variant)
    folder = copy / "controlnet"
    assert said == [f"{folder} is left out; build it in with --controlnet NAME={folder}"]


def test_a_depth_network_is_refused_whatever_its_pipeline() -> None:
    with pytest.raises(BundleError, match="a UNet of 5 input channels"):
        variant_of("StableDiffusionInpaintPipeline", {"in_channels": 5})


def test_folders_that_no_picture_needs_may_be_missing(saved: Make, copy: Path) -> None:
    change_index(
        copy,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    assert_same(open_checkpoint(copy)[0], saved("sd15").pipe, "sd15")


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_missing_tokenizer_is_named(saved: Make, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved("sdxl").folder, folder)
    shutil.rmtree(folder / part)
    with pytest.raises(BundleError, match=f"copy/{part} has no tokenizer; accepted: tokenizer"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_index_that_is_none(copy: Path, text: str) -> None:
    (copy / "model_index.json").write_text(text)
    with pytest.raises(BundleError, match=r"model_index\.json (cannot be read|is no JSON object)"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("variant", "without"),
    [
        ("sd15", ["vae"]),
        ("sd15", ["text_encoder"]),
        ("sdxl", ["vae", "text_encoder", "text_encoder_2"]),
    ],
    ids=["1.5 VAE", "1.5 text", "XL UNet only"],
)
def test_parts_that_a_file_lacks_come_from_its_configuration(
    saved: Make, tmp_path: Path, variant: str, without: list[str]
) -> None:
    made, said = saved(variant), list[str]()
    path = single_file(made, tmp_path, *without)
    pipe, found = open_checkpoint(path, config=made.folder, say=said.append)
    assert found == variant
    assert_same(pipe, made.pipe, variant)
    folder = made.folder
    assert said == [
        f"file.safetensors has no {part}: taken from {folder / part}" for part in without
    ]


def test_one_of_two_text_encoders_is_not_enough(saved: Make, tmp_path: Path) -> None:
    made = saved("sdxl")
    path = single_file(made, tmp_path, "text_encoder_2")
    with pytest.raises(BundleError, match="has a text_encoder and no text_encoder_2; accepted: bo"):
        open_checkpoint(path, config=made.folder)


def test_parts_in_half_precision_only(saved: Make, tmp_path: Path) -> None:
    made = saved("sd15")
    path, config = single_file(made, tmp_path, "vae"), tmp_path / "config"
    shutil.copytree(made.folder, config)
    (file,) = (config / "vae").glob("*.safetensors")
    file.rename(file.with_suffix(".fp16.safetensors"))
    assert_same(open_checkpoint(path, config=config)[0], made.pipe, "sd15")


def test_parts_that_are_nowhere_are_named(saved: Make, tmp_path: Path) -> None:
    made = saved("sd15")
    path, config = single_file(made, tmp_path, "vae"), tmp_path / "config"
    with pytest.raises(BundleError, match="has no vae; name a folder that has one with --config"):
        open_checkpoint(path)
    shutil.copytree(made.folder, config)
    for file in (config / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BundleError, match=r"has no vae, and .*config/vae has no safetensors"):
        open_checkpoint(path, config=config)


def test_a_bundle_is_made_again_when_its_configuration_has_changed(
    saved: Make, tmp_path: Path
) -> None:
    path, config = single_file(saved("sd15"), tmp_path), tmp_path / "config"
    (config / "vae").mkdir(parents=True)
    digests = set()
    for text in ("{}", '{"scaling_factor": 1}'):
        (config / "vae" / "config.json").write_text(text)
        digests.add(source_digest(path, Choices(), config=config))
    assert len(digests) == 2


def twice(file: Path, to: Path) -> None:
    """Weights that can be told from those of a file."""
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, to)


@pytest.mark.parametrize("whole", [False, True], ids=["its folder", "a checkpoint's"])
def test_another_vae_takes_the_place_of_the_checkpoints(
    saved: Make, tmp_path: Path, whole: bool
) -> None:
    made, other = saved("sdxl"), tmp_path / "other"
    shutil.copytree(made.folder / "vae", other / "vae")
    (file,) = (other / "vae").glob("*.safetensors")
    twice(file, file)
    pipe, _ = open_checkpoint(made.folder, vae=other if whole else other / "vae")
    expected = made.pipe.vae.state_dict()
    for name, weight in pipe.vae.state_dict().items():
        assert torch.equal(weight, 2 * expected[name]), name
    changed = Choices(vae=other / "vae")
    assert source_digest(made.folder, changed) != source_digest(made.folder, Choices())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"latent_channels": 16}, r"is a AutoencoderKL with 16 channels; accepted: .* with 4"),
        ({"_class_name": "VQModel"}, r"is a VQModel with 4 channels; accepted: AutoencoderKL, "),
    ],
    ids=["channels", "kind"],
)
def test_a_vae_of_another_kind_is_refused(
    saved: Make, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    made, other = saved("sd15"), tmp_path / "vae"
    shutil.copytree(made.folder / "vae", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BundleError, match=sentence):
        open_checkpoint(made.folder, vae=other)
    with pytest.raises(BundleError, match=r"accepted: the folder of a VAE, with a config\.json"):
        open_checkpoint(made.folder, vae=tmp_path / "nowhere")


def test_a_variant_of_the_weights_is_read(saved: Make, tmp_path: Path) -> None:
    made, folder = saved("sd15"), tmp_path / "checkpoint"
    shutil.copytree(made.folder, folder)
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        twice(file, file.with_suffix(".ema.safetensors"))
    said: list[str] = []
    pipe, _ = open_checkpoint(folder, files="ema", say=said.append)
    assert said[0] == f"{folder}: files of the variant ema are read"
    expected = made.pipe.unet.state_dict()
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(weight, 2 * expected[name]), name
    with pytest.raises(BundleError, match=r"cannot be read: .*none"):
        open_checkpoint(folder, files="none")


def test_files_and_local_folders_have_no_variants_and_revisions(
    saved: Make, tmp_path: Path
) -> None:
    made = saved("sd15")
    with pytest.raises(BundleError, match=r"--variant is ema, and .* is one file; accepted: a f"):
        open_checkpoint(single_file(made, tmp_path), config=made.folder, files="ema")
    with pytest.raises(BundleError, match=r"--revision is main, and .* is a local path; accep"):
        find_checkpoint(str(made.folder), revision="main")
