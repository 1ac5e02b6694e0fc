"""ControlNets of every kind and size, as folders and as single files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tessera.errors import BundleError
from tessera.manifest import ControlKind, Latents
from tessera_build.controlnets import kinds_of, open_controlnet
from tests.fakes.checkpoint import controlnet, randomised, topology
from tests.fakes.controlnets import HINTS, MODES, union, write_control_lora, write_original
from tests.fakes.pruned import pruned

SPACE = Latents(4, 8, 1.0)
UNETS = {name: topology(name).unet for name in ("sd15", "sdxl")}


def opened(path: Path, unet: UNet2DConditionModel, **options: Any) -> Any:
    return open_controlnet("depth", path, unet, SPACE, **options)


def weights_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def smaller(unet: UNet2DConditionModel, **config: Any) -> ControlNetModel:
    """A ControlNet with another configuration than the UNet's."""
    whole = controlnet(unet, **HINTS)
    torch.manual_seed(4)
    return randomised(ControlNetModel.from_config(dict(whole.config) | config))


SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "mid": {"transformer_layers_per_block": [1, 1, 1]},
    "small": {
        "down_block_types": ["DownBlock2D"] * 3,
        "transformer_layers_per_block": [1, 1, 1],
        "mid_block_type": "UNetMidBlock2D",
    },
}


@pytest.mark.parametrize("size", SIZES)
def test_a_single_file_of_any_size_is_its_folder(size: str, tmp_path: Path) -> None:
    made = smaller(UNETS["sdxl"], **SIZES[size])
    made.save_pretrained(tmp_path / size)
    by_folder, by_file = (
        opened(path, UNETS["sdxl"]) for path in (tmp_path / size, weights_of(tmp_path / size))
    )
    assert _same(by_file.state_dict(), by_folder.state_dict())
    assert _same(by_file.state_dict(), made.state_dict())
    inputs = _inputs(UNETS["sdxl"])
    one, other = (_residuals(network, inputs) for network in (by_file, made))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("variant", UNETS)
@pytest.mark.parametrize("prefix", ["control_model.", ""], ids=["prefix", "bare"])
def test_names_of_the_original_release(variant: str, prefix: str, tmp_path: Path) -> None:
    made = controlnet(UNETS[variant], **HINTS)
    path = write_original(made, tmp_path / "depth.safetensors", prefix)
    assert _same(opened(path, UNETS[variant]).state_dict(), made.state_dict())
    state = load_file(path) | {f"{prefix}input_blocks.99.0.alien": torch.zeros(1)}
    save_file(state, path)
    with pytest.raises(BundleError, match=r"has 1 tensors .* first .*input_blocks\.99"):
        opened(path, UNETS[variant])


@pytest.mark.parametrize("single", [True, False], ids=["file", "folder"])
def test_a_union_as_folder_and_as_file(single: bool, tmp_path: Path) -> None:
    made = union(UNETS["sdxl"])
    made.save_pretrained(tmp_path / "union")
    path = weights_of(tmp_path / "union") if single else tmp_path / "union"
    network = opened(path, UNETS["sdxl"])
    assert _same(network.state_dict(), made.state_dict())
    assert kinds_of({"all": network}) == {"all": ControlKind(modes=MODES)}


def test_only_kinds_of_their_own_are_in_the_manifest() -> None:
    usual = controlnet(UNETS["sd15"], **HINTS)
    pooled = copy.deepcopy(usual)
    pooled.register_to_config(global_pool_conditions=True)
    found = kinds_of({"edges": usual, "shuffle": pooled})
    assert found == {"shuffle": ControlKind(pooled=True)}


@pytest.mark.parametrize("variant", UNETS)
def test_a_control_lora_changes_the_unets_encoder(variant: str, tmp_path: Path) -> None:
    unet = UNETS[variant]
    like = controlnet(unet, **HINTS)
    updates = write_control_lora(like, tmp_path / "lora.safetensors")
    found = opened(tmp_path / "lora.safetensors", unet).state_dict()
    base, file = unet.state_dict(), like.state_dict()
    assert len(updates) > 50
    for name, weight in found.items():
        expected = base[name] + updates[name] if name in updates else file[name]
        assert torch.equal(weight, expected), name


@pytest.mark.filterwarnings("ignore")  # PEFT's, of layers that the file holds whole
@pytest.mark.parametrize("variant", UNETS)
def test_a_control_lora_is_what_diffusers_makes_of_it(variant: str, tmp_path: Path) -> None:
    """With the UNet's own biases: diffusers 0.42 leaves out those of the file."""
    unet, path = UNETS[variant], tmp_path / "lora.safetensors"
    like = ControlNetModel.from_unet(unet, **HINTS)
    torch.manual_seed(8)
    for block in (*like.controlnet_down_blocks, like.controlnet_mid_block):
        block.load_state_dict({n: torch.randn_like(t) for n, t in block.state_dict().items()})
    write_control_lora(like, path)
    inputs = _inputs(unet)
    with_it = _residuals(opened(path, unet), inputs)
    theirs = ControlNetModel.from_unet(unet, **HINTS)
    theirs.load_lora_adapter(load_file(path), prefix=None)
    for one, other in zip(with_it, _residuals(theirs.eval(), inputs), strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))


def test_an_inpainting_unet_takes_the_controlnets_of_four_channels(tmp_path: Path) -> None:
    made, unet = controlnet(UNETS["sd15"], **HINTS), topology("sd15-inpainting").unet
    made.save_pretrained(tmp_path / "whole")
    for path in (tmp_path / "whole", weights_of(tmp_path / "whole")):
        assert _same(opened(path, unet).state_dict(), made.state_dict())
    smaller(UNETS["sd15"], in_channels=9).save_pretrained(tmp_path / "nine")
    with pytest.raises(BundleError, match="its in_channels is 9; accepted: 4"):
        opened(tmp_path / "nine", unet)
    write_control_lora(made, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match="is a Control-LoRA, which changes a UNet of 4 input"):
        opened(tmp_path / "lora.safetensors", unet)


def test_a_folder_that_holds_only_half_precision(tmp_path: Path) -> None:
    made = controlnet(UNETS["sd15"], **HINTS)
    copy.deepcopy(made).half().save_pretrained(tmp_path / "half", variant="fp16")
    found = opened(tmp_path / "half", UNETS["sd15"]).state_dict()
    assert _same(found, {n: t.half().float() for n, t in made.state_dict().items()})


def test_weights_are_rounded_to_the_bundles_precision(tmp_path: Path) -> None:
    path = write_original(controlnet(UNETS["sd15"], **HINTS), tmp_path / "depth.safetensors")
    network = opened(path, UNETS["sd15"], precision="fp16")
    assert {t.dtype for t in network.state_dict().values()} == {torch.float16}


def test_a_unet_without_a_mid_block_takes_the_controlnets_of_the_whole_one(tmp_path: Path) -> None:
    """As Segmind's Vega takes those of SDXL."""
    made = controlnet(UNETS["sdxl"], **HINTS)
    made.save_pretrained(tmp_path / "whole")
    for path in (tmp_path / "whole", weights_of(tmp_path / "whole")):
        assert _same(opened(path, pruned("vega")).state_dict(), made.state_dict())
    write_control_lora(made, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match="is a Control-LoRA, which changes a mid block"):
        opened(tmp_path / "lora.safetensors", pruned("vega"))


def test_a_file_without_what_every_controlnet_has(tmp_path: Path) -> None:
    save_file({"zero_convs.0.0.weight": torch.zeros(1)}, tmp_path / "cut.safetensors")
    with pytest.raises(BundleError, match="ControlNet depth lacks tensors of a ControlNet, first"):
        opened(tmp_path / "cut.safetensors", UNETS["sd15"])


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def _inputs(unet: UNet2DConditionModel) -> dict[str, Any]:
    torch.manual_seed(6)
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 77, unet.config.cross_attention_dim),
        "controlnet_cond": torch.rand(1, 3, 128, 128),
    }
    if unet.config.addition_embed_type:
        pooled = unet.config.projection_class_embeddings_input_dim
        pooled -= 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, 6)}
        inputs["added_cond_kwargs"] = added
    return inputs


@torch.no_grad()
def _residuals(network: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    skips, middle = network(**inputs, return_dict=False)
    return [*skips, middle]
