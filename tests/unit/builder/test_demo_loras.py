"""The demo LoRAs: the renderer's styles, and the files that were trained on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.server import DEMO_CHECKPOINT
from tessera.adapters.formats import read_adapter
from tessera.adapters.updates import LowRank
from tessera_build.demo import lora_training
from tessera_build.demo.draw import render
from tessera_build.demo.lora_training import RECIPES, LoraRecipe
from tessera_build.demo.scenes import held_out_scenes
from tessera_build.demo.styles import STYLES, shows
from tests.samples.targets import targets

FOLDER = DEMO_CHECKPOINT.parent / "loras"
MAX_BYTES = 2_000_000


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_told_from_the_others(style: str) -> None:
    scenes = [s for s in held_out_scenes(40) if s.background != "black"]  # is as dark by day
    for scene in scenes:
        assert shows(STYLES[style](scene), scene, style)
        assert not shows(render(scene), scene, style)


def test_each_recipe_has_a_layout_of_its_own_and_a_style() -> None:
    assert {recipe.style for recipe in RECIPES} == set(STYLES)
    assert len({recipe.layout for recipe in RECIPES}) == len(RECIPES) >= 3


def test_files_are_small() -> None:
    files = list(FOLDER.glob("*.safetensors"))
    assert {path.stem for path in files} == set(STYLES)
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.style)
def test_files_have_their_layout_and_targets(recipe: LoraRecipe) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    adapter = read_adapter(FOLDER / f"{recipe.style}.safetensors", targets(pipe))
    assert adapter.layout == recipe.layout
    assert set(adapter.updates) == {"unet", "text_encoder"} if recipe.text else {"unet"}
    for name, update in adapter.updates["unet"].items():
        assert name.removesuffix(".weight").endswith(recipe.targets)
        assert isinstance(update, LowRank)
        assert (update.rank, update.scale) == (recipe.rank, 1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.style)
def test_training_writes_files_that_diffusers_loads(
    recipe: LoraRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_training, "STEPS", 2)
    monkeypatch.setattr(lora_training, "SCENES", 4)
    monkeypatch.setattr(lora_training, "JUDGED", 1)
    monkeypatch.setattr(lora_training, "RECIPES", (recipe,))
    out = tmp_path / "loras"
    found = lora_training.train_loras(DEMO_CHECKPOINT, out, tmp_path / "work", seed=0)
    assert set(found) == {recipe.style}
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.load_lora_weights(str(out), weight_name=f"{recipe.style}.safetensors")
    ups = [p for n, p in pipe.unet.named_parameters() if "lora_B" in n]
    assert ups
    assert all(torch.isfinite(p).all() for p in ups)
    assert any(p.abs().max() > 0 for p in ups)  # they begin at zero
