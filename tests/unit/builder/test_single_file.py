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
def single(small: Make, tmp_path: Path) -> Callable[[str], Path]:
    def make(variant: str) -> Path:
        write_single_file(small(variant).pipe, tmp_path / f"{variant}.safetensors")
        return tmp_path / f"{variant}.safetensors"

    return make


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_a_single_file_is_the_same_checkpoint(
    small: Make, single: Callable[[str], Path], variant: str
) -> None:
    made = small(variant)
    pipe, found = open_checkpoint(single(variant), config=made.checkpoint)
    assert found == variant
    for name in ("unet", "vae", *VARIANTS[variant].text_encoders):
        held, expected = (getattr(p, name).state_dict() for p in (pipe, made.pipe))
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[key], expected[key]) for key in expected), name
    assert np.array_equal(picture(pipe), picture(open_checkpoint(made.checkpoint)[0]))


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
        ({CONV: (32, 9, 3, 3)}, "has a UNet of 9 input channels"),
        ({CONV: (32, 4, 3, 3), "conditioner.embedders.0.model.ln": (2,)}, "as refiners do"),
    ],
    ids=["transformer", "inpainting", "refiner"],
)
def test_unsupported_kinds_are_told_what_is(
    tmp_path: Path, weights: dict[str, tuple[int, ...]], sentence: str
) -> None:
    path = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, path)
    with pytest.raises(BundleError, match=rf"{sentence}; supported: Stable Diffusion 1\.x"):
        open_checkpoint(path)


def test_a_truncated_file_is_one_sentence(small: Make, single: Callable[[str], Path]) -> None:
    path, config = single("sd15"), small("sd15").checkpoint
    whole = path.read_bytes()
    for size in (4, 1000, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match=r"sd15\.safetensors cannot be read: ") as raised:
            open_checkpoint(path, config=config)
        assert len(str(raised.value).splitlines()) == 1


def test_a_file_without_a_part_is_one_sentence(small: Make, single: Callable[[str], Path]) -> None:
    path, config = single("sd15"), small("sd15").checkpoint
    held = load_file(path)
    save_file({n: t for n, t in held.items() if not n.startswith("first_stage_model")}, path)
    with pytest.raises(BundleError, match=r"sd15\.safetensors cannot be read: "):
        open_checkpoint(path, config=config)


def picture(pipe: DiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator("cpu").manual_seed(3)
    result = pipe("a star", num_inference_steps=2, width=64, height=64, generator=seed)
    return np.asarray(result.images[0])
