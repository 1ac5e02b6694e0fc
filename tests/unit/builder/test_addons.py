"""ControlNets and LoRAs that go into a bundle: what is accepted and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tessera_build.bundle as module
from tessera.adapters.library import PEFT_CONFIG, PEFT_MODEL, Library
from tessera.errors import BundleError
from tessera_build.addons import AddOns, install_loras, keep_adapters, read_controlnets
from tessera_build.bundle import build_bundle
from tessera_build.cli import app
from tessera_build.controlnets import Network, open_controlnet
from tessera_build.graphs import latents_of
from tests.fakes.checkpoint import controlnet, topology
from tests.samples.bundles import CHOICES, OPTIONS, Small

Make = Callable[[str], Small]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "stripes.safetensors"
    save_file({"unet.conv_in.lora_A.weight": torch.ones(1)}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ControlNet for the 1.5 topology that a test may spoil."""
    made = controlnet(topology("sd15").unet)
    made.save_pretrained(tmp_path / "control")
    return tmp_path / "control"


def opened(name: str, path: Path, variant: str = "sd15") -> Network:
    pipe = topology(variant)
    return open_controlnet(name, path, pipe.unet, latents_of(pipe))


@pytest.mark.parametrize(
    ("own", "other", "found", "wanted"),
    [("sd15", "sd21", 48, 64), ("sd21", "sdxl", 64, 64), ("sdxl", "sd15", 64, 48)],
)
def test_another_family_is_refused_by_the_first_mismatch(
    tmp_path: Path, own: str, other: str, found: int, wanted: int
) -> None:
    controlnet(topology(own).unet).save_pretrained(tmp_path / "control")
    opened("depth", tmp_path / "control", own)
    first = f"its cross_attention_dim is {found}; accepted: {wanted}"
    if found == wanted:
        first = "its block_out_channels is [32, 64, 64, 64]; accepted: [32, 64, 128]"
    with pytest.raises(BundleError, match="ControlNet depth is of another family") as raised:
        opened("depth", tmp_path / "control", other)
    assert str(raised.value).endswith(first)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"_class_name": "SD3ControlNetModel"},
            "is a SD3ControlNetModel; accepted: ControlNetModel, ControlNetUnionModel",
        ),
        ({"mid_block_scale_factor": 2}, "has mid_block_scale_factor 2; accepted: 1"),
        ({"block_out_channels": "wide"}, "cannot be read from"),
    ],
    ids=["transformer", "scaled", "nonsense"],
)
def test_kinds_that_are_not_supported(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(BundleError, match=sentence):
        opened("depth", folder)


def test_fewer_pixels_a_latent_are_another_family(tmp_path: Path) -> None:
    made = controlnet(topology("sd15").unet, conditioning_embedding_out_channels=(8, 8, 16))
    made.save_pretrained(tmp_path / "control")
    with pytest.raises(BundleError, match="its pixels per latent is 4; accepted: 8"):
        opened("depth", tmp_path / "control")


def test_a_single_file_in_diffusers_names(folder: Path) -> None:
    expected = opened("depth", folder).state_dict()
    found = opened("depth", next(folder.glob("*.safetensors"))).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(BundleError, match=r"is of another family .* its block_out_channels is"):
        opened("depth", next(folder.glob("*.safetensors")), "sdxl")


def test_truncated_weights_are_one_sentence(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BundleError, match="ControlNet depth cannot be read from"):
        opened("depth", folder)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["depth"], "--controlnet is 'depth'; accepted: NAME=PATH"),
        (["depth="], "accepted: NAME=PATH"),
        (["depth=a", "depth=b"], "--controlnet depth is given twice"),
    ],
)
def test_pairs_of_the_command_line(pairs: list[str], sentence: str) -> None:
    assert read_controlnets(["a=b", "c=d=e"]) == {"a": Path("b"), "c": Path("d=e")}
    with pytest.raises(BundleError, match=sentence):
        read_controlnets(pairs)


@pytest.mark.parametrize("name", ["", "a b", "../up", "sketch_hint", "_"])
def test_names_that_are_not_accepted(name: str) -> None:
    with pytest.raises(BundleError, match=r"name is .*; accepted: letters, digits"):
        AddOns({name: Path("x")}).check()


def test_files_that_are_no_controlnets(tmp_path: Path, folder: Path) -> None:
    cases = {
        tmp_path / "none": "does not exist; accepted: a diffusers folder",
        tmp_path / "model.pth": "is a pickle",
        tmp_path: r"has no config\.json",
        Path(__file__): "is not a safetensors file",
    }
    for path, sentence in cases.items():
        with pytest.raises(BundleError, match=sentence):
            AddOns({"depth": path}).check()
    weights = next(folder.glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BundleError, match="has no safetensors weights"):
        AddOns({"depth": folder}).check()


def test_files_that_are_no_loras(tmp_path: Path, lora: Path) -> None:
    AddOns(loras=[lora]).check()
    for end in ("hada_w1_a", "lokr_w1", "ia3_l", "diff", "w_norm"):
        save_file({f"unet.conv_in.{end}": torch.ones(1)}, tmp_path / f"{end}.SAFETENSORS")
        AddOns(loras=[tmp_path / f"{end}.SAFETENSORS"]).check()
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:20])
    (tmp_path / "again").mkdir()
    shutil.copy(lora, tmp_path / "again")
    cases = {
        (tmp_path / "stripes.pt",): "is a pickle",
        (tmp_path / "none.safetensors",): "is not a safetensors file",
        (tmp_path / "cut.safetensors",): "cannot be read",
        (tmp_path / "other.safetensors",): "is not a LoRA: none of its 1 tensors",
        (lora, tmp_path / "again" / lora.name): "two LoRA files are called stripes",
    }
    for paths, sentence in cases.items():
        with pytest.raises(BundleError, match=sentence):
            AddOns(loras=paths).check()


def test_loras_are_copied_and_survive_the_next_build(
    small: Make, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = small("sd15").checkpoint, tmp_path / "small"
    monkeypatch.setattr(module, "graphs_of", lambda *_, **__: [])

    def quiet(what: str, done: int, total: int) -> None:
        pass

    with_lora = AddOns(loras=[lora])
    first = build_bundle(source, out, choices=CHOICES, progress=quiet, addons=with_lora)
    dropped = out / "adapters" / "dropped.safetensors"
    shutil.copy(lora, dropped)
    second = build_bundle(source, out, choices=CHOICES, progress=quiet)
    assert {p.name for p in (out / "adapters").iterdir()} == {lora.name, dropped.name}
    assert load_file(out / "adapters" / lora.name).keys() == load_file(lora).keys()
    assert first.digest == second.digest
    assert not [name for name in second.files if name.startswith("adapters")]


def test_a_current_bundle_gets_its_loras_all_the_same(
    small: Make, lora: Path, tmp_path: Path
) -> None:
    made, out = small("sd15"), tmp_path / "bundle"
    shutil.copytree(made.bundle, out)
    control = f"edges={made.addons.controlnets['edges']}"
    line = ["bundle", str(made.checkpoint), "-o", str(out), "--controlnet", control]
    result = CliRunner().invoke(app, [*line, "--lora", str(lora), *OPTIONS])
    assert result.exit_code == 0, result.output
    assert "is up to date" in " ".join(result.output.split())
    assert (out / "adapters" / lora.name).read_bytes() == lora.read_bytes()


def test_a_lora_that_does_not_fit_on_the_disk(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BundleError, match=r"adapters could not be written: No space left"):
        install_loras(tmp_path, [lora])
    assert not list((tmp_path / "adapters").iterdir())


def test_loras_of_peft_keep_their_configurations(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, alpha in (("first", 8), (".second", 4), ("other/first", 2), ("bare", None)):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(lora, tmp_path / folder / PEFT_MODEL)
        if alpha:
            (tmp_path / folder / PEFT_CONFIG).write_text(json.dumps({"lora_alpha": alpha}))
    first, second, same, bare = (
        tmp_path / folder / PEFT_MODEL for folder in ("first", ".second", "other/first", "bare")
    )
    monkeypatch.chdir(first.parent)
    loras = [Path(PEFT_MODEL), second, bare, lora]
    AddOns(loras=loras).check()
    install_loras(tmp_path, loras)
    installed = tmp_path / "adapters"
    assert set(Library([installed]).entries()) == {
        "adapter_model",
        "first/adapter_model",
        "second/adapter_model",
        lora.stem,
    }
    assert not (installed / PEFT_CONFIG).exists()
    for copy, source in (("first", first), ("second", second)):
        beside = (installed / copy / PEFT_CONFIG).read_bytes()
        assert beside == source.with_name(PEFT_CONFIG).read_bytes()
    with pytest.raises(BundleError, match=r"are called first/adapter_model; rename one of their"):
        AddOns(loras=[first, same]).check()


def test_adapters_of_an_older_bundle_are_kept_whole(tmp_path: Path) -> None:
    kept = {"a.safetensors": "1", "B.SAFETENSORS": "2", "by me/c.safetensors": "3"}
    kept |= {"peft/adapter_model.safetensors": "4", "peft/adapter_config.json": "5"}
    for name, text in kept.items():
        file = tmp_path / "old" / "adapters" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "old" / "adapters" / "link.safetensors").symlink_to("a.safetensors")
    (tmp_path / "new").mkdir()
    keep_adapters(tmp_path / "old", tmp_path / "new")
    keep_adapters(tmp_path / "none", tmp_path / "new")
    folder = tmp_path / "new" / "adapters"
    assert {name: (folder / name).read_text() for name in kept} == kept
    assert (folder / "link.safetensors").readlink() == Path("a.safetensors")
