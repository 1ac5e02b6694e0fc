"""Checkpoints in one safetensors file, in the layout of the original releases, against the same
checkpoint as a diffusers folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tessera_build.bundle as module
from tessera.errors import BundleError
from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_build.checkpoint import open_checkpoint
from tessera_build.cli import app
from tessera_build.graphs import GraphSpec, graphs_of
from tests.fakes.single_file import write_single_file
from tests.samples.bundles import OPTIONS, Small
from tests.samples.checkpoints import Saved

Make = Callable[[str], Small]
CONV = "model.diffusion_model.input_blocks.0.0.weight"
QUICK = ("text_encoder", "text_encoder_2", "vae_decoder")
"""Graphs that are exported again here; that the others are the same follows from their weights."""


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """Tests of Triton models leave torch with one thread. Then its sums depend on where weights
    lie in memory, which differs between a file and a folder: a byte of the picture, by one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def single(saved: Callable[[str], Saved], tmp_path: Path) -> Callable[[str], Path]:
    def make(variant: str) -> Path:
        write_single_file(saved(variant).pipe, tmp_path / f"{variant}.safetensors")
        return tmp_path / f"{variant}.safetensors"

    return make


@pytest.mark.parametrize("variant", ["sd15", "sdxl", "sdxl-inpainting"])
def test_a_single_file_is_the_same_checkpoint(
    saved: Callable[[str], Saved], single: Callable[[str], Path], variant: str
) -> None:
    made = saved(variant)
    pipe, found = open_checkpoint(single(variant), config=made.folder)
    assert found == variant.partition("-")[0]
    for name in ("unet", "vae", *VARIANTS[found].text_encoders):
        held, expected = (getattr(p, name).state_dict() for p in (pipe, made.pipe))
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[key], expected[key]) for key in expected), name
    if pipe.unet.config.in_channels == 4:
        assert np.array_equal(picture(pipe), picture(open_checkpoint(made.folder)[0]))


def test_the_configuration_is_of_the_same_input(
    saved: Callable[[str], Saved], single: Callable[[str], Path]
) -> None:
    sentence = "has a UNet of 9 input channels, and that of .* has 4; accepted: the same"
    with pytest.raises(BundleError, match=sentence):
        open_checkpoint(single("sd15-inpainting"), config=saved("sd15").folder)


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_its_bundle_is_the_folders(
    small: Make,
    single: Callable[[str], Path],
    variant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, file = small(variant), single(variant)
    expected = read_manifest(made.bundle)

    def quick(*arguments: object, **options: bool) -> list[GraphSpec]:
        return [s for s in graphs_of(*arguments, **options) if s.name in QUICK]  # type: ignore[arg-type]

    monkeypatch.setattr(module, "graphs_of", quick)
    line = ["bundle", str(file), "-o", str(tmp_path / "bundle"), "--config", str(made.checkpoint)]
    result = CliRunner().invoke(app, [*line, *OPTIONS])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "bundle")
    assert {"graphs/vae_decoder.onnx", "tokenizer/tokenizer.json"} <= set(manifest.files)
    for name, entry in manifest.files.items():
        assert entry == expected.files[name], name
    assert (manifest.defaults, manifest.limits, manifest.latents, manifest.zero_negative) == (
        expected.defaults,
        expected.limits,
        expected.latents,
        expected.zero_negative,
    )


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"double_blocks.0.weight": (2, 2)}, "has no UNet in the layout of the original releases"),
        ({CONV: (32, 8, 3, 3)}, "has a UNet of 8 input channels"),
        ({CONV: (32, 4, 3, 3), "conditioner.embedders.0.model.ln": (2,)}, "as refiners do"),
    ],
    ids=["transformer", "image editing", "refiner"],
)
def test_unsupported_kinds_are_told_what_is(
    tmp_path: Path, weights: dict[str, tuple[int, ...]], sentence: str
) -> None:
    path = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, path)
    with pytest.raises(BundleError, match=rf"{sentence}; supported: Stable Diffusion 1\.x"):
        open_checkpoint(path)


def test_a_text_encoder_in_the_form_of_novelai(small: Make, single: Callable[[str], Path]) -> None:
    """Without `text_model.` in its names."""
    made, path = small("sd15"), single("sd15")
    held = {name.replace("text_model.", ""): t for name, t in load_file(path).items()}
    positions = "cond_stage_model.transformer.embeddings.position_ids"
    save_file(held | {positions: torch.arange(77)[None]}, path)
    pipe, _ = open_checkpoint(path, config=made.checkpoint)
    found, expected = pipe.text_encoder.state_dict(), made.pipe.text_encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    pictures = (picture(p).astype(int) for p in (pipe, open_checkpoint(made.checkpoint)[0]))
    assert np.abs(np.subtract(*pictures)).max() <= 1
    lacking = held.copy()
    del lacking["cond_stage_model.transformer.final_layer_norm.bias"]
    save_file(lacking, path)
    with pytest.raises(BundleError, match="lacks 1 tensors of its text encoder, first final_lay"):
        open_checkpoint(path, config=made.checkpoint)


@pytest.mark.parametrize("names", ["prefix", "bare", "diffusers"])
def test_a_unet_alone_takes_the_rest_from_its_base(
    small: Make, single: Callable[[str], Path], names: str, tmp_path: Path
) -> None:
    made, whole = small("sdxl"), single("sdxl")
    stem = "model.diffusion_model."
    held = {n: 2 * t for n, t in load_file(whole).items() if n.startswith(stem)}
    if names == "bare":
        held = {name.removeprefix(stem): t for name, t in held.items()}
    elif names == "diffusers":
        held = {name: 2 * t for name, t in made.pipe.unet.state_dict().items()}
    path = tmp_path / "unet.safetensors"
    save_file(held, path)
    for base in (made.checkpoint, whole):
        pipe, variant = open_checkpoint(path, base=base, config=made.checkpoint)
        assert variant == "sdxl"
        for name, weight in pipe.unet.state_dict().items():
            assert torch.equal(weight, 2 * made.pipe.unet.state_dict()[name]), name
        for name, weight in pipe.vae.state_dict().items():
            assert torch.equal(weight, made.pipe.vae.state_dict()[name]), name
    with pytest.raises(BundleError, match=r"holds a UNet alone; accepted: .* with --base"):
        open_checkpoint(path)
    with pytest.raises(BundleError, match=r"has another UNet than the base: .* has shape|lacks "):
        open_checkpoint(path, base=small("sd15").checkpoint)
    save_file(held | {f"{stem if names == 'prefix' else ''}alien": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match=r"has 1 tensors that the base's UNet does not have"):
        open_checkpoint(path, base=made.checkpoint)


def test_a_truncated_file_is_one_sentence(
    saved: Callable[[str], Saved], single: Callable[[str], Path]
) -> None:
    path, config = single("sd15"), saved("sd15").folder
    whole = path.read_bytes()
    for size in (4, 1000, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match=r"sd15\.safetensors cannot be read: ") as raised:
            open_checkpoint(path, config=config)
        assert len(str(raised.value).splitlines()) == 1


def test_a_file_with_half_of_a_part_is_one_sentence(
    saved: Callable[[str], Saved], single: Callable[[str], Path]
) -> None:
    path, config = single("sd15"), saved("sd15").folder
    held = load_file(path)
    save_file({n: t for n, t in held.items() if "first_stage_model.decoder" not in n}, path)
    with pytest.raises(BundleError, match=r"sd15\.safetensors cannot be read: "):
        open_checkpoint(path, config=config)


def picture(pipe: DiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator("cpu").manual_seed(3)
    result = pipe("a star", num_inference_steps=2, width=64, height=64, generator=seed)
    return np.asarray(result.images[0])
